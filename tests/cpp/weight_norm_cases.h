// What the tests of weight normalization share, on the CPU and on the emulator: plain loops in double, and
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
#include "weight_norm.h"

namespace cases {

namespace wn = gankernels::weight_norm;

struct Shape {
  int64_t rows, size;
};
using Shapes = std::vector<Shape>;

struct Settings {
  DType dtype;
  bool with_e;
  bool shifted;      // data begin anywhere
  double scale = 1;  // of v and g
  int threads = 1;
};

using List = std::vector<std::unique_ptr<Numbers>>;

// Weights and the results of the three launchers.
struct Case {
  Case(const Shapes& shapes, const Settings& s) : s(s), shapes(shapes) {
    std::mt19937 random(7);
    const DType wide = accumulation(s.dtype);
    const auto count = static_cast<int64_t>(shapes.size());
    for (int64_t k = 0; k < count; ++k) {
      const auto [rows, size] = shapes[k];
      // One pointer at a time: vectors need all of them aligned.
      const auto add = [&](List& to, DType dtype, int64_t n, int which) {
        to.push_back(
            std::make_unique<Numbers>(dtype, n, s.shifted && k % 6 == which ? 1 + 2 * which : 0));
      };
      add(v, s.dtype, rows * size, 0), add(x, s.dtype, rows * size, 1);
      add(h, s.dtype, rows * size, 2), add(w, s.dtype, rows * size, 3);
      add(grad, s.dtype, rows * size, 4), add(d_x, s.dtype, rows * size, 4);
      add(d_v, s.dtype, rows * size, 5);
      for (List* list : {&g, &e, &d_g, &d_g_again}) add(*list, s.dtype, rows, 0);
      add(norms, wide, rows, 0);
      for (List* list : {&v, &x, &h, &g, &e}) list->back()->draw(random);
      for (int64_t i = 0; i < v[k]->n; ++i) v[k]->set(i, (*v[k])[i] * s.scale);
      for (int64_t r = 0; r < rows; ++r) {
        const double sign = (*g[k])[r] < 0 ? -1 : 1;
        g[k]->set(r, ((*g[k])[r] + sign) * s.scale);
        // A direction has some length.
        const int64_t i = r * size + r % size;
        v[k]->set(i, (*v[k])[i] + ((*v[k])[i] < 0 ? -1 : 1) * s.scale);
      }
      list.push_back({rows, size, v[k]->data, g[k]->data, norms[k]->data});
    }
  }

  wn::Weights weights() const {
    return {s.dtype, s.threads, static_cast<int64_t>(list.size()), list.data()};
  }

  std::vector<const Numbers*> results() const {
    std::vector<const Numbers*> all;
    for (const List* each : {&norms, &w, &grad, &d_g, &d_x, &d_v, &d_g_again})
      for (const auto& one : *each) all.push_back(one.get());
    return all;
  }

