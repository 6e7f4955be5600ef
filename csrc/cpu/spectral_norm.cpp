// The CPU kernels of spectral normalization. A weight is cut into chunks of whole units (see
// spectral_norm/strided_matrix.h), sized by the shapes alone, so that results do not depend on the
// threads. A layer goes through phases, such as products, then scaling; whoever finishes the last
// chunk of a phase adds up its partial results, in the order of the chunks. All chunks of all
// layers and phases are the tasks of one parallel region (spectral_norm/call.h).
//
// Bytes, in sizes of all weights: one step of the iteration reads 1 (order of the units' own vector
// first) or 2, its output reads 1 and writes 1; normalize reads 1, writes 1; backward reads 3,
// writes 1; double_backward reads 7, writes 2. Deterministic.

#include "spectral_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/spectral_norm/call.h"
#include "cpu/spectral_norm/vectors.h"

namespace gankernels::spectral_norm::cpu {
namespace {

using gankernels::cpu::run;

// q = the sum of the chunks' partial sums, divided by `divisor`.
template <class S, class T = Accumulation<S>>
void reduce_partial(const VectorKernels<T>& kernels, const WeightPlan<S>& plan, double divisor) {
  const int64_t n = plan.matrix.q_size;
  const T* first = plan.partial;
  for (int64_t c = 1; c < plan.chunks; ++c, first = plan.q)
    kernels.combine({1, first, 1, plan.partial + c * n, 0, nullptr}, n, plan.q, false);
  if (plan.chunks == 1) std::copy_n(plan.partial, n, plan.q);
  if (divisor != 1) divide(kernels, plan.q, n, divisor);
}

template <class T>
void fill_up(T* x, int64_t size) {
  std::fill(x + size, x + packed_size(size), T{0});
}

// A u or v of a guarded layer from which no iteration leads anywhere.
template <class V, class S>
void repair(SpectralCall<S>& call, const PowerIterationLayer& layer) {
  using T = Accumulation<S>;
  for (const bool is_u : {true, false}) {
    const int64_t n = is_u ? layer.w.rows : layer.w.cols();
    T* x = thread_scratch<T, Slot::kRepairedVector>(n);
    V* stored = static_cast<V*>(is_u ? layer.u : layer.v);
    vector_kernels<V>().widen(stored, n, x);
    const double norm = norm_of(call.kernels, x, n);
    if (std::isfinite(norm) && norm > 0) continue;
    for (int64_t i = 0; i < n; ++i) x[i] = static_cast<T>(start_of(i));
    normalize_vector(call.kernels, x, n, 0);
    vector_kernels<V>().narrow(x, n, stored);
  }
}

// Where the iteration ends: the new u and v, their copies, and sigma, or what the guard says.
template <class V, class S>
void emit(SpectralCall<S>& call, int64_t i, const PowerIteration& args, double sigma) {
  using T = Accumulation<S>;
  const PowerIterationLayer& layer = args.layers[i];
  const T stored = static_cast<T>(sigma);
  if (layer.skipped && !(std::isfinite(stored) && stored > 0)) {
    call.template load<V>(i, layer.w, layer.u, layer.v);
    ++*layer.skipped;
    sigma = 1;
  } else {
    call.template store<V>(i, layer.w, layer.u, layer.v);
  }
  call.template store<T>(i, layer.w, layer.u_out, layer.v_out);
  fill_up(static_cast<T*>(layer.u_out), layer.w.rows);
  fill_up(static_cast<T*>(layer.v_out), layer.w.cols());
  static_cast<T*>(args.sigma_out)[i] = static_cast<T>(sigma);
  if (args.sigma_copy) static_cast<T*>(args.sigma_copy)[i] = static_cast<T>(sigma);
}

// out = W * scale for the units [begin, end).
template <class S>
void scale(const SpectralCall<S>& call, int64_t i, const Matrix& w, double sigma, double max_norm,
           int64_t begin, int64_t end, void* out) {
  const int64_t unit = call.plans[i].matrix.unit_size;
  call.elements.combine(scale_of(sigma, max_norm).scale, w.data, 0, nullptr, begin * unit,
                        (end - begin) * unit, out);
}

// V is what u and v are stored as: S, or what that is accumulated in.
template <class S, class V>
void power_iteration(const PowerIteration& args) {
  using T = Accumulation<S>;
  SpectralCall<S> call(args.threads, args.count, args.layers, true);
  fill_up(static_cast<T*>(args.sigma_out), args.count);
  for (int64_t i = 0; i < args.count; ++i) {
    if (args.layers[i].skipped) repair<V>(call, args.layers[i]);
    call.template load<V>(i, args.layers[i].w, args.layers[i].u, args.layers[i].v);
  }
  const auto partial = [](const WeightPlan<S>& plan, int64_t c) {
    return plan.partial + c * plan.matrix.q_size;
  };
  std::vector<int64_t> steps_left(args.count, args.n);
  const auto end_step = [&](int64_t i, double norm) {
    if (--steps_left[i] == 0) emit<V>(call, i, args, norm * (norm / at_least(norm, args.eps)));
  };

  // One pass over W where the vector along the units comes first.
  const LayerPhase both{
      [&](int64_t i, int64_t c, int64_t begin, int64_t end) {
        const WeightPlan<S>& plan = call.plans[i];
        plan.matrix.both_products(begin, end, plan.q, plan.p, partial(plan, c));
      },
      [&](int64_t i) {
        const WeightPlan<S>& plan = call.plans[i];
        // Normalizing commutes with the product, so q need not have waited for this norm, unless
        // the two factors of W that it then has leave the range of T.
        const double norm = normalize_vector(call.kernels, plan.p, plan.matrix.p_size, args.eps);
        double divisor = at_least(norm, args.eps);
        if (!(norm > 1e-12 && norm < 1e12)) {
          for (int64_t c = 0; c < plan.chunks; ++c)
            plan.matrix.transposed_product(c * plan.step,
                                           std::min(plan.matrix.units, (c + 1) * plan.step), plan.p,
                                           partial(plan, c));
          divisor = 1;
        }
        reduce_partial(call.kernels, plan, divisor);
        end_step(i, normalize_vector(call.kernels, plan.q, plan.matrix.q_size, args.eps));
      }};
  // Two passes where the other one does.
  const LayerPhase across{[&](int64_t i, int64_t c, int64_t begin, int64_t end) {
                            const WeightPlan<S>& plan = call.plans[i];
                            plan.matrix.transposed_product(begin, end, plan.p, partial(plan, c));
                          },
                          [&](int64_t i) {
                            const WeightPlan<S>& plan = call.plans[i];
                            reduce_partial(call.kernels, plan, 1);
                            normalize_vector(call.kernels, plan.q, plan.matrix.q_size, args.eps);
                          }};
  const LayerPhase along{
      [&](int64_t i, int64_t, int64_t begin, int64_t end) {
        const WeightPlan<S>& plan = call.plans[i];
        plan.matrix.product(begin, end, plan.q, plan.p);
      },
      [&](int64_t i) {
        const WeightPlan<S>& plan = call.plans[i];
        end_step(i, normalize_vector(call.kernels, plan.p, plan.matrix.p_size, args.eps));
      }};
  const LayerPhase output{[&](int64_t i, int64_t, int64_t begin, int64_t end) {
                            const PowerIterationLayer& layer = args.layers[i];
                            scale(call, i, layer.w, static_cast<const T*>(args.sigma_out)[i],
                                  args.max_norm, begin, end, layer.out);
                          },
                          nullptr};
  call.run([&](int64_t i) {
    std::vector<const LayerPhase*> phases;
    const bool one_pass = (call.plans[i].matrix.kind == Units::kRows) == args.u_first;
    for (int64_t step = 0; step < args.n; ++step) {
      if (one_pass) {
        phases.push_back(&both);
      } else {
        phases.push_back(&across);
        phases.push_back(&along);
      }
    }
    if (args.layers[i].out) phases.push_back(&output);
    return phases;
  });
}

// The chunk's part of p . (W q), for u . (W v).
template <class S>
double bilinear(const WeightPlan<S>& plan, const StridedMatrix<S>& matrix, int64_t begin,
                int64_t end) {
  using T = Accumulation<S>;
  const int64_t width = matrix.p_per_unit();
  T* product = thread_scratch<T, Slot::kProduct>(matrix.p_size);
  matrix.product(begin, end, plan.q, product);
  double sum = 0;
  for (int64_t k = begin * width; k < end * width; ++k)
    sum += static_cast<double>(product[k]) * plan.p[k];
  return sum;
}

template <class S>
void normalize(const Normalize& args) {
  using T = Accumulation<S>;
  SpectralCall<S> call(args.threads, args.count, args.layers, false);
  std::vector<double> sigma(args.count);
  const auto set_sigma = [&](int64_t i, T value) {
    sigma[i] = value;
    *static_cast<T*>(args.layers[i].sigma_out) = value;
  };
  for (int64_t i = 0; i < args.count; ++i) {
    const NormalizeLayer& layer = args.layers[i];
    if (layer.sigma)
      set_sigma(i, *static_cast<const T*>(layer.sigma));
    else
      call.template load<T>(i, layer.w, layer.u, layer.v);
  }
  const LayerPhase product{[&](int64_t i, int64_t c, int64_t begin, int64_t end) {
                             const WeightPlan<S>& plan = call.plans[i];
                             plan.sums[c * kSums] = bilinear(plan, plan.matrix, begin, end);
                           },
                           [&](int64_t i) {
                             const T value = static_cast<T>(call.sum(call.plans[i], 0));
                             const bool good = std::isfinite(value) && value != 0;
                             set_sigma(i, good || !args.guard ? value : T{1});
                           }};
  const LayerPhase output{[&](int64_t i, int64_t, int64_t begin, int64_t end) {
                            scale(call, i, args.layers[i].w, sigma[i], args.max_norm, begin, end,
                                  args.layers[i].out);
                          },
                          nullptr};
  call.run([&](int64_t i) {
    return args.layers[i].sigma ? std::vector<const LayerPhase*>{&output}
                                : std::vector<const LayerPhase*>{&product, &output};
  });
}

// Moves the norms of p and q into the factor of p q^T where that factor leaves the range of T by
// far, as it does for tiny weights, whose vectors are tiny too.
template <class S>
void balance(SpectralCall<S>& call, int64_t i, double& factor) {
  if (factor == 0 || (std::abs(factor) > 1e-15 && std::abs(factor) < 1e15)) return;
  const WeightPlan<S>& plan = call.plans[i];
  const double p = norm_of(call.kernels, plan.p, plan.matrix.p_size);
  const double q = norm_of(call.kernels, plan.q, plan.matrix.q_size);
  if (!std::isfinite(p * q * factor) || p * q == 0) return;
  divide(call.kernels, plan.p, plan.matrix.p_size, p);
  divide(call.kernels, plan.q, plan.matrix.q_size, q);
  factor *= p * q;
}

template <class S>
void backward(const Backward& args) {
  using T = Accumulation<S>;
  SpectralCall<S> call(args.threads, args.count, args.layers, false);
  struct BackwardFactors {
    double g, outer;
  };
  std::vector<BackwardFactors> factors(args.count);
  for (int64_t i = 0; i < args.count; ++i)
    call.template load<T>(i, args.layers[i].w, args.layers[i].u, args.layers[i].v);
  const LayerPhase reduce{
      [&](int64_t i, int64_t c, int64_t begin, int64_t end) {
        const int64_t unit = call.plans[i].matrix.unit_size;
        call.plans[i].sums[c * kSums] = call.elements.dot(args.layers[i].g, args.layers[i].w.data,
                                                          begin * unit, (end - begin) * unit);
      },
      [&](int64_t i) {
        const BackwardLayer& layer = args.layers[i];
        const Scale s = scale_of(*static_cast<const T*>(layer.sigma), args.max_norm);
        const double seed = layer.grad_sigma ? *static_cast<const T*>(layer.grad_sigma) : 0;
        factors[i] = {s.scale, seed - s.slope(call.sum(call.plans[i], 0))};
        balance(call, i, factors[i].outer);
      }};
  const LayerPhase output{
      [&](int64_t i, int64_t, int64_t begin, int64_t end) {
        const WeightPlan<S>& plan = call.plans[i];
        plan.matrix.outer_product(
            begin, end, plan.p, plan.q, [&](int64_t offset, int64_t n, T factor, const T* vector) {
              call.elements.combine_wide(factors[i].g, args.layers[i].g, factors[i].outer * factor,
                                         vector, offset, n, args.layers[i].out);
            });
      },
      nullptr};
  call.run([&](int64_t) { return std::vector<const LayerPhase*>{&reduce, &output}; });
}

template <class S>
void double_backward(const DoubleBackward& args) {
  using T = Accumulation<S>;
  SpectralCall<S> call(args.threads, args.count, args.layers, false);
  struct DoubleBackwardFactors {
    double g_h, g_w, w_g, w_outer;
  };
  std::vector<DoubleBackwardFactors> factors(args.count);
  std::vector<StridedMatrix<S>> h;
  for (int64_t i = 0; i < args.count; ++i) {
    call.template load<T>(i, args.layers[i].w, args.layers[i].u, args.layers[i].v);
    Matrix like = args.layers[i].w;
    like.data = args.layers[i].h;
    h.emplace_back(like);
  }
  const LayerPhase reduce{
      [&](int64_t i, int64_t c, int64_t begin, int64_t end) {
        const DoubleBackwardLayer& layer = args.layers[i];
        const WeightPlan<S>& plan = call.plans[i];
        const int64_t from = begin * plan.matrix.unit_size, n = end * plan.matrix.unit_size - from;
        double* sums = plan.sums + c * kSums;
        sums[0] = bilinear(plan, h[i], begin, end);
        sums[1] = call.elements.dot(layer.h, layer.g, from, n);
        sums[2] = call.elements.dot(layer.g, layer.w.data, from, n);
      },
      [&](int64_t i) {
        const DoubleBackwardLayer& layer = args.layers[i];
        const Scale s = scale_of(*static_cast<const T*>(layer.sigma), args.max_norm);
        const WeightPlan<S>& plan = call.plans[i];
        const double uhv = call.sum(plan, 0), hg = call.sum(plan, 1), gw = call.sum(plan, 2);
        const double across = -s.slope(uhv);
        factors[i] = {s.scale, across, across, s.curve(uhv, gw) - s.slope(hg)};
        balance(call, i, factors[i].w_outer);
        *static_cast<T*>(layer.d_grad_sigma) = static_cast<T>(uhv);
      }};
  const LayerPhase output{
      [&](int64_t i, int64_t, int64_t begin, int64_t end) {
        const DoubleBackwardLayer& layer = args.layers[i];
        const WeightPlan<S>& plan = call.plans[i];
        const int64_t from = begin * plan.matrix.unit_size, n = end * plan.matrix.unit_size - from;
        const DoubleBackwardFactors& f = factors[i];
        call.elements.combine(f.g_h, layer.h, f.g_w, layer.w.data, from, n, layer.d_g);
        plan.matrix.outer_product(begin, end, plan.p, plan.q,
                                  [&](int64_t offset, int64_t m, T factor, const T* vector) {
                                    call.elements.combine_wide(f.w_g, layer.g, f.w_outer * factor,
                                                               vector, offset, m, layer.d_w);
                                  });
      },
      nullptr};
  call.run([&](int64_t) { return std::vector<const LayerPhase*>{&reduce, &output}; });
}

}  // namespace

const char* power_iteration(const PowerIteration& args) {
  return run(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    args.wide_vectors ? power_iteration<S, Accumulation<S>>(args) : power_iteration<S, S>(args);
  });
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
