// The controller of the strength p of adaptive discriminator augmentation: the contract between
// bindings and kernels, and the arithmetic of a step, which the CPU and CUDA share. Karras et al. 2020
// (arXiv 2006.06676), section 3.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gankernels::ada_control {

enum class Metric : int8_t { kRt, kRv, kAccuracy };

constexpr int kGroups = 3;  // real, fake, validation

// Over the updates since the last step; the numbers of the state_dict.
struct Sums {
  double total;  // of signs, or of values for kRv
  double count;
};
struct State {
  Sums groups[kGroups];
  double images;
  double calls;  // all updates, from the beginning
  double r;      // the metric of the last step
};
constexpr int kState = sizeof(State) / sizeof(double);
static_assert(kState == 9);
constexpr int kSums = kState - 2;  // groups and images: what processes add up

// A tensor of scores, contiguous.
struct Scores {
  const void* data;
  int64_t count;
  DType dtype;
  int8_t group;
};

constexpr int kScores = 48;  // of one call: three groups of sixteen scales

struct Control {
  Metric metric;
  double target;
  int64_t interval;
  double images_to_one;  // until p goes from 0 to 1
  double p_max;
};

struct Update {
  State* state;
  // Adding up, where `adds`: the scores of a call and the number of its images.
  bool adds;
  int64_t count, images;
  Scores scores[kScores];
  // A step of p in every interval-th call, where p is not null.
  float* p;
  const double* sums;  // kSums: those of all processes; null: those of the state
  Control control;
};

// Every launcher returns null, or what went wrong.
namespace cpu {
const char* update(const Update&);
}  // namespace cpu

// On the current device; one launch.
namespace cuda {
int64_t workspace(const Update&);
const char* update(const Update&, void* workspace, void* stream);
}  // namespace cuda

// What a score adds to its total. NaN where it is not finite, which its sign would hide, and so would
// a ratio of infinities.
constexpr double addend(Metric metric, double score) {
  const double value = metric == Metric::kRv ? score : (score > 0) - (score < 0);
  return value + 0 * score;
}

// Adds the totals of a call to a state.
constexpr void add(State& state, const double (&totals)[kGroups], const Update& args) {
  for (int g = 0; g < kGroups; ++g) state.groups[g].total += totals[g];
  for (int64_t i = 0; i < args.count; ++i)
    for (int g = 0; g < kGroups;
         ++g)  // no index that is not a constant: a GPU's registers have none
      if (args.scores[i].group == g)
        state.groups[g].count += static_cast<double>(args.scores[i].count);
  state.images += static_cast<double>(args.images);
  state.calls += 1;
}

constexpr bool is_due(const State& state, const Control& c) {
  return static_cast<int64_t>(state.calls) % c.interval == 0;
}

// p after a step by these sums, which leaves the state with r and none; where r is NaN p rests.
constexpr double step(State& state, const Sums (&groups)[kGroups], double images, double p,
                      const Control& c) {
  const auto mean = [&](int g) { return groups[g].total / groups[g].count; };
  const double real = mean(0);
  double r = real;
  if (c.metric == Metric::kRv) r = (real - mean(2)) / (real - mean(1));
  if (c.metric == Metric::kAccuracy) r = 0.5 + (real - mean(1)) / 4;  // of signs, s = 2 share - 1
  const double up = (r > c.target) - (r < c.target);
  state = {{}, 0, state.calls, r};
  if (p != p) p = 0;
  p += up * (images / c.images_to_one);
  return p > 0 ? (p < c.p_max ? p : c.p_max) : 0;
}

}  // namespace gankernels::ada_control
