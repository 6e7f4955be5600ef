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
static_assert(kTile * kTile == kThreads);

// The largest side of what a tile needs of the doubled plane, or of the lattice in the transpose, that
// is made in shared memory; and the memory of one channel: that plane, and half of it on the way there.
template <class Acc>
constexpr int kSide = sizeof(Acc) == 4 ? 80 : 40;
template <class Acc>
constexpr int kHalf = (kSide<Acc> / 2 + 6) * kSide<Acc>;
template <class Acc>
constexpr int kMemory = kSide<Acc> * kSide<Acc> + std::max(kHalf<Acc>, kPoints*(kPoints + kTile));
constexpr int kCopies =
    16;  // of the image along an axis, beyond which every lattice point is tested

constexpr int least(int a, int b) {
  return a < b ? a : b;  // double: positions
}
constexpr double magnitude(double x) {
  return x < 0 ? -x : x;
}
// Positions are counted by 32 bits: see Lattice::usable.
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
constexpr int nearest_of(double x) {  // halves to even
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
  DEVICE int x() const { return x0 + thread_id() % kTile; }  // double: positions
  DEVICE int y() const { return y0 + thread_id() / kTile; }  // double: positions
};

DEVICE Lattice lattice_of(const Resample& r, int sample) {
  if (!r.maps) return Lattice::of(1, 0, 0, 0, 1, 0, r.in, r.out);
  const double* m = r.maps + 6 * sample;
  return Lattice::of(load(m), load(m + 1), load(m + 2), load(m + 3), load(m + 4), load(m + 5), r.in,
                     r.out);
}

// Bounds, as far as positions can be counted.
struct Range {
  int first, last, low, high;
};
DEVICE Range range_of(const Resample& r, int axis) {
  constexpr int kFar = 1 << 30;
  if (!r.margins) return {-kFar, kFar, -kFar, kFar};
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
  return kept(load(box), load(box + 1), load(box + 2), x, y,  // double: a pixel at the box's edge
              r.out.width, r.out.height);
}

// An element of the colour matrix, or of its offset.
template <class Acc>
DEVICE Acc colour_at(const Epilogue& e, int sample, int row, int column) {
  const int n = e.colour_count;
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
    UNROLL(3)
    for (int i = 0; i < 3; ++i) {
      mixed[i] = value[i];
      if (i >= e.colour_count) continue;
      mixed[i] = e.offsets ? colour_at<Acc>(e, sample, i, e.colour_count) : Acc(0);
      UNROLL(3)
      for (int j = 0; j < 3; ++j)
        if (j < e.colour_count) mixed[i] += colour_at<Acc>(e, sample, i, j) * value[j];
    }
    UNROLL(3)
    for (int i = 0; i < 3; ++i) value[i] = mixed[i];
  }
  const bool keep = is_kept(r, sample, y, x);
  UNROLL(4)
  for (int k = 0; k < kGroup; ++k) {
    if (k >= count) continue;
    const int64_t channel = e.channel(place + k);  // double: positions
    if (e.sigma && e.offsets) {
      const int64_t element = (channel * r.out.height + y) * r.out.width + x;
      value[k] += load(static_cast<const Acc*>(e.sigma) + sample) *
                  static_cast<Acc>(normal_noise(load(e.seed + sample), element));
    }
    store(static_cast<T*>(args.out) + offset_of(r.out, sample, channel, y, x),
          narrow<T>(keep ? value[k] : Acc(0)));
  }
}

