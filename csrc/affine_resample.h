// Resampling images under affine maps, and its exact transpose: the contract between bindings and
// kernels, and the arithmetic that the CPU and CUDA share. Karras et al. 2020 (arXiv 2006.06676),
// appendix B.
//
// A map takes centered output pixels (x right, y down) to centered input pixels. The filter kSym6 stands
// for: up-sample by 2 with the symlet f, interpolate linearly at the points of a lattice of half output
// pixels, filter with f and take every second:
//
//   U[u]   = 2 sum_j f[j] z[(u + 5 - j) / 2]     over j with u + 5 - j even; u counts half input pixels
//   S[h]   = U at u(h), interpolated linearly    h counts half output pixels
//   out[i] = sum_j f[j] S[2 i - 5 + j]           along both axes each
//
// with z the image, continued by reflection about the centers of its border pixels. The result is
// linear in the image; maps are constants.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/epilogue.h"
#include "common/image.h"

namespace gankernels::affine_resample {

enum class Filter : int8_t { kNearest, kBilinear, kSym6 };
enum class Padding : int8_t { kReflection, kZeros, kBorder };  // kSym6 takes kReflection

struct Resample {
  DType dtype;
  Filter filter;
  Padding padding;
  bool lossless;  // moves by whole pixels copy, whatever the filter
  int threads;
  int64_t batch, channels;
  Layout in, out;
  const double* maps;  // batch x 2 x 3; null: the identity
  const int64_t*
      margins;  // x0, x1, y0, y1 of the batch, as stylegan2-ada has them; null: unlimited
  Epilogue epilogue;
};

// out = epilogue(resampled image)
struct Forward {
  Resample resample;
  const void* image;  // laid out as `in`
  void* out;          // as `out`
};

// The transpose of the linear part of Forward: grad_image = R^T epilogue^T grad.
struct Transpose {
  Resample resample;
  const void* grad;  // laid out as `out`
  void* image;       // as `in`
};

// Every launcher returns null, or what went wrong. Maps that are not finite give NaN, all others what
// they reach: see Lattice::near.
namespace cpu {
const char* forward(const Forward&);
const char* transpose(const Transpose&);
}  // namespace cpu

namespace cuda {
int64_t workspace(const Forward&);
int64_t workspace(const Transpose&);
const char* forward(const Forward&, void* workspace, void* stream);
const char* transpose(const Transpose&, void* workspace, void* stream);
}  // namespace cuda

// --- arithmetic ----------------------------------------------------------------------------------

// The symlet of 12 taps (PyWavelets: Wavelet("sym6").dec_lo), divided by its sum.
constexpr int kTaps = 12;
constexpr double kSymlet[kTaps] = {
    0.010892350163280001,  0.0024683061859200003, -0.08343160770584002,  -0.03416156079324,
    0.34722898647835004,   0.55694639196396,      0.23895218566605003,   -0.05136248493090002,
    -0.014891875649220001, 0.031625281329940004,  0.0012499610463900003, -0.005515933754690001};

constexpr int64_t floor_of(double x) {
  const auto i = static_cast<int64_t>(x);
  return i - (x < static_cast<double>(i));
}

// The kind of a sample's map, which the compiled kernels decide before they touch its pixels.
enum class Kind : int8_t {
  kCopy,       // whole pixels: source = sign * i + offset, axes perhaps swapped
  kSeparable,  // of kSym6: axes to axes, perhaps swapped
  kGeneral,
};

// u = a hx + b hy + c, v = d hx + e hy + f: from half output pixels, counted from the center of pixel
// 0, to half input pixels, likewise. For pixels instead of halves c and f are divided by 2.
struct Lattice {
  double a, b, c, d, e, f;

  // The lattice of the map [[a, b, tx], [d, e, ty]].
  ALWAYS_INLINE static constexpr Lattice of(double a, double b, double tx, double d, double e,
                                            double ty, const Layout& in, const Layout& out) {
    const auto w = static_cast<double>(out.width - 1), h = static_cast<double>(out.height - 1);
    return {a, b, static_cast<double>(in.width - 1) + 2 * tx - a * w - b * h,
            d, e, static_cast<double>(in.height - 1) + 2 * ty - d * w - e * h};
  }

