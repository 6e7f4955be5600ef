// Fuzzes the CPU kernels of affine resampling against the definition in affine_resample.h, taken
// literally: the doubled plane, the lattice, the filter; and each of them given back for the transpose.
#include "affine_resample.h"

#include <cmath>
#include <vector>

#include "fuzz_image.h"

namespace {

using namespace fuzz;
namespace ar = gankernels::affine_resample;
using ar::Filter;
using ar::Padding;

// PyWavelets: Wavelet("sym6").dec_lo, divided by its sum.
constexpr double kF[12] = {0.010892350163280001, 0.0024683061859200003, -0.08343160770584002,
                           -0.03416156079324,    0.34722898647835004,   0.55694639196396,
                           0.23895218566605003,  -0.05136248493090002,  -0.014891875649220001,
                           0.031625281329940004, 0.0012499610463900003, -0.005515933754690001};

int64_t mirrored(int64_t i, int64_t size) {
  if (size == 1) return 0;
  const int64_t period = 2 * (size - 1), j = ((i % period) + period) % period;
  return j < size ? j : period - j;
}

struct Tap {
  int64_t from;
  double weight;
};
using Taps = std::vector<Tap>;  // of one number

// A linear map of planes that is one along each axis, or none; `turned` backwards. Magnitudes are what
// rounding errors are measured by.
struct Plane {
  int64_t height, width;
  Vector at;
  Plane(int64_t height, int64_t width) : height(height), width(width), at(height * width) {}
  double& operator()(int64_t y, int64_t x) { return at[y * width + x]; }
  double operator()(int64_t y, int64_t x) const { return at[y * width + x]; }
  double largest() const {
    double most = 0;
    for (const double x : at) most = std::max(most, std::abs(x));
    return most;
  }
};

Plane along_x(const Plane& in, const std::vector<Taps>& taps, bool magnitude) {
  Plane out(in.height, static_cast<int64_t>(taps.size()));
  for (int64_t y = 0; y < in.height; ++y)
    for (int64_t x = 0; x < out.width; ++x)
      for (const Tap& t : taps[x])
        out(y, x) += (magnitude ? std::abs(t.weight) : t.weight) * in(y, t.from);
  return out;
}
Plane along_y(const Plane& in, const std::vector<Taps>& taps, bool magnitude) {
  Plane out(static_cast<int64_t>(taps.size()), in.width);
  for (int64_t y = 0; y < out.height; ++y)
    for (const Tap& t : taps[y])
      for (int64_t x = 0; x < in.width; ++x)
        out(y, x) += (magnitude ? std::abs(t.weight) : t.weight) * in(t.from, x);
  return out;
}
// The transposed map: from `size` numbers.
std::vector<Taps> turned(const std::vector<Taps>& taps, int64_t size) {
  std::vector<Taps> out(size);
  for (size_t i = 0; i < taps.size(); ++i)
    for (const Tap& t : taps[i]) out[t.from].push_back({static_cast<int64_t>(i), t.weight});
  return out;
}

// The nodes of the doubled plane along one axis: a period of them, or those within margins.
struct Nodes {
  bool bounded;
  int64_t first, count;
  std::vector<Taps> taps;  // of each, from pixels

  Nodes(int64_t size, const int64_t* margins) : bounded(margins) {
    first = margins ? -2 * margins[0] : 0;
    count = margins ? 2 * (size + margins[1]) - first : std::max<int64_t>(2, 4 * (size - 1));
    taps.resize(count);
    for (int64_t u = first; u < first + count; ++u)
      for (int64_t j = 0; j < 12; ++j) {
        if ((u + 5 - j) % 2 != 0) continue;
        const int64_t pixel = (u + 5 - j) / 2;
        if (margins && (pixel < -margins[0] || pixel > size - 1 + margins[1])) continue;
        taps[u - first].push_back({mirrored(pixel, size), 2 * kF[j]});
      }
  }
  // Where node u is kept, or -1 where it is 0.
  int64_t at(int64_t u) const {
    if (!bounded) return ((u % count) + count) % count;
    return u >= first && u < first + count ? u - first : -1;
  }
};

// out[i] = sum_j f[j] S[2 i - 5 + j], with S from -5 on.
std::vector<Taps> decimation(int64_t size) {
  std::vector<Taps> taps(size);
  for (int64_t i = 0; i < size; ++i)
    for (int j = 0; j < 12; ++j) taps[i].push_back({2 * i + j, kF[j]});
  return taps;
}

struct Case {
  ar::Resample r;
  Images in, out;
  std::vector<double> maps;
  std::vector<int64_t> margins;
  Ending ending;

