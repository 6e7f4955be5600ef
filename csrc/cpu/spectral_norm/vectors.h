// Vectors of the iteration: divisions that stay within the range of their type.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/norm.h"

namespace gankernels::spectral_norm::cpu {

using gankernels::cpu::norm_of;
using gankernels::cpu::VectorKernels;

// max(norm, eps), but NaN stays NaN.
inline double at_least(double norm, double eps) {
  return norm < eps ? eps : norm;
}

// x / divisor, element by element; multiplied where the reciprocal is a normal number.
template <class T>
void divide(const VectorKernels<T>& kernels, T* x, int64_t n, double divisor) {
  if (divisor > 1e-30 && divisor < 1e30)
    kernels.combine({static_cast<T>(1 / divisor), x, 0, nullptr, 0, nullptr}, n, x, false);
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
