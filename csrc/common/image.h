// Images in memory, and what they show beyond their border.
#pragma once

#include <cstdint>

namespace gankernels {

// Where the pixels of a plane lie: channels, rows, columns; strides in elements.
struct Layout {
  int64_t height, width;
  int64_t sample_stride, channel_stride, row_stride, column_stride;
};

// The pixel that a position beyond the border shows, reflected about the centers of border pixels.
template <class Index>
constexpr Index reflected(Index i, Index size) {
  if (i >= 0 && i < size) return i;
  if (size == 1) return 0;
  const Index period = 2 * (size - 1);
  i %= period;
  if (i < 0) i += period;
  return i < size ? i : period - i;
}

}  // namespace gankernels
