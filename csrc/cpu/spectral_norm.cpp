// The CPU kernels of spectral normalisation. A weight is cut into chunks of whole units (see
// strided_matrix.h), sized by the shapes alone, so that results do not depend on the threads. All
// chunks of all layers are the tasks of one parallel region; whoever finishes a layer's last chunk
// adds up its partial results, in the order of the chunks.
//
// Bytes, in sizes of all weights: one step of the iteration reads 1 (order of the units' own vector
// first) or 2; normalize reads 1, writes 1; backward reads 3, writes 1; double_backward reads 7,
// writes 2. Deterministic.

#include "spectral_norm.h"

#include <atomic>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "common/parallel.h"
#include "cpu/pool.h"
#include "cpu/strided_matrix.h"

namespace gankernels::spectral_norm::cpu {
namespace {

using gankernels::cpu::staged;
using gankernels::cpu::Storage;
using gankernels::cpu::StridedMatrix;
using gankernels::cpu::thread_scratch;
using gankernels::cpu::Units;
using gankernels::cpu::vector_kernels;
using gankernels::cpu::VectorKernels;

constexpr const char* kNoMemory = "out of memory";
// Outputs that exceed every cache together are written past the caches.
constexpr int64_t kStreamBytes = 32 << 20;
constexpr int64_t kPiece = 2048;  // elements widened at a time

// One weight of a call and how it is cut.
template <class T>
struct Plan {
  StridedMatrix<T> matrix;
  int64_t step, chunks;     // units a chunk, chunks
  T *p, *q;                 // in the order of memory
  T* partial;               // a q for every chunk
  double* sums;             // kSums for every chunk
};
constexpr int kSums = 3;

// The plans of a call, their memory, and the tasks to run on them.
template <class T>
class Call {
 public:
  template <class Layer>
  Call(DType dtype, int threads, int64_t count, const Layer* layers, bool needs_partial)
      : kernels(vector_kernels<T>()), dtype_(dtype), threads_(threads) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) total += layers[i].w.size();
    bytes = total * static_cast<int64_t>(item_size(dtype));
    const int64_t target = std::clamp<int64_t>(bytes / 32, 64 << 10, 2 << 20);
    int64_t size = 0;
    for (int64_t i = 0; i < count; ++i) {
      Plan<T> plan{StridedMatrix<T>(layers[i].w, dtype), 0, 0, nullptr, nullptr, nullptr, nullptr};
      const auto& m = plan.matrix;
      const int64_t unit = m.unit_size * static_cast<int64_t>(item_size(dtype));
      // A partial sum is worth its traffic from 32 units on; 8 are worked on at once.
      const int64_t least = needs_partial && m.kind != Units::kSlabs ? 32 : 1;
      plan.step = std::min(m.units, std::max(least, (target / unit + 7) / 8 * 8));
      plan.chunks = (m.units + plan.step - 1) / plan.step;
      size += m.p_size + m.q_size + (needs_partial ? plan.chunks * m.q_size : 0);
      for (int64_t c = 0; c < plan.chunks; ++c) tasks_.push_back({i, c});
      plans.push_back(plan);
    }
    const size_t sum_bytes = tasks_.size() * kSums * sizeof(double);
    scratch_ = std::make_unique<pool::Scratch>(sum_bytes + size * sizeof(T));
    auto* sums = static_cast<double*>(scratch_->get());
    if (!sums) throw std::bad_alloc();
    T* next = reinterpret_cast<T*>(sums + tasks_.size() * kSums);
    for (Plan<T>& plan : plans) {
      const auto& m = plan.matrix;
      plan.sums = sums, sums += plan.chunks * kSums;
      plan.p = next, next += m.p_size;
      plan.q = next, next += m.q_size;
      if (needs_partial) plan.partial = next, next += plan.chunks * m.q_size;
    }
    left_ = std::make_unique<std::atomic<int64_t>[]>(count);
  }