  Settings s;
  Shapes shapes;
  std::vector<wn::Weight> list;
  List v, g, x, h, e, norms, w, grad, d_g, d_x, d_v, d_g_again;
};

// The functions of one backend; messages are null, or what went wrong.
struct Launchers {
  std::function<const char*(const wn::Forward&)> forward;
  std::function<const char*(const wn::Backward&)> backward;
  std::function<const char*(const wn::DoubleBackward&)> double_backward;
};

inline std::unique_ptr<Case> run(const Launchers& launchers, const Shapes& shapes,
                                 const Settings& s) {
  auto c = std::make_unique<Case>(shapes, s);
  const size_t count = shapes.size();
  for (size_t k = 0; k < count; ++k) c->list[k].out = c->w[k]->data;
  good(launchers.forward({c->weights()}));
  for (size_t k = 0; k < count; ++k) {
    c->list[k].x = c->x[k]->data;
    c->list[k].out = c->grad[k]->data, c->list[k].d_g = c->d_g[k]->data;
  }
  good(launchers.backward({c->weights()}));
  for (size_t k = 0; k < count; ++k) {
    c->list[k].h = c->h[k]->data, c->list[k].e = s.with_e ? c->e[k]->data : nullptr;
    c->list[k].out = c->d_x[k]->data, c->list[k].d_v = c->d_v[k]->data;
    c->list[k].d_g = c->d_g_again[k]->data;
  }
  good(launchers.double_backward({c->weights()}));
  return c;
}

// `c` against the plain loops: L = <h, a (x - t q)> + e t, with a = g / n, q = v / n, t = <x, q>.
inline void check(const Case& c, const std::string& where) {
  for (size_t k = 0; k < c.shapes.size(); ++k) {
    const auto [rows, size] = c.shapes[k];
    const int64_t n = rows * size;
    Vector norms(rows), w(n), grad(n), d_g(rows), d_x(n), d_v(n), d_g_again(rows);
    double terms = 0, terms_of_v = 0, terms_of_g = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t begin = r * size, end = begin + size;
      double square = 0, xv = 0, hv = 0, hx = 0, xx = 0, hh = 0;
      for (int64_t j = begin; j < end; ++j) {
        const double v = (*c.v[k])[j] / c.s.scale, x = (*c.x[k])[j], h = (*c.h[k])[j];
        square += v * v, xv += x * v, hv += h * v, hx += h * x, xx += x * x, hh += h * h;
      }
      // Everything for v / scale and g / scale, whose powers come at the end.
      const double s = c.s.scale, norm = std::sqrt(square), g = (*c.g[k])[r] / s;
      const double e = c.s.with_e ? (*c.e[k])[r] : 0, a = g / norm, t = xv / norm, u = hv / norm;
      norms[r] = norm * s;
      d_g[r] = t;
      d_g_again[r] = (hx - u * t) / norm / s;
      for (int64_t j = begin; j < end; ++j) {
        const double q = (*c.v[k])[j] / s / norm, x = (*c.x[k])[j], h = (*c.h[k])[j];
        w[j] = g * q * s;
        grad[j] = a * (x - t * q);
        d_x[j] = a * h + (e - a * u) * q;
        d_v[j] = ((e - a * u) * x - a * t * h + (a * (3 * u * t - hx) - e * t) * q) / norm / s;
      }
      // What cancels where x or h are along v, as those of one element are.
      const double lengths = std::sqrt(xx) + std::sqrt(hh);
      terms = std::max(terms, std::abs(a) * lengths + std::abs(e));
      terms_of_g = std::max(terms_of_g, std::sqrt(xx * hh) / norm / s);
      terms_of_v =
          std::max(terms_of_v,
                   (3 * std::abs(a) * std::sqrt(xx * hh) + std::abs(e) * std::sqrt(xx)) / norm / s);
    }
    const std::string of = where + ", weight " + std::to_string(k) + ", ";
    near(*c.norms[k], norms, of + "norms");
    near(*c.w[k], w, of + "weight");
    near(*c.grad[k], grad, of + "gradient of v", terms);
    near(*c.d_g[k], d_g, of + "gradient of g", terms);
    near(*c.d_x[k], d_x, of + "gradient of x", terms);
    near(*c.d_v[k], d_v, of + "gradient of v again", terms_of_v);
    near(*c.d_g_again[k], d_g_again, of + "gradient of g again", terms_of_g);
  }
}

// `why`: what results must not depend on.
inline void same(const Case& a, const Case& b, const std::string& where, const char* why) {
  const auto first = a.results(), second = b.results();
  for (size_t k = 0; k < first.size(); ++k)
    CHECK(first[k]->same(*second[k]), "%s: result %zu depends on %s", where.c_str(), k, why);
}

// Every dtype, aligned or not, with e and without; `f(settings, name)`.
template <class F>
void for_each_settings(F&& f) {
  for (const DType dtype : kDTypes)
    for (const bool shifted : {false, true})
      for (const bool with_e : {false, true})
        f(Settings{dtype, with_e, shifted}, std::string(kNames[static_cast<int>(dtype)]) +
                                                (shifted ? ", shifted" : "") +
                                                (with_e ? ", e" : ""));
}

}  // namespace cases
