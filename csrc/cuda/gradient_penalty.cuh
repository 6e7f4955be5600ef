// The kernels of gradient penalties; gradient_penalty.cu launches them. A tile is a chunk of one sample
// of one gradient, and a block's. Every kernel is deterministic: sums have a fixed order, no atomics.
#pragma once

#include <cmath>

#include "common/reduce.cuh"
#include "common/tensor_table.cuh"
#include "gradient_penalty.h"

namespace gankernels::gradient_penalty::cuda {

struct Item {
  const void *g, *h;
  void* out;
  int64_t size;  // elements of a sample
  int row;       // of norms
  int chunk, chunks;
  int column;  // of its first chunk in the partial sums of a sample
  bool vectors;
  int first_tile;
};

// Where a penalty's numbers are; those of a row and a sample are found by sample_of.
template <class Acc>
struct Numbers {
  Acc factor, center;
  bool one_sided, reduced;
  int rows, batch;
  const void *norms, *seed, *e, *sample_weight, *inv_scale;
  void *norms_out, *values, *d_seed, *d_sample_weight, *products;
  void* partial;    // acc: batch x columns
  int columns;      // of all gradients
  int lanes;        // threads that add up one sample's
  bool per_tensor;  // a row for each item, else one of all columns
};

template <class Acc, int kCapacity>
struct PenaltyTable {
  int count;
  Numbers<Acc> numbers;
  Item items[kCapacity];
};

template <class Acc>
DEVICE Acc number(const void* x, int64_t i, Acc otherwise) {
  return x ? load(static_cast<const Acc*>(x) + i) : otherwise;
}

template <class Acc>
DEVICE int64_t value_index(const Numbers<Acc>& n, int row, int sample) {
  return n.reduced ? row : static_cast<int64_t>(row) * n.batch + sample;
}

template <class Acc>
DEVICE PenaltySample<Acc> sample_of(const Numbers<Acc>& n, Acc norm, int row, int sample) {
  return {norm,
          number<Acc>(n.seed, value_index(n, row, sample), 1),
          number<Acc>(n.sample_weight, sample, 1),
          number<Acc>(n.inv_scale, 0, 1),
          n.factor,
          n.center,
          n.one_sided};
}

template <class Acc>
DEVICE Acc norm_of(const Numbers<Acc>& n, int row, int sample) {
  return load(static_cast<const Acc*>(n.norms) + static_cast<int64_t>(row) * n.batch + sample);
}

// --- sums over samples ------------------------------------------------------------------------------

// Vectors that every thread loads of each tensor before it uses the first, in one loop, so that it is true of
// the end of a chunk, too: eight in all, of which some compilers use the first before they load the last. All
// are there where chunks have 32 KiB, or 16 of two tensors, from 32 and 16 MiB of gradients on.
template <bool kTwo>
constexpr int kVectorsAtOnce = kTwo ? 4 : 8;

// Sums of the vectors of a batch, one after the other.
template <class T, bool kSquares, int N>
DEVICE Accumulation<T> multiply(const Item& item, const Chunk& chunk) {
  constexpr int kAtOnce = kVectorsAtOnce<!kSquares>;
  Accumulation<T> sum = 0;
  const T* g = static_cast<const T*>(item.g) + chunk.offset;
  const T* h = static_cast<const T*>(item.h) + chunk.offset;
  UNROLL(1)
  for (int i = thread_id() * N; i < chunk.count; i += kAtOnce * kThreads * N) {
    Words<T, N> g_words[kAtOnce], h_words[kAtOnce];
    UNROLL(kAtOnce)
    for (int r = 0; r < kAtOnce; ++r) {
      const int at = i + r * kThreads * N;
      if (at >= chunk.count) break;
      g_words[r] = load_words<T, N>(g + at);
      if (!kSquares) h_words[r] = load_words<T, N>(h + at);
    }
    UNROLL(kAtOnce)
    for (int r = 0; r < kAtOnce; ++r) {
      if (i + r * kThreads * N >= chunk.count) break;
      const auto x = as_vector<T, N>(g_words[r]);
      const auto y = kSquares ? x : as_vector<T, N>(h_words[r]);
      for (int j = 0; j < N; ++j) sum += widen(x.at[j]) * widen(y.at[j]);
    }
  }
  return sum;
}

// partial[sample][chunk] = <g, g> or <h, g> over a chunk. Reads g, or both, once.
// 16-byte accesses: loads (4 in flight)
template <class T, bool kSquares, int kCapacity>
KERNEL(kThreads)
products(TABLE(PenaltyTable<Accumulation<T>, kCapacity>) table) {
  using Acc = Accumulation<T>;
  const Item& item = table.items[owner_of(table.items, table.count, block_id())];
  const Chunk chunk = chunk_of(item, block_id() - item.first_tile);
  const Acc total =
      block_sum<kThreads>(item.vectors ? multiply<T, kSquares, kVector<T>>(item, chunk)
                                       : multiply<T, kSquares, 1>(item, chunk));
  if (thread_id() == 0)
    store(static_cast<Acc*>(table.numbers.partial) +
              static_cast<int64_t>(chunk.row) * table.numbers.columns + item.column + chunk.index,
          total);
}

// One block finishes all samples; it is as large as can be, as it waits for memory and for barriers.
constexpr int kFinishThreads = 1024;

// Calls f(sample, sum) in one thread for every sample: the sum of columns [begin, end) of its partial
// sums, of which four are read before the first is added. All threads must call it.
template <class Acc, class F>
DEVICE void for_each_sum(const Numbers<Acc>& n, int begin, int end, F&& f) {
  constexpr int kAtOnce = 4;
  const int lane = thread_id() % n.lanes, slot = thread_id() / n.lanes;
  for (int first = 0; first < n.batch; first += kFinishThreads / n.lanes) {
    const int sample = first + slot;
    const Acc* partial =
        static_cast<const Acc*>(n.partial) + static_cast<int64_t>(sample) * n.columns;
    Acc sums[kAtOnce] = {};
    UNROLL(1)
    for (int c = begin + lane; sample < n.batch && c < end; c += kAtOnce * n.lanes) {
      Acc next[kAtOnce] = {};
      UNROLL(kAtOnce)
      for (int r = 0; r < kAtOnce; ++r)
        if (c + r * n.lanes < end) next[r] = load(partial + c + r * n.lanes);
      UNROLL(kAtOnce)
      for (int r = 0; r < kAtOnce; ++r) sums[r] += next[r];
    }
    Acc sum = sums[0] + sums[1] + (sums[2] + sums[3]);
    for (int lanes = n.lanes / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
    if (lane == 0 && sample < n.batch) f(sample, sum);
  }
}

// Calls f(row, begin, end) for the rows of this table, with the columns that they are sums of.
template <class Acc, int kCapacity, class F>
DEVICE void for_each_row(const PenaltyTable<Acc, kCapacity>& table, F&& f) {
  const auto& n = table.numbers;
  if (!n.per_tensor) return f(0, 0, n.columns);
  for (int k = 0; k < table.count; ++k) {
    const Item& item = table.items[k];
    f(item.row, item.column, item.column + item.chunks);
  }
}

// Norms and values from the squares. One block; reads the partial sums once.
template <class T, int kCapacity>
KERNEL_FOR(kFinishThreads, 1)
finish(TABLE(PenaltyTable<Accumulation<T>, kCapacity>) table) {
  using Acc = Accumulation<T>;
  const auto& n = table.numbers;
  for_each_row(table, [&](int row, int begin, int end) {
    Acc value = 0;
    for_each_sum(n, begin, end, [&](int sample, Acc square) {
      const Acc norm = std::sqrt(square) * number<Acc>(n.inv_scale, 0, 1);
      store(static_cast<Acc*>(n.norms_out) + static_cast<int64_t>(row) * n.batch + sample, norm);
      const auto s = sample_of(n, norm, row, sample);
      const Acc part = s.weight * s.d_weight();
      value += part;
      if (!n.reduced) store(static_cast<Acc*>(n.values) + value_index(n, row, sample), part);
    });
    const Acc total = block_sum<kFinishThreads>(value);
    if (n.reduced && thread_id() == 0) store(static_cast<Acc*>(n.values) + row, total);
  });
}

// The same for the second order: products[row][sample] = <h, g>, d_seed and d_sample_weight.
template <class T, int kCapacity>
KERNEL_FOR(kFinishThreads, 1)
finish_double(TABLE(PenaltyTable<Accumulation<T>, kCapacity>) table) {
  using Acc = Accumulation<T>;
  const auto& n = table.numbers;
  for_each_row(table, [&](int row, int begin, int end) {
    Acc value = 0;
    for_each_sum(n, begin, end, [&](int sample, Acc t) {
      const auto s = sample_of(n, norm_of(n, row, sample), row, sample);
      store(static_cast<Acc*>(n.products) + static_cast<int64_t>(row) * n.batch + sample, t);
      const Acc part = s.d_seed(t, number<Acc>(n.e, sample, 0));
      value += part;
      if (!n.reduced) store(static_cast<Acc*>(n.d_seed) + value_index(n, row, sample), part);
      if (n.d_sample_weight) {  // rows come one after the other, samples to the same thread
        Acc* d_weight = static_cast<Acc*>(n.d_sample_weight) + sample;
        store(d_weight, (row == 0 ? Acc{0} : load(d_weight)) + s.d_weight_again(t));
      }
    });
    const Acc total = block_sum<kFinishThreads>(value);
    if (n.reduced && thread_id() == 0) store(static_cast<Acc*>(n.d_seed) + row, total);
  });
}

// --- gradients --------------------------------------------------------------------------------------

template <class T, bool kTwo, int N>
DEVICE void combine(const Item& item, const Chunk& chunk, Accumulation<T> a, Accumulation<T> b) {
  const T* from_g = static_cast<const T*>(item.g) + chunk.offset;
  const T* from_h = static_cast<const T*>(item.h) + chunk.offset;
  T* to = static_cast<T*>(item.out) + chunk.offset;
  constexpr int kAtOnce = kVectorsAtOnce<kTwo>;
  UNROLL(1)
  for (int i = thread_id() * N; i < chunk.count; i += kAtOnce * kThreads * N) {
    Words<T, N> g_words[kAtOnce], h_words[kAtOnce];
    UNROLL(kAtOnce)
    for (int r = 0; r < kAtOnce; ++r) {
      const int at = i + r * kThreads * N;
      if (at >= chunk.count) break;
      g_words[r] = load_words<T, N>(from_g + at);
      if (kTwo) h_words[r] = load_words<T, N>(from_h + at);
    }
    UNROLL(kAtOnce)
    for (int r = 0; r < kAtOnce; ++r) {
      const int at = i + r * kThreads * N;
      if (at >= chunk.count) break;
      const auto g = as_vector<T, N>(g_words[r]);
      Vector<T, N> out;
      if constexpr (kTwo) {
        const auto h = as_vector<T, N>(h_words[r]);
        for (int j = 0; j < N; ++j) out.at[j] = narrow<T>(a * widen(h.at[j]) + b * widen(g.at[j]));
      } else {
        for (int j = 0; j < N; ++j) out.at[j] = narrow<T>(b * widen(g.at[j]));
      }
      store(to + at, out);
    }
  }
}

// out = factor of the sample times g; the first block of every sample also adds up d_sample_weight over
// the rows. Reads g once, writes out once.
// 16-byte accesses: loads (4 in flight), stores
template <class T, int kCapacity>
KERNEL(kThreads)
backward(TABLE(PenaltyTable<Accumulation<T>, kCapacity>) table) {
  using Acc = Accumulation<T>;
  const auto& n = table.numbers;
  const Item& item = table.items[owner_of(table.items, table.count, block_id())];
  const Chunk chunk = chunk_of(item, block_id() - item.first_tile);
  const int sample = chunk.row;
  const auto s = sample_of(n, norm_of(n, item.row, sample), item.row, sample);
  const Acc factor = s.d_gradient();
  if (item.vectors)
    combine<T, false, kVector<T>>(item, chunk, 0, factor);
  else
    combine<T, false, 1>(item, chunk, 0, factor);
  if (!n.d_sample_weight || item.column + chunk.index > 0 || thread_id() > 0) return;
  Acc d_weight = 0;
  for (int row = 0; row < n.rows; ++row)
    d_weight += sample_of(n, norm_of(n, row, sample), row, sample).d_weight();
  store(static_cast<Acc*>(n.d_sample_weight) + sample, d_weight);
}

// out = a h + b g. Reads both once, writes out once.
// 16-byte accesses: loads (4 in flight), stores
template <class T, int kCapacity>
KERNEL(kThreads)
double_backward(TABLE(PenaltyTable<Accumulation<T>, kCapacity>) table) {
  using Acc = Accumulation<T>;
  const auto& n = table.numbers;
  const Item& item = table.items[owner_of(table.items, table.count, block_id())];
  const Chunk chunk = chunk_of(item, block_id() - item.first_tile);
  const int sample = chunk.row;
  const auto s = sample_of(n, norm_of(n, item.row, sample), item.row, sample);
  const Acc t =
      load(static_cast<const Acc*>(n.products) + static_cast<int64_t>(item.row) * n.batch + sample);
  const Acc a = s.from_h(), b = s.from_g(t, number<Acc>(n.e, sample, 0));
  if (item.vectors)
    combine<T, true, kVector<T>>(item, chunk, a, b);
  else
    combine<T, true, 1>(item, chunk, a, b);
}

}  // namespace gankernels::gradient_penalty::cuda
