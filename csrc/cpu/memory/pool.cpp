#include "cpu/memory/pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>

#include "cpu/memory/memory_limit.h"

namespace gankernels::pool {
namespace {

constexpr size_t kAlign = 64;         // a cache line; also the room for a block's header before it
constexpr size_t kRound = 64 << 10;   // blocks come in multiples of this
constexpr size_t kMapFrom = 1 << 20;  // blocks from here on are mappings of their own
constexpr size_t kHugePage = 2 << 20;
constexpr size_t kHugeFrom = 4 << 20;  // blocks from here on ask for huge pages
constexpr size_t kLeastBound = 32 << 20;

// The head of a block, before the bytes that are handed out.
struct PoolBlock {
  size_t size;
  size_t takes_at_return;    // the number of takes when it came back
  PoolBlock *newer, *older;  // of all that are kept, by when they came back
  PoolBlock *next, *before;  // of those of its size, the last to come back first
};
static_assert(sizeof(PoolBlock) <= kAlign);

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kMapped = false;  // the sanitizer watches what comes from malloc
#else
constexpr bool kMapped = true;
#endif

// malloc may keep memory that is freed: large blocks do not come from it.
PoolBlock* fresh(size_t size) {
  void* memory = nullptr;
  if (!kMapped || size < kMapFrom) {
    if (posix_memalign(&memory, 4096, size) != 0) return nullptr;
  } else {
    const bool huge = size >= kHugeFrom;
    const size_t room = size + (huge ? kHugePage : 0);
    memory = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    if (huge) {  // from a multiple of a huge page on
      auto* begin = static_cast<char*>(memory);
      const size_t skip = -reinterpret_cast<uintptr_t>(begin) % kHugePage;
      if (skip > 0) munmap(begin, skip);
      munmap(begin + skip + size, kHugePage - skip);
      memory = begin + skip;
      madvise(memory, size, MADV_HUGEPAGE);
    }
  }
  return new (memory) PoolBlock{size, 0, nullptr, nullptr, nullptr, nullptr};
}

void free_block(PoolBlock* block) {
  if (!kMapped || block->size < kMapFrom)
    std::free(block);
  else
    munmap(block, block->size);
}

// Blocks on their way to the system, outside of the lock.
void free_all(PoolBlock* first) {
  while (first) {
    PoolBlock* next = first->next;
    free_block(first);
    first = next;
  }
}

class Pool {
 public:
  PoolBlock* take(size_t size) {
    PoolBlock* gone = nullptr;
    PoolBlock* block = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (const auto found = by_size_.find(size); found != by_size_.end())
        unlink(block = found->second);
      else
        ++stats_.fresh;
      if (++stats_.takes % kMemory == 0) peak_before_ = peak_, peak_ = stats_.used;
      stats_.used += size;
      peak_ = std::max(peak_, stats_.used);
      gone = drop();
    }
    free_all(gone);
    if (block) return block;
    block = fresh(size);
    if (!block) {
      empty();
      block = fresh(size);
    }
    if (!block) {
      const std::lock_guard<std::mutex> lock(mutex_);
      stats_.used -= size;
    }
    return block;
  }

  void give(PoolBlock* block) {
    PoolBlock* gone = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stats_.used -= block->size;
      try {
        link(block);
        gone = drop();
      } catch (const std::bad_alloc&) {  // a deleter must not throw
        block->next = nullptr;
        gone = block;
      }
    }
    free_all(gone);
  }

  size_t empty() {
    PoolBlock* gone = nullptr;
    size_t bytes = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      bytes = stats_.kept;
      while (oldest_) drop_oldest(gone);
      peak_ = peak_before_ = stats_.used;
    }
    free_all(gone);
    return bytes;
  }

  Stats stats() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Stats result = stats_;
    result.bound = bound();
    return result;
  }

 private:
  size_t bound() const { return std::max(kLeastBound, 2 * std::max(peak_, peak_before_)); }

  void link(PoolBlock* block) {
    PoolBlock*& first = by_size_[block->size];
    block->takes_at_return = stats_.takes;
    block->older = newest_;
    block->newer = nullptr;
    (newest_ ? newest_->newer : oldest_) = block;
    newest_ = block;
    block->before = nullptr;
    block->next = first;
    if (first) first->before = block;
    first = block;
    stats_.kept += block->size;
  }

  void unlink(PoolBlock* block) {
    (block->older ? block->older->newer : oldest_) = block->newer;
    (block->newer ? block->newer->older : newest_) = block->older;
    if (block->next) block->next->before = block->before;
    if (block->before)
      block->before->next = block->next;
    else if (block->next)
      by_size_[block->size] = block->next;
    else
      by_size_.erase(block->size);
    stats_.kept -= block->size;
  }

  void drop_oldest(PoolBlock*& gone) {
    PoolBlock* block = oldest_;
    unlink(block);
    block->next = gone;
    gone = block;
  }

  // Takes out what is no longer kept.
  PoolBlock* drop() {
    PoolBlock* gone = nullptr;
    const size_t most = bound();
    while (oldest_ && (stats_.used + stats_.kept > most || stats_.kept > limit_ ||
                       stats_.takes - oldest_->takes_at_return > 2 * kMemory))
      drop_oldest(gone);
    return gone;
  }

  std::mutex mutex_;
  std::unordered_map<size_t, PoolBlock*> by_size_;
  PoolBlock *newest_ = nullptr, *oldest_ = nullptr;
  Stats stats_{};
  size_t peak_ = 0,
         peak_before_ = 0;  // of used bytes: since the last kMemory-th take, and before it
  const size_t limit_ = memory_limit() / 16;
};

// Never destroyed: tensors may be freed after the destructors of static objects have run.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

void* take(size_t bytes) {
  if (bytes > SIZE_MAX / 2) return nullptr;
  PoolBlock* block = pool().take((bytes + kAlign + kRound - 1) / kRound * kRound);
  return block ? reinterpret_cast<char*>(block) + kAlign : nullptr;
}

void give(void* block) {
  pool().give(reinterpret_cast<PoolBlock*>(static_cast<char*>(block) - kAlign));
}

size_t empty() {
  return pool().empty();
}

Stats stats() {
  return pool().stats();
}

}  // namespace gankernels::pool
