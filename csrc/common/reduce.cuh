// Sums over a block, and over the blocks that share a ticket. The order of every sum is fixed by the
// thread numbers.
#pragma once

#include <cmath>
#include <limits>

#include "common/platform.h"

namespace gankernels {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// The sum of x over the block of kCount threads, for every thread. All threads must call it.
template <int kCount, class T>
DEVICE T block_sum(T x) {
  SHARED(T, warp_sums, kCount / kWarp);
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
  sync_threads();  // the sums of an earlier call have been read
  if (thread_id() % kWarp == 0) warp_sums[thread_id() / kWarp] = x;
  sync_threads();
  T total = 0;
  for (int warp = 0; warp < kCount / kWarp; ++warp) total += warp_sums[warp];
  return total;
}

// The largest x of the block, likewise; no x is NaN.
template <int kCount, class T>
DEVICE T block_max(T x) {
  SHARED(T, warp_tops, kCount / kWarp);
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const T other = shuffle_xor(x, lanes);
    x = other > x ? other : x;
  }
  sync_threads();  // those of an earlier call have been read
  if (thread_id() % kWarp == 0) warp_tops[thread_id() / kWarp] = x;
  sync_threads();
  for (int warp = 0; warp < kCount / kWarp; ++warp) {
    const T other = warp_tops[warp];
    x = other > x ? other : x;
  }
  return x;
}

// The sum of `count` numbers in memory, for every thread.
template <int kCount, class T>
DEVICE T block_sum_of(const T* x, int count) {
  T sum = 0;
  for (int i = thread_id(); i < count; i += kCount) sum += load(x + i);
  return block_sum<kCount>(sum);
}

// The norm of x(i) for begin <= i < end, for every thread. Not in double, of which many GPUs have two
// units a multiprocessor: entries over the largest have squares that stay within range. NaN stays NaN.
template <int kCount, class T, class F>
DEVICE T block_norm(int begin, int end, F&& x) {
  T largest = 0;
  for (int i = begin + thread_id(); i < end; i += kCount) {
    const T size = std::abs(x(i));
    largest = size > largest ? size : largest;
  }
  largest = block_max<kCount>(largest);
  const T unit = largest > 0 && largest <= std::numeric_limits<T>::max() ? largest : T{1};
  T sum = 0;
  for (int i = begin + thread_id(); i < end; i += kCount) {
    const T part = x(i) / unit;
    sum += part * part;
  }
  return unit * std::sqrt(block_sum<kCount>(sum));
}

// Whether this is the last of `count` blocks to come here with the ticket, which was zero. What all of
// them stored before can then be read by this one. All threads must call it.
DEVICE bool is_last_block(int* ticket, int count) {
  SHARED(int, last, 1);
  sync_threads();  // the block has stored everything
  if (thread_id() == 0) {
    fence();  // ... before it says so
    last[0] = atomic_add(ticket, 1) == count - 1;
    fence();  // ... and nothing is read before all have said so
  }
  sync_threads();
  return last[0];
}

}  // namespace gankernels
