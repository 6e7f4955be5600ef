// Sums over a block of kThreads threads, and over the blocks that share a ticket. The order of every
// sum is fixed by the thread numbers.
#pragma once

#include "common/platform.h"

namespace gankernels {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// The sum of x over the block, for every thread. All threads must call it.
template <class T>
DEVICE T block_sum(T x) {
  SHARED(T, warp_sums, kWarps);
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
  sync_threads();  // the sums of an earlier call have been read
  if (thread_id() % kWarp == 0) warp_sums[thread_id() / kWarp] = x;
  sync_threads();
  T total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += warp_sums[warp];
  return total;
}

// The sum of `count` numbers in memory, for every thread. In double: it decides a norm or a factor of
// a whole layer, and costs one addition a tile.
template <class T>
DEVICE double block_sum_of(const T* x, int count) {
  double sum = 0;
  for (int i = thread_id(); i < count; i += kThreads) sum += load(x + i);
  return block_sum(sum);
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
