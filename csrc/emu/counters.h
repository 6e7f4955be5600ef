// Counts: launches, threads, bytes by buffer, and while profiling the sectors that warps take and the
// banks of shared memory that they contend for.
#pragma once

#include <array>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emu/current.h"

namespace gankernels::emu {

class Tally {
 public:
  // The counts; the sites of a profile only in `result`.
  Counters counts;
  bool profiling = false;
  bool executing = true;

  Counters result() const;
  void reset();
  // An access of the current thread to global memory, while profiling.
  void profile(uintptr_t p, size_t bytes, const Where& where);
  // The same to shared memory. An atomic access contends for a word, too.
  void profile_shared(const void* p, size_t bytes, const char* verb, bool atomic,
                      const Where& where);
  // The current thread meets a barrier or a warp operation: accesses on its two sides are not one.
  void pass() { ++passes_[current.thread]; }
  void end_block();
  // After an error, whose profile is incomplete.
  void forget_profile() {
    sites_.clear();
    bank_sites_.clear();
    passes_.fill(0);
  }

 private:
  // The accesses of a warp's lanes, the k-th time they came to a place.
  struct Group {
    int64_t bytes = 0;
    std::vector<uintptr_t> sectors;
  };
  struct SiteData {
    std::unordered_map<uint64_t, Group> groups;  // of the current block, by warp and occurrence
    std::vector<uint32_t> occurrences;           // by thread
    Site total;
  };
  std::map<std::pair<const char*, uint64_t>, SiteData> sites_;

  // The words of a warp's lanes, the k-th time since the last barrier that they came to a place.
  using Lanes = std::vector<std::pair<int, uintptr_t>>;
  struct BankSiteData {
    size_t bytes = 0;
    bool atomic = false;
    std::unordered_map<uint64_t, Lanes> groups;              // of the current block
    std::vector<std::pair<uint32_t, uint32_t>> occurrences;  // by thread: passes, k
    BankSite total;
    int64_t ways = 0, parts = 0;
    void add(const Lanes& lanes);
  };
  std::map<std::tuple<const char*, const char*, uint64_t, const char*>, BankSiteData> bank_sites_;
  std::array<uint32_t, kMaxThreads> passes_{};  // of the current block
};

}  // namespace gankernels::emu
