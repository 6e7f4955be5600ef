// Independent tasks on the threads of OpenMP, which torch's own operators share.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace gankernels {

// Calls task(i) for every i in [0, count), on at most `threads` threads; whichever is free takes the
// next. Tasks must not depend on each other, and their results not on who runs them. What one throws is
// thrown here, once those that have begun are over; no others begin.
template <class F>
void parallel_tasks(int threads, int64_t count, const F& task) {
#ifdef _OPENMP
  if (threads > 1 && count > 1 && !omp_in_parallel()) {
    std::atomic<int64_t> next{0};
    std::exception_ptr error;  // must not leave the region
#pragma omp parallel num_threads(static_cast<int>(threads < count ? threads : count))
    {
      try {
        for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(i);
      } catch (...) {
#pragma omp critical(gankernels_error)
        if (!error) error = std::current_exception();
        next = count;
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) task(i);
}

}  // namespace gankernels