  ALWAYS_INLINE constexpr bool straight() const { return b == 0 && d == 0; }
  ALWAYS_INLINE constexpr bool swapped() const { return a == 0 && e == 0 && !straight(); }

  // Whether positions can be counted, by 32 bits: finite, and not absurdly far.
  ALWAYS_INLINE constexpr bool usable(const Layout& out) const {
    const double w = 2 * static_cast<double>(out.width) + 10;
    const double h = 2 * static_cast<double>(out.height) + 10;
    return size(a) * w + size(b) * h + size(c) < kCounted &&
           size(d) * w + size(e) * h + size(f) < kCounted;
  }

  // The same, usable, of a finite map that is not. Reflection repeats itself; else all that matters of
  // what is far away is on which side of the image it lies, and the lattice is shrunk about the middle
  // of the image. Beyond kFarthest the map itself is shrunk, lest an offset overflow: positions would
  // be rounded to several pixels. (What stays unusable skips thousands of images of more than 10,000
  // pixels a side.)
  ALWAYS_INLINE static constexpr Lattice near(double a, double b, double tx, double d, double e,
                                              double ty, const Resample& r) {
    const double largest = larger(larger(larger(a, b), larger(d, e)), larger(tx, ty));
    const double s = largest > kFarthest ? kFarthest / largest : 1;  // 0 of infinity: NaN
    Lattice m = of(s * a, s * b, s * tx, s * d, s * e, s * ty, r.in, r.out);
    const bool repeats = r.padding == Padding::kReflection && !r.margins;
    near_along(m.a, m.b, m.c, r.in.width, repeats, r.out);
    near_along(m.d, m.e, m.f, r.in.height, repeats, r.out);
    return m;
  }

  // Whether every output pixel lies on a pixel: a unit step along each axis, and an even offset.
  ALWAYS_INLINE constexpr bool whole_pixels() const {
    const auto unit = [](double x) { return x == 1 || x == -1; };
    const auto even = [](double x) {
      return x > -1e15 && x < 1e15 && 2 * static_cast<double>(floor_of(x / 2)) == x;
    };
    const bool axes = (straight() && unit(a) && unit(e)) || (swapped() && unit(b) && unit(d));
    return axes && even(c) && even(f);
  }

  ALWAYS_INLINE constexpr Kind kind(const Resample& r) const {
    if (r.lossless && !r.margins && whole_pixels()) return Kind::kCopy;
    if (!r.margins && r.filter == Filter::kSym6 && (straight() || swapped()))
      return Kind::kSeparable;
    return Kind::kGeneral;
  }

 private:
  static constexpr double kFarthest = 0x1p50, kCounted = 1e9;

  ALWAYS_INLINE static constexpr double size(double x) { return x < 0 ? -x : x; }

  ALWAYS_INLINE static constexpr double larger(double x, double y) {
    return size(x) > size(y) ? size(x) : size(y);
  }
  // In [-period / 2, period / 2]. Exact, unless it is beyond 2^53.
  ALWAYS_INLINE static constexpr double folded(double x, double period) {
    return x - period * static_cast<double>(floor_of(x / period + 0.5));
  }

  // How far a position along an axis may lie.
  ALWAYS_INLINE static constexpr double reach(double a, double b, double c, const Layout& out) {
    return size(a) * (2 * static_cast<double>(out.width) + 10) +
           size(b) * (2 * static_cast<double>(out.height) + 10) + size(c);
  }