// The cotangent of an output pixel before the epilogue, of the channel at a place; 0 beyond the output.
template <class T>
DEVICE Accumulation<T> cotangent(const Transpose& args, int sample, int place, int y, int x) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  if (x < 0 || y < 0 || x >= width(r.out) || y >= height(r.out)) return 0;
  if (!is_kept(r, sample, y, x)) return 0;
  const Epilogue& e = r.epilogue;
  const auto at = [&](int p) {
    return static_cast<Acc>(
        widen(load(static_cast<const T*>(args.grad) +
                   offset_of(r.out, sample, e.channel(p), y, x))));  // double: positions
  };
  if (!e.matrix || place >= e.colour_count) return at(place);
  Acc sum = 0;
  for (int i = 0; i < e.colour_count; ++i)
    sum += colour_at<Acc>(e, sample, i, static_cast<int>(place)) * at(i);
  return sum;
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
      const bool row = axis % 2;                                           // a row, or a column
      const double step = axis < 2 ? (row ? m.b : m.a) : row ? m.e : m.d;  // double: once a row
      double at = step * n;                                                // double: and column of
      if (axis == 1) at += m.a * first_x + m.b * first_y + m.c;            // double: a tile, not a
      if (axis == 3) at += m.d * first_x + m.e * first_y + m.f;            // double: point
      const int node = floor_to(at);                                       // double: as above
      whole[k] = node;
      share[k] = static_cast<Acc>(at - static_cast<double>(node));  // double: as above
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
    Box b{low_u - 1 - (low_u & 1 ? 1 : 0), low_v - 1 - (low_v & 1 ? 1 : 0), 0,
          0};  // double: positions
    b.width = (high_u - b.u + 2) / 2 * 2;
    b.height = (high_v - b.v + 2) / 2 * 2;  // double: positions
    return b;
  }
  DEVICE bool fits(int side) const { return width <= side && height <= side; }
};

// --- forward

template <class T>
DEVICE Accumulation<T> pixel(const Forward& args, int sample, int64_t channel, int y, int x) {
  return widen(
      load(static_cast<const T*>(args.image) + offset_of(args.resample.in, sample, channel, y, x)));
}

