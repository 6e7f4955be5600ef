// What the fuzzers of operators on images share: layouts, and the epilogue in plain loops.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "common/epilogue.h"
#include "common/image.h"
#include "fuzz.h"

namespace fuzz {

// Images in memory: samples, channels, rows and columns in any order, with gaps or without.
struct Images {
  int64_t batch, channels, height, width;
  gankernels::Layout layout;
  Block memory;

  int64_t at(int64_t b, int64_t c, int64_t y, int64_t x) const {
    return b * layout.sample_stride + c * layout.channel_stride + y * layout.row_stride +
           x * layout.column_stride;
  }
  double operator()(int64_t b, int64_t c, int64_t y, int64_t x) const {
    return (*memory)[at(b, c, y, x)];
  }
  template <class F>
  void for_each(F&& f) const {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t y = 0; y < height; ++y)
          for (int64_t x = 0; x < width; ++x) f(b, c, y, x);
  }
  // Which elements are pixels.
  std::vector<char> pixels() const {
    std::vector<char> is(memory->n);
    for_each([&](int64_t b, int64_t c, int64_t y, int64_t x) { is[at(b, c, y, x)] = 1; });
    return is;
  }
};

// `expanded`: samples or channels may lie on each other, as inputs' may.
inline Images draw_images(Random& random, DType dtype, int64_t batch, int64_t channels,
                          int64_t height, int64_t width, bool gaps, bool expanded) {
  Images x{batch, channels, height, width, {height, width, 0, 0, 0, 0}, nullptr};
  const int64_t size[] = {batch, channels, height, width};
  std::vector<int> order = {0, 1, 2, 3};  // the slowest first
  switch (random.integer(0, 5)) {
    case 0:
    case 1:
      break;
    case 2:
    case 3:
      order = {0, 2, 3, 1};
      break;
    default:
      random.shuffle(order);
  }
  int64_t stride[4], next = 1;
  for (int k = 3; k >= 0; --k) {
    const int d = order[k];
    stride[d] = next;
    next *= size[d];
    if (gaps && random.chance(0.3)) next += random.integer(1, 5);
    if (size[d] == 1 && random.chance(0.3)) stride[d] = random.integer(1, 1000);  // means nothing
  }
  for (const int d : {0, 1})
    if (expanded && random.chance(0.05)) stride[d] = 0;
  x.layout = {height, width, stride[0], stride[1], stride[2], stride[3]};
  x.memory = block(random, dtype, x.at(batch - 1, channels - 1, height - 1, width - 1) + 1);
  say("\n  (%ld, %ld, %ld, %ld) strides (%ld, %ld, %ld, %ld)", long(batch), long(channels),
      long(height), long(width), long(stride[0]), long(stride[1]), long(stride[2]),
      long(stride[3]));
  return x;
}

// --- the epilogue ----------------------------------------------------------------------------------

struct Ending {
  gankernels::Epilogue epilogue{};
  Block matrix, sigma;
  std::vector<int64_t> seed;
  std::vector<double> box;

  // Which of the colors a channel is, or -1.
  int color(int64_t channel) const {
    for (int k = 0; k < epilogue.color_count; ++k)
      if (epilogue.color[k] == channel) return k;
    return -1;
  }
  double entry(int64_t b, int row, int column) const {
    const int n = epilogue.color_count;
    return (*matrix)[(b * n + row) * (n + 1) + column];
  }
  bool cut(int64_t b, int64_t y, int64_t x, int64_t height, int64_t width) const {
    if (box.empty()) return false;
    const double dx = (static_cast<double>(x) + 0.5) / static_cast<double>(width) - box[3 * b];
    const double dy = (static_cast<double>(y) + 0.5) / static_cast<double>(height) - box[3 * b + 1];
    const double half = box[3 * b + 2] / 2;
    return half > 0 && std::abs(dx) < half && std::abs(dy) < half;
  }
  bool untouched() const {
    return (!matrix || matrix->untouched()) && (!sigma || sigma->untouched());
  }
};

