// Fuzzes the CPU kernels of image filtering against the definition of the filter: 43 taps along each
// axis, and what each output takes given back for the transpose.
#include <cmath>
#include <vector>

#include "fuzz_image.h"
#include "image_filter.h"

namespace {

using namespace fuzz;
namespace fi = gankernels::image_filter;

constexpr int kReach = 21;

// The taps of k from -21 to 21, by polynomials: lo(z) lo(z^2) ... as the contract states them.
std::vector<double> times(const std::vector<double>& a, int step, bool high) {
  const double half_band[7] = {-1, 0, 9, 16, 9, 0, -1};
  std::vector<double> out(2 * kReach + 1);
  for (int i = 0; i <= 2 * kReach; ++i) {
    double low = 0;
    for (int k = -3; k <= 3; ++k) {
      const int j = i + k * step;
      if (j >= 0 && j <= 2 * kReach) low += half_band[k + 3] / 32 * a[j];
    }
    out[i] = high ? a[i] - low : low;
  }
  return out;
}

std::vector<double> taps(const double* gains) {
  std::vector<double> x(2 * kReach + 1), k(2 * kReach + 1);
  x[kReach] = 1;
  const std::vector<double> a = times(x, 1, false), b = times(a, 2, false);
  const std::vector<double> bands[4] = {times(b, 4, false), times(b, 4, true), times(a, 2, true),
                                        times(x, 1, true)};
  for (int band = 0; band < 4; ++band)
    for (int i = 0; i <= 2 * kReach; ++i) k[i] += gains[band] * bands[band][i];
  return k;
}

int64_t mirrored(int64_t i, int64_t size) {
  if (size == 1) return 0;
  while (i < 0 || i >= size) i = i < 0 ? -i : 2 * (size - 1) - i;
  return i;
}

// One axis of a plane, or the transpose of that. `jump`: to the next along the axis.
void along(const double* k, const double* from, double* to, int64_t lines, int64_t line,
           int64_t size, int64_t jump, bool transpose) {
  for (int64_t l = 0; l < lines; ++l)
    for (int64_t i = 0; i < size; ++i)
      for (int d = -kReach; d <= kReach; ++d) {
        const int64_t a = l * line + i * jump, b = l * line + mirrored(i + d, size) * jump;
        if (transpose)
          to[b] += k[d + kReach] * from[a];
        else
          to[a] += k[d + kReach] * from[b];
      }
}

std::vector<double> filtered(const std::vector<double>& k, const std::vector<double>& plane,
                             int64_t height, int64_t width, bool transpose) {
  std::vector<double> half(plane.size()), out(plane.size());
  along(k.data(), plane.data(), half.data(), height, width, width, 1, transpose);
  along(k.data(), half.data(), out.data(), width, 1, height, width, transpose);
  return out;
}

void test(Random& random) {
  draw_isa(random);
  const DType dtype = random.dtype(), wide = accumulation(dtype);
  const bool transpose = random.chance(0.45);
  const int threads = random.chance(0.5) ? static_cast<int>(random.integer(2, 4)) : 1;
  int64_t budget = random.pick<int64_t>({300, 3000, 3000, 20000, 40000});
  const int64_t batch = random.integer(1, 3),
                channels = random.pick<int64_t>({1, 1, 2, 3, 3, 4, 5, 8, 17});
  budget = std::max<int64_t>(1, budget / batch / channels);
  int64_t height = random.size(budget), width = random.size(std::max<int64_t>(1, budget / height));
  if (random.chance(0.5)) std::swap(height, width);
  if (height > 20 && width == 1 && random.chance(0.5)) std::swap(height, width);
  say(" %s, %s, threads 1 and %d", kNames[static_cast<int>(dtype)],
      transpose ? "transpose" : "forward", threads);
  Images in =
      draw_images(random, dtype, batch, channels, height, width, random.chance(0.25), false);
  Images out = {batch, channels, height, width, in.layout, block(random, dtype, in.memory->n)};
  in.memory->draw(random);
  Ending e = draw_ending(random, dtype, batch, channels, false);
  e.epilogue.offsets = transpose ? random.chance(0.5) : e.epilogue.offsets;
  const Block gains = block(random, wide, 4 * batch);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t kind = random.integer(0, 3);  // 0: copied
    for (int i = 0; i < 4; ++i)
      gains->set(4 * b + i, kind == 0                         ? 1
                            : kind == 1 && random.chance(0.7) ? 1
                                                              : random.uniform(-0.5, 3));
  }
  gains->freeze();

  std::vector<char> single;
  for (int run = 0; run < 2; ++run) {
    const fi::Filter f{dtype,     run ? threads : 1, batch,     channels,
                       in.layout, gains->data,       e.epilogue};
    std::memset(out.memory->data, 0xff, out.memory->contents().size());
    good(transpose ? fi::cpu::transpose({f, in.memory->data, out.memory->data})
                   : fi::cpu::forward({f, in.memory->data, out.memory->data}));
    if (run) CHECK(single == out.memory->contents(), "the result depends on the threads");
    single = out.memory->contents();
  }
  CHECK(in.memory->untouched() && gains->untouched() && e.untouched(), "an input was changed");
  CHECK(out.memory->untouched_but(out.pixels()), "written where no pixel is");

  const double one = wide_unit(dtype);
  for (int64_t b = 0; b < batch; ++b) {
    double gain[4], largest = 0;
    for (int i = 0; i < 4; ++i)
      gain[i] = (*gains)[4 * b + i], largest = std::max(largest, std::abs(gain[i]));
    const bool copied = gain[0] == 1 && gain[1] == 1 && gain[2] == 1 && gain[3] == 1;
    const std::vector<double> k = taps(gain);
    for (int64_t c = 0; c < channels; ++c) {
      std::vector<double> plane(height * width);
      double most = 0;
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x) {
          const bool cut = transpose && e.cut(b, y, x, height, width);
          plane[y * width + x] = cut ? 0 : in(b, c, y, x);
          most = std::max(most, std::abs(plane[y * width + x]));
        }
      const std::vector<double> right =
          copied ? plane : filtered(k, plane, height, width, transpose);
      const double error = copied ? 0 : 64 * one * most * (1 + largest) * (1 + largest);
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x) {
          Pixel p{right[y * width + x], error};
          if (!transpose)
            p = finished(e, dtype, b, c, y, x, height, width, [&](int64_t) { return p; });
          const double got = out(b, c, y, x);
          const double bound =
              1.001 * unit(dtype) * std::abs(p.value) + p.error + (p.value == 0 ? 0 : 0x1p-25);
          if (std::abs(got - p.value) <= bound) continue;
          CHECK(false,
                "sample %ld, channel %ld, row %ld, column %ld: %.9g, expected %.9g within %.2g",
                long(b), long(c), long(y), long(x), got, p.value, bound);
          return;
        }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  fuzz::run(argc, argv, 3000, test);
  return failures == 0 ? 0 : 1;
}
