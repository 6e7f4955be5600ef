// The kernels of affine resampling; affine_resample.cu launches them. A block is a tile of 16 x 16 pixels
// of a sample, of the output or, in the transpose, of the image; a thread is a pixel. All sums are made in
// a fixed order, without atomics.
#pragma once

#include <algorithm>
#include <limits>

#include "affine_resample.h"
#include "common/platform.h"
#include "common/reduce.cuh"

namespace gankernels::affine_resample::cuda {

constexpr int kTile = 16;
constexpr int kPoints = 2 * kTile + 10;  // of the lattice, along an axis of a tile
constexpr int kNodes = kPoints * kPoints;
constexpr int kGroup = 4;  // channels that end together
constexpr int kResults = kGroup * kThreads;
constexpr int kPitch = kTile + 1;  // of rows of a tile that are read along columns
static_assert(kTile * kTile == kThreads);

// The largest side of what a tile needs of the doubled plane, or of the lattice in the transpose, that
// is made in shared memory; and the memory of one channel: that plane, and half of it on the way there.
template <class Acc>
constexpr int kSide = sizeof(Acc) == 4 ? 80 : 40;
template <class Acc>
constexpr int kHalf = (kSide<Acc> / 2 + 6) * kSide<Acc>;
template <class Acc>
constexpr int kMemory = kSide<Acc> * kSide<Acc> + std::max(kHalf<Acc>, kPoints*(kPoints + kTile));

constexpr int least(int a, int b) {
  return a < b ? a : b;
}
constexpr double magnitude(double x) {
  return x < 0 ? -x : x;
}
// Positions are counted by 32 bits: see Lattice::near.
constexpr int floor_to(double x) {
  const auto i = static_cast<int>(x);
  return i - (x < i);
}
constexpr int width(const Layout& l) {
  return static_cast<int>(l.width);
}
constexpr int height(const Layout& l) {
  return static_cast<int>(l.height);
}
// Halves to even.
constexpr int nearest_of(double x) {
  const int low = floor_to(x);
  const double share = x - static_cast<double>(low);
  return low + (share > 0.5 || (share == 0.5 && (low & 1)));
}
// Of an output pixel in the image, in pixels.
constexpr double position(double a, double b, double c, int x, int y) {
  return (a * 2 * static_cast<double>(x) + b * 2 * static_cast<double>(y) + c) / 2;
}
template <class Acc>
constexpr Acc not_a_number() {
  return std::numeric_limits<Acc>::quiet_NaN();
}

template <class Acc, int j>
constexpr Acc kTap = Acc(kSymlet[j]);

// A tap. With a constant index, as in unrolled loops, it is a constant; an array
// would be one in local memory.
template <class Acc>
DEVICE Acc symlet(int j) {
  switch (j) {
    case 0:
      return kTap<Acc, 0>;
    case 1:
      return kTap<Acc, 1>;
    case 2:
      return kTap<Acc, 2>;
    case 3:
      return kTap<Acc, 3>;
    case 4:
      return kTap<Acc, 4>;
    case 5:
      return kTap<Acc, 5>;
    case 6:
      return kTap<Acc, 6>;
    case 7:
      return kTap<Acc, 7>;
    case 8:
      return kTap<Acc, 8>;
    case 9:
      return kTap<Acc, 9>;
    case 10:
      return kTap<Acc, 10>;
    default:
      return kTap<Acc, 11>;
  }
}

// symlet(2 n + odd), 0 beyond the filter; n need not be a constant.
template <class Acc>
DEVICE Acc one_of(int n, bool odd) {
  Acc found = 0;
  UNROLL(6)
  for (int k = 0; k < 6; ++k)
    if (k == n) found = odd ? symlet<Acc>(2 * k + 1) : symlet<Acc>(2 * k);
  return found;
}

// --- the block's tile and sample

struct Block {
  int sample, x0, y0;  // the tile's first pixel

