// Who runs when: blocks one after the other, a block's threads as fibers in turns, from one barrier, warp
// operation or, in the switching order, access of memory to the next.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>

#include "emu/fiber.h"
#include "emu/memory.h"

namespace gankernels::emu {

class Schedule {
 public:
  Schedule(Races& races, Memory& memory, Tally& tally);

  void set_order(Order order, uint64_t seed);
  // Null, or what went wrong, until the next launch.
  const char* run(const char* name, int64_t blocks, int threads,
                  const std::function<void()>& kernel);

  // Calls of the current thread.
  void maybe_switch() {
    if (order_ == Order::kSwitching && (random() & 7) == 0) leave();
  }
  void barrier(const Where& where);
  uint64_t warp_operation(uint32_t mask, uint64_t value, int xor_lanes, bool exchanging,
                          const Where& where);

 private:
  enum class State : uint8_t { kReady, kAtBarrier, kAtWarp, kDone };

  struct Thread {
    Schedule* schedule = nullptr;
    std::unique_ptr<Fiber> fiber;  // of the threads that there ever were
    State state = State::kDone;
    Where where;
    uint64_t result = 0;
  };

  struct Warp {
    uint32_t arrived = 0, mask = 0;
    bool exchanging = false;
    Where where;
    std::array<uint64_t, kLanes> values;
    std::array<int, kLanes> source;
  };

  uint64_t random();
  static void entry(void* thread);
  template <class Turn>
  void shuffle(Turn& turn);
  void run_block(int threads);
  void begin_block(int threads);
  void resume(int id) {
    current.thread = id;
    threads_[id].fiber->enter();
  }
  // Until the current thread is resumed.
  void leave() {
    races_.flush();
    threads_[current.thread].fiber->leave();
  }
  void release_barrier();
  void nobody_can_run();
  void abandon();
  void check_lanes(const Warp& warp, uint32_t mask, int xor_lanes, bool exchanging,
                   const Where& where) const;

  bool is_random() const { return order_ == Order::kRandom || order_ == Order::kSwitching; }

  Races& races_;
  Memory& memory_;
  Tally& tally_;
  Order order_ = Order::kAscending;
  uint64_t random_state_ = 1;
  const std::function<void()>* body_ = nullptr;
  std::array<Thread, kMaxThreads> threads_;
  std::array<Warp, kMaxWarps> warps_;
  int count_ = 0, live_ = 0, waiting_ = 0;
  std::unique_ptr<Error> error_;
  std::string message_;
  // Addresses for ThreadSanitizer: of the end and the beginning of a launch, and of the block's
  // barrier and its warps, in turns.
  char launch_sync_ = 0, host_sync_ = 0;
  std::unique_ptr<char[]> block_sync_;
};

inline uint64_t Schedule::random() {  // SplitMix64
  uint64_t z = (random_state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace gankernels::emu