// The nodes of a box, up-sampled into memory[0 ...); what comes behind is used on the way.
template <class T>
DEVICE void upsample(const Forward& args, const Box& box, const Range& bx, const Range& by,
                     int sample, int64_t channel, SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  constexpr int kLines = kSide<Acc> * kSide<Acc>;  // where the rows begin
  const Resample& r = args.resample;
  const int wide = box.width, high = box.height;
  const int columns = wide / 2 + 5, rows = high / 2 + 5;
  const int column = (box.u + 1) / 2 - 3, row = (box.v + 1) / 2 - 3;
  for (int k = thread_id(); k < rows * columns; k += kThreads) {
    const int y = row + k / columns, x = column + k % columns;
    const bool here = x >= bx.low && x <= bx.high && y >= by.low && y <= by.high;
    memory[k] = here ? pixel<T>(args, sample, channel, reflected(y, height(r.in)),
                                reflected(x, width(r.in)))
                     : Acc(0);
  }
  sync_threads();
  for (int k = thread_id(); k < rows * wide; k += kThreads) {
    const int y = k / wide, u = k % wide;
    Acc sum = 0;
    UNROLL(6)
    for (int m = 0; m < 6; ++m)
      sum += (u % 2 ? symlet<Acc>(11 - 2 * m) : symlet<Acc>(10 - 2 * m)) *
             memory[y * columns + u / 2 + m];
    memory[kLines + k] = box.u + u >= bx.first && box.u + u <= bx.last ? 2 * sum : Acc(0);
  }
  sync_threads();
  for (int k = thread_id(); k < high * wide; k += kThreads) {
    const int v = k / wide, u = k % wide;
    Acc sum = 0;
    UNROLL(6)
    for (int m = 0; m < 6; ++m)
      sum += (v % 2 ? symlet<Acc>(11 - 2 * m) : symlet<Acc>(10 - 2 * m)) *
             memory[kLines + (v / 2 + m) * wide + u];
    memory[k] = box.v + v >= by.first && box.v + v <= by.last ? 2 * sum : Acc(0);
  }
  sync_threads();
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

// Every output pixel of the block, by lattice, footprint and decimation.
template <class T>
DEVICE void filter_tile(const Forward& args, const Block& block, const Lattice& m) {
  using Acc = Accumulation<T>;
  SHARED(Acc, memory, kMemory<Acc>);
  SHARED(int, whole, 4 * kPoints);
  SHARED(Acc, share, 4 * kPoints);
  SHARED(Acc, results, kResults);  // of the thread's own pixel
  constexpr int kLattice = kSide<Acc> * kSide<Acc>, kColumns = kLattice + kNodes;
  const Resample& r = args.resample;
  const Range bx = range_of(r, 0), by = range_of(r, 1);
  const Positions<Acc> positions{whole, share};
  positions.fill(m, 2 * block.x0 - 5, 2 * block.y0 - 5);  // double: positions
  sync_threads();
  int low_u = INT32_MAX, high_u = INT32_MIN, low_v = INT32_MAX, high_v = INT32_MIN;
  for (int k = 0; k < 4; ++k) {
    const auto p = positions.at(k % 2 * (kPoints - 1), k / 2 * (kPoints - 1));
    low_u = p.u < low_u ? p.u : low_u, high_u = p.u > high_u ? p.u : high_u;
    low_v = p.v < low_v ? p.v : low_v, high_v = p.v > high_v ? p.v : high_v;
  }
  // A node more on either side: shares are rounded, and a point next to a node may lie on either.
  const Box box = Box::around(low_u - 1, high_u + 2, low_v - 1, high_v + 2);
  const bool fits = box.fits(kSide<Acc>);
  const bool inside = block.x() < width(r.out) && block.y() < height(r.out);  // double: positions
  const int x = thread_id() % kTile, y = thread_id() / kTile;
  for (int place = 0; place < r.channels; place += kGroup) {
    UNROLL(1)
    for (int c = 0; c < group_size(r, place); ++c) {
      const int64_t channel = r.epilogue.channel(place + c);  // double: positions
      if (fits) upsample<T>(args, box, bx, by, block.sample, channel, memory);
      for (int k = thread_id(); k < kNodes; k += kThreads) {
        const auto p = positions.at(k % kPoints, k / kPoints);
        memory[kLattice + k] = fits ? interpolated<Acc>(p, box, memory)
                                    : gathered<T>(args, p, bx, by, block.sample, channel);
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
      Acc sum = 0;
      UNROLL(12)
      for (int j = 0; j < kTaps; ++j)
        sum += symlet<Acc>(j) * memory[kColumns + (2 * y + j) * kTile + x];
      // The next channel waits before it takes the place of these columns.
      results[c * kThreads + thread_id()] = sum;
    }
    if (!inside) continue;
    Acc value[kGroup];
    UNROLL(4)
    for (int c = 0; c < kGroup; ++c)
      value[c] = c < group_size(r, place) ? results[c * kThreads + thread_id()] : Acc(0);
    finish<T>(args, block.sample, block.y(), block.x(), place, value);  // double: positions
  }
}

// One output pixel of the plain filters, of the channel.
template <class T>
DEVICE Accumulation<T> plain(const Forward& args, const Lattice& m, int sample, int64_t channel,
                             int y, int x) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const double u = position(m.a, m.b, m.c, x, y);  // double: large images
  const double v = position(m.d, m.e, m.f, x, y);  // double: as above
  const bool nearest = r.filter == Filter::kNearest;
  const int column = nearest ? nearest_of(u) : floor_to(u);          // double: as above
  const int row = nearest ? nearest_of(v) : floor_to(v);             // double: as above
  const Acc su = static_cast<Acc>(u - static_cast<double>(column));  // double: as above
  const Acc sv = static_cast<Acc>(v - static_cast<double>(row));     // double: as above
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
  const int x = block.x(), y = block.y();  // double: positions
  if (x >= width(r.out) || y >= height(r.out)) return;
  int from_x = 0, from_y = 0;
  if (usable && copy) {
    from_x =
        padded(floor_to(position(m.a, m.b, m.c, x, y)), width(r.in), r.padding);  // double: exact
    from_y =
        padded(floor_to(position(m.d, m.e, m.f, x, y)), height(r.in), r.padding);  // double: exact
  }
  for (int place = 0; place < r.channels; place += kGroup) {  // double: positions
    Acc value[kGroup] = {};
    UNROLL(4)
    for (int c = 0; c < kGroup; ++c) {  // double: positions
      if (c >= group_size(r, place)) continue;
      const int64_t channel = r.epilogue.channel(place + c);  // double: positions
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
  const Lattice m = lattice_of(args.resample, block.sample);  // double: once a block
  const bool usable = m.usable(args.resample.out);            // double: as above
  if (usable && m.kind(args.resample) != Kind::kCopy)         // double: as above
    filter_tile<T>(args, block, m);
  else
    plain_tile<T>(args, block, m, usable, true);
}

// The same by the plain filters. Reads 4 elements an output element, or 1; writes 1.
template <class T>
KERNEL_FOR(kThreads, 2)
resample_plainly(TABLE(Forward) args) {
  const Block block = Block::of(args.resample.out);
  const Lattice m = lattice_of(args.resample, block.sample);  // double: once a block
  const bool usable = m.usable(args.resample.out);            // double: as above
  const bool copy = m.kind(args.resample) == Kind::kCopy;     // double: as above
  plain_tile<T>(args, block, m, usable, copy);
}

// --- transpose

// The pixels, as if the image went on beyond its border, that an output may take along one axis.
struct Extent {
  int low, high;

  // u = a hx + b hy + c over the whole lattice.
  DEVICE static Extent of(double a, double b, double c, const Layout& out) {
    const auto w = static_cast<double>(2 * width(out) + 4),  // double: positions
        h = static_cast<double>(2 * height(out) + 4);        // double: positions
    const double low = (a > 0 ? -5 * a : w * a) + (b > 0 ? -5 * b : h * b) + c;  // double: a bound
    const double high =
        (a > 0 ? w * a : -5 * a) + (b > 0 ? h * b : -5 * b) + c;  // double: as above
    return {floor_to(low / 2) - 4, floor_to(high / 2) + 5};       // double: as above
  }
};

// How the image is seen in the plane that reflection makes of it, along one axis: copies number `first`
// to `last`, of which copy k shows it in [k (size - 1), (k + 1) (size - 1)], the odd ones mirrored.
struct Copies {
  int size, first, last;

  DEVICE static Copies of(int size, Padding padding, const Extent& extent) {
    if (padding != Padding::kReflection) return {size, 0, 0};
    const int period = size > 1 ? size - 1 : 1;
    return {size, below(extent.low, period), below(extent.high, period)};
  }
  DEVICE static int below(int a, int b) { return a / b - (a % b != 0 && a < 0); }
  DEVICE int count() const { return last - first + 1; }

  // The first pixel of copy k's tile, which begins at `begin` in the image.
  DEVICE int first_raw(int k, int begin) const {
    return size == 1 || k % 2 == 0 ? raw(k, begin) : raw(k, begin + kTile - 1);
  }

  // Where copy k shows pixel x; pixels on the mirrors belong to the even copies.
  DEVICE int raw(int k, int x) const {
    if (size == 1) return k;
    return k % 2 == 0 ? k * (size - 1) + x : (k + 1) * (size - 1) - x;
  }
  DEVICE bool shows(int k, int x) const {
    return size == 1 || k % 2 == 0 || (x > 0 && x < size - 1);
  }
};

// The range of the output's lattice points that may reach nodes in [low, high] of both axes.
struct Reach {
  int low_x, high_x, low_y, high_y;
  DEVICE bool empty() const { return low_x > high_x || low_y > high_y; }
};

// The inverse of a lattice's map, if there is a usable one.
struct Inverse {
  double a, b, d, e;
  bool usable;

  DEVICE static Inverse of(const Lattice& m) {
    const double det = m.a * m.e - m.b * m.d;  // double: once a block
    const double norm = magnitude(m.a) + magnitude(m.b) + magnitude(m.d) + magnitude(m.e);
    Inverse i{m.e / det, -m.b / det, -m.d / det, m.a / det, false};  // double: as above
    i.usable = magnitude(det) > 1e-9 * norm * norm;                  // double: as above
    return i;
  }

  // One axis of the points that lie within `extent` nodes of (u, v), in [low, high].
  DEVICE static void axis(double at, double extent, int low, int high, int* first, int* last) {
    const double from = at - extent - 1e-6, to = at + extent + 1e-6;   // double: a bound
    *first = from > static_cast<double>(low) ? floor_to(from) : low;   // double: as above
    *last = to < static_cast<double>(high) ? floor_to(to) + 1 : high;  // double: as above
    if (from > static_cast<double>(high)) *first = high + 1;           // double: as above
    if (to < static_cast<double>(low)) *last = low - 1;                // double: as above
  }
  DEVICE Reach reach(const Lattice& m, double u, double v, double extent_u, double extent_v,
                     const Reach& all) const {
    const double x = a * (u - m.c) + b * (v - m.f),
                 y = d * (u - m.c) + e * (v - m.f);                       // double: a bound
    const double ex = magnitude(a) * extent_u + magnitude(b) * extent_v;  // double: as above
    const double ey = magnitude(d) * extent_u + magnitude(e) * extent_v;  // double: as above
    Reach r;
    axis(x, ex, all.low_x, all.high_x, &r.low_x, &r.high_x);  // double: as above
    axis(y, ey, all.low_y, all.high_y, &r.low_y, &r.high_y);  // double: as above
    return r;
  }
};

// The cotangent of S at a lattice point: the decimation transposed, of up to 36 output pixels.
template <class T>
DEVICE Accumulation<T> spread(const Transpose& args, int sample, int place, int hx, int hy) {
  using Acc = Accumulation<T>;
  Acc sum = 0;
  // h = 2 i - 5 + j, so j has the parity of h + 5.
  const int odd_x = (hx + 5) & 1, odd_y = (hy + 5) & 1;
  const int x = (hx + 5 - odd_x) / 2, y = (hy + 5 - odd_y) / 2;
  UNROLL(1)
  for (int n = 0; n < 6; ++n) {
    Acc line = 0;
    UNROLL(1)
    for (int k = 0; k < 6; ++k)
      line += one_of<Acc>(k, odd_x) *
              cotangent<T>(args, sample, place, y - n, x - k);  // double: positions
    sum += one_of<Acc>(n, odd_y) * line;
  }
  return sum;
}

// The same for a box of lattice points, into memory[0 ...). Box::u and v are lattice points here.
template <class T>
DEVICE void spread_box(const Transpose& args, const Box& box, int sample, int place,
                       SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  constexpr int kLines = kSide<Acc> * kSide<Acc>;
  const int wide = box.width, high = box.height;
  const int columns = wide / 2 + 5, rows = high / 2 + 5;
  // Points 2 q - 1 and 2 q of the lattice take the output pixels q - 3 to q + 2.
  const int column = (box.u + 1) / 2 - 3, row = (box.v + 1) / 2 - 3;
  for (int k = thread_id(); k < rows * columns; k += kThreads)
    memory[k] = cotangent<T>(args, sample, place, row + k / columns,
                             column + k % columns);  // double: positions
  sync_threads();
  for (int k = thread_id(); k < rows * wide; k += kThreads) {
    const int y = k / wide, u = k % wide;
    Acc sum = 0;
    UNROLL(6)
    for (int m = 0; m < 6; ++m)
      sum += (u % 2 ? symlet<Acc>(11 - 2 * m) : symlet<Acc>(10 - 2 * m)) *
             memory[y * columns + u / 2 + m];
    memory[kLines + k] = sum;
  }
  sync_threads();
  for (int k = thread_id(); k < high * wide; k += kThreads) {
    const int v = k / wide, u = k % wide;
    Acc sum = 0;
    UNROLL(6)
    for (int m = 0; m < 6; ++m)
      sum += (v % 2 ? symlet<Acc>(11 - 2 * m) : symlet<Acc>(10 - 2 * m)) *
             memory[kLines + (v / 2 + m) * wide + u];
    memory[k] = sum;
  }
  sync_threads();
}

// What point (hx, hy) of the lattice gives to node (u, v).
template <class Acc>
DEVICE Acc tent(const Lattice& m, int hx, int hy, int u, int v) {
  const auto x = static_cast<double>(hx), y = static_cast<double>(hy);  // double: positions
  const double du = m.a * x + m.b * y + m.c - static_cast<double>(u);   // double: large images
  const double dv = m.d * x + m.e * y + m.f - static_cast<double>(v);   // double: as above
  const Acc wu = 1 - static_cast<Acc>(magnitude(du));                   // double: as above
  const Acc wv = 1 - static_cast<Acc>(magnitude(dv));                   // double: as above
  return wu > 0 && wv > 0 ? wu * wv : 0;
}

// All lattice points of the output.
DEVICE Reach points_of(const Resample& r) {
  return {-5, 2 * width(r.out) + 4, -5, 2 * height(r.out) + 4};
}

// Whether the margins leave a node of the doubled plane, and a pixel.
DEVICE bool has_node(const Resample& r, int u, int v) {
  if (!r.margins) return true;
  const Range x = range_of(r, 0), y = range_of(r, 1);
  return u >= x.first && u <= x.last && v >= y.first && v <= y.last;
}
DEVICE bool has_pixel(const Resample& r, int x, int y) {
  if (!r.margins) return true;
  const Range across = range_of(r, 0), down = range_of(r, 1);
  return x >= across.low && x <= across.high && y >= down.low && y <= down.high;
}

// The thread's pixel, of a channel: the sum over all copies of the block's tile, each by way of the
// nodes that it is made into, and the lattice points that reach those, a box of them at a time. All
// threads must call it.
template <class T>
DEVICE Accumulation<T> gather_tile(const Transpose& args, const Block& block, const Lattice& m,
                                   const Inverse& inverse, const Copies& across, const Copies& down,
                                   int place) {
  using Acc = Accumulation<T>;
  SHARED(Acc, memory, kMemory<Acc>);
  SHARED(Acc, nodes, kNodes);
  const Resample& r = args.resample;
  Acc sum = 0;
  for (int ky = down.first; ky <= down.last; ++ky)
    for (int kx = across.first; kx <= across.last; ++kx) {  // double: positions
      // The tile's first pixel in this copy, and the nodes from its 5th before on.
      const int begin_x = across.first_raw(kx, block.x0), begin_y = down.first_raw(ky, block.y0);
      const int u0 = 2 * begin_x - 5, v0 = 2 * begin_y - 5;
      const double half = (kPoints - 1) / 2.0;
      const Reach near =
          inverse.reach(m, static_cast<double>(u0) + half,  // double: a bound
                        static_cast<double>(v0) + half, half + 1, half + 1, points_of(r));
      if (near.empty()) continue;  // the same for all threads
      for (int k = thread_id(); k < kNodes; k += kThreads) nodes[k] = 0;  // double: positions
      constexpr int kStep = kSide<Acc> - 4;                               // a box may be wider by 4
      for (int low_y = near.low_y; low_y <= near.high_y; low_y += kStep)
        for (int low_x = near.low_x; low_x <= near.high_x; low_x += kStep) {
          const Reach part{low_x, least(low_x + kStep - 1, near.high_x),
                           low_y,  // double: positions
                           least(low_y + kStep - 1, near.high_y)};
          const Box box = Box::around(part.low_x, part.high_x, part.low_y, part.high_y);
          spread_box<T>(args, box, block.sample, place, memory);  // double: positions
          for (int k = thread_id(); k < kNodes; k += kThreads) {
            const int u = u0 + k % kPoints, v = v0 + k / kPoints;
            if (!has_node(r, u, v)) continue;
            const Reach own =
                inverse.reach(m, static_cast<double>(u),            // double: a bound
                              static_cast<double>(v), 1, 1, part);  // double: positions
            Acc node = 0;
            for (int hy = own.low_y; hy <= own.high_y; ++hy)
              for (int hx = own.low_x; hx <= own.high_x; ++hx)  // double: positions
                node += tent<Acc>(m, hx, hy, u, v) *
                        memory[(hy - box.v) * box.width + hx - box.u];  // double: positions
            nodes[k] = nodes[k] + node;
          }
          sync_threads();
        }
      for (int k = thread_id(); k < kPoints * kTile; k += kThreads) {
        const int from = k / kTile * kPoints + 2 * (k % kTile);
        Acc line = 0;
        UNROLL(12)
        for (int j = 0; j < kTaps; ++j) line += symlet<Acc>(j) * nodes[from + j];
        memory[k] = line;
      }
      sync_threads();
      const int x = block.x(), y = block.y();  // double: positions
      const int at_x = across.raw(kx, x), at_y = down.raw(ky, y);
      const bool inside = x < width(r.in) && y < height(r.in) && across.shows(kx, x) &&
                          down.shows(ky, y) && has_pixel(r, at_x, at_y);
      if (inside) {
        const int from = 2 * (at_y - begin_y) * kTile + at_x - begin_x;
        Acc own = 0;
        UNROLL(12)
        for (int j = 0; j < kTaps; ++j) own += symlet<Acc>(j) * memory[from + j * kTile];
        sum += 4 * own;
      }
      sync_threads();
    }
  return sum;
}

// The thread's pixel where the map has no usable inverse, or shows the image very often: every point of
// the lattice is tested.
template <class T>
DEVICE Accumulation<T> gather_all(const Transpose& args, const Lattice& m, const Reach& all,
                                  int sample, int place, int y, int x) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Range bx = range_of(r, 0), by = range_of(r, 1);
  Acc sum = 0;
  for (int hy = all.low_y; hy <= all.high_y; ++hy)
    for (int hx = all.low_x; hx <= all.high_x; ++hx) {                        // double: positions
      const auto px = static_cast<double>(hx), py = static_cast<double>(hy);  // double: positions
      const double u = m.a * px + m.b * py + m.c;    // double: large images
      const double v = m.d * px + m.e * py + m.f;    // double: as above
      const int nu = floor_to(u), nv = floor_to(v);  // double: as above
      const auto wx =
          Window<Acc>::of(nu, static_cast<Acc>(u - static_cast<double>(nu)),  // double: as
                          bx);                                                // above
      const auto wy =
          Window<Acc>::of(nv, static_cast<Acc>(v - static_cast<double>(nv)),  // double: as
                          by);                                                // above
      Acc weight_x = 0, weight_y = 0;
      UNROLL(1)
      for (int i = 0; i < 7; ++i) {  // double: positions
        if (reflected(wx.first + i, width(r.in)) == x) weight_x += wx.weight(i);
        if (reflected(wy.first + i, height(r.in)) == y) weight_y += wy.weight(i);
      }
      if (weight_x != 0 && weight_y != 0)
        sum += weight_x * weight_y * spread<T>(args, sample, place, hx, hy);  // double: positions
    }
  return sum;
}

// The thread's pixel of the plain filters and of copies, of the outputs within reach of where it is
// seen. Where `everywhere`, of all outputs that show it anywhere.
template <class T>
DEVICE Accumulation<T> gather_plain(const Transpose& args, const Lattice& m, bool copy,
                                    const Reach& reach, bool everywhere, int sample, int place,
                                    int y, int x) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const bool nearest = copy || r.filter == Filter::kNearest;
  Acc sum = 0;
  for (int oy = reach.low_y; oy <= reach.high_y; ++oy)
    for (int ox = reach.low_x; ox <= reach.high_x; ++ox) {               // double: positions
      const double u = position(m.a, m.b, m.c, ox, oy);                  // double: large images
      const double v = position(m.d, m.e, m.f, ox, oy);                  // double: as above
      const int column = nearest ? nearest_of(u) : floor_to(u);          // double: as above
      const int row = nearest ? nearest_of(v) : floor_to(v);             // double: as above
      const Acc su = static_cast<Acc>(u - static_cast<double>(column));  // double: as above
      const Acc sv = static_cast<Acc>(v - static_cast<double>(row));     // double: as above
      Acc weight = 0;
      for (int k = 0; k < (nearest ? 1 : 4); ++k) {
        const int i = k % 2, j = k / 2;
        const int cx = everywhere ? padded(column + i, width(r.in), r.padding) : column + i;
        const int cy = everywhere ? padded(row + j, height(r.in), r.padding) : row + j;
        if (cx == x && cy == y) weight += nearest ? 1 : (i ? su : 1 - su) * (j ? sv : 1 - sv);
      }
      if (weight != 0)
        sum += weight * cotangent<T>(args, sample, place, oy, ox);  // double: positions
    }
  return sum;
}

// The same, copy by copy of the pixel.
template <class T>
DEVICE Accumulation<T> gather_copies(const Transpose& args, const Lattice& m,
                                     const Inverse& inverse, bool few, bool copy,
                                     const Copies& across, const Copies& down, const Reach& all,
                                     int sample, int place, int y, int x) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const bool edge = x == 0 || y == 0 || x == width(r.in) - 1 || y == height(r.in) - 1;
  if (!few || (edge && r.padding == Padding::kBorder))  // double: positions
    return gather_plain<T>(args, m, copy, all, true, sample, place, y, x);
  const Reach points{2 * all.low_x, 2 * all.high_x, 2 * all.low_y, 2 * all.high_y};
  Acc sum = 0;
  for (int ky = down.first; ky <= down.last; ++ky)
    for (int kx = across.first; kx <= across.last; ++kx) {  // double: positions
      if (!across.shows(kx, x) || !down.shows(ky, y)) continue;
      const int cx = across.raw(kx, x), cy = down.raw(ky, y);
      Reach near = inverse.reach(m, 2.0 * static_cast<double>(cx),  // double: a bound
                                 2.0 * static_cast<double>(cy), 2, 2, points);
      near = {(near.low_x + 1) >> 1, near.high_x >> 1, (near.low_y + 1) >> 1,
              near.high_y >> 1};  // double: positions
      sum += gather_plain<T>(args, m, copy, near, false, sample, place, cy, cx);
    }
  return sum;
}

