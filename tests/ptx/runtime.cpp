// The part of the CUDA runtime that nvcc's objects call, with a launch carried out on the host: each
// thread of a block is a fiber, blocks run one after the other. A fault ends the launch and becomes the
// error that cudaGetLastError returns and cudaGetErrorString tells.
#include "runtime.h"

#include <cxxabi.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <utility>

#include "ptx.h"

#if defined(__SANITIZE_ADDRESS__)
#define PTX_ASAN 1
#include <sanitizer/asan_interface.h>
#endif

// Saves the callee-saved registers and the stack pointer at *save, and goes on where `load` was saved.
extern "C" void ptx_switch(void** save, void* load);
asm(R"(
  .text
  .globl ptx_switch
  .hidden ptx_switch
  .type ptx_switch, @function
ptx_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size ptx_switch, .-ptx_switch
)");

namespace ptx {

constexpr u32 kMostThreads = 1024;  // of a block

namespace {

constexpr u32 kWarp = 32;
constexpr size_t kStack = 512 << 10, kGuard = 4096;

enum class State : u8 { kReady, kAtBarrier, kAtShuffle, kDone };

struct Copy {
  u64 to, from;
  u32 bytes;
};

struct Fiber {
  Context context;  // first: fault() is given it
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  State state = State::kDone;
  u32 line = 0, barrier = 0;
  u32 value = 0, lanes = 0, clamp = 0, mask = 0, received = 0;  // of a shuffle
  bool in_range = false;
  Warp how = Warp::kXor;
  std::vector<std::vector<Copy>> copies;  // by group; the last is open
};

struct Registered {
  u64 text_hash;
  const char* file;
  const Kernel* const* kernels;
  u32 count;
};
std::vector<Registered>& registered() {
  static auto* all = new std::vector<Registered>;  // outlives what runs at exit
  return *all;
}

// Issues of every kernel's blocks of instructions, before the counts were reset.
std::map<const Kernel*, std::vector<u64>>& ever() {
  static auto* all = new std::map<const Kernel*, std::vector<u64>>;
  return *all;
}

// --- a launch -----------------------------------------------------------------------------------------

std::mutex launch_mutex;
Fiber* fibers[kMostThreads];
Fiber* current = nullptr;
void* scheduler = nullptr;
const Kernel* kernel = nullptr;
std::string error;                       // of this launch
bool failed = false, abandoned = false;  // abandoned: fibers of an earlier launch did not return
Order order = Order::kAscending;
std::mt19937_64 random_numbers;
std::map<std::string, Launched> counts;
std::vector<char> shared_memory;
std::vector<Word> words;
std::vector<u32> visits;  // by thread and block of instructions

void to_scheduler() {
  ptx_switch(&current->stack_pointer, scheduler);
}

void describe(const Context& c, const char* what, u64 address, u32 line) {
  char text[512];
  std::snprintf(text, sizeof text,
                "%s, address 0x%llx, line %u of its PTX, block %u, thread %u, in ", what,
                static_cast<unsigned long long>(address), line, c.ctaid, c.tid);
  error = text + full_name(kernel->name);
  failed = true;
}

void start() {
  kernel->run(current->context);
  current->state = State::kDone;
  to_scheduler();
  std::abort();
}

Fiber* make_fiber() {
  auto* fiber = new Fiber;
  void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  mprotect(memory, kGuard, PROT_NONE);
  fiber->stack = static_cast<char*>(memory);
  return fiber;
}

void reset(Fiber& fiber) {
#if defined(PTX_ASAN)
  if (abandoned) ASAN_UNPOISON_MEMORY_REGION(fiber.stack + kGuard, kStack - kGuard);
#endif
  auto* top = reinterpret_cast<void**>(fiber.stack + kStack) - 2;  // 16-byte aligned
  *top = reinterpret_cast<void*>(&start);                          // where ptx_switch returns to
  fiber.stack_pointer = top - 6;                                   // after six registers
  std::memset(top - 6, 0, 6 * sizeof(void*));
  fiber.state = State::kReady;
}

#if !defined(PTX_ASAN)
// A wild access becomes a fault of the kernel.
void wild_access(u64 address) {
  fault(current->context, "segmentation fault", address, 0);
}
void on_signal(int, siginfo_t* info, void* context) {
  if (!current) _exit(139);
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  registers[REG_RIP] = reinterpret_cast<greg_t>(&wild_access);
  registers[REG_RDI] = reinterpret_cast<greg_t>(info->si_addr);
  registers[REG_RSP] = reinterpret_cast<greg_t>(current->stack + kStack - 64 - 8);
}
#endif

std::vector<u32> sequence(u32 count) {
  std::vector<u32> x(count);
  std::iota(x.begin(), x.end(), 0);
  if (order == Order::kDescending) std::reverse(x.begin(), x.end());
  if (order == Order::kRandom) std::shuffle(x.begin(), x.end(), random_numbers);
  return x;
}

// Lets the lanes of a warp exchange values once all of them wait to. Whether they did.
bool shuffle(u32 first, u32 count) {
  Fiber* one = nullptr;
  u32 waiting = 0;
  for (u32 i = 0; i < count; ++i)
    if (fibers[first + i]->state == State::kAtShuffle) waiting |= 1u << i, one = fibers[first + i];
  if (!one) return false;
  for (u32 i = 0; i < count; ++i) {
    const Fiber& f = *fibers[first + i];
    if (!(waiting >> i & 1)) continue;
    if (!(f.mask >> i & 1)) {
      describe(f.context, "shuffle by a lane outside of its own mask", f.mask, f.line);
      return false;
    }
    const bool same = f.lanes == one->lanes || one->how == Warp::kIndex;
    if (f.line != one->line || f.mask != one->mask || !same) {
      describe(f.context, "lanes of one warp wait in different shuffles", one->line, f.line);
      return false;
    }
  }
  if (waiting != one->mask)
    return false;  // others may come yet; if they do not, that is a deadlock
  for (u32 i = 0; i < count; ++i) {
    if (!(waiting >> i & 1)) continue;
    Fiber& f = *fibers[first + i];
    if (f.how == Warp::kBallot) {
      f.received = 0;
      for (u32 k = 0; k < count; ++k)
        f.received |= (waiting >> k & 1) && fibers[first + k]->value ? 1u << k : 0;
      continue;
    }
    // PTX ISA, shfl.sync
    const u32 segment = f.clamp >> 8 & 31, clamp = f.clamp & 31, lanes = f.lanes & 31;
    const u32 most = (i & segment) | (clamp & ~segment), least = i & segment;
    u32 source = i ^ lanes;
    f.in_range = source <= most;
    if (f.how == Warp::kUp) source = i - lanes, f.in_range = i >= lanes + most;
    if (f.how == Warp::kDown) source = i + lanes, f.in_range = source <= most;
    if (f.how == Warp::kIndex) source = least | (lanes & ~segment), f.in_range = source <= most;
    if (!f.in_range) source = i;
    if (!(f.mask >> source & 1)) {
      describe(f.context, "shuffle reads a lane outside of the mask", source, f.line);
      return false;
    }
    f.received = fibers[first + source]->value;
  }
  for (u32 i = 0; i < count; ++i) {
    if (!(waiting >> i & 1)) continue;
    fibers[first + i]->state = State::kReady;
  }
  return true;
}

void run_block(u32 threads, Launched& count) {
  std::memset(shared_memory.data(), 0xff, shared_memory.size());
  std::fill(words.begin(), words.end(), Word{});
  for (u32 v = 0; v < kernel->variable_count; ++v) {
    const Variable& x = kernel->variables[v];
    for (u32 b = x.offset; b < x.offset + x.size; b += 4) words[b / 4].exists = 1;
  }
  for (u32 t = 0; t < threads; ++t) {
    reset(*fibers[t]);
    fibers[t]->copies.clear();
  }
  u32 epoch = 1;
  for (;;) {
    for (u32 t = 0; t < threads; ++t) fibers[t]->context.epoch = epoch;
    for (const u32 warp : sequence((threads + kWarp - 1) / kWarp)) {
      const u32 first = warp * kWarp, lanes = std::min(kWarp, threads - first);
      do {
        for (const u32 lane : sequence(lanes)) {
          current = fibers[first + lane];
          if (current->state == State::kReady) ptx_switch(&scheduler, current->stack_pointer);
          if (failed) return;
        }
      } while (shuffle(first, lanes));
      if (failed) return;
    }
    u32 done = 0, at_barrier = 0;
    for (u32 t = 0; t < threads; ++t) {
      done += fibers[t]->state == State::kDone;
      at_barrier += fibers[t]->state == State::kAtBarrier && fibers[t]->barrier == 0;
    }
    if (done == threads) return;
    if (at_barrier < threads) {
      char what[160];
      std::snprintf(what, sizeof what,
                    "deadlock: of %u threads %u have ended and %u wait at barrier 0; one waits",
                    threads, done, at_barrier);
      for (u32 t = 0; t < threads; ++t)
        if (fibers[t]->state != State::kDone)
          return describe(fibers[t]->context, what, 0, fibers[t]->line);
    }
    for (u32 t = 0; t < threads; ++t) fibers[t]->state = State::kReady;
    count.barriers += 1;
    ++epoch;
  }
}

// A warp issues the instructions of a block as often as the busiest of its lanes comes there.
void count_issues(u32 threads) {
  const u32 count = kernel->block_count;
  for (u32 first = 0; first < threads; first += kWarp) {
    u32* most = &visits[first * count];
    for (u32 t = first + 1; t < std::min(first + kWarp, threads); ++t)
      for (u32 i = 0; i < count; ++i) most[i] = std::max(most[i], visits[t * count + i]);
    for (u32 i = 0; i < count; ++i) kernel->issues[i] += most[i];
  }
  std::fill(visits.begin(), visits.end(), 0);
}

int run(const Kernel& k, u32 blocks, u32 threads, void** arguments) {
  std::lock_guard lock(launch_mutex);
  kernel = &k;
  visits.assign(threads * k.block_count, 0);
  failed = false;
  std::vector<char> raw(k.param_size + 256, '\x5a');
  char* param = reinterpret_cast<char*>((reinterpret_cast<u64>(raw.data()) + 127) / 128 * 128);
  for (u32 i = 0; i < k.param_count; ++i)
    std::memcpy(param + k.params[i].offset, arguments[i], k.params[i].size);
  shared_memory.assign(k.shared_size + 64, 0);
  char* shared =
      reinterpret_cast<char*>((reinterpret_cast<u64>(shared_memory.data()) + 63) / 64 * 64);
  words.assign(k.shared_size / 4 + 1, Word{});
  for (u32 t = 0; t < threads; ++t) {
    if (!fibers[t]) fibers[t] = make_fiber();
    fibers[t]->context = {t,
                          threads,
                          0,
                          blocks,
                          param,
                          k.param_size,
                          shared,
                          words.data(),
                          k.shared_size,
                          0,
                          &visits[t * k.block_count]};
  }
  Launched& count = counts[k.name];
  count.launches += 1, count.blocks += blocks;
  count.shared = std::max<int64_t>(count.shared, k.declared_size);

#if !defined(PTX_ASAN)
  static thread_local std::unique_ptr<char[]> signal_stack(new char[64 << 10]);
  const stack_t stack{signal_stack.get(), 0, 64 << 10};
  stack_t old_stack;
  sigaltstack(&stack, &old_stack);
  struct sigaction action{}, old_segv, old_bus;
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &old_segv);
  sigaction(SIGBUS, &action, &old_bus);
#endif
  const unsigned mxcsr = _mm_getcsr();
  _mm_setcsr(0x1f80);  // to nearest, no flushing of small numbers
  for (const u32 block : sequence(blocks)) {
    for (u32 t = 0; t < threads; ++t) fibers[t]->context.ctaid = block;
    run_block(threads, count);
    count_issues(threads);
    if (failed) break;
  }
  current = nullptr;
  _mm_setcsr(mxcsr);
#if !defined(PTX_ASAN)
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaltstack(&old_stack, nullptr);
#endif
  abandoned |= failed;
  return failed ? 719 : 0;
}

}  // namespace