  DEVICE static Block of(const Layout& tiled) {
    const int across = (width(tiled) + kTile - 1) / kTile;
    const int each = across * ((height(tiled) + kTile - 1) / kTile);
    const int tile = block_id() % each;
    return {block_id() / each, tile % across * kTile, tile / across * kTile};
  }
  DEVICE int x() const { return x0 + thread_id() % kTile; }
  DEVICE int y() const { return y0 + thread_id() / kTile; }
};

DEVICE Lattice lattice_as_given(const Resample& r, int sample) {
  if (!r.maps) return Lattice::of(1, 0, 0, 0, 1, 0, r.in, r.out);
  const double* m = r.maps + 6 * sample;
  return Lattice::of(load(m), load(m + 1), load(m + 2), load(m + 3), load(m + 4), load(m + 5), r.in,
                     r.out);
}
// The same, of far maps brought near.
DEVICE Lattice lattice_of(const Resample& r, int sample) {
  const Lattice given = lattice_as_given(r, sample);
  if (given.usable(r.out)) return given;
  const double* m = r.maps + 6 * sample;
  return Lattice::near(load(m), load(m + 1), load(m + 2), load(m + 3), load(m + 4), load(m + 5), r);
}

// Bounds, as far as positions can be counted.
struct Range {
  int first, last, low, high;
};
constexpr Range everywhere() {
  constexpr int kFar = 1 << 30;
  return {-kFar, kFar, -kFar, kFar};
}
DEVICE Range range_of(const Resample& r, int axis) {
  if (!r.margins) return everywhere();
  const Bounds b = Bounds::of(load(r.margins + 2 * axis), load(r.margins + 2 * axis + 1),
                              axis ? r.in.height : r.in.width);
  return {static_cast<int>(b.first), static_cast<int>(b.last), static_cast<int>(b.low),
          static_cast<int>(b.high)};
}

DEVICE int64_t offset_of(const Layout& l, int sample, int64_t channel, int y, int x) {
  return sample * l.sample_stride + channel * l.channel_stride + y * l.row_stride +
         x * l.column_stride;
}

// The pixel that is seen at a position, or -1 for none.
DEVICE int padded(int i, int size, Padding padding) {
  if (padding == Padding::kReflection) return reflected(i, size);
  if (i >= 0 && i < size) return i;
  return padding == Padding::kZeros ? -1 : i < 0 ? 0 : size - 1;
}

// --- the end of the pass

// How many channels the group has whose first place is this one.
DEVICE int group_size(const Resample& r, int place) {
  return static_cast<int>(r.channels - place < kGroup ? r.channels - place : kGroup);
}

DEVICE bool is_kept(const Resample& r, int sample, int y, int x) {
  if (!r.epilogue.box) return true;
  const double* box = r.epilogue.box + 3 * sample;
  return kept(load(box), load(box + 1), load(box + 2), x, y, r.out.width, r.out.height);
}

// An element of the color matrix, or of its offset.
template <class Acc>
DEVICE Acc color_at(const Epilogue& e, int sample, int row, int column) {
  const int n = e.color_count;
  return load(static_cast<const Acc*>(e.matrix) + (sample * n + row) * (n + 1) + column);
}

template <class T>
DEVICE void finish(const Forward& args, int sample, int y, int x, int place,
                   Accumulation<T>* value) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Epilogue& e = r.epilogue;
  const int count = group_size(r, place);
  if (e.matrix && place == 0) {
    Acc mixed[3];
    bool identity = true;
    UNROLL(3)
    for (int i = 0; i < 3; ++i) {
      mixed[i] = value[i];
      if (i >= e.color_count) continue;
      mixed[i] = e.offsets ? color_at<Acc>(e, sample, i, e.color_count) : Acc(0);
      identity &= mixed[i] == 0;
      UNROLL(3)
      for (int j = 0; j < 3; ++j) {
        if (j >= e.color_count) continue;
        const Acc factor = color_at<Acc>(e, sample, i, j);
        identity &= factor == Acc(i == j);
        mixed[i] += factor * value[j];
      }
    }
    UNROLL(3)
    for (int i = 0; i < 3; ++i)
      if (!identity) value[i] = mixed[i];
  }
  const bool keep = is_kept(r, sample, y, x);
  UNROLL(4)
  for (int k = 0; k < kGroup; ++k) {
    if (k >= count) continue;
    const int64_t channel = e.channel(place + k);
    const Acc sigma =
        e.sigma && e.offsets ? load(static_cast<const Acc*>(e.sigma) + sample) : Acc(0);
    if (sigma != 0) {
      const int64_t element = (channel * r.out.height + y) * r.out.width + x;
      value[k] += sigma * static_cast<Acc>(normal_noise(load(e.seed + sample), element));
    }
    store(static_cast<T*>(args.out) + offset_of(r.out, sample, channel, y, x),
          narrow<T>(keep ? value[k] : Acc(0)));
  }
}

