// What the tests of spectral normalization share, on the CPU and on the emulator: layouts, plain loops
// in double, and one call of every launcher.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cases.h"
#include "spectral_norm.h"

namespace cases {

namespace sn = gankernels::spectral_norm;
using gankernels::Matrix;

// --- layouts ---------------------------------------------------------------------------------------

struct Layout {
  const char* name;
  int64_t outer, rows, inner;
  std::vector<int64_t> column_size, column_stride;
};

inline Matrix matrix(const Layout& layout, const Numbers& numbers) {
  Matrix m{numbers.data, layout.outer, layout.rows, layout.inner, 0, {}, {}};
  m.column_dims = static_cast<int>(layout.column_size.size());
  for (int d = 0; d < m.column_dims; ++d) {
    m.column_size[d] = layout.column_size[d];
    m.column_stride[d] = layout.column_stride[d];
  }
  return m;
}

inline int64_t size(const Layout& layout) {
  return layout.outer * layout.rows * layout.inner;
}
inline int64_t cols(const Layout& layout) {
  return layout.outer * layout.inner;
}

// Calls f(row, logical column, where in memory): written apart from for_each_column.
template <class F>
void for_each_element(const Layout& layout, F&& f) {
  const auto dims = static_cast<int>(layout.column_size.size());
  for (int64_t c = 0; c < cols(layout); ++c) {
    int64_t memory = c, rest = c;
    if (dims > 0) memory = 0;
    for (int d = dims - 1; d >= 0; --d) {
      memory += rest % layout.column_size[d] * layout.column_stride[d];
      rest /= layout.column_size[d];
    }
    const int64_t o = memory / layout.inner, i = memory % layout.inner;
    for (int64_t r = 0; r < layout.rows; ++r) f(r, c, (o * layout.rows + r) * layout.inner + i);
  }
}

inline void normalize(Vector& x, double eps) {
  const double divisor = std::max(norm(x), eps);
  for (double& e : x) e /= divisor;
}

// u . (M v), for a tensor laid out as W.
inline double bilinear(const Layout& layout, const Vector& m, const Vector& u, const Vector& v) {
  double sum = 0;
  for_each_element(layout, [&](int64_t r, int64_t c, int64_t at) { sum += u[r] * m[at] * v[c]; });
  return sum;
}

inline double iterate(const Layout& layout, const Vector& w, int n, bool u_first, Vector& u,
                      Vector& v) {
  const auto move_u = [&] {
    std::fill(u.begin(), u.end(), 0);
    for_each_element(layout, [&](int64_t r, int64_t c, int64_t at) { u[r] += w[at] * v[c]; });
    normalize(u, 1e-12);
  };
  const auto move_v = [&] {
    std::fill(v.begin(), v.end(), 0);
    for_each_element(layout, [&](int64_t r, int64_t c, int64_t at) { v[c] += w[at] * u[r]; });
    normalize(v, 1e-12);
  };
  for (int step = 0; step < n; ++step) {
    u_first ? move_u() : move_v();
    u_first ? move_v() : move_u();
  }
  return bilinear(layout, w, u, v);
}

// --- one call of every launcher ----------------------------------------------------------------

struct Settings {
  DType dtype;
  int n;
  bool u_first;
  double max_norm;
  int threads;
  bool shifted = true;  // data begin anywhere
  bool known = false;   // normalize is given sigma
  bool seeded = true;   // sigma has a cotangent
  bool guarded = false;
  bool with_out = true;
  bool wide_vectors = false;  // u and v are of what is accumulated in
};

// A weight, its vectors, and the results of the four launchers.
struct Case {
  Case(const Layout& layout, const Settings& s, std::mt19937& random)
      : layout(layout),
        wide(accumulation(s.dtype)),
        w(s.dtype, size(layout), s.shifted ? 3 : 0),
        g(s.dtype, size(layout), s.shifted ? 1 : 0),
        h(s.dtype, size(layout)),
        u(s.wide_vectors ? wide : s.dtype, layout.rows),
        v(s.wide_vectors ? wide : s.dtype, cols(layout)),
        seed(wide, 1),
        u_out(wide, sn::packed_size(u.n)),
        v_out(wide, sn::packed_size(v.n)),
        sigma(wide, 1),
        out(s.dtype, w.n, s.shifted ? 1 : 0),
        sigma_again(wide, 1),
        out_again(s.dtype, w.n),
        grad(s.dtype, w.n, s.shifted ? 5 : 0),
        d_g(s.dtype, w.n),
        d_w(s.dtype, w.n),
        d_seed(wide, 1) {
    for (Numbers* x : {&w, &g, &h, &u, &v, &seed}) x->draw(random);
  }

