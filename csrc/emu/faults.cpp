#include "emu/faults.h"

#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>

#include "common/platform.h"

namespace gankernels {
namespace {

constexpr int kBlock = 64;

struct Data {
  int count;  // elements of in, out
  const float* in;
  float* out;
  float* partial;  // one a block
  int* ticket;
  bool planted;
};

// --- barriers -------------------------------------------------------------------------------------

// out[i] = in[the mirrored i of the block].
void missing_barrier_read_after_write(const Data& d) {
  SHARED(float, tile, kBlock);
  const int t = thread_id();
  tile[t] = load(d.in + t);
  if (!d.planted) sync_threads();
  store(d.out + t, tile[kBlock - 1 - t]);
}

void missing_barrier_write_after_read(const Data& d) {
  SHARED(float, tile, kBlock);
  const int t = thread_id();
  tile[t] = load(d.in + t);
  sync_threads();
  const float mirrored = tile[kBlock - 1 - t];
  if (!d.planted) sync_threads();
  tile[t] = mirrored * 2;
  sync_threads();
  store(d.out + t, tile[kBlock - 1 - t]);
}

void missing_warp_barrier(const Data& d) {
  SHARED(float, tile, kBlock);
  const int t = thread_id();
  tile[t] = load(d.in + t);
  if (!d.planted) sync_warp();
  store(d.out + t, tile[t ^ 1]);
}

void barrier_after_some_returned(const Data& d) {
  const int t = thread_id();
  if (d.planted && t == 5) return;
  sync_threads();
  if (t != 5) store(d.out + t, load(d.in + t));
}

void barrier_at_different_lines(const Data& d) {
  if (d.planted) {
    if (thread_id() < 32)
      sync_threads();
    else
      sync_threads();
  } else {
    sync_threads();
  }
  store(d.out + thread_id(), 1);
}

void absent_lane(const Data& d) {
  const int t = thread_id();
  if (d.planted && t == 7) return;
  store(d.out + t, shuffle_xor(load(d.in + t), 1));
}

void warp_operations_at_different_lines(const Data& d) {
  const int t = thread_id();
  float x = load(d.in + t);
  if (d.planted && t % 32 < 16)
    x = shuffle_xor(x, 1);
  else
    x = shuffle_xor(x, 1);
  store(d.out + t, x);
}

// --- between blocks -------------------------------------------------------------------------------

// out[0] = the sum of what every block stored, by the last of them.
template <bool kBefore, bool kAfter>
void ticket(const Data& d) {
  SHARED(int, last, 1);
  const int t = thread_id();
  if (t == 1) store(d.partial + block_id(), load(d.in + block_id()));
  sync_threads();
  if (t == 0) {
    if (kBefore || !d.planted) fence();
    last[0] = atomic_add(d.ticket, 1) == 3;
    if (kAfter || !d.planted) fence();
  }
  sync_threads();
  if (!last[0] || t != 2) return;
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += load(d.partial + i);
  store(d.out, sum);
}

void missing_barrier_before_ticket(const Data& d) {
  SHARED(int, last, 1);
  const int t = thread_id();
  if (t == 1) store(d.partial + block_id(), load(d.in + block_id()));
  if (!d.planted) sync_threads();
  if (t == 0) {
    fence();
    last[0] = atomic_add(d.ticket, 1) == 3;
    fence();
  }
  sync_threads();
  if (!last[0] || t != 2) return;
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += load(d.partial + i);
  store(d.out, sum);
}

void two_blocks_write_one_place(const Data& d) {
  if (thread_id() == 0) store(d.out + (d.planted ? 0 : block_id()), 1);
}

void float_atomic(const Data& d) {
  if (d.planted)
    atomic_add(d.out, 1);
  else
    atomic_add(d.ticket, 1);
}

// --- memory ---------------------------------------------------------------------------------------

void uninitialized_shared(const Data& d) {
  SHARED(float, tile, kBlock);
  const int t = thread_id();
  if (!d.planted || t != 9) tile[t] = load(d.in + t);
  sync_threads();
  store(d.out + t, tile[kBlock - 1 - t]);
}

void uninitialized_scratch(const Data& d) {
  const int t = thread_id();
  if (!d.planted && t < 4) store(d.partial + t, 0);
  if (t < 4) store(d.out + t, load(d.partial + t));
}

void shared_out_of_bounds(const Data& d) {
  SHARED(float, tile, kBlock);
  const int t = thread_id();
  tile[t + (d.planted && t == kBlock - 1)] = load(d.in + t);
}

void too_much_shared(const Data& d) {
  SHARED(float, tile, d.planted ? 12289 : 12288);
  tile[thread_id()] = 0;
}

void global_read_out_of_bounds(const Data& d) {
  store(d.out + thread_id(), load(d.in + thread_id() + d.planted));
}

void global_write_out_of_bounds(const Data& d) {
  store(d.out + thread_id() + d.planted, load(d.in + thread_id()));
}

void write_to_input(const Data& d) {
  store(d.planted ? const_cast<float*>(d.in) + thread_id() : d.out + thread_id(), 1);
}

void misaligned_vector(const Data& d) {
  if (thread_id() >= 8) return;
  const auto x = load<4>(d.in + 4 * thread_id() + d.planted);
  store(d.out + 4 * thread_id(), x);
}

void misaligned_shared_vector(const Data& d) {
  SHARED(float, tile, kBlock);
  tile[thread_id()] = load(d.in + thread_id());
  sync_threads();
  if (thread_id() < 8)
    store(d.out + thread_id(), shared_load<4>(tile + (4 * thread_id() + d.planted)).at[0]);
}

void missing_copy_wait(const Data& d) {
  SHARED(float, tile, kBlock);
  copy_async(tile + thread_id(), d.in + thread_id());
  if (!d.planted) copy_wait();
  sync_threads();
  store(d.out + thread_id(), tile[kBlock - 1 - thread_id()]);
}

void missing_barrier_after_copy(const Data& d) {
  SHARED(float, tile, kBlock);
  copy_async(tile + thread_id(), d.in + thread_id());
  copy_wait();
  if (!d.planted) sync_threads();
  store(d.out + thread_id(), tile[kBlock - 1 - thread_id()]);
}

// Counters in shared memory; the sum of two threads' numbers is each thread's.
void shared_atomic(const Data& d) {
  SHARED(int, counts, kBlock);
  const int t = thread_id();
  counts[t] = 0;
  if (!d.planted) sync_threads();
  atomic_add(counts + (t ^ 1), t);
  atomic_add(counts + t, 1);
  sync_threads();
  store(d.out + t, static_cast<float>(counts[t]));
}

void nothing(const Data&) {}

// --- banks: no fault, but slow --------------------------------------------------------------------

template <int N>
void strided_vectors(int stride) {
  SHARED(float, tile, 32 * 32 + N);
  shared_store(tile + thread_id() * stride, Vector<float, N>{});
  sync_threads();
  (void)shared_load<N>(tile + thread_id() * stride);
}

void strided(int stride) {
  SHARED(int, tile, 32 * 33);
  for (int i = thread_id(); i < 32 * 33; i += 32) tile[i] = 0;
  sync_threads();
  (void)static_cast<int>(tile[thread_id() * stride]);
  sync_threads();
  atomic_add(tile + thread_id() * stride, 1);
}

// Half of the lanes come to the read twice, with a barrier between.
void unequal_lanes() {
  SHARED(int, tile, 64);
  tile[thread_id()] = 0;
  tile[thread_id() + 32] = 0;
  sync_threads();
  for (int step = 0; step < 2; ++step) {
    if (step == 1 || thread_id() % 2 == 1)
      (void)static_cast<int>(tile[step == 0 ? 32 : thread_id()]);
    sync_threads();
  }
}

struct Fault {
  void (*kernel)(const Data&);
  int64_t blocks = 1;
  int threads = kBlock;
  int64_t planted_blocks = 0, planted_threads = 0;  // where the launch is the fault
};

const std::map<std::string, Fault>& faults() {
  static const auto* all = new std::map<std::string, Fault>{
      {"missing barrier, read after write", {missing_barrier_read_after_write}},
      {"missing barrier, write after read", {missing_barrier_write_after_read}},
      {"missing warp barrier", {missing_warp_barrier}},
      {"missing fence before the ticket", {ticket<false, true>, 4}},
      {"missing fence after the ticket", {ticket<true, false>, 4}},
      {"missing barrier before the ticket", {missing_barrier_before_ticket, 4}},
      {"two blocks write one place", {two_blocks_write_one_place, 2}},
      {"barrier after some threads returned", {barrier_after_some_returned}},
      {"barrier at different lines", {barrier_at_different_lines}},
      {"lane in the mask that never arrives", {absent_lane}},
      {"warp operations at different lines", {warp_operations_at_different_lines}},
      {"uninitialized shared read", {uninitialized_shared}},
      {"uninitialized scratch read", {uninitialized_scratch}},
      {"shared out of bounds", {shared_out_of_bounds}},
      {"too much shared memory", {too_much_shared}},
      {"global read out of bounds", {global_read_out_of_bounds}},
      {"global write out of bounds", {global_write_out_of_bounds}},
      {"write to an input", {write_to_input}},
      {"misaligned vector", {misaligned_vector}},
      {"misaligned shared vector", {misaligned_shared_vector}},
      {"too many threads", {nothing, 1, 1024, 1, 1025}},
      {"too many blocks", {nothing, 1, 1, int64_t{1} << 31, 1}},
      {"float atomic", {float_atomic}},
      {"missing wait for a copy", {missing_copy_wait}},
      {"missing barrier after a copy", {missing_barrier_after_copy}},
      {"missing barrier before a shared atomic", {shared_atomic}},
  };
  return *all;
}

}  // namespace

namespace emu {

std::vector<std::string> fault_names() {
  std::vector<std::string> names;
  for (const auto& [name, fault] : faults()) names.push_back(name);
  return names;
}

const char* run_fault(const std::string& name, bool planted) {
  const auto found = faults().find(name);
  if (found == faults().end()) throw std::invalid_argument("no such fault: " + name);
  const Fault& fault = found->second;
  alignas(256) float in[kBlock + 1], out[kBlock + 1] = {}, partial[4];  // with room to step beyond
  for (int i = 0; i < kBlock; ++i) in[i] = static_cast<float>(i);
  int ticket = 0;
  Buffers buffers;
  buffers.in("in", in, kBlock, sizeof(float));
  buffers.out("out", out, kBlock, sizeof(float));
  buffers.scratch("partial", partial, 4, sizeof(float));
  buffers.out("ticket", &ticket, 1, sizeof(int));
  const Data data{kBlock, in, out, partial, &ticket, planted};
  const bool launch = planted && fault.planted_blocks > 0;
  return run("planted fault", launch ? fault.planted_blocks : fault.blocks,
             launch ? static_cast<int>(fault.planted_threads) : fault.threads,
             [&] { fault.kernel(data); });
}

void run_strided(int stride, int words) {
  const Buffers buffers;
  const char* error = run("strided", 1, 32, [&] {
    if (words == 1) strided(stride);
    if (words == 2) strided_vectors<2>(stride);
    if (words == 4) strided_vectors<4>(stride);
    if (words == 8) strided_vectors<8>(stride);
    if (words == 0) unequal_lanes();
  });
  if (error) throw std::runtime_error(error);
}

double speed(int64_t blocks, int threads, int barriers) {
  Buffers buffers;
  const auto start = std::chrono::steady_clock::now();
  run("speed", blocks, threads, [&] {
    for (int i = 0; i < barriers; ++i) sync_threads();
  });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace emu
}  // namespace gankernels