// --- positions

// Where the points of a tile's lattice lie: u(i, j) = column[i] + row[j], whole nodes and shares apart,
// so that a float is exact enough in an image of any size.
template <class Acc>
struct Positions {
  SharedArray<int> whole;  // u of columns, u of rows, v of columns, v of rows
  SharedArray<Acc> share;

  // All threads must call it; a barrier has to follow.
  DEVICE void fill(const Lattice& m, int hx, int hy) const {
    for (int k = thread_id(); k < 4 * kPoints; k += kThreads) {
      const int axis = k / kPoints, n = k % kPoints;
      const auto first_x = static_cast<double>(hx), first_y = static_cast<double>(hy);
      const bool row = axis % 2;  // a row, or a column
      const double step = axis < 2 ? (row ? m.b : m.a) : row ? m.e : m.d;
      double at = step * n;
      if (axis == 1) at += m.a * first_x + m.b * first_y + m.c;
      if (axis == 3) at += m.d * first_x + m.e * first_y + m.f;
      const int node = floor_to(at);
      whole[k] = node;
      share[k] = static_cast<Acc>(at - static_cast<double>(node));
    }
  }

  struct Point {
    int u, v;
    Acc share_u, share_v;
  };
  DEVICE Point at(int i, int j) const {
    Point p{whole[i] + whole[kPoints + j], whole[2 * kPoints + i] + whole[3 * kPoints + j],
            share[i] + share[kPoints + j], share[2 * kPoints + i] + share[3 * kPoints + j]};
    if (p.share_u >= 1) ++p.u, p.share_u -= 1;
    if (p.share_v >= 1) ++p.v, p.share_v -= 1;
    return p;
  }

  // One coordinate, u or v, of the points of a column or a row: of a map that takes axes to axes.
  struct Node {
    int at;
    Acc share;
  };
  DEVICE Node along(int axis, bool swapped, int i) const {
    const int own = 2 * axis + ((axis == 1) != swapped), other = own ^ 1;
    Node n{whole[own * kPoints + i] + whole[other * kPoints],
           share[own * kPoints + i] + share[other * kPoints]};
    if (n.share >= 1) ++n.at, n.share -= 1;
    return n;
  }
};

// The seven pixels that a point takes along one axis, from `first` on, and their weights.
template <class Acc>
struct Window {
  int first, low, high;
  Acc nearer, farther;
  bool odd;

  DEVICE static Window of(int node, Acc share, const Range& b) {
    return {(node >> 1) - 3,
            b.low,
            b.high,
            node >= b.first && node <= b.last ? 1 - share : Acc(0),
            node + 1 >= b.first && node + 1 <= b.last ? share : Acc(0),
            (node & 1) != 0};
  }
  DEVICE Acc weight(int i) const {
    if (first + i < low || first + i > high) return 0;
    const Acc near_tap = odd ? one_of<Acc>(6 - i, false) : one_of<Acc>(5 - i, true);
    return 2 * (nearer * near_tap + farther * one_of<Acc>(6 - i, odd));
  }
};

// A rectangle of nodes, or of lattice points: `first` is odd along both axes, the sides are even.
struct Box {
  int u, v, width, height;

  // The least that holds [low, high] along both axes.
  DEVICE static Box around(int low_u, int high_u, int low_v, int high_v) {
    Box b{low_u - 1 - (low_u & 1 ? 1 : 0), low_v - 1 - (low_v & 1 ? 1 : 0), 0, 0};
    b.width = (high_u - b.u + 2) / 2 * 2;
    b.height = (high_v - b.v + 2) / 2 * 2;
    return b;
  }
  DEVICE bool fits(int side) const { return width <= side && height <= side; }
};

