// The kernel of augmentation parameters; ada_parameters.cu launches it. Deterministic.
#pragma once

#include "ada_parameters.h"
#include "common/reduce.cuh"

namespace gankernels::ada_parameters::cuda {

// A batch is small: blocks of a warp spread it over the multiprocessors, and leave a thread as many
// registers as it likes.
constexpr int kBlock = 32;

DEVICE Strengths strengths(const Parameters& args) {
  double p[kGroups];
  for (int k = 0; k < kGroups; ++k) {
    const int i = args.p_count == 1 ? 0 : k;
    p[k] = args.p_dtype == DType::kFloat64 ? load(static_cast<const double*>(args.p) + i)
                                           : load(static_cast<const float*>(args.p) + i);
  }
  return Strengths::of(p);
}

// Everything of a sample, by a thread. Reads 336 bytes of draws, or 184 of values; writes 192 of values
// and seed, if they are drawn, 48 of the map, 8 to 12 numbers of color, 4 of gains, 1 of sigma, 24
// bytes of the box. In double, as an error in a map is one of every pixel.
template <class Acc>
DEVICE Values compute_sample(const Parameters& args, int64_t i) {
  Values v;
  if (args.uniforms) {
    const Uniforms u = load(args.uniforms + i);
    const Normals n = load(args.normals + i);
    v = sample(u, n, strengths(args), args.multipliers, args.constants);
    store(args.values + i, v);
    store(args.seed + i, seed_of(u));
  } else {
    v = load(args.input_values + i);
  }
  if (args.maps) store(reinterpret_cast<Map*>(args.maps) + i, map_of(v, args.height, args.width));
  if (args.color) {
    const Color c = color_of(v);
    const auto channels = static_cast<int>(args.color_channels);
    Acc* out = static_cast<Acc*>(args.color) + i * channels * (channels + 1);
    for (int row = 0; row < channels; ++row)
      for (int column = 0; column <= channels; ++column)
        store(out++, static_cast<Acc>(c.at(channels, row, column)));
  }
  if (args.gains) {
    const Gains g = gains_of(v);
    for (int k = 0; k < 4; ++k)
      store(static_cast<Acc*>(args.gains) + 4 * i + k, static_cast<Acc>(g.at[k]));
  }
  if (args.sigma) store(static_cast<Acc*>(args.sigma) + i, static_cast<Acc>(v.noise));
  if (args.box) {
    store(args.box + 3 * i, v.center[0]);
    store(args.box + 3 * i + 1, v.center[1]);
    store(args.box + 3 * i + 2, v.cutout);
  }
  return v;
}

// A thread a sample.
template <class Acc>
KERNEL(kBlock)
compute(TABLE(Parameters) args) {
  const int64_t i = static_cast<int64_t>(block_id()) * kBlock + thread_id();
  if (i < args.batch) compute_sample<Acc>(args, i);
}

// The same and the margins of the batch, 32 bytes: one block for all samples, so that their maximum
// needs neither a second launch nor memory that is zero before. A thread has a sample in kThreads.
template <class Acc>
KERNEL_FOR(kThreads, 1)
compute_with_margins(TABLE(Parameters) args) {
  Margins margins{};
  for (int64_t i = thread_id(); i < args.batch; i += kThreads) {
    const Values v = compute_sample<Acc>(args, i);
    margins.widen(margins_of(map_of(v, args.height, args.width), args.height, args.width));
  }
  SHARED(Margins, of_warps, kWarps);
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    Margins other{};
    for (int k = 0; k < 4; ++k) other.at[k] = shuffle_xor(margins.at[k], lanes);
    margins.widen(other);
  }
  if (thread_id() % kWarp == 0) of_warps[thread_id() / kWarp] = margins;
  sync_threads();
  if (thread_id() > 0) return;
  for (int warp = 1; warp < kWarps; ++warp) margins.widen(of_warps[warp]);
  for (int k = 0; k < 4; ++k) store(args.margins + k, margins.at[k]);
}

}  // namespace gankernels::ada_parameters::cuda
