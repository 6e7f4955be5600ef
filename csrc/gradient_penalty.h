// Penalties on the norms of gradients, sample by sample, over any number of gradients in one call: the
// contract between bindings and kernels. A gradient is `batch` samples of `size` elements each, in
// memory one sample after the other; the order of a sample's elements does not matter to a norm.
//
//   n_i     = inv_scale ||g_i||, over all gradients together, or (per_tensor) a row for each
//   value_i = weight sample_weight_i phi(n_i)
//
// with phi(n) = (n - center)^2, or max(0, n - center)^2 if one_sided. Gulrajani et al. 2017 (arXiv
// 1704.00028), equation 3; Mescheder et al. 2018 (arXiv 1801.04406), section 4.1.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gankernels::gradient_penalty {

enum class Reduction : int8_t { kNone, kMean, kSum };  // of a row of values, over the batch

struct Gradient {
  const void* g;
  const void* h;  // of DoubleBackward: the cotangent of Backward's `out`
  void* out;      // of Backward and DoubleBackward
  int64_t size;   // elements of a sample
};

// "acc" is the accumulation type of `dtype`.
struct Penalty {
  DType dtype;
  Reduction reduction;
  bool one_sided, per_tensor;
  double center, weight;
  int threads;
  int64_t batch, count;  // samples, gradients
  const Gradient* grads;
  const void* sample_weight;  // batch, acc; null: 1
  const void* inv_scale;      // 1, acc; null: 1

  constexpr int64_t rows() const { return per_tensor ? count : 1; }
  // How many values there are, and which one a sample is part of.
  constexpr int64_t values() const {
    return reduction == Reduction::kNone ? rows() * batch : rows();
  }
  constexpr int64_t value_of(int64_t row, int64_t sample) const {
    return reduction == Reduction::kNone ? row * batch + sample : row;
  }
  // The factor of every value: the weight, divided by what a mean is over.
  constexpr double factor() const {
    return reduction == Reduction::kMean ? weight / batch : weight;
  }
};

struct Forward {
  Penalty penalty;
  void* norms;   // rows x batch, acc
  void* values;  // acc
};

// out_i = seed factor sample_weight_i inv_scale^2 (phi'(n_i) / n_i) g_i, with `seed` the cotangent of
// the value that sample i is part of.
struct Backward {
  Penalty penalty;
  const void* norms;      // rows x batch, acc
  const void* seed;       // as the values
  void* d_sample_weight;  // batch, acc: seed factor phi(n_i), added over the rows; null: not wanted
};

// With t_i = <h_i, g_i> and `e` the cotangent of d_sample_weight, n_i a function of g:
// out_i = a_i h_i + b_i g_i (see Factors), d_seed and d_sample_weight likewise.
struct DoubleBackward {
  Penalty penalty;
  const void* norms;
  const void* seed;
  const void* e;          // batch, acc; null: 0
  void* d_seed;           // as the values
  void* d_sample_weight;  // batch, acc; null: not wanted
};

// phi at a norm, and its derivatives as they appear in gradients. At n = 0, where that of n does not
// exist, the subgradient 0 is taken for a center above 0. NaN stays NaN.
template <class T>
struct Profile {
  T value, slope, curve;  // phi(n), phi'(n) / n, n slope'(n)
};

template <class T>
constexpr Profile<T> profile_of(T n, T center, bool one_sided) {
  if (center == 0) return {n * n, 2, 0};
  if (one_sided && n <= center) return {0, 0, 0};
  const T distance = n - center;
  if (n == 0) return {distance * distance, 0, 0};
  return {distance * distance, 2 * distance / n, 2 * center / n};
}

// The terms of one sample in one row, from its numbers. `scale` is inv_scale, `factor` that of
// Penalty, `t` = <h, g> in DoubleBackward.
template <class T>
struct PenaltySample {
  T norm, seed, weight, scale, factor, center;
  bool one_sided;

  constexpr Profile<T> profile() const { return profile_of(norm, center, one_sided); }

  constexpr T d_gradient() const {
    return seed * factor * weight * scale * scale * profile().slope;
  }
  constexpr T d_weight() const { return seed * factor * profile().value; }

  // The terms of DoubleBackward. The order of the divisions keeps every step within range.
  constexpr T from_h() const { return d_gradient(); }
  constexpr T from_g(T t, T e) const {
    const Profile<T> p = profile();
    const T along = p.curve == 0 ? 0 : p.curve * (scale * t / norm) / norm;
    return seed * factor * scale * (weight * scale * scale * along + e * scale * p.slope);
  }
  constexpr T d_seed(T t, T e) const {
    const Profile<T> p = profile();
    return factor * (weight * scale * scale * p.slope * t + e * p.value);
  }
  constexpr T d_weight_again(T t) const {
    return seed * factor * scale * scale * profile().slope * t;
  }
};

// Every launcher returns null, or what went wrong.
namespace cpu {
const char* forward(const Forward&);
const char* backward(const Backward&);
const char* double_backward(const DoubleBackward&);
}  // namespace cpu

// On the current device, as in spectral_norm.h. Launches for every 64 gradients: forward 2, backward 1,
// double_backward 3; without per_tensor, one of those of forward and double_backward serves all.
namespace cuda {
int64_t workspace(const Forward&);
int64_t workspace(const Backward&);
int64_t workspace(const DoubleBackward&);
const char* forward(const Forward&, void* workspace, void* stream);
const char* backward(const Backward&, void* workspace, void* stream);
const char* double_backward(const DoubleBackward&, void* workspace, void* stream);
}  // namespace cuda

}  // namespace gankernels::gradient_penalty
