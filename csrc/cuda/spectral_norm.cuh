// Parts of the kernels of spectral normalization; spectral_norm.cu launches them. A block serves one
// tile of one layer (walk.cuh). Every kernel is deterministic: sums have a fixed order, no atomic adds a
// float.
//
// W is seen through its memory: p is the vector along the rows of a walk and q the one along its
// columns, so <p, W q> is u . (W v) whichever of them is u. Bytes are those of global memory beyond the
// vectors themselves.
#pragma once

#include "cuda/walk.cuh"
#include "spectral_norm.h"

namespace gankernels::spectral_norm::cuda {

// out = W * factor for the elements [begin, end).
template <class T, int N>
DEVICE void scale_range(const T* w, T* out, Factor<Accumulation<T>> factor, int64_t begin,
                        int64_t end) {
  constexpr int kRows = rows_at_once(1);
  const int64_t whole = begin + (end - begin) / N * N;
  UNROLL(1)
  for (int64_t i = begin + thread_id() * N; i < whole; i += kRows * kBlock * N) {
    Words<T, N> words[kRows];
    UNROLL(kRows)
    for (int r = 0; r < kRows; ++r)
      if (i + r * kBlock * N < whole) words[r] = load_words<T, N>(w + i + r * kBlock * N);
    UNROLL(kRows)
    for (int r = 0; r < kRows; ++r) {
      if (i + r * kBlock * N >= whole) break;
      auto x = as_vector<T, N>(words[r]);
      for (int j = 0; j < N; ++j) x.at[j] = narrow<T>(widen(x.at[j]) * factor);
      store(out + i + r * kBlock * N, x);
    }
  }
  if constexpr (N > 1) {  // fewer than N are left
    const int64_t i = whole + thread_id();
    if (i < end) store(out + i, narrow<T>(widen(load(w + i)) * factor));
  }
}

template <class T>
DEVICE void scale_tile(const void* w, void* out, bool vectors, Factor<Accumulation<T>> factor,
                       int64_t begin, int64_t end) {
  if (vectors)
    scale_range<T, kVector<T>>(static_cast<const T*>(w), static_cast<T*>(out), factor, begin, end);
  else
    scale_range<T, 1>(static_cast<const T*>(w), static_cast<T*>(out), factor, begin, end);
}

}  // namespace gankernels::spectral_norm::cuda
