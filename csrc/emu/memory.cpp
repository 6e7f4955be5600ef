#include "emu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __asan_poison_memory_region(const volatile void* p, size_t bytes);
void __asan_unpoison_memory_region(const volatile void* p, size_t bytes);
}
#else
static void __asan_poison_memory_region(const volatile void*, size_t) {}
static void __asan_unpoison_memory_region(const volatile void*, size_t) {}
#endif

namespace gankernels::emu {
namespace {

constexpr size_t kSharedBytes = 48 << 10, kGap = 64, kGranule = 2;
constexpr size_t kArenaBytes = kSharedBytes + kGap;

void* new_arena(void* address) {
  void* arena = mmap(address, kArenaBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | (address ? MAP_FIXED : 0), -1, 0);
  if (arena == MAP_FAILED) throw std::bad_alloc();
  return arena;
}

}  // namespace

Memory::Memory(Races& races, Tally& tally)
    : races_(races),
      tally_(tally),
      arena_(static_cast<char*>(new_arena(nullptr))),
      arena_cells_(kSharedBytes / kGranule),
      awaited_(kSharedBytes / kGranule) {}

// --- global ---------------------------------------------------------------------------------------

void Memory::add_buffer(const char* name, const void* p, size_t bytes, size_t item,
                        Content content) {
  if (bytes == 0) return;
  Buffer buffer;
  buffer.name = name;
  buffer.begin = reinterpret_cast<uintptr_t>(p);
  buffer.end = buffer.begin + bytes;
  buffer.item = item;
  buffer.content = content;
  buffer.traffic = &tally_.counts.buffers[name];
  // calloc: the pages of what is never written cost nothing.
  if (content != Content::kConstant)
    buffer.cells.reset(static_cast<Cell*>(std::calloc((bytes + item - 1) / item, sizeof(Cell))));
  const auto position = std::upper_bound(buffers_.begin(), buffers_.end(), buffer.begin,
                                         [](uintptr_t q, const Buffer& b) { return q < b.begin; });
  buffers_.insert(position, std::move(buffer));
}

Memory::Buffer* Memory::find(uintptr_t p, size_t bytes) {
  if (last_buffer_ < buffers_.size() && buffers_[last_buffer_].holds(p, bytes))
    return &buffers_[last_buffer_];
  auto next = std::upper_bound(buffers_.begin(), buffers_.end(), p,
                               [](uintptr_t q, const Buffer& b) { return q < b.begin; });
  // Inputs may overlap one another: the one that begins last need not be the one.
  while (next != buffers_.begin()) {
    --next;
    if (next->holds(p, bytes)) {
      last_buffer_ = static_cast<size_t>(next - buffers_.begin());
      return &*next;
    }
  }
  return nullptr;
}

void Memory::out_of_bounds(uintptr_t p, size_t bytes, const char* verb, const Where& where) const {
  std::string nearest;
  for (const Buffer& b : buffers_)
    if (p + 4096 >= b.begin && p < b.end + 4096)
      nearest = std::string(", near ") + b.name + " of " + std::to_string(b.end - b.begin) +
                " bytes at byte " + std::to_string(static_cast<int64_t>(p - b.begin));
  fail(std::string(verb) + " of " + std::to_string(bytes) + " bytes out of bounds" + nearest,
       where);
}

void Memory::global(const void* pointer, size_t bytes, size_t alignment, Access access, bool atomic,
                    const Where& where) {
  const auto p = reinterpret_cast<uintptr_t>(pointer);
  Buffer* buffer = find(p, bytes);
  const char* verb = access == Access::kRead ? "a read" : "a write";
  if (!buffer) out_of_bounds(p, bytes, verb, where);
  if (p % alignment)
    fail(std::string(verb) + " of " + std::to_string(bytes) + " bytes of " + buffer->name +
             " that is not aligned to " + std::to_string(alignment),
         where);
  (access == Access::kRead ? buffer->traffic->read : buffer->traffic->written) +=
      static_cast<int64_t>(bytes);
  if (tally_.profiling) tally_.profile(p, bytes, where);
  if (buffer->content == Content::kConstant) {
    if (access == Access::kWrite) fail(std::string("a write to the input ") + buffer->name, where);
    return;
  }
  const size_t first = (p - buffer->begin) / buffer->item;
  const size_t last = (p + bytes - 1 - buffer->begin) / buffer->item;
  for (size_t i = first; i <= last; ++i) {
    Cell& cell = buffer->cells[i];
    if (access == Access::kRead && cell.write.block == 0 && buffer->content == Content::kUndefined)
      fail(std::string("a read of ") + buffer->name + " before anything was written there", where);
    races_.check(cell, access, atomic, buffer->name, where);
  }
}

const char* Memory::fill(void* p, size_t bytes) {
  ++tally_.counts.launches["fill"];
  const auto begin = reinterpret_cast<uintptr_t>(p);
  Buffer* buffer = find(begin, bytes);
  if (!buffer || buffer->content == Content::kConstant) {
    message_ = "fill: out of bounds, or of an input";
    return message_.c_str();
  }
  const Record record = races_.host_write();
  for (size_t i = (begin - buffer->begin) / buffer->item;
       i * buffer->item < begin - buffer->begin + bytes; ++i)
    buffer->cells[i].write = record;
  buffer->traffic->written += static_cast<int64_t>(bytes);
  std::memset(p, 0, bytes);
  return nullptr;
}

// --- shared ---------------------------------------------------------------------------------------

void Memory::begin_block() {
  arrays_.clear();
  for (std::vector<Copy>& copies : copies_) copies.clear();
  awaited_.assign(awaited_.size(), false);
#if defined(GANKERNELS_TSAN)
  // ThreadSanitizer's record of the shared memory of the block before would put this one in order
  // with it, or be a race. New pages are unknown to it.
  new_arena(arena_);
#endif
  __asan_unpoison_memory_region(arena_, kArenaBytes);
  std::memset(arena_, 0xff, arena_used_);
  __asan_poison_memory_region(arena_, kArenaBytes);
  arena_used_ = 0;
}

void* Memory::allocate(const void* identity, const char* name, size_t bytes) {
  for (const SharedArray& array : arrays_)
    if (array.identity == identity) return arena_ + array.begin;
  const Unwatched unwatched;
  const size_t begin = arrays_.empty() ? 0 : (arena_used_ + 31) / 32 * 32 + kGap;
  if (begin + bytes > kSharedBytes)
    throw Error{std::string(current.kernel) + ": more than 48 KiB of shared memory, at the array " +
                name};
  arrays_.push_back({identity, name, begin, begin + bytes});
  arena_used_ = begin + bytes;
  __asan_unpoison_memory_region(arena_ + begin, bytes);
  return arena_ + begin;
}

void Memory::shared(const void* pointer, size_t bytes, Access access, bool atomic,
                    const Where& where) {
  const auto offset = static_cast<size_t>(static_cast<const char*>(pointer) - arena_);
  for (const SharedArray& array : arrays_) {
    if (offset < array.begin || offset + bytes > array.end) continue;
    const size_t alignment = std::min<size_t>(bytes & -bytes, 16);  // of the words of a struct
    if (offset % alignment)
      fail(std::string("a misaligned access to the shared ") + array.name, where);
    for (size_t i = offset / kGranule; i < (offset + bytes) / kGranule; ++i) {
      Cell& cell = arena_cells_[i];
      if (cell.write.block != races_.block()) cell.write = {};  // of a block before: other memory
      if (cell.read.block != races_.block()) cell.read = {};
      if ((access == Access::kRead || atomic) && cell.write.block == 0)
        fail(std::string("a read of the shared ") + array.name + " before it was written", where);
      if (awaited_[i])
        fail(std::string("an access to the shared ") + array.name + " before a copy has arrived",
             where);
      races_.check(cell, access, atomic, array.name, where);
    }
    return;
  }
  fail("an access to shared memory out of bounds", where);
}

void Memory::await(const void* p, size_t bytes, bool on) {
  const auto begin = static_cast<size_t>(static_cast<const char*>(p) - arena_) / kGranule;
  std::fill_n(awaited_.begin() + static_cast<int64_t>(begin), bytes / kGranule, on);
}

void Memory::begin_copy(void* to, const void* from, size_t bytes, const Where& where) {
  shared(to, bytes, Access::kWrite, false, where);
  const Unwatched unwatched;
  await(to, bytes, true);
  copies_[current.thread].push_back({to, from, bytes, where});
}

void Memory::end_copies() {
  for (const Copy& copy : copies_[current.thread]) {
    await(copy.to, copy.bytes, false);
    shared(copy.to, copy.bytes, Access::kWrite, false, copy.where);
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
  copies_[current.thread].clear();
}

}  // namespace gankernels::emu
