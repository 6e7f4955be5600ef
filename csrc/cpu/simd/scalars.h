// Elements of half precision, one at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"

namespace gankernels::cpu {

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float bfloat16_to_float(uint16_t h) {
  return from_bits(static_cast<uint32_t>(h) << 16);
}

// To the nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = to_bits(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t rest = static_cast<uint32_t>(h & 0x7fff) << 13;
  if ((h & 0x7c00) == 0x7c00) return from_bits(sign | rest | 0x7f800000);
  // Multiplying by 2^112 moves the exponent and makes subnormal numbers normal.
  return from_bits(to_bits(from_bits(rest) * from_bits(0x77800000)) | sign);
}

inline uint16_t float_to_half(float x) {
  const uint32_t bits = to_bits(x);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;   // NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
  if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 leaves the rounded mantissa in the lowest bits.
    return static_cast<uint16_t>(sign | (to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

inline float widen(float x) {
  return x;
}
inline double widen(double x) {
  return x;
}
inline float widen(Half x) {
  return half_to_float(x.bits);
}
inline float widen(BFloat16 x) {
  return bfloat16_to_float(x.bits);
}

template <class T>
inline T narrow(Accumulation<T> x) {
  return x;
}
template <>
inline Half narrow<Half>(float x) {
  return {float_to_half(x)};
}
template <>
inline BFloat16 narrow<BFloat16>(float x) {
  return {float_to_bfloat16(x)};
}

}  // namespace gankernels::cpu
