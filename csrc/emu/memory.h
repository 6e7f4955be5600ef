// The memory that kernels may touch: buffers in global memory, by the elements' last accesses, and the
// shared memory of the current block.
#pragma once

#include <array>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "emu/counters.h"
#include "emu/races.h"

namespace gankernels::emu {

class Memory {
 public:
  Memory(Races& races, Tally& tally);

  void add_buffer(const char* name, const void* p, size_t bytes, size_t item, Content content);
  void remove_buffers() { buffers_.clear(); }
  const char* fill(void* p, size_t bytes);

  // Accesses of the current thread.
  void global(const void* pointer, size_t bytes, size_t alignment, Access access, bool atomic,
              const Where& where);
  void* allocate(const void* identity, const char* name, size_t bytes);
  void shared(const void* pointer, size_t bytes, Access access, bool atomic, const Where& where);
  // Asynchronous copies to shared memory, of the current thread: they take their place at once, and
  // what they bring is there when the thread has waited for it.
  void begin_copy(void* to, const void* from, size_t bytes, const Where& where);
  void end_copies();

  void begin_block();
  size_t shared_bytes() const { return arena_used_; }

 private:
  struct Buffer {
    const char* name;
    uintptr_t begin, end;
    size_t item;
    Content content;
    std::unique_ptr<Cell[], decltype(&std::free)> cells{nullptr, &std::free};
    Traffic* traffic;

    bool holds(uintptr_t p, size_t bytes) const { return p >= begin && p + bytes <= end; }
  };
  struct SharedArray {
    const void* identity;
    const char* name;
    size_t begin, end;
  };

  void await(const void* p, size_t bytes, bool on);
  Buffer* find(uintptr_t p, size_t bytes);
  [[noreturn]] void out_of_bounds(uintptr_t p, size_t bytes, const char* verb,
                                  const Where& where) const;

  Races& races_;
  Tally& tally_;
  std::vector<Buffer> buffers_;
  size_t last_buffer_ = 0;
  char* const arena_;
  std::vector<Cell> arena_cells_;
  std::vector<SharedArray> arrays_;
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    Where where;
  };
  std::array<std::vector<Copy>, kMaxThreads> copies_;
  std::vector<bool> awaited_;  // by granule: a copy has not arrived
  size_t arena_used_ = 0;
  std::string message_;
};

}  // namespace gankernels::emu
