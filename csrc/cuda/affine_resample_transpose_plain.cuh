// Affine resampling's transpose where whole pixels were moved, and by the plain filters: every pixel of the
// image asks for the outputs that took it.
#pragma once

#include "affine_resample_cotangent.cuh"

namespace gankernels::affine_resample::cuda {

// The thread's pixel where whole pixels were moved: each place that shows it has one output pixel.
template <class T>
DEVICE void gather_moved(const Transpose& args, const Record<Accumulation<T>>& s,
                         const Block& block) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  // The map is its own inverse but for the order of its axes: each step is 1, -1 or 0.
  const auto u0 = s.u.at(0, 0), v0 = s.v.at(0, 0);
  const int c = s.u.nearest(u0), f = s.v.nearest(v0);
  const int a = s.u.nearest(s.u.at(2, 0)) - c, b = s.u.nearest(s.u.at(0, 2)) - c;
  const int d = s.v.nearest(s.v.at(2, 0)) - f, e = s.v.nearest(s.v.at(0, 2)) - f;
  const int x = block.x(), y = block.y();
  for (int place = 0; place < r.channels; place += kGroup) {
    Acc value[kGroup] = {};
    for (int ky = s.down.first; ky <= s.down.last; ++ky)
      for (int kx = s.across.first; kx <= s.across.last; ++kx) {
        if (!s.across.shows(kx, x) || !s.down.shows(ky, y)) continue;
        const int u = s.across.raw(kx, x) - c, v = s.down.raw(ky, y) - f;
        UNROLL(4)
        for (int k = 0; k < kGroup; ++k)
          if (k < group_size(r, place))
            value[k] +=
                cotangent<T>(args, s.cut, block.sample, place + k, b * u + e * v, a * u + d * v);
      }
    UNROLL(4)
    for (int k = 0; k < kGroup; ++k)
      if (k < group_size(r, place)) put<T>(args, block, place + k, value[k]);
  }
}

// The thread's pixel by a plain filter: of every copy of it, the outputs that may take it there.
template <class T>
DEVICE void gather_near(const Transpose& args, const Record<Accumulation<T>>& s,
                        const Block& block) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const bool nearest = r.filter == Filter::kNearest;
  const int x = block.x(), y = block.y();
  if (x >= width(r.in) || y >= height(r.in)) return;
  const Reach all = pixels_of(r);
  const Reach points{2 * all.low_x, 2 * all.high_x, 2 * all.low_y, 2 * all.high_y};
  for (int place = 0; place < r.channels; place += kGroup) {
    Acc value[kGroup] = {};
    UNROLL(1)
    for (int ky = s.down.first; ky <= s.down.last; ++ky) UNROLL(1)
    for (int kx = s.across.first; kx <= s.across.last; ++kx) {
      if (!s.across.shows(kx, x) || !s.down.shows(ky, y)) continue;
      const int at_x = s.across.raw(kx, x), at_y = s.down.raw(ky, y);
      const Reach near = reach<Acc>(s, static_cast<Acc>(2 * at_x), static_cast<Acc>(2 * at_y),
                                    Acc(2), Acc(2), points);
      UNROLL(1)
      for (int oy = (near.low_y + 1) >> 1; oy <= near.high_y >> 1; ++oy) UNROLL(1)
      for (int ox = (near.low_x + 1) >> 1; ox <= near.high_x >> 1; ++ox) {
        const auto taps = Taps<Acc>::of(s, nearest, ox, oy);
        const int i = at_x - taps.column, j = at_y - taps.row;
        const int last = nearest ? 0 : 1;
        if (i < 0 || j < 0 || i > last || j > last) continue;
        const Acc weight = taps.weight(2 * j + i);
        UNROLL(4)
        for (int k = 0; k < kGroup; ++k)
          if (k < group_size(r, place))
            value[k] += weight * cotangent<T>(args, s.cut, block.sample, place + k, oy, ox);
      }
    }
    UNROLL(4)
    for (int k = 0; k < kGroup; ++k)
      if (k < group_size(r, place)) put<T>(args, block, place + k, value[k]);
  }
}

}  // namespace gankernels::affine_resample::cuda
