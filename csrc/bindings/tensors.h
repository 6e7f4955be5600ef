// Shared by all bindings: checks that name the op, dense weights as matrices, and outputs.
// Python looks for better words for an error (gankernels/ops); these checks keep memory safe.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "bindings/backend.h"
#include "common/dtype.h"
#include "common/matrix.h"

namespace gankernels::bindings {

using torch::headeronly::ScalarType;
using Tensors = std::vector<Tensor>;

inline DType dtype_of(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, float64, bfloat16 or float16 tensors");
  }
}

inline ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ScalarType::Float;
    case DType::kFloat64:
      return ScalarType::Double;
    case DType::kBFloat16:
      return ScalarType::BFloat16;
    default:
      return ScalarType::Half;
  }
}

// A contiguous vector of `size` elements of `dtype` on the device of `like`.
inline void check_vector(const char* op, const char* name, const Tensor& x, int64_t size,
                         DType dtype, const Tensor& like) {
  STD_TORCH_CHECK(same_device(x, like) && x.scalar_type() == scalar_type(dtype), op, ": expected ",
                  name, " on the weights' device, of the dtype that goes with them");
  STD_TORCH_CHECK(x.dim() == 1 && x.size(0) == size && x.is_contiguous(), op, ": expected ", name,
                  " to be a contiguous vector of ", size, " elements");
}

// The name of a dtype that operators take.
inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Long:
      return "int64";
    default:
      return torch::headeronly::toString(type);
  }
}

// The data of a contiguous tensor of `size` elements, of any shape; null without one.
inline const void* data_of(const char* op, const char* name, const std::optional<Tensor>& x,
                           int64_t size, ScalarType type, const Tensor& like) {
  if (!x) return nullptr;
  STD_TORCH_CHECK(
      same_device(*x, like) && x->scalar_type() == type && x->numel() == size && x->is_contiguous(),
      op, ": expected ", name, " of ", size, " contiguous elements of ", name_of(type),
      ", on the device of the other tensors");
  return x->const_data_ptr();
}

struct Dimension {
  int64_t size, stride, index;
};

// The dimensions from `first` on, the outermost in memory first. Those of one element, whose strides
// mean nothing, are left out.
inline std::vector<Dimension> in_memory_order(const Tensor& x, int64_t first = 0) {
  std::vector<Dimension> dims;
  for (int64_t d = first; d < x.dim(); ++d)
    if (x.size(d) != 1) dims.push_back({x.size(d), x.stride(d), d});
  std::sort(dims.begin(), dims.end(),
            [](const Dimension& a, const Dimension& b) { return a.stride > b.stride; });
  return dims;
}

// Whether such dimensions have neither gaps nor overlaps.
inline bool is_dense(const std::vector<Dimension>& dims) {
  int64_t expected = 1;
  for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) {
    if (dim->stride != expected) return false;
    expected *= dim->size;
  }
  return true;
}

// The weight as a matrix; refuses memory with gaps or overlaps.
inline Matrix matrix_of(const char* op, const Tensor& w, DType dtype, const Tensor& like) {
  STD_TORCH_CHECK(is_here(w) && same_device(w, like), op, ": expected all weights on ", kPlace,
                  ", the same one");
  STD_TORCH_CHECK(w.scalar_type() == scalar_type(dtype), op, ": expected weights of one dtype");
  STD_TORCH_CHECK(w.dim() >= 1 && w.numel() > 0, op, ": expected weights with elements");
  const std::vector<Dimension> memory = in_memory_order(w);
  STD_TORCH_CHECK(is_dense(memory), op, ": expected weights whose memory is dense");

  Matrix m{w.const_data_ptr(), 1, w.size(0), 1, 0, {}, {}};
  bool row_seen = m.rows == 1;
  for (const Dimension& dim : memory) {
    if (dim.index == 0)
      row_seen = true;
    else
      (row_seen ? m.inner : m.outer) *= dim.size;
  }
  // Column numbers in memory: the strides of the columns' dimensions without the rows between them.
  bool same = true;
  int64_t logical_stride = m.cols();
  for (int64_t d = 1; d < w.dim(); ++d) {
    const int64_t size = w.size(d);
    if (size == 1) continue;
    const int64_t stride =
        m.rows > 1 && w.stride(d) >= m.rows * m.inner ? w.stride(d) / m.rows : w.stride(d);
    logical_stride /= size;
    same &= stride == logical_stride;
    const int last = m.column_dims - 1;
    if (last >= 0 && m.column_stride[last] == stride * size) {  // one dimension, in effect
      m.column_size[last] *= size;
      m.column_stride[last] = stride;
      continue;
    }
    STD_TORCH_CHECK(m.column_dims < kMaxColumnDims, op, ": expected weights of at most ",
                    kMaxColumnDims + 1, " dimensions, those that are contiguous taken as one");
    m.column_size[m.column_dims] = size;
    m.column_stride[m.column_dims++] = stride;
  }
  if (same) m.column_dims = 0;
  return m;
}

// How many elements a row of `x` has, its first dimension; refuses memory in which rows are not dense and
// one after the other. `what` are such tensors.
inline int64_t row_size(const char* op, const char* what, const Tensor& x, DType dtype,
                        const Tensor& like) {
  STD_TORCH_CHECK(is_here(x) && same_device(x, like), op, ": expected all ", what, " on ", kPlace,
                  ", the same one");
  STD_TORCH_CHECK(x.scalar_type() == scalar_type(dtype), op, ": expected ", what, " of one dtype");
  STD_TORCH_CHECK(x.dim() >= 1 && x.numel() > 0, op, ": expected ", what, " with elements");
  const int64_t size = x.numel() / x.size(0);
  STD_TORCH_CHECK(is_dense(in_memory_order(x, 1)) && (x.size(0) == 1 || x.stride(0) == size), op,
                  ": expected ", what, " whose memory is dense, one row after the other");
  return size;
}

// `x` where it has the memory layout of `like`, else a copy that has.
inline Tensor laid_out_as(const char* op, const char* name, const Tensor& x, const Tensor& like) {
  STD_TORCH_CHECK(
      same_device(x, like) && x.scalar_type() == like.scalar_type() && x.dim() == like.dim(), op,
      ": expected ", name, " of the dtype and shapes of what they belong to, on its device");
  bool same = true;
  for (int64_t d = 0; d < x.dim(); ++d) {
    STD_TORCH_CHECK(x.size(d) == like.size(d), op, ": expected ", name,
                    " of the shapes of what they belong to");
    same &= x.stride(d) == like.stride(d) || x.size(d) == 1;
  }
  if (same) return x;
  Tensor copy = dense_like(like);
  torch::stable::copy_(copy, x);
  return copy;
}

inline Tensor new_vector(const Tensor& like, int64_t size, DType dtype) {
  return torch::stable::new_empty(like, {size}, scalar_type(dtype));
}

}  // namespace gankernels::bindings
