// The CPU kernels of gradient penalties without torch: every launcher over shapes, dtypes, instruction
// sets and threads, against plain loops in double. Made for the sanitizers. Returns non-zero on failure.
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "gradient_penalty_cases.h"

namespace {

using namespace cases;

const Launchers kLaunchers = {gp::cpu::forward, gp::cpu::backward, gp::cpu::double_backward};

// Samples that share a piece of 32768 elements, and one that has two; enough for several threads.
const std::vector<Shape> kShapes = {
    {"one element", 1, {1}},
    {"elements", 37, {1}},
    {"odd", 3, {37}},
    {"a list", 5, {5, 64, 1, 33, 16}},
    {"several pieces", 40, {1031, 7}},
    {"several parts", 2, {33501, 12}},
};

void test_launchers(const std::string& isa) {
  for_each_settings([&](const Settings& settings, const std::string& name) {
    Settings s = settings;
    const std::string where = isa + ", " + name;
    for (const Shape& shape : kShapes) {
      s.threads = 1;
      const auto single = run(kLaunchers, shape, s);
      check(*single, where);
      if (kTsan) continue;  // kernels are serial then
      for (s.threads = 2; s.threads <= 3; ++s.threads)
        same(*single, *run(kLaunchers, shape, s), where, "the threads");
    }
  });
}

// Results beyond 32 MiB with what they are read from are written past the caches.
void test_streaming(const std::string& isa) {
  const Shape shape = {"streamed", 3, {1500007, 5}};
  const Settings s = {
      DType::kFloat32, Reduction::kMean, false, false, 1, true, true, true, false, 2};
  check(*run(kLaunchers, shape, s), isa);
}

// Several calls at a time, as from DataParallel's threads.
void test_threads_of_their_own() {
  const Settings s = {DType::kFloat32, Reduction::kMean, false, true, 1, true, true, true, true};
  for (const Shape& shape : kShapes) {
    const auto alone = run(kLaunchers, shape, s);
    std::vector<std::unique_ptr<Case>> found(4);
    std::vector<std::thread> workers;
    for (auto& mine : found)
      workers.emplace_back([&] {
        for (int round = 0; round < 3; ++round) mine = run(kLaunchers, shape, s);
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
    if (!kTsan) test_streaming(isa);
  }
  gankernels::cpu::set_isa("");
  test_threads_of_their_own();
  std::printf("%d instruction sets, %d failures\n", sets, failures);
  return failures == 0 ? 0 : 1;
}
