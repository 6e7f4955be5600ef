// The kernels of weight normalization; weight_norm.cu launches them. A tile is a row of a weight, or a
// chunk of a long one, and a block's. Every kernel is deterministic: sums have a fixed order, no atomics.
#pragma once

#include <cmath>
#include <limits>

#include "common/reduce.cuh"
#include "common/tensor_table.cuh"
#include "weight_norm.h"

namespace gankernels::weight_norm::cuda {

struct Item {
  const void *v, *g, *x, *h, *e;
  void *norms, *out, *d_g, *d_v;
  void* partial;  // acc: the sums of every chunk, rows of chunks; null where a row is one
  int64_t size;
  int chunk, chunks;  // elements of one, and how many a row has
  bool vectors;
  int first_tile;
};

template <int kCapacity>
struct WeightTable {
  int count;
  Item items[kCapacity];
};

enum class Pass : int8_t { kForward, kBackward, kDoubleBackward };

// Sums over a row: <v, v>; <x, v>; <x, v>, <h, v> and <h, x>.
template <Pass kPass>
constexpr int kSums = kPass == Pass::kDoubleBackward ? 3 : 1;

template <class Acc, Pass kPass>
struct Sums {
  Acc at[kSums<kPass>];
};

// The tensors that a pass reads, v first.
template <Pass kPass>
constexpr int kSources = static_cast<int>(kPass) + 1;

// Vectors that every thread loads of each tensor before it uses the first: eight in all, or six.
template <Pass kPass>
constexpr int kAtOnce = 8 / kSources<kPass>;

// Calls f(at, in) for the vectors of a chunk that are this thread's: in[s] are those of the pass's tensors
// from `at` on. One loop, so that the loads are under way together at the end of a chunk, too.
template <class T, Pass kPass, int N, class F>
DEVICE void for_each_vector(const Item& item, const Chunk& chunk, F&& f) {
  constexpr int kInputs = kSources<kPass>, kRounds = kAtOnce<kPass>;
  const T* const sources[3] = {static_cast<const T*>(item.v), static_cast<const T*>(item.x),
                               static_cast<const T*>(item.h)};
  UNROLL(1)
  for (int i = thread_id() * N; i < chunk.count; i += kRounds * kThreads * N) {
    Words<T, N> words[kRounds][kInputs];
    UNROLL(kRounds)
    for (int r = 0; r < kRounds; ++r) {
      const int at = i + r * kThreads * N;
      if (at >= chunk.count) break;
      for (int s = 0; s < kInputs; ++s)
        words[r][s] = load_words<T, N>(sources[s] + chunk.offset + at);
    }
    UNROLL(kRounds)
    for (int r = 0; r < kRounds; ++r) {
      const int at = i + r * kThreads * N;
      if (at >= chunk.count) break;
      Vector<T, N> in[kInputs];
      for (int s = 0; s < kInputs; ++s) in[s] = as_vector<T, N>(words[r][s]);
      f(chunk.offset + at, in);
    }
  }
}

// The norm of a chunk of v, for every thread. Its squares where they are within range, else those of
// entries over the largest. NaN stays NaN.
template <class T>
DEVICE Accumulation<T> chunk_norm(const Item& item, const Chunk& chunk, Accumulation<T> square) {
  using Acc = Accumulation<T>;
  if (square > Acc(1e-30) && square < Acc(1e30)) return std::sqrt(square);
  const T* v = static_cast<const T*>(item.v) + chunk.offset;
  return block_norm<kThreads, Acc>(0, chunk.count, [&](int i) { return widen(load(v + i)); });
}

// The sums of a chunk, for every thread; in the forward pass its norm.
template <class T, Pass kPass, int N>
DEVICE Sums<Accumulation<T>, kPass> chunk_sums(const Item& item, const Chunk& chunk) {
  using Acc = Accumulation<T>;
  Sums<Acc, kPass> sums{};
  for_each_vector<T, kPass, N>(item, chunk, [&](int64_t, const auto& in) {
    for (int j = 0; j < N; ++j) {
      const Acc v = widen(in[0].at[j]);
      if constexpr (kPass == Pass::kForward) {
        sums.at[0] += v * v;
      } else {
        const Acc x = widen(in[1].at[j]);
        sums.at[0] += x * v;
        if constexpr (kPass == Pass::kDoubleBackward) {
          const Acc h = widen(in[2].at[j]);
          sums.at[1] += h * v;
          sums.at[2] += h * x;
        }
      }
    }
  });
  for (Acc& sum : sums.at) sum = block_sum<kThreads>(sum);
  if constexpr (kPass == Pass::kForward) sums.at[0] = chunk_norm<T>(item, chunk, sums.at[0]);
  return sums;
}

template <class T, Pass kPass>
DEVICE Sums<Accumulation<T>, kPass> sums_of(const Item& item, const Chunk& chunk) {
  return item.vectors ? chunk_sums<T, kPass, kVector<T>>(item, chunk)
                      : chunk_sums<T, kPass, 1>(item, chunk);
}

// partial[row][chunk] = the sums of a chunk of a long row. Reads what it multiplies once.
// 16-byte accesses: loads (6 in flight)
template <class T, Pass kPass, int kCapacity>
KERNEL(kThreads)
row_sums(TABLE(WeightTable<kCapacity>) table) {
  using Acc = Accumulation<T>;
  const Item& item = table.items[owner_of(table.items, table.count, block_id())];
  const int tile = block_id() - item.first_tile;
  const Sums<Acc, kPass> sums = sums_of<T, kPass>(item, chunk_of(item, tile));
  Acc* to = static_cast<Acc*>(item.partial) + static_cast<int64_t>(tile) * kSums<kPass>;
  if (thread_id() == 0)
    for (int k = 0; k < kSums<kPass>; ++k) store(to + k, sums.at[k]);
}

// The sums of a row, for every thread: its own, or those of its chunks, added up.
template <class T, Pass kPass>
DEVICE Sums<Accumulation<T>, kPass> row_sums_of(const Item& item, const Chunk& chunk) {
  using Acc = Accumulation<T>;
  if (item.chunks == 1) return sums_of<T, kPass>(item, chunk);
  const Acc* from = static_cast<const Acc*>(item.partial) +
                    static_cast<int64_t>(chunk.row) * item.chunks * kSums<kPass>;
  Sums<Acc, kPass> sums;
  if constexpr (kPass == Pass::kForward) {
    sums.at[0] = block_norm<kThreads, Acc>(0, item.chunks, [&](int i) { return load(from + i); });
  } else {
    for (int k = 0; k < kSums<kPass>; ++k) {
      Acc sum = 0;
      for (int i = thread_id(); i < item.chunks; i += kThreads)
        sum += load(from + static_cast<int64_t>(i) * kSums<kPass> + k);
      sums.at[k] = block_sum<kThreads>(sum);
    }
  }
  return sums;
}

// What the elements of a row are multiplied by, with q = v / n: out = h h + x x + q q, and likewise, over
// n, d_v of the second order.
template <class Acc>
struct Factors {
  Acc h, x, q;
};

template <class T, Pass kPass, int N>
DEVICE void combine(const Item& item, const Chunk& chunk, Accumulation<T> inverse,
                    const Factors<Accumulation<T>>& first, const Factors<Accumulation<T>>& second) {
  T *out = static_cast<T*>(item.out), *d_v = static_cast<T*>(item.d_v);
  for_each_vector<T, kPass, N>(item, chunk, [&](int64_t at, const auto& in) {
    Vector<T, N> result;
    [[maybe_unused]] Vector<T, N> again;
    for (int j = 0; j < N; ++j) {
      const auto q = widen(in[0].at[j]) * inverse;
      if constexpr (kPass == Pass::kForward) {
        result.at[j] = narrow<T>(first.q * q);
      } else {
        const auto x = widen(in[1].at[j]);
        if constexpr (kPass == Pass::kBackward) {
          result.at[j] = narrow<T>(first.x * x + first.q * q);
        } else {
          const auto h = widen(in[2].at[j]);
          result.at[j] = narrow<T>(first.h * h + first.q * q);
          again.at[j] = narrow<T>((second.h * h + second.x * x + second.q * q) * inverse);
        }
      }
    }
    store(out + at, result);
    if constexpr (kPass == Pass::kDoubleBackward) store(d_v + at, again);
  });
}

// One pass over a row or a chunk of it: its sums, where it is whole, its factors, and its elements, which
// it then reads once more, out of the caches as far as they hold the rows of all resident blocks. Writes one
// tensor, in the second order two. The first chunk of a row writes what belongs to the row.
// 16-byte accesses: loads (6 in flight), stores
template <class T, Pass kPass, int kCapacity>
KERNEL(kThreads)
scale_rows(TABLE(WeightTable<kCapacity>) table) {
  using Acc = Accumulation<T>;
  const Item& item = table.items[owner_of(table.items, table.count, block_id())];
  const Chunk chunk = chunk_of(item, block_id() - item.first_tile);
  const Sums<Acc, kPass> sums = row_sums_of<T, kPass>(item, chunk);
  const bool writes = chunk.index == 0 && thread_id() == 0;
  Acc* norms = static_cast<Acc*>(item.norms) + chunk.row;
  const auto number = [&](const void* x) {
    return x ? widen(load(static_cast<const T*>(x) + chunk.row)) : Acc{0};
  };
  Factors<Acc> first{}, second{};
  Acc inverse;
  if constexpr (kPass == Pass::kForward) {
    const Row<Acc> row{sums.at[0], number(item.g)};
    if (writes) store(norms, row.norm);
    inverse = row.inverse();
    first.q = row.g;
  } else {
    const Row<Acc> row{load(norms), number(item.g)};
    const Acc t = sums.at[0] / row.norm;
    inverse = row.inverse();
    T* d_g = static_cast<T*>(item.d_g) + chunk.row;
    if constexpr (kPass == Pass::kBackward) {
      if (writes) store(d_g, narrow<T>(t));
      first.x = row.scale(), first.q = row.of_q(t);
    } else {
      const Acc k = sums.at[1] / row.norm, hx = sums.at[2], e = number(item.e);
      if (writes) store(d_g, narrow<T>(row.d_g_again(t, k, hx)));
      first.h = row.scale(), first.q = row.mixed(k, e);
      second.x = first.q, second.h = row.of_q(t), second.q = row.of_q_again(t, k, hx, e);
    }
  }
  if (item.vectors)
    combine<T, kPass, kVector<T>>(item, chunk, inverse, first, second);
  else
    combine<T, kPass, 1>(item, chunk, inverse, first, second);
}

}  // namespace gankernels::weight_norm::cuda
