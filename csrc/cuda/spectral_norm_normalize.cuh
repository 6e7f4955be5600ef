// The kernels of W / sigma where u and v are given, and of its derivatives.
#pragma once

#include <limits>

#include "cuda/spectral_norm.cuh"

namespace gankernels::spectral_norm::cuda {

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
  int64_t tile;  // elements, of normalize
  Walk walk;
  int tiles;  // of the walk
  int first_tile;
};

template <int kCapacity>
struct ConstantTable {
  int count;
  double max_norm;
  bool guard;  // of normalize
  ConstantLayer layers[kCapacity];
};

// The entries of q, times `factor`, for the columns that the block holds from `first` on, into shared
// memory. All threads must call it; the barriers of for_each_row, called with entries between two,
// keep `columns` until they are in registers.
template <class T>
DEVICE void stage_columns(const ConstantLayer& layer, const Tile& tile, int first,
                          Accumulation<T> factor, SharedArray<Accumulation<T>> columns) {
  const int left = tile.stripe_end - first, end = left < layer.walk.span ? left : layer.walk.span;
  for (int i = thread_id(); i < end; i += kBlock)
    columns[i] = entry<T>(layer.q, (first + i) / layer.walk.group) * factor;
  sync_threads();
}

// The same for this thread's columns.
template <class T, int N>
DEVICE void column_entries(const ConstantLayer& layer, const Tile& tile, int first,
                           Accumulation<T> factor, SharedArray<Accumulation<T>> columns,
                           Accumulation<T> (&q)[N]) {
  stage_columns<T>(layer, tile, first, factor, columns);
  const int lane = thread_id() % layer.walk.lanes, left = tile.stripe_end - first;
  const int end = left < layer.walk.span ? left : layer.walk.span;
  for (int j = 0; j < N; ++j)
    q[j] = lane * N + j < end ? columns[lane * N + j] : Accumulation<T>{0};
}

// What a thread adds up of one row.
template <Sums kSums, class T, int N, int kSources>
DEVICE void add_row(const Vector<T, N> (&in)[kSources], const Accumulation<T> (&p)[N],
                    const Accumulation<T> (&q)[N], Accumulation<T> (&sums)[kTerms<kSums>]) {
  for (int j = 0; j < N; ++j) {
    if constexpr (kSums == Sums::kBilinear) {
      sums[0] += p[j] * widen(in[0].at[j]) * q[j];
    } else if constexpr (kSums == Sums::kBackward) {
      sums[0] += widen(in[1].at[j]) * widen(in[0].at[j]);
    } else {
      sums[0] += p[j] * widen(in[2].at[j]) * q[j];
      sums[1] += widen(in[2].at[j]) * widen(in[1].at[j]);
      sums[2] += widen(in[1].at[j]) * widen(in[0].at[j]);
    }
  }
}

template <class T, int N, Sums kSums>
DEVICE void add_up(const ConstantLayer& layer, const Tile& tile, SharedArray<Accumulation<T>> stage,
                   SharedArray<Accumulation<T>> columns, Accumulation<T> (&sums)[kTerms<kSums>]) {
  using Acc = Accumulation<T>;
  constexpr int kSources = kSums == Sums::kBilinear ? 1 : kSums == Sums::kBackward ? 2 : 3;
  const void* const all[] = {layer.w, layer.g, layer.h};
  const T* sources[kSources];
  for (int s = 0; s < kSources; ++s) sources[s] = static_cast<const T*>(all[s]);
  constexpr bool kVectors = kSums != Sums::kBackward;
  for (int first = tile.stripe; first < tile.stripe_end; first += layer.walk.span) {
    Acc q[N] = {};
    if (kVectors) column_entries<T, N>(layer, tile, first, 1, columns, q);
    for_each_row<T, N, kVectors>(
        layer.walk, tile, first, layer.p, {1, 1}, stage, sources,
        [&](int64_t, const Vector<T, N>(&in)[kSources], const Acc(&entries)[N]) {
          add_row<kSums>(in, entries, q, sums);
        });
  }
}

