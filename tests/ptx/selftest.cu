// What the executor itself must get right: instructions whose rules differ from the host's, against
// values written down from the PTX ISA; and faults, one a kernel, that it must report.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

namespace {

int failures = 0, checks = 0;

struct Numbers {  // by value, as the product's tables
  double d[8];
  float f[8];
  int i[8];
  long long l[4];
};

// Each writes out[k]; `in` is opaque to the compiler.
__global__ void arithmetic(const __grid_constant__ Numbers n, long long* out) {
  const int t = threadIdx.x;
  if (t) return;
  int k = 0;
  const double nan = n.d[0], inf = n.d[1], big = n.d[2], half = n.d[3];
  const float fnan = n.f[0], inf_ = n.f[1], fbig = n.f[2], fhalf = n.f[3];
  out[k++] = static_cast<int>(fnan);                       // 0: 0
  out[k++] = static_cast<int>(inf_);                       // 1: saturates
  out[k++] = static_cast<int>(-fbig);                      // 2: saturates
  out[k++] = static_cast<int>(nan);                        // 3: lowest, since the source is .f64
  out[k++] = static_cast<int>(big);                        // 4: saturates
  out[k++] = static_cast<long long>(nan);                  // 5: lowest
  out[k++] = static_cast<long long>(-inf);                 // 6: lowest
  out[k++] = static_cast<int>(-2.9f * fhalf);              // 7: -1
  out[k++] = __double_as_longlong(rint(half + 2));         // 8: 2.5 to even
  out[k++] = __double_as_longlong(floor(-half));           // 9: -1
  out[k++] = __double_as_longlong(fmin(nan, half));        // 10: 0.5
  out[k++] = __double_as_longlong(fmax(half, nan));        // 11: 0.5
  out[k++] = n.i[0] / n.i[1];                              // 12: -7 / 2 = -3
  out[k++] = n.i[0] % n.i[1];                              // 13: -1
  out[k++] = __mulhi(n.i[2], n.i[2]);                      // 14
  out[k++] = static_cast<long long>(n.i[2]) * n.i[0];      // 15: mul.wide
  out[k++] = n.i[0] >> 1;                                  // 16: -4
  out[k++] = static_cast<unsigned>(n.i[0]) >> 1;           // 17
  out[k++] = n.l[0] / n.l[1], out[k++] = n.l[0] % n.l[1];  // 18, 19
  out[k++] = static_cast<int>(__float_as_uint(fmaf(n.f[4], n.f[4], n.f[5])));  // 20: fused, not 0
  out[k++] = __half_as_ushort(__float2half_rn(n.f[6]));          // 21: 1 + 2^-11: to even, 1
  out[k++] = __half_as_ushort(__float2half_rn(fbig));            // 22: infinity
  out[k++] = __bfloat16_as_ushort(__float2bfloat16_rn(n.f[7]));  // 23: 1 + 3 2^-8: to even, up
  out[k++] = __bfloat16_as_ushort(__float2bfloat16_rn(fnan));    // 24: 0x7fff
  out[k++] = nan < half ? 1 : nan >= half ? 2 : !(nan == nan) ? 3 : 4;  // 25: 3
  out[k++] = __double_as_longlong(1 / n.d[4]);                          // 26: 1/3
  out[k++] = __double_as_longlong(sqrt(n.d[4]));                        // 27
  unsigned bytes;                                                       // __byte_perm has no signs
  asm("prmt.b32 %0, %1, %2, 0xc061;" : "=r"(bytes) : "r"(n.i[2]), "r"(n.i[0]));
  out[k++] = bytes;  // 28: 0xff (a sign), 0x21, 0xff, 0x43
  asm("bfi.b32 %0, %1, %2, 4, 8;" : "=r"(bytes) : "r"(n.i[2]), "r"(n.i[0]));
  out[k++] = bytes;  // 29: 0x21 in the middle of -7
  asm("bfi.b64 %0, %1, %2, 32, 16;" : "=l"(out[k]) : "l"(n.l[1]), "l"(n.l[0]));
  ++k;                                                                // 30
  out[k++] = __mul64hi(n.l[0], n.l[2]);                               // 31
  out[k++] = static_cast<long long>(__umul64hi(n.l[0], n.l[2]));      // 32
  out[k++] = __funnelshift_l(n.i[0], n.i[2], n.i[1] + 34);            // 33: by 36 & 31
  out[k++] = __funnelshift_rc(n.i[0], n.i[2], n.i[1] + 34);           // 34: by 32 at most
  out[k++] = __popc(n.i[2]) * 100 + __clz(n.i[2]);                    // 35
  out[k++] = __double2ll_rn(half + 2) * 10 + __float2int_rd(-fhalf);  // 36: 2, -1
  out[k++] = __umulhi(n.i[0], n.i[2]);                                // 37
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(out[k]) : "r"(n.i[0]), "r"(n.i[2]), "l"(n.l[1]));
  ++k;  // 38
  unsigned wide;
  const unsigned short low = n.i[0];
  asm("mul.wide.u16 %0, %1, -21845;" : "=r"(wide) : "h"(low));
  out[k++] = wide;  // 39
  int product;
  asm("mul.wide.s16 %0, %1, -21845;" : "=r"(product) : "h"(low));
  out[k++] = product;  // 40
}

