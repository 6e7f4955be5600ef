// Planes in shared memory, and the steps between them: pixels are up-sampled into nodes, and points of a
// lattice decimated into pixels. Forward and transpose are made of the same two. A channel at a time; all
// threads of a block call every function here. Sums are made in a fixed order.
#pragma once

#include <algorithm>
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
  static constexpr int kPointPitch = 44;               // even, for loads of two
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

// A rectangle of nodes, or of lattice points: `first` is odd along both axes; the width is a multiple of
// 2, the height of 8.
struct Box {
  int u, v, width, height;

  // The least that holds [low, high] along both axes.
  DEVICE static Box around(int low_u, int high_u, int low_v, int high_v) {
    Box b{low_u - 1 + (low_u & 1), low_v - 1 + (low_v & 1), 0, 0};
    b.width = (high_u - b.u + 2) / 2 * 2;
    b.height = (high_v - b.v + 8) / 8 * 8;
    return b;
  }
  // Nodes 2 q - 1 and 2 q take the pixels q - 3 to q + 2.
  DEVICE int column() const { return (u + 1) / 2 - 3; }
  DEVICE int row() const { return (v + 1) / 2 - 3; }
  DEVICE int columns() const { return width / 2 + 5; }
  DEVICE int rows() const { return height / 2 + 5; }
};

// How threads share a box's steps.
struct BoxLines {
  Lines pixels, pairs, nodes;
  DEVICE static BoxLines of(const Box& b) {
    return of(b, Lines::share_of(b.columns()), Lines::share_of(b.width / 2));
  }
  DEVICE static BoxLines of(const Box& b, int pixels_share, int pairs_share) {
    const Lines pairs = Lines::of(b.width / 2, pairs_share);
    // A row of nodes is two of pairs.
    const int row = pairs.row >> 1;
    return {Lines::of(b.columns(), pixels_share),
            pairs,
            {pairs.column + (pairs.row & 1) * (b.width / 2), row < pairs.step >> 1 ? row : 1 << 20,
             pairs.step >> 1}};
  }
};

// An element of an image into shared memory, or zero; it arrives at copy_wait().
template <class T>
DEVICE void fetch(SharedArray<Accumulation<T>> memory, int to, const T* from, bool here) {
  if constexpr (std::is_same_v<T, Accumulation<T>>) {
    if (here)
      copy_async(memory + to, from);
    else
      memory[to] = 0;
  } else {
    memory[to] = here ? widen(load(from)) : Accumulation<T>(0);
  }
}

// Pixels at the beginning of `memory` to the nodes that take their place, filtered, times `kGain` along
// either axis. A barrier has to come before; one comes last.
template <int kGain, class Acc>
DEVICE void upsample(const Box& box, const BoxLines& lines, SharedArray<Acc> memory) {
  using P = Planes<Acc>;
  const int rows = box.rows();
  const auto tap = [](int j) { return kGain * symlet<Acc>(j); };
  for (int row = lines.pairs.row; row < rows; row += lines.pairs.step) {
    const int from = row * P::kPixelPitch + lines.pairs.column;
    Vector<Acc, 2> pair{};
    UNROLL(6)
    for (int m = 0; m < 6; ++m) {
      const Acc x = memory[from + m];
      pair.at[0] += tap(10 - 2 * m) * x;
      pair.at[1] += tap(11 - 2 * m) * x;
    }
    shared_store(memory + (P::kHalf + row * P::kHalfPitch + 2 * lines.pairs.column), pair);
  }
  sync_threads();
  // Eight rows of nodes at a time, of nine.
  const int groups = box.height / 8;
  for (int group = lines.nodes.row; group < groups; group += lines.nodes.step) {
    const int from = P::kHalf + 4 * group * P::kHalfPitch + lines.nodes.column;
    const int to = 8 * group * kNodePitch<Acc> + lines.nodes.column;
    Acc x[9];
    UNROLL(9)
    for (int m = 0; m < 9; ++m) x[m] = memory[from + m * P::kHalfPitch];
    UNROLL(4)
    for (int k = 0; k < 4; ++k) {
      Acc odd = 0, even = 0;
      UNROLL(6)
      for (int m = 0; m < 6; ++m) {
        odd += tap(10 - 2 * m) * x[k + m];
        even += tap(11 - 2 * m) * x[k + m];
      }
      memory[to + 2 * k * kNodePitch<Acc>] = odd;
      memory[to + (2 * k + 1) * kNodePitch<Acc>] = even;
    }
  }
  sync_threads();
}

// Zeros where margins leave no nodes. A barrier comes last.
template <class Acc>
DEVICE void limit(const Resample& r, const Box& box, const BoxLines& lines,
                  SharedArray<Acc> memory) {
  const Range bx = range_of(r, 0), by = range_of(r, 1);
  const bool column = bx.has_node(box.u + lines.nodes.column);
  for (int row = lines.nodes.row; row < box.height; row += lines.nodes.step)
    if (!column || !by.has_node(box.v + row))
      memory[row * kNodePitch<Acc> + lines.nodes.column] = 0;
  sync_threads();
}

// The first half of decimation: the rows of a lattice, of `count` points, to `side` columns.
template <class Acc>
DEVICE void decimate_rows(SharedArray<Acc> memory, int count, int side) {
  using P = Planes<Acc>;
  const int x = thread_id() % kTile;
  if (x >= side) return;
  for (int row = thread_id() / kTile; row < count; row += kTile) {
    const int from = P::kHalf + row * P::kPointPitch + 2 * x;
    Acc sum = 0;
    UNROLL(6)
    for (int m = 0; m < 6; ++m) {
      const auto pair = shared_load<2>(memory + (from + 2 * m));
      sum += symlet<Acc>(2 * m) * pair.at[0];
      sum += symlet<Acc>(2 * m + 1) * pair.at[1];
    }
    memory[P::kColumns + row * P::kColumnPitch + x] = sum;
  }
}

// The second half of decimation: the sum of 12 rows of columns, from `row` on.
template <class Acc>
DEVICE Acc decimate_column(SharedArray<Acc> memory, int columns, int row, int x) {
  using P = Planes<Acc>;
  Acc sum = 0;
  UNROLL(12)
  for (int j = 0; j < kTaps; ++j)
    sum += symlet<Acc>(j) * memory[columns + (row + j) * P::kColumnPitch + x];
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

}  // namespace gankernels::affine_resample::cuda
