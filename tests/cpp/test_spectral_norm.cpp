// The CPU kernels without torch: every launcher over layouts, dtypes, instruction sets and threads,
// against plain loops in double; and the pool of output buffers. Made for the sanitizers. Returns
// non-zero on failure.
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "cpu/memory/pool.h"
#include "spectral_norm_cases.h"

namespace {

using namespace cases;

const Launchers kLaunchers = {sn::cpu::power_iteration, sn::cpu::normalize, sn::cpu::backward,
                              sn::cpu::double_backward};

// Shapes that end within vectors, tiles of 4, 8 and 16 rows, and chunks.
const std::vector<Layout> kSmall = {
    {"one element", 1, 1, 1, {}, {}},
    {"one row", 1, 1, 37, {}, {}},
    {"one column", 1, 37, 1, {}, {}},
    {"contiguous", 1, 31, 33, {}, {}},
    {"contiguous, wide", 1, 3, 1031, {}, {}},
    {"contiguous, tall", 1, 257, 5, {}, {}},
    {"channels_last", 1, 12, 7 * 6, {7, 6}, {1, 7}},
    {"channels_last, 5-D", 1, 5, 3 * 2 * 4, {3, 2, 4}, {1, 12, 3}},
    {"transposed", 33, 31, 1, {}, {}},
    {"transposed, wide", 521, 7, 1, {}, {}},
    {"transposed convolution", 6, 37, 12, {}, {}},
    {"transposed convolution of one channel", 6, 1, 16, {}, {}},
    {"transposed convolution of 16", 5, 16, 9, {}, {}},
    {"transposed convolution, channels_last", 6 * 12, 10, 1, {6, 12}, {12, 1}},
    {"rows in the middle", 5 * 6, 7, 4, {6, 5, 4}, {4, 24, 1}},
};

const std::vector<Layout> kLarge = {
    {"large", 1, 701, 743, {}, {}},
    {"large, few rows", 1, 3, 150001, {}, {}},
    {"large, many rows", 1, 50001, 3, {}, {}},
    {"large, transposed", 743, 701, 1, {}, {}},
    {"large, channels_last", 1, 256, 131 * 16, {131, 16}, {1, 131}},
    {"large, transposed convolution", 131, 257, 16, {}, {}},
};

void test_launchers(const std::vector<Layout>& layouts, const Settings& settings,
                    const std::string& where) {
  Settings s = settings;
  s.threads = 1;
  const Cases single = run(kLaunchers, layouts, s);
  check_all(single, layouts, s, where);
  for (s.threads = 2; s.threads <= 3; ++s.threads)
    same(single, run(kLaunchers, layouts, s), where, "the threads");
}

// Outputs over 32 MiB in total are written past the caches.
void test_streaming(const std::string& where) {
  const std::vector<Layout> layouts = {
      {"streamed", 1, 2051, 2053, {}, {}},
      {"streamed, tiny", 1, 3, 5, {}, {}},
      {"streamed, transposed", 1031, 2051, 1, {}, {}},
      {"streamed, transposed convolution", 131, 2051, 9, {}, {}},
  };
  int64_t total = 0;
  for (const Layout& layout : layouts) total += size(layout);
  CHECK(total * 4 > (32 << 20), "%ld", long(total));
  test_launchers(layouts, {DType::kFloat32, 1, true, 0, 2}, where);
}

// Blocks are whole, aligned, nobody else's, and come back.
void test_pool() {
  namespace pool = gankernels::pool;
  pool::empty();
  void* first = pool::take(100000);
  CHECK(reinterpret_cast<uintptr_t>(first) % 64 == 0, "%p", first);
  pool::give(first);
  void* again = pool::take(100000);
  CHECK(again == first, "expected the block that was given back");
  pool::give(again);
  CHECK(pool::empty() >= 100000, "expected the block to be freed");
  CHECK(pool::empty() == 0, "expected nothing left");

  std::vector<std::thread> workers;
  for (int t = 0; t < 4; ++t)
    workers.emplace_back([t] {
      std::mt19937 random(t);
      std::vector<std::pair<unsigned char*, size_t>> held;
      for (int round = 0; round < 300; ++round) {
        const size_t bytes = random() % (round % 50 == 0 ? 6 << 20 : 300000) + 1;
        auto* block = static_cast<unsigned char*>(pool::take(bytes));
        std::memset(block, t, bytes);
        held.emplace_back(block, bytes);
        if (held.size() > 6 || random() % 2) {
          const auto [old, n] = held[random() % held.size()];
          for (size_t i = 0; i < n; i += 997) CHECK(old[i] == t, "another thread wrote here");
          CHECK(old[n - 1] == t, "another thread wrote here");
          std::erase_if(held, [old = old](const auto& h) { return h.first == old; });
          pool::give(old);
        }
        if (t == 0 && round % 40 == 0) pool::empty();
      }
      for (const auto& [block, n] : held) pool::give(block);
    });
  for (std::thread& worker : workers) worker.join();
  pool::empty();
}

// Several calls at a time, as from DataParallel's threads.
void test_threads_of_their_own() {
  const Settings settings = {DType::kFloat32, 2, true, 0, 1};
  const auto alone = run(kLaunchers, kSmall, settings);
  std::vector<Cases> found(4);
  std::vector<std::thread> workers;
  for (auto& mine : found)
    workers.emplace_back([&mine, &settings] {
      for (int round = 0; round < 3; ++round) mine = run(kLaunchers, kSmall, settings);
    });
  for (std::thread& worker : workers) worker.join();
  for (const auto& mine : found) same(alone, mine, "threads of their own", "other calls");
}

}  // namespace

int main() {
  int sets = 0;
  for (const char* isa : gankernels::cpu::isas()) {
    CHECK(gankernels::cpu::set_isa(isa), "%s", isa);
    CHECK(std::strcmp(isa, gankernels::cpu::isa()) == 0, "%s", isa);
    ++sets;
    for (const DType dtype : kDTypes) {
      check_guard(kLaunchers, dtype);
      check_recovery(kLaunchers, dtype, 2);
      check_sigma_guard(kLaunchers, dtype, 2);
      for (const bool u_first : {true, false})
        for (const double max_norm : {0.0, 12.0}) {
          const std::string where = std::string(isa) + ", " + kNames[static_cast<int>(dtype)] +
                                    (u_first ? ", u first" : ", v first");
          Settings settings = {dtype, u_first ? 1 : 2, u_first, max_norm, 2};
          settings.shifted = settings.guarded = max_norm == 0;
          settings.known = settings.with_out = settings.shifted == u_first;
          settings.seeded = !settings.known;
          settings.wide_vectors = u_first;
          test_launchers(kSmall, settings, where);
          if (dtype == DType::kFloat32 && max_norm == 0)
            test_launchers(kLarge, {dtype, 1, u_first, max_norm, 2}, where);
        }
    }
    test_streaming(isa);
  }
  CHECK(!gankernels::cpu::set_isa("no such set"), "expected it refused");
  gankernels::cpu::set_isa("");
  test_pool();
  test_threads_of_their_own();
  std::printf("%d instruction sets, %d failures\n", sets, failures);
  return failures == 0 ? 0 : 1;
}
