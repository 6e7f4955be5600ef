// The transforms of each sample in adaptive discriminator augmentation: the contract between
// bindings and kernels, and the arithmetic of one sample, which the CPU and CUDA share. Karras et al.
// 2020 (arXiv 2006.06676), appendix B.
//
// Two steps, each of which a call may do without: `sample` takes random numbers and the strength p to
// Values, which know no image size; `map_of`, `color_of` and `gains_of` take Values to what the
// operators on images are given. All in double: it is done once a sample.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/dtype.h"

namespace gankernels::ada_parameters {

// A row of any of these is contiguous doubles, in this order.

struct Gates {
  double xflip, rotate90, xint, scale, rotate_before, aniso, rotate_after, xfrac;
  double brightness, contrast, lumaflip, hue, saturation;
  double bands[4], noise, cutout;
};

// Uniforms of a sample, in [0, 1): a column for every transform, enabled or not, so that none
// changes the numbers of another.
struct Uniforms {
  Gates gates;
  double xflip, rotate90, xint[2], rotate_before, rotate_after, lumaflip, hue, center[2], seed;
};

// The same of N(0, 1).
struct Normals {
  double scale, aniso, xfrac[2], brightness, contrast, saturation, bands[4], noise;
};

struct Values {
  double xflip, rotate90;  // 0 or 1; quarter turns, 0 to 3
  double xint[2];          // x, y in fractions; whole pixels when composed
  double scale, rotate_before, aniso, rotate_after;  // angles in radians
  double xfrac[2];                                   // x, y in fractions
  double brightness, contrast, lumaflip, hue, saturation;
  double bands[4];           // gains
  double noise;              // standard deviation
  double cutout, center[2];  // size, 0 for none, and x, y in fractions
};

// 0: absent.
struct Multipliers {
  double xflip, rotate90, xint, scale, rotate, aniso, xfrac;
  double brightness, contrast, lumaflip, hue, saturation;
  double bands[4], noise, cutout;

  constexpr bool geometry() const {
    return xflip > 0 || rotate90 > 0 || xint > 0 || scale > 0 || rotate > 0 || aniso > 0 ||
           xfrac > 0;
  }
  // Hue and saturation mean nothing to images of one channel.
  constexpr bool color(int64_t channels) const {
    const bool any = brightness > 0 || contrast > 0 || lumaflip > 0;
    return channels == 3 ? any || hue > 0 || saturation > 0 : channels == 1 && any;
  }
  constexpr bool filter() const {
    return bands[0] > 0 || bands[1] > 0 || bands[2] > 0 || bands[3] > 0;
  }
};

struct Constants {
  double xint_max, scale_std, rotate_max, aniso_std, xfrac_std;
  double brightness_std, contrast_std, hue_max, saturation_std;
  double imgfilter_std, noise_std, cutout_size;
};

constexpr int kUniforms = sizeof(Uniforms) / sizeof(double);
constexpr int kNormals = sizeof(Normals) / sizeof(double);
constexpr int kValues = sizeof(Values) / sizeof(double);
constexpr int kMultipliers = sizeof(Multipliers) / sizeof(double);
constexpr int kConstants = sizeof(Constants) / sizeof(double);
static_assert(kUniforms == 30 && kNormals == 12 && kValues == 23);

// Strengths of the groups blit, geom, color, filter, noise, cutout.
constexpr int kGroups = 6;

// "acc" is `acc`: float32 or float64.
struct Parameters {
  DType acc;
  int64_t batch;
  Multipliers multipliers;
  Constants constants;

  // Sampling; uniforms is null where values are given.
  const Uniforms* uniforms;  // batch
  const Normals* normals;    // batch
  const void* p;             // p_count: 1, or kGroups
  DType p_dtype;             // float32 or float64
  int64_t p_count;
  Values* values;  // batch: written
  int64_t* seed;   // batch: of the noise

  // Composition; each result may be null: not wanted.
  const Values* input_values;  // batch; null where values are drawn
  int64_t height, width, color_channels;
  double* maps;      // batch x 2 x 3
  int64_t* margins;  // 4: of the batch, also of an empty one; with maps only
  void* color;       // batch x channels x (channels + 1), acc
  void* gains;       // batch x 4, acc
  void* sigma;       // batch, acc
  double* box;       // batch x 3: center x, center y, size
};

// Every launcher returns null, or what went wrong.
namespace cpu {
const char* compute(const Parameters&);
}  // namespace cpu

// On the current device; one launch.
namespace cuda {
int64_t workspace(const Parameters&);
const char* compute(const Parameters&, void* workspace, void* stream);
}  // namespace cuda

// --- sampling ------------------------------------------------------------------------------------

constexpr double kPi = 3.14159265358979323846;

struct Strengths {
  double blit, geom, color, filter, noise, cutout;