  // Of an output position in pixels, the input position.
  void position(int64_t b, double x, double y, double* px, double* py) const {
    const double* m = &maps[6 * b];
    x -= static_cast<double>(out.width - 1) / 2, y -= static_cast<double>(out.height - 1) / 2;
    *px = m[0] * x + m[1] * y + m[2] + static_cast<double>(in.width - 1) / 2;
    *py = m[3] * x + m[4] * y + m[5] + static_cast<double>(in.height - 1) / 2;
  }
  // The largest position, in half pixels.
  double reach(int64_t b) const {
    const double* m = &maps[6 * b];
    const double w = static_cast<double>(out.width) + 5, h = static_cast<double>(out.height) + 5;
    return 4 * ((std::abs(m[0]) + std::abs(m[3])) * w + (std::abs(m[1]) + std::abs(m[4])) * h +
                std::abs(m[2]) + std::abs(m[5]) + static_cast<double>(in.width + in.height));
  }
  // How far a position may lie from where it is computed here: what double rounds, or what fixed point
  // of 32 bits at the least does to the steps.
  double blur(int64_t b) const {
    const double rounding = std::ldexp(reach(b), -48);
    if (r.dtype == DType::kFloat64) return rounding;
    const double halves = 4 * static_cast<double>(out.width + out.height) + 20;
    return rounding + std::ldexp(halves, reach(b) < 0x1p18 ? -40 : -32);
  }
  // Maps that are not finite give NaN. (Those beyond 1e9 are brought near, and are not drawn.)
  bool nothing(int64_t b) const { return !(reach(b) < 1e9); }
  bool copied(int64_t b) const {
    const double* m = &maps[6 * b];
    const auto unit = [](double x) { return std::abs(x) == 1; };
    const bool axes = (unit(m[0]) && unit(m[4]) && m[1] == 0 && m[3] == 0) ||
                      (unit(m[1]) && unit(m[3]) && m[0] == 0 && m[4] == 0);
    double px, py;
    position(b, 0, 0, &px, &py);
    return r.lossless && !r.margins && axes && px == std::floor(px) && py == std::floor(py);
  }

  // Calls f(output row, column, input row, column, weight).
  template <class F>
  void for_each_pixel(int64_t b, Filter filter, F&& f) const {
    const auto padded = [&](int64_t i, int64_t size) -> int64_t {
      if (r.padding == Padding::kReflection) return mirrored(i, size);
      if (i >= 0 && i < size) return i;
      return r.padding == Padding::kZeros ? -1 : std::clamp<int64_t>(i, 0, size - 1);
    };
    for (int64_t y = 0; y < out.height; ++y)
      for (int64_t x = 0; x < out.width; ++x) {
        double px, py;
        position(b, static_cast<double>(x), static_cast<double>(y), &px, &py);
        const bool nearest = filter == Filter::kNearest;
        const double fx = nearest ? std::nearbyint(px) : std::floor(px);
        const double fy = nearest ? std::nearbyint(py) : std::floor(py);
        for (int j = 0; j < (nearest ? 1 : 2); ++j)
          for (int i = 0; i < (nearest ? 1 : 2); ++i) {
            const int64_t column = padded(static_cast<int64_t>(fx) + i, in.width);
            const int64_t row = padded(static_cast<int64_t>(fy) + j, in.height);
            const double weight =
                nearest ? 1 : (i ? px - fx : 1 - (px - fx)) * (j ? py - fy : 1 - (py - fy));
            if (row >= 0 && column >= 0) f(y, x, row, column, weight);
          }
      }
  }

