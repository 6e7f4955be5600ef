// The instruction sets that the CPU kernels are compiled for, all in one binary, and the choice
// between them. A new one is a row here and, where it has instructions for what simd-inl.h lists, a
// block there.
//
//   ROW(name, vector bytes, features, detection)
//
// The name is that of the target's namespace, and what set_isa() takes. The features are those of
// GCC's target pragma; simd-inl.h asks for them by has(). The detection says whether this processor
// has what the rows above do not ask for: the first row is for every processor of its architecture,
// and the best runs that is detected with all above it. GCC only: other compilers and architectures
// build the portable row.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string_view>
#include <type_traits>
#include <utility>

#include "cpu/simd/isa.h"
#include "cpu/simd/scalars.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define GANKERNELS_HAS(feature) (__builtin_cpu_supports(feature) != 0)

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define GANKERNELS_TARGET_PRAGMAS 1
#define GANKERNELS_TARGETS(ROW, ...)                                                           \
  ROW(portable, 16, "sse2", true, __VA_ARGS__)                                                 \
  ROW(avx2, 32, "avx2,fma,f16c",                                                               \
      GANKERNELS_HAS("avx2") && GANKERNELS_HAS("fma") && GANKERNELS_HAS("f16c"), __VA_ARGS__)  \
  ROW(avx512, 64, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512",  \
      GANKERNELS_HAS("avx512f") && GANKERNELS_HAS("avx512bw") && GANKERNELS_HAS("avx512dq") && \
          GANKERNELS_HAS("avx512vl"),                                                          \
      __VA_ARGS__)
#elif defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__)
#define GANKERNELS_TARGET_PRAGMAS 1
#define GANKERNELS_TARGETS(ROW, ...)          \
  ROW(portable, 16, "+fp", true, __VA_ARGS__) \
  ROW(neon, 16, "+simd", true, __VA_ARGS__)
#elif defined(__x86_64__)
#define GANKERNELS_TARGETS(ROW, ...) ROW(portable, 16, "sse2", true, __VA_ARGS__)
#else
#define GANKERNELS_TARGETS(ROW, ...) ROW(portable, 16, "", true, __VA_ARGS__)
#endif

#define GANKERNELS_COUNT_ROW(...) +1
#define GANKERNELS_TARGET_COUNT (0 GANKERNELS_TARGETS(GANKERNELS_COUNT_ROW))

namespace gankernels::cpu {

// Whether a row's features name one.
constexpr bool names_feature(std::string_view features, std::string_view feature) {
  for (size_t begin = 0; begin < features.size();) {
    const size_t end = std::min(features.find(',', begin), features.size());
    if (features.substr(begin, end - begin) == feature) return true;
    begin = end + 1;
  }
  return false;
}

// Chooses among one object a target, in the order of the rows, that of the current instruction set.
template <class Kernels>
const Kernels& of_current_isa(std::initializer_list<const Kernels*> row) {
  return *row.begin()[current_isa()];
}

}  // namespace gankernels::cpu

// The table of a kernel family, GANKERNELS_DISPATCH(kKernels<T>), which each_target.inc has
// compiled once a target: a constant struct of function pointers.
#define GANKERNELS_ADDRESS(name, bytes, features, detection, ...) &name::__VA_ARGS__,
#define GANKERNELS_DISPATCH(...) \
  ::gankernels::cpu::of_current_isa({GANKERNELS_TARGETS(GANKERNELS_ADDRESS, __VA_ARGS__)})