void fault(const Context& c, const char* what, u64 address, u32 line) {
  describe(c, what, address, line);
  to_scheduler();
  std::abort();
}

void bar_sync(Context&, u32 id, u32 line) {
  current->barrier = id, current->line = line;
  current->state = State::kAtBarrier;
  to_scheduler();
}

u32 exchange(Context&, Warp how, u32 value, u32 lanes, u32 clamp, u32 mask, bool* in_range,
             u32 line) {
  Fiber& f = *current;
  f.how = how, f.value = value, f.lanes = lanes, f.clamp = clamp, f.mask = mask, f.line = line;
  f.state = State::kAtShuffle;
  to_scheduler();
  *in_range = f.in_range;
  return f.received;
}

namespace {

template <class T, int N>
void copy(const Context& c, const Copy& x, bool arrived, u32 line) {
  Word* words = &c.words[(x.to - kSharedBase) / 4];
  if (arrived) {
    for (u32 k = 0; k < x.bytes / 4; ++k) words[k].awaited = 0;
    st_shared<T, N>(c, x.to, ld_global<T, N>(c, x.from, line), line);
  } else {
    check_global<T, N>(c, x.from, line);
    check_shared<T, N>(c, x.to, true, line);
    for (u32 k = 0; k < x.bytes / 4; ++k) words[k].awaited = 1;
  }
}
void copy(const Context& c, const Copy& x, bool arrived, u32 line) {
  if (x.bytes == 4) return copy<u32, 1>(c, x, arrived, line);
  if (x.bytes == 8) return copy<u32, 2>(c, x, arrived, line);
  if (x.bytes == 16) return copy<u32, 4>(c, x, arrived, line);
  fault(c, "a copy of neither 4 nor 8 nor 16 bytes", x.to, line);
}

}  // namespace