  std::vector<const Numbers*> results() const {
    return {&u,           &v,         &u_out, &v_out, &sigma, &out,
            &sigma_again, &out_again, &grad,  &d_g,   &d_w,   &d_seed};
  }

  Layout layout;
  DType wide;
  int64_t skipped = 5;
  Numbers w, g, h, u, v, seed;
  Numbers u_out, v_out, sigma, out, sigma_again, out_again, grad, d_g, d_w, d_seed;
};
using Cases = std::vector<std::unique_ptr<Case>>;

// The functions of one backend; messages are null, or what went wrong.
struct Launchers {
  std::function<const char*(const sn::PowerIteration&)> power_iteration;
  std::function<const char*(const sn::Normalize&)> normalize;
  std::function<const char*(const sn::Backward&)> backward;
  std::function<const char*(const sn::DoubleBackward&)> double_backward;
};

inline sn::PowerIterationLayer iteration_layer(Case& c, const Settings& s) {
  return {matrix(c.layout, c.w),
          c.u.data,
          c.v.data,
          c.u_out.data,
          c.v_out.data,
          s.guarded ? &c.skipped : nullptr,
          s.with_out ? c.out.data : nullptr};
}

// One power iteration of all of `all`, which share the results of args.
inline void run_iteration(const Launchers& launchers, const Cases& all, const Settings& s) {
  std::vector<sn::PowerIterationLayer> layers;
  for (const auto& c : all) layers.push_back(iteration_layer(*c, s));
  const auto count = static_cast<int64_t>(all.size());
  const DType wide = accumulation(s.dtype);
  Numbers sigma(wide, sn::packed_size(count)), copy(wide, count);
  good(launchers.power_iteration({s.dtype, s.wide_vectors, s.n, 1e-12, s.u_first, s.max_norm,
                                  s.threads, count, layers.data(), sigma.data,
                                  s.with_out ? copy.data : nullptr}));
  for (int64_t i = 0; i < sigma.n; ++i)
    if (i >= count)
      CHECK(sigma[i] == 0, "sigma is %g at %ld, where it is filled up", sigma[i], long(i));
    else
      std::memcpy(all[i]->sigma.data, sigma.data + i * item_size(wide), item_size(wide));
  if (s.with_out)
    CHECK(std::memcmp(sigma.data, copy.data, count * item_size(wide)) == 0, "copy of sigma");
}

inline Cases run(const Launchers& launchers, const std::vector<Layout>& layouts,
                 const Settings& s) {
  std::mt19937 random(7);
  Cases all;
  for (const Layout& layout : layouts) all.push_back(std::make_unique<Case>(layout, s, random));
  run_iteration(launchers, all, s);
  std::vector<sn::NormalizeLayer> normalize;
  std::vector<sn::BackwardLayer> backward;
  std::vector<sn::DoubleBackwardLayer> twice;
  for (const auto& each : all) {
    Case& c = *each;
    const Matrix w = matrix(c.layout, c.w);
    normalize.push_back({w, c.u_out.data, c.v_out.data, s.known ? c.sigma.data : nullptr,
                         c.sigma_again.data, c.out_again.data});
    backward.push_back({w, c.g.data, c.u_out.data, c.v_out.data, c.sigma.data,
                        s.seeded ? c.seed.data : nullptr, c.grad.data});
    twice.push_back({w, c.h.data, c.g.data, c.u_out.data, c.v_out.data, c.sigma.data, c.d_g.data,
                     c.d_w.data, c.d_seed.data});
  }
  const auto count = static_cast<int64_t>(all.size());
  good(launchers.normalize({s.dtype, s.max_norm, s.threads, count, normalize.data()}));
  good(launchers.backward({s.dtype, s.max_norm, s.threads, count, backward.data()}));
  good(launchers.double_backward({s.dtype, s.max_norm, s.threads, count, twice.data()}));
  return all;
}

inline void check(const Case& c, const Settings& s, Vector u, Vector v, const std::string& where) {
  const std::string what = where + ", " + c.layout.name + ", ";
  const Vector w = values(c.w), g = values(c.g), h = values(c.h);
  const double sigma = iterate(c.layout, w, s.n, s.u_first, u, v);
  near(c.sigma, {sigma}, what + "sigma");
  near(c.sigma_again, {sigma}, what + "sigma of normalize");
  near(c.u_out, u, what + "u");
  near(c.v_out, v, what + "v");
  near(c.u, u, what + "u in place");
  near(c.v, v, what + "v in place");

  const bool identity = s.max_norm > 0 && sigma <= s.max_norm;
  const double factor = s.max_norm > 0 ? s.max_norm : 1;
  const double scale = identity ? 1 : factor / sigma;
  const double slope = identity ? 0 : factor / (sigma * sigma);
  const double curve = identity ? 0 : 2 * factor / (sigma * sigma * sigma);
  const double gw = inner(g, w), hg = inner(h, g), uhv = bilinear(c.layout, h, u, v),
               seed = s.seeded ? c.seed[0] : 0;
  Vector out(w.size()), grad(w.size()), d_g(w.size()), d_w(w.size());
  for_each_element(c.layout, [&](int64_t row, int64_t col, int64_t at) {
    const double outer = u[row] * v[col];
    out[at] = scale * w[at];
    grad[at] = scale * g[at] + (seed - slope * gw) * outer;
    d_g[at] = scale * h[at] - slope * uhv * w[at];
    d_w[at] = -slope * uhv * g[at] + (curve * uhv * gw - slope * hg) * outer;
  });
  if (s.with_out) near(c.out, out, what + "output");
  CHECK(c.skipped == 5, "%sskipped: %ld", what.c_str(), long(c.skipped));
  near(c.out_again, out, what + "output of normalize");
  // Where one number is all there is, the terms of a derivative cancel to nothing.
  const double w_norm = norm(w), g_norm = norm(g), h_norm = norm(h);
  near(c.grad, grad, what + "gradient", scale * g_norm + slope * g_norm * w_norm + std::abs(seed));
  near(c.d_g, d_g, what + "d_g", scale * h_norm + slope * h_norm * w_norm);
  near(c.d_w, d_w, what + "d_w", h_norm * g_norm * (slope + curve * w_norm));
  near(c.d_seed, {uhv}, what + "d_grad_sigma", h_norm);
}

// `why`: what results must not depend on.
inline void same(const Cases& a, const Cases& b, const std::string& where, const char* why) {
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t k = 0; k < a[i]->results().size(); ++k)
      CHECK(a[i]->results()[k]->same(*b[i]->results()[k]), "%s, %s: result %zu depends on %s",
            where.c_str(), a[i]->layout.name, k, why);
}

