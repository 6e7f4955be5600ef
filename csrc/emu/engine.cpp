#include "emu/engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <unordered_map>

#include "emu/fiber.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __asan_poison_memory_region(const volatile void* p, size_t bytes);
void __asan_unpoison_memory_region(const volatile void* p, size_t bytes);
}
#else
static void __asan_poison_memory_region(const volatile void*, size_t) {}
static void __asan_unpoison_memory_region(const volatile void*, size_t) {}
#endif

#if defined(GANKERNELS_TSAN)
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace gankernels::emu {
namespace {

constexpr int kMaxThreads = 1024, kLanes = 32;
constexpr int64_t kMaxBlocks = INT32_MAX;
constexpr size_t kSharedBytes = 48 << 10, kGap = 64, kGranule = 2;
constexpr size_t kArenaBytes = kSharedBytes + kGap, kSyncs = 2 + 2 * kMaxThreads / kLanes;
constexpr uint16_t kMany = UINT16_MAX;

struct Error {
  std::string text;
};

// ThreadSanitizer watches memmove and delete in the engine, too, where fibers take turns.
struct Unwatched {
#if defined(GANKERNELS_TSAN)
  Unwatched() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Unwatched() {}
#endif
};

// --- who accessed a place last, and what puts accesses in order -----------------------------------

struct Record {
  uint32_t block = 0;  // serial number over all launches; 0: nobody
  uint32_t epoch = 0;  // barriers of the block before
  uint16_t thread = 0;
  uint16_t fences = 0;  // of the thread before
  uint16_t warp_clock = 0;
  bool atomic = false, many_blocks = false;
};

struct Cell {
  Record write, read;
};

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

struct Buffer {
  const char* name;
  uintptr_t begin, end;
  size_t item;
  Content content;
  std::unique_ptr<Cell[], decltype(&std::free)> cells{nullptr, &std::free};
  Traffic* traffic;

  bool holds(uintptr_t p, size_t bytes) const { return p >= begin && p + bytes <= end; }
};

// --- threads --------------------------------------------------------------------------------------

enum class State : uint8_t { kReady, kAtBarrier, kAtWarp, kDone };

struct Thread {
  std::unique_ptr<Fiber> fiber;
  State state = State::kDone;
  bool abandoned = false;  // by an error, in the middle of a kernel
  Where where;
  uint32_t epoch = 0;
  uint16_t fences = 0;
  uint32_t fence_epoch = 0;
  uint64_t result = 0;
  std::vector<std::pair<const Releases*, size_t>> seen;  // by atomics, not yet fenced
  Releases* to_release = nullptr;  // for ThreadSanitizer: by the atomic that comes next
};

struct Warp {
  uint32_t arrived = 0, mask = 0;
  bool exchanging = false;
  Where where;
  uint16_t clock = 1;
  std::array<uint64_t, kLanes> values;
  std::array<int, kLanes> source;
};

struct SharedArray {
  const void* identity;
  const char* name;
  size_t begin, end;
};

// What the lanes of a warp did the k-th time they came to a place.
struct Group {
  int64_t bytes = 0;
  std::vector<uintptr_t> sectors;
};

std::string text_of(const Where& where) {
  const char* slash = std::strrchr(where.file_name(), '/');
  return std::string(slash ? slash + 1 : where.file_name()) + ":" + std::to_string(where.line());
}

class Engine {
 public:
  // Never destroyed: fibers may outlive main.
  static Engine& get() {
    static auto* engine = new Engine;
    return *engine;
  }

  Engine() : arena_(static_cast<char*>(new_arena(nullptr))), block_sync_(new char[kSyncs]) {}

  std::recursive_mutex mutex;
  Order order = Order::kAscending;
  uint64_t random_state = 1;
  bool profiling = false;
  Counters counters;
  std::vector<Buffer> buffers;
  int block_id = 0, thread_id = 0;

  uint64_t random() {  // SplitMix64
    uint64_t z = (random_state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  [[noreturn]] void fail(const std::string& text, const Where& where) const {
    throw Error{kernel_ + ": " + text + " at " + text_of(where) + ", thread " +
                std::to_string(thread_id) + " of block " + std::to_string(block_id)};
  }

  const char* run(const char* name, int64_t blocks, int threads,
                  const std::function<void()>& kernel);
  void global(const void* p, size_t bytes, size_t alignment, Access access, bool atomic,
              const Where& where);
  void shared(const void* p, size_t bytes, Access access, const Where& where);
  void* allocate(const void* identity, const char* name, size_t bytes);
  void barrier(const Where& where);
  uint64_t warp_operation(uint32_t mask, uint64_t value, int xor_lanes, bool exchanging,
                          const Where& where);
  void atomic(const void* p);
  void fence();
  void reset() {
    counters = {};
    sites_.clear();
  }
  const char* fill(void* p, size_t bytes);
  Buffer* find(uintptr_t p, size_t bytes);

 private:
  std::string kernel_, message_;
  const std::function<void()>* body_ = nullptr;
  std::vector<Thread> threads_;
  std::array<Warp, kMaxThreads / kLanes> warps_;
  int count_ = 0, live_ = 0, waiting_ = 0;
  std::unique_ptr<Error> error_;

  uint32_t serial_ = 0, first_serial_ = 1;  // of the block; of the launch's first block
  std::unordered_map<const void*, Releases> released_;
  std::vector<Acquired> acquired_;

  char* const arena_;
  std::vector<Cell> arena_cells_ = std::vector<Cell>(kSharedBytes / kGranule);
  std::vector<SharedArray> arrays_;
  size_t arena_used_ = 0;
  // Addresses for ThreadSanitizer: of the end and the beginning of a launch, and of the block's
  // barrier and its warps, in turns.
  char launch_sync_ = 0, host_sync_ = 0;
  std::unique_ptr<char[]> block_sync_;
  size_t last_buffer_ = 0;

  struct SiteData {
    std::unordered_map<uint64_t, Group> groups;  // of the current block, by warp and occurrence
    std::vector<uint32_t> occurrences;           // by thread
    Site total;
  };
  std::map<std::pair<const char*, uint64_t>, SiteData> sites_;

  static void entry(void* argument);
  void run_block(int threads);
  void resume(int id);
  void leave();
  void maybe_switch();
  void nobody_can_run();
  void abandon();
  Record record(bool atomic) const;
  bool ordered(const Record& past) const;
  void check(Cell& cell, Access access, bool atomic, const char* what, const Where& where);
  void profile(uintptr_t p, size_t bytes, const Where& where);
  void close_profile();
  void release_barrier();
  static void* new_arena(void* place);
  void forget_block();
  void flush();
  friend Counters emu::counters();
};

// --- running --------------------------------------------------------------------------------------

void Engine::entry(void* argument) {
  Engine& engine = get();
  const int id = static_cast<int>(reinterpret_cast<intptr_t>(argument));
  for (;;) {
    tsan_acquire(&engine.host_sync_);
    try {
      (*engine.body_)();
    } catch (Error& error) {
      if (!engine.error_) engine.error_ = std::make_unique<Error>(std::move(error));
    } catch (const std::exception& error) {
      if (!engine.error_) engine.error_ = std::make_unique<Error>(Error{error.what()});
    }
    Thread& self = engine.threads_[id];
    self.state = State::kDone;
    --engine.live_;
    engine.flush();
    tsan_release(&engine.launch_sync_);
    self.fiber->leave();
  }
}

void Engine::resume(int id) {
  thread_id = id;
  threads_[id].fiber->enter();
}

void Engine::leave() {
  flush();
  const int id = thread_id;
  threads_[id].fiber->leave();
  thread_id = id;
}

void Engine::maybe_switch() {
  if (order == Order::kSwitching && (random() & 7) == 0) leave();
}

// Of ThreadSanitizer: what it knows of the shared memory and the barriers of the block before would
// put this one in order with it, or be a race. New pages and allocations are unknown to it.
void Engine::forget_block() {
#if defined(GANKERNELS_TSAN)
  new_arena(arena_);
  block_sync_.reset();
  block_sync_.reset(new char[kSyncs]);
#endif
}

void* Engine::new_arena(void* place) {
  void* arena = mmap(place, kArenaBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | (place ? MAP_FIXED : 0), -1, 0);
  if (arena == MAP_FAILED) throw std::bad_alloc();
  return arena;
}

// The atomic operation itself comes after Engine::atomic, which could not release it.
void Engine::flush() {
#if defined(GANKERNELS_TSAN)
  Thread& self = threads_[thread_id];
  if (self.to_release) tsan_release(self.to_release);
  self.to_release = nullptr;
#endif
}

void Engine::run_block(int threads) {
  count_ = live_ = threads;
  waiting_ = 0;
  ++serial_;
  acquired_.clear();
  arrays_.clear();
  forget_block();
  __asan_unpoison_memory_region(arena_, kArenaBytes);
  std::memset(arena_, 0xff, arena_used_);
  __asan_poison_memory_region(arena_, kArenaBytes);
  arena_used_ = 0;
  for (Warp& warp : warps_) warp.arrived = 0, warp.clock = 1;
  std::vector<int> turn(threads);
  std::iota(turn.begin(), turn.end(), 0);
  if (order == Order::kDescending) std::reverse(turn.begin(), turn.end());
  for (int id = 0; id < threads; ++id) {
    Thread& thread = threads_[id];
    thread.state = State::kReady;
    thread.epoch = 0;
    thread.fences = 0;
    thread.seen.clear();
    thread.fiber->renew_identity();
  }
  tsan_release(&host_sync_);
  while (live_ > 0) {
    if (order == Order::kRandom || order == Order::kSwitching)
      for (int i = threads - 1; i > 0; --i) std::swap(turn[i], turn[random() % (i + 1)]);
    bool progress = false;
    for (const int id : turn) {
      if (threads_[id].state != State::kReady) continue;
      progress = true;
      resume(id);
      if (error_) return;
    }
    if (waiting_ > 0 && waiting_ == live_ && live_ == count_)
      release_barrier();
    else if (!progress)
      nobody_can_run();
    if (error_) return;
  }
  if (profiling) close_profile();
}

const char* Engine::run(const char* name, int64_t blocks, int threads,
                        const std::function<void()>& kernel) {
  kernel_ = name;
  ++counters.launches[name];
  if (threads < 1 || threads > kMaxThreads || blocks < 1 || blocks > kMaxBlocks) {
    message_ = kernel_ + ": a launch of " + std::to_string(blocks) + " blocks of " +
               std::to_string(threads) + " threads, beyond the limits of a GPU";
    return message_.c_str();
  }
  while (static_cast<int>(threads_.size()) < threads) {
    Thread thread;
    thread.fiber = std::make_unique<Fiber>(
        &Engine::entry, reinterpret_cast<void*>(static_cast<intptr_t>(threads_.size())));
    threads_.push_back(std::move(thread));
  }
  body_ = &kernel;
  released_.clear();
  first_serial_ = serial_ + 1;
  counters.threads += blocks * threads;
  std::vector<int> turn(blocks);
  std::iota(turn.begin(), turn.end(), 0);
  if (order == Order::kDescending) std::reverse(turn.begin(), turn.end());
  if (order == Order::kRandom || order == Order::kSwitching)
    for (int64_t i = blocks - 1; i > 0; --i) std::swap(turn[i], turn[random() % (i + 1)]);
  for (const int block : turn) {
    block_id = block;
    run_block(threads);
    auto& most = counters.shared[kernel_];
    most = std::max<int64_t>(most, static_cast<int64_t>(arena_used_));
    if (error_) break;
  }
  tsan_acquire(&launch_sync_);
  ++serial_;
  first_serial_ = serial_ + 1;
  if (!error_) return nullptr;
  abandon();
  message_ = error_->text;
  error_.reset();
  return message_.c_str();
}

void Engine::abandon() {
  for (Thread& thread : threads_)
    if (thread.state != State::kDone) {
      thread.state = State::kDone;
      thread.fiber->restart();
    }
  sites_.clear();
}

void Engine::nobody_can_run() {
  std::map<std::string, std::vector<int>> places;
  for (int id = 0; id < count_; ++id)
    if (threads_[id].state != State::kDone)
      places[(threads_[id].state == State::kAtBarrier ? "a barrier at " : "a warp operation at ") +
             text_of(threads_[id].where)]
          .push_back(id);
  std::string text = kernel_ + ": block " + std::to_string(block_id) + " cannot go on: ";
  for (const auto& [place, ids] : places) {
    text += std::to_string(ids.size()) + " threads wait at " + place + " (thread " +
            std::to_string(ids.front()) + " first); ";
  }
  text += std::to_string(count_ - live_) + " have returned";
  error_ = std::make_unique<Error>(Error{text});
}

// --- barriers and warps ---------------------------------------------------------------------------

void Engine::barrier(const Where& where) {
  Thread& self = threads_[thread_id];
  self.state = State::kAtBarrier;
  self.where = where;
  ++waiting_;
  ++counters.barriers;
  flush();
  char* sync = &block_sync_[self.epoch & 1];
  tsan_release(sync);
  leave();
  tsan_acquire(sync);
}

void Engine::release_barrier() {
  for (int id = 1; id < count_; ++id)
    if (threads_[id].where.line() != threads_[0].where.line() ||
        threads_[id].where.column() != threads_[0].where.column())
      return nobody_can_run();
  for (int id = 0; id < count_; ++id) {
    threads_[id].state = State::kReady;
    ++threads_[id].epoch;
  }
  waiting_ = 0;
}

uint64_t Engine::warp_operation(uint32_t mask, uint64_t value, int xor_lanes, bool exchanging,
                                const Where& where) {
  const int lane = thread_id % kLanes, first = thread_id - lane;
  Warp& warp = warps_[thread_id / kLanes];
  Thread& self = threads_[thread_id];
  if (!(mask >> lane & 1)) fail("a warp operation whose mask leaves out its own lane", where);
  for (int k = 0; k < kLanes; ++k)
    if ((mask >> k & 1) && (first + k >= count_ || threads_[first + k].state == State::kDone))
      fail("a warp operation names lane " + std::to_string(k) + ", which is not there", where);
  if (warp.arrived == 0) {
    warp.mask = mask, warp.exchanging = exchanging, warp.where = where;
  } else if (warp.mask != mask || warp.exchanging != exchanging ||
             warp.where.line() != where.line() || warp.where.column() != where.column()) {
    fail("a warp operation while other lanes are at another one, at " + text_of(warp.where), where);
  }
  if (exchanging && !(mask >> ((lane ^ xor_lanes) % kLanes) & 1))
    fail("an exchange with a lane outside the mask", where);
  warp.arrived |= 1u << lane;
  warp.values[lane] = value;
  warp.source[lane] = lane ^ xor_lanes;
  flush();
  char* sync = &block_sync_[2 + thread_id / kLanes * 2 + (warp.clock & 1)];
  if (!exchanging) tsan_release(sync);
  if (warp.arrived == mask) {
    for (int k = 0; k < kLanes; ++k)
      if (mask >> k & 1) {
        threads_[first + k].result = warp.values[warp.source[k] % kLanes];
        threads_[first + k].state = State::kReady;
      }
    warp.arrived = 0;
    // Shuffles do not order memory. Partial barriers are not tracked: they order nothing here.
    if (!exchanging && mask == UINT32_MAX) ++warp.clock;
  } else {
    self.state = State::kAtWarp;
    self.where = where;
    leave();
  }
  if (!exchanging) tsan_acquire(sync);
  return self.result;
}

// --- memory ---------------------------------------------------------------------------------------

Record Engine::record(bool atomic) const {
  const Thread& self = threads_[thread_id];
  return {serial_,
          self.epoch,
          static_cast<uint16_t>(thread_id),
          self.fences,
          warps_[thread_id / kLanes].clock,
          atomic,
          false};
}

bool Engine::ordered(const Record& past) const {
  if (past.block < first_serial_) return true;
  const Thread& self = threads_[thread_id];
  if (past.block == serial_) {
    if (past.many_blocks) return false;
    if (past.epoch < self.epoch || past.thread == thread_id) return true;
    return past.thread != kMany && past.thread / kLanes == thread_id / kLanes &&
           past.warp_clock < warps_[thread_id / kLanes].clock;
  }
  if (past.many_blocks) return false;
  for (const Acquired& acquired : acquired_) {
    if (acquired.thread != thread_id && acquired.epoch >= self.epoch) continue;
    for (size_t i = 0; i < acquired.count; ++i) {
      const Release& release = (*acquired.releases)[i];
      if (release.block != past.block) continue;
      if (past.epoch < release.epoch) return true;
      if (past.thread == release.thread && (past.fences < release.fences || past.atomic))
        return true;
    }
  }
  return false;
}

void Engine::check(Cell& cell, Access access, bool atomic, const char* what, const Where& where) {
  const auto race = [&](const Record& past, const char* did) {
    const std::string who =
        past.many_blocks ? "several blocks"
        : past.thread == kMany
            ? "several threads"
            : "thread " + std::to_string(past.thread) +
                  (past.block == serial_ ? " of this block" : " of another block");
    fail(std::string("a race on ") + what + ": " + who + " " + did + " it before, unordered,",
         where);
  };
  if (!(atomic && cell.write.atomic) && !ordered(cell.write)) race(cell.write, "wrote");
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
  if (!ordered(cell.read)) race(cell.read, "read");
  cell.write = now;
}

Buffer* Engine::find(uintptr_t p, size_t bytes) {
  if (last_buffer_ < buffers.size() && buffers[last_buffer_].holds(p, bytes))
    return &buffers[last_buffer_];
  auto next = std::upper_bound(buffers.begin(), buffers.end(), p,
                               [](uintptr_t q, const Buffer& b) { return q < b.begin; });
  // Inputs may overlap one another: the one that begins last need not be the one.
  while (next != buffers.begin()) {
    --next;
    if (next->holds(p, bytes)) {
      last_buffer_ = static_cast<size_t>(next - buffers.begin());
      return &*next;
    }
  }
  return nullptr;
}

void Engine::global(const void* pointer, size_t bytes, size_t alignment, Access access, bool atomic,
                    const Where& where) {
  flush();
  maybe_switch();
  const auto p = reinterpret_cast<uintptr_t>(pointer);
  Buffer* buffer = find(p, bytes);
  const char* verb = access == Access::kRead ? "a read" : "a write";
  if (!buffer) {
    std::string nearest;
    for (const Buffer& b : buffers)
      if (p + 4096 >= b.begin && p < b.end + 4096)
        nearest = std::string(", near ") + b.name + " of " + std::to_string(b.end - b.begin) +
                  " bytes at byte " + std::to_string(static_cast<int64_t>(p - b.begin));
    fail(std::string(verb) + " of " + std::to_string(bytes) + " bytes out of bounds" + nearest,
         where);
  }
  if (p % alignment)
    fail(std::string(verb) + " of " + std::to_string(bytes) + " bytes of " + buffer->name +
             " that is not aligned to " + std::to_string(alignment),
         where);
  (access == Access::kRead ? buffer->traffic->read : buffer->traffic->written) +=
      static_cast<int64_t>(bytes);
  if (profiling) profile(p, bytes, where);
  if (buffer->content == Content::kConstant) {
    if (access == Access::kWrite) fail(std::string("a write to the input ") + buffer->name, where);
    return;
  }
  const size_t first = (p - buffer->begin) / buffer->item;
  const size_t last = (p + bytes - 1 - buffer->begin) / buffer->item;
  for (size_t i = first; i <= last; ++i) {
    Cell& cell = buffer->cells[i];
    if (access == Access::kRead && cell.write.block == 0 && buffer->content == Content::kUndefined)
      fail(std::string("a read of ") + buffer->name + " before anything was written there", where);
    check(cell, access, atomic, buffer->name, where);
  }
}

void* Engine::allocate(const void* identity, const char* name, size_t bytes) {
  for (const SharedArray& array : arrays_)
    if (array.identity == identity) return arena_ + array.begin;
  const Unwatched unwatched;
  const size_t begin = arrays_.empty() ? 0 : (arena_used_ + 31) / 32 * 32 + kGap;
  if (begin + bytes > kSharedBytes)
    throw Error{kernel_ + ": more than 48 KiB of shared memory, at the array " + name};
  arrays_.push_back({identity, name, begin, begin + bytes});
  arena_used_ = begin + bytes;
  __asan_unpoison_memory_region(arena_ + begin, bytes);
  return arena_ + begin;
}

void Engine::shared(const void* pointer, size_t bytes, Access access, const Where& where) {
  flush();
  maybe_switch();
  const auto offset = static_cast<size_t>(static_cast<const char*>(pointer) - arena_);
  for (const SharedArray& array : arrays_) {
    if (offset < array.begin || offset + bytes > array.end) continue;
    if (offset % bytes) fail(std::string("a misaligned access to the shared ") + array.name, where);
    for (size_t i = offset / kGranule; i < (offset + bytes) / kGranule; ++i) {
      Cell& cell = arena_cells_[i];
      if (cell.write.block != serial_) cell.write = {};  // of a block before: other memory
      if (cell.read.block != serial_) cell.read = {};
      if (access == Access::kRead && cell.write.block == 0)
        fail(std::string("a read of the shared ") + array.name + " before it was written", where);
      check(cell, access, false, array.name, where);
    }
    return;
  }
  fail("an access to shared memory out of bounds", where);
}

void Engine::atomic(const void* p) {
  const Unwatched unwatched;
  Thread& self = threads_[thread_id];
  Releases& releases = released_[p];
  if (!releases.empty()) threads_[thread_id].seen.emplace_back(&releases, releases.size());
  if (self.fences > 0) {
    releases.push_back({serial_, self.fence_epoch, static_cast<uint16_t>(thread_id), self.fences});
    self.to_release = &releases;
  }
}

void Engine::fence() {
  flush();
  const Unwatched unwatched;
  Thread& self = threads_[thread_id];
  ++self.fences;
  self.fence_epoch = self.epoch;
  for (const auto& [releases, count] : self.seen) {
    acquired_.push_back({releases, count, static_cast<uint16_t>(thread_id), self.epoch});
    tsan_acquire(const_cast<Releases*>(releases));
  }
  self.seen.clear();
}

const char* Engine::fill(void* p, size_t bytes) {
  ++counters.launches["fill"];
  const auto begin = reinterpret_cast<uintptr_t>(p);
  Buffer* buffer = find(begin, bytes);
  if (!buffer || buffer->content == Content::kConstant) {
    message_ = "fill: out of bounds, or of an input";
    return message_.c_str();
  }
  ++serial_;
  for (size_t i = (begin - buffer->begin) / buffer->item;
       i * buffer->item < begin - buffer->begin + bytes; ++i)
    buffer->cells[i].write = {serial_, 0, 0, 0, 0, false, false};
  buffer->traffic->written += static_cast<int64_t>(bytes);
  first_serial_ = serial_ + 1;
  std::memset(p, 0, bytes);
  return nullptr;
}

// --- sectors --------------------------------------------------------------------------------------

void Engine::profile(uintptr_t p, size_t bytes, const Where& where) {
  const Unwatched unwatched;
  SiteData& site = sites_[{where.function_name(), uint64_t{where.line()} << 32 | where.column()}];
  if (site.total.where.empty()) site.total.where = text_of(where) + " " + where.function_name();
  site.occurrences.resize(kMaxThreads);
  const uint64_t key = uint64_t{site.occurrences[thread_id]++} << 8 | (thread_id / kLanes);
  Group& group = site.groups[key];
  group.bytes += static_cast<int64_t>(bytes);
  for (uintptr_t s = p / 32; s <= (p + bytes - 1) / 32; ++s)
    if (std::find(group.sectors.begin(), group.sectors.end(), s) == group.sectors.end())
      group.sectors.push_back(s);
}

void Engine::close_profile() {
  for (auto& [key, site] : sites_) {
    for (const auto& [occurrence, group] : site.groups) {
      ++site.total.accesses;
      site.total.bytes += group.bytes;
      site.total.sectors += static_cast<int64_t>(group.sectors.size());
    }
    site.groups.clear();
    site.occurrences.assign(kMaxThreads, 0);
  }
}

}  // namespace

// --- the entry points -----------------------------------------------------------------------------

int current_thread() {
  return Engine::get().thread_id;
}
int current_block() {
  return Engine::get().block_id;
}
void global_access(const void* p, size_t bytes, size_t alignment, Access access, Where where) {
  Engine::get().global(p, bytes, alignment, access, false, where);
}
void atomic_access(const void* p, size_t bytes, bool floating, Where where) {
  Engine& engine = Engine::get();
  if (floating) engine.fail("an atomic sum of floats, which depends on the order", where);
  engine.global(p, bytes, bytes, Access::kWrite, true, where);
  engine.atomic(p);
}
void* shared_memory(const void* identity, const char* name, size_t bytes) {
  return Engine::get().allocate(identity, name, bytes);
}
void shared_access(const void* p, size_t bytes, Access access, Where where) {
  Engine::get().shared(p, bytes, access, where);
}
void barrier(Where where) {
  Engine::get().barrier(where);
}
void warp_barrier(uint32_t mask, Where where) {
  Engine::get().warp_operation(mask, 0, 0, false, where);
}
uint64_t exchange(uint32_t mask, uint64_t value, int xor_lanes, Where where) {
  return Engine::get().warp_operation(mask, value, xor_lanes, true, where);
}
void fence(Where) {
  Engine::get().fence();
}

void begin_call() {
  Engine::get().mutex.lock();
}
void end_call() {
  Engine& engine = Engine::get();
  engine.buffers.clear();
  engine.mutex.unlock();
}
void add_buffer(const char* name, const void* p, size_t bytes, size_t item, Content content) {
  if (bytes == 0) return;
  Engine& engine = Engine::get();
  Buffer buffer;
  buffer.name = name;
  buffer.begin = reinterpret_cast<uintptr_t>(p);
  buffer.end = buffer.begin + bytes;
  buffer.item = item;
  buffer.content = content;
  buffer.traffic = &engine.counters.buffers[name];
  // calloc: the pages of what is never written cost nothing.
  if (content != Content::kConstant)
    buffer.cells.reset(static_cast<Cell*>(std::calloc((bytes + item - 1) / item, sizeof(Cell))));
  const auto place = std::upper_bound(engine.buffers.begin(), engine.buffers.end(), buffer.begin,
                                      [](uintptr_t q, const Buffer& b) { return q < b.begin; });
  engine.buffers.insert(place, std::move(buffer));
}
const char* run(const char* name, int64_t blocks, int threads,
                const std::function<void()>& kernel) {
  return Engine::get().run(name, blocks, threads, kernel);
}
const char* fill(void* p, size_t bytes) {
  return Engine::get().fill(p, bytes);
}

void set_order(Order order, uint64_t seed) {
  Engine& engine = Engine::get();
  const std::lock_guard lock(engine.mutex);
  engine.order = order;
  engine.random_state = seed;
}
void set_profiling(bool on) {
  Engine& engine = Engine::get();
  const std::lock_guard lock(engine.mutex);
  engine.profiling = on;
}
Counters counters() {
  Engine& engine = Engine::get();
  const std::lock_guard lock(engine.mutex);
  Counters result = engine.counters;
  for (const auto& [key, site] : engine.sites_) result.sites.push_back(site.total);
  return result;
}
void reset_counters() {
  Engine& engine = Engine::get();
  const std::lock_guard lock(engine.mutex);
  engine.reset();
}

}  // namespace gankernels::emu
