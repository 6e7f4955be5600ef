// Executes CUDA kernels on the host and looks for what GPUs hide. Test-only.
//
// A thread of a kernel is a fiber. A block's fibers run in turns, from one barrier, warp operation or
// (in random order) memory access to the next; blocks run one after the other. Reported as errors:
//   - memory out of bounds, misaligned, constant but written, or read before it was written
//   - shared memory: the same, and more of it than 48 KiB; it starts as NaN
//   - data races: two accesses to one place, one of them a write, that no barrier, warp barrier,
//     or fence - atomic - fence chain puts in order, whichever order they happened to run in
//   - barriers that some threads never reach, or reach elsewhere; warp operations likewise
//   - float atomics, launches beyond the limits of a GPU
// An error ends the launch; the engine is usable afterwards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <source_location>
#include <string>
#include <vector>

namespace gankernels::emu {

using Where = std::source_location;

enum class Access : uint8_t { kRead, kWrite };
// The content of a buffer when a call begins; only constant ones may not be written.
enum class Content : uint8_t { kConstant, kDefined, kUndefined };
// The order of the threads of a block, and of the blocks. kSwitching is random, and may also change
// threads at any access to memory.
enum class Order : uint8_t { kAscending, kDescending, kRandom, kSwitching };

// --- for device code ------------------------------------------------------------------------------

int current_thread();
int current_block();
void global_access(const void* p, size_t bytes, size_t alignment, Access access, Where where);
void atomic_access(const void* p, size_t bytes, bool floating, Where where);
void* shared_memory(const void* identity, const char* name, size_t bytes);
void shared_access(const void* p, size_t bytes, Access access, Where where);
void shared_atomic_access(const void* p, size_t bytes, bool floating, Where where);
void copy_async(void* to, const void* from, size_t bytes, Where where);
void copy_wait(Where where);
void barrier(Where where);
void warp_barrier(uint32_t mask, Where where);
uint64_t exchange(uint32_t mask, uint64_t value, int xor_lanes, Where where);
void fence(Where where);

// --- for launchers: null, or what went wrong -------------------------------------------------------

// The engine serves one call at a time; others wait.
void begin_call();
void end_call();
void add_buffer(const char* name, const void* p, size_t bytes, size_t item, Content content);
const char* run(const char* name, int64_t blocks, int threads, const std::function<void()>& kernel);
const char* fill(void* p, size_t bytes);

// --- for tests ------------------------------------------------------------------------------------

struct Traffic {
  int64_t read = 0, written = 0;  // bytes
};
// The accesses of a warp's lanes at one place of the source, and the 32-byte sectors they take.
struct Site {
  std::string where;
  int64_t accesses = 0, bytes = 0, sectors = 0;
};

// The same to shared memory: into how many turns the accesses of a warp's lanes fall, because they ask
// a bank for different words. One is best; of 8 and 16 bytes, of each half and quarter of the warp.
struct BankSite {
  std::string kernel, where;
  int64_t accesses = 0, max_ways = 0;
  double mean_ways = 0;
};

struct Counters {
  std::map<std::string, int64_t> launches;
  std::map<std::string, std::vector<int64_t>> blocks;  // of every launch, by kernel
  std::map<std::string, Traffic> buffers;
  std::map<std::string, int64_t> shared;  // the most bytes of a block, by kernel
  std::vector<Site> sites;                // while profiling
  std::vector<BankSite> banks;            // while profiling
  int64_t threads = 0, barriers = 0;      // barriers: of threads
};

void set_order(Order order, uint64_t seed);
void set_profiling(bool on);
void set_executing(bool on);  // off: launches are counted, and nothing runs
Counters counters();
void reset_counters();

}  // namespace gankernels::emu
