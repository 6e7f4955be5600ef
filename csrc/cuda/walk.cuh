// Tiles of a weight where it lies in memory, balanced over layers of very different size.
//
// Memory is w[outer][rows][inner] (common/matrix.h). A walk sees it as batches of `depth` rows of
// `width` contiguous columns, cuts them into tiles, and gives every tile to a block:
//
//   columns  a stripe of them. A thread holds one group of 16 bytes (or one element, where rows are
//            not aligned) of consecutive columns, `lanes` threads side by side: a full warp reads 512
//            contiguous bytes. Narrow weights put several rows into a warp.
//   rows     a part of them; a block's threads take turns.
//
// Tiles depend on the shapes alone, and so does the order of every sum.
#pragma once

#include <algorithm>

#include "common/matrix.h"
#include "common/reduce.cuh"
#include "common/tensor_table.cuh"
#include "cuda/factor.cuh"

namespace gankernels {

constexpr int kStage = 1024;  // entries of a vector that a block holds in shared memory
constexpr int kMaxParts = 64, kMaxStripes = 1024;

// The most columns that a block holds at a time.
template <class T>
constexpr int kColumns = kWarp * kVector<T>;

// --- vectors ----------------------------------------------------------------------------------------

// Where the entry of a vector in the order of memory lies in logical order; dims = 0: where it is.
struct ColumnOrder {
  int dims;
  unsigned memory_stride[kMaxColumnDims], logical_stride[kMaxColumnDims];
};

inline ColumnOrder column_order(const Matrix& w) {
  ColumnOrder order{};
  int64_t logical = w.cols();
  for (int d = 0; d < w.column_dims; ++d) {
    logical /= w.column_size[d];
    int at = order.dims++;
    for (; at > 0 && order.memory_stride[at - 1] < w.column_stride[d]; --at) {
      order.memory_stride[at] = order.memory_stride[at - 1];
      order.logical_stride[at] = order.logical_stride[at - 1];
    }
    order.memory_stride[at] = static_cast<unsigned>(w.column_stride[d]);
    order.logical_stride[at] = static_cast<unsigned>(logical);
  }
  return order;
}

DEVICE int logical_index(const ColumnOrder& order, int k) {
  if (order.dims == 0) return k;
  unsigned rest = k, logical = 0;
  for (int d = 0; d < order.dims; ++d) {
    logical += rest / order.memory_stride[d] * order.logical_stride[d];
    rest %= order.memory_stride[d];
  }
  return static_cast<int>(logical);
}

// One of u and v in the order of memory: of the weights' dtype, or of Acc.
struct Operand {
  const void* data;
  bool stored;
  ColumnOrder order;
};

template <class T>
DEVICE Accumulation<T> entry(const Operand& x, int k) {
  const int i = logical_index(x.order, k);
  if (x.stored) return widen(load(static_cast<const T*>(x.data) + i));
  return load(static_cast<const Accumulation<T>*>(x.data) + i);
}

// --- tiles ------------------------------------------------------------------------------------------

struct Walk {
  int batches, depth, width;
  int group;            // columns n to n + group - 1 belong to one row of the weight (1: any)
  int lanes;            // threads side by side
  int span;             // columns that a block holds at a time: whole groups, or a part of one
  int stripe, stripes;  // columns of a tile, stripes of a batch
  int part, parts;      // rows of a tile, parts of a stripe
  bool vectors;         // 16-byte accesses
  bool along;           // sums run along the columns: a stripe is of rows, a part of columns