  // chunk(layer, chunk index, first unit, end) for all chunks of the layers that `wanted` names, then
  // finish(layer) once for each, after its last chunk.
  template <class Wanted, class Chunk, class Finish>
  void run(const Wanted& wanted, const Chunk& chunk, const Finish& finish) {
    std::vector<Task> chosen;
    chosen.reserve(tasks_.size());
    for (const Task& task : tasks_)
      if (wanted(task.layer)) chosen.push_back(task);
    for (size_t i = 0; i < plans.size(); ++i) left_[i].store(plans[i].chunks);
    // Waking the other threads costs more than a few small layers.
    const int threads = bytes < (128 << 10) ? 1 : threads_;
    parallel_tasks(threads, static_cast<int64_t>(chosen.size()), [&](int64_t t) {
      const auto [i, c] = chosen[t];
      const Plan<T>& plan = plans[i];
      chunk(i, c, c * plan.step, std::min(plan.matrix.units, (c + 1) * plan.step));
      if (left_[i].fetch_sub(1, std::memory_order_acq_rel) == 1) finish(i);
    });
  }

  template <class Chunk, class Finish>
  void run_all(const Chunk& chunk, const Finish& finish) {
    run([](int64_t) { return true; }, chunk, finish);
  }

  bool stream() const { return bytes > kStreamBytes; }

  double sum(const Plan<T>& plan, int which) const {
    double total = 0;
    for (int64_t c = 0; c < plan.chunks; ++c) total += plan.sums[c * kSums + which];
    return total;
  }

  // u and v, in logical order, into the plan's p and q, in memory order; and back.
  void load(int64_t i, const Matrix& w, const void* u, const void* v, DType dtype) {
    const bool rows = plans[i].matrix.kind == Units::kRows;
    T* to_u = rows ? plans[i].p : plans[i].q;
    T* to_v = rows ? plans[i].q : plans[i].p;
    kernels.widen(dtype, u, w.rows, to_u);
    if (w.column_dims == 0) return kernels.widen(dtype, v, w.cols(), to_v);
    T* logical = thread_scratch<T, 3>(w.cols());
    kernels.widen(dtype, v, w.cols(), logical);
    for_each_column(w, [&](int64_t k, int64_t memory) { to_v[memory] = logical[k]; });
  }
  void store(int64_t i, const Matrix& w, DType dtype, void* u, void* v) const {
    const bool rows = plans[i].matrix.kind == Units::kRows;
    const T* from_u = rows ? plans[i].p : plans[i].q;
    const T* from_v = rows ? plans[i].q : plans[i].p;
    kernels.narrow(from_u, w.rows, dtype, u);
    if (w.column_dims == 0) return kernels.narrow(from_v, w.cols(), dtype, v);
    T* logical = thread_scratch<T, 3>(w.cols());
    for_each_column(w, [&](int64_t k, int64_t memory) { logical[k] = from_v[memory]; });
    kernels.narrow(logical, w.cols(), dtype, v);
  }

  // sum(x * y) of n elements from `offset` on.
  double dot(const void* x, const void* y, int64_t offset, int64_t n) const {
    const Storage a{x, dtype_}, b{y, dtype_};
    const int64_t step = item_size(dtype_) == sizeof(T) ? n : kPiece;
    T* scratch = step == n ? nullptr : thread_scratch<T, 4>(2 * kPiece);
    double total = 0;
    for (int64_t j = 0; j < n; j += step) {
      const int64_t k = std::min(step, n - j);
      total += kernels.dot(staged(kernels, a, offset + j, k, scratch),
                           staged(kernels, b, offset + j, k, scratch + kPiece), k);
    }
    return total;
  }

