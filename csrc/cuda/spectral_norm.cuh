// The kernels of spectral normalisation; spectral_norm.cu launches them. A block serves one tile of one
// layer (walk.cuh). Every kernel is deterministic: sums have a fixed order, no atomic adds a float.
//
// W is seen through its memory: p is the vector along the rows of a walk and q the one along its
// columns, so <p, W q> is u . (W v) whichever of them is u. Bytes are those of global memory beyond the
// vectors themselves.
#pragma once

#include <cmath>
#include <limits>

#include "cuda/walk.cuh"
#include "spectral_norm.h"

namespace gankernels::spectral_norm::cuda {

// max(norm, eps), but NaN stays NaN.
template <class T>
DEVICE T at_least(T norm, T eps) {
  return norm < eps ? eps : norm;
}

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
template <class T>
KERNEL(kThreads)
repair(TABLE(RepairTable) table) {
  const RepairLayer& layer = table.layers[block_id() / 2];
  T* x = static_cast<T*>(block_id() % 2 ? layer.v : layer.u);
  const int n = block_id() % 2 ? layer.cols : layer.rows;
  double square = 0;
  for (int i = thread_id(); i < n; i += kThreads) {
    const double value = widen(load(x + i));  // double: a vector a layer, squares leave float
    square += value * value;                  // double: as above
  }
  square = block_sum(square);                                              // double: as above
  if (square > 0 && square <= std::numeric_limits<double>::max()) return;  // double: as above
  square = 0;                                                              // double: as above
  for (int i = thread_id(); i < n; i += kThreads)
    square += start_of(i) * start_of(i);        // double: rare
  const double norm = sqrt(block_sum(square));  // double: as above
  for (int i = thread_id(); i < n; i += kThreads)
    store(x + i, narrow<T>(static_cast<Accumulation<T>>(start_of(i) / norm)));  // double: as above
}

// --- one product of the power iteration -------------------------------------------------------------

struct ProductLayer {
  const void* w;
  Operand x;
  const double* x_squares;  // null: x has norm 1
  int x_square_count;
  int fold;         // outputs that make one entry of the result
  void* partial;    // acc: parts x outputs
  void* result;     // acc, in the order of memory, not normalised
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

// result = W x or W^T x, x normalised: u_raw = W v or v_raw = W^T u. The last block of a stripe adds up
// its parts. Reads W once; a tile writes, and its stripe's last reads, one partial sum for every column
// (512 bytes of W have at least kThreads / 32 = 8 rows, usually over 64) or every 1,024 columns.
// 16-byte accesses: loads
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
    factor = factor_of<Acc>(1 / at_least(sqrt(square), table.eps));  // double: of a whole layer
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
    square += static_cast<double>(sum) * sum;  // double: squares leave the range of float
  }
  square = block_sum(square);  // double: as above
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
  double eps, coefficient;
  bool u_first;
  int tile;  // elements
  FinishLayer layers[kTensors];
};

// out = W * factor for the elements [begin, end).
template <class T, int N>
DEVICE void scale_range(const T* w, T* out, Factor<Accumulation<T>> factor, int64_t begin,
                        int64_t end) {
  const int64_t whole = begin + (end - begin) / N * N;
  UNROLL(4)
  for (int64_t i = begin + thread_id() * N; i < whole; i += kThreads * N) {
    auto x = load<N>(w + i);
    for (int j = 0; j < N; ++j) x.at[j] = narrow<T>(widen(x.at[j]) * factor);
    store(out + i, x);
  }
  if constexpr (N > 1) {
    for (int64_t i = whole + thread_id(); i < end; i += kThreads)
      store(out + i, narrow<T>(widen(load(w + i)) * factor));
  }
}