// The sums of every tile. Reads W, G and H, those that occur, once.
// 16-byte accesses: loads (4 in flight)
template <class T, Sums kSums, int kCapacity>
KERNEL_FOR(kBlock, 5)
add_tiles(TABLE(ConstantTable<kCapacity>) table) {
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
    const Acc sum = block_sum<kBlock>(sums[term]);
    if (thread_id() == 0) store(static_cast<Acc*>(layer.sums) + term * layer.tiles + index, sum);
  }
}

// The sum of a term over the tiles of a layer.
template <class Acc>
DEVICE Acc total(const ConstantLayer& layer, int term) {
  return block_sum_of<kBlock>(static_cast<const Acc*>(layer.sums) + term * layer.tiles,
                              layer.tiles);
}

// --- outputs ----------------------------------------------------------------------------------------

// Factors of a layer that one thread computes, kept in shared memory for the others.
template <class Acc>
DEVICE void keep_factor(SharedArray<Acc> factors, int i, double x) {
  const auto factor = factor_of<Acc>(x);
  factors[2 * i] = factor.first, factors[2 * i + 1] = factor.second;
}
template <class Acc>
DEVICE Factor<Acc> kept_factor(SharedArray<Acc> factors, int i) {
  return {factors[2 * i], factors[2 * i + 1]};
}

// out = W * scale; sigma is given, or the sum <p, W q>. Reads and writes W once.
// 16-byte accesses: loads (4 in flight), stores
// double: the scale, one thread of a block
template <class T, int kCapacity>
KERNEL_FOR(kBlock, 5)
normalize(TABLE(ConstantTable<kCapacity>) table) {
  using Acc = Accumulation<T>;
  SHARED(Acc, factors, 2);
  const ConstantLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const int tile = block_id() - layer.first_tile;
  Acc sigma = layer.sigma ? load(static_cast<const Acc*>(layer.sigma)) : total<Acc>(layer, 0);
  const Acc size = sigma < 0 ? -sigma : sigma;
  if (!layer.sigma && table.guard && !(size > 0 && size <= std::numeric_limits<Acc>::max()))
    sigma = 1;
  if (thread_id() == 0) {
    if (tile == 0) store(static_cast<Acc*>(layer.sigma_out), sigma);
    keep_factor<Acc>(factors, 0, scale_of(sigma, table.max_norm).scale);
  }
  sync_threads();
  const int64_t begin = tile * layer.tile;
  const int64_t end = begin + layer.tile < layer.size ? begin + layer.tile : layer.size;
  scale_tile<T>(layer.w, layer.out, layer.walk.vectors, kept_factor<Acc>(factors, 0), begin, end);
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
    column_entries<T, N>(layer, tile, first, outer.second, columns, q);
    const T* const cotangent[] = {static_cast<const T*>(layer.g)};
    for_each_row<T, N>(layer.walk, tile, first, layer.p, {outer.first, 1}, stage, cotangent,
                       [&](int64_t offset, const Vector<T, N>(&g)[1], const Acc(&p)[N]) {
                         Acc pq[N];
                         for (int j = 0; j < N; ++j) pq[j] = p[j] * q[j];
                         store(static_cast<T*>(layer.out) + offset,
                               combine(scale, g[0], {1, 1}, pq));
                       });
  }
}

// grad = scale G + (s - slope <G, W>) p q^T. Reads G and writes the gradient once.
// 16-byte accesses: loads (4 in flight), stores
// double: the factors, one thread of a block
template <class T, int kCapacity>
KERNEL_FOR(kBlock, 5)
backward(TABLE(ConstantTable<kCapacity>) table) {
  using Acc = Accumulation<T>;
  SHARED(Acc, stage, kStage);
  SHARED(Acc, columns, kColumns<T>);
  SHARED(Acc, factors, 4);
  const ConstantLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const Tile tile = tile_of(layer.walk, block_id() - layer.first_tile);
  const Acc gw = total<Acc>(layer, 0);
  if (thread_id() == 0) {
    const Scale s = scale_of(load(static_cast<const Acc*>(layer.sigma)), table.max_norm);
    const double seed = layer.grad_sigma ? load(static_cast<const Acc*>(layer.grad_sigma)) : Acc{0};
    keep_factor<Acc>(factors, 0, s.scale);
    keep_factor<Acc>(factors, 1, seed - s.slope(gw));
  }
  sync_threads();
  const auto scale = kept_factor<Acc>(factors, 0), outer = kept_factor<Acc>(factors, 1);
  if (layer.walk.vectors)
    backward_tile<T, kVector<T>>(layer, tile, scale, outer, stage, columns);
  else
    backward_tile<T, 1>(layer, tile, scale, outer, stage, columns);
}