  ALWAYS_INLINE static constexpr void near_along(double& a, double& b, double& c, int64_t pixels,
                                                 bool repeats, const Layout& out) {
    const double far = reach(a, b, c, out);
    if (!(far >= kCounted && far < 1e300)) return;
    const auto middle = static_cast<double>(pixels - 1);
    if (repeats) {
      // Points are whole numbers: steps repeat themselves, too.
      const double period = pixels > 1 ? 4 * middle : 4;
      a = folded(a, period), b = folded(b, period), c = folded(c, period);
      return;
    }
    const double s = 0.5 * kCounted / far;
    a *= s, b *= s, c = middle + s * (c - middle);
  }
};

// A position along an axis of the input: the node or pixel before it, and the share of the way to the
// next. A share may round to 1.
template <class Acc>
struct Node {
  int32_t at;
  Acc share;
};

// The positions along one axis of the input, u = a hx + b hy + c, as those of a Lattice. `at` gives the
// position of a point; `node` counts it in nodes; `pixel` and `nearest` count in pixels, of which two
// nodes are one. In double for double; else in fixed point, which is the same for every processor and
// compiler, and needs no arithmetic in double.
template <class Acc>
struct Axis;

template <>
struct Axis<double> {
  using Position = double;

  ALWAYS_INLINE static constexpr Axis of(double a, double b, double t, int64_t in,
                                         const Layout& out) {
    return {a, b,
            static_cast<double>(in - 1) + 2 * t - a * static_cast<double>(out.width - 1) -
                b * static_cast<double>(out.height - 1)};
  }
  ALWAYS_INLINE static constexpr Axis of_far(double a, double b, double c, const Layout&) {
    return {a, b, c};
  }

  // Of the identity, between images of one size.
  ALWAYS_INLINE static constexpr Axis along(bool x) { return {x ? 1.0 : 0.0, x ? 0.0 : 1.0, 0}; }

  ALWAYS_INLINE constexpr Position at(int32_t hx, int32_t hy) const {
    return a * static_cast<double>(hx) + b * static_cast<double>(hy) + c;
  }
  ALWAYS_INLINE constexpr Node<double> node(Position u) const {
    const auto low = static_cast<int32_t>(floor_of(u));
    return {low, u - static_cast<double>(low)};
  }
  ALWAYS_INLINE constexpr Node<double> pixel(Position u) const { return node(u / 2); }
  // Halves to even.
  ALWAYS_INLINE constexpr int32_t nearest(Position u) const {
    const auto [low, share] = pixel(u);
    return low + (share > 0.5 || (share == 0.5 && (low & 1)));
  }

  double a, b, c;
};

template <>
struct Axis<float> {
  using Position = int64_t;

  // Of a map's row [a, b, t]. The offset is a sum of integers: sums of doubles depend on how a compiler
  // contracts them.
  ALWAYS_INLINE static constexpr Axis of(double a, double b, double t, int64_t in,
                                         const Layout& out) {
    const int32_t bits =
        bits_for(largest(largest(2 * t, static_cast<double>(in)), reach(a, b, out)));
    const auto fa = static_cast<uint64_t>(fixed(a, bits));
    const auto fb = static_cast<uint64_t>(fixed(b, bits));
    const uint64_t c =
        (static_cast<uint64_t>(in - 1) << bits) + static_cast<uint64_t>(fixed(2 * t, bits)) -
        fa * static_cast<uint64_t>(out.width - 1) - fb * static_cast<uint64_t>(out.height - 1);
    return {static_cast<int64_t>(fa), static_cast<int64_t>(fb), static_cast<int64_t>(c), bits};
  }
  // Of a lattice that has been brought near.
  ALWAYS_INLINE static constexpr Axis of_far(double a, double b, double c, const Layout& out) {
    const int32_t bits = bits_for(largest(c, reach(a, b, out)));
    return {fixed(a, bits), fixed(b, bits), fixed(c, bits), bits};
  }

  // Of the identity, between images of one size.
  ALWAYS_INLINE static constexpr Axis along(bool x) {
    constexpr int64_t kOne = int64_t{1} << 40;
    return {x ? kOne : 0, x ? 0 : kOne, 0, 40};
  }

