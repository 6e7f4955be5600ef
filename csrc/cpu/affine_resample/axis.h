// The composite filter, of up-sampling, interpolation and decimation, along one axis.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "affine_resample.h"

namespace gankernels::affine_resample::cpu {

// The pixels that a point takes along one axis, and their weights: up-sampling and linear
// interpolation in one.
template <class T>
struct PixelWindow {
  static int64_t base(int64_t node) { return (node >> 1) - 3; }

  PixelWindow(const Node<T>& u, int64_t size, const Bounds& bounds) {
    const int64_t node = u.at, first = base(node);
    const double share = u.share;
    const double nearer = node >= bounds.first && node <= bounds.last ? 1 - share : 0;
    const double farther = node + 1 >= bounds.first && node + 1 <= bounds.last ? share : 0;
    for (int i = 0; i < 7; ++i) {
      const int64_t j = node + 5 - 2 * (first + i);
      const bool here = first + i >= bounds.low && first + i <= bounds.high;
      weight[i] = here ? static_cast<T>(2 * (nearer * tap(j) + farther * tap(j + 1))) : T(0);
      at[i] = reflected(first + i, size);
    }
  }

  // The weights are at + share * slope, by the parity of the node.
  struct Table {
    double at[7], slope[7];
  };
  static constexpr Table table(int parity) {
    Table t{};
    for (int i = 0; i < 7; ++i) {
      const int j = parity + 5 - 2 * (i - 3);
      t.at[i] = 2 * tap(j);
      t.slope[i] = 2 * (tap(j + 1) - tap(j));
    }
    return t;
  }
  static constexpr Table kTables[2] = {table(0), table(1)};

  int64_t at[7];
  T weight[7];

 private:
  static constexpr double tap(int64_t j) { return j >= 0 && j < kTaps ? kSymlet[j] : 0; }
};

// The composite filter along one axis that goes to an axis:
//   out[i] = sum_k w[i][k] z[first + start + k].
template <class T>
struct FilterAxis {
  // Of output columns [begin, end) that walk `axis` of the image, or rows.
  FilterAxis(const Axis<T>& axis, bool rows, int64_t begin, int64_t end) {
    // The windows of 12 points, 7 weights each; of the points the lowest is the first or the last.
    const auto at = [&](int64_t i, int j) {
      const auto h = static_cast<int32_t>(2 * i - 5 + j);
      return axis.node(axis.at(rows ? 0 : h, rows ? h : 0));
    };
    first = std::numeric_limits<int64_t>::max();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t one = PixelWindow<T>::base(at(i, 0).at),
                    other = PixelWindow<T>::base(at(i, 11).at);
      const int64_t low = std::min(one, other);
      starts.push_back(low);
      taps = std::max(taps, static_cast<int>(std::max(one, other) + 7 - low));
      first = std::min(first, low);
    }
    table.resize(starts.size() * taps);
    std::vector<double> sum(taps);
    for (size_t n = 0; n < starts.size(); ++n) {
      std::fill(sum.begin(), sum.end(), 0);
      for (int j = 0; j < kTaps; ++j) {
        const auto [node, share] = at(begin + static_cast<int64_t>(n), j);
        const typename PixelWindow<T>::Table& t = PixelWindow<T>::kTables[node & 1];
        double* to = sum.data() + (PixelWindow<T>::base(node) - starts[n]);
        for (int k = 0; k < 7; ++k)
          to[k] += kSymlet[j] * (t.at[k] + static_cast<double>(share) * t.slope[k]);
      }
      std::copy(sum.begin(), sum.end(), table.begin() + n * taps);
      starts[n] -= first;
      span = std::max(span, starts[n] + taps);
    }
  }

  int64_t start(int64_t i) const { return starts[i]; }
  const T* weights(int64_t i) const { return table.data() + i * taps; }

  int taps = 0;
  int64_t first, span = 0;  // of the image's axis, as if it went on beyond the border
  std::vector<int64_t> starts;
  std::vector<T> table;
};

}  // namespace gankernels::affine_resample::cpu
