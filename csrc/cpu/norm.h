// Norms that stay within the range of their type.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/simd/scalars.h"
#include "cpu/simd/vector_kernels.h"

namespace gankernels::cpu {

// ||x||; in double where the squares leave the range of sums, and of what is largest where they leave
// that of double.
template <class S>
double norm_of(const VectorKernels<S>& kernels, const S* x, int64_t n) {
  double square = kernels.dot(x, x, n);
  if (square > 1e-30 && square < 1e30) return std::sqrt(square);
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max<double>(largest, std::abs(widen(x[i])));
  const double unit = largest > 1e-140 && largest < 1e140 ? 1 : largest;
  if (unit == 0 || !std::isfinite(unit)) return std::sqrt(square);
  square = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double value = widen(x[i]) / unit;
    square += value * value;
  }
  return unit * std::sqrt(square);
}

// The norm of two parts, each with the norm given. NaN stays NaN.
inline double joined(double a, double b) {
  return std::isnan(a) ? a : std::isnan(b) ? b : std::hypot(a, b);
}

}  // namespace gankernels::cpu
