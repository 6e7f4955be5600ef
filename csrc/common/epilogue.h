// The epilogue of a pixel, the end of the last pass over an image: color, then noise, then cutout
// (Karras et al. 2020, arXiv 2006.06676, appendix B). Everything in it is a constant to autograd.
//
//   y = keep (A x + offset + sigma n)        A acts on the color channels; n ~ N(0, 1)
#pragma once

#include <cmath>
#include <cstdint>

namespace gankernels {

// "acc" is the accumulation type of the image's dtype.
struct Epilogue {
  bool offsets;         // false: the linear part alone, which a second derivative needs
  int color_count;      // 0, 1 or 3 channels that are color
  int64_t color[3];     // their numbers, ascending
  const void* matrix;   // batch x count x (count + 1), acc: A and offset; null: none
  const void* sigma;    // batch, acc: of the noise; null: none
  const int64_t* seed;  // batch: of the noise; where sigma is given
  const double* box;  // batch x 3: center x, center y, size, in fractions of the image; null: none

  // The channel at an index of the order in which color channels come first.
  constexpr int64_t channel(int64_t index) const {
    if (index < color_count) return color[index];
    int64_t c = index - color_count;
    for (int k = 0; k < color_count; ++k) c += c >= color[k];
    return c;
  }
};

// Whether cutout leaves a pixel: of a box by its center and size. In double, for a pixel at its edge.
constexpr bool kept(double box_x, double box_y, double box_size, int64_t x, int64_t y,
                    int64_t width, int64_t height) {
  const double dx = (static_cast<double>(x) + 0.5) / static_cast<double>(width) - box_x;
  const double dy = (static_cast<double>(y) + 0.5) / static_cast<double>(height) - box_y;
  const double half = box_size / 2;
  return dx >= half || -dx >= half || dy >= half || -dy >= half;
}

// The pixels that cutout clears, columns [x0, x1) of rows [y0, y1): those that `kept` does not keep.
struct Cutout {
  int32_t x0, x1, y0, y1;

  static constexpr Cutout of(const double* box, int64_t width, int64_t height) {
    Cutout c{};
    const double x = box[0], y = box[1], size = box[2];
    if (size <= 0) return c;
    range(x, size, width, &c.x0, &c.x1);
    range(y, size, height, &c.y0, &c.y1);
    return c;
  }
  constexpr bool clears(int64_t x, int64_t y) const {
    return x >= x0 && x < x1 && y >= y0 && y < y1;
  }

 private:
  static constexpr void range(double center, double size, int64_t pixels, int32_t* first,
                              int32_t* end) {
    const auto n = static_cast<double>(pixels), half = size / 2;
    const auto inside = [&](int32_t i) {
      const double d = (static_cast<double>(i) + 0.5) / n - center;
      return !(d >= half || -d >= half);
    };
    // From a pixel or two beyond; not a number clears everything, as it does in `kept`.
    const double low = (center - half) * n - 2, high = (center + half) * n + 2;
    int32_t i = low > 0 ? (low < n ? static_cast<int32_t>(low) : static_cast<int32_t>(n)) : 0;
    auto j = static_cast<int32_t>(n);
    if (high < n) j = high > 0 ? static_cast<int32_t>(high) : 0;
    while (i < j && !inside(i)) ++i;
    while (j > i && !inside(j - 1)) --j;
    *first = i, *end = j;
  }
};

// Philox4x32-10: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
struct Philox {
  uint32_t at[4];

  static constexpr Philox of(uint64_t seed, uint64_t counter) {
    uint32_t c[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
    auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
      const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0;
      const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
      c[0] = n0, c[1] = static_cast<uint32_t>(p1), c[2] = n2, c[3] = static_cast<uint32_t>(p0);
      k0 += 0x9E3779B9, k1 += 0xBB67AE85;
    }
    return {{c[0], c[1], c[2], c[3]}};
  }
};

// cos(2 pi t), or sin(2 pi t), of a share of a turn in [0, 1): the polynomial of an eighth of a turn, to
// a rounding. The library's own functions keep tables in memory for large angles.
template <class T>
constexpr T wave(T turn, bool sine) {
  const auto quarter = static_cast<int>(4 * turn + T(0.5));
  const T x = (turn - T(0.25) * static_cast<T>(quarter)) * T(6.28318530717958648);
  const T y = x * x;
  const T sin =
      x * (1 + y * (T(-1.0 / 6) + y * (T(1.0 / 120) + y * (T(-1.0 / 5040) + y * T(1.0 / 362880)))));
  const T cos = 1 + y * (T(-0.5) + y * (T(1.0 / 24) + y * (T(-1.0 / 720) + y * T(1.0 / 40320))));
  const T along = (quarter & 1) == static_cast<int>(sine) ? cos : sin;
  const int sign = sine ? quarter & 2 : (quarter + 1) & 2;
  return sign ? -along : along;
}

// The noise of an element, by its number in the sample: channel, row, column, as in a contiguous image.
// Box and Muller: a block of Philox makes the noise of four elements, whatever the dtype.
template <class T = float>
constexpr T normal_noise(int64_t seed, int64_t element) {
  const Philox bits = Philox::of(static_cast<uint64_t>(seed), static_cast<uint64_t>(element / 4));
  const bool later = element & 2;
  const uint32_t first = later ? bits.at[2] : bits.at[0], second = later ? bits.at[3] : bits.at[1];
  const T radius = std::sqrt(-2 * std::log((static_cast<T>(first >> 8) + 1) * T(0x1p-24)));
  return radius * wave(static_cast<T>(second >> 8) * T(0x1p-24), element & 1);
}

}  // namespace gankernels
