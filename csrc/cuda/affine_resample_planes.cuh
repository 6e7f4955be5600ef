// Planes in shared memory, and the steps between them: pixels are up-sampled into nodes, and points of a
// lattice decimated into pixels. Forward and transpose are made of the same two. A channel at a time; all
// threads of a block call every function here. Sums are made in a fixed order.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "affine_resample_map.cuh"

namespace gankernels::affine_resample::cuda {

// The planes of one channel, one after the other: nodes, and before them the pixels that they are made
// of; and the half-made nodes, of which only the columns are there yet, and later the points of a lattice
// and what decimating their rows leaves.
template <class Acc>
struct Planes {
  static constexpr int kHalfPitch = kSide<Acc>;
  static constexpr int kPixelPitch = kSide<Acc> / 2 + 5;
  static constexpr int kPointPitch = 44;               // a multiple of 4, for loads of 16 bytes
  static constexpr int kColumnPitch = 24;              // two rows are half the banks apart
  static constexpr int kParted = 2 * kPart<Acc> + 10;  // points along an axis of a part
  static constexpr int kHalf = kSide<Acc> * kNodePitch<Acc>;
  static constexpr int kColumns = kHalf + kParted * kPointPitch;
  static constexpr int kSize =
      kHalf + std::max(kPixelPitch * kHalfPitch, kParted*(kPointPitch + kColumnPitch));
};

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

// A rectangle of nodes, or of lattice points: `first` is odd along both axes; the sides are multiples of 8.
struct Box {
  int u, v, width, height;

