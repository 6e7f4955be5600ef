// The operations on rows, once for every instruction set: the table of rows.inc and noise.inc.
#pragma once

#include <cstdint>

#include "image_filter.h"

namespace gankernels::image_filter::cpu {

constexpr int64_t kFill = 16;  // elements: the vectors of every type and target

constexpr int64_t filled(int64_t n) {
  return (n + kFill - 1) / kFill * kFill;
}

// Rows, or one row seen from several places: elements 1 and 3 steps of a stage before and after
// `at`.
template <class T>
struct Neighbors {
  const T *at, *before1, *after1, *before3, *after3;
};

// The factors of x, a, b and c.
template <class T>
struct Mix {
  T x, a, b, c;
};

template <class T>
constexpr T tap(int d) {
  return static_cast<T>(kHalfBand[d]) / kHalfBandUnit;
}

template <class T>
struct RowKernels {
  // lo x; here and below `n` is a number of whole vectors
  void (*smooth)(const Neighbors<T>& x, int64_t n, T* out);
  // mix of x, a, b, and lo b
  void (*combine)(const Mix<T>& mix, const T* x, const T* a, const Neighbors<T>& b, int64_t n,
                  T* out);
  // out[i stride] += sigma * normal_noise(seed, first + i)
  void (*add_noise)(T sigma, int64_t seed, int64_t first, int64_t n, int64_t stride, T* out);
};

// In double, whose noise is that of the reference to the last digits, on every instruction set.
inline void add_precise_noise(double sigma, int64_t seed, int64_t first, int64_t n, int64_t stride,
                              double* out) {
  for (int64_t i = 0; i < n; ++i) out[i * stride] += sigma * normal_noise(seed, first + i);
}

}  // namespace gankernels::image_filter::cpu
