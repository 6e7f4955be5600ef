// Tiles of a weight where it lies in memory, balanced over layers of very different size.
//
// Memory is w[outer][rows][inner] (common/matrix.h). A walk sees it as batches of `depth` rows of
// `width` contiguous columns, cuts them into tiles, and gives every tile to a block:
//
//   columns  a stripe of them. A thread holds one group of 16 bytes (or one element, where rows are
//            not aligned) of consecutive columns, `lanes` threads side by side: a full warp reads 512
//            contiguous bytes. Narrow weights put several rows into a warp, and so do small tiles.
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

constexpr int kBlock = 128, kBlockWarps = kBlock / kWarp;  // threads of a block
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

// Tiles of a launch, at most: one wave, as a multiprocessor holds 5 blocks of 128 threads, and a full
// one: 4 for each of the 132 multiprocessors of an H100, 4.9 for each of the 108 of an A100.
constexpr int kTiles = 4 * 132;
// So many from 4 MiB on; where there is less to do, tiles have as much as then, which is four loads of 16
// bytes for every thread.
constexpr int64_t kLeastTile = (int64_t{4} << 20) / kTiles;

// Shares the tiles of a launch among layers that come in ascending order of their sizes: in proportion,
// rounded up, what is left for the largest, which has most to divide.
class TileBudget {
 public:
  explicit TileBudget(int64_t bytes)
      : tiles_(std::clamp<int64_t>(bytes / kLeastTile, 1, kTiles)), bytes_(bytes) {}
  // At most how many tiles a layer of `bytes` is cut into.
  int64_t share(int64_t bytes) const {
    if (bytes_ <= 0) return 1;
    return std::max<int64_t>(bytes >= bytes_ ? tiles_ : ceil_div(tiles_ * bytes, bytes_), 1);
  }
  void take(int64_t bytes, int64_t tiles) {
    bytes_ -= bytes;
    tiles_ = std::max<int64_t>(tiles_ - tiles, 0);
  }

 private:
  int64_t tiles_, bytes_;
};

// Of at most `tiles` tiles of a `deep` x `across` matrix, whose sides are counted in the least that a tile
// can have of each: the sides of the tiles whose largest is the smallest. Sides across are 1 to 8.
struct TileSides {
  int64_t across, deep;
};
inline TileSides tile_sides(int64_t across, int64_t deep, int64_t least, int64_t tiles,
                            int64_t most_deep) {
  TileSides best{};
  for (int64_t side = least; side < least + 8 && (best.deep == 0 || side <= across); ++side) {
    const int64_t parts = std::max<int64_t>(tiles / ceil_div(across, side), 1);
    const int64_t other = std::min(ceil_div(deep, parts), most_deep);
    if (best.deep == 0 || side * other < best.across * best.deep) best = {side, other};
  }
  return best;
}

// At most `tiles` tiles, or those of kMaxParts, whose sums, if any, run over the rows. `vector` elements
// are 16 bytes, or 1.
inline Walk walk_across(int64_t batches, int64_t depth, int64_t width, int64_t group, int vector,
                        int64_t tiles, int64_t max_parts) {
  Walk walk{};
  walk.batches = static_cast<int>(batches);
  walk.depth = static_cast<int>(depth);
  walk.width = static_cast<int>(width);
  walk.group = static_cast<int>(group);
  walk.vectors = vector > 1;
  walk.lanes = lanes_for(ceil_div(width, vector));
  // A tile reads a group of entries a row and writes, and its stripe's last reads, a sum a column: less
  // of both where a small tile is as wide as half a warp reads, still whole lines.
  const int64_t whole = walk.lanes * vector, elements = batches * depth * width / tiles;
  if (walk.lanes == kWarp && group <= whole / 2 && elements * group < whole * whole)
    walk.lanes /= 2;
  const int64_t held = walk.lanes * vector;
  const int64_t span = group > held ? held : held / group * group;
  walk.span = static_cast<int>(span);
  const int64_t unit = group > held ? group : span, units = ceil_div(width, unit);
  const int64_t each = std::max<int64_t>(tiles / batches, 1);
  const int64_t least = std::max(ceil_div(units, kMaxStripes), ceil_div(units, each));
  // A group of more than a block holds at a time is a stripe of its own.
  const TileSides sides = group > held
                              ? TileSides{1, ceil_div(depth, std::max<int64_t>(each / units, 1))}
                              : tile_sides(units, depth, least, each, INT32_MAX);
  walk.stripe = static_cast<int>(std::min(sides.across * unit, width));
  walk.stripes = static_cast<int>(ceil_div(width, walk.stripe));
  // At least a row for every warp, or for what its lanes hold beside it.
  const int64_t part =
      std::max<int64_t>({sides.deep, kBlock / walk.lanes, ceil_div(depth, max_parts)});
  walk.part = static_cast<int>(std::min(part, depth));
  walk.parts = static_cast<int>(ceil_div(depth, walk.part));
  return walk;
}

