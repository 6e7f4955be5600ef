// The numbers of one sample: its gains as factors of the cascade, and its epilogue.
#pragma once

#include <cstdint>

#include "cpu/image_filter/row_kernels.h"

namespace gankernels::image_filter::cpu {

// The part of an axis that cutout takes: [first, last).
struct AxisCut {
  int64_t first = 0, last = 0;

  // Along one axis it is that of a plane with one pixel in the other, in the middle of the box.
  static AxisCut of(double center, double box_size, int64_t size) {
    const auto taken = [&](int64_t i) { return !kept(center, 0.5, box_size, i, 0, size, 1); };
    AxisCut cut;
    while (cut.first < size && !taken(cut.first)) ++cut.first;
    cut.last = cut.first;
    while (cut.last < size && taken(cut.last)) ++cut.last;
    return cut;
  }
  bool holds(int64_t i) const { return i >= first && i < last; }
};

// One sample's numbers.
template <class T>
struct FilterSample {
  bool copied;
  Mix<T> mix;
  double sigma = 0;
  int64_t seed = 0;
  AxisCut x, y;

  FilterSample(const Filter& f, int64_t b, bool transpose) {
    const T* g = static_cast<const T*>(f.gains) + 4 * b;
    copied = g[0] == 1 && g[1] == 1 && g[2] == 1 && g[3] == 1;
    mix = {g[3], g[2] - g[3], g[1] - g[2], g[0] - g[1]};
    const Epilogue& e = f.epilogue;
    if (e.offsets && e.sigma && !transpose)
      sigma = static_cast<const T*>(e.sigma)[b], seed = e.seed[b];
    if (e.box) {
      x = AxisCut::of(e.box[3 * b], e.box[3 * b + 2], f.layout.width);
      y = AxisCut::of(e.box[3 * b + 1], e.box[3 * b + 2], f.layout.height);
    }
  }
};

}  // namespace gankernels::image_filter::cpu