// What the transposes of a block share.
struct Gathering {
  Block block;
  Lattice m;
  Inverse inverse;
  bool usable, copy, few;
  Copies across, down;

  DEVICE static Gathering of(const Resample& r) {
    Gathering g;
    g.block = Block::of(r.in);                        // double: positions
    g.m = lattice_of(r, g.block.sample);              // double: once a block
    g.inverse = Inverse::of(g.m);                     // double: as above
    g.usable = g.m.usable(r.out);                     // double: as above
    g.copy = g.usable && g.m.kind(r) == Kind::kCopy;  // double: as above
    g.few = false;
    if (!g.usable) return g;
    g.across = Copies::of(width(r.in), r.padding, Extent::of(g.m.a, g.m.b, g.m.c, r.out));
    g.down = Copies::of(height(r.in), r.padding, Extent::of(g.m.d, g.m.e, g.m.f, r.out));
    g.few = g.inverse.usable && g.across.count() <= kCopies &&
            g.down.count() <= kCopies;  // double: positions
    return g;
  }
};

template <class T>
DEVICE void put(const Transpose& args, const Block& block, int place, Accumulation<T> value) {
  const Resample& r = args.resample;
  if (block.x() >= width(r.in) || block.y() >= height(r.in)) return;  // double: positions
  store(static_cast<T*>(args.image) + offset_of(r.in, block.sample, r.epilogue.channel(place),
                                                block.y(), block.x()),  // double: positions
        narrow<T>(value));
}

