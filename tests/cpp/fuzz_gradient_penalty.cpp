// Fuzzes the CPU kernels of gradient penalties: any number of gradients, each pass by itself, against
// plain loops in double.
#include <cmath>
#include <vector>

#include "fuzz.h"
#include "gradient_penalty.h"

namespace {

using namespace fuzz;
namespace gp = gankernels::gradient_penalty;
using gp::Reduction;

struct Case {
  DType dtype, wide;
  Reduction reduction;
  bool one_sided, per_tensor;
  double center, weight;
  int threads;
  int64_t batch;
  std::vector<int64_t> size;
  std::vector<Block> g, h, out;
  Block sample_weight, inv_scale;
  std::vector<gp::Gradient> list;

  int64_t rows() const { return per_tensor ? static_cast<int64_t>(size.size()) : 1; }
  int64_t values() const { return reduction == Reduction::kNone ? rows() * batch : rows(); }
  int64_t value_of(int64_t row, int64_t i) const {
    return reduction == Reduction::kNone ? row * batch + i : row;
  }
  double factor() const {
    return reduction == Reduction::kMean ? weight / static_cast<double>(batch) : weight;
  }
  double of_sample(int64_t i) const { return sample_weight ? (*sample_weight)[i] : 1; }
  double scale() const { return inv_scale ? (*inv_scale)[0] : 1; }
  int64_t first(int64_t row) const { return per_tensor ? row : 0; }
  int64_t last(int64_t row) const {
    return per_tensor ? row + 1 : static_cast<int64_t>(size.size());
  }

  gp::Penalty penalty(int with_threads) const {
    return {dtype,
            reduction,
            one_sided,
            per_tensor,
            center,
            weight,
            with_threads,
            batch,
            static_cast<int64_t>(list.size()),
            list.data(),
            sample_weight ? sample_weight->data : nullptr,
            inv_scale ? inv_scale->data : nullptr};
  }

