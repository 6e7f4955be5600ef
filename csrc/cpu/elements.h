// Elements where they lie in memory, of a storage type S, for arithmetic in T, what it is accumulated in.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <type_traits>

#include "cpu/norm.h"
#include "cpu/simd/scalars.h"
#include "cpu/simd/vector_kernels.h"

namespace gankernels::cpu {

// A pointer into memory of some dtype.
struct Storage {
  const void* data;
  DType dtype;

  const void* at(int64_t i) const {
    return static_cast<const char*>(data) + i * static_cast<int64_t>(item_size(dtype));
  }
};

// n elements of a dtype that is accumulated in T, as T; and back.
template <class T>
void widen(DType dtype, const void* x, int64_t n, T* out) {
  visit_dtype(dtype, [&](auto zero) {
    using S = decltype(zero);
    if constexpr (std::is_same_v<Accumulation<S>, T>)
      vector_kernels<S>().widen(static_cast<const S*>(x), n, out);
  });
}
template <class T>
void narrow(const T* x, int64_t n, DType dtype, void* out) {
  visit_dtype(dtype, [&](auto zero) {
    using S = decltype(zero);
    if constexpr (std::is_same_v<Accumulation<S>, T>)
      vector_kernels<S>().narrow(x, n, static_cast<S*>(out));
  });
}

// Whether T holds a factor without losing digits.
template <class T>
bool fits(double x) {
  using Limits = std::numeric_limits<T>;
  return x == 0 || (std::abs(x) >= Limits::min() && std::abs(x) <= Limits::max());
}

// What elements are multiplied by: `first`, then `then`, as their product may leave the range of double
// where no element does.
struct Factor {
  Factor(double value) : first(value) {}  // NOLINT: a number is one
  Factor(double first, double then) : first(first), then(then) {}

  double product() const { return first * then; }
  template <class T>
  bool fits() const {
    return gankernels::cpu::fits<T>(product()) && (product() != 0 || first == 0 || then == 0);
  }
  double operator*(double x) const { return first * x * then; }

  double first, then = 1;
};

// Loops over arrays of S.
template <class S>
class Elements {
 public:
  using T = Accumulation<S>;

  // Results that exceed every cache together are written past the caches.
  explicit Elements(int64_t bytes) : stream_(bytes > kStreamBytes) {}

  // sum(x * y) of n elements from `offset` on.
  double dot(const void* x, const void* y, int64_t offset, int64_t n) const {
    return kernels_.dot(at(x, offset), at(y, offset), n);
  }

  // ||x|| of n elements from `offset` on.
  double norm(const void* x, int64_t offset, int64_t n) const {
    return norm_of(kernels_, at(x, offset), n);
  }

  // out = alpha x + beta y + gamma z from `offset` on; y and z may be null.
  void combine(Factor alpha, const void* x, Factor beta, const void* y, Factor gamma, const void* z,
               int64_t offset, int64_t n, void* out) const {
    combine_terms({alpha, beta, gamma}, at(x, offset), at(y, offset), at(z, offset), n, offset, out,
                  kernels_.combine_stored);
  }
  void combine(Factor alpha, const void* x, Factor beta, const void* y, int64_t offset, int64_t n,
               void* out) const {
    combine(alpha, x, beta, y, 0, nullptr, offset, n, out);
  }

  // The same with a y of T, which begins at `offset`.
  void combine_wide(Factor alpha, const void* x, Factor beta, const T* y, int64_t offset, int64_t n,
                    void* out) const {
    const S* none = nullptr;
    combine_terms({alpha, beta, 0}, at(x, offset), y, none, n, offset, out, kernels_.combine);
  }

 private:
  struct Factors {
    Factor alpha, beta, gamma;
  };

  static const S* at(const void* x, int64_t i) {
    return x ? static_cast<const S*>(x) + i : nullptr;
  }

  // Factors that leave the range of T, as those of tiny weights do, have products that need not.
  template <class Y>
  void combine_terms(const Factors& f, const S* x, const Y* y, const S* z, int64_t n,
                     int64_t offset, void* out,
                     void (*combine)(const Terms<S, Y>&, int64_t, S*, bool)) const {
    S* to = static_cast<S*>(out) + offset;
    if (f.alpha.template fits<T>() && f.beta.template fits<T>() && f.gamma.template fits<T>()) {
      const auto narrowed = [](Factor factor) { return static_cast<T>(factor.product()); };
      return combine({narrowed(f.alpha), x, narrowed(f.beta), y, narrowed(f.gamma), z}, n, to,
                     stream_);
    }
    for (int64_t i = 0; i < n; ++i) {
      double value = f.alpha * widen(x[i]);
      if (y) value += f.beta * widen(y[i]);
      if (z) value += f.gamma * widen(z[i]);
      to[i] = narrow<S>(static_cast<T>(value));
    }
  }

  static constexpr int64_t kStreamBytes = 32 << 20;

  const VectorKernels<S>& kernels_ = vector_kernels<S>();
  bool stream_;
};

// Calls f with a value of the type that is stored; memory is the one thing that can be missing.
template <class F>
const char* run(DType dtype, F&& f) {
  try {
    visit_dtype(dtype, f);
    return nullptr;
  } catch (const std::bad_alloc&) {
    return "out of memory";
  }
}

}  // namespace gankernels::cpu
