// Vectors of the iteration: norms and divisions that stay within the range of their type.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/simd/vector_kernels.h"

namespace gankernels::spectral_norm::cpu {

using gankernels::cpu::VectorKernels;

// ||x||; in double where the squares leave the range of T, and of what is largest where they leave
// that of double.
template <class T>
double norm_of(const VectorKernels<T>& kernels, const T* x, int64_t n) {
  double square = kernels.dot(x, x, n);
  if (square > 1e-30 && square < 1e30) return std::sqrt(square);
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max<double>(largest, std::abs(x[i]));
  const double unit = largest > 1e-140 && largest < 1e140 ? 1 : largest;
  if (unit == 0 || !std::isfinite(unit)) return std::sqrt(square);
  square = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double value = x[i] / unit;
    square += value * value;
  }
  return unit * std::sqrt(square);
}

// max(norm, eps), but NaN stays NaN.
inline double at_least(double norm, double eps) {
  return norm < eps ? eps : norm;
}

// x / divisor, element by element; multiplied where the reciprocal is a normal number.
template <class T>
void divide(const VectorKernels<T>& kernels, T* x, int64_t n, double divisor) {
  if (divisor > 1e-30 && divisor < 1e30)
    kernels.combine(static_cast<T>(1 / divisor), x, 0, nullptr, n, x, false);
  else
    for (int64_t i = 0; i < n; ++i) x[i] = static_cast<T>(x[i] / divisor);
}

// n(x) in place; returns ||x||.
template <class T>
double normalize_vector(const VectorKernels<T>& kernels, T* x, int64_t n, double eps) {
  const double norm = norm_of(kernels, x, n);
  divide(kernels, x, n, at_least(norm, eps));
  return norm;
}

}  // namespace gankernels::spectral_norm::cpu
