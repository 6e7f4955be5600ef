// Output buffers that are used again. Fresh memory costs a page fault every 4 KiB, several times what
// the kernels' arithmetic costs; a buffer that nobody holds any more serves the next call.
#pragma once

#include <cstddef>

namespace gankernels::pool {

// Outputs below this size are left to torch's allocator, which serves them without page faults.
constexpr size_t kMinimum = 64 << 10;

// Uninitialised memory, 64-byte aligned; null where the system has none. Thread-safe.
void* take(size_t bytes);

// Keeps a block from take() for later, within the bound of what is kept, or frees it. Thread-safe.
void give(void* block);

// Frees everything that is kept; returns the bytes.
size_t empty();

// A block for the life of a scope.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : block_(bytes ? take(bytes) : nullptr) {}
  ~Scratch() {
    if (block_) give(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* get() const { return block_; }

 private:
  void* block_;
};

}  // namespace gankernels::pool
