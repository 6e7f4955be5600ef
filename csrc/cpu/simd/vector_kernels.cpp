#include "cpu/simd/vector_kernels.h"

#include <cstring>

#include "cpu/simd/scalars.h"
#include "cpu/simd/targets.h"

namespace gankernels::cpu {
namespace {

#define GANKERNELS_KERNELS "cpu/simd/vector_kernels.inc"
#include "cpu/simd/each_target.inc"

}  // namespace

template <class T>
const VectorKernels<T>& vector_kernels() {
  return GANKERNELS_DISPATCH(kKernels<T>);
}

template const VectorKernels<float>& vector_kernels<float>();
template const VectorKernels<double>& vector_kernels<double>();

}  // namespace gankernels::cpu
