// The CPU kernels of weight normalization without torch: every launcher over shapes, dtypes, instruction
// sets and threads, against plain loops in double. Made for the sanitizers. Returns non-zero on failure.
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "weight_norm_cases.h"

namespace {

using namespace cases;

const Launchers kLaunchers = {wn::cpu::forward, wn::cpu::backward, wn::cpu::double_backward};

// Rows that share a piece of 32768 elements, and some that have two; enough for several threads.
const std::vector<Shapes> kShapes = {
    {{1, 1}},
    {{37, 1}},
    {{3, 37}},
    {{5, 5}, {2, 64}, {1, 1}, {7, 33}, {4, 16}},
    {{40, 1031}, {3, 7}},
    {{2, 33501}, {2, 12}, {1, 34816}},
};

void test_launchers(const std::string& isa) {
  for_each_settings([&](const Settings& settings, const std::string& name) {
    Settings s = settings;
    const std::string where = isa + ", " + name;
    for (const Shapes& shapes : kShapes) {
      s.threads = 1;
      const auto single = run(kLaunchers, shapes, s);
      check(*single, where);
      if (kTsan) continue;  // kernels are serial then
      for (s.threads = 2; s.threads <= 3; ++s.threads)
        same(*single, *run(kLaunchers, shapes, s), where, "the threads");
    }
  });
}

// Numbers whose squares, and factors, leave the range of their type.
void test_ranges(const std::string& isa) {
  for (const double scale : {0x1p-98, 0x1p+98})
    for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16})
      for (const Shapes& shapes : kShapes)
        check(*run(kLaunchers, shapes, {dtype, true, false, scale}), isa + ", range");
  for (const double scale : {0x1p-700, 0x1p+700})
    for (const Shapes& shapes : kShapes)
      check(*run(kLaunchers, shapes, {DType::kFloat64, true, false, scale}), isa + ", far");
}

// Results beyond 32 MiB with what they are read from are written past the caches.
void test_streaming(const std::string& isa) {
  const Settings s = {DType::kFloat32, true, false, 1, 2};
  check(*run(kLaunchers, {{3, 1500007}, {30001, 5}}, s), isa);
}

// Several calls at a time, as from DataParallel's threads.
void test_threads_of_their_own() {
  const Settings s = {DType::kBFloat16, true, true};
  for (const Shapes& shapes : kShapes) {
    const auto alone = run(kLaunchers, shapes, s);
    std::vector<std::unique_ptr<Case>> found(4);
    std::vector<std::thread> workers;
    for (auto& mine : found)
      workers.emplace_back([&] {
        for (int round = 0; round < 3; ++round) mine = run(kLaunchers, shapes, s);
      });
    for (std::thread& worker : workers) worker.join();
    for (const auto& mine : found) same(*alone, *mine, "threads of their own", "other calls");
  }
}

}  // namespace

int main() {
  int sets = 0;
  for (const char* isa : gankernels::cpu::isas()) {
    CHECK(gankernels::cpu::set_isa(isa), "%s", isa);
    ++sets;
    test_launchers(isa);
    test_ranges(isa);
    if (!kTsan) test_streaming(isa);
  }
  gankernels::cpu::set_isa("");
  test_threads_of_their_own();
  std::printf("%d instruction sets, %d failures\n", sets, failures);
  return failures == 0 ? 0 : 1;
}