  ALWAYS_INLINE constexpr Position at(int32_t hx, int32_t hy) const { return a * hx + b * hy + c; }
  ALWAYS_INLINE constexpr Node<float> node(Position u) const { return split(u, bits); }
  ALWAYS_INLINE constexpr Node<float> pixel(Position u) const { return split(u, bits + 1); }
  // Halves to even.
  ALWAYS_INLINE constexpr int32_t nearest(Position u) const {
    const int64_t odd = u >> (bits + 1) & 1;
    return static_cast<int32_t>((u + (int64_t{1} << bits) - 1 + odd) >> (bits + 1));
  }

  int64_t a, b, c;
  int32_t bits;  // of the fraction

 private:
  ALWAYS_INLINE static constexpr double largest(double x, double y) {
    const double p = x < 0 ? -x : x, q = y < 0 ? -y : y;
    return p > q ? p : q;
  }
  ALWAYS_INLINE static constexpr double reach(double a, double b, const Layout& out) {
    return largest(a * (2 * static_cast<double>(out.width) + 10),
                   b * (2 * static_cast<double>(out.height) + 10));
  }
  // So that no sum of six such numbers leaves 64 bits. 40 make errors of 1e-8 nodes in images of 4096
  // pixels; usable lattices have 32 at the least.
  ALWAYS_INLINE static constexpr int32_t bits_for(double largest) {
    int32_t bits = 40;
    while (bits > 32 && largest >= static_cast<double>(int64_t{1} << (60 - bits))) --bits;
    return bits;
  }
  ALWAYS_INLINE static constexpr int64_t fixed(double x, int32_t bits) {
    return floor_of(x * static_cast<double>(int64_t{1} << bits) + 0.5);
  }
  // Of the fraction, 32 bits.
  ALWAYS_INLINE static constexpr Node<float> split(Position u, int32_t bits) {
    const auto fraction = static_cast<uint32_t>(static_cast<uint64_t>(u) >> (bits - 32));
    return {static_cast<int32_t>(u >> bits), static_cast<float>(fraction) * 0x1p-32f};
  }
};

// A sample's map as kernels use it.
template <class Acc>
struct SampleMap {
  Lattice lattice;  // usable, if the map is finite
  bool usable;
  Kind kind;
  Axis<Acc> u, v;

  // Of the six numbers of a map; null: the identity. An unusable one has the axes of the identity.
  ALWAYS_INLINE static constexpr SampleMap of(const Resample& r, const double* map) {
    constexpr double kIdentity[6] = {1, 0, 0, 0, 1, 0};
    double m[6];
    for (int k = 0; k < 6; ++k) m[k] = map ? map[k] : kIdentity[k];
    SampleMap s{Lattice::of(m[0], m[1], m[2], m[3], m[4], m[5], r.in, r.out),
                true,
                {},
                Axis<Acc>::along(true),
                Axis<Acc>::along(false)};
    const bool near = s.lattice.usable(r.out);
    if (!near) s.lattice = Lattice::near(m[0], m[1], m[2], m[3], m[4], m[5], r);
    s.usable = near || s.lattice.usable(r.out);
    s.kind = s.lattice.kind(r);
    if (near) {
      s.u = Axis<Acc>::of(m[0], m[1], m[2], r.in.width, r.out);
      s.v = Axis<Acc>::of(m[3], m[4], m[5], r.in.height, r.out);
    } else if (s.usable) {
      s.u = Axis<Acc>::of_far(s.lattice.a, s.lattice.b, s.lattice.c, r.out);
      s.v = Axis<Acc>::of_far(s.lattice.d, s.lattice.e, s.lattice.f, r.out);
    }
    return s;
  }
};

// The part of a doubled plane that margins leave, along one axis: nodes of U in [first, last], pixels
// of z in [low, high]. Without margins everything.
struct Bounds {
  int64_t first, last, low, high;

  static constexpr Bounds everything() {
    constexpr int64_t kFar = int64_t{1} << 60;
    return {-kFar, kFar, -kFar, kFar};
  }
  ALWAYS_INLINE static constexpr Bounds of(int64_t before, int64_t after, int64_t size) {
    return {-2 * before, 2 * (size + after) - 1, -before, size - 1 + after};
  }
};

}  // namespace gankernels::affine_resample
