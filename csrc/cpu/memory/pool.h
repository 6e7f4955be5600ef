// Output buffers that are used again. Fresh memory costs a page fault every 4 KiB, several times what
// the kernels' arithmetic costs; a buffer that nobody holds any more serves the next call.
//
// Kept memory is bounded by what this process itself has lately used at once, so that any number of
// processes can share a machine: used and kept blocks together are at most twice the most that was
// used within the last kMemory to 2 kMemory takes (a discriminator's blocks outlive the generator's
// turn), or 32 MiB; and kept blocks are at most a sixteenth of the memory that the process may use.
// The least recently used blocks go first, and those that 2 kMemory takes have passed by.
#pragma once

#include <cstddef>

namespace gankernels::pool {

// Outputs below this size are left to torch's allocator, which serves them without page faults.
constexpr size_t kMinimum = 64 << 10;

constexpr size_t kMemory = 4096;  // takes

// Uninitialized memory, 64-byte aligned; null where the system has none. Thread-safe.
void* take(size_t bytes);

// Keeps a block from take() for later, within the bounds of what is kept, or frees it. Thread-safe.
void give(void* block);

// Frees everything that is kept, and forgets what was used; returns the bytes.
size_t empty();

struct Stats {
  size_t used, kept;    // bytes
  size_t bound;         // of the two together
  size_t takes, fresh;  // how many so far, and how many of them had to ask the system
};
Stats stats();

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