  // out = alpha x + beta y from `offset` on, y of T or (`y_stored`) of the weights' dtype.
  void combine(double alpha, const void* x, double beta, const void* y, bool y_stored,
               int64_t offset, int64_t n, void* out) const {
    const T a = static_cast<T>(alpha), b = static_cast<T>(beta);
    const Storage in{x, dtype_}, other{y, dtype_}, to{out, dtype_};
    void* target = const_cast<void*>(to.at(offset));
    if (item_size(dtype_) == sizeof(T)) {
      const T* second = static_cast<const T*>(y_stored ? other.at(offset) : y);
      kernels.combine(a, static_cast<const T*>(in.at(offset)), b, y ? second : nullptr, n,
                      static_cast<T*>(target), stream());
      return;
    }
    T* scratch = thread_scratch<T, 4>(3 * kPiece);
    for (int64_t j = 0; j < n; j += kPiece) {
      const int64_t k = std::min(kPiece, n - j);
      const T* first = staged(kernels, in, offset + j, k, scratch);
      const T* second = !y         ? nullptr
                        : y_stored ? staged(kernels, other, offset + j, k, scratch + kPiece)
                                   : static_cast<const T*>(y) + j;
      T* result = scratch + 2 * kPiece;
      kernels.combine(a, first, b, second, k, result, false);
      kernels.narrow(result, k, dtype_, const_cast<void*>(to.at(offset + j)));
    }
  }

  const VectorKernels<T>& kernels;
  int64_t bytes;
  std::vector<Plan<T>> plans;

 private:
  struct Task {
    int64_t layer, chunk;
  };
  DType dtype_;
  int threads_;
  std::vector<Task> tasks_;
  std::unique_ptr<pool::Scratch> scratch_;
  std::unique_ptr<std::atomic<int64_t>[]> left_;
};

// x / max(||x||, eps) in place; returns ||x||.
template <class T>
double normalize_vector(T* x, int64_t n, double eps) {
  double square = 0;
  for (int64_t i = 0; i < n; ++i) square += static_cast<double>(x[i]) * x[i];
  const double norm = std::sqrt(square);
  const double divisor = norm < eps ? eps : norm;  // NaN stays NaN
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<T>(x[i] / divisor);
  return norm;
}

// q = the sum of the chunks' partial sums, divided by `divisor`.
template <class T>
void reduce_partial(const Plan<T>& plan, double divisor) {
  const int64_t n = plan.matrix.q_size;
  for (int64_t c = 1; c < plan.chunks; ++c)
    for (int64_t j = 0; j < n; ++j) plan.partial[j] += plan.partial[c * n + j];
  for (int64_t j = 0; j < n; ++j) plan.q[j] = static_cast<T>(plan.partial[j] / divisor);
}

// Where the iteration ends: the new u and v, their copies, and sigma, or what the guard says.
template <class T>
void emit(Call<T>& call, int64_t i, const PowerIterationLayer& layer, DType dtype, double sigma) {
  const DType wide = accumulation(dtype);
  if (layer.skipped && !(std::isfinite(sigma) && sigma > 0)) {
    call.load(i, layer.w, layer.u, layer.v, dtype);
    ++*layer.skipped;
    sigma = 1;
  } else {
    call.store(i, layer.w, dtype, layer.u, layer.v);
  }
  call.store(i, layer.w, wide, layer.u_out, layer.v_out);
  *static_cast<T*>(layer.sigma_out) = static_cast<T>(sigma);
}

template <class T>
void power_iteration(const PowerIteration& args) {
  Call<T> call(args.dtype, args.threads, args.count, args.layers, true);
  for (int64_t i = 0; i < args.count; ++i)
    call.load(i, args.layers[i].w, args.layers[i].u, args.layers[i].v, args.dtype);
  // One pass over W where the vector along the units comes first, else two.
  const auto p_first = [&](int64_t i) {
    return (call.plans[i].matrix.kind == Units::kRows) == args.u_first;
  };
  const auto q_first = [&](int64_t i) { return !p_first(i); };
  bool any_q_first = false;
  for (int64_t i = 0; i < args.count; ++i) any_q_first |= q_first(i);
  const auto last_product = [](const Plan<T>& plan, int64_t c) {
    return plan.partial + c * plan.matrix.q_size;
  };

  for (int64_t step = 0; step < args.n; ++step) {
    const bool last = step + 1 == args.n;
    call.run_all(
        [&](int64_t i, int64_t c, int64_t begin, int64_t end) {
          const Plan<T>& plan = call.plans[i];
          if (p_first(i))
            plan.matrix.both_products(begin, end, plan.q, plan.p, last_product(plan, c));
          else
            plan.matrix.transposed_product(begin, end, plan.p, last_product(plan, c));
        },
        [&](int64_t i) {
          const Plan<T>& plan = call.plans[i];
          double divisor = 1;
          if (p_first(i)) {
            // Normalising commutes with the product, so q need not have waited for this norm.
            const double norm = normalize_vector(plan.p, plan.matrix.p_size, args.eps);
            divisor = norm < args.eps ? args.eps : norm;
          }
          reduce_partial(plan, divisor);
          const double norm = normalize_vector(plan.q, plan.matrix.q_size, args.eps);
          if (last && p_first(i))
            emit(call, i, args.layers[i], args.dtype, norm * norm / std::fmax(norm, args.eps));
        });
    if (!any_q_first) continue;
    call.run(
        q_first,
        [&](int64_t i, int64_t, int64_t begin, int64_t end) {
          const Plan<T>& plan = call.plans[i];
          plan.matrix.product(begin, end, plan.q, plan.p);
        },
        [&](int64_t i) {
          const Plan<T>& plan = call.plans[i];
          const double norm = normalize_vector(plan.p, plan.matrix.p_size, args.eps);
          if (last) emit(call, i, args.layers[i], args.dtype, norm * norm / std::fmax(norm, args.eps));
        });
  }
}