  constexpr int tiles() const { return batches * stripes * parts; }
  constexpr int64_t outputs() const {
    return static_cast<int64_t>(batches) * (along ? depth : width);
  }
};

struct Tile {
  int stripe_index;  // over all batches
  int part_index;
  int batch;
  int stripe, stripe_end;  // where its stripe begins and ends
  int part, part_end;
};

DEVICE Tile tile_of(const Walk& walk, int index) {
  const int stripe_index = index / walk.parts, part_index = index % walk.parts;
  const int batch = stripe_index / walk.stripes;
  const int stripe = stripe_index % walk.stripes * walk.stripe, part = part_index * walk.part;
  const int across = walk.along ? walk.depth : walk.width;
  const int deep = walk.along ? walk.width : walk.depth;
  return {stripe_index,
          part_index,
          batch,
          stripe,
          stripe + walk.stripe < across ? stripe + walk.stripe : across,
          part,
          part + walk.part < deep ? part + walk.part : deep};
}

// Bytes of a tile: 512 tiles and more fill a GPU, fewer have fewer partial sums. Whole vectors for every
// thread.
inline int64_t tile_bytes(int64_t total_bytes) {
  constexpr int64_t kRound = kThreads * 16;
  return std::clamp<int64_t>(total_bytes / 512 / kRound * kRound, 8 << 10, 128 << 10);
}

// Tiles whose sums, if any, run over the rows. `vector` elements are 16 bytes, or 1.
inline Walk walk_across(int64_t batches, int64_t depth, int64_t width, int64_t group, int vector,
                        int64_t target, int64_t max_parts) {
  Walk walk{};
  walk.batches = static_cast<int>(batches);
  walk.depth = static_cast<int>(depth);
  walk.width = static_cast<int>(width);
  walk.group = static_cast<int>(group);
  walk.vectors = vector > 1;
  walk.lanes = lanes_for(ceil_div(width, vector));
  const int64_t held = walk.lanes * vector;
  const int64_t span = group > held ? held : held / group * group;
  const int64_t least = ceil_div(ceil_div(width, span), kMaxStripes);
  const int64_t stripe = group > held ? group : span * least;
  walk.span = static_cast<int>(span);
  walk.stripe = static_cast<int>(std::min(stripe, width));
  walk.stripes = static_cast<int>(ceil_div(width, walk.stripe));
  const int64_t part =
      std::max<int64_t>({target / walk.stripe, kThreads / walk.lanes, ceil_div(depth, max_parts)});
  walk.part = static_cast<int>(std::min(part, depth));
  walk.parts = static_cast<int>(ceil_div(depth, walk.part));
  return walk;
}

// Tiles whose sums run along the columns.
inline Walk walk_along(int64_t depth, int64_t width, int vector, int64_t target) {
  Walk walk{};
  walk.along = true;
  walk.batches = walk.group = 1;
  walk.depth = static_cast<int>(depth);
  walk.width = static_cast<int>(width);
  walk.vectors = vector > 1;
  walk.lanes = lanes_for(ceil_div(width, vector));
  // A tile stages its columns of x once and writes a partial sum a row: 32 rows where it can have
  // them, of at least one load for every lane.
  const int64_t round = std::max(128, kWarp * vector);
  const int64_t wanted = std::clamp<int64_t>(target / 32 / round * round, round, kStage);
  const int64_t least = ceil_div(ceil_div(width, kMaxParts), round) * round;
  walk.part = static_cast<int>(std::max(wanted, least));
  walk.parts = static_cast<int>(ceil_div(width, walk.part));
  const int64_t rows = target / std::min<int64_t>(walk.part, width);
  walk.stripe = static_cast<int>(std::min(std::clamp<int64_t>(rows, 1, kStage), depth));
  walk.stripes = static_cast<int>(ceil_div(depth, walk.stripe));
  return walk;
}

// --- the inside of a tile ---------------------------------------------------------------------------

// Calls f(offset, x) for this thread's columns n to n + N - 1 in its rows: `offset` is theirs in the
// weight, x[j] the entry of `p` for column j, times `factor`. The columns that the block holds begin
// at `first`. All threads must call it; without `p` (data is null) x is undefined.
template <class T, int N, class F>
DEVICE void for_each_row(const Walk& walk, const Tile& tile, int first, const Operand& p,
                         Factor<Accumulation<T>> factor, SharedArray<Accumulation<T>> stage,
                         F&& f) {
  const int lane = thread_id() % walk.lanes, slot = thread_id() / walk.lanes;
  const int slots = kThreads / walk.lanes, n = first + lane * N;
  const bool active = lane * N < walk.span && n < tile.stripe_end;
  // Entry (k, c) of p is that of row k and of the c-th column of a group.
  const int window = walk.group < walk.span ? walk.group : walk.span;
  const int rows = p.data ? kStage / window : walk.part, offset = first % walk.group;
  const int64_t base = static_cast<int64_t>(tile.batch) * walk.depth * walk.width;
  for (int k0 = tile.part; k0 < tile.part_end; k0 += rows) {
    const int k1 = k0 + rows < tile.part_end ? k0 + rows : tile.part_end;
    if (p.data) {
      sync_threads();  // what was staged before has been used
      for (int i = thread_id(); i < (k1 - k0) * window; i += kThreads) {
        const int c = offset + i % window;
        if (c < walk.group) stage[i] = entry<T>(p, (k0 + i / window) * walk.group + c) * factor;
      }
      sync_threads();
    }
    if (!active) continue;
    UNROLL(4)
    for (int k = k0 + slot; k < k1; k += slots) {
      Accumulation<T> x[N] = {};
      if (p.data)
        for (int j = 0; j < N; ++j)
          x[j] = stage[(k - k0) * window + (window == 1 ? 0 : (n - first) % window + j)];
      f(base + static_cast<int64_t>(k) * walk.width + n, x);
    }
  }
}

}  // namespace gankernels
