// Counts: launches, threads, bytes by buffer, and while profiling the sectors that warps take.
#pragma once

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

  Counters result() const;
  void reset();
  // An access of the current thread to global memory, while profiling.
  void profile(uintptr_t p, size_t bytes, const Where& where);
  void end_block();
  // After an error, whose profile is incomplete.
  void forget_profile() { sites_.clear(); }

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
};

}  // namespace gankernels::emu
