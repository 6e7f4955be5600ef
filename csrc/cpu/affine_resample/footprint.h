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

// Pairs of nodes of a row.
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

// The nodes of the doubled plane that a tile's lattice needs: a rectangle, and of each of its rows
// the span that the parallelogram covers, one node wider on either side. Pairs of nodes
// (2 k - 1, 2 k) come of the pixels k - 3 to k + 2.
class TileFootprint {
 public:
  TileFootprint(const Lattice& m, const Rect& tile) {
    const double x[2] = {static_cast<double>(2 * tile.x0 - 5),
                         static_cast<double>(2 * tile.x1 + 4)};
    const double y[2] = {static_cast<double>(2 * tile.y0 - 5),
                         static_cast<double>(2 * tile.y1 + 4)};
    for (int k = 0; k < 4; ++k) {
      const double hx = x[k == 1 || k == 2], hy = y[k / 2];  // around the parallelogram
      corner_[k] = {m.a * hx + m.b * hy + m.c, m.d * hx + m.e * hy + m.f};
    }
    Point low = corner_[0], high = corner_[0];
    for (const Point& p : corner_) {
      low = {std::min(low.u, p.u), std::min(low.v, p.v)};
      high = {std::max(high.u, p.u), std::max(high.v, p.v)};
    }
    fits_ = (high.u - low.u + 8) * (high.v - low.v + 8) < static_cast<double>(kNodes);
    if (!fits_) return;
    u = (floor_of(low.u) - 1 - 1) / 2 * 2 - 1;
    v = (floor_of(low.v) - 1 - 1) / 2 * 2 - 1;
    pairs_ = (floor_of(high.u) + 3 - u) / 2 + 1;
    const int64_t rows = (floor_of(high.v) + 3 - v) / 2 + 1;
    column = (u + 1) / 2 - 3;
    row = (v + 1) / 2 - 3;
    spans_.reserve(2 * rows);
    for (int64_t k = 0; k < 2 * rows; ++k) spans_.push_back(covered(static_cast<double>(v + k)));
  }

  bool fits() const { return fits_; }
  int64_t pairs() const { return pairs_; }
  int64_t height() const { return static_cast<int64_t>(spans_.size()); }
  int32_t pitch() const { return static_cast<int32_t>(2 * pairs_ + kSlack / 4); }
  const NodeSpan& span(int64_t k) const { return spans_[k]; }

  // Rows of pixels: the pair of rows of nodes q takes the rows q to q + 5.
  int64_t source_rows() const { return height() / 2 + 5; }
  NodeSpan source_span(int64_t r) const {
    NodeSpan all;
    for (int64_t k = std::max<int64_t>(0, 2 * r - 10); k < std::min(2 * r + 2, height()); ++k)
      all = all.joined(spans_[k]);
    return all;
  }

  int64_t u = 0, v = 0;         // the first node, both odd
  int64_t column = 0, row = 0;  // the first pixel

 private:
  struct Point {
    double u, v;
  };

  // The parallelogram between the rows of nodes next to this one.
  NodeSpan covered(double at) const {
    const double top = at - 1.01, bottom = at + 1.01;
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (int k = 0; k < 4; ++k) {
      Point p = corner_[k], q = corner_[(k + 1) % 4];
      if (p.v > q.v) std::swap(p, q);
      if (q.v < top || p.v > bottom) continue;
      const auto along = [&](double where) {
        return p.u + (q.u - p.u) * ((where - p.v) / (q.v - p.v));
      };
      for (const double edge : {p.v < top ? along(top) : p.u, q.v > bottom ? along(bottom) : q.u})
        low = std::min(low, edge), high = std::max(high, edge);
    }
    if (low > high) return {};
    const int64_t first = (floor_of(low) - 1 - u) / 2, last = (floor_of(high) + 2 - u) / 2 + 1;
    return {std::max<int64_t>(first, 0), std::min(last, pairs_)};
  }

  Point corner_[4];
  bool fits_;
  int64_t pairs_ = 0;
  std::vector<NodeSpan> spans_;
};

}  // namespace gankernels::affine_resample::cpu
