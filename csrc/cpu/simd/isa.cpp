#include "cpu/simd/isa.h"

#include <cstring>

#include "cpu/simd/targets.h"

namespace gankernels::cpu {
namespace {

#define GANKERNELS_NAME(name, ...) #name,
constexpr const char* kNames[] = {GANKERNELS_TARGETS(GANKERNELS_NAME)};

// The last row that this processor has.
int best_isa() {
#define GANKERNELS_DETECTION(name, bytes, features, detection, ...) detection,
  const bool detected[] = {GANKERNELS_TARGETS(GANKERNELS_DETECTION)};
  int row = 0;
  while (row + 1 < GANKERNELS_TARGET_COUNT && detected[row + 1]) ++row;
  return row;
}

int& chosen() {
  static int row = best_isa();
  return row;
}

}  // namespace

int current_isa() {
  return chosen();
}

const char* isa() {
  return kNames[chosen()];
}

std::vector<const char*> isas() {
  return {kNames, kNames + best_isa() + 1};
}

bool set_isa(const char* name) {
  if (name[0] == 0) {
    chosen() = best_isa();
    return true;
  }
  for (int row = 0; row <= best_isa(); ++row)
    if (std::strcmp(name, kNames[row]) == 0) {
      chosen() = row;
      return true;
    }
  return false;
}

}  // namespace gankernels::cpu
