// A call: its weights cut into chunks, the memory of their vectors, and the tasks of all layers and
// phases in one parallel region.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "common/parallel.h"
#include "cpu/elements.h"
#include "cpu/memory/pool.h"
#include "cpu/spectral_norm/strided_matrix.h"
#include "spectral_norm.h"

namespace gankernels::spectral_norm::cpu {

using gankernels::cpu::Elements;
using gankernels::cpu::narrow;
using gankernels::cpu::Slot;
using gankernels::cpu::StridedMatrix;
using gankernels::cpu::thread_scratch;
using gankernels::cpu::Units;
using gankernels::cpu::vector_kernels;
using gankernels::cpu::VectorKernels;
using gankernels::cpu::widen;

// One weight of a call and how it is cut.
template <class S>
struct WeightPlan {
  using T = Accumulation<S>;
  StridedMatrix<S> matrix;
  int64_t step, chunks;  // units a chunk, chunks
  T *p, *q;              // in the order of memory
  T* partial;            // a q for every chunk
  double* sums;          // kSums for every chunk
};
constexpr int kSums = 3;

// The work on every chunk [begin, end) of a layer, and once after the last of them.
struct LayerPhase {
  std::function<void(int64_t layer, int64_t chunk, int64_t begin, int64_t end)> chunk;
  std::function<void(int64_t layer)> finish;
};

// The plans of a call, their memory, and the tasks to run on them.
template <class S>
class SpectralCall {
 public:
  using T = Accumulation<S>;

  template <class Layer>
  SpectralCall(int threads, int64_t count, const Layer* layers, bool needs_partial)
      : kernels(vector_kernels<T>()),
        bytes(bytes_of(count, layers)),
        elements(bytes),
        threads_(threads) {
    const int64_t target = std::clamp<int64_t>(bytes / 32, 64 << 10, 2 << 20);
    int64_t size = 0, chunks = 0;
    plans.reserve(count);
    for (int64_t i = 0; i < count; ++i) {
      WeightPlan<S> plan{StridedMatrix<S>(layers[i].w), 0, 0, nullptr, nullptr, nullptr, nullptr};
      const auto& m = plan.matrix;
      const int64_t unit = m.unit_size * static_cast<int64_t>(sizeof(S));
      // A partial sum is worth its traffic from 32 units on; 8 are worked on at once.
      const int64_t least = needs_partial && m.kind != Units::kSlabs ? 32 : 1;
      plan.step = std::min(m.units, std::max(least, (target / unit + 7) / 8 * 8));
      plan.chunks = (m.units + plan.step - 1) / plan.step;
      size += m.p_size + m.q_size + (needs_partial ? plan.chunks * m.q_size : 0);
      chunks += plan.chunks;
      plans.push_back(plan);
    }
    const size_t sum_bytes = chunks * kSums * sizeof(double);
    scratch_ = std::make_unique<pool::Scratch>(sum_bytes + size * sizeof(T));
    auto* sums = static_cast<double*>(scratch_->get());
    if (!sums) throw std::bad_alloc();
    T* next = reinterpret_cast<T*>(sums + chunks * kSums);
    for (WeightPlan<S>& plan : plans) {
      const auto& m = plan.matrix;
      plan.sums = sums, sums += plan.chunks * kSums;
      plan.p = next, next += m.p_size;
      plan.q = next, next += m.q_size;
      if (needs_partial) plan.partial = next, next += plan.chunks * m.q_size;
    }
  }

