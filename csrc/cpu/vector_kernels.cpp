#include "cpu/vector_kernels.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// GCC compiles one source for several targets by pragma; other compilers get the portable one.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define GANKERNELS_TARGETS 1
#endif

namespace gankernels::cpu {
namespace {

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

namespace portable {
constexpr int kVectorBytes = 16;
#include "cpu/vector_kernels.inc"
}  // namespace portable

#if GANKERNELS_TARGETS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
constexpr int kVectorBytes = 32;
#include "cpu/vector_kernels.inc"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512 {
constexpr int kVectorBytes = 64;
#include "cpu/vector_kernels.inc"
}  // namespace avx512
#pragma GCC pop_options
#endif

enum class Isa { kPortable, kAvx2, kAvx512 };

Isa best_isa() {
#if GANKERNELS_TARGETS
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("f16c");
  if (v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::kAvx512;
  if (v3) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

Isa& current_isa() {
  static Isa isa = best_isa();
  return isa;
}

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

}  // namespace

template <class T>
const VectorKernels<T>& vector_kernels() {
#if GANKERNELS_TARGETS
  if (current_isa() == Isa::kAvx512) return avx512::kTable<T>;
  if (current_isa() == Isa::kAvx2) return avx2::kTable<T>;
#endif
  return portable::kTable<T>;
}

template const VectorKernels<float>& vector_kernels<float>();
template const VectorKernels<double>& vector_kernels<double>();

const char* isa() {
  return kNames[static_cast<int>(current_isa())];
}

bool set_isa(const char* name) {
  if (name[0] == 0) {
    current_isa() = best_isa();
    return true;
  }
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i)
    if (std::strcmp(name, kNames[i]) == 0) {
      current_isa() = static_cast<Isa>(i);
      return true;
    }
  return false;
}

}  // namespace gankernels::cpu