  // The least that begins at an odd (u, v), or one before, and holds [u, high_u] and [v, high_v], or as much
  // as `side` lets it.
  DEVICE static Box from(int u, int high_u, int v, int high_v, int side) {
    Box b{u - 1 + (u & 1), v - 1 + (v & 1), 0, 0};
    b.width = least((high_u - b.u + 8) / 8 * 8, side);
    b.height = least((high_v - b.v + 8) / 8 * 8, side);
    return b;
  }
  // Nodes 2 q - 1 and 2 q take the pixels q - 3 to q + 2.
  DEVICE int column() const { return (u + 1) / 2 - 3; }
  DEVICE int row() const { return (v + 1) / 2 - 3; }
  DEVICE int columns() const { return width / 2 + 5; }
  DEVICE int rows() const { return height / 2 + 5; }
};

// An element of an image into shared memory, where it arrives at copy_wait().
template <class T>
DEVICE void fetch(SharedArray<Accumulation<T>> memory, int to, const T* from) {
  if constexpr (std::is_same_v<T, Accumulation<T>>)
    copy_async(memory + to, from);
  else
    memory[to] = widen(load(from));
}

// As many as N of 16 bytes each hold.
template <int N, class Acc>
DEVICE void store_run(SharedArray<Acc> memory, int to, const Acc* x) {
  constexpr int kEach = 16 / sizeof(Acc);
  UNROLL(8)
  for (int n = 0; n < N; n += kEach) {
    Vector<Acc, kEach> part;
    UNROLL(4)
    for (int k = 0; k < kEach; ++k) part.at[k] = x[n + k];
    shared_store(memory + (to + n), part);
  }
}

// Eight nodes in a line, of nine pixels, or of half-made nodes, times `kGain`.
template <int kGain, class Acc>
DEVICE void up_sampled(const Acc* x, Acc* node) {
  UNROLL(4)
  for (int k = 0; k < 4; ++k) {
    Acc odd = 0, even = 0;
    UNROLL(6)
    for (int m = 0; m < 6; ++m) {
      odd += kGain * symlet<Acc>(10 - 2 * m) * x[k + m];
      even += kGain * symlet<Acc>(11 - 2 * m) * x[k + m];
    }
    node[2 * k] = odd, node[2 * k + 1] = even;
  }
}

// The first half of up-sampling: the rows of pixels at the beginning of `memory` to half-made nodes, at
// `half`.
template <int kGain, class P, class Acc>
DEVICE void upsample_rows(const Box& box, const Shares& shares, SharedArray<Acc> memory, int half) {
  const int across = box.width / 8, units = across * box.rows();
  UNROLL(1)
  for (int k = thread_id(); k < units; k += kThreads) {
    const int row = (k * shares.eights) >> 16, column = k - row * across;
    const int from = row * P::kPixelPitch + 4 * column;
    Acc x[9], node[8];
    UNROLL(9)
    for (int m = 0; m < 9; ++m) x[m] = memory[from + m];
    up_sampled<kGain>(x, node);
    store_run<8, Acc>(memory, half + row * P::kHalfPitch + 8 * column, node);
  }
}

// Eight nodes of a column, of the half-made ones from `from` on.
template <int kGain, class P, class Acc>
DEVICE void upsample_column(SharedArray<Acc> memory, int from, Acc* node) {
  Acc x[9];
  UNROLL(9)
  for (int m = 0; m < 9; ++m) x[m] = memory[from + m * P::kHalfPitch];
  up_sampled<kGain>(x, node);
}

// The second half, to `nodes`.
template <int kGain, class P, int kPitch, class Acc>
DEVICE void upsample_columns(const Box& box, const Shares& shares, SharedArray<Acc> memory,
                             int half, int nodes) {
  const int units = box.width * (box.height / 8);
  UNROLL(1)
  for (int k = thread_id(); k < units; k += kThreads) {
    const int group = (k * shares.nodes) >> 16, column = k - group * box.width;
    Acc node[8];
    upsample_column<kGain, P>(memory, half + 4 * group * P::kHalfPitch + column, node);
    const int to = nodes + 8 * group * kPitch + column;
    UNROLL(8)
    for (int n = 0; n < 8; ++n) memory[to + n * kPitch] = node[n];
  }
}

// Zeros where margins leave no nodes. A barrier comes last.
template <class Acc>
DEVICE void limit(const Resample& r, const Box& box, SharedArray<Acc> memory) {
  const Range bx = range_of(r, 0), by = range_of(r, 1);
  const Lines lines = Lines::of(box.width);
  const bool column = bx.has_node(box.u + lines.column);
  for (int row = lines.row; row < box.height; row += lines.step)
    if (!column || !by.has_node(box.v + row)) memory[row * kNodePitch<Acc> + lines.column] = 0;
  sync_threads();
}

// Of 2 N + 10 points in a line, the N pixels that are made of them.
template <int N, class Acc>
DEVICE void decimated(const Acc* x, Acc* sum) {
  UNROLL(8)
  for (int k = 0; k < N; ++k) {
    sum[k] = 0;
    UNROLL(12)
    for (int j = 0; j < kTaps; ++j) sum[k] += symlet<Acc>(j) * x[2 * k + j];
  }
}

// The first half of decimation: the rows of a lattice, of `count` points, to `side` columns.
template <class Acc>
DEVICE void decimate_rows(SharedArray<Acc> memory, int count, int side) {
  using P = Planes<Acc>;
  constexpr int kEach = 16 / sizeof(Acc);
  // Four columns a thread; `side` is 16, 8 or 4.
  const int bits = side >> 3, row = thread_id() >> bits, x = 4 * (thread_id() - (row << bits));
  static_assert(4 * P::kParted <= kThreads);
  if (row >= count) return;
  const int from = P::kHalf + row * P::kPointPitch + 2 * x;
  Acc point[18];
  UNROLL(8)
  for (int n = 0; n < 16; n += kEach) {
    const auto part = shared_load<kEach>(memory + (from + n));
    UNROLL(4)
    for (int k = 0; k < kEach; ++k) point[n + k] = part.at[k];
  }
  const auto last = shared_load<2>(memory + (from + 16));
  point[16] = last.at[0], point[17] = last.at[1];
  Acc sum[4];
  decimated<4>(point, sum);
  store_run<4, Acc>(memory, P::kColumns + row * P::kColumnPitch + x, sum);
}

// The second half of decimation: the sum of 12 rows of columns, from `row` on.
template <class Acc>
DEVICE Acc decimate_column(SharedArray<Acc> memory, int row, int x) {
  using P = Planes<Acc>;
  Acc sum = 0;
  UNROLL(12)
  for (int j = 0; j < kTaps; ++j)
    sum += symlet<Acc>(j) * memory[P::kColumns + (row + j) * P::kColumnPitch + x];
  return sum;
}

// Positions near each other, relative to a node. Of fixed points the fraction has 32 bits: within some
// hundred nodes the steps' rounding is one of 1e-8.
template <class Acc>
struct LocalAxis;

template <>
struct LocalAxis<float> {
  int64_t base, a, b;

  DEVICE static LocalAxis of(const Axis<float>& axis, int hx, int hy, int node) {
    const int shift = axis.bits - 32;
    const int64_t first =
        axis.at(hx, hy) - static_cast<int64_t>(static_cast<uint64_t>(int64_t{node}) << axis.bits);
    const int64_t half = int64_t{1} << shift >> 1;
    return {first >> shift, (axis.a + half) >> shift, (axis.b + half) >> shift};
  }
  DEVICE static int whole(int64_t u) { return static_cast<int>(u >> 32); }
  DEVICE static uint32_t fraction(int64_t u) { return static_cast<uint32_t>(u); }
  DEVICE static float share(int64_t u) { return static_cast<float>(fraction(u)) * 0x1p-32f; }
};

template <>
struct LocalAxis<double> {
  double base, a, b;

  DEVICE static LocalAxis of(const Axis<double>& axis, int hx, int hy, int node) {
    return {axis.at(hx, hy) - static_cast<double>(node), axis.a, axis.b};
  }
  DEVICE static int whole(double u) { return static_cast<int>(std::floor(u)); }
  DEVICE static double share(double u) { return u - std::floor(u); }
};

// A box, how threads share it, and positions in it, or from it: made by one thread, in shared memory. A barrier
// has to come before and to follow.
template <class Acc>
struct Frame {
  Box box;
  Shares shares;
  LocalAxis<Acc> u, v;
};

}  // namespace gankernels::affine_resample::cuda
