// What affine resampling's kernels know of a sample and its map: a record, which one thread writes once a
// call. All arithmetic in double of images that are not is here.
#pragma once

#include <cmath>

#include "affine_resample.h"
#include "common/platform.h"
#include "common/reduce.cuh"

namespace gankernels::affine_resample::cuda {

constexpr int kTile = 16;                // a block's pixels along an axis; beside it, Tile
constexpr int kPoints = 2 * kTile + 10;  // of the lattice, along an axis of a tile
constexpr int kCopies = 14;  // of the image along an axis, beyond which every output is looked at
constexpr double kReaching = 1024;  // shares in a node, beyond which 32 bits leave too few of each
static_assert(kTile * kTile == kThreads);

constexpr int least(int a, int b) {
  return a < b ? a : b;
}
constexpr int most(int a, int b) {
  return a > b ? a : b;
}
constexpr int width(const Layout& l) {
  return static_cast<int>(l.width);
}
constexpr int height(const Layout& l) {
  return static_cast<int>(l.height);
}
template <class Acc>
DEVICE Acc magnitude(Acc x) {
  return std::abs(x);
}

// How the image is seen in the plane that reflection makes of it, along one axis: copies number `first`
// to `last`, of which copy k shows it in [k (size - 1), (k + 1) (size - 1)], the odd ones mirrored.
struct Copies {
  int size, first, last;

  DEVICE int count() const { return last - first + 1; }

