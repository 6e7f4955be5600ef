// The kernel of the parameters of differentiable augmentation; diff_augment.cu launches it.
// Deterministic.
#pragma once

#include "common/platform.h"
#include "diff_augment.h"

namespace gankernels::diff_augment::cuda {

constexpr int kBlock = 32;

struct Put {
  template <class T>
  DEVICE void operator()(T* to, T value) const {
    store(to, value);
  }
};

// Everything of a sample, by a thread. Reads 56 bytes; writes 48 of the map, 24 of the box, up to 12
// numbers of color, 4 of mix, 1 of shade. In double: once a sample.
template <class Acc>
KERNEL(kBlock)
parameters(TABLE(Parameters) args) {
  const int64_t i = static_cast<int64_t>(block_id()) * kBlock + thread_id();
  if (i < args.batch) compute_sample<Acc>(args, load(args.uniforms + i), i, Put{});
}

}  // namespace gankernels::diff_augment::cuda