// a*b + c, where ptxas may contract and where it must not.
__global__ void products_and_sums(float a, float b, float c, float* out) {
  asm("{ .reg .f32 %%ab; mul.f32 %%ab, %1, %1; add.f32 %0, %%ab, %2; }"
      : "=f"(out[0])
      : "f"(a), "f"(c));
  asm("{ .reg .f32 %%ab; mul.rn.f32 %%ab, %1, %1; add.f32 %0, %%ab, %2; }"
      : "=f"(out[1])
      : "f"(a), "f"(c));
  // Of another product, though it has the same value: g++ does not contract one that it needs twice.
  asm("{ .reg .f32 %%ab; mul.f32 %%ab, %1, %2; add.rn.f32 %0, %%ab, %3; }"
      : "=f"(out[2])
      : "f"(a), "f"(b), "f"(c));
}

__global__ void shuffles(int* out) {
  int x = threadIdx.x;
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  out[threadIdx.x] = x + __shfl_xor_sync(0xffffffffu, static_cast<int>(threadIdx.x), 5);
}

__global__ void lanes(int* out) {
  const int t = threadIdx.x;
  out[t] = __shfl_up_sync(0xffffffffu, t, 3) + 100 * __shfl_down_sync(0xffffffffu, t, 5) +
           10000 * __shfl_sync(0xffffffffu, t, t * 7, 8);
  out[t + 64] = __ballot_sync(0xffffffffu, t % 3 == 0);
  out[t + 128] = __any_sync(0xffffffffu, t == 40) + 2 * __all_sync(0xffffffffu, t >= 0);
}

// Copies in two groups, of which the first is waited for first; sums and bits in shared memory.
__global__ void copies(const float* __restrict__ in, float* out, int* counts) {
  __shared__ float a[64], b[64];
  __shared__ int sums[3];
  const int t = threadIdx.x;
  const auto to = [](float* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); };
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to(a + t)), "l"(in + t));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to(b + t)), "l"(in + 64 + t));
  asm volatile("cp.async.commit_group;");
  if (t < 3) sums[t] = t;
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  __syncthreads();
  float x = a[t ^ 1];
  atomicAdd(sums, t);
  atomicMax(sums + 1, t);
  atomicAnd(sums + 2, t | 2);
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  out[t] = x + b[63 - t] + __ldg(in + t);
  if (t < 3) counts[t] = sums[t];
}

__global__ void tickets(int* counter, int* last) {
  __shared__ int mine;
  if (threadIdx.x == 0) {
    __threadfence();
    mine = atomicAdd(counter, 1);
  }
  __syncthreads();
  if (threadIdx.x == 33 && mine == gridDim.x - 1) *last = blockIdx.x;
}

