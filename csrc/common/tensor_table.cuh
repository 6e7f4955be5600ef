// Parts of kernels that serve many tensors in a launch: the table of the tensors, passed by value,
// its tiles, and the workspace.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "common/platform.h"

namespace gankernels {

constexpr int kTensors = 64;  // of one launch: with 64, tables stay below 32 KiB

// Calls f(capacity) with the least of three capacities of a table, as a constant, that `count` tensors
// need: a table is an argument of a launch, which takes longer the larger it is, and beyond 4 KiB needs
// a driver of CUDA 12.1.
template <class F>
auto visit_capacity(int64_t count, F&& f) {
  if (count <= 1) return f(std::integral_constant<int, 1>{});
  if (count <= 8) return f(std::integral_constant<int, 8>{});
  return f(std::integral_constant<int, kTensors>{});
}

template <class T>
constexpr int kVector = 16 / sizeof(T);

// N elements as they are loaded, which as_vector makes numbers of where they are used: half precision that
// is taken apart at once takes two registers for one until then.
template <class T, int N>
using Words = std::conditional_t<N * sizeof(T) == 16, Vector<uint32_t, 4>, Vector<T, N>>;
template <class T, int N>
DEVICE Words<T, N> load_words(const T* p) {
  if constexpr (N * sizeof(T) == 16)
    return load<4>(reinterpret_cast<const uint32_t*>(p));
  else
    return load<N>(p);
}
template <class T, int N>
DEVICE Vector<T, N> as_vector(const Words<T, N>& words) {
  return std::bit_cast<Vector<T, N>>(words);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// The least power of two that is not below `count`, or a warp.
inline int lanes_for(int64_t count) {
  int lanes = 1;
  while (lanes < kWarp && lanes < count) lanes *= 2;
  return lanes;
}

inline bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// Which of `count` tensors a tile belongs to; their first_tile ascends.
template <class Item, int kCapacity>
DEVICE int owner_of(const Item (&items)[kCapacity], int count, int tile) {
  if constexpr (kCapacity == 1) return 0;
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (items[middle].first_tile <= tile)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// The chunk of a row of a tensor that a tile is: `count` elements from `offset` on.
struct Chunk {
  int row, index, count;
  int64_t offset;
};

// The tiles of an item are chunks of its rows: `chunks` a row, of `chunk` elements, the last of a row of
// what is left of its `size`.
template <class Item>
DEVICE Chunk chunk_of(const Item& item, int tile) {
  const int row = tile / item.chunks, index = tile % item.chunks;
  const int64_t begin = static_cast<int64_t>(index) * item.chunk;
  const int64_t left = item.size - begin;
  return {row, index, left < item.chunk ? static_cast<int>(left) : item.chunk,
          row * item.size + begin};
}

// Parts of the workspace, one after the other; without memory it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(const char* name, int64_t count, Buffers* buffers) {
    T* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
    if (buffers) buffers->scratch(name, p, count, sizeof(T));
    return p;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace gankernels
