// Conversions of half precision on every instruction set: each of the 65536 numbers of both types,
// and the numbers between them, against the portable kernels, bit by bit; only NaN may be another
// NaN. Returns non-zero on failure.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cases.h"

namespace {

using namespace cases;

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

std::vector<float> widened(DType dtype, const std::vector<uint16_t>& x) {
  std::vector<float> out(x.size());
  gankernels::cpu::widen(dtype, x.data(), static_cast<int64_t>(x.size()), out.data());
  return out;
}

std::vector<uint16_t> narrowed(DType dtype, const std::vector<float>& x) {
  std::vector<uint16_t> out(x.size());
  gankernels::cpu::narrow(x.data(), static_cast<int64_t>(x.size()), dtype, out.data());
  return out;
}

bool is_nan(DType dtype, uint16_t x) {
  return (x & 0x7fff) > (dtype == DType::kFloat16 ? 0x7c00 : 0x7f80);
}

void test(DType dtype) {
  std::vector<uint16_t> all;
  for (int i = 0; i < 65536; ++i) all.push_back(static_cast<uint16_t>(i));
  all.push_back(0x3c01);  // ends within vectors
  gankernels::cpu::set_isa("portable");
  const std::vector<float> wide = widened(dtype, all);
  // Every number, halfway to the next one, and a digit to either side of both.
  std::vector<float> between;
  for (size_t i = 0; i + 1 < 65536; ++i)
    for (const float x : {wide[i], (wide[i] + wide[i + 1]) / 2})
      if (std::isfinite(x))
        for (const float y : {std::nextafter(x, -INFINITY), x, std::nextafter(x, INFINITY)})
          between.push_back(y);
  for (const float x : {INFINITY, -INFINITY, NAN, 65520.f, 1e30f, -1e-30f}) between.push_back(x);
  const std::vector<uint16_t> narrow = narrowed(dtype, between);
  for (const char* isa : gankernels::cpu::isas()) {
    CHECK(gankernels::cpu::set_isa(isa), "%s", isa);
    const std::vector<float> wide_here = widened(dtype, all);
    for (size_t i = 0; i < all.size(); ++i)
      CHECK(is_nan(dtype, all[i]) ? std::isnan(wide_here[i])
                                  : bits_of(wide_here[i]) == bits_of(wide[i]),
            "%s: %s of bits %04x is %g, expected %g", isa, kNames[static_cast<int>(dtype)],
            unsigned{all[i]}, wide_here[i], wide[i]);
    const std::vector<uint16_t> narrow_here = narrowed(dtype, between);
    for (size_t i = 0; i < between.size(); ++i)
      CHECK(std::isnan(between[i]) ? is_nan(dtype, narrow_here[i]) : narrow_here[i] == narrow[i],
            "%s: %.9g has the bits %04x as %s, expected %04x", isa, between[i],
            unsigned{narrow_here[i]}, kNames[static_cast<int>(dtype)], unsigned{narrow[i]});
  }
  gankernels::cpu::set_isa("");
}

}  // namespace

int main() {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) test(dtype);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