enum Fault {
  kRace,
  kWriteAfterRead,
  kTwoWriters,
  kMisaligned,
  kMisalignedShared,
  kOutOfShared,
  kBetween,
  kUnwritten,
  kBarrier,
  kLane,
  kNull,
  kWild,
  kZero,
  kParameter,
  kArrival,
  kAtomic,
  kFaults
};
constexpr const char* kExpected[] = {"read after another thread's write",
                                     "written after another thread's read",
                                     "written by two threads",
                                     "misaligned access to global",
                                     "misaligned access to shared",
                                     "outside of shared memory",
                                     "between the variables",
                                     "read of shared memory that was not written",
                                     "deadlock",
                                     "deadlock",
                                     "near null",
                                     "segmentation fault",
                                     "division by zero",
                                     "outside of the kernel's parameters",
                                     "before a copy has arrived",
                                     "read after another thread's write"};

__global__ void faulty(const __grid_constant__ Numbers n, Fault fault, float* p, float* bad,
                       int one) {
  __shared__ __align__(16) float a[64];
  __shared__ __align__(16) float b[64];
  const int t = threadIdx.x;
  a[t] = b[t] = t;
  if (fault != kRace) __syncthreads();
  if (fault == kRace) p[t] = a[t & ~one];
  if (fault == kWriteAfterRead) p[t] = a[(t + one) % 64], a[t] = one;
  if (fault == kTwoWriters) b[t / 2 * one] = one;
  if (fault == kMisaligned) *reinterpret_cast<float4*>(p + one) = make_float4(1, 2, 3, 4);
  if (fault == kMisalignedShared)
    p[t] = reinterpret_cast<float4*>(a + one)->x + reinterpret_cast<float4*>(a + one)->y;
  if (fault == kOutOfShared) p[t] = a[one << 20];
  if (fault == kBetween) p[t] = a[t + one * 64];
  if (fault == kBarrier && t == 5 * one) return;
  if (fault == kBarrier) {
    __syncthreads();
    a[t] = b[t ^ one];
  }
  if (fault == kLane && t != 7) p[t] = __shfl_xor_sync(0xffffffffu, a[t], 1);
  if (fault == kNull || fault == kWild) *bad = 1;
  if (fault == kZero) p[t] = one / (one - 1);
  if (fault == kArrival) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(
                     static_cast<unsigned>(__cvta_generic_to_shared(a + t))),
                 "l"(p + t));
    p[t] = a[t];
  }
  if (fault == kAtomic) p[t] = atomicAdd(reinterpret_cast<int*>(a), one) + a[0];
  if (fault == kParameter) p[t] = n.i[one << 12];
}

__global__ void unwritten(float* p, int one) {
  __shared__ float a[64];
  if (threadIdx.x > one) a[threadIdx.x] = 1;
  __syncthreads();
  p[threadIdx.x] = a[threadIdx.x];
}

void expect(bool ok, const char* what, long long got) {
  ++checks;
  if (ok) return;
  ++failures;
  std::printf("FAILED: %s, got %lld (0x%llx)\n", what, got, got);
}

long long bits(double x) {
  long long y;
  std::memcpy(&y, &x, 8);
  return y;
}

}  // namespace

