// A dense weight in memory, read as the matrix rows x cols of spectral normalization.
#pragma once

#include <cstdint>

namespace gankernels {

constexpr int kMaxColumnDims = 7;

// The columns are numbered by the logical order of the dimensions after the first. In memory the
// weight is w[outer][rows][inner]: memory column k = o * inner + i. Contiguous weights have
// outer = 1; those of transposed convolutions, seen with the output channels first, outer > 1.
struct Matrix {
  const void* data;
  int64_t outer, rows, inner;
  // Logical column (c_0, c_1, ...) of sizes column_size lies at memory column
  // sum(c_d * column_stride[d]). With column_dims = 0 both orders are the same.
  int column_dims;
  int64_t column_size[kMaxColumnDims], column_stride[kMaxColumnDims];

  int64_t cols() const { return outer * inner; }
  int64_t size() const { return rows * outer * inner; }
};

// Calls f(logical, memory) for every column.
template <class F>
void for_each_column(const Matrix& w, F&& f) {
  const int64_t cols = w.cols();
  if (w.column_dims == 0) {
    for (int64_t k = 0; k < cols; ++k) f(k, k);
    return;
  }
  int64_t index[kMaxColumnDims] = {};
  int64_t memory = 0;
  for (int64_t k = 0; k < cols; ++k) {
    f(k, memory);
    for (int d = w.column_dims - 1; d >= 0; --d) {
      memory += w.column_stride[d];
      if (++index[d] < w.column_size[d]) break;
      memory -= w.column_size[d] * w.column_stride[d];
      index[d] = 0;
    }
  }
}

}  // namespace gankernels
