// Fuzzes the CPU kernel of augmentation parameters against the transforms one after the other, as
// matrices, of which maps are the inverse.
#include "ada_parameters.h"

#include <array>
#include <cmath>
#include <vector>

#include "fuzz.h"

namespace {

using namespace fuzz;
namespace ap = gankernels::ada_parameters;

template <int N>
struct Square {
  double rows[N][N];
  double* operator[](int i) { return rows[i]; }
  const double* operator[](int i) const { return rows[i]; }
};

template <int N>
Square<N> identity() {
  Square<N> m{};
  for (int i = 0; i < N; ++i) m[i][i] = 1;
  return m;
}
template <int N>
Square<N> operator*(const Square<N>& a, const Square<N>& b) {
  Square<N> m{};
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < N; ++j)
      for (int k = 0; k < N; ++k) m[i][j] += a[i][k] * b[k][j];
  return m;
}

Square<3> affine(double a, double b, double tx, double d, double e, double ty) {
  return {{{a, b, tx}, {d, e, ty}, {0, 0, 1}}};
}
// Where the image goes: the map of output to input pixels turns the other way round.
Square<3> rotation(double angle) {
  return affine(std::cos(angle), std::sin(angle), 0, -std::sin(angle), std::cos(angle), 0);
}

// What is done to an image, first to last.
Square<3> geometry(const ap::Values& v, double height, double width) {
  Square<3> m = affine(1 - 2 * v.xflip, 0, 0, 0, 1, 0);
  m = rotation(v.rotate90 * std::acos(0)) * m;
  m = affine(1, 0, std::nearbyint(v.xint[0] * width), 0, 1, std::nearbyint(v.xint[1] * height)) * m;
  m = affine(v.scale, 0, 0, 0, v.scale, 0) * m;
  m = rotation(v.rotate_before) * m;
  m = affine(v.aniso, 0, 0, 0, 1 / v.aniso, 0) * m;
  m = rotation(v.rotate_after) * m;
  return affine(1, 0, v.xfrac[0] * width, 0, 1, v.xfrac[1] * height) * m;
}

Square<4> color(const ap::Values& v) {
  const double axis = 1 / std::sqrt(3.0);
  Square<4> m = identity<4>();
  for (int i = 0; i < 3; ++i) m[i][3] = v.brightness;
  Square<4> contrast = identity<4>(), flip = contrast, hue = contrast, saturation = contrast;
  const double c = std::cos(v.hue), s = std::sin(v.hue);
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) {
      const double gray = axis * axis, here = i == j;
      contrast[i][j] = here * v.contrast;
      flip[i][j] = here - 2 * gray * v.lumaflip;
      // Rodrigues; the cross product with the axis.
      const double cross = i == j ? 0 : (j - i + 3) % 3 == 1 ? -axis : axis;
      hue[i][j] = gray + c * (here - gray) + s * cross;
      saturation[i][j] = gray + v.saturation * (here - gray);
    }
  return saturation * hue * flip * contrast * m;
}

std::array<double, 4> gains(const ap::Values& v) {
  const double power[4] = {10.0 / 13, 1.0 / 13, 1.0 / 13, 1.0 / 13};
  std::array<double, 4> all = {1, 1, 1, 1};
  for (int band = 0; band < 4; ++band) {
    double t[4] = {1, 1, 1, 1}, sum = 0;
    t[band] = v.bands[band];
    for (int i = 0; i < 4; ++i) sum += power[i] * t[i] * t[i];
    for (int i = 0; i < 4; ++i) all[i] *= t[i] / std::sqrt(sum);
  }
  return all;
}