// At most `tiles` tiles whose sums run along the columns, or those that have at most kStage rows.
inline Walk walk_along(int64_t depth, int64_t width, int vector, int64_t tiles) {
  Walk walk{};
  walk.along = true;
  walk.batches = walk.group = 1;
  walk.depth = static_cast<int>(depth);
  walk.width = static_cast<int>(width);
  walk.vectors = vector > 1;
  walk.lanes = lanes_for(ceil_div(width, vector));
  // A tile stages its columns of x once and writes, and its stripe's last reads, a sum a row: again less of
  // both where a small tile is as wide as half a warp reads. Its columns are whole rounds of loads.
  int64_t round = std::max(128, kWarp * vector);
  if (walk.lanes == kWarp && depth * width / tiles < round * round / 4) walk.lanes /= 2, round /= 2;
  const int64_t rounds = ceil_div(width, round);
  const int64_t least = std::max(ceil_div(rounds, kMaxParts), ceil_div(rounds, tiles));
  const TileSides sides = tile_sides(rounds, depth, least, tiles, kStage);
  walk.part = static_cast<int>(sides.across * round);
  walk.parts = static_cast<int>(ceil_div(width, walk.part));
  walk.stripe = static_cast<int>(sides.deep);
  walk.stripes = static_cast<int>(ceil_div(depth, walk.stripe));
  return walk;
}

// --- the inside of a tile ---------------------------------------------------------------------------

// Four loads of 16 bytes are in flight in every thread before the first is used: rows at a time of
// kernels that read `streams` tensors side by side.
constexpr int rows_at_once(int streams) {
  return streams == 1 ? 4 : 2;
}

// Entries [begin, end) of the rows of `p` that the block stages: entry (k, c) is that of row k and of
// the c-th column of a group, times `factor`. No division by entry, of which there are several a row.
template <class T>
DEVICE void stage_rows(const Walk& walk, const Operand& p, Factor<Accumulation<T>> factor,
                       int begin, int end, int window, int offset,
                       SharedArray<Accumulation<T>> stage) {
  const int rows = kBlock / window, columns = kBlock - rows * window;
  int k = begin + thread_id() / window, c = thread_id() % window;
  for (int i = thread_id(); k < end; i += kBlock) {
    if (offset + c < walk.group) stage[i] = entry<T>(p, k * walk.group + offset + c) * factor;
    k += rows, c += columns;
    if (c >= window) c -= window, ++k;
  }
}

// Calls f(offset, in, x) for this thread's columns n to n + N - 1 in its rows: `offset` is theirs in
// the weight, in[s] those of the tensor sources[s], x[j] the entry of `p` for column j, times `factor`.
// The columns that the block holds begin at `first`. All threads must call it; without kEntries `p` is
// not read, and x is undefined. The loads of several rows are under way before the first is used; one
// loop, so that it is true of the last rows, too.
template <class T, int N, bool kEntries = true, int kSources, class F>
DEVICE void for_each_row(const Walk& walk, const Tile& tile, int first, const Operand& p,
                         Factor<Accumulation<T>> factor, SharedArray<Accumulation<T>> stage,
                         const T* const (&sources)[kSources], F&& f) {
  using Acc = Accumulation<T>;
  constexpr int kRows = rows_at_once(kSources);
  const int lane = thread_id() % walk.lanes, slot = thread_id() / walk.lanes;
  const int slots = kBlock / walk.lanes, n = first + lane * N;
  const bool active = lane * N < walk.span && n < tile.stripe_end;
  const int window = walk.group < walk.span ? walk.group : walk.span;
  const int column = window == 1 ? 0 : (n - first) % window;  // of the window
  const int rows = kEntries ? kStage / window : walk.part;
  const int64_t base = static_cast<int64_t>(tile.batch) * walk.depth * walk.width + n;
  const int64_t step = static_cast<int64_t>(slots) * walk.width;
  for (int k0 = tile.part; k0 < tile.part_end; k0 += rows) {
    const int k1 = k0 + rows < tile.part_end ? k0 + rows : tile.part_end;
    if constexpr (kEntries) {
      sync_threads();  // what was staged before has been used
      stage_rows<T>(walk, p, factor, k0, k1, window, first % walk.group, stage);
      sync_threads();
    }
    if (!active) continue;
    int64_t offset = base + static_cast<int64_t>(k0 + slot) * walk.width;
    int entry = slot * window + column;
    UNROLL(1)
    for (int k = k0 + slot; k < k1; k += kRows * slots) {
      Words<T, N> words[kRows][kSources];
      UNROLL(kRows)
      for (int r = 0; r < kRows; ++r)
        if (k + r * slots < k1)
          for (int s = 0; s < kSources; ++s)
            words[r][s] = load_words<T, N>(sources[s] + offset + r * step);
      UNROLL(kRows)
      for (int r = 0; r < kRows; ++r) {
        if (k + r * slots >= k1) break;
        Vector<Acc, N> x;
        if constexpr (kEntries) {
          const int at = entry + r * slots * window;
          if (window == 1) {
            const Acc only = stage[at];
            for (int j = 0; j < N; ++j) x.at[j] = only;
          } else {  // a multiple of N, as groups are where there are vectors
            x = shared_load<N>(stage + at);
          }
        }
        Vector<T, N> in[kSources];
        for (int s = 0; s < kSources; ++s) in[s] = as_vector<T, N>(words[r][s]);
        f(offset + r * step, in, x.at);
      }
      offset += kRows * step;
      entry += kRows * slots * window;
    }
  }
}

}  // namespace gankernels
