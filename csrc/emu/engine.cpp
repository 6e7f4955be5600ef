#include "emu/engine.h"

#include <mutex>

#include "emu/schedule.h"

namespace gankernels::emu {
namespace {

struct Engine {
  // Never destroyed: fibers may outlive main.
  static Engine& get() {
    static auto* engine = new Engine;
    return *engine;
  }

  void begin_access() {
    races.flush();
    schedule.maybe_switch();
  }

  std::recursive_mutex mutex;
  Tally tally;
  Races races;
  Memory memory{races, tally};
  Schedule schedule{races, memory, tally};
};

}  // namespace

// --- for device code ------------------------------------------------------------------------------

int current_thread() {
  return current.thread;
}
int current_block() {
  return current.block;
}
void global_access(const void* p, size_t bytes, size_t alignment, Access access, Where where) {
  Engine& engine = Engine::get();
  engine.begin_access();
  engine.memory.global(p, bytes, alignment, access, false, where);
}
void atomic_access(const void* p, size_t bytes, bool floating, Where where) {
  Engine& engine = Engine::get();
  if (floating) fail("an atomic sum of floats, which depends on the order", where);
  engine.begin_access();
  engine.memory.global(p, bytes, bytes, Access::kWrite, true, where);
  engine.races.atomic(p);
}
void* shared_memory(const void* identity, const char* name, size_t bytes) {
  return Engine::get().memory.allocate(identity, name, bytes);
}
void shared_access(const void* p, size_t bytes, Access access, Where where) {
  Engine& engine = Engine::get();
  engine.begin_access();
  engine.memory.shared(p, bytes, access, false, where);
  if (engine.tally.profiling)
    engine.tally.profile_shared(p, bytes, access == Access::kRead ? "read" : "write", false, where);
}
void shared_atomic_access(const void* p, size_t bytes, bool floating, Where where) {
  Engine& engine = Engine::get();
  if (floating) fail("an atomic sum of floats, which depends on the order", where);
  engine.begin_access();
  engine.memory.shared(p, bytes, Access::kWrite, true, where);
  if (engine.tally.profiling) engine.tally.profile_shared(p, bytes, "atomic", true, where);
}
void copy_async(void* to, const void* from, size_t bytes, Where where) {
  Engine& engine = Engine::get();
  engine.begin_access();
  engine.memory.global(from, bytes, bytes, Access::kRead, false, where);
  engine.memory.begin_copy(to, from, bytes, where);
  if (engine.tally.profiling) engine.tally.profile_shared(to, bytes, "copy", false, where);
}
void copy_wait(Where) {
  Engine& engine = Engine::get();
  engine.begin_access();
  engine.memory.end_copies();
}
void barrier(Where where) {
  Engine::get().schedule.barrier(where);
}
void warp_barrier(uint32_t mask, Where where) {
  Engine::get().schedule.warp_operation(mask, 0, 0, false, where);
}
uint64_t exchange(uint32_t mask, uint64_t value, int xor_lanes, Where where) {
  return Engine::get().schedule.warp_operation(mask, value, xor_lanes, true, where);
}
void fence(Where) {
  Engine::get().races.fence();
}

// --- for launchers --------------------------------------------------------------------------------

void begin_call() {
  Engine::get().mutex.lock();
}
void end_call() {
  Engine& engine = Engine::get();
  engine.memory.remove_buffers();
  engine.mutex.unlock();
}
void add_buffer(const char* name, const void* p, size_t bytes, size_t item, Content content) {
  Engine::get().memory.add_buffer(name, p, bytes, item, content);
}
const char* run(const char* name, int64_t blocks, int threads,
                const std::function<void()>& kernel) {
  return Engine::get().schedule.run(name, blocks, threads, kernel);
}
const char* fill(void* p, size_t bytes) {
  return Engine::get().memory.fill(p, bytes);
}

// --- for tests ------------------------------------------------------------------------------------

void set_order(Order order, uint64_t seed) {
  Engine& engine = Engine::get();
  const std::lock_guard lock(engine.mutex);
  engine.schedule.set_order(order, seed);
}
void set_profiling(bool on) {
  Engine& engine = Engine::get();
  const std::lock_guard lock(engine.mutex);
  engine.tally.profiling = on;
}
void set_executing(bool on) {
  Engine& engine = Engine::get();
  const std::lock_guard lock(engine.mutex);
  engine.tally.executing = on;
}
Counters counters() {
  Engine& engine = Engine::get();
  const std::lock_guard lock(engine.mutex);
  return engine.tally.result();
}
void reset_counters() {
  Engine& engine = Engine::get();
  const std::lock_guard lock(engine.mutex);
  engine.tally.reset();
}

}  // namespace gankernels::emu
