// The kernel of the controller of p on the emulator and that of the CPU, without torch: dtypes, metrics
// and orders of threads, against plain sums and each other. Returns non-zero on failure.
#include "ada_control.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "emu_cases.h"

namespace {

namespace ac = gankernels::ada_control;
using namespace cases;

constexpr ac::Metric kMetrics[] = {ac::Metric::kRt, ac::Metric::kRv, ac::Metric::kAccuracy};

struct Run {
  ac::State state{};
  float p = 0.25f;
};

template <class Launch>
void run(Run& run, const std::vector<std::pair<int, const Numbers*>>& scores, int64_t images,
         const ac::Control& control, bool steps, const double* sums, Launch&& launch) {
  ac::Update args{};
  args.state = &run.state;
  args.p = steps ? &run.p : nullptr;
  args.sums = sums;
  args.adds = !sums;
  args.images = images;
  for (const auto& [group, x] : scores)
    args.scores[args.count++] = {x->data, x->n, x->dtype, static_cast<int8_t>(group)};
  args.control = control;
  good(launch(args));
}

const char* emulated(const ac::Update& args) {
  return with_workspace(args, ac::cuda::workspace(args), ac::cuda::update);
}

double number(const ac::State& state, int i) {
  double x;
  std::memcpy(&x, reinterpret_cast<const char*>(&state) + 8 * i, 8);
  return x;
}

void same(const Run& a, const Run& b, double bound, const std::string& where) {
  for (int i = 0; i < ac::kState; ++i)
    CHECK(std::abs(number(a.state, i) - number(b.state, i)) <= bound, "%s: %g is not %g at %d",
          where.c_str(), number(a.state, i), number(b.state, i), i);
  CHECK(a.p == b.p, "%s: p %g is not %g", where.c_str(), a.p, b.p);
}

void test(ac::Metric metric, DType dtype, int64_t size, bool apart) {
  const std::string where = "metric " + std::to_string(static_cast<int>(metric)) + ", " +
                            kNames[static_cast<int>(dtype)] + ", " + std::to_string(size);
  const int groups = metric == ac::Metric::kRt ? 1 : metric == ac::Metric::kRv ? 3 : 2;
  const ac::Control control{metric, 0.1, 2, 100, 0.9};
  std::mt19937 random(7);
  Run cpu, emu[std::size(kOrders)];
  ac::Sums sums[3]{};
  double images = 0;
  for (int call = 1; call <= 4; ++call) {
    std::vector<Numbers> numbers;
    for (int g = 0; g < groups; ++g)
      for (const int64_t n : {size, int64_t{3}}) numbers.emplace_back(dtype, n).draw(random);
    std::vector<std::pair<int, const Numbers*>> scores;
    for (size_t i = 0; i < numbers.size(); ++i) {
      const int g = static_cast<int>(i) / 2;
      scores.push_back({g, &numbers[i]});
      for (int64_t k = 0; k < numbers[i].n; ++k) {
        const double x = numbers[i][k];
        sums[g].total += metric == ac::Metric::kRv ? x : x > 0 ? 1 : x < 0 ? -1 : 0;
      }
      sums[g].count += static_cast<double>(numbers[i].n);
    }
    images += 5;
    const auto both = [&](Run& one, auto&& launch) {
      run(one, scores, 5, control, !apart, nullptr, launch);
      if (!apart) return;
      double all[ac::kSums];
      std::memcpy(all, &one.state, sizeof all);
      run(one, {}, 0, control, true, all, launch);
    };
    both(cpu, ac::cpu::update);
    for (size_t k = 0; k < std::size(kOrders); ++k) {
      emu::set_order(kOrders[k], 1);
      both(emu[k], emulated);
      same(emu[k], emu[0], 0, where + ", the order of threads");
    }
    same(emu[0], cpu, 1e-9 * static_cast<double>(size), where);
    CHECK(cpu.state.calls == call, "%s: call %g", where.c_str(), cpu.state.calls);
    if (call % 2 == 0) {
      const auto mean = [&](int g) { return sums[g].total / sums[g].count; };
      const double r = groups == 1   ? mean(0)
                       : groups == 2 ? 0.5 + (mean(0) - mean(1)) / 4
                                     : (mean(0) - mean(2)) / (mean(0) - mean(1));
      CHECK(std::abs(cpu.state.r - r) < 1e-9 * (1 + std::abs(r)), "%s: r %g is not %g",
            where.c_str(), cpu.state.r, r);
      CHECK(cpu.state.images == 0 && cpu.state.groups[0].count == 0, "%s: sums", where.c_str());
      for (auto& s : sums) s = {};
      images = 0;
    } else {
      CHECK(cpu.state.images == images, "%s: images", where.c_str());
    }
  }
}

void test_steps() {
  const ac::Control c{ac::Metric::kRt, 0.6, 1, 100, 0.5};
  const auto moved = [&](double r, double p) {
    ac::State state{};
    const ac::Sums groups[3] = {{10 * r, 10}, {}, {}};
    return ac::step(state, groups, 20, p, c);
  };
  CHECK(std::abs(moved(0.7, 0.1) - 0.3) < 1e-15, "up: %g", moved(0.7, 0.1));
  CHECK(std::abs(moved(0.5, 0.3) - 0.1) < 1e-15, "down: %g", moved(0.5, 0.3));
  CHECK(moved(0.5, 0.1) == 0 && moved(1, 0.45) == 0.5, "bounds");
  CHECK(moved(NAN, 0.25) == 0.25 && std::abs(moved(1, NAN) - 0.2) < 1e-15, "NaN");
}

}  // namespace

int main() {
  test_steps();
  for (const ac::Metric metric : kMetrics)
    for (const DType dtype : kDTypes)
      for (const int64_t size :
           kTsan ? std::vector<int64_t>{300} : std::vector<int64_t>{1, 255, 1027})
        for (const bool apart : {false, true}) test(metric, dtype, size, apart);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