// `all`, run with `s`, against the plain loops.
inline void check_all(const Cases& all, const std::vector<Layout>& layouts, const Settings& s,
                      const std::string& where) {
  std::mt19937 random(7);
  for (size_t i = 0; i < layouts.size(); ++i) {
    const Case before(layouts[i], s, random);
    check(*all[i], s, values(before.u), values(before.v), where);
  }
}

// A weight that has no norm, next to one that has: it is left as it is, and counted. Without the guard
// a weight of zeros has vectors of zeros.
inline void check_guard(const Launchers& launchers, DType dtype) {
  const Layout layout = {"guarded", 1, 3, 4, {}, {}};
  for (const double poison : {0.0, std::nan(""), static_cast<double>(INFINITY)})
    for (const bool u_first : {false, true})
      for (const bool guarded : {true, false}) {
        if (!guarded && poison != 0) continue;
        Settings s = {dtype, 2, u_first, 0, 2};
        s.guarded = guarded;
        std::mt19937 random(1);
        Cases all;
        for (int i = 0; i < 2; ++i) all.push_back(std::make_unique<Case>(layout, s, random));
        const Case &fine = *all[0], &bad = *all[1];
        for (int64_t i = 0; i < bad.w.n; ++i)
          if (poison == 0) all[1]->w.set(i, 0);
        all[1]->w.set(5, poison);
        Vector u = values(bad.u), v = values(bad.v);
        double sigma = 1;
        if (!guarded) u.assign(3, 0), v.assign(4, 0), sigma = 0;
        run_iteration(launchers, all, s);
        CHECK(fine.skipped == 5 && bad.skipped == 5 + guarded, "poison %g", poison);
        CHECK(values(bad.u) == u && values(bad.v) == v, "poison %g", poison);
        u.resize(bad.u_out.n);
        v.resize(bad.v_out.n);
        CHECK(values(bad.u_out) == u && values(bad.v_out) == v, "poison %g", poison);
        CHECK(bad.sigma[0] == sigma && fine.sigma[0] > 0, "poison %g", poison);
        if (guarded && poison == 0) CHECK(bad.out[1] == 0, "poison %g", poison);
      }
}

