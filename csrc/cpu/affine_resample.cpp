// The CPU kernels of affine resampling. An output is cut into tiles by its shape alone. A tile's footprint
// in the doubled plane is up-sampled into the cache, row by row the span that the turned tile covers;
// lattice rows are interpolated, filtered along x into a ring of 12 rows, and along y out of it. The
// transpose goes the same way back, and adds to the image within one thread. Deterministic, whatever the
// number of threads.
//
// Bytes: forward reads the footprint of each tile, about twice the image, and writes the output; the
// transpose reads the output's size and writes the image's.

#include "affine_resample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

#include "common/parallel.h"
#include "cpu/elements.h"
#include "cpu/simd/scalars.h"
#include "cpu/simd/targets.h"

namespace gankernels::affine_resample::cpu {
namespace {

using gankernels::cpu::narrow;
using gankernels::cpu::Slot;
using gankernels::cpu::thread_scratch;
using gankernels::cpu::widen;

constexpr int64_t kSlack = 16;       // numbers behind a row that a vector may touch
constexpr double kSteepest = 8;      // steps of maps whose filters are kept as tables
constexpr int64_t kNodes = 1 << 18;  // of a footprint; larger ones are not up-sampled

Lattice lattice_of(const Resample& r, int64_t sample) {
  if (!r.maps) return Lattice::of(1, 0, 0, 0, 1, 0, r.in, r.out);
  const double* m = r.maps + 6 * sample;
  const Lattice given = Lattice::of(m[0], m[1], m[2], m[3], m[4], m[5], r.in, r.out);
  return given.usable(r.out) ? given : Lattice::near(m[0], m[1], m[2], m[3], m[4], m[5], r);
}

Bounds bounds_of(const Resample& r, int first, int64_t size) {
  if (!r.margins) return Bounds::everything();
  return Bounds::of(r.margins[first], r.margins[first + 1], size);
}

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
  Plane turned() const {
    Plane p = *this;
    std::swap(p.row_stride, p.column_stride);
    return p;
  }
};

template <class S>
void copy_pixels(const Plane<S>& from, int64_t row, const int64_t* column, int64_t n,
                 const Plane<S>& to, int64_t to_row, int64_t to_column) {
  for (int64_t c = 0; c < from.channels; ++c) {
    const S* p = from.data + from.channel[c] + row * from.row_stride;
    S* q = const_cast<S*>(to.data) + to.channel[c] + to_row * to.row_stride +
           to_column * to.column_stride;
    for (int64_t i = 0; i < n; ++i) q[i * to.column_stride] = p[column[i]];
  }
}

// The pixel that is seen at a position, or -1 for none.
int64_t padded(int64_t i, int64_t size, Padding padding) {
  if (padding == Padding::kReflection) return reflected(i, size);
  if (i >= 0 && i < size) return i;
  return padding == Padding::kZeros ? -1 : i < 0 ? 0 : size - 1;
}

struct Line {
  std::vector<int64_t> at;
  bool none = false;  // whether some show nothing
};
struct Lines {
  Line x, y;
};

// The pixels that a point takes along one axis, and their weights: up-sampling and linear
// interpolation in one.
template <class T>
struct Window {
  static int64_t base(double u) { return (floor_of(u) >> 1) - 3; }

  explicit Window(double u, const Bounds& bounds = Bounds::everything()) : first(base(u)) {
    const int64_t node = floor_of(u);
    const double share = u - static_cast<double>(node);
    const double nearer = node >= bounds.first && node <= bounds.last ? 1 - share : 0;
    const double farther = node + 1 >= bounds.first && node + 1 <= bounds.last ? share : 0;
    for (int i = 0; i < 7; ++i) {
      const int64_t j = node + 5 - 2 * (first + i);
      const bool here = first + i >= bounds.low && first + i <= bounds.high;
      weight[i] = here ? static_cast<T>(2 * (nearer * tap(j) + farther * tap(j + 1))) : T(0);
    }
  }
  Window(double u, int64_t size, const Bounds& bounds) : Window(u, bounds) {
    for (int i = 0; i < 7; ++i) at[i] = reflected(first + i, size);
  }

  // The weights are at + share * slope, by the parity of the node.
  struct Table {
    double at[7], slope[7];
  };
  static constexpr Table table(int parity) {
    Table t{};
    for (int i = 0; i < 7; ++i) {
      const int j = parity + 5 - 2 * (i - 3);
      t.at[i] = 2 * tap(j);
      t.slope[i] = 2 * (tap(j + 1) - tap(j));
    }
    return t;
  }
  static constexpr Table kTables[2] = {table(0), table(1)};

