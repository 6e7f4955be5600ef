// What the kernels of affine resampling's transpose read, write and add up: cotangents of the output's
// pixels, pixels of the image, and sums in fixed point. Where several outputs give to one place, they are
// added up as integers: the sum is the same in every order.
#pragma once

#include "affine_resample.cuh"

namespace gankernels::affine_resample::cuda {

// All points of the output's lattice, and all its pixels.
DEVICE Reach points_of(const Resample& r) {
  return {-5, 2 * width(r.out) + 4, -5, 2 * height(r.out) + 4};
}
DEVICE Reach pixels_of(const Resample& r) {
  return {0, width(r.out) - 1, 0, height(r.out) - 1};
}

// The cotangent of an output pixel before the epilogue, of the channel at a place.
template <class T>
DEVICE Accumulation<T> cotangent(const Transpose& args, const Cutout& cut, int sample, int place,
                                 int y, int x) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  if (x < 0 || y < 0 || x >= width(r.out) || y >= height(r.out) || cut.clears(x, y)) return 0;
  const Epilogue& e = r.epilogue;
  const T* pixel = static_cast<const T*>(args.grad) + offset_of(r.out, sample, 0, y, x);
  const auto at = [&](int p) {
    return static_cast<Acc>(widen(load(pixel + e.channel(p) * r.out.channel_stride)));
  };
  if (!e.matrix || place >= e.color_count) return at(place);
  Acc sum = 0;
  for (int i = 0; i < e.color_count; ++i) sum += color_at<Acc>(e, sample, i, place) * at(i);
  return sum;
}

template <class T>
DEVICE void put(const Transpose& args, const Block& block, int place, Accumulation<T> value) {
  const Resample& r = args.resample;
  if (block.x() >= width(r.in) || block.y() >= height(r.in)) return;
  store(static_cast<T*>(args.image) +
            offset_of(r.in, block.sample, r.epilogue.channel(place), block.y(), block.x()),
        narrow<T>(value));
}

template <class T>
DEVICE void put_nothing(const Transpose& args, const Block& block) {
  for (int place = 0; place < args.resample.channels; ++place)
    put<T>(args, block, place, not_a_number<Accumulation<T>>());
}

// --- sums in fixed point

// Bounds of a sum of |f[j]| over taps of one parity: what up-sampling makes of numbers of at most 1 along
// an axis; and of the weights of a Window.
constexpr double tap_sum(int first, int step) {
  double sum = 0;
  for (int j = first; j < kTaps; j += step) sum += kSymlet[j] < 0 ? -kSymlet[j] : kSymlet[j];
  return sum;
}
constexpr double kSpread = std::max(tap_sum(0, 2), tap_sum(1, 2));

// The sizes of numbers as integers, which ascend with them: of a double, its upper half.
template <class Acc>
struct Size;

template <>
struct Size<float> {
  static constexpr int kBias = 127, kShift = 23;
  // Sums with numbers beyond it may not be finite.
  static constexpr int kMost = std::bit_cast<int>(0x1p120f);

  DEVICE static int of(float x) { return std::bit_cast<int>(magnitude(x)); }
  // No number of this size is larger.
  DEVICE static float bound(int size) { return std::bit_cast<float>(size); }
  static constexpr float power(int e) { return std::bit_cast<float>((e + kBias) << kShift); }
};

template <>
struct Size<double> {
  static constexpr int kBias = 1023, kShift = 20;
  static constexpr int kMost = static_cast<int>(std::bit_cast<int64_t>(0x1p1000) >> 32);

  DEVICE static int of(double x) {
    return static_cast<int>(std::bit_cast<int64_t>(magnitude(x)) >> 32);
  }
  DEVICE static double bound(int size) {
    return std::bit_cast<double>((static_cast<int64_t>(size) << 32) + 0xffffffff);
  }
  static constexpr double power(int e) {
    return std::bit_cast<double>(static_cast<int64_t>(e + kBias) << 52);
  }
};

// What numbers are added up in, in fixed point.
template <class Acc>
using Sum = std::conditional_t<sizeof(Acc) == 4, int, int64_t>;

// Numbers of at most a size, of which sums of at most `count` fit Total: times a power of two. Of the
// smallest numbers there are, the last bits are lost.
template <class Acc, class Total>
struct Scale {
  Acc to, back;

  DEVICE static Scale of(int size, Acc count) {
    using S = Size<Acc>;
    constexpr int kRoom = sizeof(Total) == 4 ? 29 : 62;
    constexpr int kSmaller = 40;  // lest the product overflow
    const Acc sum = S::bound(size) * S::power(-kSmaller) * count;
    const int e = (S::of(sum) >> S::kShift) - S::kBias + 1 + kSmaller;
    const int power = most(e, kRoom - S::kBias + 1);
    return {S::power(kRoom - power), S::power(power - kRoom)};
  }
  DEVICE Total fixed(Acc x) const {
    if constexpr (sizeof(Total) == sizeof(Acc)) return rounded(x * to);
    return static_cast<Total>(std::floor(x * to + Acc(0.5)));
  }
};

}  // namespace gankernels::affine_resample::cuda
