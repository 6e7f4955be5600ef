// Fuzzes the CPU kernels of weight normalization: any number of weights, each pass by itself, against
// plain loops in double.
#include <cmath>
#include <vector>

#include "fuzz.h"
#include "weight_norm.h"

namespace {

using namespace fuzz;
namespace wn = gankernels::weight_norm;

struct Case {
  DType dtype, wide;
  int threads;
  std::vector<int64_t> rows, size;
  std::vector<Block> v, g, norms, x, h, e, out, d_g, d_v;
  std::vector<wn::Weight> list;

  wn::Weights weights(int with_threads) const {
    return {dtype, with_threads, static_cast<int64_t>(list.size()), list.data()};
  }
  // Over row r of weight k.
  double product(const std::vector<Block>& a, const std::vector<Block>& b, size_t k,
                 int64_t r) const {
    double sum = 0;
    for (int64_t j = r * size[k]; j < (r + 1) * size[k]; ++j) sum += (*a[k])[j] * (*b[k])[j];
    return sum;
  }
  double length(const std::vector<Block>& a, size_t k, int64_t r) const {
    return std::sqrt(product(a, a, k, r));
  }
  // What a sum over a row of products of two may be off by, both norms given.
  double off(size_t k, double a, double b) const {
    return (16 + std::sqrt(static_cast<double>(size[k]))) * wide_unit(dtype) * a * b;
  }
};

Case draw(Random& random) {
  Case c{};
  draw_isa(random);
  c.dtype = random.dtype(), c.wide = accumulation(c.dtype);
  c.threads = random.chance(0.4) ? static_cast<int>(random.integer(2, 4)) : 1;
  const int64_t count = random.chance(0.4) ? 1 : random.integer(2, random.chance(0.05) ? 70 : 6);
  int64_t budget = random.pick<int64_t>({300, 2100, 6000, 36000, 36000, 110000});
  if (random.chance(0.02)) budget = 600000;
  // Written past the caches.
  if (random.chance(0.0015)) budget = 6 << 20;
  say(" %s, threads 1 and %d, rows x sizes", kNames[static_cast<int>(c.dtype)], c.threads);
  for (int64_t k = 0; k < count; ++k) {
    const int64_t most = std::max<int64_t>(1, budget / count);
    const int64_t rows =
        random.chance(0.6) ? random.integer(1, std::min<int64_t>(5, most)) : random.size(most);
    int64_t size = random.size(std::max<int64_t>(1, most / rows));
    // Parts of a row: several pieces, and a rest that is special.
    if (most / rows > 40000 && random.chance(0.5))
      size = (32 << 10) * random.integer(1, most / rows / (32 << 10)) +
             random.pick<int64_t>({0, 1, 2047, 2048, 2049});
    c.rows.push_back(rows), c.size.push_back(size);
    say(" %ldx%ld", long(rows), long(size));
  }
  for (int64_t k = 0; k < count; ++k) {
    const int64_t rows = c.rows[k], size = c.size[k];
    c.v.push_back(block(random, c.dtype, rows * size));
    c.g.push_back(block(random, c.dtype, rows));
    Memory &v = *c.v[k], &g = *c.g[k];
    for (int64_t r = 0; r < rows; ++r) {
      g.set(r, random.chance(0.05) ? 0 : random.pick({-1, 1}) * random.uniform(0.2, 4));
      for (int64_t j = 0; j < size; ++j) v.set(r * size + j, random.uniform(-1.7, 1.7));
      // A direction is not 0; and one element that a sum cannot do without.
      const int64_t last = r * size + random.pick({size, random.size(size)}) - 1;
      v.set(last, random.pick({-1, 1}) * (1 + std::sqrt(static_cast<double>(size)) / 2));
    }
    v.freeze(), g.freeze();
    wn::Weight w{rows, size};
    w.v = v.data, w.g = g.data;
    c.list.push_back(w);
  }
  return c;
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
  for (const auto* list : {&c.v, &c.g, &c.x, &c.h, &c.e})
    for (const Block& x : *list)
      if (x) CHECK(x->untouched(), "an input was changed");
}

// Fresh results of every weight: of its elements, or of its rows.
void results(Random& random, Case& c, std::vector<Block>& blocks, void* wn::Weight::* place,
             DType dtype, bool of_rows, std::vector<Memory*>& all) {
  for (size_t k = 0; k < c.list.size(); ++k) {
    blocks.push_back(block(random, dtype, c.rows[k] * (of_rows ? 1 : c.size[k])));
    c.list[k].*place = blocks[k]->data;
    all.push_back(blocks[k].get());
  }
}

void inputs(Random& random, Case& c, std::vector<Block>& blocks, const void* wn::Weight::* place,
            bool of_rows) {
  for (size_t k = 0; k < c.list.size(); ++k) {
    blocks.push_back(drawn(random, c.dtype, c.rows[k] * (of_rows ? 1 : c.size[k])));
    c.list[k].*place = blocks[k]->data;
  }
}

// Norms as a forward pass gives them.
void give_norms(Random& random, Case& c) {
  for (size_t k = 0; k < c.list.size(); ++k) {
    c.norms.push_back(block(random, c.wide, c.rows[k]));
    for (int64_t r = 0; r < c.rows[k]; ++r) c.norms[k]->set(r, c.length(c.v, k, r));
    c.norms[k]->freeze();
    c.list[k].norms = c.norms[k]->data;
  }
}

// Element j of a row's result is `right(j)`, of terms that together are at most `terms(j)` in size.
template <class Right, class Terms>
bool check_row(const Case& c, const char* what, const Memory& got, size_t k, int64_t r,
               Right&& right, Terms&& terms) {
  const double one = wide_unit(c.dtype);
  for (int64_t j = r * c.size[k]; j < (r + 1) * c.size[k]; ++j) {
    const double expected = right(j);
    const double bound = 1.001 * unit(c.dtype) * std::abs(expected) + 16 * one * terms(j) + 0x1p-25;
    if (within(got.dtype, got[j], expected, bound)) continue;
    near(what, got[j], expected, bound);
    return false;
  }
  return true;
}

void forward(Random& random, Case& c) {
  say("\n  forward");
  std::vector<Memory*> all;
  results(random, c, c.norms, &wn::Weight::norms, c.wide, true, all);
  results(random, c, c.out, &wn::Weight::out, c.dtype, false, all);
  call_twice(c, all, [&](int threads) { return wn::cpu::forward({c.weights(threads)}); });
  for (size_t k = 0; k < c.list.size(); ++k)
    for (int64_t r = 0; r < c.rows[k]; ++r) {
      const double n = c.length(c.v, k, r), a = (*c.g[k])[r] / n;
      near("norm", (*c.norms[k])[r], n, c.off(k, n, 1));
      const double relative = c.off(k, 1, 1) / (16 * wide_unit(c.dtype));
      const auto right = [&](int64_t j) { return a * (*c.v[k])[j]; };
      if (!check_row(c, "weight", *c.out[k], k, r, right,
                     [&](int64_t j) { return (1 + relative) * std::abs(right(j)); }))
        return;
    }
}

void backward(Random& random, Case& c) {
  say("\n  backward");
  give_norms(random, c);
  inputs(random, c, c.x, &wn::Weight::x, false);
  std::vector<Memory*> all;
  results(random, c, c.out, &wn::Weight::out, c.dtype, false, all);
  results(random, c, c.d_g, &wn::Weight::d_g, c.dtype, true, all);
  call_twice(c, all, [&](int threads) { return wn::cpu::backward({c.weights(threads)}); });
  const double one = wide_unit(c.dtype);
  for (size_t k = 0; k < c.list.size(); ++k)
    for (int64_t r = 0; r < c.rows[k]; ++r) {
      const double n = (*c.norms[k])[r], a = (*c.g[k])[r] / n;
      const double t = c.product(c.x, c.v, k, r) / n, t_off = c.off(k, c.length(c.x, k, r), 1);
      near("gradient of g", (*c.d_g[k])[r], t,
           t_off + 1.001 * unit(c.dtype) * std::abs(t) + 0x1p-25);
      if (!check_row(
              c, "gradient of v", *c.out[k], k, r,
              [&](int64_t j) { return a * ((*c.x[k])[j] - t / n * (*c.v[k])[j]); },
              [&](int64_t j) {
                const double of_v = (std::abs(t) + t_off / (16 * one)) / n;
                return std::abs(a) * (std::abs((*c.x[k])[j]) + of_v * std::abs((*c.v[k])[j]));
              }))
        return;
    }
}

void double_backward(Random& random, Case& c) {
  const bool with_e = random.chance(0.7);
  say("\n  double_backward%s", with_e ? ", e" : "");
  give_norms(random, c);
  inputs(random, c, c.x, &wn::Weight::x, false);
  inputs(random, c, c.h, &wn::Weight::h, false);
  if (with_e) inputs(random, c, c.e, &wn::Weight::e, true);
  std::vector<Memory*> all;
  results(random, c, c.out, &wn::Weight::out, c.dtype, false, all);
  results(random, c, c.d_v, &wn::Weight::d_v, c.dtype, false, all);
  results(random, c, c.d_g, &wn::Weight::d_g, c.dtype, true, all);
  call_twice(c, all, [&](int threads) { return wn::cpu::double_backward({c.weights(threads)}); });
  // L = <h, a (x - t q)> + e t, with a = g / n, q = v / n, t = <x, q>: derivatives written out anew.
  const double one = wide_unit(c.dtype);
  for (size_t k = 0; k < c.list.size(); ++k)
    for (int64_t r = 0; r < c.rows[k]; ++r) {
      const double n = (*c.norms[k])[r], g = (*c.g[k])[r], e = with_e ? (*c.e[k])[r] : 0;
      const double xv = c.product(c.x, c.v, k, r), hv = c.product(c.h, c.v, k, r),
                   hx = c.product(c.h, c.x, k, r);
      const double x_size = c.length(c.x, k, r), h_size = c.length(c.h, k, r);
      // Of <h, x>, and of n times those of <x, q> and <h, q>: in units of one rounding.
      const double sizes = c.off(k, h_size, x_size) / one;
      near("gradient of g again", (*c.d_g[k])[r], hx / n - hv * xv / (n * n * n),
           (3 * sizes * one + 1.001 * unit(c.dtype) * std::abs(hx - hv * xv / (n * n))) / n +
               0x1p-25);
      if (!check_row(
              c, "gradient of x", *c.out[k], k, r,
              [&](int64_t j) {
                return g / n * (*c.h[k])[j] + (e / n - g * hv / (n * n * n)) * (*c.v[k])[j];
              },
              [&](int64_t j) {
                const double of_v = (std::abs(e) + std::abs(g) / n * c.off(k, h_size, 1) / one) / n;
                return std::abs(g) / n * std::abs((*c.h[k])[j]) + of_v * std::abs((*c.v[k])[j]);
              }) ||
          !check_row(
              c, "gradient of v again", *c.d_v[k], k, r,
              [&](int64_t j) {
                const double of_x = e / n - g * hv / (n * n * n), of_h = -g * xv / (n * n * n);
                const double of_v =
                    g / (n * n * n) * (3 * hv * xv / (n * n) - hx) - e * xv / (n * n * n);
                return of_x * (*c.x[k])[j] + of_h * (*c.h[k])[j] + of_v * (*c.v[k])[j];
              },
              [&](int64_t j) {
                const double a = std::abs(g) / n, h_off = c.off(k, h_size, 1) / one,
                             x_off = c.off(k, x_size, 1) / one;
                const double of_x = std::abs(e) + a * h_off, of_h = a * x_off;
                const double of_v = (a * 4 * sizes + std::abs(e) * x_off) / n;
                return (of_x * std::abs((*c.x[k])[j]) + of_h * std::abs((*c.h[k])[j]) +
                        of_v * std::abs((*c.v[k])[j])) /
                       n;
              }))
        return;
    }
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