void cp_async(Context& c, u64 to, u64 from, u32 bytes, u32 line) {
  auto& copies = current->copies;
  if (copies.empty()) copies.emplace_back();
  copies.back().push_back({to, from, bytes});
  copy(c, copies.back().back(), false, line);
}
void cp_async_commit(Context&) {
  if (current->copies.empty()) current->copies.emplace_back();
  current->copies.emplace_back();
}
void cp_async_wait(Context& c, u32 pending, u32 line) {
  auto& copies = current->copies;
  while (copies.size() > pending + 1) {  // the last is not committed
    for (const Copy& x : copies.front()) copy(c, x, true, line);
    copies.erase(copies.begin());
  }
}

// In one piece, as other processes may do the same.
void write_coverage() {
  const char* path = std::getenv("PTX_COVERAGE");
  if (!path) return;
  std::string text;
  for (const Registered& r : registered())
    for (u32 k = 0; k < r.count; ++k) {
      const Kernel& kernel = *r.kernels[k];
      for (u32 i = 0; i < kernel.block_count; ++i) {
        const Block& block = kernel.blocks[i];
        const bool executed = ever()[&kernel][i] + kernel.issues[i] > 0;
        text += std::string(r.file) + " " + std::to_string(block.line) + " " +
                std::to_string(block.instructions) + (executed ? " 1 " : " 0 ") + kernel.name +
                "\n";
      }
    }
  const int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0666);
  if (file < 0 || write(file, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    std::perror(path);
  if (file >= 0) close(file);
}

Module::Module(u64 text_hash, const char* file, const Kernel* const* kernels, u32 count) {
  if (registered().empty()) std::atexit(write_coverage);
  registered().push_back({text_hash, file, kernels, count});
  for (u32 i = 0; i < count; ++i) ever()[kernels[i]].resize(kernels[i]->block_count);
}

void count_fill() {
  std::lock_guard lock(launch_mutex);
  counts["fill"].launches += 1;  // as the emulator calls it
}

void set_order(Order o, uint64_t seed) {
  std::lock_guard lock(launch_mutex);
  order = o;
  random_numbers.seed(seed);
}
std::map<std::string, Launched> launched() {
  std::lock_guard lock(launch_mutex);
  return counts;
}
void reset_launched() {
  std::lock_guard lock(launch_mutex);
  counts.clear();
  for (auto& [kernel, total] : ever())
    for (u32 i = 0; i < kernel->block_count; ++i) total[i] += std::exchange(kernel->issues[i], 0);
}
std::map<std::string, std::vector<uint64_t>> issued() {
  std::lock_guard lock(launch_mutex);
  std::map<std::string, std::vector<uint64_t>> result;
  for (const auto& [kernel, total] : ever())
    result[kernel->name].assign(kernel->issues, kernel->issues + kernel->block_count);
  return result;
}
std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Registered& r : registered())
    for (u32 i = 0; i < r.count; ++i) names.emplace_back(r.kernels[i]->name);
  return names;
}
std::string full_name(const std::string& mangled) {
  const std::unique_ptr<char, decltype(&std::free)> name(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, nullptr), &std::free);
  return name ? name.get() : mangled;
}
std::string short_name(const std::string& mangled) {
  std::string name = full_name(mangled);
  if (const auto end = name.find_first_of("<("); end != std::string::npos) name.resize(end);
  const auto begin = name.find_last_of(": ");
  return begin == std::string::npos ? name : name.substr(begin + 1);
}

}  // namespace ptx

