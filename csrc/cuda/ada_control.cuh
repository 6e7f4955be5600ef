// The kernel of the controller of p; ada_control.cu launches it. Deterministic.
#pragma once

#include "ada_control.h"
#include "common/reduce.cuh"

namespace gankernels::ada_control::cuda {

template <class T>
DEVICE double total_of(const T* scores, int64_t count, Metric metric) {
  double total = 0;
  for (int64_t i = thread_id(); i < count; i += kThreads)
    total += addend(metric, widen(load(scores + i)));
  return total;
}

DEVICE double total_of(const Scores& s, Metric metric) {
  switch (s.dtype) {
    case DType::kFloat64:
      return total_of(static_cast<const double*>(s.data), s.count, metric);
    case DType::kBFloat16:
      return total_of(static_cast<const BFloat16*>(s.data), s.count, metric);
    case DType::kFloat16:
      return total_of(static_cast<const Half*>(s.data), s.count, metric);
    default:
      return total_of(static_cast<const float*>(s.data), s.count, metric);
  }
}

// An update of the controller, by one block: reads the scores and 76 bytes, writes as many. In
// double, in which signs add up exactly. Fixed order, no atomics.
KERNEL_FOR(kThreads, 1) control(TABLE(Update) args) {
  double totals[kGroups]{};
  if (args.adds) {
    UNROLL(3)
    for (int g = 0; g < kGroups; ++g) {
      double total = 0;
      for (int64_t i = 0; i < args.count; ++i)
        if (args.scores[i].group == g) total += total_of(args.scores[i], args.control.metric);
      totals[g] = block_sum<kThreads>(total);
    }
  }
  if (thread_id() > 0) return;
  State state = load(args.state);
  if (args.adds) add(state, totals, args);
  if (args.p && is_due(state, args.control)) {
    Sums groups[kGroups];
    double images = state.images;
    UNROLL(3)
    for (int g = 0; g < kGroups; ++g)
      groups[g] =
          args.sums ? Sums{load(args.sums + 2 * g), load(args.sums + 2 * g + 1)} : state.groups[g];
    if (args.sums) images = load(args.sums + kSums - 1);
    const double p = step(state, groups, images, load(args.p), args.control);
    store(args.p, static_cast<float>(p));
  }
  store(args.state, state);
}

}  // namespace gankernels::ada_control::cuda
