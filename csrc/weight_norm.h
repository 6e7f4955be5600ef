// Weight normalization of any number of weights in one call: the contract between bindings and kernels.
// A weight is `rows` rows of `size` elements each, in memory one row after the other; the order of a
// row's elements does not matter to its norm.
//
//   n_r = ||v_r||,   w_r = (g_r / n_r) v_r
//
// Salimans & Kingma 2016 (arXiv 1602.07868), equation 2.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gankernels::weight_norm {

// "acc" is the accumulation type of `dtype`. What a pass does not name is null.
struct Weight {
  int64_t rows, size;
  const void* v;
  const void* g;  // rows, of the dtype
  void* norms;    // rows, acc: written by Forward, read by the others
  const void* x;  // of Backward and DoubleBackward: the cotangent of w
  const void* h;  // of DoubleBackward: that of Backward's `out`
  const void* e;  // of DoubleBackward: that of its `d_g`, of the dtype; null: 0
  void* out;      // w; the gradient of v; that of x
  void* d_g;      // of Backward and DoubleBackward: the gradient of g, rows, of the dtype
  void* d_v;      // of DoubleBackward: the gradient of v
};

struct Weights {
  DType dtype;
  int threads;
  int64_t count;
  const Weight* weights;
};
struct Forward : Weights {};
struct Backward : Weights {};
struct DoubleBackward : Weights {};

// The terms of one row, from its numbers, with the unit vector q = v / n: t = <x, q>, k = <h, q>.
//
//   Forward:         out = g q
//   Backward:        out = a x - a t q,  d_g = t,  with a = g / n
//   DoubleBackward:  out = a h + b q,
//                    d_v = (b x - a t h + c q) / n,
//                    d_g = (<h, x> - k t) / n,
//   with b = e - a k,  c = a (3 k t - <h, x>) - e t
//
// A factor of v may leave the range of T where no result does: of v = g = 1e-200, a / n. So elements are
// multiplied by 1 / n first, and by the rest then.
template <class T>
struct Row {
  T norm, g;

  constexpr T inverse() const { return 1 / norm; }
  constexpr T scale() const { return g / norm; }
  constexpr T of_q(T t) const { return -scale() * t; }

  constexpr T mixed(T k, T e) const { return e - scale() * k; }
  constexpr T of_q_again(T t, T k, T hx, T e) const { return scale() * (3 * k * t - hx) - e * t; }
  constexpr T d_g_again(T t, T k, T hx) const { return (hx - k * t) / norm; }
};

// Every launcher returns null, or what went wrong.
namespace cpu {
const char* forward(const Forward&);
const char* backward(const Backward&);
const char* double_backward(const DoubleBackward&);
}  // namespace cpu

// On the current device, as in spectral_norm.h. Launches for every 64 weights: 1, and 1 more where rows
// are longer than a block takes at a time.
namespace cuda {
int64_t workspace(const Forward&);
int64_t workspace(const Backward&);
int64_t workspace(const DoubleBackward&);
const char* forward(const Forward&, void* workspace, void* stream);
const char* backward(const Backward&, void* workspace, void* stream);
const char* double_backward(const DoubleBackward&, void* workspace, void* stream);
}  // namespace cuda

}  // namespace gankernels::weight_norm