int main() {
  const double inf = std::numeric_limits<double>::infinity();
  const float big = 1e30f, tiny = 1.0f + 0x1p-12f;
  const Numbers n{{std::nan(""), inf, 1e300, 0.5, 3},
                  {std::nanf(""), static_cast<float>(inf), big, 0.5f, tiny, -(1.0f + 0x1p-11f),
                   1.0f + 0x1p-11f, 1.0f + 0x3p-8f},
                  {-7, 2, 0x7654321},
                  {-70000000001LL, 3, 0x123456789abcdefLL}};
  const int most = 0x7fffffff, least = -most - 1;
  const long long lowest = std::numeric_limits<long long>::min(), wide = 0x7654321;
  const long long expected[] = {
      0,
      most,
      least,
      least,
      most,
      lowest,
      lowest,
      -1,
      bits(2),
      bits(-1),
      bits(0.5),
      bits(0.5),
      -3,
      -1,
      wide * wide >> 32,
      wide * -7,
      -4,
      0x7ffffffc,
      -23333333333LL,
      -2,
      0x33800000,
      0x3c00,
      0x7c00,
      0x3f82,
      0x7fff,
      3,
      bits(1.0 / 3),
      bits(std::sqrt(3.0)),
      0xff21ff43,
      0xfffff219,
      static_cast<long long>(0xffff0003b3acc3ffULL),
      static_cast<long long>(static_cast<__int128>(n.l[0]) * n.l[2] >> 64),
      static_cast<long long>(
          static_cast<unsigned __int128>(static_cast<unsigned long long>(n.l[0])) * n.l[2] >> 64),
      0x7654321f,
      0x7654321,
      1205,
      19,
      (0xfffffff9LL * 0x7654321) >> 32,
      wide * -7 + 3,
      0xfff9LL * 43691,
      7 * 21845};
  constexpr int kCount = sizeof expected / sizeof *expected;
  long long out[kCount] = {};
  arithmetic<<<1, 32>>>(n, out);
  expect(cudaGetLastError() == 0, "arithmetic", 0);
  for (int k = 0; k < kCount; ++k) {
    char what[40];
    std::snprintf(what, sizeof what, "arithmetic %d", k);
    expect(out[k] == expected[k], what, out[k]);
  }

  float sums[3];
  products_and_sums<<<1, 1>>>(tiny, tiny, -(1.0f + 0x1p-11f), sums);
  expect(sums[0] == 0 || sums[0] == 0x1p-24f, "contracted or not", 0);
  expect(sums[1] == 0 && sums[2] == 0, "never contracted", 0);
  std::printf("%s\n", sums[0] == 0 ? "not contracted" : "contracted");

  int lanes[64];
  shuffles<<<1, 64>>>(lanes);
  for (int t = 0; t < 64; ++t)
    expect(lanes[t] == (t < 32 ? 496 : 496 + 32 * 32) + (t ^ 5), "shuffle", lanes[t]);

  int found[192];
  ::lanes<<<1, 64>>>(found);
  for (int t = 0; t < 64; ++t) {
    const int lane = t % 32, first = t - lane;
    const int up = lane >= 3 ? t - 3 : t, down = lane < 27 ? t + 5 : t;
    expect(found[t] == up + 100 * down + 10000 * (t / 8 * 8 + t * 7 % 8), "lanes", found[t]);
    unsigned ballot = 0;
    for (int k = 0; k < 32; ++k) ballot |= (first + k) % 3 == 0 ? 1u << k : 0;
    expect(static_cast<unsigned>(found[64 + t]) == ballot, "ballot", found[64 + t]);
    expect(found[128 + t] == (first == 32) + 2, "any, all", found[128 + t]);
  }

  float numbers[128], copied[64];
  int counts[3];
  for (int i = 0; i < 128; ++i) numbers[i] = i * i;
  copies<<<1, 64>>>(numbers, copied, counts);
  for (int t = 0; t < 64; ++t)
    expect(copied[t] == numbers[t ^ 1] + numbers[127 - t] + numbers[t], "copies", t);
  expect(counts[0] == 2016 && counts[1] == 63 && counts[2] == 2, "atomics", counts[0]);

  int counter = 0, last = -1;
  tickets<<<7, 64>>>(&counter, &last);
  expect(counter == 7, "tickets", counter);
  expect(last == 6, "the last block", last);  // ascending order

  alignas(16) float memory[64];
  for (int f = 0; f < kFaults; ++f) {
    if (f == kUnwritten)
      unwritten<<<1, 64>>>(memory, 3);
    else
      faulty<<<1, 64>>>(n, static_cast<Fault>(f), memory,
                        f == kWild ? reinterpret_cast<float*>(1LL << 44) : nullptr, 1);
    const cudaError_t code = cudaGetLastError();
    const char* text = cudaGetErrorString(code);
    const bool found = code && std::strstr(text, kExpected[f]);
    expect(found, kExpected[f], code);
    if (!found) std::printf("  %s\n", text);
  }
  faulty<<<1, 64>>>(n, kFaults, memory, nullptr, 1);
  expect(cudaGetLastError() == 0, "no fault, after faults", 0);
  faulty<<<1, 2048>>>(n, kFaults, memory, nullptr, 1);
  expect(cudaGetLastError() == cudaErrorInvalidConfiguration, "2048 threads", 0);
  faulty<<<0, 64>>>(n, kFaults, memory, nullptr, 1);
  expect(cudaGetLastError() == cudaErrorInvalidConfiguration, "no blocks", 0);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures != 0;
}
