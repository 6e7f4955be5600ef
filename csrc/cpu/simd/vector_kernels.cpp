#include "cpu/simd/vector_kernels.h"

#include "cpu/simd/targets.h"

namespace gankernels::cpu {
namespace {

#define GANKERNELS_KERNELS "cpu/simd/vector_kernels.inc"
#include "cpu/simd/each_target.inc"

}  // namespace

template <class S>
const VectorKernels<S>& vector_kernels() {
  return GANKERNELS_DISPATCH(kKernels<S>);
}

template const VectorKernels<float>& vector_kernels<float>();
template const VectorKernels<double>& vector_kernels<double>();
template const VectorKernels<BFloat16>& vector_kernels<BFloat16>();
template const VectorKernels<Half>& vector_kernels<Half>();

}  // namespace gankernels::cpu