// The thread's pixel where whole pixels were moved: each place that shows it has one output pixel.
template <class T>
DEVICE Accumulation<T> gather_moved(const Transpose& args, const Gathering& g, int place) {
  const int a = static_cast<int>(g.m.a), b = static_cast<int>(g.m.b);  // double: once a pixel
  const int d = static_cast<int>(g.m.d), e = static_cast<int>(g.m.e);  // double: as above
  const int c = floor_to(g.m.c / 2), f = floor_to(g.m.f / 2);          // double: as above
  const int x = g.block.x(), y = g.block.y();                          // double: positions
  Accumulation<T> sum = 0;
  for (int ky = g.down.first; ky <= g.down.last; ++ky)
    for (int kx = g.across.first; kx <= g.across.last; ++kx) {
      if (!g.across.shows(kx, x) || !g.down.shows(ky, y)) continue;
      const int u = g.across.raw(kx, x) - c, v = g.down.raw(ky, y) - f;
      // The map is its own inverse but for the order of its axes: each step is 1, -1 or 0.
      sum += cotangent<T>(args, g.block.sample, place, b * u + e * v,
                          a * u + d * v);  // double: positions
    }
  return sum;
}

// grad_image = R^T epilogue^T grad, of the filter. A block is a tile of the image. Reads what the tile's
// copies are reached from, at unit scale some 4 elements an element, most of them from cache; writes 1.
template <class T>
KERNEL_FOR(kThreads, 2)
gather(TABLE(Transpose) args) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Gathering g = Gathering::of(r);
  if (g.usable && !g.copy && !g.few) return;          // gather_slowly has it
  for (int place = 0; place < r.channels; ++place) {  // double: positions
    Acc value = not_a_number<Acc>();
    if (g.copy)  // double: positions
      value = gather_moved<T>(args, g, place);
    else if (g.usable)
      value = gather_tile<T>(args, g.block, g.m, g.inverse, g.across, g.down, place);
    put<T>(args, g.block, place, value);
  }
}