  static constexpr Strengths of(const double (&p)[kGroups]) {
    return {clamped(p[0]), clamped(p[1]), clamped(p[2]),
            clamped(p[3]), clamped(p[4]), clamped(p[5])};
  }
  static constexpr double clamped(double p) { return p > 0 ? (p < 1 ? p : 1) : 0; }  // NaN: 0
};

// A transform is applied where its gate's number is below its probability; else its value is that of
// the identity.
constexpr Values sample(const Uniforms& u, const Normals& n, const Strengths& p,
                        const Multipliers& m, const Constants& c) {
  // The probability of each rotation, so that either happens with the probability of `rotate`.
  const double none = 1 - m.rotate * p.geom;
  const double rotates = 1 - std::sqrt(none > 0 ? none : 0);
  Values v{0, 0, {0, 0}, 1, 0, 1, 0, {0, 0}, 0, 1, 0, 0, 1, {1, 1, 1, 1}, 0, 0, {0, 0}};
  if (u.gates.xflip < m.xflip * p.blit) v.xflip = std::floor(2 * u.xflip);
  if (u.gates.rotate90 < m.rotate90 * p.blit) v.rotate90 = std::floor(4 * u.rotate90);
  if (u.gates.xint < m.xint * p.blit)
    for (int k = 0; k < 2; ++k) v.xint[k] = (2 * u.xint[k] - 1) * c.xint_max;
  if (u.gates.scale < m.scale * p.geom) v.scale = std::exp2(n.scale * c.scale_std);
  if (u.gates.rotate_before < rotates)
    v.rotate_before = (2 * u.rotate_before - 1) * kPi * c.rotate_max;
  if (u.gates.aniso < m.aniso * p.geom) v.aniso = std::exp2(n.aniso * c.aniso_std);
  if (u.gates.rotate_after < rotates)
    v.rotate_after = (2 * u.rotate_after - 1) * kPi * c.rotate_max;
  if (u.gates.xfrac < m.xfrac * p.geom)
    for (int k = 0; k < 2; ++k) v.xfrac[k] = n.xfrac[k] * c.xfrac_std;
  if (u.gates.brightness < m.brightness * p.color) v.brightness = n.brightness * c.brightness_std;
  if (u.gates.contrast < m.contrast * p.color) v.contrast = std::exp2(n.contrast * c.contrast_std);
  if (u.gates.lumaflip < m.lumaflip * p.color) v.lumaflip = std::floor(2 * u.lumaflip);
  if (u.gates.hue < m.hue * p.color) v.hue = (2 * u.hue - 1) * kPi * c.hue_max;
  if (u.gates.saturation < m.saturation * p.color)
    v.saturation = std::exp2(n.saturation * c.saturation_std);
  for (int k = 0; k < 4; ++k)
    if (u.gates.bands[k] < m.bands[k] * p.filter)
      v.bands[k] = std::exp2(n.bands[k] * c.imgfilter_std);
  if (u.gates.noise < m.noise * p.noise) v.noise = std::abs(n.noise) * c.noise_std;
  if (u.gates.cutout < m.cutout * p.cutout) {
    v.cutout = c.cutout_size;
    for (int k = 0; k < 2; ++k) v.center[k] = u.center[k];
  }
  return v;
}

// The bits of a number that torch.rand drew in float64.
constexpr int64_t seed_of(const Uniforms& u) {
  return static_cast<int64_t>(u.seed * 0x1p53);
}

// --- geometry ------------------------------------------------------------------------------------

struct Angle {
  double cos, sin;

  // By the nearest quarter turn and the series of what remains; 0 gives 1 and 0. The library's
  // functions have a slow path for huge angles that takes a GPU's local memory.
  static constexpr Angle of(double radians) {
    const double quarter = std::floor(radians * (2 / kPi) + 0.5);
    const double x =
        radians - quarter * 1.57079632673412561417 - quarter * 6.07710050650619224932e-11;
    const double square = x * x;
    double c = 1, s = 1;
    for (int k = 16; k >= 2; k -= 2) {
      c = 1 - square * (1.0 / (k * (k - 1))) * c;
      s = 1 - square * (1.0 / (k * (k + 1))) * s;
    }
    s *= x;
    const double turns = quarter - 4 * std::floor(quarter / 4);
    if (turns == 1) return {-s, c};
    if (turns == 2) return {-c, -s};
    if (turns == 3) return {s, -c};
    return {c, s};
  }
  static constexpr Angle quarters(double i) {
    return {i == 0 ? 1 : i == 2 ? -1 : 0 * i, i == 1 ? 1 : i == 3 ? -1 : 0 * i};  // NaN: NaN
  }
};

// From centered output pixels to centered input pixels: (a x + b y + tx, c x + d y + ty).
struct Map {
  double a, b, tx, c, d, ty;