  // Over the gradients of a row.
  double product(const std::vector<Block>& a, const std::vector<Block>& b, int64_t row,
                 int64_t i) const {
    double sum = 0;
    for (int64_t k = first(row); k < last(row); ++k)
      for (int64_t j = i * size[k]; j < (i + 1) * size[k]; ++j) sum += (*a[k])[j] * (*b[k])[j];
    return sum;
  }
  // Rounding errors of that sum, in units of the accumulation's.
  double roundings(int64_t row) const {
    int64_t n = 0;
    for (int64_t k = first(row); k < last(row); ++k) n = std::max(n, size[k]);
    return 16 + std::sqrt(static_cast<double>(n));
  }
};

Case draw(Random& random) {
  Case c{};
  draw_isa(random);
  c.dtype = random.dtype(), c.wide = accumulation(c.dtype);
  c.reduction = random.pick({Reduction::kNone, Reduction::kMean, Reduction::kSum});
  c.per_tensor = random.chance(0.4);
  c.center = random.chance(0.35) ? 0 : random.chance(0.5) ? 1 : random.uniform(0.1, 3);
  c.one_sided = c.center > 0 && random.chance(0.5);
  c.weight = random.uniform(0.1, 12);
  c.threads = random.chance(0.4) ? static_cast<int>(random.integer(2, 4)) : 1;
  const int64_t count = random.chance(0.4) ? 1 : random.integer(2, random.chance(0.05) ? 70 : 6);
  int64_t budget = random.pick<int64_t>({300, 2100, 6000, 36000, 36000, 110000});
  if (random.chance(0.02)) budget = 600000;
  // Written past the caches.
  if (random.chance(0.0015)) budget = 6 << 20;
  c.batch = random.chance(0.6) ? random.integer(1, 5) : random.size(std::min<int64_t>(budget, 700));
  const int64_t most = std::max<int64_t>(1, budget / c.batch / count);
  for (int64_t k = 0; k < count; ++k) {
    int64_t size = random.size(most);
    // Parts of a sample: several pieces, and a rest that is special.
    if (most > 40000 && random.chance(0.5))
      size = (32 << 10) * random.integer(1, most / (32 << 10)) +
             random.pick<int64_t>({0, 1, 2047, 2048, 2049});
    c.size.push_back(size);
  }
  say(" %s, reduction %d, %s%s, center %g, weight %g, threads 1 and %d, batch %ld, sizes",
      kNames[static_cast<int>(c.dtype)], static_cast<int>(c.reduction),
      c.one_sided ? "one-sided" : "two-sided", c.per_tensor ? ", per tensor" : "", c.center,
      c.weight, c.threads, long(c.batch));
  for (const int64_t size : c.size) say(" %ld", long(size));
  if (random.chance(0.5)) {
    c.sample_weight = drawn(random, c.wide, c.batch);
    say(", sample weights");
  }
  if (random.chance(0.4)) {
    c.inv_scale = block(random, c.wide, 1);
    c.inv_scale->set(0, std::exp2(random.integer(-8, 3)));
    c.inv_scale->freeze();
    say(", inv_scale %g", c.scale());
  }
  // Norms on both sides of the center; some are 0.
  std::vector<double> size_of(c.batch);
  for (double& x : size_of)
    x = random.chance(0.1) ? 0 : random.uniform(0.2, 4) * std::max(c.center, 0.5);
  int64_t total = 0;
  for (const int64_t size : c.size) total += size;
  for (const int64_t size : c.size) {
    c.g.push_back(block(random, c.dtype, c.batch * size));
    const double elements = static_cast<double>(c.per_tensor ? size : total);
    for (int64_t i = 0; i < c.batch; ++i) {
      const double norm = size_of[i] / c.scale();
      for (int64_t j = 0; j < size; ++j)
        c.g.back()->set(i * size + j, norm / std::sqrt(elements) * random.uniform(-1.7, 1.7));
      if (random.chance(0.5))  // one that a sum cannot do without
        c.g.back()->set(i * size + random.pick({size, random.size(size)}) - 1, norm / 2);
    }
    c.g.back()->freeze();
    c.list.push_back({c.g.back()->data, nullptr, nullptr, size});
  }
  return c;
}

// phi and its derivatives at a norm that is not 0.
struct Phi {
  double value, first, second;
};
Phi phi(const Case& c, double n) {
  const double distance = n - c.center;
  if (c.one_sided && distance <= 0) return {0, 0, 0};
  return {distance * distance, 2 * distance, 2};
}

// Runs `call(threads)` on one thread and on several; the results must be the same.
template <class Call>
void call_twice(const Case& c, const std::vector<Memory*>& results, Call&& call) {
  good(call(1));
  std::vector<std::vector<char>> single;
  for (Memory* x : results) {
    CHECK(x->surroundings_untouched(), "a result: written beyond its ends");
    single.push_back(x->contents());
    std::memset(x->data, 0xff, x->contents().size());
  }
  good(call(c.threads));
  for (size_t k = 0; k < results.size(); ++k) {
    CHECK(results[k]->contents() == single[k], "result %zu depends on the threads", k);
    CHECK(results[k]->surroundings_untouched(), "a result: written beyond its ends");
  }
  for (const auto* list : {&c.g, &c.h})
    for (const Block& x : *list) CHECK(x->untouched(), "a gradient was changed");
  for (const Block* x : {&c.sample_weight, &c.inv_scale})
    if (*x) CHECK((*x)->untouched(), "an input was changed");
}

void forward(Random& random, const Case& c) {
  say("\n  forward");
  const Block norms = block(random, c.wide, c.rows() * c.batch),
              values = block(random, c.wide, c.values());
  call_twice(c, {norms.get(), values.get()}, [&](int threads) {
    return gp::cpu::forward({c.penalty(threads), norms->data, values->data});
  });
  const double one = wide_unit(c.dtype);
  Vector right(c.values()), error(c.values());
  for (int64_t row = 0; row < c.rows(); ++row)
    for (int64_t i = 0; i < c.batch; ++i) {
      const double n = std::sqrt(c.product(c.g, c.g, row, i)) * c.scale();
      const double off = c.roundings(row) * one * n;
      near("norm", (*norms)[row * c.batch + i], n, off);
      const double weight = c.factor() * c.of_sample(i);
      right[c.value_of(row, i)] += weight * phi(c, n).value;
      error[c.value_of(row, i)] += std::abs(weight) * off * (2 * std::abs(n - c.center) + off);
    }
  near(
      "value", *values, values->n, [&](int64_t k) { return right[k]; },
      [&](int64_t k) { return error[k] + 8 * one * std::abs(right[k]); });
}

// Norms of the gradients as a forward pass gives them. Near the step of a one-sided penalty's second
// derivative either side would be right.
Block norms_of(Random& random, Case& c) {
  Block norms = block(random, c.wide, c.rows() * c.batch);
  for (int64_t row = 0; row < c.rows(); ++row)
    for (int64_t i = 0; i < c.batch; ++i)
      norms->set(row * c.batch + i, std::sqrt(c.product(c.g, c.g, row, i)) * c.scale());
  norms->freeze();
  return norms;
}

// phi'(n) / n, and at 0 what the contract says.
double slope_of(const Case& c, double n) {
  if (n == 0) return c.center == 0 ? 2 : 0;
  return phi(c, n).first / n;
}

void backward(Random& random, Case& c) {
  say("\n  backward");
  const Block norms = norms_of(random, c), seed = drawn(random, c.wide, c.values());
  const Block d_weight = block(random, c.wide, c.batch);
  const bool wanted = random.chance(0.5);
  std::vector<Memory*> results;
  if (wanted) results.push_back(d_weight.get());
  for (size_t k = 0; k < c.g.size(); ++k) {
    c.out.push_back(block(random, c.dtype, c.g[k]->n));
    c.list[k].out = c.out[k]->data;
    results.push_back(c.out[k].get());
  }
  call_twice(c, results, [&](int threads) {
    return gp::cpu::backward(
        {c.penalty(threads), norms->data, seed->data, wanted ? d_weight->data : nullptr});
  });
  CHECK(norms->untouched() && seed->untouched(), "an input was changed");
  const double one = wide_unit(c.dtype), s = c.scale();
  Vector weights(c.batch), terms(c.batch);
  for (int64_t row = 0; row < c.rows(); ++row)
    for (int64_t i = 0; i < c.batch; ++i) {
      const double n = (*norms)[row * c.batch + i];
      const double seeded = (*seed)[c.value_of(row, i)] * c.factor();
      weights[i] += seeded * phi(c, n).value;
      terms[i] += std::abs(seeded * phi(c, n).value);
      const double of_g = seeded * c.of_sample(i) * s * s * slope_of(c, n);
      for (int64_t k = c.first(row); k < c.last(row); ++k) {
        const Memory &g = *c.g[k], &out = *c.out[k];
        for (int64_t j = i * c.size[k]; j < (i + 1) * c.size[k]; ++j) {
          const double right = of_g * g[j];
          const double bound =
              1.001 * unit(c.dtype) * std::abs(right) + 8 * one * std::abs(right) + 0x1p-25;
          if (!within(out.dtype, out[j], right, bound)) {
            near("gradient", out[j], right, bound);
            return;
          }
        }
      }
    }
  if (wanted)
    near(
        "d_sample_weight", *d_weight, c.batch, [&](int64_t i) { return weights[i]; },
        [&](int64_t i) { return 8 * one * terms[i]; });
}

void double_backward(Random& random, Case& c) {
  const bool with_e = random.chance(0.5), wanted = random.chance(0.5);
  say("\n  double_backward%s%s", with_e ? ", e" : "", wanted ? ", d_sample_weight" : "");
  const Block norms = norms_of(random, c), seed = drawn(random, c.wide, c.values());
  const Block e = drawn(random, c.wide, c.batch), d_seed = block(random, c.wide, c.values());
  const Block d_weight = block(random, c.wide, c.batch);
  std::vector<Memory*> results = {d_seed.get()};
  if (wanted) results.push_back(d_weight.get());
  for (size_t k = 0; k < c.g.size(); ++k) {
    c.h.push_back(drawn(random, c.dtype, c.g[k]->n));
    c.out.push_back(block(random, c.dtype, c.g[k]->n));
    c.list[k].h = c.h[k]->data, c.list[k].out = c.out[k]->data;
    results.push_back(c.out[k].get());
  }
  call_twice(c, results, [&](int threads) {
    return gp::cpu::double_backward({c.penalty(threads), norms->data, seed->data,
                                     with_e ? e->data : nullptr, d_seed->data,
                                     wanted ? d_weight->data : nullptr});
  });
  CHECK(norms->untouched() && seed->untouched() && e->untouched(), "an input was changed");
  // L = <h, K w s^2 slope(n) g> + e K phi(n), with n = s ||g||, slope = phi'(n) / n, K = seed factor.
  const double one = wide_unit(c.dtype), s = c.scale();
  Vector seeds(c.values()), seed_terms(c.values()), weights(c.batch), weight_terms(c.batch);
  for (int64_t row = 0; row < c.rows(); ++row)
    for (int64_t i = 0; i < c.batch; ++i) {
      const double n = (*norms)[row * c.batch + i], t = c.product(c.h, c.g, row, i);
      const double t_size = std::sqrt(c.product(c.h, c.h, row, i) * c.product(c.g, c.g, row, i));
      const double t_off = c.roundings(row) * one * t_size;
      const double w = c.of_sample(i), cotangent = with_e ? (*e)[i] : 0;
      const double k = (*seed)[c.value_of(row, i)] * c.factor();
      const double slope = slope_of(c, n);
      // d slope / dn / n
      double bend = 0, steep = 0;
      if (n > 0 && c.center > 0 && phi(c, n).second != 0) bend = 2 * c.center / (n * n * n);
      if (n > 0) steep = c.center / n;
      const int64_t value = c.value_of(row, i);
      seeds[value] += c.factor() * (w * s * s * slope * t + cotangent * phi(c, n).value);
      seed_terms[value] +=
          std::abs(c.factor()) *
          (std::abs(w) * s * s * (std::abs(slope) * t_off) +
           8 * one * (std::abs(w * s * s * slope * t) + std::abs(cotangent) * phi(c, n).value));
      weights[i] += k * s * s * slope * t;
      weight_terms[i] += std::abs(k) * s * s * std::abs(slope) * (t_off + 8 * one * std::abs(t));
      const double of_h = k * w * s * s * slope;
      const double of_g = k * s * s * (w * s * s * t * bend + cotangent * slope);
      const double of_g_off =
          std::abs(k) * s * s *
          (std::abs(w) * s * s * (t_off + 16 * one * std::abs(t)) * bend +
           16 * one * std::abs(cotangent) * (std::abs(slope) + (n > 0 ? 2 * steep / 1 : 0)));
      for (int64_t m = c.first(row); m < c.last(row); ++m) {
        const Memory &g = *c.g[m], &h = *c.h[m], &out = *c.out[m];
        for (int64_t j = i * c.size[m]; j < (i + 1) * c.size[m]; ++j) {
          const double right = of_h * h[j] + of_g * g[j];
          const double bound = 1.001 * unit(c.dtype) * std::abs(right) + of_g_off * std::abs(g[j]) +
                               8 * one * (std::abs(of_h * h[j]) + std::abs(of_g * g[j])) + 0x1p-25;
          if (!within(out.dtype, out[j], right, bound)) {
            near("gradient of double_backward", out[j], right, bound);
            return;
          }
        }
      }
    }
  near(
      "d_seed", *d_seed, c.values(), [&](int64_t k) { return seeds[k]; },
      [&](int64_t k) { return seed_terms[k]; });
  if (wanted)
    near(
        "d_sample_weight again", *d_weight, c.batch, [&](int64_t i) { return weights[i]; },
        [&](int64_t i) { return weight_terms[i]; });
}

void test(Random& random) {
  Case c = draw(random);
  switch (random.integer(0, 2)) {
    case 0:
      return forward(random, c);
    case 1:
      return backward(random, c);
    default:
      return double_backward(random, c);
  }
}

}  // namespace

int main(int argc, char** argv) {
  fuzz::run(argc, argv, 4000, test);
  return failures == 0 ? 0 : 1;
}
