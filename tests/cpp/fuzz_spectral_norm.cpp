// Fuzzes the CPU kernels of spectral normalization: any number of weights of any dense layout, each pass
// by itself, against plain loops in double over the strides of the tensor.
#include <cmath>
#include <string>
#include <vector>

#include "fuzz.h"
#include "spectral_norm.h"

namespace {

using namespace fuzz;
namespace sn = gankernels::spectral_norm;
using gankernels::Matrix;

// --- weights ---------------------------------------------------------------------------------------

// A dense tensor whose first dimension are the rows; memory in any order of the dimensions.
struct Shape {
  std::vector<int64_t> size, stride;  // rows, then the columns' dimensions
  int64_t rows, cols;
  std::vector<int64_t> column;  // where a logical column begins
  Matrix matrix;

  int64_t elements() const { return rows * cols; }
  int64_t at(int64_t r, int64_t c) const { return column[c] + r * stride[0]; }
};

// What the contract says of a tensor: w[outer][rows][inner], and how columns are numbered in memory.
Matrix matrix_of(const Shape& shape, const std::vector<int>& order, bool always_listed) {
  Matrix m{nullptr, 1, shape.rows, 1, 0, {}, {}};
  bool row_seen = false;
  for (const int d : order)
    if (d == 0)
      row_seen = true;
    else
      (row_seen ? m.inner : m.outer) *= shape.size[d];
  bool sorted = true;
  int last = 0;
  for (const int d : order) {
    if (d == 0 || shape.size[d] == 1) continue;
    sorted &= d > last;
    last = d;
  }
  if (sorted && !always_listed) return m;
  m.column_dims = static_cast<int>(shape.size.size()) - 1;
  for (int d = 1; d <= m.column_dims; ++d) {
    m.column_size[d - 1] = shape.size[d];
    const bool outside = shape.stride[d] > shape.stride[0] ||
                         (shape.stride[d] == shape.stride[0] && shape.rows == 1);
    m.column_stride[d - 1] = outside ? shape.stride[d] / shape.rows : shape.stride[d];
  }
  return m;
}

Shape draw_shape(Random& random, int64_t budget) {
  Shape s;
  if (random.chance(0.5)) {  // a whole that is a special number
    const int64_t total = random.size(budget);
    s.rows = random.divisor(total), s.cols = total / s.rows;
  } else {
    s.rows = random.size(std::max<int64_t>(1, budget / random.integer(1, 64)));
    s.cols = random.size(std::max<int64_t>(1, budget / s.rows));
    if (random.chance(0.5)) std::swap(s.rows, s.cols);
  }
  s.size = {s.rows};
  int64_t rest = s.cols;
  const int64_t dims = random.chance(0.4) ? 1 : random.integer(1, 6);
  for (int64_t d = 1; d < dims; ++d) {
    s.size.push_back(random.divisor(rest));
    rest /= s.size.back();
  }
  s.size.push_back(rest);
  if (random.chance(0.3)) std::swap(s.size[1], s.size.back());

  std::vector<int> order(s.size.size());  // of memory, the slowest first
  for (size_t d = 0; d < order.size(); ++d) order[d] = static_cast<int>(d);
  switch (random.integer(0, 3)) {
    case 0:  // contiguous
      break;
    case 1:  // the rows anywhere, as transposed layers have them
      order.erase(order.begin());
      order.insert(order.begin() + random.integer(0, static_cast<int64_t>(order.size())), 0);
      break;
    default:
      random.shuffle(order);
  }
  s.stride.resize(s.size.size());
  int64_t stride = 1;
  for (size_t k = order.size(); k-- > 0; stride *= s.size[order[k]]) s.stride[order[k]] = stride;

  s.column.resize(s.cols);
  for (int64_t c = 0; c < s.cols; ++c) {
    int64_t left = c;
    for (size_t d = s.size.size(); d-- > 1; left /= s.size[d])
      s.column[c] += left % s.size[d] * s.stride[d];
  }
  s.matrix = matrix_of(s, order, random.chance(0.2));
  say("\n  w");
  for (size_t d = 0; d < s.size.size(); ++d) say("%s%ld", d ? ", " : " (", long(s.size[d]));
  for (size_t d = 0; d < s.size.size(); ++d)
    say("%s%ld", d ? ", " : ") strides (", long(s.stride[d]));
  say("), w[%ld][%ld][%ld]", long(s.matrix.outer), long(s.matrix.rows), long(s.matrix.inner));
  return s;
}

double squares(const Vector& x) {
  return inner(x, x);
}

// y = M x or M^T x, for numbers laid out as the shape.
Vector product(const Shape& s, const Vector& m, const Vector& x) {
  Vector y(s.rows);
  for (int64_t c = 0; c < s.cols; ++c)
    for (int64_t r = 0; r < s.rows; ++r) y[r] += m[s.at(r, c)] * x[c];
  return y;
}
Vector transposed_product(const Shape& s, const Vector& m, const Vector& x) {
  Vector y(s.cols);
  for (int64_t c = 0; c < s.cols; ++c)
    for (int64_t r = 0; r < s.rows; ++r) y[c] += m[s.at(r, c)] * x[r];
  return y;
}

// --- a case ----------------------------------------------------------------------------------------

struct Options {
  DType dtype;
  double max_norm, scale;
  int threads;
  DType wide() const { return accumulation(dtype); }
};

struct Scaling {
  double scale, slope, curve;
};
// The numbers of min(1, c / sigma), or of 1 / sigma.
Scaling scaling(double sigma, double max_norm) {
  if (max_norm > 0 && sigma <= max_norm) return {1, 0, 0};
  const double c = max_norm > 0 ? max_norm : 1;
  return {c / sigma, c / sigma / sigma, 2 * c / sigma / sigma / sigma};
}

// Rounding errors of a sum of n products, in units of the accumulation's.
double roundings(int64_t n) {
  return 16 + std::sqrt(static_cast<double>(n));
}

struct Layer {
  Shape shape;
  Block w, g, h, u, v, sigma, seed;
  std::vector<Block> outputs;
  int64_t skipped = 3;
};

// Runs `call(threads)`, which fills the outputs of all layers, on one thread and on several.
template <class Call>
void call_twice(const Options& o, std::vector<Layer>& layers, std::vector<Block>& more,
                const std::vector<Memory*>& moved, Call&& call) {
  std::vector<Memory*> all = moved;
  for (Layer& layer : layers)
    for (Block& x : layer.outputs) all.push_back(x.get());
  for (Block& x : more) all.push_back(x.get());
  std::vector<std::vector<char>> before, single;
  for (const Memory* x : all) before.push_back(x->contents());
  for (const int threads : {1, o.threads}) {
    if (threads == 1 && !single.empty()) break;
    for (size_t k = 0; k < all.size(); ++k) {
      if (!single.empty()) std::memcpy(all[k]->data, before[k].data(), before[k].size());
    }
    good(call(threads));
    for (size_t k = 0; k < all.size(); ++k) {
      CHECK(all[k]->surroundings_untouched(), "result %zu: written beyond its ends", k);
      if (single.size() == all.size())
        CHECK(all[k]->contents() == single[k], "result %zu depends on the threads", k);
      else
        single.push_back(all[k]->contents());
    }
  }
  for (Layer& layer : layers)
    for (const Block* x :
         {&layer.w, &layer.g, &layer.h, &layer.u, &layer.v, &layer.sigma, &layer.seed})
      if (*x && std::find(moved.begin(), moved.end(), x->get()) == moved.end())
        CHECK((*x)->untouched(), "an input was changed");
}

void normalize(Vector& x, double divisor) {
  for (double& e : x) e /= divisor;
}

// Zero, or with one number that is not finite.
void poison(Random& random, double with, Memory& x) {
  for (int64_t k = 0; with == 0 && k < x.n; ++k) x.set(k, 0);
  x.set(random.integer(0, x.n - 1), with);
  x.freeze();
}

bool lost(const Vector& x) {
  const double length = norm(x);
  return !(std::isfinite(length) && length > 0);
}

// Where a guarded layer starts again, as its dtype holds it: Weyl's sequence over its norm. Returns how
// far off the numbers may be that round to either side.
double start_again(DType dtype, Vector& x) {
  for (size_t k = 0; k < x.size(); ++k)
    x[k] = std::fmod((k + 1.0) * 2654435761.0, 4294967296.0) / 2147483648.0 - 1;
  normalize(x, norm(x));
  const double unsure = roundings(static_cast<int64_t>(x.size())) * wide_unit(dtype);
  Memory below(dtype, 1), above(dtype, 1);
  double square = 0;
  for (double& e : x) {
    below.set(0, e * (1 - unsure)), above.set(0, e * (1 + unsure));
    square += (above[0] - below[0]) * (above[0] - below[0]);
    e = below[0];
  }
  return std::sqrt(square);
}

void power_iteration(Random& random, const Options& o, std::vector<Layer>& layers) {
  const int64_t n = random.integer(1, 4), count = static_cast<int64_t>(layers.size());
  const bool u_first = random.chance(0.5), guarded = random.chance(0.4),
             with_out = random.chance(0.6);
  const bool wide_vectors = random.chance(0.4);
  const DType of_vectors = wide_vectors ? o.wide() : o.dtype;
  const double eps = random.chance(0.85) ? 1e-12 : random.uniform(0, 3) * o.scale;
  // Layers may be without a norm where the guard sees to them.
  const int64_t bad = guarded && random.chance(0.4) ? random.integer(0, count - 1) : -1;
  const std::initializer_list<double> poisons = {0.0, std::nan(""), static_cast<double>(INFINITY)};
  const double of_weight = random.pick(poisons);
  say("\n  power_iteration: n %ld, %s first, eps %g, %s%s%s", long(n), u_first ? "u" : "v", eps,
      guarded ? "guard" : "no guard", with_out ? ", output" : "", wide_vectors ? ", wide" : "");
  if (bad >= 0) say(", layer %ld has %g", long(bad), of_weight);

  std::vector<Block> more;
  more.push_back(block(random, o.wide(), sn::packed_size(count)));
  more.push_back(block(random, o.wide(), count));
  std::vector<Memory*> moved;
  std::vector<sn::PowerIterationLayer> list;
  for (int64_t i = 0; i < count; ++i) {
    Layer& layer = layers[i];
    const Shape& s = layer.shape;
    layer.u = drawn(random, of_vectors, s.rows), layer.v = drawn(random, of_vectors, s.cols);
    if (i == bad) poison(random, of_weight, *layer.w);
    for (Memory* x : {layer.u.get(), layer.v.get()}) {
      if (!guarded || !random.chance(0.2)) continue;
      const double with = random.pick(poisons);
      say(", %s of layer %ld has %g", x == layer.u.get() ? "u" : "v", long(i), with);
      poison(random, with, *x);
    }
    moved.push_back(layer.u.get()), moved.push_back(layer.v.get());
    layer.outputs.push_back(block(random, o.wide(), sn::packed_size(s.rows)));
    layer.outputs.push_back(block(random, o.wide(), sn::packed_size(s.cols)));
    if (with_out) layer.outputs.push_back(block(random, o.dtype, s.elements()));
    Matrix m = s.matrix;
    m.data = layer.w->data;
    list.push_back({m, layer.u->data, layer.v->data, layer.outputs[0]->data, layer.outputs[1]->data,
                    guarded ? &layer.skipped : nullptr,
                    with_out ? layer.outputs[2]->data : nullptr});
  }
  const bool copied = random.chance(0.5);
  std::vector<Vector> first;
  for (const Memory* x : moved) first.push_back(x->values());
  int calls = 0;
  call_twice(o, layers, more, moved, [&](int threads) {
    ++calls;
    return sn::cpu::power_iteration({o.dtype, wide_vectors, n, eps, u_first, o.max_norm, threads,
                                     count, list.data(), more[0]->data,
                                     copied ? more[1]->data : nullptr});
  });
  for (int64_t i = count; i < more[0]->n; ++i) CHECK((*more[0])[i] == 0, "sigma is not filled up");
  for (int64_t i = 0; copied && i < count; ++i)
    CHECK((*more[0])[i] == (*more[1])[i] || std::isnan((*more[0])[i]), "the copy of sigma");

  for (int64_t i = 0; i < count; ++i) {
    const Layer& layer = layers[i];
    const Shape& s = layer.shape;
    const Vector w = layer.w->values();
    Vector u = first[2 * i], v = first[2 * i + 1];
    double sigma = 1, error = 0;  // of u, v and sigma, relative
    for (Vector* x : {&u, &v})
      if (guarded && lost(*x)) error = std::max(error, start_again(of_vectors, *x));
    CHECK(layer.skipped == 3 + (i == bad ? calls : 0), "skipped of layer %ld", long(i));
    if (i != bad) {
      const double size = std::sqrt(squares(w));
      for (int64_t half = 0; half < 2 * n; ++half) {
        const bool is_u = (half % 2 == 0) == u_first;
        Vector& to = is_u ? u : v;
        const Vector& from = is_u ? v : u;
        to = is_u ? product(s, w, from) : transposed_product(s, w, from);
        const double length = norm(to);
        error = 2 * error + roundings(static_cast<int64_t>(from.size())) * wide_unit(o.dtype) *
                                (1 + size * norm(from) / length);
        normalize(to, std::max(length, eps));
        if (half == 2 * n - 1) sigma = length * (length / std::max(length, eps));
      }
      if (!(error < 0.02)) continue;  // started across what W keeps: any answer is rounding
    }
    const auto near_vector = [&](const char* what, const Memory& got, const Vector& right) {
      near(
          what, got, static_cast<int64_t>(right.size()), [&](int64_t k) { return right[k]; },
          [&](int64_t k) {
            // What is kept of a start may have rounded to either side in a single element.
            const double spread = i == bad ? 1 : 1 / std::sqrt(double(right.size()));
            return error * (std::abs(right[k]) + spread);
          });
      for (auto k = static_cast<int64_t>(right.size()); k < got.n; ++k)
        CHECK(got[k] == 0, "%s: not filled up with zeros", what);
    };
    near_vector("u", *layer.u, u);
    near_vector("v", *layer.v, v);
    near_vector("u_out", *layer.outputs[0], u);
    near_vector("v_out", *layer.outputs[1], v);
    near("sigma", (*more[0])[i], sigma, 8 * (error + wide_unit(o.dtype)) * sigma);
    if (!with_out) continue;
    // At the step of min(1, c / sigma) either side is right: both give W.
    const double factor = scaling(sigma, o.max_norm).scale;
    near(
        "output", *layer.outputs[2], layer.w->n, [&](int64_t k) { return factor * w[k]; },
        [&](int64_t k) { return 16 * (error + wide_unit(o.dtype)) * std::abs(factor * w[k]); });
  }
}

// u, v and sigma as constants: near the true ones, or anything.
void draw_constants(Random& random, const Options& o, Layer& layer) {
  const Shape& s = layer.shape;
  const Vector w = layer.w->values();
  Vector v(s.cols), u(s.rows);
  for (double& x : v) x = random.uniform(-1, 1);
  normalize(v, norm(v));
  if (random.chance(0.7)) {
    u = product(s, w, v);
    normalize(u, std::max(norm(u), 1e-30));
  } else {
    for (double& x : u) x = random.uniform(-1, 1);
    if (random.chance(0.5)) normalize(u, norm(u));
  }
  layer.u = block(random, o.wide(), s.rows), layer.v = block(random, o.wide(), s.cols);
  for (int64_t r = 0; r < s.rows; ++r) layer.u->set(r, u[r]);
  for (int64_t c = 0; c < s.cols; ++c) layer.v->set(c, v[c]);
  layer.sigma = block(random, o.wide(), 1);
  double sigma = std::max(std::abs(inner(u, product(s, w, v))), 0.1 * o.scale);
  if (o.max_norm > 0 && random.chance(0.3)) sigma = o.max_norm * random.pick({0.5, 1.0, 1.5});
  layer.sigma->set(0, sigma);
  for (Memory* x : {layer.u.get(), layer.v.get(), layer.sigma.get()}) x->freeze();
}

void normalize(Random& random, const Options& o, std::vector<Layer>& layers) {
  std::vector<sn::NormalizeLayer> list;
  const bool guarded = random.chance(0.4);
  say("\n  normalize: %s, sigma", guarded ? "guard" : "no guard");
  for (Layer& layer : layers) {
    const bool bad = guarded && random.chance(0.3);
    if (bad)
      poison(random, random.pick({0.0, std::nan(""), static_cast<double>(INFINITY)}), *layer.w);
    draw_constants(random, o, layer);
    const bool known = !bad && random.chance(0.4);
    if (bad) say(" bad,");
    say(" %s", known ? "known" : "computed");
    layer.outputs.push_back(block(random, o.wide(), 1));
    layer.outputs.push_back(block(random, o.dtype, layer.w->n));
    Matrix m = layer.shape.matrix;
    m.data = layer.w->data;
    list.push_back({m, layer.u->data, layer.v->data, known ? layer.sigma->data : nullptr,
                    layer.outputs[0]->data, layer.outputs[1]->data});
  }
  std::vector<Block> more;
  call_twice(o, layers, more, {}, [&](int threads) {
    return sn::cpu::normalize(
        {o.dtype, o.max_norm, threads, static_cast<int64_t>(list.size()), list.data(), guarded});
  });
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const Shape& s = layer.shape;
    const Vector w = layer.w->values(), u = layer.u->values(), v = layer.v->values();
    double sigma = (*layer.sigma)[0], error = 0;
    if (!list[i].sigma) {
      sigma = inner(u, product(s, w, v));
      error = roundings(w.size()) * wide_unit(o.dtype) * std::sqrt(squares(w)) * norm(u) * norm(v);
      if (guarded && (sigma == 0 || !std::isfinite(sigma))) sigma = 1, error = 0;
    }
    near("sigma of normalize", (*layer.outputs[0])[0], sigma,
         error + wide_unit(o.dtype) * std::abs(sigma));
    error = error / std::abs(sigma) + 4 * wide_unit(o.dtype);
    if (!(error < 0.02)) continue;
    const double factor = scaling(sigma, o.max_norm).scale;
    near(
        "output of normalize", *layer.outputs[1], layer.w->n,
        [&](int64_t k) { return factor * w[k]; },
        [&](int64_t k) { return 4 * error * std::abs(factor * w[k]); });
  }
}

