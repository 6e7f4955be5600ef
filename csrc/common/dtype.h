// The element types that kernels read and write, and the type that they add up in.
#pragma once

#include <cstddef>
#include <cstdint>

// For functions of both sides whose arguments a GPU must keep in registers.
#if defined(__CUDACC__)
#define ALWAYS_INLINE __forceinline__
#else
#define ALWAYS_INLINE inline
#endif

namespace gankernels {

enum class DType : int8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr size_t item_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// The dtype that products are summed in and that packed results have.
constexpr DType accumulation(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

// Elements as they are stored; arithmetic is done on widen(x).
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct AccumulationOf {
  using type = float;
};
template <>
struct AccumulationOf<double> {
  using type = double;
};
template <class T>
using Accumulation = typename AccumulationOf<T>::type;

// Calls `f` with a value of the type that is stored.
template <class F>
auto visit_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(double{});
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kFloat16:
      return f(Half{});
    default:
      return f(float{});
  }
}

// Calls `f` with a value of the accumulation type of `dtype`: float, or double for double.
template <class F>
auto visit_accumulation(DType dtype, F&& f) {
  return dtype == DType::kFloat64 ? f(double{}) : f(float{});
}

}  // namespace gankernels