ap::Values sampled(const ap::Uniforms& u, const ap::Normals& n, const double* p,
                   const ap::Multipliers& m, const ap::Constants& c) {
  const double pi = std::acos(-1.0);
  ap::Values v{};
  v.scale = v.aniso = v.contrast = v.saturation = 1;
  for (double& band : v.bands) band = 1;
  if (u.gates.xflip < m.xflip * p[0]) v.xflip = u.xflip >= 0.5;
  if (u.gates.rotate90 < m.rotate90 * p[0]) v.rotate90 = std::floor(u.rotate90 * 4);
  if (u.gates.xint < m.xint * p[0])
    for (int k = 0; k < 2; ++k) v.xint[k] = (u.xint[k] * 2 - 1) * c.xint_max;
  if (u.gates.scale < m.scale * p[1]) v.scale = std::pow(2, n.scale * c.scale_std);
  const double rotates = 1 - std::sqrt(std::clamp(1 - m.rotate * p[1], 0.0, 1.0));
  if (u.gates.rotate_before < rotates)
    v.rotate_before = (u.rotate_before * 2 - 1) * pi * c.rotate_max;
  if (u.gates.aniso < m.aniso * p[1]) v.aniso = std::pow(2, n.aniso * c.aniso_std);
  if (u.gates.rotate_after < rotates) v.rotate_after = (u.rotate_after * 2 - 1) * pi * c.rotate_max;
  if (u.gates.xfrac < m.xfrac * p[1])
    for (int k = 0; k < 2; ++k) v.xfrac[k] = n.xfrac[k] * c.xfrac_std;
  if (u.gates.brightness < m.brightness * p[2]) v.brightness = n.brightness * c.brightness_std;
  if (u.gates.contrast < m.contrast * p[2]) v.contrast = std::pow(2, n.contrast * c.contrast_std);
  if (u.gates.lumaflip < m.lumaflip * p[2]) v.lumaflip = u.lumaflip >= 0.5;
  if (u.gates.hue < m.hue * p[2]) v.hue = (u.hue * 2 - 1) * pi * c.hue_max;
  if (u.gates.saturation < m.saturation * p[2])
    v.saturation = std::pow(2, n.saturation * c.saturation_std);
  for (int k = 0; k < 4; ++k)
    if (u.gates.bands[k] < m.bands[k] * p[3])
      v.bands[k] = std::pow(2, n.bands[k] * c.imgfilter_std);
  if (u.gates.noise < m.noise * p[4]) v.noise = std::abs(n.noise) * c.noise_std;
  if (u.gates.cutout < m.cutout * p[5]) {
    v.cutout = c.cutout_size;
    for (int k = 0; k < 2; ++k) v.center[k] = u.center[k];
  }
  return v;
}

// A struct of doubles, number by number.
template <class Struct, class Draw>
void fill(Struct& x, Draw&& draw) {
  double all[sizeof(Struct) / sizeof(double)];
  for (double& each : all) each = draw();
  std::memcpy(&x, all, sizeof x);
}
template <class Struct>
double number_of(const Struct& x, int i) {
  double value;
  std::memcpy(&value, reinterpret_cast<const char*>(&x) + 8 * i, 8);
  return value;
}

