// The innermost loops of the CPU kernels, compiled for several instruction sets in one binary.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gankernels::cpu {

// Matrices are row-major and contiguous: a[m][n].
template <class T>
struct VectorKernels {
  // p = a q. Reads a once.
  void (*product)(const T* a, int64_t m, int64_t n, const T* q, T* p);
  // z += a^T p. Reads a once.
  void (*add_transposed_product)(const T* a, int64_t m, int64_t n, const T* p, T* z);
  // p = a q and z += a^T p. Reads a once from memory, and a second time from cache.
  void (*both_products)(const T* a, int64_t m, int64_t n, const T* q, T* p, T* z);
  // y += a * x, element by element.
  void (*add_elementwise_product)(const T* a, const T* x, int64_t n, T* y);
  // sum(a * b), in double from block to block.
  double (*dot)(const T* a, const T* b, int64_t n);
  // out = alpha x + beta y; y may be null with beta 0. `stream` writes past the caches.
  void (*combine)(T alpha, const T* x, T beta, const T* y, int64_t n, T* out, bool stream);
  // Between T and a storage type of T's accumulation.
  void (*widen)(DType from, const void* x, int64_t n, T* out);
  void (*narrow)(const T* x, int64_t n, DType to, void* out);
};

// Those of the best instruction set that this processor has, or of the one that was set.
template <class T>
const VectorKernels<T>& vector_kernels();

}  // namespace gankernels::cpu
