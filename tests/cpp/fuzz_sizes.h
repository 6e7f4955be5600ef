// The constants of csrc/ by which CPU kernels cut, align or choose, for sizes to be drawn around. They are
// written down again here because most are private to a file; tests/kernels/test_fuzz_sizes.py compares them
// with the sources, and fails where one is missing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/simd/targets.h"

namespace fuzz {

enum class Of { kElements, kBytes };

struct Constant {
  const char *file, *name;
  int64_t value;
  Of unit;
};

constexpr Constant kConstants[] = {
    {"elements.h", "kStreamBytes", 32 << 20, Of::kBytes},
    {"strided_matrix.h", "kSlabRows", 16, Of::kElements},
    {"vector_kernels.inc", "kRows", 4, Of::kElements},
    {"vector_kernels.inc", "kFirstLevel", 24 << 10, Of::kBytes},
    {"vector_kernels.inc", "kBlock", 4096, Of::kElements},
    {"rows.h", "kPiece", 32 << 10, Of::kElements},
    {"rows.h", "kParallelBytes", 128 << 10, Of::kBytes},
    {"tiles.h", "kSlack", 16, Of::kElements},
    {"footprint.h", "kNodes", 1 << 18, Of::kElements},
    {"tiles.h", "kWidth", 64, Of::kElements},
    {"tiles.h", "kHeight", 64, Of::kElements},
    {"points.inc", "kRun", 16, Of::kElements},
    {"row_kernels.h", "kFill", 16, Of::kElements},
    {"image_filter.cpp", "kStripBytes", 512, Of::kBytes},
    {"image_filter.cpp", "kPlaneBytes", 1 << 20, Of::kBytes},
    {"image_filter.cpp", "kLeastRows", 32, Of::kElements},
    {"image_filter.cpp", "kParallelBytes", 128 << 10, Of::kBytes},
    {"noise.inc", "kBlocks", 16, Of::kElements},
    {"pool.h", "kMinimum", 64 << 10, Of::kBytes},
    {"pool.cpp", "kMapFrom", 1 << 20, Of::kBytes},
    {"pool.cpp", "kAlign", 64, Of::kBytes},
    {"pool.cpp", "kRound", 64 << 10, Of::kBytes},
    {"pool.cpp", "kHugePage", 2 << 20, Of::kBytes},
    {"pool.cpp", "kHugeFrom", 4 << 20, Of::kBytes},
    // Contracts, and numbers without a name.
    {"spectral_norm.h", "kPack", 16, Of::kElements},
    {"affine_resample.h", "kTaps", 12, Of::kElements},
    {"ada_control.h", "kScores", 48, Of::kElements},  // of a launch
    {"image_filter.h", "kReach", 21, Of::kElements},
    {"call.h", "", 8, Of::kElements},                // units worked on at once
    {"call.h", "", 32, Of::kElements},               // units of a chunk at the least
    {"call.h", "", 64 << 10, Of::kBytes},            // a chunk at the least
    {"call.h", "", 2 << 20, Of::kBytes},             // and at the most
    {"call.h", "", 128 << 10, Of::kBytes},           // below, one thread
    {"vector_kernels.inc", "", 8, Of::kElements},    // units worked on at once, conversions
    {"vector_kernels.inc", "", 4 * 64, Of::kBytes},  // a step of the sums of a row
    {"noise.inc", "", 4 * 16, Of::kElements},        // kCount
    {"image_filter.h", "", 2 * 21, Of::kElements},   // kReach to either side
};

// The bytes of the vectors of every target.
#define GANKERNELS_VECTOR_BYTES(name, bytes, ...) bytes,
constexpr int64_t kVectorBytes[] = {GANKERNELS_TARGETS(GANKERNELS_VECTOR_BYTES)};

// Ascending, in elements: bytes are those of float64, float32 and half precision.
inline const std::vector<int64_t>& sizes() {
  static const std::vector<int64_t> all = [] {
    std::vector<int64_t> list;
    for (const Constant& c : kConstants) {
      if (c.unit == Of::kElements) list.push_back(c.value);
      for (const int64_t item : {8, 4, 2})
        if (c.unit == Of::kBytes) list.push_back(c.value / item);
    }
    for (const int64_t bytes : kVectorBytes)
      for (const int64_t item : {8, 4, 2}) list.push_back(bytes / item);
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
    return list;
  }();
  return all;
}

}  // namespace fuzz