// The samples that `gather` leaves. Reads the whole output for every element.
template <class T>
KERNEL_FOR(kThreads, 2)
gather_slowly(TABLE(Transpose) args) {
  const Resample& r = args.resample;
  const Gathering g = Gathering::of(r);
  if (!g.usable || g.copy || g.few) return;
  for (int place = 0; place < r.channels; ++place)
    put<T>(args, g.block, place,
           gather_all<T>(args, g.m, points_of(r), g.block.sample, place, g.block.y(),
                         g.block.x()));  // double: positions
}

// The same of the plain filters.
template <class T>
KERNEL_FOR(kThreads, 2)
gather_plainly(TABLE(Transpose) args) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Gathering g = Gathering::of(r);        // double: positions
  const int x = g.block.x(), y = g.block.y();  // double: positions
  if (x >= width(r.in) || y >= height(r.in)) return;
  const Reach pixels{0, width(r.out) - 1, 0, height(r.out) - 1};
  for (int place = 0; place < r.channels; ++place)  // double: positions
    put<T>(args, g.block, place,
           g.usable ? gather_copies<T>(args, g.m, g.inverse, g.few, g.copy, g.across,
                                       g.down,  // double: positions
                                       pixels, g.block.sample, place, y, x)
                    : not_a_number<Acc>());
}

}  // namespace gankernels::affine_resample::cuda
