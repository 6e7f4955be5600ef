// The controller of p on the CPU: a loop over the scores, in double, in their order. They are a few
// thousand at most, which takes less time than waking a thread.

#include "ada_control.h"

#include <cstring>

#include "cpu/simd/scalars.h"

namespace gankernels::ada_control::cpu {
namespace {

template <class T>
double total_of(const T* scores, int64_t count, Metric metric) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += addend(metric, gankernels::cpu::widen(scores[i]));
  return total;
}

}  // namespace

const char* update(const Update& args) {
  State& state = *args.state;
  if (args.adds) {
    double totals[kGroups]{};
    for (int64_t i = 0; i < args.count; ++i) {
      const Scores& s = args.scores[i];
      totals[s.group] += visit_dtype(s.dtype, [&](auto zero) {
        return total_of(static_cast<const decltype(zero)*>(s.data), s.count, args.control.metric);
      });
    }
    add(state, totals, args);
  }
  if (!args.p || !is_due(state, args.control)) return nullptr;
  Sums groups[kGroups];
  std::memcpy(groups, args.sums ? args.sums : &state.groups[0].total, sizeof groups);
  const double images = args.sums ? args.sums[kSums - 1] : state.images;
  *args.p = static_cast<float>(step(state, groups, images, *args.p, args.control));
  return nullptr;
}

}  // namespace gankernels::ada_control::cpu
