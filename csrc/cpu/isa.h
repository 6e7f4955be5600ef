// The instruction set that the CPU kernels choose at run time.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define GANKERNELS_TARGETS 1
#endif

namespace gankernels::cpu {

enum class Isa { kPortable, kAvx2, kAvx512 };

// The best that this processor has, or the one that was set.
Isa current_isa();

// "avx512", "avx2" or "portable".
const char* isa();

// For tests: false where this processor does not have it; "" is the best again.
bool set_isa(const char* name);

}  // namespace gankernels::cpu

// The pointer to, or the result of, what every instruction set has: CHOOSE(&, x), CHOOSE(, f(a)).
#if GANKERNELS_TARGETS
#define GANKERNELS_CHOOSE(op, ...)                                                              \
  (::gankernels::cpu::current_isa() == ::gankernels::cpu::Isa::kAvx512 ? op avx512::__VA_ARGS__ \
   : ::gankernels::cpu::current_isa() == ::gankernels::cpu::Isa::kAvx2 ? op avx2::__VA_ARGS__   \
                                                                       : op portable::__VA_ARGS__)
#else
#define GANKERNELS_CHOOSE(op, ...) (op portable::__VA_ARGS__)
#endif