  // Takes every layer through its phases. A layer's next phase starts when the one before is
  // finished; it follows it closely, while the caches still hold what both read.
  template <class PhasesOf>
  void run(const PhasesOf& phases_of) {
    struct LayerTask {
      const LayerPhase* phase;
      int64_t layer, chunk;
      int position;  // in the layer's phases
    };
    const auto count = static_cast<int64_t>(plans.size());
    std::vector<std::vector<const LayerPhase*>> phases(count);
    std::vector<LayerTask> tasks;
    size_t longest = 0;
    for (int64_t i = 0; i < count; ++i) {
      phases[i] = phases_of(i);
      longest = std::max(longest, phases[i].size());
    }
    const auto add = [&](int64_t i, size_t k, int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c)
        tasks.push_back({phases[i][k], i, c, static_cast<int>(k)});
    };
    for (int64_t turn = 0; turn < count + static_cast<int64_t>(longest) - 1; ++turn) {
      // While one thread finishes a phase the others begin the next layer; two chunks are enough.
      int64_t begun = 0;
      if (turn < count)
        add(turn, 0, 0, begun = std::min<int64_t>(2 * threads_ - 2, plans[turn].chunks));
      for (size_t k = std::min<size_t>(longest, turn + 1); k-- > 0;) {
        const int64_t i = turn - static_cast<int64_t>(k);
        if (i < count && k < phases[i].size()) add(i, k, k == 0 ? begun : 0, plans[i].chunks);
      }
    }

    struct Progress {
      std::atomic<int64_t> left;  // chunks of the current phase
      std::atomic<int> done{0};   // phases
    };
    std::vector<Progress> progress(count);
    for (int64_t i = 0; i < count; ++i) progress[i].left = plans[i].chunks;
    // Waking the other threads costs more than a few small layers.
    const int threads = bytes < (128 << 10) ? 1 : threads_;
    std::atomic<bool> failed{false};
    parallel_tasks(threads, static_cast<int64_t>(tasks.size()), [&](int64_t t) {
      const auto [phase, i, c, position] = tasks[t];
      Progress& state = progress[i];
      // Whoever is still at it took its task before this one, and waits for nobody after it.
      while (state.done.load(std::memory_order_acquire) < position) {
        if (failed) return;
        std::this_thread::yield();
      }
      const WeightPlan<S>& plan = plans[i];
      try {
        phase->chunk(i, c, c * plan.step, std::min(plan.matrix.units, (c + 1) * plan.step));
        if (state.left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
        if (phase->finish) phase->finish(i);
      } catch (...) {  // nobody must wait for it
        failed = true;
        throw;
      }
      state.left.store(plan.chunks, std::memory_order_relaxed);
      state.done.store(position + 1, std::memory_order_release);
    });
  }

  double sum(const WeightPlan<S>& plan, int which) const {
    double total = 0;
    for (int64_t c = 0; c < plan.chunks; ++c) total += plan.sums[c * kSums + which];
    return total;
  }

  // u and v, in logical order and of V, into the plan's p and q, in memory order; and back.
  template <class V>
  void load(int64_t i, const Matrix& w, const void* u, const void* v) {
    const bool rows = plans[i].matrix.kind == Units::kRows;
    T* to_u = rows ? plans[i].p : plans[i].q;
    T* to_v = rows ? plans[i].q : plans[i].p;
    vector_kernels<V>().widen(static_cast<const V*>(u), w.rows, to_u);
    const V* from_v = static_cast<const V*>(v);
    if (w.column_dims == 0) return vector_kernels<V>().widen(from_v, w.cols(), to_v);
    for_each_column(w, [&](int64_t k, int64_t memory) { to_v[memory] = widen(from_v[k]); });
  }
  template <class V>
  void store(int64_t i, const Matrix& w, void* u, void* v) const {
    const bool rows = plans[i].matrix.kind == Units::kRows;
    const T* from_u = rows ? plans[i].p : plans[i].q;
    const T* from_v = rows ? plans[i].q : plans[i].p;
    vector_kernels<V>().narrow(from_u, w.rows, static_cast<V*>(u));
    V* to_v = static_cast<V*>(v);
    if (w.column_dims == 0) return vector_kernels<V>().narrow(from_v, w.cols(), to_v);
    for_each_column(w, [&](int64_t k, int64_t memory) { to_v[k] = narrow<V>(from_v[memory]); });
  }

  const VectorKernels<T>& kernels;
  int64_t bytes;
  Elements<S> elements;
  std::vector<WeightPlan<S>> plans;

 private:
  template <class Layer>
  static int64_t bytes_of(int64_t count, const Layer* layers) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) total += layers[i].w.size();
    return total * static_cast<int64_t>(sizeof(S));
  }

  int threads_;
  std::unique_ptr<pool::Scratch> scratch_;
};

}  // namespace gankernels::spectral_norm::cpu
