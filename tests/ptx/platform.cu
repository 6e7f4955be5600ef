// Every line of nvcc's branch of csrc/common/platform.h, with what it must do: mutate_platform.py breaks
// them one at a time, and this program, or what the compiled text must contain, has to notice.
#include "common/platform.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "runtime.h"

namespace gankernels::platform_test {

constexpr int kThreads = 64, kBlocks = 3;

int failures = 0, checks = 0;

void expect(bool right, const char* what, int at = 0) {
  ++checks;
  if (right) return;
  ++failures;
  std::printf("FAILED: %s, %d\n", what, at);
}
void none(const char* error, const char* what) {
  expect(error == nullptr, what);
  if (error) std::printf("  %s\n", error);
}

struct Numbers {
  float at[64];
  int shift;
};

// The table is read where it lies, by an index that only threads know; a loop stays one.
KERNEL(kThreads) tabulated(TABLE(Numbers) n, float* out) {
  const int i = block_id() * kThreads + thread_id();
  float sum = 0;
  UNROLL(1)
  for (int k = 0; k < 4; ++k) sum += n.at[(thread_id() + k * n.shift) & 63];
  store(out + i, sum);
}

// Eight loads follow each other where the loop is unrolled as often.
KERNEL_FOR(kThreads, 2) unrolled(const float* in, float* out, int count) {
  float sum = 0;
  UNROLL(8)
  for (int k = 0; k < count; ++k) sum = sum * 0.5f + load(in + k * kThreads + thread_id());
  store(out + thread_id(), sum);
}

// Vectors through shared memory whose arrays begin where SHARED says; blocks of 32 bytes.
template <class T>
KERNEL(kThreads)
vectors(const T* in, T* out) {
  SHARED(T, tile, kThreads * 4);
  SHARED(T, other, kThreads * 4);
  const int t = thread_id();
  shared_store(tile + 4 * t, load<4>(in + 4 * t));
  shared_store(other + 4 * (kThreads - 1 - t), load<4>(in + 4 * t));
  sync_threads();
  const Vector<T, 4> a = shared_load<4>(tile + 4 * (t ^ 1)), b = shared_load<4>(other + 4 * t);
  store(out + 8 * t, a);
  store(out + 8 * t + 4, b);
}

template <class T>
KERNEL(kThreads)
copies(const T* in, T* out) {
  SHARED(T, tile, kThreads);
  copy_async(tile + thread_id(), in + thread_id());
  copy_wait();
  sync_threads();
  store(out + thread_id(), shared_load<1>(tile + (thread_id() ^ 3)).at[0]);
}

template <class T>
KERNEL(kThreads)
exchanged(const T* in, T* out) {
  store(out + thread_id(), shuffle_xor(load(in + thread_id()), 5));
}

// The upper words of numbers of 8 bytes.
KERNEL(kThreads) viewed(const int64_t* in, int* out) {
  SHARED(int64_t, tile, kThreads);
  tile[thread_id()] = load(in + thread_id());
  sync_threads();
  store(out + thread_id(), shared_view<int>(tile + 1)[(2 * thread_id() + 1) % (2 * kThreads - 2)]);
}

// The last block to take a ticket adds up what all have stored.
KERNEL(kThreads) ticket(int* tickets, int64_t* sums, int64_t* out) {
  SHARED(int, last, 1);
  SHARED(int, bits, 2);
  SHARED(int64_t, total, 1);
  const int t = thread_id();
  if (t < 2) bits[t] = 0;
  if (t == 0) total[0] = -5;
  sync_threads();
  atomic_or(bits + t / 32, 1 << t % 32);
  atomic_add(total, int64_t{t} << 33);
  sync_threads();
  if (t == 0) {
    store(sums + block_id(), total[0] + (bits[0] == -1 && bits[1] == -1));
    fence();
    last[0] = atomic_add(tickets, 2) == 2 * (kBlocks - 1);
    fence();
  }
  sync_threads();
  if (!last[0] || t != 0) return;
  int64_t sum = 0;
  for (int i = 0; i < kBlocks; ++i) sum += load(sums + i);
  store(out, sum);
}

// The largest of a block, however they come; products of both signs; halves.
KERNEL(kThreads) counted(const int* in, const double* halves, int* out, int64_t* wide) {
  SHARED(int, largest, 1);
  const int t = thread_id();
  if (t == 0) largest[0] = -1000;
  sync_threads();
  atomic_max(largest + 0, load(in + t));
  sync_threads();
  if (t == 0) store(out, static_cast<int>(largest[0]));
  store(out + 1 + t, multiply_high(load(in + t) << 20, -3 << 20));
  store(out + 1 + kThreads + t, rounded(static_cast<float>(load(halves + t))));
  store(wide + t, rounded(load(halves + t) + 0x1p40));
}

template <class T>
KERNEL(kThreads)
converted(const T* in, Accumulation<T>* wide, T* out) {
  const int t = thread_id();
  store(wide + t, widen(load(in + t)));
  store(out + t, narrow<T>(widen(load(in + t)) * Accumulation<T>(1.00390625)));
}

template <class T>
void test_vectors(const char* what) {
  alignas(32) T in[4 * kThreads], out[8 * kThreads] = {};
  for (int i = 0; i < 4 * kThreads; ++i) in[i] = static_cast<T>(i + 1);
  Buffers buffers;
  buffers.in("in", in, 4 * kThreads, sizeof(T));
  buffers.out("out", out, 8 * kThreads, sizeof(T));
  buffers.scratch("none", out, 0, sizeof(T));
  none(launch<vectors<T>>("vectors", 1, kThreads, nullptr, &in[0], &out[0]), what);
  for (int t = 0; t < kThreads; ++t)
    for (int k = 0; k < 4; ++k) {
      expect(out[8 * t + k] == in[4 * (t ^ 1) + k], what, t);
      expect(out[8 * t + 4 + k] == in[4 * (kThreads - 1 - t) + k], what, t);
    }
}

struct alignas(16) Four {
  float at[4];
  bool operator==(const Four&) const = default;
};

template <class T>
void test_copies(const char* what) {
  alignas(16) T in[kThreads], out[kThreads] = {};
  auto* bytes = reinterpret_cast<unsigned char*>(in);
  for (size_t i = 0; i < sizeof in; ++i) bytes[i] = static_cast<unsigned char>(i % 99);
  none(launch<copies<T>>("copies", 1, kThreads, nullptr, &in[0], &out[0]), what);
  for (int t = 0; t < kThreads; ++t)
    expect(std::memcmp(&out[t], &in[t ^ 3], sizeof(T)) == 0, what, t);
}

template <class T>
void test_exchange(const char* what) {
  T in[kThreads], out[kThreads] = {};
  for (int t = 0; t < kThreads; ++t) in[t] = static_cast<T>(1.25 * t);
  none(launch<exchanged<T>>("exchanged", 1, kThreads, nullptr, &in[0], &out[0]), what);
  for (int t = 0; t < kThreads; ++t) expect(out[t] == in[t ^ 5], what, t);
}

// Of float: bits that neither have. To the nearest, ties to even; infinity and NaN stay.
template <class T>
void test_conversions(const std::vector<T>& in, const std::vector<Accumulation<T>>& wide,
                      const std::vector<T>& out, const char* what) {
  T given[kThreads] = {}, narrow_[kThreads];
  Accumulation<T> wide_[kThreads];
  for (size_t i = 0; i < in.size(); ++i) given[i] = in[i];
  none(launch<converted<T>>("converted", 1, kThreads, nullptr, &given[0], &wide_[0], &narrow_[0]),
       what);
  for (size_t i = 0; i < in.size(); ++i) {
    expect(wide_[i] == wide[i] || (wide_[i] != wide_[i] && wide[i] != wide[i]), what,
           static_cast<int>(i));
    expect(std::memcmp(&narrow_[i], &out[i], sizeof(T)) == 0, what, 100 + static_cast<int>(i));
  }
}

void test_tables() {
  Numbers n{};
  for (int i = 0; i < 64; ++i) n.at[i] = static_cast<float>(i * i);
  n.shift = 5;
  float out[2 * kThreads] = {};
  int marker = 0;
  none(launch<tabulated>("tabulated", 2, kThreads, &marker, n, &out[0]), "tabulated");
  expect(ptx::last_stream() == &marker, "the stream of a launch");
  for (int i = 0; i < 2 * kThreads; ++i) {
    float sum = 0;
    for (int k = 0; k < 4; ++k) sum += n.at[(i + 5 * k) & 63];
    expect(out[i] == sum, "tabulated", i);
  }
  float in[9 * kThreads];
  for (int i = 0; i < 9 * kThreads; ++i) in[i] = static_cast<float>(i % 7);
  none(launch<unrolled>("unrolled", 1, kThreads, nullptr, &in[0], &out[0], 9), "unrolled");
  for (int t = 0; t < kThreads; ++t) {
    float sum = 0;
    for (int k = 0; k < 9; ++k) sum = sum * 0.5f + in[k * kThreads + t];
    expect(out[t] == sum, "unrolled", t);
  }
}

void test_views() {
  int64_t in[kThreads];
  int out[kThreads];
  for (int t = 0; t < kThreads; ++t) in[t] = int64_t{t * t} << 32;
  none(launch<viewed>("viewed", 1, kThreads, nullptr, &in[0], &out[0]), "viewed");
  for (int t = 0; t < kThreads - 1; ++t) expect(out[t] == (t + 1) * (t + 1), "viewed", t);
}

void test_tickets() {
  int tickets[2] = {99, 98}, marker = 0;
  int64_t sums[kBlocks], out = 0;
  none(fill_zero(&tickets[0], sizeof(int), &marker), "fill_zero");
  expect(tickets[0] == 0 && tickets[1] == 98, "fill_zero", tickets[0]);
  expect(ptx::last_stream() == &marker, "the stream of fill_zero");
  none(launch<ticket>("ticket", kBlocks, kThreads, nullptr, &tickets[0], &sums[0], &out), "ticket");
  expect(tickets[0] == 2 * kBlocks, "tickets taken", tickets[0]);
  const int64_t one = (int64_t{kThreads} * (kThreads - 1) / 2 << 33) - 5 + 1;
  expect(out == kBlocks * one, "ticket");
}

void test_integers() {
  int in[kThreads], out[1 + 2 * kThreads];
  double halves[kThreads];
  int64_t wide[kThreads];
  for (int t = 0; t < kThreads; ++t)
    in[t] = t == 21 ? 77 : -t, halves[t] = 0.5 * t - 7.25 + (t & 1) * 0.25;
  none(launch<counted>("counted", 1, kThreads, nullptr, &in[0], &halves[0], &out[0], &wide[0]),
       "counted");
  expect(out[0] == 77, "the largest", out[0]);
  for (int t = 0; t < kThreads; ++t) {
    const int64_t product = (int64_t{in[t]} << 20) * (int64_t{-3} << 20);
    expect(out[1 + t] == static_cast<int>(product >> 32), "multiply_high", t);
    expect(out[1 + kThreads + t] == static_cast<int>(std::nearbyint(halves[t])), "rounded", t);
    expect(wide[t] == static_cast<int64_t>(std::nearbyint(halves[t] + 0x1p40)), "rounded", 100 + t);
  }
}

// Errors are told, once, by what asks first; good launches say nothing.
void test_errors() {
  float out[2 * kThreads] = {};
  const Numbers n{};
  const char* error = launch<tabulated>("tabulated", 1, 2 * kThreads, nullptr, n, &out[0]);
  expect(error && std::strstr(error, "more threads than .maxntid"), "threads beyond the bounds");
  error = launch<tabulated>("tabulated", int64_t{1} << 32 | 1, kThreads, nullptr, n, &out[0]);
  expect(error && std::strstr(error, "too many blocks"), "too many blocks");
  error = launch<tabulated>("tabulated", 0, kThreads, nullptr, n, &out[0]);
  expect(error && std::strstr(error, "invalid configuration"), "no blocks");
  none(status(), "an error is told once");
  tabulated<<<1, 2 * kThreads>>>(n, out);
  error = fill_zero(out, 4, nullptr);
  expect(error != nullptr, "fill_zero asks, too");
  none(launch<tabulated>("tabulated", 1, kThreads, nullptr, n, &out[0]), "after errors");
}

int test() {
  test_tables();
  test_vectors<float>("vectors of float");
  test_vectors<double>("vectors of double");
  test_copies<float>("copies of float");
  test_copies<double>("copies of double");
  test_copies<Four>("copies of four floats");
  test_exchange<float>("exchange of float");
  test_exchange<double>("exchange of double");
  test_exchange<int>("exchange of int");
  test_views();
  test_tickets();
  test_integers();
  const double inf = HUGE_VAL;
  const float inf_ = HUGE_VALF, fnan = NAN;
  test_conversions<float>({1, -3, inf_}, {1, -3, inf_}, {1.00390625f, -3.01171875f, inf_}, "float");
  test_conversions<double>({1, -3, inf}, {1, -3, inf}, {1.00390625, -3.01171875, inf}, "double");
  test_conversions<Half>({{0x3c00}, {0x3c80}, {0x3ca0}, {0x7bff}, {0x7c00}, {0x7e00}, {0x0001}},
                         {1, 1.125f, 1.15625f, 65504, inf_, fnan, 0x1p-24f},
                         {{0x3c04}, {0x3c84}, {0x3ca5}, {0x7c00}, {0x7c00}, {0x7fff}, {0x0001}},
                         "float16");
  test_conversions<BFloat16>({{0x3f80}, {0x3f81}, {0x7f7f}, {0x7f80}, {0x7fc0}, {0xbf83}},
                             {1, 1.0078125f, 0x1.fep127f, inf_, fnan, -1.0234375f},
                             {{0x3f80}, {0x3f82}, {0x7f80}, {0x7f80}, {0x7fff}, {0xbf84}},
                             "bfloat16");
  test_errors();
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace gankernels::platform_test

int main() {
  return gankernels::platform_test::test();
}