// The chunk's part of p . (W q), for u . (W v).
template <class T>
double bilinear(const Plan<T>& plan, const StridedMatrix<T>& matrix, int64_t begin, int64_t end) {
  const int64_t width = matrix.p_per_unit();
  T* product = thread_scratch<T, 5>(matrix.p_size);
  matrix.product(begin, end, plan.q, product);
  double sum = 0;
  for (int64_t k = begin * width; k < end * width; ++k)
    sum += static_cast<double>(product[k]) * plan.p[k];
  return sum;
}

template <class T>
void normalize(const Normalize& args) {
  Call<T> call(args.dtype, args.threads, args.count, args.layers, false);
  std::vector<double> sigma(args.count);
  for (int64_t i = 0; i < args.count; ++i) {
    const NormalizeLayer& layer = args.layers[i];
    if (layer.sigma)
      sigma[i] = *static_cast<const T*>(layer.sigma);
    else
      call.load(i, layer.w, layer.u, layer.v, accumulation(args.dtype));
  }
  call.run([&](int64_t i) { return !args.layers[i].sigma; },
           [&](int64_t i, int64_t c, int64_t begin, int64_t end) {
             const Plan<T>& plan = call.plans[i];
             plan.sums[c * kSums] = bilinear(plan, plan.matrix, begin, end);
           },
           [&](int64_t i) { sigma[i] = static_cast<T>(call.sum(call.plans[i], 0)); });
  for (int64_t i = 0; i < args.count; ++i)
    *static_cast<T*>(args.layers[i].sigma_out) = static_cast<T>(sigma[i]);
  call.run_all(
      [&](int64_t i, int64_t, int64_t begin, int64_t end) {
        const NormalizeLayer& layer = args.layers[i];
        const int64_t unit = call.plans[i].matrix.unit_size;
        call.combine(scale_of(sigma[i], args.coefficient).scale, layer.w.data, 0, nullptr, false,
                     begin * unit, (end - begin) * unit, layer.out);
      },
      [](int64_t) {});
}

template <class T>
void backward(const Backward& args) {
  Call<T> call(args.dtype, args.threads, args.count, args.layers, false);
  struct Factors {
    double g, outer;
  };
  std::vector<Factors> factors(args.count);
  for (int64_t i = 0; i < args.count; ++i)
    call.load(i, args.layers[i].w, args.layers[i].u, args.layers[i].v, accumulation(args.dtype));
  call.run_all(
      [&](int64_t i, int64_t c, int64_t begin, int64_t end) {
        const int64_t unit = call.plans[i].matrix.unit_size;
        call.plans[i].sums[c * kSums] =
            call.dot(args.layers[i].g, args.layers[i].w.data, begin * unit, (end - begin) * unit);
      },
      [&](int64_t i) {
        const BackwardLayer& layer = args.layers[i];
        const Scale s = scale_of(*static_cast<const T*>(layer.sigma), args.coefficient);
        const double seed = layer.grad_sigma ? *static_cast<const T*>(layer.grad_sigma) : 0;
        const double gw = s.slope == 0 ? 0 : call.sum(call.plans[i], 0);
        factors[i] = {s.scale, seed - s.slope * gw};
      });
  call.run_all(
      [&](int64_t i, int64_t, int64_t begin, int64_t end) {
        const Plan<T>& plan = call.plans[i];
        plan.matrix.outer_product(
            begin, end, plan.p, plan.q, [&](int64_t offset, int64_t n, T factor, const T* vector) {
              call.combine(factors[i].g, args.layers[i].g, factors[i].outer * factor, vector, false,
                           offset, n, args.layers[i].out);
            });
      },
      [](int64_t) {});
}

