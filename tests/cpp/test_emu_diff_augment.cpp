// The kernel of the parameters of differentiable augmentation on the emulator, and that of the CPU,
// without torch: sizes, dtypes, what is wanted. Returns non-zero on failure.
#include "diff_augment.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "emu_cases.h"

namespace {

namespace da = gankernels::diff_augment;
using namespace cases;

// Blocks of their exact size.
struct Results {
  Results(DType acc, int64_t batch, int64_t channels)
      : maps(DType::kFloat64, batch * 6),
        box(DType::kFloat64, batch * 3),
        color(acc, batch * channels * (channels + 1)),
        mix(acc, batch * da::kMix) {}
  Numbers maps, box, color, mix;
};

void test(DType acc, int64_t batch, int64_t channels, int64_t height, int64_t width, bool before) {
  const std::string where = "batch " + std::to_string(batch) + ", " + std::to_string(height) +
                            " x " + std::to_string(width) + ", channels " +
                            std::to_string(channels);
  std::mt19937 random(3);
  std::uniform_real_distribution<double> uniform;
  Numbers u(DType::kFloat64, batch * da::kUniforms);
  for (int64_t i = 0; i < u.n; ++i) u.set(i, uniform(random));
  const auto run = [&](const auto& launch) {
    Results out(acc, batch, channels);
    da::Parameters args{};
    args.acc = acc;
    args.batch = batch, args.height = height, args.width = width;
    args.color_channels = channels;
    args.before = before;
    args.uniforms = reinterpret_cast<const da::Uniforms*>(u.data);
    args.maps = reinterpret_cast<double*>(out.maps.data);
    args.box = reinterpret_cast<double*>(out.box.data);
    args.color = channels ? out.color.data : nullptr;
    args.mix = out.mix.data;
    good(launch(args));
    return out;
  };
  const Results cpu = run(da::cpu::compute);
  for (const Order order : kOrders) {
    emu::set_order(order, 1);
    const Results emulated = run([](const da::Parameters& args) {
      return with_workspace(args, da::cuda::workspace(args), da::cuda::compute);
    });
    CHECK(emulated.maps.same(cpu.maps) && emulated.box.same(cpu.box) &&
              emulated.color.same(cpu.color) && emulated.mix.same(cpu.mix),
          "%s: emulated", where.c_str());
  }
  for (int64_t i = 0; i < batch; ++i) {
    const auto at = [&](int k) { return u[i * da::kUniforms + k]; };
    const double side[2] = {static_cast<double>(width), static_cast<double>(height)};
    for (int k = 0; k < 2; ++k) {
      const double shift = cpu.maps[6 * i + 3 * k + 2], reach = std::floor(side[k] / 8 + 0.5);
      CHECK(std::abs(shift) <= reach && shift == std::floor(shift) &&
                std::abs(shift - (at(3 + k) - 0.5) * (2 * reach + 1)) <= 0.5 + 1e-9,
            "%s: shift %g", where.c_str(), shift);
      // The first pixel of the box is whole: its center lies on a pixel, or between two.
      const double n = std::floor(side[k] / 2 + 0.5);
      const double first = cpu.box[3 * i + k] * side[k] - n / 2 - (before ? shift : 0);
      CHECK(std::abs(first - std::round(first)) < 1e-9 && first >= -n / 2 - 1e-9 &&
                first <= side[k] - n / 2 + 1e-9,
            "%s: a box from %g on", where.c_str(), first);
    }
    CHECK(cpu.maps[6 * i] == 1 && cpu.maps[6 * i + 1] == 0 && cpu.maps[6 * i + 3] == 0 &&
              cpu.maps[6 * i + 4] == 1 && cpu.box[3 * i + 2] == 0.5,
          "%s: constants", where.c_str());
    const double c = at(2) + 0.5, s = 2 * at(1), b = at(0) - 0.5;
    const double right[4] = {c * s, c * (1 - s), (1 - c) / c, b};
    for (int k = 0; k < 4; ++k)
      CHECK(std::abs(cpu.mix[4 * i + k] - right[k]) < tolerance(acc) * 2, "%s: mix", where.c_str());
    for (int64_t row = 0; row < channels; ++row) {
      double sum = 0;
      for (int64_t k = 0; k < channels; ++k)
        sum += cpu.color[(i * channels + row) * (channels + 1) + k];
      CHECK(std::abs(sum - c) < tolerance(acc) * 4, "%s: a row of color", where.c_str());
      CHECK(std::abs(cpu.color[(i * channels + row) * (channels + 1) + channels] - b) <
                tolerance(acc),
            "%s: an offset", where.c_str());
    }
  }
}

}  // namespace

int main() {
  for (const DType acc : {DType::kFloat32, DType::kFloat64})
    for (const int64_t batch :
         kTsan ? std::vector<int64_t>{33} : std::vector<int64_t>{1, 32, 33, 70})
      for (const int64_t channels : {0, 1, 3})
        for (const bool before : {false, true}) {
          test(acc, batch, channels, 32, 40, before);
          test(acc, batch, channels, 1, 13, before);
        }
  const da::Parameters nothing{};
  good(da::cpu::compute(nothing));
  good(da::cuda::compute(nothing, nullptr, nullptr));
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
