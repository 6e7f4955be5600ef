// Blocks of rows of a plane: where the rows lie in memory, and what is done to them before and
// after the filter.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/elements.h"
#include "cpu/image_filter/sample.h"

namespace gankernels::image_filter::cpu {

using gankernels::cpu::narrow;
using gankernels::cpu::widen;

// Rows of a plane.
template <class T>
struct FilterBlock {
  const FilterSample<T>& sample;
  int64_t plane, offset;  // of the plane in memory
  int64_t first, last;    // rows
};

// Rows of a block: between memory and T, and what is done to them before and after the filter. The
// channels of a channels_last image are one plane, whose pixels are `inner` elements apart.
template <class T>
class FilterRows {
 public:
  FilterRows(const Filter& f, const void* in, void* out, const RowKernels<T>& kernels)
      : f_(f), kernels_(kernels), in_{in, f.dtype}, out_{out, f.dtype} {
    const Layout& l = f.layout;
    const bool channels_last = l.channel_stride == 1 && l.column_stride == f.channels;
    inner = channels_last ? f.channels : 1;
    planes = channels_last ? 1 : f.channels;
    size = l.width * inner;
  }

  void load(const FilterBlock<T>& x, int64_t y, T* to) const {
    if (dense()) return widen(f_.dtype, in_.at(row_offset(x, y)), size, to);
    for_each_pixel(x, y, 0, size,
                   [&](int64_t i, int64_t at) { widen(f_.dtype, in_.at(at), 1, to + i); });
  }

  void store(const FilterBlock<T>& x, int64_t y, int64_t first, int64_t n, const T* from) const {
    const auto out = [&](int64_t at) { return const_cast<void*>(out_.at(at)); };
    if (dense()) return narrow(from, n, f_.dtype, out(row_offset(x, y) + first));
    for_each_pixel(x, y, first, n,
                   [&](int64_t i, int64_t at) { narrow(from + i, 1, f_.dtype, out(at)); });
  }

  void copy_bits(const FilterBlock<T>& x, int64_t y) const {
    const size_t item = item_size(f_.dtype);
    const auto move = [&](int64_t at, size_t bytes) {
      std::memcpy(const_cast<void*>(out_.at(at)), in_.at(at), bytes);
    };
    if (dense()) return move(row_offset(x, y), size * item);
    for_each_pixel(x, y, 0, size, [&](int64_t, int64_t at) { move(at, item); });
  }

  // Below, elements [first, first + n) of a row.

  void cut(const FilterBlock<T>& x, int64_t y, int64_t first, int64_t n, T* row) const {
    if (!x.sample.y.holds(y)) return;
    const int64_t begin = std::max(x.sample.x.first * inner - first, int64_t{0});
    const int64_t end = std::min(x.sample.x.last * inner - first, n);
    if (begin < end) std::fill(row + begin, row + end, T{0});
  }

  void epilogue(const FilterBlock<T>& x, int64_t y, int64_t first, int64_t n, T* row) const {
    if (x.sample.sigma != 0) add_noise(x, y, first, n, row);
    cut(x, y, first, n, row);
  }

  // W and its inverse. A plane of one row, or column, has no border to count twice.
  void scale_border(int64_t y, int64_t first, int64_t n, T* row, T factor) const {
    const int64_t last_row = f_.layout.height - 1, last_column = size - inner;
    if (last_row > 0 && (y == 0 || y == last_row))
      for (int64_t i = 0; i < n; ++i) row[i] *= factor;
    if (last_column == 0) return;
    for (int64_t i = first; i < std::min(inner, first + n); ++i) row[i - first] *= factor;
    for (int64_t i = std::max(last_column, first); i < first + n; ++i) row[i - first] *= factor;
  }

  int64_t inner, planes, size;  // elements of a row

 private:
  bool dense() const { return f_.layout.column_stride == inner; }
  int64_t row_offset(const FilterBlock<T>& x, int64_t y) const {
    return x.offset + y * f_.layout.row_stride;
  }

  // Calls copy(number in the row, offset in memory) for elements [first, first + n) of a row of a
  // single channel.
  template <class F>
  void for_each_pixel(const FilterBlock<T>& x, int64_t y, int64_t first, int64_t n,
                      F&& copy) const {
    for (int64_t i = 0; i < n; ++i)
      copy(i, row_offset(x, y) + (first + i) * f_.layout.column_stride);
  }

  void add_noise(const FilterBlock<T>& x, int64_t y, int64_t first, int64_t n, T* row) const {
    for (int64_t k = 0; k < inner; ++k) {
      const int64_t begin = (first - k + inner - 1) / inner;  // pixels
      const int64_t end = (first + n - k + inner - 1) / inner;
      const int64_t number = ((x.plane + k) * f_.layout.height + y) * f_.layout.width + begin;
      if (begin < end)
        kernels_.add_noise(static_cast<T>(x.sample.sigma), x.sample.seed, number, end - begin,
                           inner, row + begin * inner + k - first);
    }
  }

  const Filter& f_;
  const RowKernels<T>& kernels_;
  gankernels::cpu::Storage in_, out_;
};

}  // namespace gankernels::image_filter::cpu
