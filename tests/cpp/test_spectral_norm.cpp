// The CPU kernels without torch: every launcher over layouts, dtypes, instruction sets and threads,
// against plain loops in double; and the pool of output buffers. Made for the sanitizers: inputs and
// outputs are blocks of their exact size. Returns non-zero on failure.
#include "spectral_norm.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/pool.h"
#include "cpu/vector_kernels.h"

namespace {

namespace sn = gankernels::spectral_norm;
using gankernels::accumulation;
using gankernels::DType;
using gankernels::item_size;
using gankernels::Matrix;

int failures = 0;

#define CHECK(condition, ...)                               \
  do {                                                      \
    if (!(condition)) {                                     \
      if (++failures <= 20) {                               \
        std::printf("line %d: %s: ", __LINE__, #condition); \
        std::printf(__VA_ARGS__);                           \
        std::printf("\n");                                  \
      }                                                     \
    }                                                       \
  } while (0)

// --- numbers of any dtype ------------------------------------------------------------------------

// A block of exactly n elements, so that a sanitizer sees a step beyond it. `shift` elements into it
// the numbers begin, as in a view of a tensor.
struct Numbers {
  Numbers(DType dtype, int64_t n, int64_t shift = 0)
      : dtype(dtype), n(n), bytes(static_cast<char*>(std::malloc((n + shift) * item_size(dtype)))) {
    data = bytes.get() + shift * item_size(dtype);
    std::memset(data, 0xff, n * item_size(dtype));  // NaN, of every dtype
  }

  double operator[](int64_t i) const {
    double x;
    if (dtype == DType::kFloat64) {
      std::memcpy(&x, data + 8 * i, 8);
      return x;
    }
    float narrow;
    if (dtype == DType::kFloat32)
      std::memcpy(&narrow, data + 4 * i, 4);
    else
      gankernels::cpu::vector_kernels<float>().widen(dtype, data + 2 * i, 1, &narrow);
    return narrow;
  }

  void set(int64_t i, double x) {
    const auto narrow = static_cast<float>(x);
    if (dtype == DType::kFloat64)
      std::memcpy(data + 8 * i, &x, 8);
    else if (dtype == DType::kFloat32)
      std::memcpy(data + 4 * i, &narrow, 4);
    else
      gankernels::cpu::vector_kernels<float>().narrow(&narrow, 1, dtype, data + 2 * i);
  }

  void draw(std::mt19937& random) {
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < n; ++i) set(i, normal(random));
  }

  bool same(const Numbers& other) const {
    return std::memcmp(data, other.data, n * item_size(dtype)) == 0;
  }

  struct Free {
    void operator()(char* block) const { std::free(block); }
  };
  DType dtype;
  int64_t n;
  std::unique_ptr<char, Free> bytes;
  char* data;
};

double tolerance(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 1e-12;
    case DType::kFloat32:
      return 1e-5;
    case DType::kBFloat16:
      return 5e-3;
    default:
      return 6e-4;
  }
}

void near(const Numbers& got, const std::vector<double>& expected, const std::string& what) {
  double largest = 0, worst = 0;
  for (double x : expected) largest = std::max(largest, std::abs(x));
  for (int64_t i = 0; i < got.n; ++i) {
    const double difference = std::abs(got[i] - expected[i]);
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
  }
  CHECK(worst <= tolerance(got.dtype) * largest, "%s: off by %g of %g", what.c_str(), worst,
        largest);
}

// --- layouts ---------------------------------------------------------------------------------------

struct Layout {
  const char* name;
  int64_t outer, rows, inner;
  std::vector<int64_t> column_size, column_stride;
};