void backward(Random& random, const Options& o, std::vector<Layer>& layers) {
  std::vector<sn::BackwardLayer> list;
  say("\n  backward: sigma has");
  for (Layer& layer : layers) {
    draw_constants(random, o, layer);
    layer.g = drawn(random, o.dtype, layer.w->n);
    layer.seed = drawn(random, o.wide(), 1);
    const bool seeded = random.chance(0.6);
    say(" %s cotangent", seeded ? "a" : "no");
    layer.outputs.push_back(block(random, o.dtype, layer.w->n));
    Matrix m = layer.shape.matrix;
    m.data = layer.w->data;
    list.push_back({m, layer.g->data, layer.u->data, layer.v->data, layer.sigma->data,
                    seeded ? layer.seed->data : nullptr, layer.outputs[0]->data});
  }
  std::vector<Block> more;
  call_twice(o, layers, more, {}, [&](int threads) {
    return sn::cpu::backward(
        {o.dtype, o.max_norm, threads, static_cast<int64_t>(list.size()), list.data()});
  });
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const Shape& s = layer.shape;
    const Vector w = layer.w->values(), g = layer.g->values(), u = layer.u->values(),
                 v = layer.v->values();
    const Scaling k = scaling((*layer.sigma)[0], o.max_norm);
    const double seed = list[i].grad_sigma ? (*layer.seed)[0] : 0, gw = inner(g, w);
    const double one = wide_unit(o.dtype), factor = seed - k.slope * gw;
    const double off = roundings(w.size()) * one * k.slope * std::sqrt(squares(g) * squares(w)) +
                       8 * one * std::abs(factor);
    Vector right(w.size()), error(w.size());
    for (int64_t c = 0; c < s.cols; ++c)
      for (int64_t r = 0; r < s.rows; ++r) {
        const int64_t at = s.at(r, c);
        right[at] = k.scale * g[at] + factor * u[r] * v[c];
        error[at] = 8 * one * std::abs(k.scale * g[at]) + off * std::abs(u[r] * v[c]);
      }
    near(
        "gradient", *layer.outputs[0], layer.w->n, [&](int64_t j) { return right[j]; },
        [&](int64_t j) { return error[j]; });
  }
}

