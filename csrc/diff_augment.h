// The parameters of differentiable augmentation for each sample: the contract between bindings and
// kernels, and the arithmetic of one sample, which the CPU and CUDA share. Zhao et al. 2020 (arXiv
// 2006.10738). All in double: it is done once a sample.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/dtype.h"

namespace gankernels::diff_augment {

// Of a sample, in [0, 1). A row is contiguous doubles.
struct Uniforms {
  double brightness, saturation, contrast;
  double shift[2], cutout[2];  // x, y
};
constexpr int kUniforms = sizeof(Uniforms) / sizeof(double);
static_assert(kUniforms == 7);

// With m the mean of an image and gray that of a pixel, color is
//
//   pixel * (image + mean * m) + gray * (the gray of that) + offset
struct Mix {
  double pixel, gray, mean, offset;
};
constexpr int kMix = sizeof(Mix) / sizeof(double);

// "acc" is `acc`: float32 or float64. Each result may be null: not wanted.
struct Parameters {
  DType acc;
  int64_t batch, height, width, color_channels;
  bool before;               // cutout comes before the shift that it follows in the policy
  bool after;                // cutout comes after the shift that it precedes in the policy
  const Uniforms* uniforms;  // batch
  double* maps;              // batch x 2 x 3, as for affine_resample
  double* box;               // batch x 3, as for affine_augment
  void* color;               // batch x channels x (channels + 1), acc: pixel, gray and offset
  void* mix;                 // batch x 4, acc
  void* shade;               // batch, acc: what m adds to the offset of color, times m
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

// Whole pixels, up to an eighth of the side, rounded, to either side.
constexpr double shift_of(double u, int64_t side) {
  const double reach = std::floor(static_cast<double>(side) / 8 + 0.5);
  return std::floor(u * (2 * reach + 1)) - reach;
}

// The center, in fractions, of a box of n = floor(side / 2 + 1 / 2) pixels from offset - floor(n / 2)
// on, moved by whole pixels.
constexpr double center_of(double u, int64_t side, double moved) {
  const auto n = static_cast<int64_t>(std::floor(static_cast<double>(side) / 2 + 0.5));
  const int64_t odd = n % 2;
  const double offset = std::floor(u * static_cast<double>(side + 1 - odd));
  return (offset + static_cast<double>(odd) / 2 + moved) / static_cast<double>(side);
}

constexpr Mix mix_of(const Uniforms& u) {
  const double saturation = 2 * u.saturation, contrast = u.contrast + 0.5;
  return {contrast * saturation, contrast * (1 - saturation), (1 - contrast) / contrast,
          u.brightness - 0.5};
}

// What m adds to the offset, where color is done to the image instead of image + mean * m: to the constant
// mean * m color does contrast * mean * m = (1 - contrast) m.
constexpr double shade_of(const Uniforms& u) {
  return 0.5 - u.contrast;
}

// An element of the matrix with its offset.
constexpr double color_at(const Mix& m, int64_t channels, int64_t row, int64_t column) {
  if (column == channels) return m.offset;
  return (row == column ? m.pixel : 0) + m.gray / static_cast<double>(channels);
}

// Writes the results of a sample by `put(to, value)`.
template <class Acc, class Put>
constexpr void compute_sample(const Parameters& args, const Uniforms& u, int64_t i, Put&& put) {
  const double shift[2] = {shift_of(u.shift[0], args.width), shift_of(u.shift[1], args.height)};
  if (args.maps)
    for (int row = 0; row < 2; ++row) {
      double* to = args.maps + 6 * i + 3 * row;
      put(to, row == 0 ? 1.0 : 0.0);
      put(to + 1, row == 0 ? 0.0 : 1.0);
      put(to + 2, shift[row]);
    }
  if (args.box) {
    double* to = args.box + 3 * i;
    const double moved = args.before - args.after;
    put(to, center_of(u.cutout[0], args.width, moved * shift[0]));
    put(to + 1, center_of(u.cutout[1], args.height, moved * shift[1]));
    put(to + 2, 0.5);
  }
  const Mix m = mix_of(u);
  if (args.color) {
    const int64_t channels = args.color_channels;
    Acc* to = static_cast<Acc*>(args.color) + i * channels * (channels + 1);
    for (int64_t row = 0; row < channels; ++row)
      for (int64_t column = 0; column <= channels; ++column)
        put(to++, static_cast<Acc>(color_at(m, channels, row, column)));
  }
  if (args.mix) {
    Acc* to = static_cast<Acc*>(args.mix) + kMix * i;
    put(to, static_cast<Acc>(m.pixel));
    put(to + 1, static_cast<Acc>(m.gray));
    put(to + 2, static_cast<Acc>(m.mean));
    put(to + 3, static_cast<Acc>(m.offset));
  }
  if (args.shade) put(static_cast<Acc*>(args.shade) + i, static_cast<Acc>(shade_of(u)));
}

}  // namespace gankernels::diff_augment
