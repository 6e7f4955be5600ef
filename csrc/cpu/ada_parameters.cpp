// The CPU kernel of augmentation parameters: a loop over the samples, in double. A sample's 42 random
// numbers take less time than waking a thread.

#include "ada_parameters.h"

#include <algorithm>

namespace gankernels::ada_parameters::cpu {
namespace {

Strengths strengths(const Parameters& args) {
  double p[kGroups];
  for (int64_t k = 0; k < kGroups; ++k) {
    const int64_t i = args.p_count == 1 ? 0 : k;
    p[k] = args.p_dtype == DType::kFloat64 ? static_cast<const double*>(args.p)[i]
                                           : static_cast<const float*>(args.p)[i];
  }
  return Strengths::of(p);
}

template <class Acc>
void compute(const Parameters& args) {
  const Strengths p = args.uniforms ? strengths(args) : Strengths{};
  const int64_t channels = args.color_channels;
  Margins margins{};
  for (int64_t i = 0; i < args.batch; ++i) {
    Values v;
    if (args.uniforms) {
      v = sample(args.uniforms[i], args.normals[i], p, args.multipliers, args.constants);
      args.values[i] = v;
      args.seed[i] = seed_of(args.uniforms[i]);
    } else {
      v = args.input_values[i];
    }
    if (args.maps) {
      const Map map = map_of(v, args.height, args.width);
      reinterpret_cast<Map*>(args.maps)[i] = map;
      if (args.margins) margins.widen(margins_of(map, args.height, args.width));
    }
    if (args.color) {
      const Color c = color_of(v);
      auto* out = static_cast<Acc*>(args.color) + i * channels * (channels + 1);
      for (int row = 0; row < channels; ++row)
        for (int column = 0; column <= channels; ++column)
          *out++ = static_cast<Acc>(c.at(channels, row, column));
    }
    if (args.gains) {
      const Gains g = gains_of(v);
      for (int k = 0; k < 4; ++k)
        static_cast<Acc*>(args.gains)[4 * i + k] = static_cast<Acc>(g.at[k]);
    }
    if (args.sigma) static_cast<Acc*>(args.sigma)[i] = static_cast<Acc>(v.noise);
    if (args.box) {
      double* out = args.box + 3 * i;
      out[0] = v.center[0], out[1] = v.center[1], out[2] = v.cutout;
    }
  }
  if (args.margins) std::copy_n(margins.at, 4, args.margins);
}

}  // namespace

const char* compute(const Parameters& args) {
  visit_accumulation(args.acc, [&](auto zero) { compute<decltype(zero)>(args); });
  return nullptr;
}

}  // namespace gankernels::ada_parameters::cpu