// Of `count` guarded layers every other one has lost its u and v, which start again; the others go on from
// theirs.
inline void check_recovery(const Launchers& launchers, DType dtype, int count = 1) {
  const Layout layout = {"recovering", 1, 3, 4, {}, {}};
  for (const double lost : {0.0, std::nan("")})
    for (const bool u_first : {false, true}) {
      Settings s = {dtype, 3, u_first, 0, 2};
      s.guarded = true;
      std::mt19937 random(1);
      Cases all;
      std::vector<Vector> us, vs;  // where they start, then where they must have come
      for (int k = 0; k < count; ++k) {
        all.push_back(std::make_unique<Case>(layout, s, random));
        Case& c = *all[k];
        us.push_back(values(c.u)), vs.push_back(values(c.v));
        if (k % 2 == 1) continue;
        for (const auto& [x, start] : {std::pair{&c.u, &us[k]}, {&c.v, &vs[k]}})
          for (int64_t i = 0; i < x->n; ++i) {
            (*start)[i] = sn::start_of(i);
            if (lost == 0 || i == 1) x->set(i, lost);  // of NaN one is enough
          }
      }
      run_iteration(launchers, all, s);
      const double bound = 4 * tolerance(dtype);  // in their dtype starts are rounded, too
      for (int k = 0; k < count; ++k) {
        const Case& c = *all[k];
        const std::string what = "lost " + std::to_string(lost) + ", layer " + std::to_string(k) +
                                 " of " + std::to_string(count) + ", ";
        const double sigma = iterate(layout, values(c.w), s.n, u_first, us[k], vs[k]);
        CHECK(c.skipped == 5, "%sskipped: %ld", what.c_str(), long(c.skipped));
        CHECK(std::abs(c.sigma[0] / sigma - 1) <= bound, "%ssigma: %g, not %g", what.c_str(),
              c.sigma[0], sigma);
        for (const auto& [x, right] : {std::pair{&c.u, &us[k]}, {&c.v, &vs[k]}})
          for (int64_t i = 0; i < x->n; ++i)
            CHECK(std::abs((*x)[i] - (*right)[i]) <= bound, "%sa vector: %g at %ld, not %g",
                  what.c_str(), (*x)[i], long(i), (*right)[i]);
      }
    }
}

// Of `count` layers every other one is of zeros: with the guard, a computed sigma of zero is 1.
inline void check_sigma_guard(const Launchers& launchers, DType dtype, int count = 1) {
  const Layout layout = {"zeros", 1, 3, 4, {}, {}};
  const Settings s = {dtype, 1, true, 0, 2};
  std::mt19937 random(1);
  Cases all;
  std::vector<sn::NormalizeLayer> layers;
  for (int k = 0; k < count; ++k) {
    all.push_back(std::make_unique<Case>(layout, s, random));
    Case& c = *all[k];
    for (int64_t i = 0; k % 2 == 0 && i < c.w.n; ++i) c.w.set(i, 0);
    c.u_out.draw(random), c.v_out.draw(random);
    layers.push_back({matrix(layout, c.w), c.u_out.data, c.v_out.data, nullptr, c.sigma_again.data,
                      c.out_again.data});
  }
  good(launchers.normalize({s.dtype, s.max_norm, s.threads, count, layers.data(), true}));
  for (int k = 0; k < count; ++k) {
    const Case& c = *all[k];
    const std::string what = "layer " + std::to_string(k) + " of " + std::to_string(count) + ", ";
    Vector w = values(c.w);
    const double sigma = k % 2 == 0 ? 1 : bilinear(layout, w, values(c.u_out), values(c.v_out));
    near(c.sigma_again, {sigma}, what + "sigma");
    for (double& x : w) x /= sigma;
    near(c.out_again, w, what + "output");
  }
}

}  // namespace cases
