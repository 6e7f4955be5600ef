// The instruction set that the CPU kernels choose at run time: a row of targets.h.
#pragma once

#include <vector>

namespace gankernels::cpu {

// The number of its row: the best that this processor has, or the one that was set.
int current_isa();

// Its name: "avx512", "avx2", "neon" or "portable".
const char* isa();

// The names of all that this processor has, the best last.
std::vector<const char*> isas();

// For tests: false where this processor does not have it; "" is the best again.
bool set_isa(const char* name);

}  // namespace gankernels::cpu
