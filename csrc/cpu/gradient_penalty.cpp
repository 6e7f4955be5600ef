// The CPU kernels of gradient penalties. A gradient is cut into pieces: parts of large samples, or
// several small samples, by its shape alone, so that results do not depend on the threads. Sums over a
// sample are added up in the order of its pieces, in double.
//
// Bytes, in sizes of all gradients: forward reads 1; backward reads 1, writes 1; double_backward reads
// 4, writes 1. Deterministic.

#include "gradient_penalty.h"

#include <cmath>
#include <vector>

#include "cpu/elements.h"
#include "cpu/rows.h"

namespace gankernels::gradient_penalty::cpu {
namespace {

using gankernels::cpu::Elements;
using gankernels::cpu::RowPieces;
using gankernels::cpu::run;

template <class S>
class PenaltyCall {
 public:
  using T = Accumulation<S>;

  // The gradients are read again in the backward pass: its results must not drive them out.
  explicit PenaltyCall(const Penalty& p)
      : p_(p), elements_(2 * bytes(p)), pieces_(p.count, bytes(p), p.threads) {
    for (int64_t k = 0; k < p.count; ++k) pieces_.add(p.batch, p.grads[k].size);
  }

  // sums[row * batch + i] = <x_i, y_i>; operands(gradient) gives the two.
  template <class F>
  std::vector<double> products(F&& operands) const {
    std::vector<double> partial(pieces_.parts());
    pieces_.for_each([&](int64_t k, int64_t i, int64_t part, int64_t offset, int64_t n) {
      const auto [x, y] = operands(p_.grads[k]);
      partial[pieces_.first_part(k, i) + part] = elements_.dot(x, y, offset, n);
    });
    std::vector<double> sums(p_.rows() * p_.batch);
    for (int64_t k = 0; k < p_.count; ++k)
      for (int64_t i = 0; i < p_.batch; ++i)
        for (int64_t part = 0; part < pieces_.parts_of(k); ++part)
          sums[row(k) * p_.batch + i] += partial[pieces_.first_part(k, i) + part];
    return sums;
  }

  // out = alpha_i h + beta_i g; factors(row, sample) gives the two.
  template <class F>
  void combine(F&& factors) const {
    pieces_.for_each([&](int64_t k, int64_t i, int64_t, int64_t offset, int64_t n) {
      const Gradient& x = p_.grads[k];
      const auto [alpha, beta] = factors(row(k), i);
      elements_.combine(beta, x.g, alpha, x.h, offset, n, x.out);
    });
  }

  double scale() const { return p_.inv_scale ? *static_cast<const T*>(p_.inv_scale) : 1; }

  PenaltySample<double> sample(const void* norms, const void* seed, int64_t row, int64_t i) const {
    const auto at = [](const void* x, int64_t j) -> double { return static_cast<const T*>(x)[j]; };
    return {at(norms, row * p_.batch + i),
            seed ? at(seed, p_.value_of(row, i)) : 1,
            p_.sample_weight ? at(p_.sample_weight, i) : 1,
            scale(),
            p_.factor(),
            p_.center,
            p_.one_sided};
  }

  // Calls f(row, sample) for all, in order.
  template <class F>
  void for_each_sample(F&& f) const {
    for (int64_t row = 0; row < p_.rows(); ++row)
      for (int64_t i = 0; i < p_.batch; ++i) f(row, i);
  }

 private:
  static int64_t bytes(const Penalty& p) {
    int64_t size = 0;
    for (int64_t k = 0; k < p.count; ++k) size += p.grads[k].size;
    return size * p.batch * static_cast<int64_t>(item_size(p.dtype));
  }

  int64_t row(int64_t k) const { return p_.per_tensor ? k : 0; }

  const Penalty& p_;
  Elements<S> elements_;
  RowPieces pieces_;
};

template <class T>
void set(void* values, const std::vector<double>& from) {
  if (values) std::copy(from.begin(), from.end(), static_cast<T*>(values));
}

template <class S>
void forward(const Forward& args) {
  using T = Accumulation<S>;
  const Penalty& p = args.penalty;
  const PenaltyCall<S> call(p);
  const auto sums = call.products([](const Gradient& x) { return std::pair(x.g, x.g); });
  auto* norms = static_cast<T*>(args.norms);
  std::vector<double> values(p.values());
  call.for_each_sample([&](int64_t row, int64_t i) {
    const int64_t at = row * p.batch + i;
    norms[at] = static_cast<T>(std::sqrt(sums[at]) * call.scale());
    const auto s = call.sample(norms, nullptr, row, i);
    values[p.value_of(row, i)] += s.weight * s.d_weight();
  });
  set<T>(args.values, values);
}

template <class S>
void backward(const Backward& args) {
  using T = Accumulation<S>;
  const Penalty& p = args.penalty;
  const PenaltyCall<S> call(p);
  call.combine([&](int64_t row, int64_t i) {
    return std::pair(0.0, call.sample(args.norms, args.seed, row, i).d_gradient());
  });
  if (!args.d_sample_weight) return;
  std::vector<double> d_weight(p.batch);
  call.for_each_sample([&](int64_t row, int64_t i) {
    d_weight[i] += call.sample(args.norms, args.seed, row, i).d_weight();
  });
  set<T>(args.d_sample_weight, d_weight);
}

template <class S>
void double_backward(const DoubleBackward& args) {
  using T = Accumulation<S>;
  const Penalty& p = args.penalty;
  const PenaltyCall<S> call(p);
  const auto t = call.products([](const Gradient& x) { return std::pair(x.h, x.g); });
  const auto e = [&](int64_t i) -> double { return args.e ? static_cast<const T*>(args.e)[i] : 0; };
  call.combine([&](int64_t row, int64_t i) {
    const auto s = call.sample(args.norms, args.seed, row, i);
    return std::pair(s.from_h(), s.from_g(t[row * p.batch + i], e(i)));
  });
  std::vector<double> d_seed(p.values()), d_weight(p.batch);
  call.for_each_sample([&](int64_t row, int64_t i) {
    const auto s = call.sample(args.norms, args.seed, row, i);
    d_seed[p.value_of(row, i)] += s.d_seed(t[row * p.batch + i], e(i));
    d_weight[i] += s.d_weight_again(t[row * p.batch + i]);
  });
  set<T>(args.d_seed, d_seed);
  set<T>(args.d_sample_weight, d_weight);
}

}  // namespace

const char* forward(const Forward& args) {
  return run(args.penalty.dtype, [&](auto zero) { forward<decltype(zero)>(args); });
}
const char* backward(const Backward& args) {
  return run(args.penalty.dtype, [&](auto zero) { backward<decltype(zero)>(args); });
}
const char* double_backward(const DoubleBackward& args) {
  return run(args.penalty.dtype, [&](auto zero) { double_backward<decltype(zero)>(args); });
}

}  // namespace gankernels::gradient_penalty::cpu
