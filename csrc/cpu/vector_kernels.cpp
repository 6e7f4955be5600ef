#include "cpu/vector_kernels.h"

#include <cstring>

#include "cpu/isa.h"
#include "cpu/scalars.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gankernels::cpu {
namespace {

#define GANKERNELS_KERNELS "cpu/vector_kernels.inc"
#include "cpu/each_isa.inc"

}  // namespace

template <class T>
const VectorKernels<T>& vector_kernels() {
  return *GANKERNELS_CHOOSE(&, kTable<T>);
}

template const VectorKernels<float>& vector_kernels<float>();
template const VectorKernels<double>& vector_kernels<double>();

}  // namespace gankernels::cpu
