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

template <int kCapacity>
struct RepairTable {
  int count;
  RepairLayer layers[kCapacity];
};

// A u or v that is zero or not finite becomes that of start_of. Two blocks a layer, u and v.
template <class T, int kCapacity>
KERNEL(kBlock)
repair(TABLE(RepairTable<kCapacity>) table) {
  using Acc = Accumulation<T>;
  constexpr Acc kMost = std::numeric_limits<Acc>::max();
  const RepairLayer& layer = table.layers[block_id() / 2];
  T* x = static_cast<T*>(block_id() % 2 ? layer.v : layer.u);
  const int n = block_id() % 2 ? layer.cols : layer.rows;
  Acc largest = 0;
  for (int i = thread_id(); i < n; i += kBlock) {
    const Acc size = std::abs(widen(load(x + i)));
    if (!(size <= largest)) largest = size <= kMost ? size : std::numeric_limits<Acc>::infinity();
  }
  largest = block_max<kBlock>(largest);
  if (largest > 0 && largest <= kMost) return;
  const Acc norm = block_norm<kBlock, Acc>(0, n, [](int i) { return start_of<Acc>(i); });
  for (int i = thread_id(); i < n; i += kBlock) store(x + i, narrow<T>(start_of<Acc>(i) / norm));
}

// --- one product of the power iteration -------------------------------------------------------------

// What the last block of a product leaves of the norm of its result, for all blocks of the next launch.
template <class Acc>
struct NormNumbers {
  Acc divisor;          // max(norm, eps)
  Factor<Acc> inverse;  // 1 / divisor
  Acc sigma;            // if this was the last product
  Factor<Acc> scale;    // of W, likewise
};

struct ProductLayer {
  const void* w;
  Operand x;
  const void* x_norm;  // NormNumbers of x; null: it has norm 1
  int fold;            // outputs that make one entry of the result
  bool guarded;        // a sigma that is zero or not finite counts as 1
  void* partial;       // acc: parts x outputs
  void* result;        // acc, in the order of memory, not normalized
  void* norms;         // acc, of the results of every stripe
  void* norm;          // NormNumbers of the result
  int* tickets;        // of every stripe, then of the layer; zero before and after
  Walk walk;
  int first_tile;
};