inline Ending draw_ending(Random& random, DType dtype, int64_t batch, int64_t channels,
                          bool colors) {
  Ending e;
  const DType wide = accumulation(dtype);
  e.epilogue.offsets = random.chance(0.8);
  if (colors && random.chance(0.5)) {
    const int n = channels >= 3 && random.chance(0.7) ? 3 : 1;
    std::vector<int64_t> all(channels);
    for (int64_t c = 0; c < channels; ++c) all[c] = c;
    if (random.chance(0.5)) random.shuffle(all);
    std::sort(all.begin(), all.begin() + n);
    e.epilogue.color_count = n;
    for (int k = 0; k < n; ++k) e.epilogue.color[k] = all[k];
    e.matrix = drawn(random, wide, batch * n * (n + 1));
    for (int64_t b = 0; b < batch; ++b)
      if (random.chance(0.3)) {  // the identity, with an offset or without
        const bool offset = random.chance(0.4);
        for (int r = 0; r < n; ++r)
          for (int c = 0; c < n + offset; ++c) e.matrix->set((b * n + r) * (n + 1) + c, r == c);
        if (!offset)
          for (int r = 0; r < n; ++r) e.matrix->set((b * n + r) * (n + 1) + n, 0);
      }
    e.matrix->freeze();
    e.epilogue.matrix = e.matrix->data;
    say(", %d colors from channel %ld", n, long(all[0]));
  }
  if (random.chance(0.4)) {
    e.sigma = drawn(random, wide, batch, 0.3);
    for (int64_t b = 0; b < batch; ++b)
      if (random.chance(0.3)) e.sigma->set(b, 0);
    e.sigma->freeze();
    for (int64_t b = 0; b < batch; ++b)
      e.seed.push_back(static_cast<int64_t>(random.bits()) >> random.pick({0, 11, 62}));
    e.epilogue.sigma = e.sigma->data, e.epilogue.seed = e.seed.data();
    say(", noise");
  }
  if (random.chance(0.4)) {
    for (int64_t b = 0; b < batch; ++b) {
      e.box.push_back(random.chance(0.2) ? random.pick({0.0, 0.25, 0.5, 1.0})
                                         : random.uniform(-0.1, 1.1));
      e.box.push_back(random.chance(0.2) ? random.pick({0.0, 0.25, 0.5, 1.0})
                                         : random.uniform(-0.1, 1.1));
      e.box.push_back(random.pick({0.0, 0.5, 0.25, random.uniform(0, 1), 2.5}));
    }
    e.epilogue.box = e.box.data();
    say(", cutout");
  }
  return e;
}

// The noise of an element of a sample; Philox4x32-10 and Box-Muller, in double.
inline double noise(int64_t seed, int64_t element) {
  const auto counter = static_cast<uint64_t>(element / 4);
  uint32_t x[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed),
                     static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{3528531795u} * x[0], b = uint64_t{3449720151u} * x[2];
    const uint32_t y[4] = {static_cast<uint32_t>(b >> 32) ^ x[1] ^ key[0], static_cast<uint32_t>(b),
                           static_cast<uint32_t>(a >> 32) ^ x[3] ^ key[1],
                           static_cast<uint32_t>(a)};
    std::copy(y, y + 4, x);
    key[0] += 2654435769u, key[1] += 3144134277u;
  }
  const int pair = static_cast<int>(element % 4 / 2);
  const double first = ((x[2 * pair] >> 8) + 1.0) / 16777216;
  const double turn = 2 * std::acos(-1.0) * (x[2 * pair + 1] >> 8) / 16777216;
  return std::sqrt(-2 * std::log(first)) * (element % 2 ? std::sin(turn) : std::cos(turn));
}

// Of a number before the epilogue and what it may be off by, what comes out of it: `at(channel)` is the
// pixel of another channel.
struct Pixel {
  double value, error;
};
template <class At>
Pixel finished(const Ending& e, DType dtype, int64_t b, int64_t c, int64_t y, int64_t x,
               int64_t height, int64_t width, At&& at) {
  if (e.cut(b, y, x, height, width)) return {0, 0};
  Pixel p = at(c);
  const double one = wide_unit(dtype);
  const int color = e.matrix ? e.color(c) : -1;
  if (color >= 0) {
    const int n = e.epilogue.color_count;
    const double offset = e.epilogue.offsets ? e.entry(b, color, n) : 0;
    p = {offset, 4 * one * std::abs(offset)};
    for (int k = 0; k < n; ++k) {
      const Pixel q = at(e.epilogue.color[k]);
      const double factor = e.entry(b, color, k);
      if (factor == 0 && std::isfinite(q.value)) continue;
      p.value += factor * q.value;
      p.error += std::abs(factor) * (q.error + 4 * one * std::abs(q.value));
    }
  }
  if (e.sigma && e.epilogue.offsets && (*e.sigma)[b] != 0) {
    const double sigma = (*e.sigma)[b];
    p.value += sigma * noise(e.seed[b], (c * height + y) * width + x);
    p.error += std::abs(sigma) * (dtype == DType::kFloat64 ? 1e-6 : 1e-5);
  }
  return p;
}

}  // namespace fuzz