  // The first pixel of copy k's tile, which has pixels [begin, begin + count) of the image.
  DEVICE int first_raw(int k, int begin, int count) const {
    return size == 1 || k % 2 == 0 ? raw(k, begin) : raw(k, begin + count - 1);
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

// How threads share a region: each has a column, of which it takes every `step`-th row. Threads beyond
// have none. `share` is 2^16 over the number of columns, rounded up: of up to 256 threads, or of ten times as
// many units as there are columns, of which there are up to 80, quotients by it are exact.
struct Lines {
  int column, row, step;

  static constexpr DEVICE int share_of(int columns) { return (65535 + columns) / columns; }
  DEVICE static Lines of(int columns, int share) {
    const int step = (kThreads * share) >> 16, row = (thread_id() * share) >> 16;
    return {thread_id() - row * columns, row < step ? row : 1 << 20, step};
  }
  DEVICE static Lines of(int columns) { return of(columns, share_of(columns)); }
};

// How threads share a box of nodes: its columns of pixels (Lines), and its units, each of which is eight nodes
// of a row or of a column.
struct Shares {
  int pixels, eights, nodes;

  DEVICE static Shares of(int width) {
    return {Lines::share_of(width / 2 + 5), Lines::share_of(width / 8), Lines::share_of(width)};
  }
};

template <class Acc>
struct Record {
  Axis<Acc> u, v;
  Cutout cut;
  bool usable, swapped;
  Kind kind;

  // Forward: the side of the parts of a tile whose nodes fit the shared memory, 0 for none; the sides of
  // the box of nodes of such a part, and how threads share it; the lowest position of a part's points, from
  // the first one on; and the taps of the filter along an axis, where the map takes axes to axes.
  int part, box_width, box_height;
  Shares shares;
  typename Axis<Acc>::Position low_u, low_v;
  int taps;

  // The transpose: how the image is seen; whether `inverse`, of [a b; d e], tells which points of the
  // lattice reach a node, and the sum of their shares in it at most; and c and f.
  Copies across, down;
  bool invertible;
  Acc inverse[4], c, f, reaching;

  // That of every sample where nothing moves and nothing is cut: copies.
  DEVICE static Record still(const Resample& r) {
    Record s{};
    s.u = Axis<Acc>::along(true), s.v = Axis<Acc>::along(false);
    s.usable = s.invertible = true;
    s.kind = Kind::kCopy;
    s.across = {width(r.in), 0, 0}, s.down = {height(r.in), 0, 0};
    return s;
  }
  // Whether that is so.
  static bool is_still(const Resample& r) {
    return r.lossless && !r.maps && !r.margins && !r.epilogue.box && r.in.width == r.out.width &&
           r.in.height == r.out.height;
  }
  // A sample's; of no records, that.
  DEVICE static Record of(const Resample& r, const Record* records, int sample) {
    return records ? load(records + sample) : still(r);
  }
};

// The sides of planes of nodes that are made in shared memory, and the pitch of their rows: lanes step
// along any direction, and the pitch and its neighbors share few factors with the number of banks.
template <class Acc>
constexpr int kSide = sizeof(Acc) == 4 ? 80 : 48;
template <class Acc>
constexpr int kNodePitch = sizeof(Acc) == 4 ? 85 : 53;
// Blocks that a multiprocessor holds at the least: in double, a block needs the registers of two.
template <class T>
constexpr int kBlocksOf = sizeof(T) == 8 ? 1 : 2;
// The largest part of a tile.
template <class Acc>
constexpr int kPart = sizeof(Acc) == 4 ? kTile : kTile / 2;

// Copies that show pixels [low, high] of the plane along an axis, at least those.
DEVICE Copies copies_of(const Resample& r, int64_t size, double low, double high) {
  const int n = static_cast<int>(size), period = n > 1 ? n - 1 : 1;
  if (r.padding != Padding::kReflection) return {n, 0, 0};
  return {n, static_cast<int>(floor_of(low / period)), static_cast<int>(floor_of(high / period))};
}

// Of positions a hx + b hy + c over the whole lattice, the pixels that they take.
DEVICE Copies copies_along(const Resample& r, int64_t size, double a, double b, double c) {
  const auto w = static_cast<double>(2 * r.out.width + 4);
  const auto h = static_cast<double>(2 * r.out.height + 4);
  const double low = (a > 0 ? -5 * a : w * a) + (b > 0 ? -5 * b : h * b) + c;
  const double high = (a > 0 ? w * a : -5 * a) + (b > 0 ? h * b : -5 * b) + c;
  return copies_of(r, size, low / 2 - 5, high / 2 + 6);
}

template <class Acc>
DEVICE Record<Acc> record_of(const Resample& r, int64_t sample) {
  double numbers[6] = {1, 0, 0, 0, 1, 0}, box[3] = {};
  for (int k = 0; r.maps && k < 6; ++k) numbers[k] = load(r.maps + 6 * sample + k);
  for (int k = 0; r.epilogue.box && k < 3; ++k) box[k] = load(r.epilogue.box + 3 * sample + k);
  const auto map = SampleMap<Acc>::of(r, numbers);
  const Lattice& m = map.lattice;
  Record<Acc> s{};
  s.u = map.u, s.v = map.v;
  s.usable = map.usable;
  s.kind = map.kind;
  s.swapped = m.swapped();
  s.cut = Cutout::of(box, r.out.width, r.out.height);
  if (!s.usable) return s;

  const double across = magnitude(m.a) + magnitude(m.b), down = magnitude(m.d) + magnitude(m.e);
  const double steepest = across > down ? across : down;
  // The nodes of a part: those that its points span, three for rounding, and as many as make its sides
  // multiples of 8, from an odd node on.
  for (s.part = kPart<Acc>; s.part >= 4; s.part /= 2)
    if (steepest * (2 * s.part + 9) + 8 <= kSide<Acc>) break;
  if (s.part < 4) s.part = 0;
  const int last = 2 * (s.part ? s.part : kPart<Acc>)+9;
  s.box_width = (static_cast<int>(s.part ? across * last : 0) + 6 + 7) / 8 * 8;
  s.box_height = (static_cast<int>(s.part ? down * last : 0) + 6 + 7) / 8 * 8;
  s.shares = Shares::of(s.box_width);
  const auto lowest = [&](const Axis<Acc>& axis) {
    return (axis.a < 0 ? axis.a * last : 0) + (axis.b < 0 ? axis.b * last : 0);
  };
  s.low_u = lowest(s.u), s.low_v = lowest(s.v);
  // Nodes between the first and the last point of an output, and one for rounding.
  if (steepest < 1000) s.taps = (static_cast<int>((kTaps - 1) * steepest) + 2 + kTaps) / 2 + 1;

  s.across = copies_along(r, r.in.width, m.a, m.b, m.c);
  s.down = copies_along(r, r.in.height, m.d, m.e, m.f);
  const double det = m.a * m.e - m.b * m.d, norm = across + down;
  // The sum of the shares that points have in a node is at most the integral of a point's share, which
  // is 1, each extended by half a step, over the area of a point.
  const double reaching = (1 + across) * (1 + down) / magnitude(det);
  s.invertible = magnitude(det) > 1e-9 * norm * norm && reaching < kReaching &&
                 s.across.count() <= kCopies && s.down.count() <= kCopies;
  if (!s.invertible) return s;
  s.reaching = static_cast<Acc>(reaching);
  const double inverse[4] = {m.e / det, -m.b / det, -m.d / det, m.a / det};
  for (int k = 0; k < 4; ++k) s.inverse[k] = static_cast<Acc>(inverse[k]);
  s.c = static_cast<Acc>(m.c), s.f = static_cast<Acc>(m.f);
  return s;
}

// Writes the record of every sample; a thread is a sample. Reads 48 bytes of the map and 24 of the box.
// double: once a sample
template <class Acc>
KERNEL_FOR(kThreads, 1)
prepare(TABLE(Resample) r, Record<Acc>* records) {
  const int64_t sample = static_cast<int64_t>(block_id()) * kThreads + thread_id();
  if (sample < r.batch) store(records + sample, record_of<Acc>(r, sample));
}

// A rectangle of the output's pixels, or of its lattice's points.
struct Reach {
  int low_x, high_x, low_y, high_y;
  DEVICE bool empty() const { return low_x > high_x || low_y > high_y; }
};

// Of `all`, the points whose positions may lie within `extent_u` and `extent_v` nodes of (u, v). Rounding
// adds some.
template <class Acc>
DEVICE Reach reach(const Record<Acc>& s, Acc u, Acc v, Acc extent_u, Acc extent_v,
                   const Reach& all) {
  const auto axis = [&](Acc a, Acc b, int low, int high, int* first, int* last) {
    const Acc at = a * (u - s.c) + b * (v - s.f);
    const Acc size = magnitude(a) * (magnitude(u) + magnitude(s.c)) +
                     magnitude(b) * (magnitude(v) + magnitude(s.f));
    const Acc slack =
        magnitude(a) * extent_u + magnitude(b) * extent_v + Acc(0.01) + Acc(1e-6) * size;
    const Acc from = at - slack, to = at + slack;
    const auto bottom = static_cast<Acc>(low), top = static_cast<Acc>(high);
    // Only what lies between is counted by an int.
    *first = from > top ? high + 1 : from > bottom ? static_cast<int>(std::floor(from)) : low;
    *last = to < bottom ? low - 1 : to < top ? static_cast<int>(std::floor(to)) + 1 : high;
  };
  Reach found;
  axis(s.inverse[0], s.inverse[1], all.low_x, all.high_x, &found.low_x, &found.high_x);
  axis(s.inverse[2], s.inverse[3], all.low_y, all.high_y, &found.low_y, &found.high_y);
  return found;
}

// --- the block's tile and sample

struct Block {
  int sample, x0, y0;  // the tile's first pixel

  // Of tiles of kTile rows and `columns` columns. Divided once: by one thread, for all of them. All threads
  // must call it, once.
  DEVICE static Block of(const Layout& tiled, int columns = kTile) {
    const auto own = place();
    if (thread_id() == 0) own[0] = found(tiled, columns);
    sync_threads();
    return own[0];
  }
  // The same, after a barrier: what was made of it before need not be kept.
  DEVICE static Block again() { return place()[0]; }
  // The thread's pixel of kTile x kTile from the first one on.
  DEVICE int x() const { return x0 + thread_id() % kTile; }
  DEVICE int y() const { return y0 + thread_id() / kTile; }

 private:
  DEVICE static SharedArray<Block> place() {
    SHARED(Block, own, 1);
    return own;
  }
  DEVICE static Block found(const Layout& tiled, int columns) {
    const int across = (width(tiled) + columns - 1) / columns;
    const int each = across * ((height(tiled) + kTile - 1) / kTile);
    const int sample = block_id() / each, tile = block_id() - sample * each, row = tile / across;
    return {sample, (tile - row * across) * columns, row * kTile};
  }
};

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

// What margins leave, as far as positions can be counted.
struct Range {
  int first, last, low, high;
  DEVICE bool has_node(int i) const { return i >= first && i <= last; }
  DEVICE bool has_pixel(int i) const { return i >= low && i <= high; }
};
DEVICE Range range_of(const Resample& r, int axis) {
  constexpr int kFar = 1 << 30;
  if (!r.margins) return {-kFar, kFar, -kFar, kFar};
  const Bounds b = Bounds::of(load(r.margins + 2 * axis), load(r.margins + 2 * axis + 1),
                              axis ? r.in.height : r.in.width);
  return {static_cast<int>(b.first), static_cast<int>(b.last), static_cast<int>(b.low),
          static_cast<int>(b.high)};
}

}  // namespace gankernels::affine_resample::cuda
