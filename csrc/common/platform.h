// The CUDA dialect of the kernels, and the only file that asks who compiles them: nvcc for GPUs, or a
// host compiler for the emulator of the tests (-DGANKERNELS_EMULATE, emu/device.h). Both offer:
//
//   KERNEL, DEVICE, TABLE         a kernel, a function it calls, its by-value argument
//   KERNEL_FOR(threads, blocks)   a kernel of which a multiprocessor need not hold three blocks
//   SHARED(T, name, n)            shared memory of a block; no initial value. Passed on as a
//                                 SharedArray<T>
//   thread_id(), block_id()       in one dimension
//   load, store                   global memory: one element, or N as a Vector<T, N> at its alignment
//   shared_load<N>, shared_store  N elements of shared memory at their common alignment
//   shared_view<T>(shared + i)    the same memory as an array of another type
//   copy_async(shared + i, from)  an element of 4, 8 or 16 bytes from global to shared memory, which
//                                 arrives at the thread's copy_wait(); for others after a barrier, too
//   sync_threads(), shuffle_xor   a block's barrier; a full warp's exchange
//   fence()                       between blocks
//   atomic_add, atomic_or         of integers, in global or in shared memory; atomic_max of int
//   multiply_high(a, b)           the upper half of the product of two ints
//   rounded(x)                    the nearest integer, halves to even: an int of a float, an int64_t of a double
//   Buffers                       the memory that a call's kernels may touch; known to the emulator only
//   launch<kernel>, fill_zero     what the host starts on a stream; null, or what went wrong
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace gankernels {

constexpr int kWarp = 32;

template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T at[N];
};

}  // namespace gankernels

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define KERNEL_FOR(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define KERNEL(threads) KERNEL_FOR(threads, 3)
#define DEVICE __device__ __forceinline__
#define TABLE(...) const __grid_constant__ __VA_ARGS__
#define PRAGMA(text) _Pragma(#text)
#define UNROLL(n) PRAGMA(unroll n)
#define SHARED(T, name, n) __shared__ __align__(32) T name[n]

namespace gankernels {

template <class T>
using SharedArray = T*;

DEVICE int thread_id() {
  return static_cast<int>(threadIdx.x);
}
DEVICE int block_id() {
  return static_cast<int>(blockIdx.x);
}

template <class T>
DEVICE T load(const T* p) {
  return *p;
}
template <int N, class T>
DEVICE Vector<T, N> load(const T* p) {
  return *reinterpret_cast<const Vector<T, N>*>(p);
}
template <class T>
DEVICE void store(T* p, T x) {
  *p = x;
}
template <class T, int N>
DEVICE void store(T* p, const Vector<T, N>& x) {
  if constexpr (sizeof(x) == 16)  // of an assignment, nvcc may make a store for every element
    __stwb(reinterpret_cast<uint4*>(p), *reinterpret_cast<const uint4*>(&x));
  else
    *reinterpret_cast<Vector<T, N>*>(p) = x;
}
template <int N, class T>
DEVICE Vector<T, N> shared_load(const T* p) {
  return *reinterpret_cast<const Vector<T, N>*>(p);
}
template <class T, int N>
DEVICE void shared_store(T* p, const Vector<T, N>& x) {
  *reinterpret_cast<Vector<T, N>*>(p) = x;
}
template <class U, class T>
DEVICE U* shared_view(T* p) {
  return reinterpret_cast<U*>(p);
}
// Before sm_80 a load and a store.
template <class T>
DEVICE void copy_async(T* to, const T* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "n"(sizeof(T))
               : "memory");
#else
  *to = *from;
#endif
}
DEVICE void copy_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

DEVICE void sync_threads() {
  __syncthreads();
}
template <class T>
DEVICE T shuffle_xor(T x, int lanes) {
  return __shfl_xor_sync(0xffffffffu, x, lanes);
}
DEVICE void fence() {
  __threadfence();
}
DEVICE int atomic_add(int* p, int x) {
  return atomicAdd(p, x);
}
DEVICE int64_t atomic_add(int64_t* p, int64_t x) {
  return static_cast<int64_t>(
      atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x)));
}
DEVICE int atomic_or(int* p, int x) {
  return atomicOr(p, x);
}

DEVICE int atomic_max(int* p, int x) {
  return atomicMax(p, x);
}
DEVICE int multiply_high(int a, int b) {
  return __mulhi(a, b);
}
DEVICE int rounded(float x) {
  return __float2int_rn(x);
}
DEVICE int64_t rounded(double x) {
  return __double2ll_rn(x);
}

DEVICE float widen(float x) {
  return x;
}
DEVICE double widen(double x) {
  return x;
}
DEVICE float widen(Half x) {
  return __half2float(__ushort_as_half(x.bits));
}
DEVICE float widen(BFloat16 x) {
  return __bfloat162float(__ushort_as_bfloat16(x.bits));
}

template <class T>
DEVICE T narrow(Accumulation<T> x) {
  return x;
}
template <>
DEVICE Half narrow<Half>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
DEVICE BFloat16 narrow<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

// in: constant; out: has numbers already; scratch: undefined until written, results too.
class Buffers {
 public:
  void in(const char*, const void*, int64_t, size_t) {}
  void out(const char*, void*, int64_t, size_t) {}
  void scratch(const char*, void*, int64_t, size_t) {}
};

inline const char* status() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <auto kernel, class... Arguments>
const char* launch(const char* /*name*/, int64_t blocks, int threads, void* stream,
                   const Arguments&... arguments) {
  if (blocks > INT32_MAX) return "too many blocks for one launch";
  kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(
      arguments...);
  return status();
}

inline const char* fill_zero(void* p, size_t bytes, void* stream) {
  (void)cudaMemsetAsync(p, 0, bytes, static_cast<cudaStream_t>(stream));
  return status();
}

}  // namespace gankernels

#else
#include "emu/device.h"
#endif