template <int kCapacity>
struct ProductTable {
  int count;
  double eps, max_norm;
  ProductLayer layers[kCapacity];
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
    const T* const weight[] = {static_cast<const T*>(layer.w)};
    for_each_row<T, N>(walk, tile, first, layer.x, factor, stage, weight,
                       [&](int64_t, const Vector<T, N>(&w)[1], const Acc(&x)[N]) {
                         for (int j = 0; j < N; ++j) sum[j] += widen(w[0].at[j]) * x[j];
                       });
    for (int lanes = walk.lanes; lanes < kWarp; lanes *= 2)
      for (int j = 0; j < N; ++j) sum[j] += shuffle_xor(sum[j], lanes);
    if (thread_id() % kWarp < walk.lanes)
      for (int j = 0; j < N; ++j) sums[(warp * walk.lanes + lane) * N + j] = sum[j];
    sync_threads();
    const int end = first + walk.span < tile.stripe_end ? first + walk.span : tile.stripe_end;
    UNROLL(1)
    for (int i = thread_id(); i < end - first; i += kBlock) {
      Acc total = 0;
      for (int k = 0; k < kBlockWarps; ++k) total += sums[k * walk.lanes * N + i];
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
  constexpr int kRows = rows_at_once(1);
  const Walk& walk = layer.walk;
  const int lane = thread_id() % walk.lanes, slot = thread_id() / walk.lanes;
  const int slots = kBlock / walk.lanes, rows = tile.stripe_end - tile.stripe;
  for (int i = thread_id(); i < rows; i += kBlock) sums[i] = 0;
  for (int first = tile.part; first < tile.part_end; first += kStage) {
    const int count = first + kStage < tile.part_end ? kStage : tile.part_end - first;
    sync_threads();  // what was staged before has been used
    for (int i = thread_id(); i < count; i += kBlock)
      stage[i] = entry<T>(layer.x, first + i) * factor;
    sync_threads();
    const T* w =
        static_cast<const T*>(layer.w) + static_cast<int64_t>(tile.stripe) * walk.width + first;
    // Whole warps, as they add up together.
    for (int row = slot; row - slot < rows; row += kRows * slots) {
      Acc sum[kRows] = {};
      UNROLL(1)
      for (int i = lane * N; i < count; i += walk.lanes * N) {
        Words<T, N> words[kRows];
        UNROLL(kRows)
        for (int r = 0; r < kRows; ++r)
          if (row + r * slots < rows)
            words[r] = load_words<T, N>(w + static_cast<int64_t>(row + r * slots) * walk.width + i);
        const auto x = shared_load<N>(stage + i);
        UNROLL(kRows)
        for (int r = 0; r < kRows; ++r)
          if (row + r * slots < rows) {
            const auto in = as_vector<T, N>(words[r]);
            for (int j = 0; j < N; ++j) sum[r] += widen(in.at[j]) * x.at[j];
          }
      }
      UNROLL(kRows)
      for (int r = 0; r < kRows; ++r) {
        for (int lanes = 1; lanes < walk.lanes; lanes *= 2) sum[r] += shuffle_xor(sum[r], lanes);
        if (lane == 0 && row + r * slots < rows) sums[row + r * slots] += sum[r];
      }
    }
  }
  sync_threads();
  Acc* partial = static_cast<Acc*>(layer.partial) + tile.part_index * walk.outputs() + tile.stripe;
  for (int i = thread_id(); i < rows; i += kBlock) store(partial + i, static_cast<Acc>(sums[i]));
}

// One thread of the last block of a layer. double: of numbers beyond the range of float, once a layer
template <class Acc>
DEVICE void store_norm(void* to, Acc norm, double eps, double max_norm, bool guarded) {
  const double divisor = at_least<double>(norm, eps);
  const auto sigma = static_cast<Acc>(norm * (norm / divisor));
  const bool lost = guarded && !(sigma > 0 && sigma <= std::numeric_limits<Acc>::max());
  const NormNumbers<Acc> numbers{static_cast<Acc>(divisor), factor_of<Acc>(1 / divisor), sigma,
                                 factor_of<Acc>(scale_of(lost ? 1 : sigma, max_norm).scale)};
  Acc* out = static_cast<Acc*>(to);
  store(out, numbers.divisor);
  store(out + 1, numbers.inverse.first), store(out + 2, numbers.inverse.second);
  store(out + 3, numbers.sigma);
  store(out + 4, numbers.scale.first), store(out + 5, numbers.scale.second);
}

// Those of store_norm into shared memory, from `at` on: all threads need them, and some read them. To be
// followed by a barrier.
constexpr int kNormNumbers = 6;
template <class Acc>
DEVICE void stage_norm(const void* from, SharedArray<Acc> numbers, int at) {
  const int i = thread_id();
  if (i < kNormNumbers) numbers[at + i] = load(static_cast<const Acc*>(from) + i);
}
template <class Acc>
DEVICE NormNumbers<Acc> staged_norm(SharedArray<Acc> in, int at) {
  return {in[at], {in[at + 1], in[at + 2]}, in[at + 3], {in[at + 4], in[at + 5]}};
}

// The last block of a stripe adds up its parts; that of the last stripe leaves the norm. double: as store_norm,
// which it calls.
template <class T>
DEVICE void finish_product(const ProductLayer& layer, const Tile& tile, double eps,
                           double max_norm) {
  using Acc = Accumulation<T>;
  const Walk& walk = layer.walk;
  if (!is_last_block(layer.tickets + tile.stripe_index, walk.parts)) return;
  const int64_t base = walk.along ? 0 : static_cast<int64_t>(tile.batch) * walk.width;
  const int64_t outputs = walk.outputs();
  const int fold = layer.fold, begin = tile.stripe / fold, end = tile.stripe_end / fold;
  const auto* partial = static_cast<const Acc*>(layer.partial) + base;
  Acc* result = static_cast<Acc*>(layer.result) + base;
  for (int i = begin + thread_id(); i < end; i += kBlock) {
    const Acc* first = partial + static_cast<int64_t>(i) * fold;
    Acc sum = 0;
    UNROLL(1)
    for (int k = 0; k < fold; ++k) {
      const Acc* at = first + k;
      UNROLL(4)
      for (int part = 0; part < walk.parts; ++part, at += outputs) sum += load(at);
    }
    store(result + i, sum);
  }
  // A thread reads what it has stored.
  const Acc norm = block_norm<kBlock, Acc>(begin, end, [&](int i) { return load(result + i); });
  Acc* norms = static_cast<Acc*>(layer.norms);
  if (thread_id() == 0) {
    store(norms + tile.stripe_index, norm);
    store(layer.tickets + tile.stripe_index, 0);
  }
  const int stripes = walk.batches * walk.stripes;
  if (!is_last_block(layer.tickets + stripes, stripes)) return;
  const Acc all = block_norm<kBlock, Acc>(0, stripes, [&](int i) { return load(norms + i); });
  if (thread_id() > 0) return;
  store_norm(layer.norm, all, eps, max_norm, layer.guarded);
  store(layer.tickets + stripes, 0);
}

// result = W x or W^T x, x normalized: u_raw = W v or v_raw = W^T u. The last block of a stripe adds up
// its parts, that of a layer the squares of its stripes. Reads W once; a tile writes, and its stripe's
// last reads, one partial sum for every column, of 16 rows and more, or for every row, of 128 columns
// and more.
// 16-byte accesses: loads (4 in flight)
template <class T, int kCapacity>
KERNEL_FOR(kBlock, 5)
product(TABLE(ProductTable<kCapacity>) table) {
  using Acc = Accumulation<T>;
  constexpr int kSums = kBlockWarps * kColumns<T>;
  SHARED(Acc, stage, kStage);
  SHARED(Acc, sums, kSums > kStage ? kSums : kStage);
  SHARED(Acc, norm, kNormNumbers);
  const ProductLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const Walk& walk = layer.walk;
  const Tile tile = tile_of(walk, block_id() - layer.first_tile);
  Factor<Acc> factor{1, 1};
  if (layer.x_norm) {
    stage_norm<Acc>(layer.x_norm, norm, 0);
    sync_threads();
    factor = staged_norm<Acc>(norm, 0).inverse;
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
  finish_product<T>(layer, tile, table.eps, table.max_norm);
}

// --- the end of the power iteration -----------------------------------------------------------------

struct FinishLayer {
  const void* w;
  void* out;  // null: none
  void *u, *v;
  const void *u_raw, *v_raw;    // acc, in the order of memory
  const void *u_norm, *v_norm;  // NormNumbers
  void *u_out, *v_out, *sigma_out, *sigma_copy;
  int sigma_padding;  // zeros after sigma_out
  int64_t* skipped;
  ColumnOrder order;
  int rows, cols;
  int first_tile;
  int vector_tile;  // entries of u and v in a tile
  int64_t tile;     // elements of W in a tile
  int64_t size;     // of W
  bool vectors;
};

template <int kCapacity>
struct FinishTable {
  int count;
  bool u_first, wide_vectors;
  FinishLayer layers[kCapacity];
};

// One entry of u or v: x_raw / norm into both vectors, or, if `keep`, what x is; x is of T, or `wide`.
template <class T>
DEVICE void finish_entry(void* x, bool wide, void* x_out, int i, Accumulation<T> raw,
                         Accumulation<T> norm, bool keep) {
  using Acc = Accumulation<T>;
  T* narrow_x = static_cast<T*>(x) + i;
  Acc *wide_x = static_cast<Acc*>(x) + i, *out = static_cast<Acc*>(x_out) + i;
  if (keep) return store(out, wide ? load(wide_x) : widen(load(narrow_x)));
  const Acc value = raw / norm;
  if (wide)
    store(wide_x, value);
  else
    store(narrow_x, narrow<T>(value));
  store(out, value);
}

// The entries of u and v, which are filled up, from `begin` on. Behind them: those of a tile.
template <class T>
DEVICE void finish_vectors(const FinishLayer& layer, bool wide, int begin, int end,
                           Accumulation<T> u_norm, Accumulation<T> v_norm, bool keep) {
  using Acc = Accumulation<T>;
  const int u_size = static_cast<int>(packed_size(layer.rows));
  for (int i = begin + thread_id(); i < end; i += kBlock) {
    if (i < layer.rows) {
      finish_entry<T>(layer.u, wide, layer.u_out, i, load(static_cast<const Acc*>(layer.u_raw) + i),
                      u_norm, keep);
    } else if (i < u_size) {
      store(static_cast<Acc*>(layer.u_out) + i, Acc{0});
    } else if (i - u_size < layer.cols) {
      finish_entry<T>(layer.v, wide, layer.v_out, logical_index(layer.order, i - u_size),
                      load(static_cast<const Acc*>(layer.v_raw) + i - u_size), v_norm, keep);
    } else {
      store(static_cast<Acc*>(layer.v_out) + i - u_size, Acc{0});
    }
  }
}

// u and v, sigma, and out = W * scale: a tile is a part of each. Reads and writes W once, where there is
// an `out`.
// 16-byte accesses: loads (4 in flight), stores
template <class T, int kCapacity>
KERNEL_FOR(kBlock, 5)
finish(TABLE(FinishTable<kCapacity>) table) {
  using Acc = Accumulation<T>;
  SHARED(Acc, norms, 2 * kNormNumbers);
  const FinishLayer& layer = table.layers[owner_of(table.layers, table.count, block_id())];
  const int tile = block_id() - layer.first_tile;
  stage_norm<Acc>(layer.u_norm, norms, 0);
  stage_norm<Acc>(layer.v_norm, norms, kNormNumbers);
  sync_threads();
  const auto u = staged_norm<Acc>(norms, 0), v = staged_norm<Acc>(norms, kNormNumbers);
  NormNumbers<Acc> last = v;  // of the last product
  if (!table.u_first) last = u;
  const bool keep =
      layer.skipped && !(last.sigma > 0 && last.sigma <= std::numeric_limits<Acc>::max());

  const auto entries =
      static_cast<int>(packed_size(layer.rows)) + static_cast<int>(packed_size(layer.cols));
  const int first = tile * layer.vector_tile, behind = first + layer.vector_tile;
  finish_vectors<T>(layer, table.wide_vectors, first, behind < entries ? behind : entries,
                    u.divisor, v.divisor, keep);
  if (tile == 0) {
    const Acc sigma = keep ? Acc{1} : last.sigma;
    if (thread_id() == 0) {
      store(static_cast<Acc*>(layer.sigma_out), sigma);
      if (layer.sigma_copy) store(static_cast<Acc*>(layer.sigma_copy), sigma);
      if (keep) store(layer.skipped, load(layer.skipped) + 1);
    }
    if (thread_id() < layer.sigma_padding)
      store(static_cast<Acc*>(layer.sigma_out) + 1 + thread_id(), Acc{0});
  }
  if (!layer.out) return;
  const int64_t begin = tile * layer.tile;
  const int64_t end = begin + layer.tile < layer.size ? begin + layer.tile : layer.size;
  scale_tile<T>(layer.w, layer.out, layer.vectors, last.scale, begin, end);
}

}  // namespace gankernels::spectral_norm::cuda
