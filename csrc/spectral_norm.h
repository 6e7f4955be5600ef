// Spectral normalization of any number of weights in one call: the contract between bindings and
// kernels. W is a weight read as rows x cols, n(x) = x / max(||x||, eps).
// Miyato et al. 2018 (arXiv 1802.05957), algorithm 1.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/matrix.h"

namespace gankernels::spectral_norm {

// Vectors are contiguous and in logical order. "acc" is the accumulation type of the weights' dtype.

// Vectors of results are filled up with zeros to a multiple of this many elements.
constexpr int64_t kPack = 16;

constexpr int64_t packed_size(int64_t size) {
  return (size + kPack - 1) / kPack * kPack;
}

struct PowerIterationLayer {
  Matrix w;
  void* u;      // rows, of the weight's dtype or acc, moved in place
  void* v;      // cols, likewise
  void* u_out;  // rows, acc, filled up: a copy of the new u
  void* v_out;  // cols, acc, filled up
  int64_t*
      skipped;  // null: no guard. Else a u or v that is zero or not finite first becomes that of
                // start_of; a weight with a zero or non-finite sigma keeps u and v, its sigma
                // becomes 1 and this is incremented
  void* out;    // null, or W * scale of the new sigma, laid out as W
};

struct PowerIteration {
  DType dtype;
  bool wide_vectors;  // u and v are of acc, else of the weights' dtype
  int64_t n;          // steps
  double eps;
  bool u_first;     // u <- n(W v), v <- n(W^T u); else v first
  double max_norm;  // as in Normalize
  int threads;
  int64_t count;
  const PowerIterationLayer* layers;
  void* sigma_out;   // count, acc, filled up: u . (W v) of every layer
  void* sigma_copy;  // null, or count, acc
};

struct NormalizeLayer {
  Matrix w;
  const void* u;      // rows, acc
  const void* v;      // cols, acc
  const void* sigma;  // acc; null: compute u . (W v)
  void* sigma_out;    // acc
  void* out;          // W / sigma, laid out as W
};

// With max_norm = c > 0 the scale of W is min(1, c / sigma); with 0 it is 1 / sigma.
struct Normalize {
  DType dtype;
  double max_norm;
  int threads;
  int64_t count;
  const NormalizeLayer* layers;
  bool guard = false;  // a computed sigma that is zero or not finite becomes 1
};

// G is the cotangent of W * scale, s that of sigma; u and v are constants:
// grad = scale G - slope <G, W> u v^T + s u v^T, slope = -d scale / d sigma.
struct BackwardLayer {
  Matrix w;
  const void* g;  // laid out as W
  const void* u;
  const void* v;
  const void* sigma;
  const void* grad_sigma;  // acc, s; null: 0
  void* out;               // laid out as W
};

struct Backward {
  DType dtype;
  double max_norm;
  int threads;
  int64_t count;
  const BackwardLayer* layers;
};

// The backward of Backward. H is the cotangent of its grad, h = u^T H v:
// d_g = scale H - slope h W,
// d_w = -slope h G + (curve h <G, W> - slope <H, G>) u v^T, curve = -d slope / d sigma,
// d_grad_sigma = h.
struct DoubleBackwardLayer {
  Matrix w;
  const void* h;  // laid out as W
  const void* g;  // laid out as W
  const void* u;
  const void* v;
  const void* sigma;
  void* d_g;           // laid out as W
  void* d_w;           // laid out as W
  void* d_grad_sigma;  // acc
};

struct DoubleBackward {
  DType dtype;
  double max_norm;
  int threads;
  int64_t count;
  const DoubleBackwardLayer* layers;
};

// How the output depends on sigma: W * scale, slope = -scale', curve = -slope'. The order of the
// divisions keeps what is multiplied by them within range.
struct Scale {
  double scale, sigma;
  bool constant;  // scale is 1 whatever sigma is

  constexpr double slope(double x) const { return constant ? 0 : scale * (x / sigma); }
  constexpr double curve(double x, double y) const {
    return constant ? 0 : 2 * scale * (x / sigma) * (y / sigma);
  }
};

constexpr Scale scale_of(double sigma, double max_norm) {
  if (max_norm > 0 && sigma <= max_norm) return {1, sigma, true};
  return {(max_norm > 0 ? max_norm : 1) / sigma, sigma, false};
}

// Where a guarded layer starts whose u or v is zero or not finite, before it is divided by its norm:
// entry i of either, by Weyl's sequence, which is orthogonal to no row or column that people have.
template <class T = double>
constexpr T start_of(int64_t i) {
  const uint64_t turned = (static_cast<uint64_t>(i) + 1) * 2654435761;
  return static_cast<T>(static_cast<int32_t>(static_cast<uint32_t>(turned) ^ 0x80000000)) *
         T(0x1p-31);
}

// Every launcher returns null, or what went wrong.
namespace cpu {
const char* power_iteration(const PowerIteration&);
const char* normalize(const Normalize&);
const char* backward(const Backward&);
const char* double_backward(const DoubleBackward&);
}  // namespace cpu

// On the current device. `threads` has no meaning here. A launcher uses `workspace` bytes of memory,
// aligned to 256, until its work on the stream is done; it does not wait for it, and can be captured
// in a graph. Launches, for every 64 layers: power_iteration 4 for one step, 2 more for each further
// one and 1 more if any is guarded, normalize 1, or 2 where it computes sigma, backward and double_backward 2.
namespace cuda {
int64_t workspace(const PowerIteration&);
int64_t workspace(const Normalize&);
int64_t workspace(const Backward&);
int64_t workspace(const DoubleBackward&);
const char* power_iteration(const PowerIteration&, void* workspace, void* stream);
const char* normalize(const Normalize&, void* workspace, void* stream);
const char* backward(const Backward&, void* workspace, void* stream);
const char* double_backward(const DoubleBackward&, void* workspace, void* stream);
}  // namespace cuda

}  // namespace gankernels::spectral_norm
