// What the tests of gradient penalties share, on the CPU and on the emulator: plain loops in double, and
// one call of every launcher.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cases.h"
#include "gradient_penalty.h"

namespace cases {

namespace gp = gankernels::gradient_penalty;
using gp::Reduction;

struct Shape {
  const char* name;
  int64_t batch;
  std::vector<int64_t> sizes;  // of a sample, by gradient
};

struct Settings {
  DType dtype;
  Reduction reduction;
  bool one_sided, per_tensor;
  double center;
  bool weighted, scaled, with_e;  // which of sample_weight, inv_scale and e there are
  bool shifted;                   // data begin anywhere
  int threads = 1;
};

using List = std::vector<std::unique_ptr<Numbers>>;

// Gradients and the results of the three launchers. Norms lie on both sides of 1, and one is 0.
struct Case {
  Case(const Shape& shape, const Settings& s)
      : name(shape.name),
        s(s),
        batch(shape.batch),
        count(static_cast<int64_t>(shape.sizes.size())),
        wide(accumulation(s.dtype)),
        sample_weight(wide, batch),
        inv_scale(wide, 1),
        norms(wide, penalty().rows() * batch),
        values(wide, penalty().values()),
        seed(wide, values.n),
        e(wide, batch),
        d_weight(wide, batch),
        d_seed(wide, values.n),
        d_weight_again(wide, batch) {
    std::mt19937 random(7);
    inv_scale.set(0, 0.25);
    for (Numbers* x : {&sample_weight, &seed, &e}) x->draw(random);
    int64_t total = 0;
    for (int64_t size : shape.sizes) total += size;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t size = shape.sizes[k], n = batch * size;
      // One pointer at a time: vectors need all of them aligned.
      const auto shift = [&](int which) { return s.shifted && k % 4 == which ? 1 + 2 * which : 0; };
      g.push_back(std::make_unique<Numbers>(s.dtype, n, shift(0)));
      h.push_back(std::make_unique<Numbers>(s.dtype, n, shift(1)));
      grad.push_back(std::make_unique<Numbers>(s.dtype, n, shift(2)));
      out.push_back(std::make_unique<Numbers>(s.dtype, n, shift(2)));
      g[k]->draw(random);
      h[k]->draw(random);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t sample = i / size;
        const double norm = batch >= 3 && sample == 1 ? 0 : 0.5 + (sample + 1) % 3;
        const auto elements = static_cast<double>(s.per_tensor ? size : total);
        g[k]->set(i, (*g[k])[i] * norm / std::sqrt(elements) / scale());
      }
      list.push_back({g[k]->data, nullptr, nullptr, size});
    }
  }

  double scale() const { return s.scaled ? inv_scale[0] : 1; }

  gp::Penalty penalty() const {
    return {s.dtype,
            s.reduction,
            s.one_sided,
            s.per_tensor,
            s.center,
            0.7,
            s.threads,
            batch,
            count,
            list.data(),
            s.weighted ? sample_weight.data : nullptr,
            s.scaled ? inv_scale.data : nullptr};
  }

  std::vector<const Numbers*> results() const {
    std::vector<const Numbers*> all = {&norms, &values, &d_weight, &d_seed, &d_weight_again};
    for (const List* each : {&grad, &out})
      for (const auto& x : *each) all.push_back(x.get());
    return all;
  }

  std::string name;
  Settings s;
  int64_t batch, count;
  DType wide;
  std::vector<gp::Gradient> list;
  List g, h, grad, out;
  Numbers sample_weight, inv_scale, norms, values, seed, e, d_weight, d_seed, d_weight_again;
};

// The functions of one backend; messages are null, or what went wrong.
struct Launchers {
  std::function<const char*(const gp::Forward&)> forward;
  std::function<const char*(const gp::Backward&)> backward;
  std::function<const char*(const gp::DoubleBackward&)> double_backward;
};

inline std::unique_ptr<Case> run(const Launchers& launchers, const Shape& shape,
                                 const Settings& s) {
  auto c = std::make_unique<Case>(shape, s);
  good(launchers.forward({c->penalty(), c->norms.data, c->values.data}));
  for (int64_t k = 0; k < c->count; ++k) c->list[k].out = c->grad[k]->data;
  good(launchers.backward(
      {c->penalty(), c->norms.data, c->seed.data, s.weighted ? c->d_weight.data : nullptr}));
  for (int64_t k = 0; k < c->count; ++k) {
    c->list[k].h = c->h[k]->data;
    c->list[k].out = c->out[k]->data;
  }
  good(launchers.double_backward({c->penalty(), c->norms.data, c->seed.data,
                                  s.with_e ? c->e.data : nullptr, c->d_seed.data,
                                  s.weighted ? c->d_weight_again.data : nullptr}));
  return c;
}

// Sums over the elements of a sample of gradient k.
inline double inner(const Case& c, const List& a, const List& b, int64_t k, int64_t sample) {
  const int64_t size = a[k]->n / c.batch;
  double sum = 0;
  for (int64_t i = sample * size; i < (sample + 1) * size; ++i) sum += (*a[k])[i] * (*b[k])[i];
  return sum;
}