void double_backward(Random& random, const Options& o, std::vector<Layer>& layers) {
  std::vector<sn::DoubleBackwardLayer> list;
  say("\n  double_backward");
  for (Layer& layer : layers) {
    draw_constants(random, o, layer);
    layer.g = drawn(random, o.dtype, layer.w->n);
    layer.h = drawn(random, o.dtype, layer.w->n);
    for (const DType dtype : {o.dtype, o.dtype})
      layer.outputs.push_back(block(random, dtype, layer.w->n));
    layer.outputs.push_back(block(random, o.wide(), 1));
    Matrix m = layer.shape.matrix;
    m.data = layer.w->data;
    list.push_back({m, layer.h->data, layer.g->data, layer.u->data, layer.v->data,
                    layer.sigma->data, layer.outputs[0]->data, layer.outputs[1]->data,
                    layer.outputs[2]->data});
  }
  std::vector<Block> more;
  call_twice(o, layers, more, {}, [&](int threads) {
    return sn::cpu::double_backward(
        {o.dtype, o.max_norm, threads, static_cast<int64_t>(list.size()), list.data()});
  });
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const Shape& s = layer.shape;
    const Vector w = layer.w->values(), g = layer.g->values(), h = layer.h->values(),
                 u = layer.u->values(), v = layer.v->values();
    const Scaling k = scaling((*layer.sigma)[0], o.max_norm);
    const double one = wide_unit(o.dtype), off = roundings(w.size()) * one;
    const double uhv = inner(u, product(s, h, v)), hg = inner(h, g), gw = inner(g, w);
    const double wn = std::sqrt(squares(w)), gn = std::sqrt(squares(g)), hn = std::sqrt(squares(h));
    const double uhv_terms = norm(u) * norm(v) * hn;
    const double outer = k.curve * uhv * gw - k.slope * hg;
    const double outer_off = off * (k.curve * uhv_terms * gn * wn + k.slope * hn * gn);
    near("d_grad_sigma", (*layer.outputs[2])[0], uhv, off * uhv_terms + one * std::abs(uhv));
    near(
        "d_g", *layer.outputs[0], layer.w->n,
        [&](int64_t j) { return k.scale * h[j] - k.slope * uhv * w[j]; },
        [&](int64_t j) {
          return 8 * one * k.scale * std::abs(h[j]) + off * k.slope * uhv_terms * std::abs(w[j]);
        });
    Vector right(w.size()), error(w.size());
    for (int64_t c = 0; c < s.cols; ++c)
      for (int64_t r = 0; r < s.rows; ++r) {
        const int64_t at = s.at(r, c);
        right[at] = -k.slope * uhv * g[at] + outer * u[r] * v[c];
        error[at] = off * k.slope * uhv_terms * std::abs(g[at]) + outer_off * std::abs(u[r] * v[c]);
      }
    near(
        "d_w", *layer.outputs[1], layer.w->n, [&](int64_t j) { return right[j]; },
        [&](int64_t j) { return error[j]; });
  }
}

