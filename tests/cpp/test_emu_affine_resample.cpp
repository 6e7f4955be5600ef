// The kernels of affine resampling on the emulator against those of the CPU, without torch: maps of
// every kind, filters, dtypes, epilogues and orders of threads. Made for the sanitizers and for line
// coverage. Returns non-zero on failure.
#include "affine_resample.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "emu_cases.h"

namespace {

namespace ar = gankernels::affine_resample;
using namespace cases;

struct Map {
  const char* name;
  double m[6];
};
constexpr double kTurned[] = {0.9, -0.55, 2.2, 0.55, 0.85, -1.1};
constexpr Map kMaps[] = {
    {"identity", {1, 0, 0, 0, 1, 0}},
    {"flip", {-1, 0, 0, 0, 1, 0}},
    {"quarter turn", {0, -1, 0, 1, 0, 0}},
    {"far shift", {1, 0, 40, 0, 1, -31}},
    {"stretched", {1.1, 0, 0.3, 0, 0.8, 1.7}},
    {"turned and stretched", {0, -1.3, 0.4, 0.45, 0, 3.2}},
    {"squeezed", {-2.9, 0, 0.7, 0, 1.2, 0.6}},
    {"squeezed more", {4.5, 0, 0.2, 0, 0.3, 1.1}},
    {"grown", {-0.25, 0.2, 12.2, -0.2, -0.25, -15.1}},
    {"shrunk", {2.7, -0.9, 0.1, 0.9, 2.7, 0.2}},
    {"singular", {1, 1, 0, 1, 1, 0.5}},
    {"far away", {0.9, -0.55, 4e9, 0.55, 0.85, -3e10}},
    {"far apart", {3e9, -2e9, 1e9, 1.5e9, 1e10, 0.2}},
    {"moved far", {1, 0, 4.8e10, 0, 1, -4.8e10}},
    {"not finite", {NAN, 0, 0, 0, 1, 0}},
};

struct Case {
  DType dtype;
  ar::Filter filter;
  ar::Padding padding;
  int64_t channels, height, width, out_height, out_width;
  bool lossless, margins, epilogue, last;
  bool mapless = false, uncut = false;  // the identity for all; no box in the epilogue
};

Numbers random_numbers(DType dtype, int64_t n, uint32_t seed) {
  Numbers x(dtype, n);
  std::mt19937 random(seed);
  x.draw(random);
  return x;
}

int64_t pixels(int64_t height, int64_t width) {
  return height * width;
}

gankernels::Layout layout(const Case& c, int64_t height, int64_t width) {
  const int64_t n = pixels(height, width);
  if (c.last) return {height, width, n * c.channels, 1, width * c.channels, c.channels};
  return {height, width, n * c.channels, n, width, 1};
}

// The emulated pass and that of the CPU on the same numbers.
template <class Args>
void compare(const Case& c, const char* name, const Args& args, Numbers& found, Numbers& expected,
             void* Args::* result, const char* (*cpu)(const Args&),
             const char* (*gpu)(const Args&, void*, void*)) {
  Args call = args;
  call.*result = expected.data;
  const char* error = cpu(call);
  CHECK(!error, "cpu: %s", error);
  call.*result = found.data;
  for (const Order order : kOrders) {
    emu::set_order(order, 1);
    error = with_workspace(call, ar::cuda::workspace(call), gpu);
    CHECK(!error, "%s, order %d: %s", name, int(order), error);
    double largest = 1, off = 0;
    for (int64_t i = 0; i < found.n; ++i) {
      const double a = found[i], b = expected[i];
      CHECK(std::isnan(a) == std::isnan(b), "%s: %g at %ld, not %g", name, a, long(i), b);
      if (std::isnan(b)) continue;
      largest = std::max(largest, std::abs(b)), off = std::max(off, std::abs(a - b));
    }
    const double tolerance = c.dtype == DType::kFloat64   ? 1e-6
                             : c.dtype == DType::kFloat32 ? 2e-5
                                                          : 2e-2;
    CHECK(off <= tolerance * largest, "%s: off by %g of %g", name, off, largest);
    if (c.dtype != DType::kFloat32 || c.height != 7) break;  // the rest in one order
  }
}

void run(const Case& c, const Map& map, uint32_t seed) {
  const int64_t batch = 2, in = batch * c.channels * pixels(c.height, c.width);
  const int64_t out = batch * c.channels * pixels(c.out_height, c.out_width);
  const DType acc = gankernels::accumulation(c.dtype);
  std::vector<double> maps(map.m, map.m + 6);
  maps.insert(maps.end(), kTurned, kTurned + 6);
  const std::vector<int64_t> margins{2, 3, 1, 4}, seeds{7, -5};
  const std::vector<double> box{0.4, 0.6, 0.5, 0, 0, 0};
  const int colors = !c.epilogue ? 0 : c.channels >= 3 ? 3 : 1;
  const Numbers color = random_numbers(acc, batch * colors * (colors + 1), seed + 1);
  const Numbers sigma = random_numbers(acc, batch, seed + 2);
  gankernels::Epilogue e{};
  e.offsets = true;
  if (c.epilogue) {
    e.color_count = colors;
    for (int k = 0; k < colors; ++k) e.color[k] = k + (c.channels > 3);
    e.matrix = color.data, e.sigma = sigma.data, e.seed = seeds.data();
    e.box = c.uncut ? nullptr : box.data();
  }
  const ar::Resample r{c.dtype,
                       c.filter,
                       c.padding,
                       c.lossless,
                       1,
                       batch,
                       c.channels,
                       layout(c, c.height, c.width),
                       layout(c, c.out_height, c.out_width),
                       c.mapless ? nullptr : maps.data(),
                       c.margins ? margins.data() : nullptr,
                       e};
  const Numbers image = random_numbers(c.dtype, in, seed),
                grad = random_numbers(c.dtype, out, seed);
  Numbers found(c.dtype, out), expected(c.dtype, out);
  compare<ar::Forward>(c, map.name, {r, image.data, nullptr}, found, expected, &ar::Forward::out,
                       ar::cpu::forward, ar::cuda::forward);
  Numbers back(c.dtype, in), wanted(c.dtype, in);
  compare<ar::Transpose>(c, map.name, {r, grad.data, nullptr}, back, wanted, &ar::Transpose::image,
                         ar::cpu::transpose, ar::cuda::transpose);
}

void test_dtypes() {
  for (const DType dtype : kDTypes) {
    for (const Map& map : kMaps) {
      run({dtype, ar::Filter::kSym6, {}, 3, 7, 9, 7, 9, true, false, true, false}, map, 1);
      run({dtype, ar::Filter::kBilinear, {}, 1, 6, 5, 4, 9, false, false, false, false}, map, 2);
      run({dtype, ar::Filter::kSym6, {}, 1, 6, 5, 6, 5, false, true, false, true}, map, 3);
    }
    for (const ar::Filter filter : {ar::Filter::kSym6, ar::Filter::kBilinear})
      for (const bool uncut : {false, true})
        run({dtype, filter, {}, 3, 18, 21, 18, 21, true, false, true, false, true, uncut}, kMaps[0],
            11);
    // Copied, of an image that is seen more often than there are copies; and tiles with no border.
    run({dtype, ar::Filter::kSym6, {}, 2, 1, 1, 1, 1, true, false, false, false}, kMaps[0], 9);
    run({dtype, ar::Filter::kBilinear, ar::Padding::kBorder, 1, 33, 34, 33, 34, false, false, false,
         false},
        kMaps[4], 10);
  }
}

void test_filters() {
  for (const ar::Filter filter : {ar::Filter::kNearest, ar::Filter::kBilinear})
    for (const ar::Padding padding :
         {ar::Padding::kReflection, ar::Padding::kZeros, ar::Padding::kBorder})
      for (const Map& map : kMaps)
        run({DType::kFloat32, filter, padding, 5, 9, 6, 9, 6, true, false, true, true}, map, 4);
}

void test_sizes() {
  for (const Map& map : kMaps) {
    run({DType::kFloat32, ar::Filter::kSym6, {}, 2, 1, 1, 1, 1, true, false, true, false}, map, 5);
    run({DType::kFloat32, ar::Filter::kSym6, {}, 5, 1, 8, 1, 8, false, false, true, true}, map, 6);
    run({DType::kFloat32, ar::Filter::kSym6, {}, 3, 11, 8, 5, 13, true, false, false, false}, map,
        7);
    if (&map != &kMaps[4] && &map != &kMaps[5] && &map != &kMaps[6]) continue;
    run({DType::kFloat32, ar::Filter::kSym6, {}, 1, 20, 37, 20, 37, true, false, false, false}, map,
        8);
  }
}

// --- cotangents that are not finite

enum class Way { kTile, kSweep, kPlainSweep };  // how the transpose finds its sums
constexpr const char* kWays[] = {"tile", "sweep", "plain sweep"};

// A cotangent that is not finite, or so large that sums with it may not be: what it reaches is NaN, or what
// it must be, and nothing else is. Sweeps leave what it does not reach as it is, and so does every way in
// another channel.
void test_odd_cotangent(DType dtype, Way way, bool limited, double value) {
  constexpr int64_t kHeight = 21, kWidth = 37, kPixels = kHeight * kWidth, kAt = 9 * kWidth + 29;
  const std::string what = std::string(kNames[static_cast<int>(dtype)]) + ", " +
                           kWays[static_cast<int>(way)] + (limited ? ", margins, " : ", ") +
                           std::to_string(value);
  const double singular[6] = {1, 1, 0, 1, 1, 0.5};
  const int64_t margins[] = {2, 3, 1, 4};
  const bool plain = way == Way::kPlainSweep;
  const gankernels::Layout layout{kHeight, kWidth, 2 * kPixels, kPixels, kWidth, 1};
  ar::Resample r{dtype,
                 plain ? ar::Filter::kBilinear : ar::Filter::kSym6,
                 plain ? ar::Padding::kBorder : ar::Padding::kReflection,
                 false,
                 1,
                 1,
                 2,
                 layout,
                 layout,
                 way == Way::kSweep ? singular : kTurned,
                 limited ? margins : nullptr,
                 {}};
  Numbers grad = random_numbers(dtype, 2 * kPixels, 9), clean(dtype, grad.n), found(dtype, grad.n);
  emu::set_order(Order::kRandom, 1);
  for (const auto& [x, to] : {std::pair{0.0, &clean}, {value, &found}}) {
    grad.set(kAt, x);
    const ar::Transpose args{r, grad.data, to->data};
    good(with_workspace(args, ar::cuda::workspace(args), ar::cuda::transpose));
  }

  // What 1 there would give, by the CPU.
  Numbers one(DType::kFloat64, grad.n), reached(DType::kFloat64, grad.n);
  for (int64_t i = 0; i < one.n; ++i) one.set(i, i == kAt);
  r.dtype = DType::kFloat64;
  good(ar::cpu::transpose({r, one.data, reached.data}));

  int not_a_number = 0;
  for (int64_t i = 0; i < found.n; ++i) {
    const double x = found[i], weight = reached[i];
    not_a_number += std::isnan(x);
    if (weight == 0)
      CHECK(x == clean[i], "%s: %g at %ld, which is not reached, not %g", what.c_str(), x, long(i),
            clean[i]);
    else if (std::isfinite(value))
      CHECK(std::isnan(x) || std::abs(x / value - weight) <= 2 * tolerance(dtype),
            "%s: %g at %ld, not NaN or %g", what.c_str(), x, long(i), value * weight);
    else if (std::abs(weight) > 1e-6)
      CHECK(std::isnan(x), "%s: %g at %ld, not NaN", what.c_str(), x, long(i));
  }
  CHECK(not_a_number > 0, "%s: no NaN", what.c_str());
}

void test_odd_cotangents() {
  for (const DType dtype : kDTypes) {
    if (kTsan && dtype != DType::kFloat32) continue;
    for (const Way way : {Way::kTile, Way::kSweep, Way::kPlainSweep}) {
      test_odd_cotangent(dtype, way, false, NAN);
      test_odd_cotangent(dtype, way, true, way == Way::kTile ? -INFINITY : INFINITY);
      if (dtype != DType::kFloat16)  // which has none so large
        test_odd_cotangent(dtype, way, false, dtype == DType::kFloat64 ? 0x1p1020 : -0x1p126);
    }
  }
}

void test_refusals() {
  const ar::Resample none{};
  CHECK(!ar::cuda::forward({none, nullptr, nullptr}, nullptr, nullptr), "an empty batch");
  CHECK(!ar::cuda::transpose({none, nullptr, nullptr}, nullptr, nullptr), "an empty batch");
}

}  // namespace

int main() {
  test_dtypes();
  test_filters();
  test_sizes();
  test_odd_cotangents();
  test_refusals();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
