// Norms and factors of a whole layer, computed in double, by one thread.
#pragma once

#include <cmath>
#include <limits>

#include "common/platform.h"

namespace gankernels {

// max(norm, eps), but NaN stays NaN.
template <class T>
DEVICE T at_least(T norm, T eps) {
  return norm < eps ? eps : norm;
}

// A factor of a whole layer in two that Acc holds, though it may not hold the factor itself: that of a
// tiny weight has products that are within range.
template <class Acc>
struct Factor {
  Acc first, second;
};
template <class Acc>
DEVICE Factor<Acc> factor_of(double x) {
  using Limits = std::numeric_limits<Acc>;
  const double size = fabs(x);
  if (size > Limits::max() || (size < Limits::min() && size > 0)) {
    const auto root = static_cast<Acc>(sqrt(size));
    return {root, x < 0 ? -root : root};
  }
  return {static_cast<Acc>(x), Acc{1}};
}
template <class Acc>
DEVICE Acc operator*(Acc x, const Factor<Acc>& factor) {
  return x * factor.first * factor.second;
}

}  // namespace gankernels
