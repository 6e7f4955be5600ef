// The kernels of the power iteration: vectors that lead nowhere, products, and the end, which normalizes
// u and v and may scale W.
#pragma once

#include <cmath>
#include <limits>

#include "cuda/spectral_norm.cuh"

namespace gankernels::spectral_norm::cuda {

// --- guarded vectors from which no iteration leads anywhere -----------------------------------------

struct RepairLayer {
  void *u, *v;
  int rows, cols;
};

struct RepairTable {
  int count;
  RepairLayer layers[kTensors];
};

// A u or v that is zero or not finite becomes that of start_of. Two blocks a layer, u and v.
// double: squares leave the range of float
template <class T>
KERNEL(kThreads)
repair(TABLE(RepairTable) table) {
  const RepairLayer& layer = table.layers[block_id() / 2];
  T* x = static_cast<T*>(block_id() % 2 ? layer.v : layer.u);
  const int n = block_id() % 2 ? layer.cols : layer.rows;
  double square = 0;
  for (int i = thread_id(); i < n; i += kThreads) {
    const double value = widen(load(x + i));
    square += value * value;
  }
  square = block_sum(square);
  if (square > 0 && square <= std::numeric_limits<double>::max()) return;
  square = 0;
  for (int i = thread_id(); i < n; i += kThreads) square += start_of(i) * start_of(i);
  const double norm = sqrt(block_sum(square));
  for (int i = thread_id(); i < n; i += kThreads)
    store(x + i, narrow<T>(static_cast<Accumulation<T>>(start_of(i) / norm)));
}

// --- one product of the power iteration -------------------------------------------------------------

struct ProductLayer {
  const void* w;
  Operand x;
  const double* x_squares;  // null: x has norm 1
  int x_square_count;
  int fold;         // outputs that make one entry of the result
  void* partial;    // acc: parts x outputs
  void* result;     // acc, in the order of memory, not normalized
  double* squares;  // of every stripe: the sum of the squares of its results
  int* tickets;     // of every stripe; zero before and after
  Walk walk;
  int first_tile;
};

struct ProductTable {
  int count;
  double eps;
  ProductLayer layers[kTensors];
};

// Partial sums over the rows of a tile, for every column.
template <class T, int N>
DEVICE void multiply_across(const ProductLayer& layer, const Tile& tile,
                            Factor<Accumulation<T>> factor, SharedArray<Accumulation<T>> stage,
                            SharedArray<Accumulation<T>> sums) {
  using Acc = Accumulation<T>;
  const Walk& walk = layer.walk;
  const int lane = thread_id() % walk.lanes, warp = thread_id() / kWarp;
  Acc* partial = static_cast<Acc*>(layer.partial) + tile.part_index * walk.outputs() +
                 static_cast<int64_t>(tile.batch) * walk.width;
  for (int first = tile.stripe; first < tile.stripe_end; first += walk.span) {
    Acc sum[N] = {};
    for_each_row<T, N>(walk, tile, first, layer.x, factor, stage,
                       [&](int64_t offset, const Acc(&x)[N]) {
                         const auto w = load<N>(static_cast<const T*>(layer.w) + offset);
                         for (int j = 0; j < N; ++j) sum[j] += widen(w.at[j]) * x[j];
                       });
    for (int lanes = walk.lanes; lanes < kWarp; lanes *= 2)
      for (int j = 0; j < N; ++j) sum[j] += shuffle_xor(sum[j], lanes);
    if (thread_id() % kWarp < walk.lanes)
      for (int j = 0; j < N; ++j) sums[(warp * walk.lanes + lane) * N + j] = sum[j];
    sync_threads();
    const int end = first + walk.span < tile.stripe_end ? first + walk.span : tile.stripe_end;
    for (int i = thread_id(); i < end - first; i += kThreads) {
      Acc total = 0;
      for (int k = 0; k < kWarps; ++k) total += sums[k * walk.lanes * N + i];
      store(partial + first + i, total);
    }
  }
}

// Partial sums over the columns of a tile, for every row.
template <class T, int N>
DEVICE void multiply_along(const ProductLayer& layer, const Tile& tile,
                           Factor<Accumulation<T>> factor, SharedArray<Accumulation<T>> stage,
                           SharedArray<Accumulation<T>> sums) {
  using Acc = Accumulation<T>;
  const Walk& walk = layer.walk;
  const int lane = thread_id() % walk.lanes, slot = thread_id() / walk.lanes;
  const int slots = kThreads / walk.lanes, rows = tile.stripe_end - tile.stripe;
  for (int i = thread_id(); i < rows; i += kThreads) sums[i] = 0;
  for (int first = tile.part; first < tile.part_end; first += kStage) {
    const int count = first + kStage < tile.part_end ? kStage : tile.part_end - first;
    sync_threads();  // what was staged before has been used
    for (int i = thread_id(); i < count; i += kThreads)
      stage[i] = entry<T>(layer.x, first + i) * factor;
    sync_threads();
    for (int row = slot; row - slot < rows; row += slots) {  // whole warps: they add up together
      Acc sum = 0;
      if (row < rows) {
        const T* w = static_cast<const T*>(layer.w) +
                     static_cast<int64_t>(tile.stripe + row) * walk.width + first;
        UNROLL(4)
        for (int i = lane * N; i < count; i += walk.lanes * N) {
          const auto a = load<N>(w + i);
          const auto x = shared_load<N>(stage + i);
          for (int j = 0; j < N; ++j) sum += widen(a.at[j]) * x.at[j];
        }
      }
      for (int lanes = 1; lanes < walk.lanes; lanes *= 2) sum += shuffle_xor(sum, lanes);
      if (lane == 0 && row < rows) sums[row] += sum;
    }
  }
  sync_threads();
  Acc* partial = static_cast<Acc*>(layer.partial) + tile.part_index * walk.outputs() + tile.stripe;
  for (int i = thread_id(); i < rows; i += kThreads) store(partial + i, static_cast<Acc>(sums[i]));
}

// result = W x or W^T x, x normalized: u_raw = W v or v_raw = W^T u. The last block of a stripe adds up
// its parts. Reads W once; a tile writes, and its stripe's last reads, one partial sum for every column
// (512 bytes of W have at least kThreads / 32 = 8 rows, usually over 64) or every 1,024 columns.
// 16-byte accesses: loads
// double: squares of results, which leave the range of float
template <class T>
KERNEL(kThreads)
product(TABLE(ProductTable) table) {
  using Acc = Accumulation<T>;
  SHARED(Acc, stage, kStage);
  SHARED(Acc, sums, kWarps * kColumns<T> > kStage ? kWarps * kColumns<T> : kStage);
  const ProductLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const Walk& walk = layer.walk;
  const Tile tile = tile_of(walk, block_id() - layer.first_tile);

  Factor<Acc> factor{1, 1};
  if (layer.x_squares) {
    const double square = block_sum_of(layer.x_squares, layer.x_square_count);
    factor = factor_of<Acc>(1 / at_least(sqrt(square), table.eps));
  }
  if (walk.along) {
    if (walk.vectors)
      multiply_along<T, kVector<T>>(layer, tile, factor, stage, sums);
    else
      multiply_along<T, 1>(layer, tile, factor, stage, sums);
  } else {
    if (walk.vectors)
      multiply_across<T, kVector<T>>(layer, tile, factor, stage, sums);
    else
      multiply_across<T, 1>(layer, tile, factor, stage, sums);
  }

  if (!is_last_block(layer.tickets + tile.stripe_index, walk.parts)) return;
  const int64_t base = walk.along ? 0 : static_cast<int64_t>(tile.batch) * walk.width;
  const int64_t outputs = walk.outputs();
  const int fold = layer.fold;
  const auto* partial = static_cast<const Acc*>(layer.partial);
  double square = 0;
  for (int i = tile.stripe / fold + thread_id(); i < tile.stripe_end / fold; i += kThreads) {
    const Acc* first = partial + base + static_cast<int64_t>(i) * fold;
    Acc sum = 0;
    for (int k = 0; k < fold; ++k) {
      UNROLL(8)
      for (int part = 0; part < walk.parts; ++part) sum += load(first + part * outputs + k);
    }
    store(static_cast<Acc*>(layer.result) + base + i, sum);
    square += static_cast<double>(sum) * sum;
  }
  square = block_sum(square);
  if (thread_id() == 0) {
    store(layer.squares + tile.stripe_index, square);
    store(layer.tickets + tile.stripe_index, 0);
  }
}

// --- the end of the power iteration -----------------------------------------------------------------

struct FinishLayer {
  const void* w;
  void* out;  // null: none
  void *u, *v;
  const void *u_raw, *v_raw;  // acc, in the order of memory
  const double *u_squares, *v_squares;
  int u_square_count, v_square_count;
  void *u_out, *v_out, *sigma_out, *sigma_copy;
  int sigma_padding;  // zeros after sigma_out
  int64_t* skipped;
  ColumnOrder order;
  int rows, cols;
  int first_tile, vector_tiles;
  int64_t size;  // of W
  bool vectors;
};

struct FinishTable {
  int count;
  double eps, max_norm;
  bool u_first;
  int tile;  // elements
  FinishLayer layers[kTensors];
};

// One entry of u or v: x_raw / norm into both vectors, or, if `keep`, what x is.
template <class T>
DEVICE void finish_entry(T* x, Accumulation<T>* x_out, int i, Accumulation<T> raw,
                         Accumulation<T> norm, bool keep) {
  if (keep) return store(x_out + i, widen(load(x + i)));
  const Accumulation<T> value = raw / norm;
  store(x + i, narrow<T>(value));
  store(x_out + i, value);
}

// u and v, sigma, and out = W * scale. Tiles of a layer: first of its vectors, then of W. Reads and
// writes W once, where there is an `out`.
// 16-byte accesses: loads, stores
// double: norms, once a block
template <class T>
KERNEL(kThreads)
finish(TABLE(FinishTable) table) {
  using Acc = Accumulation<T>;
  const FinishLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const int tile = block_id() - layer.first_tile;

  const bool u_last = !table.u_first;
  const double last = sqrt(block_sum_of(u_last ? layer.u_squares : layer.v_squares,
                                        u_last ? layer.u_square_count : layer.v_square_count));
  const double divisor = at_least(last, table.eps);
  auto sigma = static_cast<Acc>(last * last / divisor);
  const bool keep = layer.skipped && !(sigma > 0 && sigma <= std::numeric_limits<Acc>::max());
  if (keep) sigma = 1;

  if (tile >= layer.vector_tiles) {
    const auto factor = factor_of<Acc>(scale_of(sigma, table.max_norm).scale);
    const int64_t begin = static_cast<int64_t>(tile - layer.vector_tiles) * table.tile;
    const int64_t end = begin + table.tile < layer.size ? begin + table.tile : layer.size;
    scale_tile<T>(layer.w, layer.out, layer.vectors, factor, begin, end);
    return;
  }
  const double other =
      at_least(sqrt(block_sum_of(u_last ? layer.v_squares : layer.u_squares,
                                 u_last ? layer.v_square_count : layer.u_square_count)),
               table.eps);
  const auto u_norm = static_cast<Acc>(u_last ? divisor : other);
  const auto v_norm = static_cast<Acc>(u_last ? other : divisor);
  const int u_size = static_cast<int>(packed_size(layer.rows));
  const int size = u_size + static_cast<int>(packed_size(layer.cols));
  for (int i = tile * kStage + thread_id(); i < (tile + 1) * kStage && i < size; i += kThreads) {
    if (i < layer.rows) {
      finish_entry(static_cast<T*>(layer.u), static_cast<Acc*>(layer.u_out), i,
                   load(static_cast<const Acc*>(layer.u_raw) + i), u_norm, keep);
    } else if (i < u_size) {
      store(static_cast<Acc*>(layer.u_out) + i, Acc{0});
    } else if (i - u_size < layer.cols) {
      finish_entry(static_cast<T*>(layer.v), static_cast<Acc*>(layer.v_out),
                   logical_index(layer.order, i - u_size),
                   load(static_cast<const Acc*>(layer.v_raw) + i - u_size), v_norm, keep);
    } else {
      store(static_cast<Acc*>(layer.v_out) + i - u_size, Acc{0});
    }
  }
  if (tile == 0) {
    if (thread_id() == 0) {
      store(static_cast<Acc*>(layer.sigma_out), sigma);
      if (layer.sigma_copy) store(static_cast<Acc*>(layer.sigma_copy), sigma);
      if (keep) store(layer.skipped, load(layer.skipped) + 1);
    }
    if (thread_id() < layer.sigma_padding)
      store(static_cast<Acc*>(layer.sigma_out) + 1 + thread_id(), Acc{0});
  }
}

}  // namespace gankernels::spectral_norm::cuda
