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
  Walk walk;
  int tiles;  // of the walk
  int first_tile;
};

struct ConstantTable {
  int count;
  double max_norm;
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

// out = W * scale; sigma is given, or the sum <p, W q>. Reads and writes W once.
// 16-byte accesses: loads, stores
// double: sigma and its scale, once a block
template <class T>
KERNEL(kThreads)
normalize(TABLE(ConstantTable) table) {
  using Acc = Accumulation<T>;
  const ConstantLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const int tile = block_id() - layer.first_tile;
  Acc sigma = layer.sigma ? load(static_cast<const Acc*>(layer.sigma))
                          : static_cast<Acc>(total<Acc>(layer, 0));
  const Acc size = sigma < 0 ? -sigma : sigma;
  if (!layer.sigma && table.guard && !(size > 0 && size <= std::numeric_limits<Acc>::max()))
    sigma = 1;
  if (tile == 0 && thread_id() == 0) store(static_cast<Acc*>(layer.sigma_out), sigma);
  const auto factor = factor_of<Acc>(scale_of(sigma, table.max_norm).scale);
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
// double: the factors, once a block
template <class T>
KERNEL(kThreads)
backward(TABLE(ConstantTable) table) {
  using Acc = Accumulation<T>;
  SHARED(Acc, stage, kStage);
  SHARED(Acc, columns, kColumns<T>);
  const ConstantLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const Tile tile = tile_of(layer.walk, block_id() - layer.first_tile);
  const double gw = total<Acc>(layer, 0);
  const Scale s = scale_of(load(static_cast<const Acc*>(layer.sigma)), table.max_norm);
  const double seed = layer.grad_sigma ? load(static_cast<const Acc*>(layer.grad_sigma)) : Acc{0};
  const auto outer = factor_of<Acc>(seed - s.slope(gw));
  const auto scale = factor_of<Acc>(s.scale);
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
// double: the factors, once a block
template <class T>
KERNEL(kThreads)
double_backward(TABLE(ConstantTable) table) {
  using Acc = Accumulation<T>;
  SHARED(Acc, stage, kStage);
  SHARED(Acc, columns, kColumns<T>);
  const ConstantLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const int index = block_id() - layer.first_tile;
  const Tile tile = tile_of(layer.walk, index);
  const double h = total<Acc>(layer, 0);
  const double hg = total<Acc>(layer, 1);
  const double gw = total<Acc>(layer, 2);
  const Scale s = scale_of(load(static_cast<const Acc*>(layer.sigma)), table.max_norm);
  const DoubleFactors<Acc> factors{factor_of<Acc>(s.scale), factor_of<Acc>(-s.slope(h)),
                                   factor_of<Acc>(s.curve(h, gw) - s.slope(hg))};
  if (index == 0 && thread_id() == 0)
    store(static_cast<Acc*>(layer.sigma_out), static_cast<Acc>(h));
  if (layer.walk.vectors)
    double_backward_tile<T, kVector<T>>(layer, tile, factors, stage, columns);
  else
    double_backward_tile<T, 1>(layer, tile, factors, stage, columns);
}

}  // namespace gankernels::spectral_norm::cuda