// A box of the plane that is twice as dense as `pixel(y, x)`, into memory[0 ...): filtered, times `gain` along
// either axis, and zero outside of the ranges. What comes behind is used on the way. All threads must call it.
template <class Acc, class Pixel>
DEVICE void upsample(const Box& box, const Range& bx, const Range& by, Acc gain,
                     SharedArray<Acc> memory, const Pixel& pixel) {
  constexpr int kLines = kSide<Acc> * kSide<Acc>;  // where the rows begin
  const int wide = box.width, high = box.height;
  const int columns = wide / 2 + 5, rows = high / 2 + 5;
  // Nodes 2 q - 1 and 2 q take the pixels q - 3 to q + 2.
  const int column = (box.u + 1) / 2 - 3, row = (box.v + 1) / 2 - 3;
  for (int k = thread_id(); k < rows * columns; k += kThreads)
    memory[k] = pixel(row + k / columns, column + k % columns);
  sync_threads();
  for (int k = thread_id(); k < rows * wide; k += kThreads) {
    const int y = k / wide, u = k % wide;
    Acc sum = 0;
    UNROLL(6)
    for (int m = 0; m < 6; ++m)
      sum += (u % 2 ? symlet<Acc>(11 - 2 * m) : symlet<Acc>(10 - 2 * m)) *
             memory[y * columns + u / 2 + m];
    memory[kLines + k] = box.u + u >= bx.first && box.u + u <= bx.last ? gain * sum : Acc(0);
  }
  sync_threads();
  for (int k = thread_id(); k < high * wide; k += kThreads) {
    const int v = k / wide, u = k % wide;
    Acc sum = 0;
    UNROLL(6)
    for (int m = 0; m < 6; ++m)
      sum += (v % 2 ? symlet<Acc>(11 - 2 * m) : symlet<Acc>(10 - 2 * m)) *
             memory[kLines + (v / 2 + m) * wide + u];
    memory[k] = box.v + v >= by.first && box.v + v <= by.last ? gain * sum : Acc(0);
  }
  sync_threads();
}

// --- axis by axis

// The taps, with a zero on either side.
constexpr int kPadded = kTaps + 2;
template <class Acc>
DEVICE void fill_taps(SharedArray<Acc> taps) {
  const int k = thread_id();
  if (k < kPadded) taps[k] = one_of<Acc>((k - 1) >> 1, !(k & 1));
}

// What output n of a tile takes of pixel p along an axis of the image, where the map takes axes to
// axes: the three steps of the filter in one.
template <class Acc>
DEVICE Acc weight_of(const Positions<Acc>& positions, SharedArray<Acc> taps, int axis, bool swapped,
                     int n, int p) {
  Acc sum = 0;
  UNROLL(12)
  for (int j = 0; j < kTaps; ++j) {
    const auto node = positions.along(axis, swapped, 2 * n + j);
    const int tap = node.at + 6 - 2 * p;  // in `taps`
    if (tap < 0 || tap >= kPadded - 1) continue;
    sum += symlet<Acc>(j) * ((1 - node.share) * taps[tap] + node.share * taps[tap + 1]);
  }
  return 2 * sum;
}

// --- forward

template <class T>
DEVICE Accumulation<T> pixel(const Forward& args, int sample, int64_t channel, int y, int x) {
  return widen(
      load(static_cast<const T*>(args.image) + offset_of(args.resample.in, sample, channel, y, x)));
}

// What the points of a tile are interpolated from.
template <class Acc>
DEVICE Box box_of(const Positions<Acc>& positions) {
  int low_u = INT32_MAX, high_u = INT32_MIN, low_v = INT32_MAX, high_v = INT32_MIN;
  for (int k = 0; k < 4; ++k) {
    const auto p = positions.at(k % 2 * (kPoints - 1), k / 2 * (kPoints - 1));
    low_u = p.u < low_u ? p.u : low_u, high_u = p.u > high_u ? p.u : high_u;
    low_v = p.v < low_v ? p.v : low_v, high_v = p.v > high_v ? p.v : high_v;
  }
  // A node more on either side: shares are rounded, and a point next to a node may lie on either.
  return Box::around(low_u - 1, high_u + 2, low_v - 1, high_v + 2);
}

// S at a point, of the nodes in memory.
template <class Acc>
DEVICE Acc interpolated(const typename Positions<Acc>::Point& p, const Box& box,
                        SharedArray<Acc> memory) {
  const int wide = box.width;
  const int at = static_cast<int>(p.v - box.v) * wide + static_cast<int>(p.u - box.u);
  const Acc above = memory[at] + p.share_u * (memory[at + 1] - memory[at]);
  const Acc below = memory[at + wide] + p.share_u * (memory[at + wide + 1] - memory[at + wide]);
  return above + p.share_v * (below - above);
}

