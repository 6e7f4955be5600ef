// The scratch memory of threads, in slots of one purpose each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace gankernels::cpu {

// The content of a slot. Two in use at the same time have different names; a test sees to it
// that none serves two operators.
enum class Slot {
  // spectral_norm/strided_matrix.h
  kSlabRows,      // p and sums, written out to the pattern of 16 rows of a slab
  kSlabExpanded,  // q, written out to a slab
  // spectral_norm.cpp
  kRepairedVector,
  kProduct,
  // image_filter.cpp
  kFilterBlock,
  // affine_resample: rows are of quads
  kPixelColumns,     // where the pixels of a row lie, in elements
  kOutputRow,        // of a tile
  kImageRow,         // of the footprint of a tile
  kImageSum,         // what a transpose adds to, where the image is narrower
  kSeparableRows,    // the footprint's rows, filtered along x
  kLatticeLine,      // points of a row of the lattice
  kDecimatedRing,    // 12 rows of the lattice, filtered along x, and the row that comes of them
  kTileCotangent,    // all rows of a tile
  kPaddedOutputRow,  // with zeros on either side
  kUpsampledRows,    // the footprint's rows, up-sampled along x
  kPaddedNodesRow,   // with zeros on either side
  kNodes,            // of the footprint
};

// Memory that begins a line of the cache.
template <class T>
struct ScratchMemory {
  static constexpr std::align_val_t kLine{64};
  struct Delete {
    void operator()(T* p) const { ::operator delete[](p, kLine); }
  };
  using Owner = std::unique_ptr<T[], Delete>;
  static Owner of(int64_t count) {
    return Owner(static_cast<T*>(::operator new[](count * sizeof(T), kLine)));
  }
};

// Memory of a thread's own, uninitialized. It grows with use, and a large one shrinks again to what
// has been asked for lately. The next request for a slot ends the life of what the last one gave.
template <class T, Slot kSlot>
T* thread_scratch(int64_t count) {
#if defined(__SANITIZE_ADDRESS__)
  // Exact, fresh and of NaN, so that a step beyond it, and use after the next request, are seen.
  thread_local typename ScratchMemory<T>::Owner exact;
  exact = ScratchMemory<T>::of(count);
  std::memset(exact.get(), 0xff, count * sizeof(T));
  return exact.get();
#else
  constexpr int64_t kSmall = (256 << 10) / sizeof(T);  // never worth giving back
  constexpr int kPatience = 256;                       // requests
  struct ScratchBlock {
    typename ScratchMemory<T>::Owner memory;
    int64_t size = 0;
    int64_t recent = 0;  // the largest of the last requests
    int requests = 0;
  };
  thread_local ScratchBlock block;
  block.recent = std::max(block.recent, count);
  bool shrink = false;
  if (block.size > kSmall && ++block.requests >= kPatience) {
    shrink = block.recent <= block.size / 2;
    block.requests = 0;
  }
  if (count > block.size || shrink) {
    const int64_t size = shrink ? block.recent : count;
    block.memory.reset();
    block.size = 0;
    block.memory = ScratchMemory<T>::of(size);
    block.size = size;
    block.requests = 0;
  }
  if (block.requests == 0) block.recent = count;
  return block.memory.get();
#endif
}

}  // namespace gankernels::cpu
