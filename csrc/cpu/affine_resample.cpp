// The CPU kernels of affine resampling. An output is cut into tiles by its shape alone. A tile's
// footprint in the doubled plane is up-sampled into the cache, row by row the span that the turned
// tile covers; lattice rows are interpolated, filtered along x into a ring of 12 rows, and along y
// out of it. The transpose goes the same way back, and adds to the image within one thread.
// Deterministic, whatever the number of threads. What happens to a tile is in affine_resample/:
// copy, plain, separable and general.inc.
//
// Bytes: forward reads the footprint of each tile, about twice the image, and writes the output;
// the transpose reads the output's size and writes the image's.

#include "affine_resample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

#include "common/parallel.h"
#include "cpu/affine_resample/axis.h"
#include "cpu/affine_resample/footprint.h"
#include "cpu/affine_resample/tiles.h"
#include "cpu/memory/scratch.h"
#include "cpu/simd/scalars.h"
#include "cpu/simd/targets.h"

namespace gankernels::affine_resample::cpu {
namespace {

using gankernels::cpu::narrow;
using gankernels::cpu::Slot;
using gankernels::cpu::thread_scratch;
using gankernels::cpu::widen;

// The passes over images of one stored type.
struct ResampleKernels {
  void (*forward)(const Forward&);
  void (*transpose)(const Transpose&);
};

// Vectors wider than the instruction set's are passed to functions that are inlined.
#pragma GCC diagnostic ignored "-Wpsabi"
#define GANKERNELS_KERNELS "cpu/affine_resample/kernels.inc"
#include "cpu/simd/each_target.inc"

// Calls f with a value of the type that is stored; memory is the one thing that can be missing.
template <class F>
const char* run_stored(DType dtype, F&& f) {
  try {
    visit_dtype(dtype, f);
    return nullptr;
  } catch (const std::bad_alloc&) {
    return "out of memory";
  }
}

}  // namespace

const char* forward(const Forward& args) {
  return run_stored(args.resample.dtype,
                    [&]<class S>(S) { GANKERNELS_DISPATCH(kKernels<S>).forward(args); });
}

const char* transpose(const Transpose& args) {
  return run_stored(args.resample.dtype,
                    [&]<class S>(S) { GANKERNELS_DISPATCH(kKernels<S>).transpose(args); });
}

}  // namespace gankernels::affine_resample::cpu
