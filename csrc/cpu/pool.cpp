#include "cpu/pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace gankernels::pool {
namespace {

constexpr size_t kAlign = 64;        // a cache line; also the room for a block's size before it
constexpr size_t kRound = 64 << 10;  // blocks come in multiples of this
constexpr size_t kHugePage = 2 << 20;
constexpr size_t kHugeFrom = 4 << 20;  // blocks from here on ask for huge pages

struct Pool {
  std::mutex mutex;
  std::map<size_t, std::vector<char*>> kept;  // by size
  size_t bytes = 0;
  // Enough for the outputs and gradients of a large network, never much of the machine.
  const size_t limit =
      static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE)) / 8;
};

// Never destroyed: tensors may be freed after the destructors of static objects have run.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

size_t& size_of(char* base) {
  return *reinterpret_cast<size_t*>(base);
}

}  // namespace

void* take(size_t bytes) {
  const size_t size = (bytes + kAlign + kRound - 1) / kRound * kRound;
  Pool& p = pool();
  {
    const std::lock_guard<std::mutex> lock(p.mutex);
    const auto found = p.kept.find(size);
    if (found != p.kept.end() && !found->second.empty()) {
      char* base = found->second.back();
      found->second.pop_back();
      p.bytes -= size;
      return base + kAlign;
    }
  }
  const bool huge = size >= kHugeFrom;
  void* memory = nullptr;
  if (posix_memalign(&memory, huge ? kHugePage : 4096, size) != 0) {
    empty();
    if (posix_memalign(&memory, 4096, size) != 0) return nullptr;
  }
  if (huge) madvise(memory, size, MADV_HUGEPAGE);
  char* base = static_cast<char*>(memory);
  size_of(base) = size;
  return base + kAlign;
}

void give(void* block) {
  char* base = static_cast<char*>(block) - kAlign;
  Pool& p = pool();
  {
    const std::lock_guard<std::mutex> lock(p.mutex);
    const size_t size = size_of(base);
    if (p.bytes + size <= p.limit) {
      p.kept[size].push_back(base);
      p.bytes += size;
      return;
    }
  }
  std::free(base);
}

size_t empty() {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  for (auto& [size, blocks] : p.kept)
    for (char* base : blocks) std::free(base);
  p.kept.clear();
  return std::exchange(p.bytes, 0);
}

}  // namespace gankernels::pool
