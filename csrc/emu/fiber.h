// Stackful coroutines of one OS thread: a few nanoseconds a switch on x86-64, ucontext elsewhere.
#pragma once

#include <cstddef>
#include <memory>

namespace gankernels::emu {

// Runs entry(argument) on a guarded stack of its own, which must never return.
class Fiber {
 public:
  Fiber(void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Called by the scheduler: runs the fiber until it calls leave().
  void enter();
  // Called by the fiber: back to the scheduler.
  void leave();
  // Forgets where the fiber was; the next enter() begins at the entry.
  void restart();
  // For ThreadSanitizer, whose fibers are not ordered by a switch: a new identity.
  void renew_identity();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Announcements to ThreadSanitizer; nothing in other builds.
#if defined(GANKERNELS_TSAN)
void tsan_release(void* sync);
void tsan_acquire(void* sync);
#else
inline void tsan_release(void*) {}
inline void tsan_acquire(void*) {}
#endif

}  // namespace gankernels::emu
