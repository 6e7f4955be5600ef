// The element types that kernels read and write, and the type that they add up in.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gankernels {

enum class DType : int8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr size_t item_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// The dtype that products are summed in and that packed results have.
constexpr DType accumulation(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

// Calls `f` with a value of the accumulation type of `dtype`: float, or double for double.
template <class F>
auto visit_accumulation(DType dtype, F&& f) {
  return dtype == DType::kFloat64 ? f(double{}) : f(float{});
}

}  // namespace gankernels
