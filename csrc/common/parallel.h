// Independent tasks on the threads of OpenMP, which torch's own operators share.
#pragma once

#include <atomic>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace gankernels {

// Calls task(i) for every i in [0, count), on at most `threads` threads; whichever is free takes the
// next. Tasks must not depend on each other, and their results not on who runs them.
template <class F>
void parallel_tasks(int threads, int64_t count, const F& task) {
#ifdef _OPENMP
  if (threads > 1 && count > 1 && !omp_in_parallel()) {
    std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(static_cast<int>(threads < count ? threads : count))
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(i);
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) task(i);
}

}  // namespace gankernels
