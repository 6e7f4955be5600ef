// How a call is cut into samples, groups of four channels and tiles; where their pixels lie.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "affine_resample.h"

namespace gankernels::affine_resample::cpu {

constexpr int64_t kSlack = 16;  // numbers behind a row that a vector may touch

// A rectangle of output pixels.
struct Rect {
  int64_t x0, x1, y0, y1;
  int64_t width() const { return x1 - x0; }
  int64_t height() const { return y1 - y0; }
};

// The tasks of a call: samples, groups of four channels, tiles.
struct Tiles {
  static constexpr int64_t kWidth = 64, kHeight = 64;

  explicit Tiles(const Resample& r)
      : threads(r.threads),
        size{r.out.width, r.out.height},
        across((r.out.width + kWidth - 1) / kWidth),
        down((r.out.height + kHeight - 1) / kHeight),
        groups((r.channels + 3) / 4),
        batch(r.batch) {}

  int64_t each() const { return across * down; }
  int64_t count() const { return each() * groups * batch; }
  int64_t sample(int64_t task) const { return task / each() / groups; }
  int64_t group(int64_t task) const { return task / each() % groups; }
  Rect tile(int64_t task) const {
    const int64_t x = task % each() % across * kWidth, y = task % each() / across * kHeight;
    return {x, std::min(x + kWidth, size[0]), y, std::min(y + kHeight, size[1])};
  }

  int threads;
  int64_t size[2], across, down, groups, batch;
};

// Up to four channels of one sample.
template <class S>
struct Plane {
  const S* data;
  int64_t channels, channel[4], row_stride, column_stride;

  S at(int64_t c, int64_t row, int64_t column) const {
    return data[channel[c] + row * row_stride + column * column_stride];
  }
  Plane transposed() const {
    Plane p = *this;
    std::swap(p.row_stride, p.column_stride);
    return p;
  }
};

template <class S>
Plane<S> plane_of(const Resample& r, const Layout& layout, const void* data, int64_t sample,
                  int64_t group) {
  Plane<S> p{static_cast<const S*>(data) + sample * layout.sample_stride,
             std::min<int64_t>(4, r.channels - 4 * group),
             {},
             layout.row_stride,
             layout.column_stride};
  for (int c = 0; c < p.channels; ++c)
    p.channel[c] = r.epilogue.channel(4 * group + c) * layout.channel_stride;
  return p;
}

// The pixel that is seen at a position, or -1 for none.
inline int64_t padded(int64_t i, int64_t size, Padding padding) {
  if (padding == Padding::kReflection) return reflected(i, size);
  if (i >= 0 && i < size) return i;
  return padding == Padding::kZeros ? -1 : i < 0 ? 0 : size - 1;
}

// The pixels of an axis of an image that successive positions show, a pixel apart: those in
// [begin, end). The others show nothing, and have the pixel nearest to them.
struct SeenPixels {
  SeenPixels(int64_t first, int64_t step, int64_t count, int64_t size, Padding padding)
      : at(count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t raw = first + i * step;
      at[i] = padding == Padding::kReflection ? reflected(raw, size)
                                              : std::clamp<int64_t>(raw, 0, size - 1);
    }
    begin = 0, end = count;
    if (padding != Padding::kZeros) return;
    const int64_t last = first + (count - 1) * step;
    begin = std::clamp<int64_t>(step > 0 ? -first : first - (size - 1), 0, count);
    end = count - std::clamp<int64_t>(step > 0 ? last - (size - 1) : -last, 0, count - begin);
  }

  bool seen(int64_t i) const { return i >= begin && i < end; }

  std::vector<int64_t> at;
  int64_t begin, end;
};

inline Bounds bounds_of(const Resample& r, int first, int64_t size) {
  if (!r.margins) return Bounds::everything();
  return Bounds::of(r.margins[first], r.margins[first + 1], size);
}

}  // namespace gankernels::affine_resample::cpu
