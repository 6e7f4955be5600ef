// The innermost loops of the CPU kernels, for the best instruction set of this processor, on elements as
// they are stored: S is a storage type, T what it is accumulated in.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gankernels::cpu {

// alpha x + beta y + gamma z; y may be null with beta 0, and z with gamma 0.
template <class S, class Y>
struct Terms {
  Accumulation<S> alpha;
  const S* x;
  Accumulation<S> beta;
  const Y* y;
  Accumulation<S> gamma;
  const S* z;
};

// Matrices are row-major and contiguous: a[m][n].
template <class S>
struct VectorKernels {
  using T = Accumulation<S>;
  // p = a q. Reads a once.
  void (*product)(const S* a, int64_t m, int64_t n, const T* q, T* p);
  // z += a^T p. Reads a once.
  void (*add_transposed_product)(const S* a, int64_t m, int64_t n, const T* p, T* z);
  // p = a q and z += a^T p. Reads a once from memory, and a second time from cache.
  void (*both_products)(const S* a, int64_t m, int64_t n, const T* q, T* p, T* z);
  // y += a * x, element by element.
  void (*add_elementwise_product)(const S* a, const T* x, int64_t n, T* y);
  // sum(a * b), in double from block to block.
  double (*dot)(const S* a, const S* b, int64_t n);
  // The terms, of which y is wide, or stored as x is. `stream` writes past the caches.
  void (*combine)(const Terms<S, T>& terms, int64_t n, S* out, bool stream);
  void (*combine_stored)(const Terms<S, S>& terms, int64_t n, S* out, bool stream);
  void (*widen)(const S* x, int64_t n, T* out);
  void (*narrow)(const T* x, int64_t n, S* out);
};

// Those of the best instruction set that this processor has, or of the one that was set.
template <class S>
const VectorKernels<S>& vector_kernels();

}  // namespace gankernels::cpu
