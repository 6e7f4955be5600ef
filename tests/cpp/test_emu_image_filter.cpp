// The kernels of image filtering on the emulator against those of the CPU, without torch: sizes, dtypes,
// layouts, both passes and orders of threads. Made for the sanitizers and for line coverage. Returns
// non-zero on failure.
#include "image_filter.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "emu_cases.h"

namespace {

namespace fl = gankernels::image_filter;
using namespace cases;

Numbers random_numbers(DType dtype, int64_t n, uint32_t seed) {
  Numbers x(dtype, n);
  std::mt19937 random(seed);
  x.draw(random);
  return x;
}

void check_near(const Numbers& found, const Numbers& expected, const char* what) {
  const double tolerance = found.dtype == DType::kFloat64   ? 1e-6  // the noise is made in float
                           : found.dtype == DType::kFloat32 ? 2e-5
                                                            : 2e-2;
  double largest = 1, off = 0;
  for (int64_t i = 0; i < found.n; ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    off = std::max(off, std::abs(found[i] - expected[i]));
  }
  CHECK(off <= tolerance * largest, "%s: off by %g of %g", what, off, largest);
}

void run(DType dtype, int64_t height, int64_t width, bool last, bool epilogue) {
  constexpr int64_t kBatch = 3, kChannels = 2;
  const int64_t pixels = height * width, size = kBatch * kChannels * pixels;
  const DType acc = gankernels::accumulation(dtype);
  const gankernels::Layout layout =
      last ? gankernels::Layout{height, width, pixels * kChannels, 1, width * kChannels, kChannels}
           : gankernels::Layout{height, width, pixels * kChannels, pixels, width, 1};
  Numbers gains = random_numbers(acc, 4 * kBatch, 1);
  // One sample is copied, and one nearly.
  for (int64_t k = 0; k < 4; ++k) gains.set(4 + k, 1);
  for (int64_t k = 0; k < 3; ++k) gains.set(8 + k, 1);
  const Numbers sigma = random_numbers(acc, kBatch, 2), image = random_numbers(dtype, size, 3);
  const std::vector<int64_t> seeds{7, -5, int64_t{1} << 40};
  const std::vector<double> box{0.4, 0.6, 0.5, 0, 0, 0, 0.9, 0.1, 0.7};
  gankernels::Epilogue e{};
  e.offsets = true;
  if (epilogue) e.sigma = sigma.data, e.seed = seeds.data(), e.box = box.data();
  const fl::Filter filter{dtype, 1, kBatch, kChannels, layout, gains.data, e};

  Numbers expected(dtype, size), transposed(dtype, size);
  const char* error = fl::cpu::forward({filter, image.data, expected.data});
  CHECK(!error, "cpu: %s", error);
  error = fl::cpu::transpose({filter, image.data, transposed.data});
  CHECK(!error, "cpu: %s", error);
  for (const Order order : kOrders) {
    emu::set_order(order, 1);
    Numbers found(dtype, size);
    const fl::Forward forward{filter, image.data, found.data};
    error = with_workspace(forward, fl::cuda::workspace(forward), fl::cuda::forward);
    CHECK(!error, "forward, order %d: %s", int(order), error);
    check_near(found, expected, "forward");
    Numbers back(dtype, size);
    const fl::Transpose transpose{filter, image.data, back.data};
    error = with_workspace(transpose, fl::cuda::workspace(transpose), fl::cuda::transpose);
    CHECK(!error, "transpose, order %d: %s", int(order), error);
    check_near(back, transposed, "transpose");
    if (height > 12) break;  // large ones in one order
  }
}

}  // namespace

int main() {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
    run(dtype, 5, 9, false, true);
    run(dtype, 1, 1, true, false);
    run(dtype, 40, 70, true, true);
    run(dtype, 37, 23, false, false);
  }
  const fl::Filter none{};
  CHECK(!fl::cuda::forward({none, nullptr, nullptr}, nullptr, nullptr), "an empty batch");
  CHECK(!fl::cuda::transpose({none, nullptr, nullptr}, nullptr, nullptr), "an empty batch");
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
