// Elements of any dtype where they lie in memory, for arithmetic in T, their accumulation type.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>

#include "cpu/memory/scratch.h"
#include "cpu/norm.h"
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

// Whether elements of a dtype lie in memory as T, and need no widening.
template <class T>
constexpr bool stored_as(DType dtype) {
  return item_size(dtype) == sizeof(T);
}

// n elements as T: where they lie, or widened into `scratch`.
template <class T>
const T* staged(const VectorKernels<T>& kernels, Storage x, int64_t offset, int64_t n, T* scratch) {
  if (stored_as<T>(x.dtype)) return static_cast<const T*>(x.at(offset));
  kernels.widen(x.dtype, x.at(offset), n, scratch);
  return scratch;
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

// Loops over arrays of one dtype, widened and narrowed a piece at a time.
template <class T>
class Elements {
 public:
  // Results that exceed every cache together are written past the caches.
  Elements(DType dtype, int64_t bytes) : dtype_(dtype), stream_(bytes > kStreamBytes) {}

  // sum(x * y) of n elements from `offset` on.
  double dot(const void* x, const void* y, int64_t offset, int64_t n) const {
    const Storage a{x, dtype_}, b{y, dtype_};
    const bool direct = stored_as<T>(dtype_);
    const int64_t step = direct ? n : kPiece;
    T* scratch = direct ? nullptr : thread_scratch<T, Slot::kWidenedPieces>(2 * kPiece);
    double total = 0;
    for (int64_t j = 0; j < n; j += step) {
      const int64_t k = std::min(step, n - j);
      const T* first = staged(kernels_, a, offset + j, k, scratch);
      const T* second = x == y ? first : staged(kernels_, b, offset + j, k, scratch + kPiece);
      total += kernels_.dot(first, second, k);
    }
    return total;
  }

  // ||x|| of n elements from `offset` on.
  double norm(const void* x, int64_t offset, int64_t n) const {
    const Storage in{x, dtype_};
    if (stored_as<T>(dtype_)) return norm_of(kernels_, static_cast<const T*>(in.at(offset)), n);
    T* scratch = thread_scratch<T, Slot::kWidenedPieces>(kPiece);
    double total = 0;
    for (int64_t j = 0; j < n; j += kPiece) {
      const int64_t k = std::min(kPiece, n - j);
      total = joined(total, norm_of(kernels_, staged(kernels_, in, offset + j, k, scratch), k));
    }
    return total;
  }

  // out = alpha x + beta y from `offset` on, y of T or (`y_stored`) of the dtype, or null.
  void combine(Factor alpha, const void* x, Factor beta, const void* y, bool y_stored,
               int64_t offset, int64_t n, void* out) const {
    const Storage in{x, dtype_}, other{y, dtype_}, to{out, dtype_};
    void* target = const_cast<void*>(to.at(offset));
    if (stored_as<T>(dtype_)) {
      const T* second = static_cast<const T*>(y_stored ? other.at(offset) : y);
      combine_as_T(alpha, static_cast<const T*>(in.at(offset)), beta, y ? second : nullptr, n,
                   static_cast<T*>(target), stream_);
      return;
    }
    T* scratch = thread_scratch<T, Slot::kWidenedPieces>(3 * kPiece);
    for (int64_t j = 0; j < n; j += kPiece) {
      const int64_t k = std::min(kPiece, n - j);
      const T* first = staged(kernels_, in, offset + j, k, scratch);
      const T* second = !y         ? nullptr
                        : y_stored ? staged(kernels_, other, offset + j, k, scratch + kPiece)
                                   : static_cast<const T*>(y) + j;
      T* result = scratch + 2 * kPiece;
      combine_as_T(alpha, first, beta, second, k, result, false);
      kernels_.narrow(result, k, dtype_, const_cast<void*>(to.at(offset + j)));
    }
  }

  // out = alpha x + beta y + gamma z, all of the dtype.
  void combine(Factor alpha, const void* x, Factor beta, const void* y, Factor gamma, const void* z,
               int64_t offset, int64_t n, void* out) const {
    const Storage a{x, dtype_}, b{y, dtype_}, c{z, dtype_}, to{out, dtype_};
    const bool direct = stored_as<T>(dtype_);
    T* scratch = thread_scratch<T, Slot::kWidenedPieces>(3 * kPiece);
    for (int64_t j = 0; j < n; j += kPiece) {
      const int64_t k = std::min(kPiece, n - j);
      void* target = const_cast<void*>(to.at(offset + j));
      T* sum = direct ? static_cast<T*>(target) : scratch + 2 * kPiece;
      const T* first = staged(kernels_, a, offset + j, k, scratch);
      const T* second = staged(kernels_, b, offset + j, k, scratch + kPiece);
      combine_as_T(alpha, first, beta, second, k, sum, false);
      combine_as_T(1, sum, gamma, staged(kernels_, c, offset + j, k, scratch), k, sum, false);
      if (!direct) kernels_.narrow(sum, k, dtype_, target);
    }
  }

 private:
  // Factors that leave the range of T, as those of tiny weights do, have products that need not.
  void combine_as_T(Factor alpha, const T* x, Factor beta, const T* y, int64_t n, T* out,
                    bool stream) const {
    if (alpha.fits<T>() && beta.fits<T>())
      return kernels_.combine(static_cast<T>(alpha.product()), x, static_cast<T>(beta.product()), y,
                              n, out, stream);
    for (int64_t i = 0; i < n; ++i)
      out[i] = static_cast<T>(y ? alpha * x[i] + beta * y[i] : alpha * x[i]);
  }

  static constexpr int64_t kStreamBytes = 32 << 20;
  static constexpr int64_t kPiece = 2048;  // elements widened at a time

  const VectorKernels<T>& kernels_ = vector_kernels<T>();
  DType dtype_;
  bool stream_;
};

// Calls f with a value of the accumulation type; memory is the one thing that can be missing.
template <class F>
const char* run(DType dtype, F&& f) {
  try {
    visit_accumulation(dtype, f);
    return nullptr;
  } catch (const std::bad_alloc&) {
    return "out of memory";
  }
}

}  // namespace gankernels::cpu