void test(Random& random) {
  draw_isa(random);
  Options o{random.dtype(), 0, 1, 1};
  const bool half = item_size(o.dtype) == 2;
  if (random.chance(0.3))
    o.scale = std::exp2(static_cast<double>(random.integer(-4, half ? 3 : 12)));
  if (random.chance(0.5)) o.max_norm = o.scale * random.uniform(0.05, 4);
  if (random.chance(0.4)) o.threads = static_cast<int>(random.integer(2, 4));
  say(" %s, max_norm %g, scale %g, threads 1 and %d", kNames[static_cast<int>(o.dtype)], o.max_norm,
      o.scale, o.threads);
  int64_t budget = random.pick<int64_t>({300, 2100, 2100, 5000, 20000, 70000});
  int64_t count = random.chance(0.5) ? 1 : random.integer(2, 6);
  if (random.chance(0.02)) budget = 600000;
  if (random.chance(0.01)) count = random.integer(15, 33), budget = 300;
  const bool streamed = random.chance(0.0015);  // written past the caches
  std::vector<Layer> layers;
  for (int64_t i = 0; i < count; ++i) {
    Layer layer;
    layer.shape = draw_shape(random, streamed && i == 0 ? (9 << 20) : budget / count + 1);
    if (streamed && i == 0)
      while (layer.shape.elements() * static_cast<int64_t>(item_size(o.dtype)) <= (32 << 20) &&
             !half)
        layer.shape = draw_shape(random, 9 << 20);
    layer.w = drawn(random, o.dtype, layer.shape.elements(), o.scale);
    layers.push_back(std::move(layer));
  }
  switch (random.integer(0, 3)) {
    case 0:
      return power_iteration(random, o, layers);
    case 1:
      return normalize(random, o, layers);
    case 2:
      return backward(random, o, layers);
    default:
      return double_backward(random, o, layers);
  }
}

}  // namespace

int main(int argc, char** argv) {
  fuzz::run(argc, argv, 6000, test);
  return failures == 0 ? 0 : 1;
}