  // Of an image the resampled one, or of an output what it gives back.
  Plane resampled(int64_t b, const Plane& from, bool transpose, bool magnitude) const {
    if (copied(b) || r.filter != Filter::kSym6) {
      Plane to = transpose ? Plane(in.height, in.width) : Plane(out.height, out.width);
      // A share close to 1 is rounded, and what is left of 1 is as wrong: a 32nd of what is allowed.
      const double rounded = !copied(b) && r.filter == Filter::kBilinear ? 1.0 / 32 : 0;
      for_each_pixel(b, copied(b) ? Filter::kNearest : r.filter,
                     [&](int64_t y, int64_t x, int64_t row, int64_t column, double weight) {
                       if (magnitude) weight = std::abs(weight) + rounded;
                       if (transpose)
                         to(row, column) += weight * from(y, x);
                       else
                         to(y, x) += weight * from(row, column);
                     });
      return to;
    }
    const int64_t* m = r.margins;
    const Nodes nx(in.width, m), ny(in.height, m ? m + 2 : nullptr);
    Plane nodes(ny.count, nx.count), points(2 * out.height + 10, 2 * out.width + 10);
    const std::vector<Taps> dx = decimation(out.width), dy = decimation(out.height);
    if (transpose)
      points = along_y(along_x(from, turned(dx, points.width), magnitude),
                       turned(dy, points.height), magnitude);
    else
      nodes = along_y(along_x(from, nx.taps, magnitude), ny.taps, magnitude);
    for (int64_t k = 0; k < points.height; ++k)
      for (int64_t l = 0; l < points.width; ++l) {
        double u, v;
        position(b, static_cast<double>(l - 5) / 2, static_cast<double>(k - 5) / 2, &u, &v);
        u *= 2, v *= 2;
        const auto iu = static_cast<int64_t>(std::floor(u)),
                   iv = static_cast<int64_t>(std::floor(v));
        for (int j = 0; j < 2; ++j)
          for (int i = 0; i < 2; ++i) {
            const double su = u - static_cast<double>(iu), sv = v - static_cast<double>(iv);
            const double weight = (i ? su : 1 - su) * (j ? sv : 1 - sv);
            const int64_t y = ny.at(iv + j), x = nx.at(iu + i);
            if (y < 0 || x < 0) continue;
            if (transpose)
              nodes(y, x) += weight * points(k, l);
            else
              points(k, l) += weight * nodes(y, x);
          }
      }
    if (transpose)
      return along_y(along_x(nodes, turned(nx.taps, in.width), magnitude),
                     turned(ny.taps, in.height), magnitude);
    return along_y(along_x(points, dx, magnitude), dy, magnitude);
  }
};

void draw_map(Random& random, const Case& c, double* m) {
  const double w = static_cast<double>(c.in.width), h = static_cast<double>(c.in.height);
  const auto shift = [&](double size) {
    switch (random.integer(0, 4)) {
      case 0:
        return 0.0;
      case 1:
        return static_cast<double>(random.integer(-5, 5)) / 2;
      case 2:
        return std::round(random.uniform(-3, 3) * size);
      default:
        return random.uniform(-1, 1) * size;
    }
  };
  const auto sign = [&] { return random.chance(0.5) ? 1.0 : -1.0; };
  double tx = shift(w), ty = shift(h);
  if (random.chance(0.03)) tx = random.uniform(-1e4, 1e4);
  const auto set = [&](double a, double b, double d, double e) {
    m[0] = a, m[1] = b, m[2] = tx, m[3] = d, m[4] = e, m[5] = ty;
  };
  // Axes to axes; half of them turned.
  const auto axes = [&](double a, double e) {
    random.chance(0.5) ? set(a, 0, 0, e) : set(0, a, e, 0);
  };
  const double angle = random.uniform(-3.2, 3.2);
  const auto rotated = [&](double sx, double sy) {
    set(sx * std::cos(angle), -sy * std::sin(angle), sx * std::sin(angle), sy * std::cos(angle));
  };
  switch (random.integer(0, 12)) {
    case 0:
      return set(1, 0, 0, 1);
    case 1:
    case 2:  // whole pixels where sizes and shifts let them be
      if (random.chance(0.6)) tx = std::round(tx), ty = std::round(ty);
      if (random.chance(0.3)) tx += 0.5;
      return axes(sign(), sign());
    case 3:
    case 4:
      return axes(sign() * random.uniform(0.2, 4), sign() * random.uniform(0.2, 4));
    case 5:  // filters too wide for a table
      return axes(sign() * random.pick({7.9, 8.0, 8.1, 12.0}), sign() * random.uniform(0.2, 9));
    case 6:  // dyadic
      return axes(sign() * random.pick({0.25, 0.5, 1.0, 2.0, 3.0}),
                  sign() * random.pick({0.5, 1.0, 1.5, 4.0}));
    case 7:
      return rotated(random.uniform(0.2, 1), random.uniform(0.2, 1));
    case 8:
    case 9:
      return rotated(random.uniform(0.6, 2.5), random.uniform(0.6, 2.5));
    case 10:  // footprints too large
      return rotated(random.uniform(3, 20), random.uniform(1, 7));
    case 11:  // flat, or nearly
      return set(random.pick({0.0, 1.0, 1e-9}), random.pick({0.0, 1.0, 1e-9}),
                 random.pick({0.0, 1.0, 1e-7}), random.pick({0.0, 1.0, -1.0}));
    default:
      rotated(1, 1);
      if (random.chance(0.4))
        m[random.integer(0, 5)] = random.pick(
            {std::nan(""), static_cast<double>(INFINITY), -static_cast<double>(INFINITY)});
  }
}

void draw(Random& random, Case& c) {
  const DType dtype = random.dtype();
  ar::Resample& r = c.r;
  r.dtype = dtype;
  r.filter = random.pick(
      {Filter::kNearest, Filter::kBilinear, Filter::kSym6, Filter::kSym6, Filter::kSym6});
  r.padding = r.filter == Filter::kSym6
                  ? Padding::kReflection
                  : random.pick({Padding::kReflection, Padding::kZeros, Padding::kBorder});
  r.lossless = random.chance(0.7);
  r.batch = random.integer(1, 2);
  r.channels = random.pick<int64_t>({1, 1, 2, 3, 3, 4, 5, 6, 8, 9});
  say(" %s, filter %d, padding %d%s", kNames[static_cast<int>(dtype)], static_cast<int>(r.filter),
      static_cast<int>(r.padding), r.lossless ? ", lossless" : "");
  const int64_t budget = std::max<int64_t>(
      1, random.pick<int64_t>({60, 500, 500, 3000, 12000}) / r.batch / ((r.channels + 1) / 2));
  const auto side = [&](int64_t* height, int64_t* width) {
    *height = random.size(std::min<int64_t>(budget, 300));
    *width = random.size(std::min<int64_t>(std::max<int64_t>(1, budget / *height), 300));
    if (random.chance(0.5)) std::swap(*height, *width);
  };
  int64_t ih, iw, oh, ow;
  side(&ih, &iw);
  oh = ih, ow = iw;
  if (random.chance(0.6)) side(&oh, &ow);
  c.in = draw_images(random, dtype, r.batch, r.channels, ih, iw, random.chance(0.25), false);
  c.out = draw_images(random, dtype, r.batch, r.channels, oh, ow, random.chance(0.25), false);
  r.in = c.in.layout, r.out = c.out.layout;
  c.maps.resize(6 * r.batch);
  const bool given = random.chance(0.95);
  for (int64_t b = 0; b < r.batch; ++b) {
    double* m = &c.maps[6 * b];
    const double identity[6] = {1, 0, 0, 0, 1, 0};
    std::copy(identity, identity + 6, m);
    if (given) draw_map(random, c, m);
    say("\n  map %.17g %.17g %.17g, %.17g %.17g %.17g", m[0], m[1], m[2], m[3], m[4], m[5]);
  }
  if (given) r.maps = c.maps.data();
  if (r.filter == Filter::kSym6 && random.chance(0.25)) {
    for (const int64_t size : {iw, iw, ih, ih}) c.margins.push_back(random.integer(0, size + 7));
    r.margins = c.margins.data();
    say("\n  margins %ld %ld %ld %ld", long(c.margins[0]), long(c.margins[1]), long(c.margins[2]),
        long(c.margins[3]));
  }
  c.ending = draw_ending(random, dtype, r.batch, r.channels, true);
  r.epilogue = c.ending.epilogue;
}

// Whether nearest neighbors hang on a rounding.
bool tied(const Case& c, int64_t b) {
  if (c.r.filter != Filter::kNearest || c.copied(b)) return false;
  bool exact = true;  // positions are multiples of a sixteenth: no rounding
  for (int i = 0; i < 6; ++i) exact &= c.maps[6 * b + i] * 8 == std::round(c.maps[6 * b + i] * 8);
  if (exact) return false;
  for (int64_t y = 0; y < c.out.height; ++y)
    for (int64_t x = 0; x < c.out.width; ++x) {
      double p[2];
      c.position(b, static_cast<double>(x), static_cast<double>(y), p, p + 1);
      for (const double at : p)
        if (std::abs(at - std::floor(at) - 0.5) <= c.blur(b)) return true;
    }
  return false;
}

void check(const Case& c, int64_t b, bool transpose) {
  const Images &from = transpose ? c.out : c.in, &to = transpose ? c.in : c.out;
  const DType dtype = c.r.dtype;
  const double one = wide_unit(dtype), slip = c.blur(b);
  if (tied(c, b)) return;
  std::vector<Plane> right, magnitude;
  for (int64_t k = 0; k < c.r.channels; ++k) {
    Plane plane(from.height, from.width), size = plane;
    for (int64_t y = 0; y < from.height; ++y)
      for (int64_t x = 0; x < from.width; ++x) {
        plane(y, x) = from(b, k, y, x);
        if (transpose) {
          if (c.ending.cut(b, y, x, from.height, from.width)) {
            plane(y, x) = 0;
          } else if (c.ending.matrix && c.ending.color(k) >= 0) {
            plane(y, x) = 0;
            for (int i = 0; i < c.ending.epilogue.color_count; ++i) {
              const double term = c.ending.entry(b, i, c.ending.color(k)) *
                                  from(b, c.ending.epilogue.color[i], y, x);
              plane(y, x) += term, size(y, x) += std::abs(term);
            }
          }
        }
        size(y, x) += std::abs(plane(y, x));
      }
    if (c.nothing(b)) {
      right.emplace_back(to.height, to.width), magnitude.emplace_back(to.height, to.width);
      for (double& x : right.back().at) x = NAN;
      continue;
    }
    right.push_back(c.resampled(b, plane, transpose, false));
    magnitude.push_back(c.resampled(b, size, transpose, true));
  }
  for (int64_t k = 0; k < c.r.channels; ++k) {
    std::vector<double> largest;
    for (const Plane& m : magnitude) largest.push_back(m.largest());
    for (int64_t y = 0; y < to.height; ++y)
      for (int64_t x = 0; x < to.width; ++x) {
        const auto at = [&](int64_t channel) -> Pixel {
          const bool copied = c.copied(b) && !transpose;
          return {right[channel](y, x), copied ? 0
                                               : 32 * one * magnitude[channel](y, x) +
                                                     (4 * one + slip) * largest[channel]};
        };
        Pixel p = at(k);
        if (!transpose) p = finished(c.ending, dtype, b, k, y, x, to.height, to.width, at);
        const double got = to(b, k, y, x);
        const double bound =
            1.001 * unit(dtype) * std::abs(p.value) + p.error + (p.error > 0 ? 0x1p-25 : 0);
        if (std::isnan(p.value) ? std::isnan(got) : std::abs(got - p.value) <= bound) continue;
        CHECK(false,
              "sample %ld, channel %ld, row %ld, column %ld: %.9g, expected %.9g within %.2g",
              long(b), long(k), long(y), long(x), got, p.value, bound);
        return;
      }
  }
}

void test(Random& random) {
  draw_isa(random);
  Case c{};
  const bool transpose = random.chance(0.45);
  const int threads = random.chance(0.5) ? static_cast<int>(random.integer(2, 4)) : 1;
  say(" %s, threads 1 and %d,", transpose ? "transpose" : "forward", threads);
  draw(random, c);
  Images &from = transpose ? c.out : c.in, &to = transpose ? c.in : c.out;
  from.memory->draw(random);
  const std::vector<double> maps = c.maps;
  std::vector<char> single;
  for (int run = 0; run < 2; ++run) {
    c.r.threads = run ? threads : 1;
    std::memset(to.memory->data, 0xff, to.memory->contents().size());
    good(transpose ? ar::cpu::transpose({c.r, from.memory->data, to.memory->data})
                   : ar::cpu::forward({c.r, from.memory->data, to.memory->data}));
    if (run) CHECK(single == to.memory->contents(), "the result depends on the threads");
    single = to.memory->contents();
  }
  CHECK(from.memory->untouched() && c.ending.untouched(), "an input was changed");
  CHECK(std::memcmp(maps.data(), c.maps.data(), maps.size() * 8) == 0, "the maps were changed");
  CHECK(to.memory->untouched_but(to.pixels()), "written where no pixel is");
  for (int64_t b = 0; b < c.r.batch; ++b) check(c, b, transpose);
}

}  // namespace

int main(int argc, char** argv) {
  fuzz::run(argc, argv, 1500, test);
  return failures == 0 ? 0 : 1;
}
