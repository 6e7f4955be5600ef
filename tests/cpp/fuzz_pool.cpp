// Fuzzes the pool of output buffers: blocks of sizes around its constants, taken, written, read and given
// back by several threads in any order.
#include "cpu/memory/pool.h"

#include <cstring>
#include <thread>
#include <vector>

#include "fuzz.h"

namespace {

using namespace fuzz;
namespace pool = gankernels::pool;

struct Held {
  unsigned char* data;
  size_t bytes;
  unsigned char mark;
};

// Whether nobody else has written into it: all of a small block, a part of every page of a large one.
bool intact(const Held& held) {
  const size_t step = held.bytes > 100000 ? 509 : 1;
  for (size_t i = 0; i < held.bytes; i += step)
    if (held.data[i] != held.mark) return false;
  return held.data[held.bytes - 1] == held.mark;
}

void work(uint64_t seed, int rounds, int64_t most, bool empties, std::vector<const char*>* errors) {
  Random random(seed);
  std::vector<Held> held;
  size_t total = 0;
  const auto give = [&](size_t k) {
    if (!intact(held[k])) errors->push_back("somebody else wrote into a block");
    total -= held[k].bytes;
    pool::give(held[k].data);
    held[k] = held.back();
    held.pop_back();
  };
  for (int round = 0; round < rounds; ++round) {
    if (random.chance(0.55) && total < (16 << 20)) {
      const auto bytes = static_cast<size_t>(random.size(most));
      const Held block{static_cast<unsigned char*>(pool::take(bytes)), bytes,
                       static_cast<unsigned char>(random.bits())};
      if (!block.data) {
        errors->push_back("no memory");
        continue;
      }
      if (reinterpret_cast<uintptr_t>(block.data) % 64 != 0)
        errors->push_back("a block that is not aligned");
      for (const Held& other : held)
        if (block.data < other.data + other.bytes && other.data < block.data + bytes)
          errors->push_back("a block that overlaps another");
      std::memset(block.data, block.mark, bytes);
      held.push_back(block);
      total += bytes;
    } else if (!held.empty()) {
      give(static_cast<size_t>(random.integer(0, static_cast<int64_t>(held.size()) - 1)));
    }
    if (random.chance(0.05)) {
      const pool::Scratch scratch(static_cast<size_t>(random.size(300000)));
      if (scratch.get()) std::memset(scratch.get(), 1, 1);
    }
    if (empties && random.chance(0.03)) pool::empty();
  }
  while (!held.empty()) give(held.size() - 1);
}

void test(Random& random) {
  const int threads = random.chance(0.5) ? 1 : static_cast<int>(random.integer(2, 5));
  const int rounds = static_cast<int>(random.integer(20, 120));
  const int64_t most = random.pick<int64_t>({70000, 300000, 300000, 5 << 20});
  const bool empties = random.chance(0.5);
  say("%d threads, %d rounds, blocks up to %ld bytes%s", threads, rounds, long(most),
      empties ? ", emptied" : "");
  std::vector<std::vector<const char*>> errors(threads);
  std::vector<std::thread> workers;
  for (int t = 0; t < threads; ++t) {
    const uint64_t seed = random.bits();
    if (threads == 1)
      work(seed, rounds, most, empties, &errors[t]);
    else
      workers.emplace_back(work, seed, rounds, most, empties, &errors[t]);
  }
  for (std::thread& worker : workers) worker.join();
  for (const auto& list : errors)
    for (const char* error : list) CHECK(false, "%s", error);
  if (random.chance(0.3)) {
    pool::empty();
    CHECK(pool::empty() == 0, "something is left");
  }
}

}  // namespace

int main(int argc, char** argv) {
  fuzz::run(argc, argv, 600, test);
  return failures == 0 ? 0 : 1;
}