// `c` against the plain loops: the derivatives of L = <h, grad> + <e, d_weight>, sample by sample.
inline void check(const Case& c, const std::string& where) {
  const Settings& s = c.s;
  const std::string what = where + ", " + c.name + ", ";
  const int64_t rows = s.per_tensor ? c.count : 1;
  const bool none = s.reduction == Reduction::kNone;
  const double scale = c.scale(),
               factor = 0.7 / (s.reduction == Reduction::kMean ? double(c.batch) : 1.0);
  Vector norms, values(c.values.n), d_weight(c.batch), d_seed(c.values.n), d_weight_again(c.batch);
  std::vector<Vector> grad, out;
  for (int64_t k = 0; k < c.count; ++k) {
    grad.emplace_back(c.g[k]->n);
    out.emplace_back(c.g[k]->n);
  }
  double terms_seed = 0, terms_weight = 0, terms_out = 0;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < c.batch; ++i) {
      const int64_t first = s.per_tensor ? row : 0, last = s.per_tensor ? row + 1 : c.count;
      double square = 0, t = 0, h_square = 0;
      for (int64_t k = first; k < last; ++k) {
        square += inner(c, c.g, c.g, k, i);
        t += inner(c, c.h, c.g, k, i);
        h_square += inner(c, c.h, c.h, k, i);
      }
      const double g_norm = std::sqrt(square), h_norm = std::sqrt(h_square), n = scale * g_norm;
      const bool off = s.one_sided && n < s.center;
      const double distance = off ? 0 : n - s.center, phi = distance * distance;
      // phi' / ||g|| and its derivative by ||g||, over ||g||; at 0, that of a square if it is one.
      double slope = s.center == 0 ? 2 * scale : 0, curve = 0;
      if (g_norm > 0) {
        slope = 2 * distance / g_norm;
        curve = ((off ? 0 : 2 * scale) - slope) / square;
      }
      const int64_t value = none ? row * c.batch + i : row;
      const double w = s.weighted ? c.sample_weight[i] : 1, e = s.with_e ? c.e[i] : 0;
      const double seeded = c.seed[value] * factor;
      norms.push_back(n);
      values[value] += factor * w * phi;
      d_weight[i] += seeded * phi;
      d_seed[value] += factor * (w * scale * slope * t + e * phi);
      d_weight_again[i] += seeded * scale * slope * t;
      const double from_h = seeded * w * scale * slope;
      const double from_g = seeded * scale * (w * curve * t + e * slope);
      for (int64_t k = first; k < last; ++k) {
        const int64_t size = c.g[k]->n / c.batch;
        for (int64_t j = i * size; j < (i + 1) * size; ++j) {
          grad[k][j] = from_h * (*c.g[k])[j];
          out[k][j] = from_h * (*c.h[k])[j] + from_g * (*c.g[k])[j];
        }
      }
      // What cancels where distances are small, signs differ, or h is along g.
      const double steep = 2 * scale * (g_norm > 0 && !off ? 1 + s.center / n : 1);
      terms_seed += std::abs(factor) * (std::abs(w) * scale * steep * h_norm * g_norm +
                                        std::abs(e) * (1 + n) * (1 + n));
      terms_weight += std::abs(seeded) * (scale * steep * h_norm * g_norm + (1 + n) * (1 + n));
      terms_out = std::max(terms_out, std::abs(seeded) * scale * steep *
                                          (std::abs(w) * 3 * h_norm + std::abs(e) * g_norm));
    }
  near(c.norms, norms, what + "norms");
  near(c.values, values, what + "values", terms_seed);
  near(c.d_seed, d_seed, what + "d_seed", terms_seed);
  for (int64_t k = 0; k < c.count; ++k) {
    const std::string of = what + "gradient " + std::to_string(k);
    near(*c.grad[k], grad[k], of + " of backward", terms_out);
    near(*c.out[k], out[k], of + " of double_backward", terms_out);
  }
  if (!s.weighted) return;
  near(c.d_weight, d_weight, what + "d_sample_weight", terms_weight);
  near(c.d_weight_again, d_weight_again, what + "d_sample_weight again", terms_weight);
}

// `why`: what results must not depend on.
inline void same(const Case& a, const Case& b, const std::string& where, const char* why) {
  const auto first = a.results(), second = b.results();
  for (size_t k = 0; k < first.size(); ++k)
    CHECK(first[k]->same(*second[k]), "%s, %s: result %zu depends on %s", where.c_str(),
          a.name.c_str(), k, why);
}

// Every profile for every dtype, with and without its other inputs; `f(settings, name)`.
template <class F>
void for_each_settings(F&& f) {
  std::mt19937 random(3);
  for (const DType dtype : kDTypes)
    for (const bool shifted : {false, true})
      for (const bool per_tensor : {false, true})
        for (const auto& [center, one_sided] : {std::pair{0.0, false}, {1.0, false}, {1.0, true}}) {
          const auto drawn = random();
          Settings s = {dtype, {}, one_sided, per_tensor, center, {}, {}, {}, shifted};
          s.reduction = static_cast<Reduction>(drawn % 3);
          s.weighted = drawn >> 16 & 1;
          s.scaled = drawn >> 17 & 1;
          s.with_e = s.weighted && (drawn >> 18 & 3);
          f(s, std::string(kNames[static_cast<int>(dtype)]) + (shifted ? ", shifted" : "") +
                   (per_tensor ? ", per tensor" : "") + (one_sided ? ", one-sided" : "") +
                   ", center " + std::to_string(center) + ", reduction " +
                   std::to_string(drawn % 3) + (s.weighted ? ", weighted" : "") +
                   (s.scaled ? ", scaled" : "") + (s.with_e ? ", e" : ""));
        }
}

}  // namespace cases