// Shapes that end within vectors, tiles of 4, 8 and 16 rows, and chunks.
const std::vector<Layout> kSmall = {
    {"one element", 1, 1, 1, {}, {}},
    {"one row", 1, 1, 37, {}, {}},
    {"one column", 1, 37, 1, {}, {}},
    {"contiguous", 1, 31, 33, {}, {}},
    {"contiguous, wide", 1, 3, 1031, {}, {}},
    {"contiguous, tall", 1, 257, 5, {}, {}},
    {"channels_last", 1, 12, 7 * 6, {7, 6}, {1, 7}},
    {"channels_last, 5-D", 1, 5, 3 * 2 * 4, {3, 2, 4}, {1, 12, 3}},
    {"transposed", 33, 31, 1, {}, {}},
    {"transposed, wide", 521, 7, 1, {}, {}},
    {"transposed convolution", 6, 37, 12, {}, {}},
    {"transposed convolution of one channel", 6, 1, 16, {}, {}},
    {"transposed convolution of 16", 5, 16, 9, {}, {}},
    {"transposed convolution, channels_last", 6 * 12, 10, 1, {6, 12}, {12, 1}},
    {"rows in the middle", 5 * 6, 7, 4, {6, 5, 4}, {4, 24, 1}},
};

const std::vector<Layout> kLarge = {
    {"large", 1, 701, 743, {}, {}},
    {"large, few rows", 1, 3, 150001, {}, {}},
    {"large, many rows", 1, 50001, 3, {}, {}},
    {"large, transposed", 743, 701, 1, {}, {}},
    {"large, channels_last", 1, 256, 131 * 16, {131, 16}, {1, 131}},
    {"large, transposed convolution", 131, 257, 16, {}, {}},
};

Matrix matrix(const Layout& layout, const Numbers& numbers) {
  Matrix m{numbers.data, layout.outer, layout.rows, layout.inner, 0, {}, {}};
  m.column_dims = static_cast<int>(layout.column_size.size());
  for (int d = 0; d < m.column_dims; ++d) {
    m.column_size[d] = layout.column_size[d];
    m.column_stride[d] = layout.column_stride[d];
  }
  return m;
}

