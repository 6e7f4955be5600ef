// Filtering images with a gain for each of four frequency bands, and its exact transpose: the contract
// between bindings and kernels, and the filter bank. Karras et al. 2020 (arXiv 2006.06676), appendix B.
//
//   k = sum_i g_i F_i,   y[i] = sum_d k[d] x[i + d],  |d| <= 21,  along both axes
//
// with x continued by reflection about the centers of its border pixels. The bank comes from a pair of
// half-band filters, lo + hi = 1:
//
//   F0 = lo(z) lo(z^2) lo(z^4)   F1 = lo(z) lo(z^2) hi(z^4)   F2 = lo(z) hi(z^2)   F3 = hi(z)
//
// All are symmetric and add up to the identity. So, with a = lo(z) x, b = lo(z^2) a, c = lo(z^4) b,
//
//   k x = g3 x + (g2 - g3) a + (g1 - g2) b + (g0 - g1) c
//
// and a, b, c are continued by reflection, too.
//
// The transpose needs no kernel of its own. Let B count every mirror image: B_ij = sum_p k(j - i + pP) +
// k(-j - i + pP), P = 2 (size - 1), which is symmetric as k is. A border pixel is its own mirror image
// and counts once, A = B W with W = 1/2 for border pixels and 1 for others. Hence A^T = W B = W A W^-1:
// double the border, filter, halve the border.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/epilogue.h"
#include "common/image.h"

namespace gankernels::image_filter {

struct Filter {
  DType dtype;
  int threads;
  int64_t batch, channels;
  Layout layout;      // of what is read and of what is written
  const void* gains;  // batch x 4, acc, the lowest band first; a sample with 1, 1, 1, 1 is copied
  Epilogue epilogue;  // without color
};

// out = epilogue(filtered image)
struct Forward {
  Filter filter;
  const void* image;
  void* out;
};

// The transpose of the linear part of Forward: image = A^T cutout(grad).
struct Transpose {
  Filter filter;
  const void* grad;
  void* image;
};

// Every launcher returns null, or what went wrong. Deterministic.
namespace cpu {
const char* forward(const Forward&);
const char* transpose(const Transpose&);
}  // namespace cpu

// One launch on the current device, without a workspace.
namespace cuda {
int64_t workspace(const Forward&);
int64_t workspace(const Transpose&);
const char* forward(const Forward&, void* workspace, void* stream);
const char* transpose(const Transpose&, void* workspace, void* stream);
}  // namespace cuda

// --- the filter bank -----------------------------------------------------------------------------

constexpr int kBands = 4;
constexpr int kReach = 21;         // of k to either side
constexpr int kTaps = kReach + 1;  // that differ: 0 to kReach

// lo: 16 in the middle, then 9, 0 and -1 to either side, over 32. Stage s of the cascade is lo(z^2^s).
constexpr int kHalfBand[4] = {16, 9, 0, -1};
constexpr int kHalfBandUnit = 32, kHalfBandReach = 3;

struct Bank {
  double taps[kBands][kTaps];

  // All numbers are integers over powers of two, so that this is exact.
  static constexpr Bank make() {
    Bank bank{};
    double low[2 * kReach + 1] = {};  // the product of the stages before
    low[kReach] = 1;
    for (int band = kBands - 1; band >= 0; --band) {
      double next[2 * kReach + 1] = {};
      const int step = 1 << (kBands - 1 - band);
      for (int i = 0; i <= 2 * kReach && band > 0; ++i)
        for (int d = -kHalfBandReach; d <= kHalfBandReach; ++d) {
          const int from = i - d * step;
          if (from >= 0 && from <= 2 * kReach)
            next[i] += low[from] * kHalfBand[d < 0 ? -d : d] / kHalfBandUnit;
        }
      for (int d = 0; d <= kReach; ++d) bank.taps[band][d] = low[kReach + d] - next[kReach + d];
      for (int i = 0; i <= 2 * kReach; ++i) low[i] = next[i];
    }
    return bank;
  }
};

constexpr Bank kBank = Bank::make();

}  // namespace gankernels::image_filter
