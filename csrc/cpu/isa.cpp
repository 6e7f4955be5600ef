#include "cpu/isa.h"

#include <cstring>

namespace gankernels::cpu {
namespace {

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

Isa& chosen() {
  static Isa isa = best_isa();
  return isa;
}

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

}  // namespace

Isa current_isa() {
  return chosen();
}

const char* isa() {
  return kNames[static_cast<int>(chosen())];
}

bool set_isa(const char* name) {
  if (name[0] == 0) {
    chosen() = best_isa();
    return true;
  }
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i)
    if (std::strcmp(name, kNames[i]) == 0) {
      chosen() = static_cast<Isa>(i);
      return true;
    }
  return false;
}

}  // namespace gankernels::cpu