int64_t size(const Layout& layout) {
  return layout.outer * layout.rows * layout.inner;
}
int64_t cols(const Layout& layout) {
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

using Vector = std::vector<double>;

double norm(const Vector& x) {
  double sum = 0;
  for (double e : x) sum += e * e;
  return std::sqrt(sum);
}

void normalize(Vector& x, double eps) {
  const double divisor = std::max(norm(x), eps);
  for (double& e : x) e /= divisor;
}

Vector values(const Numbers& x) {
  Vector out(x.n);
  for (int64_t i = 0; i < x.n; ++i) out[i] = x[i];
  return out;
}

double inner(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// u . (M v), for a tensor laid out as W.
double bilinear(const Layout& layout, const Vector& m, const Vector& u, const Vector& v) {
  double sum = 0;
  for_each_element(layout, [&](int64_t r, int64_t c, int64_t at) { sum += u[r] * m[at] * v[c]; });
  return sum;
}

double iterate(const Layout& layout, const Vector& w, int n, bool u_first, Vector& u, Vector& v) {
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

// A weight, its vectors, and the results of the four launchers.
struct Case {
  Case(const Layout& layout, DType dtype, std::mt19937& random)
      : layout(layout),
        wide(accumulation(dtype)),
        w(dtype, size(layout), 3),
        g(dtype, size(layout), 1),
        h(dtype, size(layout)),
        u(dtype, layout.rows),
        v(dtype, cols(layout)),
        seed(wide, 1),
        u_out(wide, u.n),
        v_out(wide, v.n),
        sigma(wide, 1),
        out(dtype, w.n, 1),
        sigma_again(wide, 1),
        out_again(dtype, w.n),
        grad(dtype, w.n, 5),
        d_g(dtype, w.n),
        d_w(dtype, w.n),
        d_seed(wide, 1) {
    for (Numbers* x : {&w, &g, &h, &u, &v, &seed}) x->draw(random);
  }

  std::vector<const Numbers*> results() const {
    return {&u,           &v,         &u_out, &v_out, &sigma, &out,
            &sigma_again, &out_again, &grad,  &d_g,   &d_w,   &d_seed};
  }

  Layout layout;
  DType wide;
  Numbers w, g, h, u, v, seed;
  Numbers u_out, v_out, sigma, out, sigma_again, out_again, grad, d_g, d_w, d_seed;
};

struct Settings {
  DType dtype;
  int n;
  bool u_first;
  double coefficient;
  int threads;
};

std::vector<std::unique_ptr<Case>> run(const std::vector<Layout>& layouts, const Settings& s) {
  std::mt19937 random(7);
  std::vector<std::unique_ptr<Case>> cases;
  std::vector<sn::PowerIterationLayer> iteration;
  std::vector<sn::NormalizeLayer> normalize;
  std::vector<sn::BackwardLayer> backward;
  std::vector<sn::DoubleBackwardLayer> twice;
  for (const Layout& layout : layouts) {
    cases.push_back(std::make_unique<Case>(layout, s.dtype, random));
    Case& c = *cases.back();
    const Matrix w = matrix(layout, c.w);
    iteration.push_back(
        {w, c.u.data, c.v.data, c.u_out.data, c.v_out.data, c.sigma.data, nullptr, c.out.data});
    normalize.push_back(
        {w, c.u_out.data, c.v_out.data, nullptr, c.sigma_again.data, c.out_again.data});
    backward.push_back(
        {w, c.g.data, c.u_out.data, c.v_out.data, c.sigma.data, c.seed.data, c.grad.data});
    twice.push_back({w, c.h.data, c.g.data, c.u_out.data, c.v_out.data, c.sigma.data, c.d_g.data,
                     c.d_w.data, c.d_seed.data});
  }
  const auto count = static_cast<int64_t>(layouts.size());
  const auto good = [](const char* error) { CHECK(error == nullptr, "%s", error); };
  good(sn::cpu::power_iteration(
      {s.dtype, s.n, 1e-12, s.u_first, s.coefficient, s.threads, count, iteration.data()}));
  good(sn::cpu::normalize({s.dtype, s.coefficient, s.threads, count, normalize.data()}));
  good(sn::cpu::backward({s.dtype, s.coefficient, s.threads, count, backward.data()}));
  good(sn::cpu::double_backward({s.dtype, s.coefficient, s.threads, count, twice.data()}));
  return cases;
}

void check(const Case& c, const Settings& s, Vector u, Vector v, const std::string& where) {
  const std::string what = where + ", " + c.layout.name + ", ";
  const Vector w = values(c.w), g = values(c.g), h = values(c.h);
  const double sigma = iterate(c.layout, w, s.n, s.u_first, u, v);
  near(c.sigma, {sigma}, what + "sigma");
  near(c.sigma_again, {sigma}, what + "sigma of normalize");
  near(c.u_out, u, what + "u");
  near(c.v_out, v, what + "v");
  near(c.u, u, what + "u in place");
  near(c.v, v, what + "v in place");

  const bool identity = s.coefficient > 0 && sigma <= s.coefficient;
  const double factor = s.coefficient > 0 ? s.coefficient : 1;
  const double scale = identity ? 1 : factor / sigma;
  const double slope = identity ? 0 : factor / (sigma * sigma);
  const double curve = identity ? 0 : 2 * factor / (sigma * sigma * sigma);
  const double gw = inner(g, w), hg = inner(h, g), uhv = bilinear(c.layout, h, u, v),
               seed = c.seed[0];
  Vector out(w.size()), grad(w.size()), d_g(w.size()), d_w(w.size());
  for_each_element(c.layout, [&](int64_t row, int64_t col, int64_t at) {
    const double outer = u[row] * v[col];
    out[at] = scale * w[at];
    grad[at] = scale * g[at] + (seed - slope * gw) * outer;
    d_g[at] = scale * h[at] - slope * uhv * w[at];
    d_w[at] = -slope * uhv * g[at] + (curve * uhv * gw - slope * hg) * outer;
  });
  near(c.out, out, what + "output");
  near(c.out_again, out, what + "output of normalize");
  // Where one number is all there is, the terms of a derivative cancel to nothing.
  const auto derivative = [&](const Numbers& got, const Vector& expected, double terms,
                              const char* name) {
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < got.n; ++i) {
      const double difference = std::abs(got[i] - expected[i]);
      worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
      largest = std::max(largest, std::abs(expected[i]));
    }
    const double bound = tolerance(got.dtype) * largest + tolerance(c.wide) * terms;
    CHECK(worst <= bound, "%s%s: off by %g, at most %g", what.c_str(), name, worst, bound);
  };
  const double w_norm = norm(w), g_norm = norm(g), h_norm = norm(h);
  derivative(c.grad, grad, scale * g_norm + slope * g_norm * w_norm + std::abs(seed), "gradient");
  derivative(c.d_g, d_g, scale * h_norm + slope * h_norm * w_norm, "d_g");
  derivative(c.d_w, d_w, h_norm * g_norm * (slope + curve * w_norm), "d_w");
  derivative(c.d_seed, {uhv}, h_norm, "d_grad_sigma");
}

void same(const std::vector<std::unique_ptr<Case>>& a, const std::vector<std::unique_ptr<Case>>& b,
          const std::string& where) {
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t k = 0; k < a[i]->results().size(); ++k)
      CHECK(a[i]->results()[k]->same(*b[i]->results()[k]),
            "%s, %s: result %zu depends on the threads", where.c_str(), a[i]->layout.name, k);
}

void test_launchers(const std::vector<Layout>& layouts, const Settings& settings,
                    const std::string& where) {
  Settings s = settings;
  s.threads = 1;
  const auto single = run(layouts, s);
  std::mt19937 random(7);
  for (size_t i = 0; i < layouts.size(); ++i) {
    const Case before(layouts[i], s.dtype, random);
    check(*single[i], s, values(before.u), values(before.v), where);
  }
  for (s.threads = 2; s.threads <= 3; ++s.threads) same(single, run(layouts, s), where);
}

void test_guard() {
  const Layout layout = {"guarded", 1, 3, 4, {}, {}};
  for (const double poison : {0.0, std::nan(""), static_cast<double>(INFINITY)})
    for (const bool u_first : {false, true}) {
      std::mt19937 random(1);
      Case good(layout, DType::kFloat32, random), bad(layout, DType::kFloat32, random);
      for (int64_t i = 0; i < bad.w.n; ++i)
        if (poison == 0) bad.w.set(i, 0);
      bad.w.set(5, poison);
      const Vector u = values(bad.u), v = values(bad.v);
      int64_t skipped[2] = {5, 5};
      std::vector<sn::PowerIterationLayer> layers;
      for (Case* c : {&good, &bad})
        layers.push_back({matrix(layout, c->w), c->u.data, c->v.data, c->u_out.data, c->v_out.data,
                          c->sigma.data, &skipped[c == &bad], c->out.data});
      sn::cpu::power_iteration({DType::kFloat32, 2, 1e-12, u_first, 0, 2, 2, layers.data()});
      CHECK(skipped[0] == 5 && skipped[1] == 6, "%ld %ld", long(skipped[0]), long(skipped[1]));
      CHECK(values(bad.u) == u && values(bad.v) == v, "poison %g", poison);
      CHECK(values(bad.u_out) == u && values(bad.v_out) == v, "poison %g", poison);
      CHECK(bad.sigma[0] == 1 && std::isfinite(good.sigma[0]), "poison %g", poison);
    }
}

// Outputs over 32 MiB in total are written past the caches.
void test_streaming(const std::string& where) {
  const std::vector<Layout> layouts = {
      {"streamed", 1, 2051, 2053, {}, {}},
      {"streamed, tiny", 1, 3, 5, {}, {}},
      {"streamed, transposed", 1031, 2051, 1, {}, {}},
      {"streamed, transposed convolution", 131, 2051, 9, {}, {}},
  };
  int64_t total = 0;
  for (const Layout& layout : layouts) total += size(layout);
  CHECK(total * 4 > (32 << 20), "%ld", long(total));
  test_launchers(layouts, {DType::kFloat32, 1, true, 0, 2}, where);
}

// Blocks are whole, aligned, nobody else's, and come back.
void test_pool() {
  namespace pool = gankernels::pool;
  pool::empty();
  void* first = pool::take(100000);
  CHECK(reinterpret_cast<uintptr_t>(first) % 64 == 0, "%p", first);
  pool::give(first);
  void* again = pool::take(100000);
  CHECK(again == first, "expected the block that was given back");
  pool::give(again);
  CHECK(pool::empty() >= 100000, "expected the block to be freed");
  CHECK(pool::empty() == 0, "expected nothing left");

  std::vector<std::thread> workers;
  for (int t = 0; t < 4; ++t)
    workers.emplace_back([t] {
      std::mt19937 random(t);
      std::vector<std::pair<unsigned char*, size_t>> held;
      for (int round = 0; round < 300; ++round) {
        const size_t bytes = random() % (round % 50 == 0 ? 6 << 20 : 300000) + 1;
        auto* block = static_cast<unsigned char*>(pool::take(bytes));
        std::memset(block, t, bytes);
        held.emplace_back(block, bytes);
        if (held.size() > 6 || random() % 2) {
          const auto [old, n] = held[random() % held.size()];
          for (size_t i = 0; i < n; i += 997) CHECK(old[i] == t, "another thread wrote here");
          CHECK(old[n - 1] == t, "another thread wrote here");
          std::erase_if(held, [old = old](const auto& h) { return h.first == old; });
          pool::give(old);
        }
        if (t == 0 && round % 40 == 0) pool::empty();
      }
      for (const auto& [block, n] : held) pool::give(block);
    });
  for (std::thread& worker : workers) worker.join();
  pool::empty();
}

// Several calls at a time, as from DataParallel's threads.
void test_threads_of_their_own() {
  const Settings settings = {DType::kFloat32, 2, true, 0, 1};
  const auto alone = run(kSmall, settings);
  std::vector<std::vector<std::unique_ptr<Case>>> found(4);
  std::vector<std::thread> workers;
  for (auto& mine : found)
    workers.emplace_back([&mine, &settings] {
      for (int round = 0; round < 3; ++round) mine = run(kSmall, settings);
    });
  for (std::thread& worker : workers) worker.join();
  for (const auto& mine : found) same(alone, mine, "threads of their own");
}

}  // namespace

int main() {
  int sets = 0;
  for (const char* isa : {"portable", "avx2", "avx512"}) {
    if (!gankernels::cpu::set_isa(isa)) continue;
    CHECK(std::strcmp(isa, gankernels::cpu::isa()) == 0, "%s", isa);
    ++sets;
    constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16,
                                 DType::kFloat16};
    constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16"};
    for (const DType dtype : kDTypes)
      for (const bool u_first : {true, false})
        for (const double coefficient : {0.0, 12.0}) {
          const std::string where = std::string(isa) + ", " + kNames[static_cast<int>(dtype)] +
                                    (u_first ? ", u first" : ", v first");
          test_launchers(kSmall, {dtype, u_first ? 1 : 2, u_first, coefficient, 2}, where);
          if (dtype == DType::kFloat32 && coefficient == 0)
            test_launchers(kLarge, {dtype, 1, u_first, coefficient, 2}, where);
        }
    test_guard();
    test_streaming(isa);
  }
  CHECK(!gankernels::cpu::set_isa("no such set"), "expected it refused");
  gankernels::cpu::set_isa("");
  test_pool();
  test_threads_of_their_own();
  std::printf("%d instruction sets, %d failures\n", sets, failures);
  return failures == 0 ? 0 : 1;
}