  static constexpr Map scale(double x, double y) { return {x, 0, 0, 0, y, 0}; }
  static constexpr Map rotation(const Angle& r) { return {r.cos, -r.sin, 0, r.sin, r.cos, 0}; }
  static constexpr Map shift(double x, double y) { return {1, 0, x, 0, 1, y}; }
};

// First `second`, then `first`.
constexpr Map operator*(const Map& first, const Map& second) {
  const auto& [a, b, tx, c, d, ty] = second;
  return {
      first.a * a + first.b * c, first.a * b + first.b * d, first.a * tx + first.b * ty + first.tx,
      first.c * a + first.d * c, first.c * b + first.d * d, first.c * tx + first.d * ty + first.ty};
}

// The inverses of the transforms, of which the first acts first on the image. Factors of integers
// come first: their product is exact, and axes stay axes.
constexpr Map map_of(const Values& v, int64_t height, int64_t width) {
  const auto w = static_cast<double>(width), h = static_cast<double>(height);
  const Map m = Map::scale(1 - 2 * v.xflip, 1) *                                              //
                Map::rotation(Angle::quarters(v.rotate90)) *                                  //
                Map::shift(-std::nearbyint(v.xint[0] * w), -std::nearbyint(v.xint[1] * h)) *  //
                Map::scale(1 / v.scale, 1 / v.scale) *                                        //
                Map::rotation(Angle::of(v.rotate_before)) *                                   //
                Map::scale(1 / v.aniso, v.aniso) *                                            //
                Map::rotation(Angle::of(v.rotate_after)) *                                    //
                Map::shift(-v.xfrac[0] * w, -v.xfrac[1] * h);
  return {m.a + 0, m.b + 0, m.tx, m.c + 0, m.d + 0, m.ty};  // -0 + 0 = 0
}

// The pixels by which stylegan2-ada pads the left, right, top and bottom of a batch: as far as the
// corners of the image reach, and 6 of the filter; at most the image. Largest over the samples, so
// that their order does not matter.
struct Margins {
  int64_t at[4];

  constexpr void widen(const Margins& other) {
    for (int k = 0; k < 4; ++k)
      if (other.at[k] > at[k]) at[k] = other.at[k];
  }
};

constexpr Margins margins_of(const Map& m, int64_t height, int64_t width) {
  const double x = static_cast<double>(width - 1) / 2, y = static_cast<double>(height - 1) / 2;
  double reach[4] = {-HUGE_VAL, -HUGE_VAL, -HUGE_VAL, -HUGE_VAL};
  for (int corner = 0; corner < 4; ++corner) {
    const double u = corner & 1 ? x : -x, v = corner & 2 ? y : -y;
    const double at[2] = {m.a * u + m.b * v + m.tx, m.c * u + m.d * v + m.ty};
    for (int axis = 0; axis < 2; ++axis) {
      // A map that is not finite spoils its own sample only.
      const double position = at[axis] == at[axis] ? at[axis] : 0;
      if (-position > reach[2 * axis]) reach[2 * axis] = -position;
      if (position > reach[2 * axis + 1]) reach[2 * axis + 1] = position;
    }
  }
  Margins margins{};
  for (int k = 0; k < 4; ++k) {
    const double half = k < 2 ? x : y, needed = std::ceil(reach[k] + 6 - half);
    if (needed > 0) margins.at[k] = static_cast<int64_t>(needed < 2 * half ? needed : 2 * half);
  }
  return margins;
}

// --- color --------------------------------------------------------------------------------------

// The product of brightness, contrast, lumaflip, hue and saturation, the first of which acts first.
// All of them scale the gray axis (1, 1, 1) and turn and scale the plane across it: with y and s the
// factors of the two and h the hue, the rows of the matrix are
//
//   [same next last], [last same next], [next last same]
struct Color {
  double gray, offset;  // y, and what is added
  double same, next, last;

  // An element of the matrix with its offset.
  constexpr double at(int64_t channels, int row, int column) const {
    if (column == channels) return offset;
    if (channels == 1) return gray;
    const int turn = (column - row + 3) % 3;
    return turn == 0 ? same : turn == 1 ? next : last;
  }
};

constexpr Color color_of(const Values& v) {
  const Angle hue = Angle::of(v.hue);
  const double gray = v.contrast * (1 - 2 * v.lumaflip);
  const double along = v.contrast * v.saturation * hue.cos;
  const double across = v.contrast * v.saturation * hue.sin / 1.73205080756887729353;
  const double mean = (gray - along) / 3;
  return {gray, gray * v.brightness, along + mean, mean - across, mean + across};
}

// --- the filter's gains --------------------------------------------------------------------------

struct Gains {
  double at[4];
};

// A band that is amplified dampens all of them, so that images whose power falls as 1 / f keep theirs.
// All 1 where no band is.
constexpr Gains gains_of(const Values& v) {
  Gains g{{1, 1, 1, 1}};
  for (int i = 0; i < 4; ++i) {
    const double t = v.bands[i], power = (i == 0 ? 10.0 : 1.0) / 13;
    const double root = std::sqrt(1 + power * (t * t - 1));
    for (int j = 0; j < 4; ++j) g.at[j] *= (j == i ? t : 1) / root;
  }
  return g;
}

}  // namespace gankernels::ada_parameters