template <class T>
DEVICE void scale_tile(const void* w, void* out, bool vectors, Factor<Accumulation<T>> factor,
                       int64_t begin, int64_t end) {
  if (vectors)
    scale_range<T, kVector<T>>(static_cast<const T*>(w), static_cast<T*>(out), factor, begin, end);
  else
    scale_range<T, 1>(static_cast<const T*>(w), static_cast<T*>(out), factor, begin, end);
}

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
template <class T>
KERNEL(kThreads)
finish(TABLE(FinishTable) table) {
  using Acc = Accumulation<T>;
  const FinishLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const int tile = block_id() - layer.first_tile;

  // double: once a block, squares leave the range of float
  const bool u_last = !table.u_first;
  const double last =
      sqrt(block_sum_of(u_last ? layer.u_squares : layer.v_squares,  // double: as above
                        u_last ? layer.u_square_count : layer.v_square_count));
  const double divisor = at_least(last, table.eps);      // double: as above
  auto sigma = static_cast<Acc>(last * last / divisor);  // double: as above
  const bool keep = layer.skipped && !(sigma > 0 && sigma <= std::numeric_limits<Acc>::max());
  if (keep) sigma = 1;

  if (tile >= layer.vector_tiles) {
    const auto factor =
        factor_of<Acc>(scale_of(sigma, table.coefficient).scale);  // double: as above
    const int64_t begin = static_cast<int64_t>(tile - layer.vector_tiles) * table.tile;
    const int64_t end = begin + table.tile < layer.size ? begin + table.tile : layer.size;
    scale_tile<T>(layer.w, layer.out, layer.vectors, factor, begin, end);
    return;
  }
  const double other =
      at_least(sqrt(block_sum_of(u_last ? layer.v_squares : layer.u_squares,  // double: as above
                                 u_last ? layer.v_square_count : layer.u_square_count)),
               table.eps);
  const auto u_norm = static_cast<Acc>(u_last ? divisor : other);  // double: as above
  const auto v_norm = static_cast<Acc>(u_last ? other : divisor);  // double: as above
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

// --- sums over whole weights ------------------------------------------------------------------------

// Which sums: <p, W q>; <G, W>; or <p, H q>, <H, G> and <G, W>.
enum class Sums { kBilinear, kBackward, kDoubleBackward };
template <Sums kSums>
constexpr int kTerms = kSums == Sums::kDoubleBackward ? 3 : 1;

struct ConstantLayer {
  const void *w, *g, *h;
  Operand p, q;
  void* sums;              // acc: of every tile, terms x tiles
  const void* sigma;       // acc; null: it is the sum
  const void* grad_sigma;  // acc; null: 0
  void* sigma_out;         // acc: sigma, or d_grad_sigma
  void *out, *second;
  int64_t size;
  Walk walk;
  int tiles;  // of the walk
  int first_tile;
};

struct ConstantTable {
  int count;
  double coefficient;
  bool guard;  // of normalize
  int tile;    // elements
  ConstantLayer layers[kTensors];
};

// The entries of q for this thread's columns. All threads must call it, and for_each_row with a `p`
// before the next call: its barriers keep `columns` until they have been read.
template <class T, int N>
DEVICE void column_entries(const ConstantLayer& layer, const Tile& tile, int first,
                           SharedArray<Accumulation<T>> columns, Accumulation<T> (&q)[N]) {
  const int lane = thread_id() % layer.walk.lanes;
  const int end =
      tile.stripe_end - first < layer.walk.span ? tile.stripe_end - first : layer.walk.span;
  for (int i = thread_id(); i < end; i += kThreads)
    columns[i] = entry<T>(layer.q, (first + i) / layer.walk.group);
  sync_threads();
  for (int j = 0; j < N; ++j)
    q[j] = lane * N + j < end ? columns[lane * N + j] : Accumulation<T>{0};
}

template <class T, int N, Sums kSums>
DEVICE void add_up(const ConstantLayer& layer, const Tile& tile, SharedArray<Accumulation<T>> stage,
                   SharedArray<Accumulation<T>> columns, Accumulation<T> (&sums)[kTerms<kSums>]) {
  using Acc = Accumulation<T>;
  const auto* w = static_cast<const T*>(layer.w);
  const auto* g = static_cast<const T*>(layer.g);
  const auto* h = static_cast<const T*>(layer.h);
  constexpr bool kVectors = kSums != Sums::kBackward;
  for (int first = tile.stripe; first < tile.stripe_end; first += layer.walk.span) {
    Acc q[N] = {};
    if (kVectors) column_entries<T, N>(layer, tile, first, columns, q);
    for_each_row<T, N>(layer.walk, tile, first, layer.p, {1, 1}, stage,
                       [&](int64_t offset, const Acc(&p)[N]) {
                         const auto weight = load<N>(w + offset);
                         Vector<T, N> grad, cotangent;
                         if (kSums != Sums::kBilinear) grad = load<N>(g + offset);
                         if (kSums == Sums::kDoubleBackward) cotangent = load<N>(h + offset);
                         for (int j = 0; j < N; ++j) {
                           if constexpr (kSums == Sums::kBilinear) {
                             sums[0] += p[j] * widen(weight.at[j]) * q[j];
                           } else if constexpr (kSums == Sums::kBackward) {
                             sums[0] += widen(grad.at[j]) * widen(weight.at[j]);
                           } else {
                             sums[0] += p[j] * widen(cotangent.at[j]) * q[j];
                             sums[1] += widen(cotangent.at[j]) * widen(grad.at[j]);
                             sums[2] += widen(grad.at[j]) * widen(weight.at[j]);
                           }
                         }
                       });
  }
}

// The sums of every tile. Reads W, G and H, those that occur, once.
// 16-byte accesses: loads
template <class T, Sums kSums>
KERNEL(kThreads)
add_tiles(TABLE(ConstantTable) table) {
  using Acc = Accumulation<T>;
  SHARED(Acc, stage, kStage);
  SHARED(Acc, columns, kColumns<T>);
  const ConstantLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const int index = block_id() - layer.first_tile;
  const Tile tile = tile_of(layer.walk, index);
  Acc sums[kTerms<kSums>] = {};
  if (layer.walk.vectors)
    add_up<T, kVector<T>, kSums>(layer, tile, stage, columns, sums);
  else
    add_up<T, 1, kSums>(layer, tile, stage, columns, sums);
  for (int term = 0; term < kTerms<kSums>; ++term) {
    const Acc sum = block_sum(sums[term]);
    if (thread_id() == 0) store(static_cast<Acc*>(layer.sums) + term * layer.tiles + index, sum);
  }
}

// The sum of a term over the tiles of a layer.
template <class Acc>
DEVICE double total(const ConstantLayer& layer, int term) {
  return block_sum_of(static_cast<const Acc*>(layer.sums) + term * layer.tiles, layer.tiles);
}

// --- outputs ----------------------------------------------------------------------------------------

// out = W * scale; sigma is given, or the sum <p, W q>. Reads and writes W once. double: of a scale, once
// a block
// 16-byte accesses: loads, stores
template <class T>
KERNEL(kThreads)
normalize(TABLE(ConstantTable) table) {
  using Acc = Accumulation<T>;
  const ConstantLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const int tile = block_id() - layer.first_tile;
  Acc sigma = layer.sigma ? load(static_cast<const Acc*>(layer.sigma))
                          : static_cast<Acc>(total<Acc>(layer, 0));  // double: once a block
  const Acc size = sigma < 0 ? -sigma : sigma;
  if (!layer.sigma && table.guard && !(size > 0 && size <= std::numeric_limits<Acc>::max()))
    sigma = 1;
  if (tile == 0 && thread_id() == 0) store(static_cast<Acc*>(layer.sigma_out), sigma);
  const auto factor =
      factor_of<Acc>(scale_of(sigma, table.coefficient).scale);  // double: once a block
  const int64_t begin = static_cast<int64_t>(tile) * table.tile;
  const int64_t end = begin + table.tile < layer.size ? begin + table.tile : layer.size;
  scale_tile<T>(layer.w, layer.out, layer.walk.vectors, factor, begin, end);
}

template <class T, int N>
DEVICE Vector<T, N> combine(Factor<Accumulation<T>> a, const Vector<T, N>& x,
                            Factor<Accumulation<T>> b, const Accumulation<T> (&y)[N]) {
  Vector<T, N> result;
  for (int j = 0; j < N; ++j) result.at[j] = narrow<T>(widen(x.at[j]) * a + y[j] * b);
  return result;
}

template <class T, int N>
DEVICE void backward_tile(const ConstantLayer& layer, const Tile& tile,
                          Factor<Accumulation<T>> scale, Factor<Accumulation<T>> outer,
                          SharedArray<Accumulation<T>> stage,
                          SharedArray<Accumulation<T>> columns) {
  using Acc = Accumulation<T>;
  for (int first = tile.stripe; first < tile.stripe_end; first += layer.walk.span) {
    Acc q[N];
    column_entries<T, N>(layer, tile, first, columns, q);
    for (int j = 0; j < N; ++j) q[j] *= outer.second;
    for_each_row<T, N>(layer.walk, tile, first, layer.p, {outer.first, 1}, stage,
                       [&](int64_t offset, const Acc(&p)[N]) {
                         const auto g = load<N>(static_cast<const T*>(layer.g) + offset);
                         Acc pq[N];
                         for (int j = 0; j < N; ++j) pq[j] = p[j] * q[j];
                         store(static_cast<T*>(layer.out) + offset, combine(scale, g, {1, 1}, pq));
                       });
  }
}

// grad = scale G + (s - slope <G, W>) p q^T. Reads G and writes the gradient once.
// 16-byte accesses: loads, stores
template <class T>
KERNEL(kThreads)
backward(TABLE(ConstantTable) table) {
  using Acc = Accumulation<T>;
  SHARED(Acc, stage, kStage);
  SHARED(Acc, columns, kColumns<T>);
  const ConstantLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const Tile tile = tile_of(layer.walk, block_id() - layer.first_tile);
  const double gw = total<Acc>(layer, 0);  // double: all of these once a block
  const Scale s =
      scale_of(load(static_cast<const Acc*>(layer.sigma)), table.coefficient);  // double: as above
  const double seed = layer.grad_sigma ? load(static_cast<const Acc*>(layer.grad_sigma))
                                       : Acc{0};          // double: as above
  const auto outer = factor_of<Acc>(seed - s.slope(gw));  // double: as above
  const auto scale = factor_of<Acc>(s.scale);             // double: as above
  if (layer.walk.vectors)
    backward_tile<T, kVector<T>>(layer, tile, scale, outer, stage, columns);
  else
    backward_tile<T, 1>(layer, tile, scale, outer, stage, columns);
}

template <class Acc>
struct DoubleFactors {
  Factor<Acc> h, w, outer;
};

template <class T, int N>
DEVICE void double_backward_tile(const ConstantLayer& layer, const Tile& tile,
                                 const DoubleFactors<Accumulation<T>>& factors,
                                 SharedArray<Accumulation<T>> stage,
                                 SharedArray<Accumulation<T>> columns) {
  using Acc = Accumulation<T>;
  for (int first = tile.stripe; first < tile.stripe_end; first += layer.walk.span) {
    Acc q[N];
    column_entries<T, N>(layer, tile, first, columns, q);
    for (int j = 0; j < N; ++j) q[j] *= factors.outer.second;
    for_each_row<T, N>(
        layer.walk, tile, first, layer.p, {factors.outer.first, 1}, stage,
        [&](int64_t offset, const Acc(&p)[N]) {
          const auto w = load<N>(static_cast<const T*>(layer.w) + offset);
          const auto g = load<N>(static_cast<const T*>(layer.g) + offset);
          const auto h = load<N>(static_cast<const T*>(layer.h) + offset);
          Acc weight[N], pq[N];
          for (int j = 0; j < N; ++j) {
            weight[j] = widen(w.at[j]);
            pq[j] = p[j] * q[j];
          }
          store(static_cast<T*>(layer.out) + offset, combine(factors.h, h, factors.w, weight));
          store(static_cast<T*>(layer.second) + offset, combine(factors.w, g, {1, 1}, pq));
        });
  }
}

// d_g = scale H - slope h W and d_w = -slope h G + (curve h <G, W> - slope <H, G>) p q^T, with
// h = <p, H q>. Reads W, G and H once, writes both outputs once.
// 16-byte accesses: loads, stores
template <class T>
KERNEL(kThreads)
double_backward(TABLE(ConstantTable) table) {
  using Acc = Accumulation<T>;
  SHARED(Acc, stage, kStage);
  SHARED(Acc, columns, kColumns<T>);
  const ConstantLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const int index = block_id() - layer.first_tile;
  const Tile tile = tile_of(layer.walk, index);
  const double h = total<Acc>(layer, 0);   // double: all of these once a block
  const double hg = total<Acc>(layer, 1);  // double: as above
  const double gw = total<Acc>(layer, 2);  // double: as above
  const Scale s =
      scale_of(load(static_cast<const Acc*>(layer.sigma)), table.coefficient);  // double: as above
  const DoubleFactors<Acc> factors{
      factor_of<Acc>(s.scale), factor_of<Acc>(-s.slope(h)),  // double: as above
      factor_of<Acc>(s.curve(h, gw) - s.slope(hg))};         // double: as above
  if (index == 0 && thread_id() == 0)
    store(static_cast<Acc*>(layer.sigma_out), static_cast<Acc>(h));  // double: as above
  if (layer.walk.vectors)
    double_backward_tile<T, kVector<T>>(layer, tile, factors, stage, columns);
  else
    double_backward_tile<T, 1>(layer, tile, factors, stage, columns);
}

}  // namespace gankernels::spectral_norm::cuda
