// The CPU kernel of the parameters of differentiable augmentation: a loop over the samples, in double.
#include "diff_augment.h"

namespace gankernels::diff_augment::cpu {

const char* compute(const Parameters& args) {
  visit_accumulation(args.acc, [&](auto zero) {
    for (int64_t i = 0; i < args.batch; ++i)
      compute_sample<decltype(zero)>(args, args.uniforms[i], i,
                                     [](auto* to, auto value) { *to = value; });
  });
  return nullptr;
}

}  // namespace gankernels::diff_augment::cpu
