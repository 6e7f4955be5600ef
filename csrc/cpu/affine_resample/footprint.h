// The nodes of the doubled plane that a tile of a general map needs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/affine_resample/tiles.h"

namespace gankernels::affine_resample::cpu {

constexpr int64_t kNodes = 1 << 18;  // of a footprint; larger ones are not up-sampled

// Pairs of nodes of a row, or pixels of one.
struct NodeSpan {
  int64_t first = 0, last = 0;
  bool empty() const { return first >= last; }
  int64_t size() const { return last - first; }
  NodeSpan joined(const NodeSpan& other) const {
    if (empty()) return other;
    if (other.empty()) return *this;
    return {std::min(first, other.first), std::max(last, other.last)};
  }
};

// Where a map takes a rectangle of the lattice.
class Parallelogram {
 public:
  struct Point {
    double u, v;
  };

  // Half output pixels [x0, x1], [y0, y1]; positions are `scale` times half input pixels.
  Parallelogram(const Lattice& m, int64_t x0, int64_t x1, int64_t y0, int64_t y1,
                double scale = 1) {
    const auto x = {static_cast<double>(x0), static_cast<double>(x1)};
    const auto y = {static_cast<double>(y0), static_cast<double>(y1)};
    for (int k = 0; k < 4; ++k) {
      const double hx = x.begin()[k == 1 || k == 2], hy = y.begin()[k / 2];
      corner_[k] = {scale * (m.a * hx + m.b * hy + m.c), scale * (m.d * hx + m.e * hy + m.f)};
    }
    low = high = corner_[0];
    for (const Point& p : corner_) {
      low = {std::min(low.u, p.u), std::min(low.v, p.v)};
      high = {std::max(high.u, p.u), std::max(high.v, p.v)};
    }
  }

  // Of what lies between v = top and bottom, the least and the largest u; false where nothing does.
  bool between(double top, double bottom, double* least, double* largest) const {
    *least = std::numeric_limits<double>::infinity(), *largest = -*least;
    for (int k = 0; k < 4; ++k) {
      Point p = corner_[k], q = corner_[(k + 1) % 4];
      if (p.v > q.v) std::swap(p, q);
      if (q.v < top || p.v > bottom) continue;
      const auto along = [&](double where) {
        return p.u + (q.u - p.u) * ((where - p.v) / (q.v - p.v));
      };
      for (const double edge : {p.v < top ? along(top) : p.u, q.v > bottom ? along(bottom) : q.u})
        *least = std::min(*least, edge), *largest = std::max(*largest, edge);
    }
    return *least <= *largest;
  }

  // Of the rectangle around it, `around` wider on either side.
  double area(double around) const {
    return (high.u - low.u + 2 * around) * (high.v - low.v + 2 * around);
  }

  Point low, high;

 private:
  Point corner_[4];
};

// Rows of quads begin a line of the cache apart from each other: a vector of 64 bytes at an even quad
// stays within its line, and rows of any pitch are spread over all sets of the cache.
constexpr int32_t row_pitch(int64_t quads) {
  return static_cast<int32_t>(((quads + kSlack / 4 + 3) / 4 | 1) * 4);
}

// The nodes of the doubled plane that a tile's lattice needs: a rectangle, and of each of its rows
// the span that the parallelogram covers, from an even pair on. Pairs of nodes
// (2 k - 1, 2 k) come of the pixels k - 3 to k + 2.
class TileFootprint {
 public:
  TileFootprint(const Lattice& m, const Rect& tile)
      : shape_(m, 2 * tile.x0 - 5, 2 * tile.x1 + 4, 2 * tile.y0 - 5, 2 * tile.y1 + 4) {
    fits_ = shape_.area(4) < static_cast<double>(kNodes);
    if (!fits_) return;
    u = (floor_of(shape_.low.u) - 1 - 1) / 2 * 2 - 1;
    v = (floor_of(shape_.low.v) - 1 - 1) / 2 * 2 - 1;
    pairs_ = (floor_of(shape_.high.u) + 3 - u) / 2 + 1;
    const int64_t rows = (floor_of(shape_.high.v) + 3 - v) / 2 + 1;
    column = (u + 1) / 2 - 3;
    row = (v + 1) / 2 - 3;
    spans_.reserve(2 * rows);
    for (int64_t k = 0; k < 2 * rows; ++k) spans_.push_back(covered(static_cast<double>(v + k)));
    source_spans_.resize(source_rows());
    for (int64_t k = 0; k < 2 * rows; ++k)
      for (int64_t r = k / 2; r <= k / 2 + 5; ++r)
        source_spans_[r] = source_spans_[r].joined(spans_[k]);
  }

  bool fits() const { return fits_; }
  int64_t pairs() const { return pairs_; }
  int64_t height() const { return static_cast<int64_t>(spans_.size()); }
  int32_t pitch() const { return row_pitch(2 * pairs_); }
  const NodeSpan& span(int64_t k) const { return spans_[k]; }

  // Rows of pixels: the pair of rows of nodes q takes the rows q to q + 5.
  int64_t source_rows() const { return height() / 2 + 5; }
  const NodeSpan& source_span(int64_t r) const { return source_spans_[r]; }

  int64_t u = 0, v = 0;         // the first node, both odd
  int64_t column = 0, row = 0;  // the first pixel

 private:
  // The parallelogram between the rows of nodes next to this one.
  NodeSpan covered(double at) const {
    double low, high;
    if (!shape_.between(at - 1.01, at + 1.01, &low, &high)) return {};
    const int64_t first = (floor_of(low) - 1 - u) / 2, last = (floor_of(high) + 2 - u) / 2 + 1;
    return {std::max<int64_t>(first, 0) / 2 * 2, std::min(last, pairs_)};
  }

  Parallelogram shape_;
  bool fits_;
  int64_t pairs_ = 0;
  std::vector<NodeSpan> spans_, source_spans_;
};

// The pixels that a tile of a plain filter needs, likewise.
class PixelFootprint {
 public:
  PixelFootprint(const Lattice& m, const Rect& tile)
      : shape_(m, 2 * tile.x0, 2 * tile.x1 - 2, 2 * tile.y0, 2 * tile.y1 - 2, 0.5) {
    // What costs more to copy than it saves is not: a pixel is copied in a sixth of the time.
    const auto pixels = static_cast<double>(tile.width() * tile.height() + 64);
    fits_ = shape_.area(2) < std::min(8 * pixels, static_cast<double>(kNodes));
    if (!fits_) return;
    u = (floor_of(shape_.low.u) - 1) & ~int64_t{1};
    v = (floor_of(shape_.low.v) - 1) & ~int64_t{1};
    width = floor_of(shape_.high.u) + 3 - u;
    height = floor_of(shape_.high.v) + 3 - v;
  }

  bool fits() const { return fits_; }
  int32_t pitch() const { return row_pitch(width); }
  NodeSpan span(int64_t k) const {
    const auto at = static_cast<double>(v + k);
    double low, high;
    if (!shape_.between(at - 1.01, at + 1.01, &low, &high)) return {};
    return {std::max<int64_t>(floor_of(low) - 1 - u, 0), std::min(floor_of(high) + 3 - u, width)};
  }

  int64_t u = 0, v = 0;  // the first pixel, both even
  int64_t width = 0, height = 0;

 private:
  Parallelogram shape_;
  bool fits_;
};

}  // namespace gankernels::affine_resample::cpu
