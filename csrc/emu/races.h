// Finds races by happens-before: who accessed a place last, and what puts accesses in order. Checks are
// inline, as every access to memory makes one.
#pragma once

#include <array>
#include <memory>
#include <unordered_map>
#include <vector>

#include "emu/current.h"
#include "emu/fiber.h"

namespace gankernels::emu {

struct Record {
  uint32_t block = 0;  // serial number over all launches; 0: nobody
  uint32_t epoch = 0;  // barriers of the block before
  uint16_t thread = 0;
  uint16_t fences = 0;  // of the thread before
  uint16_t warp_clock = 0;
  bool atomic = false, many_blocks = false;
};

// The last accesses to an element of memory.
struct Cell {
  Record write, read;
};

class Races {
 public:
  void begin_launch();
  void begin_block(int threads);
  // All threads of the block have reached its barrier.
  void pass_barrier() { ++epoch_; }
  // All lanes of a warp have reached a barrier of theirs.
  void pass_warp_barrier(int warp) { ++warp_clocks_[warp]; }
  void end_launch();
  // A write of the host between launches.
  Record host_write();

  // An access of the current thread; fails where it races with one before.
  void check(Cell& cell, Access access, bool atomic, const char* what, const Where& where);
  void atomic(const void* p);
  void fence();

  uint32_t block() const { return serial_; }
  uint32_t epoch() const { return epoch_; }
  uint16_t warp_clock() const { return warp_clocks_[current.thread / kLanes]; }

  // For ThreadSanitizer: releases the atomic of the current thread that has just been executed, which
  // Races::atomic, before it, could not.
  void flush() {
#if defined(GANKERNELS_TSAN)
    Clock& self = clocks_[current.thread];
    if (self.to_release) tsan_release(self.to_release);
    self.to_release = nullptr;
#endif
  }

 private:
  static constexpr uint16_t kMany = UINT16_MAX;

  // A thread that fenced and then touched an atomic: what came before its fence can be seen by whoever
  // reads the atomic after it, and fences then.
  struct Release {
    uint32_t block, epoch;
    uint16_t thread, fences;
  };
  using Releases = std::vector<Release>;

  struct Acquired {
    const Releases* releases;
    size_t count;
    uint16_t thread;
    uint32_t epoch;
  };

  // The clock of a thread of the current block.
  struct Clock {
    uint16_t fences = 0;
    uint32_t fence_epoch = 0;
    std::vector<std::pair<const Releases*, size_t>> seen;  // by atomics, not yet fenced
    Releases* to_release = nullptr;                        // by the atomic that comes next
  };

  Record record(bool atomic) const {
    const Clock& self = clocks_[current.thread];
    return {serial_, epoch_, static_cast<uint16_t>(current.thread), self.fences, warp_clock(),
            atomic,  false};
  }
  bool ordered(const Record& past) const {
    if (past.block < first_serial_) return true;
    if (past.many_blocks) return false;
    if (past.block != serial_) return ordered_by_fences(past);
    if (past.epoch < epoch_ || past.thread == current.thread) return true;
    return past.thread != kMany && past.thread / kLanes == current.thread / kLanes &&
           past.warp_clock < warp_clock();
  }
  bool ordered_by_fences(const Record& past) const;
  [[noreturn]] void race(const Record& past, const char* did, const char* what,
                         const Where& where) const;

  std::array<Clock, kMaxThreads> clocks_;
  std::array<uint16_t, kMaxWarps> warp_clocks_;
  uint32_t serial_ = 0, first_serial_ = 1;  // of the block; of the launch's first block
  uint32_t epoch_ = 0;                      // barriers of the block so far: all threads pass them
  std::unordered_map<const void*, Releases> released_;
  std::vector<Acquired> acquired_;
};

inline void Races::check(Cell& cell, Access access, bool atomic, const char* what,
                         const Where& where) {
  if (!(atomic && cell.write.atomic) && !ordered(cell.write))
    race(cell.write, "wrote", what, where);
  Record now = record(atomic);
  if (access == Access::kRead) {
    if (cell.read.block >= first_serial_) {
      if (cell.read.block != now.block) {
        now.many_blocks = !ordered(cell.read) || cell.read.many_blocks;
      } else {
        now.many_blocks = cell.read.many_blocks;
        if (cell.read.epoch == now.epoch && cell.read.thread != now.thread) now.thread = kMany;
      }
    }
    cell.read = now;
    return;
  }
  if (!ordered(cell.read)) race(cell.read, "read", what, where);
  cell.write = now;
}

}  // namespace gankernels::emu