  int64_t first, at[7];
  T weight[7];

 private:
  static constexpr double tap(int64_t j) { return j >= 0 && j < kTaps ? kSymlet[j] : 0; }
};

// The composite filter along one axis that goes to an axis: out[i] = sum_k w[i][k] z[first + start + k].
template <class T>
struct Axis {
  Axis(double step, double offset, int64_t begin, int64_t end) {
    // The windows of 12 points, 7 weights each; of the points the lowest is the first or the last.
    const auto at = [&](int64_t i, int j) {
      return step * static_cast<double>(2 * i - 5 + j) + offset;
    };
    first = std::numeric_limits<int64_t>::max();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t one = Window<double>::base(at(i, 0)), other = Window<double>::base(at(i, 11));
      const int64_t low = std::min(one, other);
      starts.push_back(low);
      taps = std::max(taps, static_cast<int>(std::max(one, other) + 7 - low));
      first = std::min(first, low);
    }
    table.resize(starts.size() * taps);
    std::vector<double> sum(taps);
    for (size_t n = 0; n < starts.size(); ++n) {
      std::fill(sum.begin(), sum.end(), 0);
      for (int j = 0; j < kTaps; ++j) {
        const double u = at(begin + static_cast<int64_t>(n), j);
        const int64_t node = floor_of(u);
        const double share = u - static_cast<double>(node);
        const Window<double>::Table& t = Window<double>::kTables[node & 1];
        double* to = sum.data() + (Window<double>::base(u) - starts[n]);
        for (int k = 0; k < 7; ++k) to[k] += kSymlet[j] * (t.at[k] + share * t.slope[k]);
      }
      std::copy(sum.begin(), sum.end(), table.begin() + n * taps);
      starts[n] -= first;
      span = std::max(span, starts[n] + taps);
    }
  }

  int64_t start(int64_t i) const { return starts[i]; }
  const T* weights(int64_t i) const { return table.data() + i * taps; }

  int taps = 0;
  int64_t first, span = 0;  // of the image's axis, as if it went on beyond the border
  std::vector<int64_t> starts;
  std::vector<T> table;
};

// Pairs of nodes of a row.
struct Span {
  int64_t first = 0, last = 0;
  bool empty() const { return first >= last; }
  int64_t size() const { return last - first; }
  Span joined(const Span& other) const {
    if (empty()) return other;
    if (other.empty()) return *this;
    return {std::min(first, other.first), std::max(last, other.last)};
  }
};

// The nodes of the doubled plane that a tile's lattice needs: a rectangle, and of each of its rows the
// span that the parallelogram covers, one node wider on either side. Pairs of nodes (2 k - 1, 2 k) come
// of the pixels k - 3 to k + 2.
class Footprint {
 public:
  Footprint(const Lattice& m, const Rect& tile) {
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
  const Span& span(int64_t k) const { return spans_[k]; }

  // Rows of pixels: the pair of rows of nodes q takes the rows q to q + 5.
  int64_t source_rows() const { return height() / 2 + 5; }
  Span source_span(int64_t r) const {
    Span all;
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
  Span covered(double at) const {
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
  std::vector<Span> spans_;
};

// The passes over images of one stored type.
struct ResampleKernels {
  void (*forward)(const Forward&);
  void (*transpose)(const Transpose&);
};

// Vectors wider than the instruction set's are passed to functions that are inlined.
#pragma GCC diagnostic ignored "-Wpsabi"
#define GANKERNELS_KERNELS "cpu/affine_resample.inc"
#include "cpu/simd/each_target.inc"

// Calls f with a value of the type that is stored; memory is the one thing that can be missing.
template <class F>
const char* run_stored(DType dtype, F&& f) {
  try {
    visit_dtype(dtype, f);
    return nullptr;
  } catch (const std::bad_alloc&) {
    return "out of memory";
  }
}

}  // namespace

const char* forward(const Forward& args) {
  return run_stored(args.resample.dtype,
                    [&]<class S>(S) { GANKERNELS_DISPATCH(kKernels<S>).forward(args); });
}

const char* transpose(const Transpose& args) {
  return run_stored(args.resample.dtype,
                    [&]<class S>(S) { GANKERNELS_DISPATCH(kKernels<S>).transpose(args); });
}

}  // namespace gankernels::affine_resample::cpu