// S at a point, of its 49 pixels in global memory.
template <class T>
DEVICE Accumulation<T> gathered(const Forward& args,
                                const typename Positions<Accumulation<T>>::Point& p,
                                const Range& bx, const Range& by, int sample, int64_t channel) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const auto x = Window<Acc>::of(p.u, p.share_u, bx), y = Window<Acc>::of(p.v, p.share_v, by);
  Acc sum = 0;
  UNROLL(1)
  for (int j = 0; j < 7; ++j) {
    const int row = reflected(y.first + j, height(r.in));
    Acc line = 0;
    UNROLL(7)
    for (int i = 0; i < 7; ++i)
      line +=
          x.weight(i) * pixel<T>(args, sample, channel, row, reflected(x.first + i, width(r.in)));
    sum += y.weight(j) * line;
  }
  return sum;
}

// What a tile takes of the image where the map takes axes to axes: `taps` pixels an output along either
// axis, and all of them from (column, row) on. The weights lie in memory[0 ...), the pixels behind.
template <class Acc>
struct Footprint {
  int taps, column, columns, row, rows;
  bool swapped;  // columns of the image are rows of the output

  DEVICE static Footprint of(const Lattice& m, const Positions<Acc>& positions) {
    Footprint f;
    f.swapped = m.swapped();
    const double across = magnitude(m.a) + magnitude(m.b);
    const double down = magnitude(m.d) + magnitude(m.e);
    const double steepest = across > down ? across : down;
    // Nodes between the first and the last point of an output, and one for rounding.
    const int span = floor_to((kTaps - 1) * steepest) + 2;
    f.taps = (span + kTaps) / 2 + 1;
    const int x0 = start(positions, 0, f.swapped, 0),
              x1 = start(positions, 0, f.swapped, kTile - 1);
    const int y0 = start(positions, 1, f.swapped, 0),
              y1 = start(positions, 1, f.swapped, kTile - 1);
    f.column = least(x0, x1), f.columns = x0 + x1 - 2 * f.column + f.taps;
    f.row = least(y0, y1), f.rows = y0 + y1 - 2 * f.row + f.taps;
    return f;
  }

  // The first pixel of output n.
  DEVICE static int start(const Positions<Acc>& positions, int axis, bool swapped, int n) {
    const int from = positions.along(axis, swapped, 2 * n).at;
    const int to = positions.along(axis, swapped, 2 * n + kTaps - 1).at;
    return (least(from, to) - 5) >> 1;
  }

  DEVICE int pixels() const { return 2 * kTile * taps; }
  DEVICE int lines() const { return pixels() + columns * rows; }
  DEVICE bool fits() const {
    return taps <= kSide<Acc> && columns <= kSide<Acc> && rows <= kSide<Acc> &&
           lines() + rows * kPitch <= kMemory<Acc>;
  }

  // The first pixels, relative to column and row, and the weights. All threads must call it; a
  // barrier has to follow.
  DEVICE void fill(const Positions<Acc>& positions, SharedArray<Acc> table, SharedArray<int> starts,
                   SharedArray<Acc> memory) const {
    for (int k = thread_id(); k < 2 * kTile; k += kThreads)
      starts[k] = start(positions, k / kTile, swapped, k % kTile) - (k / kTile ? row : column);
    for (int k = thread_id(); k < pixels(); k += kThreads) {
      const int n = k % kTile, axis = k / kTile / taps, tap = k / kTile % taps;
      const int p = start(positions, axis, swapped, n) + tap;
      memory[k] = weight_of<Acc>(positions, table, axis, swapped, n, p);
    }
  }
};

