// Parts of kernels that serve many tensors in a launch: the table of the tensors, passed by value,
// its tiles, and the workspace.
#pragma once

#include <cstdint>

#include "common/platform.h"

namespace gankernels {

constexpr int kTensors = 64;  // of one launch: with 64, tables stay below 32 KiB

template <class T>
constexpr int kVector = 16 / sizeof(T);

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
template <class Item>
DEVICE int owner_of(const Item* items, int count, int tile) {
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
