// What the tests of all ops share: numbers of any dtype, and how near they must be. Inputs and outputs
// are blocks of their exact size, so that a sanitizer sees a step beyond them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "cpu/elements.h"
#include "cpu/simd/isa.h"

namespace cases {

using gankernels::accumulation;
using gankernels::DType;
using gankernels::item_size;

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};
constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16"};

#if defined(__SANITIZE_THREAD__)
constexpr bool kTsan = true;  // 50 microseconds for every thread of a CUDA kernel
#else
constexpr bool kTsan = false;
#endif

inline int failures = 0;

#define CHECK(condition, ...)                                                                  \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      if (++failures <= 20) {                                                                  \
        std::printf("%s:%d: %s: ", std::strrchr("/" __FILE__, '/') + 1, __LINE__, #condition); \
        std::printf(__VA_ARGS__);                                                              \
        std::printf("\n");                                                                     \
      }                                                                                        \
    }                                                                                          \
  } while (0)

// --- numbers of any dtype ------------------------------------------------------------------------

// A block of exactly n elements, aligned to 16 bytes, which no CUDA kernel may assume: `shift` elements
// into it the numbers begin, as in a view of a tensor.
struct Numbers {
  Numbers(DType dtype, int64_t n, int64_t shift = 0)
      : dtype(dtype), n(n), bytes(static_cast<char*>(std::malloc((n + shift) * item_size(dtype)))) {
    data = bytes.get() + shift * item_size(dtype);
    std::memset(data, 0xff, n * item_size(dtype));  // NaN, of every dtype
  }

  double operator[](int64_t i) const {
    double x;
    if (dtype == DType::kFloat64) {
      std::memcpy(&x, data + 8 * i, 8);
      return x;
    }
    float narrow;
    if (dtype == DType::kFloat32)
      std::memcpy(&narrow, data + 4 * i, 4);
    else
      gankernels::cpu::widen(dtype, data + 2 * i, 1, &narrow);
    return narrow;
  }

  void set(int64_t i, double x) {
    const auto narrow = static_cast<float>(x);
    if (dtype == DType::kFloat64)
      std::memcpy(data + 8 * i, &x, 8);
    else if (dtype == DType::kFloat32)
      std::memcpy(data + 4 * i, &narrow, 4);
    else
      gankernels::cpu::narrow(&narrow, 1, dtype, data + 2 * i);
  }

  void draw(std::mt19937& random) {
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < n; ++i) set(i, normal(random));
  }

  bool same(const Numbers& other) const {
    return std::memcmp(data, other.data, n * item_size(dtype)) == 0;
  }

  struct Free {
    void operator()(char* block) const { std::free(block); }
  };
  DType dtype;
  int64_t n;
  std::unique_ptr<char, Free> bytes;
  char* data;
};

inline double tolerance(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 1e-12;
    case DType::kFloat32:
      return 1e-5;
    case DType::kBFloat16:
      return 5e-3;
    default:
      return 6e-4;
  }
}

using Vector = std::vector<double>;

inline double norm(const Vector& x) {
  double sum = 0;
  for (double e : x) sum += e * e;
  return std::sqrt(sum);
}

inline Vector values(const Numbers& x) {
  Vector out(x.n);
  for (int64_t i = 0; i < x.n; ++i) out[i] = x[i];
  return out;
}

inline double inner(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Results of half precision are rounded to the nearest, and so err to either side alike: the mean of their
// errors is near zero, where that of truncation is 0.7 of the largest. Of what is not small, where sums
// may have cancelled, and where there are enough.
inline void unbiased(const Numbers& got, const Vector& expected, double largest, double noise,
                     const std::string& what) {
  const bool bfloat16 = got.dtype == DType::kBFloat16;
  if (!bfloat16 && got.dtype != DType::kFloat16) return;
  const double unit = bfloat16 ? 0x1p-8 : 0x1p-11, least = largest / 16;
  if (noise > unit * least / 16 || least < 0x1p-14) return;  // subnormal in float16
  double sum = 0;
  int count = 0;
  for (size_t i = 0; i < expected.size(); ++i)
    if (std::abs(expected[i]) >= least) sum += got[i] / expected[i] - 1, ++count;
  if (count < 256) return;
  const double bound = unit * (0.25 + 3 / std::sqrt(count));
  CHECK(std::abs(sum / count) <= bound, "%s: errs to one side, by %g of %g, at most %g",
        what.c_str(), sum / count, unit, bound);
}

// `got` may be filled up, with zeros. `terms`: the size of what was added up, where it may cancel.
inline void near(const Numbers& got, const Vector& expected, const std::string& what,
                 double terms = 0) {
  double largest = 0, worst = 0;
  for (double x : expected) largest = std::max(largest, std::abs(x));
  const auto size = static_cast<int64_t>(expected.size());
  for (int64_t i = 0; i < size; ++i) {
    const double difference = std::abs(got[i] - expected[i]);
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
  }
  for (int64_t i = size; i < got.n; ++i)
    CHECK(got[i] == 0, "%s: %g at %ld, where it is filled up", what.c_str(), got[i], long(i));
  const double bound = tolerance(got.dtype) * largest + tolerance(accumulation(got.dtype)) * terms;
  CHECK(worst <= bound, "%s: off by %g, at most %g", what.c_str(), worst, bound);
  unbiased(got, expected, largest, tolerance(accumulation(got.dtype)) * terms, what);
}

inline void good(const char* error) {
  CHECK(error == nullptr, "%s", error);
}

}  // namespace cases