// --- the CUDA runtime -----------------------------------------------------------------------------------

namespace {

using ptx::u16;
using ptx::u32;
using ptx::u64;

struct Dim3 {
  unsigned x, y, z;
};
struct Configuration {
  Dim3 grid, block;
  size_t shared;
  void* stream;
};

thread_local std::vector<Configuration> configurations;
thread_local int last_error = 0;
thread_local void* stream_used = nullptr;
thread_local std::string last_text;

int set_error(int code, const std::string& text) {
  if (code) last_error = code, last_text = text;
  return code;
}

u64 hash(const char* text, size_t size) {
  u64 h = 0xcbf29ce484222325;
  for (size_t i = 0; i < size; ++i) h = (h ^ static_cast<unsigned char>(text[i])) * 0x100000001b3;
  return h;
}

// What was registered: the hash of the PTX text within an object, and its kernels.
struct Binary {
  u64 text_hash = 0;
};
struct Entry {
  Binary* binary;
  std::string name;
  const ptx::Kernel* kernel = nullptr;
};
std::map<const void*, Entry>& entries() {
  static std::map<const void*, Entry> all;
  return all;
}

template <class T>
T read(const char* p) {
  T x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

[[noreturn]] void die(const char* what, const char* name = "") {
  std::fprintf(stderr, "ptx runtime: %s %s\n", what, name);
  std::abort();
}

}  // namespace

namespace ptx {

void* last_stream() {
  return stream_used;
}

}  // namespace ptx

extern "C" {

// The wrapper holds a pointer to a header of 16 bytes, then entries: kind (1: PTX), header size at 4,
// payload size at 8. Exactly one, PTX, not compressed, is what build.py asks nvcc for.
void** __cudaRegisterFatBinary(void* wrapper) {
  const char* w = static_cast<const char*>(wrapper);
  if (read<u32>(w) != 0x466243b1) die("this is no fat binary");
  const char* p = read<const char*>(w + 8);
  if (read<u32>(p) != 0xba55ed50) die("this is no fat binary");
  const char* end = p + read<u16>(p + 6) + read<u64>(p + 8);
  p += read<u16>(p + 6);
  auto* binary = new Binary;
  if (read<u16>(p) != 1) die("the fat binary does not begin with PTX");
  const char* text = p + read<u32>(p + 4);
  const u64 size = read<u64>(p + 8);
  if (text + size != end) die("the fat binary holds more than one PTX");
  binary->text_hash = hash(text, strnlen(text, size));
  return reinterpret_cast<void**>(binary);
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) {
  return 1;
}
void __cudaRegisterFunction(void** binary, const char* host, char*, const char* name, int, void*,
                            void*, void*, void*, int*) {
  entries()[host] = {reinterpret_cast<Binary*>(binary), name};
}

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void* stream) {
  if (configurations.empty()) return set_error(52, "missing configuration");
  const Configuration c = configurations.back();
  configurations.pop_back();
  *grid = c.grid, *block = c.block, *shared = c.shared;
  *static_cast<void**>(stream) = c.stream;
  return 0;
}

int __cudaGetKernel(void** kernel, const void* host) {
  const auto found = entries().find(host);
  if (found == entries().end()) return set_error(98, "invalid device function");
  *kernel = &found->second;
  return 0;
}

int __cudaLaunchKernel(void* handle, Dim3 grid, Dim3 block, void** arguments, size_t shared,
                       void* stream) {
  stream_used = stream;
  auto* entry = static_cast<Entry*>(handle);
  if (!entry) return set_error(98, "invalid device function");
  if (!entry->kernel) {
    for (const auto& r : ptx::registered())
      if (r.text_hash == entry->binary->text_hash)
        for (u32 i = 0; i < r.count; ++i)
          if (entry->name == r.kernels[i]->name) entry->kernel = r.kernels[i];
    if (!entry->kernel)
      die("the PTX within the object was not translated, or lacks", entry->name.c_str());
  }
  if (shared) die("dynamic shared memory is not known here:", entry->name.c_str());
  if (grid.y != 1 || grid.z != 1 || block.y != 1 || block.z != 1)
    die("only one dimension is known here:", entry->name.c_str());
  if (!grid.x || grid.x > 0x7fffffffu || !block.x || block.x > ptx::kMostThreads)
    return set_error(9, "invalid configuration argument");
  if (entry->kernel->threads && block.x > entry->kernel->threads)
    return set_error(1, "invalid argument: more threads than .maxntid");
  return set_error(ptx::run(*entry->kernel, grid.x, block.x, arguments), ptx::error);
}
int cudaLaunchKernel(const void* host, Dim3 grid, Dim3 block, void** arguments, size_t shared,
                     void* stream) {
  void* kernel = nullptr;
  const int code = __cudaGetKernel(&kernel, host);
  return code ? code : __cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

int cudaMemsetAsync(void* p, int value, size_t bytes, void* stream) {
  stream_used = stream;
  ptx::count_fill();
  std::memset(p, value, bytes);
  return 0;
}
int cudaGetLastError() {
  const int code = last_error;
  last_error = 0;
  return code;
}
int cudaPeekAtLastError() {
  return last_error;
}
const char* cudaGetErrorString(int code) {
  return code ? last_text.c_str() : "no error";
}

}  // extern "C"