// The thread's output pixel, of a channel, without its epilogue. All threads must call it.
template <class T>
DEVICE Accumulation<T> filter_along_axes(const Forward& args, const Footprint<Accumulation<T>>& f,
                                         SharedArray<int> starts, int sample, int64_t channel,
                                         SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const int pixels = f.pixels(), lines = f.lines();
  for (int k = thread_id(); k < f.rows * f.columns; k += kThreads)
    memory[pixels + k] =
        pixel<T>(args, sample, channel, reflected(f.row + k / f.columns, height(r.in)),
                 reflected(f.column + k % f.columns, width(r.in)));
  sync_threads();
  for (int k = thread_id(); k < f.rows * kTile; k += kThreads) {
    const int n = k % kTile, row = k / kTile;
    const int from = pixels + row * f.columns + starts[n];
    Acc sum = 0;
    for (int i = 0; i < f.taps; ++i) sum += memory[i * kTile + n] * memory[from + i];
    memory[lines + row * kPitch + n] = sum;
  }
  sync_threads();
  const int x = thread_id() % kTile, y = thread_id() / kTile;
  const int across = f.swapped ? y : x, down = f.swapped ? x : y;  // of the image's axes
  const int from = lines + starts[kTile + down] * kPitch + across;
  Acc sum = 0;
  for (int i = 0; i < f.taps; ++i)
    sum += memory[(f.taps + i) * kTile + down] * memory[from + i * kPitch];
  return sum;
}

// The same of any map, by lattice, footprint and decimation; `box` of the doubled plane if that fits.
template <class T>
DEVICE Accumulation<T> filter_by_lattice(const Forward& args,
                                         const Positions<Accumulation<T>>& positions,
                                         const Box& box, int sample, int64_t channel,
                                         SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  constexpr int kLattice = kSide<Acc> * kSide<Acc>, kColumns = kLattice + kNodes;
  const Range bx = range_of(args.resample, 0), by = range_of(args.resample, 1);
  const bool fits = box.fits(kSide<Acc>);
  if (fits)
    upsample<Acc>(box, bx, by, 2, memory, [&](int y, int x) {
      const bool here = x >= bx.low && x <= bx.high && y >= by.low && y <= by.high;
      return here ? pixel<T>(args, sample, channel, reflected(y, height(args.resample.in)),
                             reflected(x, width(args.resample.in)))
                  : Acc(0);
    });
  for (int k = thread_id(); k < kNodes; k += kThreads) {
    const auto p = positions.at(k % kPoints, k / kPoints);
    memory[kLattice + k] =
        fits ? interpolated<Acc>(p, box, memory) : gathered<T>(args, p, bx, by, sample, channel);
  }
  sync_threads();
  for (int k = thread_id(); k < kPoints * kTile; k += kThreads) {
    const int from = kLattice + k / kTile * kPoints + 2 * (k % kTile);
    Acc sum = 0;
    UNROLL(12)
    for (int j = 0; j < kTaps; ++j) sum += symlet<Acc>(j) * memory[from + j];
    memory[kColumns + k] = sum;
  }
  sync_threads();
  const int x = thread_id() % kTile, y = thread_id() / kTile;
  Acc sum = 0;
  UNROLL(12)
  for (int j = 0; j < kTaps; ++j)
    sum += symlet<Acc>(j) * memory[kColumns + (2 * y + j) * kTile + x];
  return sum;  // the next channel waits before it takes the place of these columns
}

// Every output pixel of the block.
template <class T>
DEVICE void filter_tile(const Forward& args, const Block& block, const Lattice& m) {
  using Acc = Accumulation<T>;
  SHARED(Acc, memory, kMemory<Acc>);
  SHARED(Acc, taps, kPadded);
  SHARED(int, starts, 2 * kTile);
  SHARED(int, whole, 4 * kPoints);
  SHARED(Acc, share, 4 * kPoints);
  SHARED(Acc, results, kResults);  // of the thread's own pixel
  const Resample& r = args.resample;
  const Positions<Acc> positions{whole, share};
  positions.fill(m, 2 * block.x0 - 5, 2 * block.y0 - 5);
  fill_taps<Acc>(taps);
  sync_threads();
  const bool straight = m.kind(r) == Kind::kSeparable;
  const auto footprint = straight ? Footprint<Acc>::of(m, positions) : Footprint<Acc>{};
  const bool separable = straight && footprint.fits();
  if (separable) footprint.fill(positions, taps, starts, memory);
  const Box box = box_of<Acc>(positions);
  const bool inside = block.x() < width(r.out) && block.y() < height(r.out);
  for (int place = 0; place < r.channels; place += kGroup) {
    UNROLL(1)
    for (int c = 0; c < group_size(r, place); ++c) {
      const int64_t channel = r.epilogue.channel(place + c);
      results[c * kThreads + thread_id()] =
          separable ? filter_along_axes<T>(args, footprint, starts, block.sample, channel, memory)
                    : filter_by_lattice<T>(args, positions, box, block.sample, channel, memory);
    }
    if (!inside) continue;
    Acc value[kGroup];
    UNROLL(4)
    for (int c = 0; c < kGroup; ++c)
      value[c] = c < group_size(r, place) ? results[c * kThreads + thread_id()] : Acc(0);
    finish<T>(args, block.sample, block.y(), block.x(), place, value);
  }
}