void test(Random& random) {
  ap::Parameters args{};
  const bool wide = random.chance(0.5), draws = random.chance(0.6);
  args.acc = wide ? DType::kFloat64 : DType::kFloat32;
  args.batch = random.size(70);
  args.height = random.size(600), args.width = random.size(600);
  args.color_channels = random.pick<int64_t>({0, 1, 3});
  fill(args.multipliers, [&] { return random.pick({0.0, 1.0, 1.0, random.uniform(0, 2)}); });
  fill(args.constants, [&] { return random.uniform(0, 1); });
  const int64_t n = args.batch;
  std::vector<ap::Uniforms> uniforms(n);
  std::vector<ap::Normals> normals(n);
  std::vector<ap::Values> values(n), given(n);
  for (auto& u : uniforms)
    fill(u, [&] {
      return random.chance(0.03) ? random.pick({0.0, 0.5, 0.25, 1 - 0x1p-53}) : random.uniform();
    });
  for (auto& x : normals) fill(x, [&] { return random.uniform(-2.5, 2.5); });
  const Block p =
      block(random, random.pick({DType::kFloat32, DType::kFloat64}), random.pick({1, 6}));
  for (int64_t k = 0; k < p->n; ++k)
    p->set(k, random.chance(0.2) ? random.pick({0.0, 1.0, -0.5, 1.5, std::nan("")})
                                 : random.uniform());
  p->freeze();
  double strength[6];
  for (int k = 0; k < 6; ++k) {
    const double x = (*p)[p->n == 1 ? 0 : k];
    strength[k] = std::isnan(x) ? 0 : std::clamp(x, 0.0, 1.0);
  }
  say("%s, batch %ld, image (%ld, %ld), %ld colors, %s, p", kNames[static_cast<int>(args.acc)],
      long(n), long(args.height), long(args.width), long(args.color_channels),
      draws ? "drawn" : "given");
  for (int64_t k = 0; k < p->n; ++k) say(" %.9g", (*p)[k]);

  const int64_t channels = args.color_channels;
  Memory maps(DType::kFloat64, 6 * n), colors(args.acc, n * channels * (channels + 1)),
      bands(args.acc, 4 * n), sigma(args.acc, n), box(DType::kFloat64, 3 * n);
  std::vector<int64_t> seeds(n);
  if (draws) {
    args.uniforms = uniforms.data(), args.normals = normals.data();
    args.p = p->data, args.p_dtype = p->dtype, args.p_count = p->n;
    args.values = values.data(), args.seed = seeds.data();
  } else {
    // Values of every transform, also beyond what sampling gives.
    for (int64_t i = 0; i < n; ++i) {
      const double all[6] = {1, 1, 1, 1, 1, 1};
      ap::Multipliers ones;
      fill(ones, [] { return 1.0; });
      given[i] = sampled(uniforms[i], normals[i], all, ones, args.constants);
      if (random.chance(0.1)) given[i].rotate_before = random.uniform(-1000, 1000);
      if (random.chance(0.1)) given[i].hue = random.uniform(-1000, 1000);
    }
    args.input_values = given.data();
  }
  const auto wanted = [&] { return random.chance(0.75); };
  const bool with_maps = wanted(), with_color = channels && wanted(), with_gains = wanted(),
             with_sigma = wanted(), with_box = wanted(), with_margins = with_maps && wanted();
  Memory margins(DType::kFloat64, 4);
  if (with_maps) args.maps = reinterpret_cast<double*>(maps.data);
  if (with_color) args.color = colors.data;
  if (with_gains) args.gains = bands.data;
  if (with_sigma) args.sigma = sigma.data;
  if (with_box) args.box = reinterpret_cast<double*>(box.data);
  if (with_margins) args.margins = reinterpret_cast<int64_t*>(margins.data);
  const std::vector<ap::Uniforms> same_uniforms = uniforms;
  good(ap::cpu::compute(args));
  CHECK(std::memcmp(uniforms.data(), same_uniforms.data(), n * sizeof(ap::Uniforms)) == 0 &&
            p->untouched(),
        "an input was changed");
  for (const Memory* x : {&maps, &colors, &bands, &sigma, &box, &margins})
    CHECK(x->surroundings_untouched(), "written beyond its ends");

  if (with_margins) {
    double needed[4] = {};
    const double half[2] = {static_cast<double>(args.width - 1) / 2,
                            static_cast<double>(args.height - 1) / 2};
    for (int64_t k = 0; k < 16 * n; ++k) {
      const int64_t side = k % 4, row = side / 2, first = k / 16 * 6 + 3 * row;
      const double u = k & 4 ? half[0] : -half[0], v = k & 8 ? half[1] : -half[1];
      const double at = maps[first] * u + maps[first + 1] * v + maps[first + 2];
      needed[side] = std::max(needed[side], (side % 2 ? at : -at) + 6 - half[row]);
    }
    for (int side = 0; side < 4; ++side) {
      const double right = std::min(needed[side], 2 * half[side / 2]), slack = 1e-9 * (1 + right);
      const auto margin = static_cast<double>(reinterpret_cast<const int64_t*>(margins.data)[side]);
      CHECK(margin >= right - slack && margin < right + 1 + slack, "margin %d: %g, not %g", side,
            margin, right);
    }
  }

  const double one = unit(args.acc);
  for (int64_t i = 0; i < n; ++i) {
    const ap::Values v =
        draws ? sampled(uniforms[i], normals[i], strength, args.multipliers, args.constants)
              : given[i];
    if (draws) {
      for (int k = 0; k < ap::kValues; ++k) {
        const double right = number_of(v, k);
        near("value", number_of(values[i], k), right, 1e-14 * (1 + std::abs(right)));
      }
      CHECK(seeds[i] == static_cast<int64_t>(std::ldexp(uniforms[i].seed, 53)),
            "seed of sample %ld", long(i));
    }
    if (with_maps) {
      // The map, and then the transforms: nothing is moved.
      Square<3> m = identity<3>();
      for (int k = 0; k < 6; ++k) m[k / 3][k % 3] = maps[6 * i + k];
      const Square<3> forward =
          geometry(v, static_cast<double>(args.height), static_cast<double>(args.width));
      const Square<3> both = m * forward;
      double size = 1;
      for (int r = 0; r < 2; ++r)
        for (int c = 0; c < 3; ++c) {
          double terms = 0;
          for (int k = 0; k < 3; ++k) terms += std::abs(m[r][k] * forward[k][c]);
          size = std::max(size, terms);
        }
      for (int r = 0; r < 2; ++r)
        for (int c = 0; c < 3; ++c)
          near("the map of the moved image", both[r][c], r == c, 1e-12 * size);
    }
    if (with_color) {
      const Square<4> right = color(v);
      const double size =
          std::abs(v.contrast) * std::max(1.0, v.saturation) * (1 + std::abs(v.brightness));
      for (int r = 0; r < channels; ++r)
        for (int c = 0; c <= channels; ++c) {
          double expected = right[r][c == channels ? 3 : c];
          if (channels == 1) expected = v.contrast * (1 - 2 * v.lumaflip) * (c ? v.brightness : 1);
          near("color", colors[(i * channels + r) * (channels + 1) + c], expected,
               one * std::abs(expected) + 1e-12 * size);
        }
    }
    if (with_gains) {
      const std::array<double, 4> right = gains(v);
      for (int k = 0; k < 4; ++k)
        near("gain", bands[4 * i + k], right[k], (one + 1e-14) * right[k]);
    }
    if (with_sigma) near("sigma", sigma[i], v.noise, (one + 1e-14) * v.noise);
    if (with_box) {
      const double right[3] = {v.center[0], v.center[1], v.cutout};
      for (int k = 0; k < 3; ++k) near("box", box[3 * i + k], right[k], 0);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  fuzz::run(argc, argv, 6000, test);
  return failures == 0 ? 0 : 1;
}