template <class T>
void double_backward(const DoubleBackward& args) {
  Call<T> call(args.dtype, args.threads, args.count, args.layers, false);
  struct Factors {
    double g_h, g_w, w_g, w_outer;
  };
  std::vector<Factors> factors(args.count);
  std::vector<StridedMatrix<T>> h;
  for (int64_t i = 0; i < args.count; ++i) {
    call.load(i, args.layers[i].w, args.layers[i].u, args.layers[i].v, accumulation(args.dtype));
    Matrix like = args.layers[i].w;
    like.data = args.layers[i].h;
    h.emplace_back(like, args.dtype);
  }
  call.run_all(
      [&](int64_t i, int64_t c, int64_t begin, int64_t end) {
        const DoubleBackwardLayer& layer = args.layers[i];
        const Plan<T>& plan = call.plans[i];
        const int64_t from = begin * plan.matrix.unit_size, n = end * plan.matrix.unit_size - from;
        double* sums = plan.sums + c * kSums;
        sums[0] = bilinear(plan, h[i], begin, end);
        sums[1] = call.dot(layer.h, layer.g, from, n);
        sums[2] = call.dot(layer.g, layer.w.data, from, n);
      },
      [&](int64_t i) {
        const DoubleBackwardLayer& layer = args.layers[i];
        const Scale s = scale_of(*static_cast<const T*>(layer.sigma), args.coefficient);
        const Plan<T>& plan = call.plans[i];
        const double uhv = call.sum(plan, 0), hg = call.sum(plan, 1), gw = call.sum(plan, 2);
        factors[i] = {s.scale, -s.slope * uhv, -s.slope * uhv, s.curve * uhv * gw - s.slope * hg};
        *static_cast<T*>(layer.d_grad_sigma) = static_cast<T>(uhv);
      });
  call.run_all(
      [&](int64_t i, int64_t, int64_t begin, int64_t end) {
        const DoubleBackwardLayer& layer = args.layers[i];
        const Plan<T>& plan = call.plans[i];
        const int64_t from = begin * plan.matrix.unit_size, n = end * plan.matrix.unit_size - from;
        const Factors& f = factors[i];
        call.combine(f.g_h, layer.h, f.g_w, layer.w.data, true, from, n, layer.d_g);
        plan.matrix.outer_product(
            begin, end, plan.p, plan.q, [&](int64_t offset, int64_t m, T factor, const T* vector) {
              call.combine(f.w_g, layer.g, f.w_outer * factor, vector, false, offset, m, layer.d_w);
            });
      },
      [](int64_t) {});
}

// Runs `f` for the accumulation type; memory is the one thing that can be missing.
template <class F>
const char* run(DType dtype, F&& f) {
  try {
    visit_accumulation(dtype, f);
    return nullptr;
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
}

}  // namespace

const char* power_iteration(const PowerIteration& args) {
  return run(args.dtype, [&](auto zero) { power_iteration<decltype(zero)>(args); });
}
const char* normalize(const Normalize& args) {
  return run(args.dtype, [&](auto zero) { normalize<decltype(zero)>(args); });
}
const char* backward(const Backward& args) {
  return run(args.dtype, [&](auto zero) { backward<decltype(zero)>(args); });
}
const char* double_backward(const DoubleBackward& args) {
  return run(args.dtype, [&](auto zero) { double_backward<decltype(zero)>(args); });
}

}  // namespace gankernels::spectral_norm::cpu