// One output pixel of the plain filters, of the channel.
template <class T>
DEVICE Accumulation<T> plain(const Forward& args, const Lattice& m, int sample, int64_t channel,
                             int y, int x) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const double u = position(m.a, m.b, m.c, x, y);
  const double v = position(m.d, m.e, m.f, x, y);
  const bool nearest = r.filter == Filter::kNearest;
  const int column = nearest ? nearest_of(u) : floor_to(u);
  const int row = nearest ? nearest_of(v) : floor_to(v);
  const Acc su = static_cast<Acc>(u - static_cast<double>(column));
  const Acc sv = static_cast<Acc>(v - static_cast<double>(row));
  Acc sum = 0;
  for (int k = 0; k < (nearest ? 1 : 4); ++k) {
    const int i = k % 2, j = k / 2;
    const int cx = padded(column + i, width(r.in), r.padding);
    const int cy = padded(row + j, height(r.in), r.padding);
    const Acc weight = nearest ? 1 : (i ? su : 1 - su) * (j ? sv : 1 - sv);
    if (cx >= 0 && cy >= 0) sum += weight * pixel<T>(args, sample, channel, cy, cx);
  }
  return sum;
}

// The block's pixels, copied or by the plain filters; NaN where the map is not usable.
template <class T>
DEVICE void plain_tile(const Forward& args, const Block& block, const Lattice& m, bool usable,
                       bool copy) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const int x = block.x(), y = block.y();
  if (x >= width(r.out) || y >= height(r.out)) return;
  int from_x = 0, from_y = 0;
  if (usable && copy) {
    from_x = padded(floor_to(position(m.a, m.b, m.c, x, y)), width(r.in), r.padding);
    from_y = padded(floor_to(position(m.d, m.e, m.f, x, y)), height(r.in), r.padding);
  }
  for (int place = 0; place < r.channels; place += kGroup) {
    Acc value[kGroup] = {};
    UNROLL(4)
    for (int c = 0; c < kGroup; ++c) {
      if (c >= group_size(r, place)) continue;
      const int64_t channel = r.epilogue.channel(place + c);
      if (!usable)
        value[c] = not_a_number<Acc>();
      else if (!copy)
        value[c] = plain<T>(args, m, block.sample, channel, y, x);
      else if (from_x >= 0 && from_y >= 0)
        value[c] = pixel<T>(args, block.sample, channel, from_y, from_x);
    }
    finish<T>(args, block.sample, y, x, place, value);
  }
}

// out = epilogue(resampled image), by the filter, or copied. A block is a tile of the output. Reads the
// tile's footprint, at unit scale some 4 elements an output element, most of them from cache; writes 1.
template <class T>
KERNEL_FOR(kThreads, 2)
resample(TABLE(Forward) args) {
  const Block block = Block::of(args.resample.out);
  const Lattice m = lattice_of(args.resample, block.sample);
  const bool usable = m.usable(args.resample.out);
  if (usable && m.kind(args.resample) != Kind::kCopy)
    filter_tile<T>(args, block, m);
  else
    plain_tile<T>(args, block, m, usable, true);
}

// The same by the plain filters. Reads 4 elements an output element, or 1; writes 1.
template <class T>
KERNEL_FOR(kThreads, 2)
resample_plainly(TABLE(Forward) args) {
  const Block block = Block::of(args.resample.out);
  const Lattice m = lattice_of(args.resample, block.sample);
  const bool usable = m.usable(args.resample.out);
  const bool copy = m.kind(args.resample) == Kind::kCopy;
  plain_tile<T>(args, block, m, usable, copy);
}

}  // namespace gankernels::affine_resample::cuda