template <class Acc>
struct DoubleFactors {
  Factor<Acc> h, w, outer;
};

// q is read from shared memory for every row: registers are what limits the blocks of a multiprocessor.
template <class T, int N>
DEVICE void double_backward_tile(const ConstantLayer& layer, const Tile& tile,
                                 const DoubleFactors<Accumulation<T>>& factors,
                                 SharedArray<Accumulation<T>> stage,
                                 SharedArray<Accumulation<T>> columns) {
  using Acc = Accumulation<T>;
  const T* const sources[] = {static_cast<const T*>(layer.w), static_cast<const T*>(layer.g),
                              static_cast<const T*>(layer.h)};
  const int own = thread_id() % layer.walk.lanes * N;
  for (int first = tile.stripe; first < tile.stripe_end; first += layer.walk.span) {
    sync_threads();  // the columns before have been used
    stage_columns<T>(layer, tile, first, factors.outer.second, columns);
    for_each_row<T, N>(
        layer.walk, tile, first, layer.p, {factors.outer.first, 1}, stage, sources,
        [&](int64_t offset, const Vector<T, N>(&in)[3], const Acc(&p)[N]) {
          const auto &w = in[0], &g = in[1], &h = in[2];
          const auto q = shared_load<N>(columns + own);
          Acc weight[N], pq[N];
          for (int j = 0; j < N; ++j) {
            weight[j] = widen(w.at[j]);
            pq[j] = p[j] * q.at[j];
          }
          store(static_cast<T*>(layer.second) + offset, combine(factors.w, g, {1, 1}, pq));
          store(static_cast<T*>(layer.out) + offset, combine(factors.h, h, factors.w, weight));
        });
  }
}

// d_g = scale H - slope h W and d_w = -slope h G + (curve h <G, W> - slope <H, G>) p q^T, with
// h = <p, H q>. Reads W, G and H once, writes both outputs once.
// 16-byte accesses: loads (6 in flight), stores
// double: the factors, one thread of a block
template <class T, int kCapacity>
KERNEL_FOR(kBlock, 5)
double_backward(TABLE(ConstantTable<kCapacity>) table) {
  using Acc = Accumulation<T>;
  SHARED(Acc, stage, kStage);
  SHARED(Acc, columns, kColumns<T>);
  SHARED(Acc, factors, 6);
  const ConstantLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const int index = block_id() - layer.first_tile;
  const Tile tile = tile_of(layer.walk, index);
  const Acc h = total<Acc>(layer, 0), hg = total<Acc>(layer, 1), gw = total<Acc>(layer, 2);
  if (thread_id() == 0) {
    const Scale s = scale_of(load(static_cast<const Acc*>(layer.sigma)), table.max_norm);
    keep_factor<Acc>(factors, 0, s.scale);
    keep_factor<Acc>(factors, 1, -s.slope(h));
    keep_factor<Acc>(factors, 2, s.curve(h, gw) - s.slope(hg));
    if (index == 0) store(static_cast<Acc*>(layer.sigma_out), h);
  }
  sync_threads();
  const DoubleFactors<Acc> all{kept_factor<Acc>(factors, 0), kept_factor<Acc>(factors, 1),
                               kept_factor<Acc>(factors, 2)};
  if (layer.walk.vectors)
    double_backward_tile<T, kVector<T>>(layer, tile, all, stage, columns);
  else
    double_backward_tile<T, 1>(layer, tile, all, stage, columns);
}

}  // namespace gankernels::spectral_norm::cuda
