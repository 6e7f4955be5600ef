// The CPU kernels of image filtering. A task is a block of rows of a plane, cut by the shapes alone:
// its rows are filtered along x into a plane that stays in the cache, with 21 more above and below,
// and that plane along y, in strips of columns, rows a, b and c behind each other. The channels of a
// channels_last image are one plane, whose pixels are `inner` elements apart.
//
// The half-band cascade takes 19 operations a pixel and axis, where the taps take 43. Reads the image
// once, and 42 rows a block twice; writes the result once. Deterministic, whatever the number of
// threads.

#include "image_filter.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/parallel.h"
#include "cpu/elements.h"
#include "cpu/simd/targets.h"

namespace gankernels::image_filter::cpu {
namespace {

using gankernels::cpu::run;
using gankernels::cpu::Slot;
using gankernels::cpu::Storage;
using gankernels::cpu::thread_scratch;
using gankernels::cpu::vector_kernels;
using gankernels::cpu::VectorKernels;

// Rows, or one row seen from several places: elements 1 and 3 steps of a stage before and after `at`.
template <class T>
struct Neighbours {
  const T *at, *before1, *after1, *before3, *after3;
};

// The factors of x, a, b and c.
template <class T>
struct Mix {
  T x, a, b, c;
};

template <class T>
constexpr T tap(int d) {
  return static_cast<T>(kHalfBand[d]) / kHalfBandUnit;
}

template <class T>
struct RowKernels {
  // lo x; here and below `n` is a number of whole vectors
  void (*smooth)(const Neighbours<T>& x, int64_t n, T* out);
  // mix of x, a, b, and lo b
  void (*combine)(const Mix<T>& mix, const T* x, const T* a, const Neighbours<T>& b, int64_t n,
                  T* out);
  // out[i stride] += sigma * normal_noise(seed, first + i)
  void (*add_noise)(T sigma, int64_t seed, int64_t first, int64_t n, int64_t stride, T* out);
};

// In double, whose noise is that of the reference to the last digits, on every instruction set.
void add_precise_noise(double sigma, int64_t seed, int64_t first, int64_t n, int64_t stride,
                       double* out) {
  for (int64_t i = 0; i < n; ++i) out[i * stride] += sigma * normal_noise(seed, first + i);
}

#define GANKERNELS_KERNELS "cpu/image_filter.inc"
#include "cpu/simd/each_target.inc"

constexpr int64_t kFill = 16;                  // elements: the vectors of every type and target
constexpr int64_t kStripBytes = 512;           // 45 rows of a strip stay in the first-level cache
constexpr int64_t kPlaneBytes = 1 << 20;       // of a block, in the second
constexpr int64_t kLeastRows = 32;             // of a block
constexpr int64_t kParallelBytes = 128 << 10;  // below, waking the other threads costs more

constexpr int64_t filled(int64_t n) {
  return (n + kFill - 1) / kFill * kFill;
}

// The part of an axis that cutout takes: [first, last).
struct Cut {
  int64_t first = 0, last = 0;

  // Along one axis it is that of a plane with one pixel in the other, in the middle of the box.
  static Cut of(double centre, double box_size, int64_t size) {
    const auto taken = [&](int64_t i) { return !kept(centre, 0.5, box_size, i, 0, size, 1); };
    Cut cut;
    while (cut.first < size && !taken(cut.first)) ++cut.first;
    cut.last = cut.first;
    while (cut.last < size && taken(cut.last)) ++cut.last;
    return cut;
  }
  bool holds(int64_t i) const { return i >= first && i < last; }
};

// One sample's numbers.
template <class T>
struct Sample {
  bool copied;
  Mix<T> mix;
  double sigma = 0;
  int64_t seed = 0;
  Cut x, y;

  Sample(const Filter& f, int64_t b, bool transpose) {
    const T* g = static_cast<const T*>(f.gains) + 4 * b;
    copied = g[0] == 1 && g[1] == 1 && g[2] == 1 && g[3] == 1;
    mix = {g[3], g[2] - g[3], g[1] - g[2], g[0] - g[1]};
    const Epilogue& e = f.epilogue;
    if (e.offsets && e.sigma && !transpose)
      sigma = static_cast<const T*>(e.sigma)[b], seed = e.seed[b];
    if (e.box) {
      x = Cut::of(e.box[3 * b], e.box[3 * b + 2], f.layout.width);
      y = Cut::of(e.box[3 * b + 1], e.box[3 * b + 2], f.layout.height);
    }
  }
};

template <class T>
class Call {
 public:
  Call(const Filter& f, const void* in, void* out, bool transpose)
      : f_(f), in_{in, f.dtype}, out_{out, f.dtype}, transpose_(transpose) {
    const Layout& l = f.layout;
    const bool channels_last = l.channel_stride == 1 && l.column_stride == f.channels;
    inner_ = channels_last ? f.channels : 1;
    planes_ = channels_last ? 1 : f.channels;
    row_ = l.width * inner_;
    pitch_ = filled(row_) + kFill;  // no power of two: rows share the sets of caches
    const int64_t most = kPlaneBytes / (pitch_ * static_cast<int64_t>(sizeof(T))) - 2 * kReach;
    blocks_ = (l.height - 1) / std::max(most, kLeastRows) + 1;
    rows_ = (l.height - 1) / blocks_ + 1;
  }

  void run() const {
    const int64_t bytes =
        f_.batch * f_.channels * f_.layout.height * f_.layout.width * item_size(f_.dtype);
    const int threads = bytes < kParallelBytes ? 1 : f_.threads;
    parallel_tasks(threads, f_.batch * planes_ * blocks_, [&](int64_t task) {
      const int64_t block = task % blocks_, plane = task / blocks_ % planes_;
      const int64_t b = task / blocks_ / planes_;
      const Sample<T> sample(f_, b, transpose_);
      Block x{sample, plane, b * f_.layout.sample_stride + plane * f_.layout.channel_stride,
              block * rows_, std::min((block + 1) * rows_, f_.layout.height)};
      sample.copied ? copy(x) : filter(x);
    });
  }

 private:
  struct Block {
    const Sample<T>& sample;
    int64_t plane, offset;  // of the plane in memory
    int64_t first, last;    // rows
  };

  // Memory of the thread, in whole vectors.
  class Arena {
   public:
    explicit Arena(int64_t count) {
      T* p = thread_scratch<T, Slot::kFilterBlock>(count + kFill);
      next_ = p + (64 - reinterpret_cast<uintptr_t>(p) % 64) % 64 / sizeof(T);
    }
    T* take(int64_t count) {
      T* p = next_;
      next_ += filled(count);
      return p;
    }

   private:
    T* next_;
  };

  // --- rows in memory -----------------------------------------------------------------------------

  bool dense() const { return f_.layout.column_stride == inner_; }
  int64_t row_offset(const Block& x, int64_t y) const {
    return x.offset + y * f_.layout.row_stride;
  }

  // Calls copy(number in the row, offset in memory) for elements [first, first + n) of a row of a
  // single channel.
  template <class F>
  void for_each_pixel(const Block& x, int64_t y, int64_t first, int64_t n, F&& copy) const {
    for (int64_t i = 0; i < n; ++i)
      copy(i, row_offset(x, y) + (first + i) * f_.layout.column_stride);
  }

  void load(const Block& x, int64_t y, T* to) const {
    if (dense()) return vectors_.widen(f_.dtype, in_.at(row_offset(x, y)), row_, to);
    for_each_pixel(x, y, 0, row_,
                   [&](int64_t i, int64_t at) { vectors_.widen(f_.dtype, in_.at(at), 1, to + i); });
  }

  void store(const Block& x, int64_t y, int64_t first, int64_t n, const T* from) const {
    const auto out = [&](int64_t at) { return const_cast<void*>(out_.at(at)); };
    if (dense()) return vectors_.narrow(from, n, f_.dtype, out(row_offset(x, y) + first));
    for_each_pixel(x, y, first, n,
                   [&](int64_t i, int64_t at) { vectors_.narrow(from + i, 1, f_.dtype, out(at)); });
  }

  void copy_bits(const Block& x, int64_t y) const {
    const size_t item = item_size(f_.dtype);
    const auto move = [&](int64_t at, size_t bytes) {
      std::memcpy(const_cast<void*>(out_.at(at)), in_.at(at), bytes);
    };
    if (dense()) return move(row_offset(x, y), row_ * item);
    for_each_pixel(x, y, 0, row_, [&](int64_t, int64_t at) { move(at, item); });
  }

  // --- what is done to elements [first, first + n) of a row ----------------------------------------

  void cut(const Block& x, int64_t y, int64_t first, int64_t n, T* row) const {
    if (!x.sample.y.holds(y)) return;
    const int64_t begin = std::max(x.sample.x.first * inner_ - first, int64_t{0});
    const int64_t end = std::min(x.sample.x.last * inner_ - first, n);
    if (begin < end) std::fill(row + begin, row + end, T{0});
  }

  void add_noise(const Block& x, int64_t y, int64_t first, int64_t n, T* row) const {
    for (int64_t k = 0; k < inner_; ++k) {
      const int64_t begin = (first - k + inner_ - 1) / inner_;  // pixels
      const int64_t end = (first + n - k + inner_ - 1) / inner_;
      const int64_t number = ((x.plane + k) * f_.layout.height + y) * f_.layout.width + begin;
      if (begin < end)
        kernels_.add_noise(static_cast<T>(x.sample.sigma), x.sample.seed, number, end - begin,
                           inner_, row + begin * inner_ + k - first);
    }
  }

  void epilogue(const Block& x, int64_t y, int64_t first, int64_t n, T* row) const {
    if (x.sample.sigma != 0) add_noise(x, y, first, n, row);
    cut(x, y, first, n, row);
  }

  // W and its inverse. A plane of one row, or column, has no border to count twice.
  void scale_border(int64_t y, int64_t first, int64_t n, T* row, T factor) const {
    const int64_t last_row = f_.layout.height - 1, last_column = row_ - inner_;
    if (last_row > 0 && (y == 0 || y == last_row))
      for (int64_t i = 0; i < n; ++i) row[i] *= factor;
    if (last_column == 0) return;
    for (int64_t i = first; i < std::min(inner_, first + n); ++i) row[i - first] *= factor;
    for (int64_t i = std::max(last_column, first); i < first + n; ++i) row[i - first] *= factor;
  }

  // --- tasks ---------------------------------------------------------------------------------------

  void copy(const Block& x) const {
    T* row = Arena(row_ + kFill).take(row_);
    for (int64_t y = x.first; y < x.last; ++y) {
      const bool changed = x.sample.sigma != 0 || x.sample.y.holds(y);
      if (!changed) {
        copy_bits(x, y);
        continue;
      }
      load(x, y, row);
      epilogue(x, y, 0, row_, row);
      store(x, y, 0, row_, row);
    }
  }

  // `row` continued by `count` pixels to either side.
  void reflect(T* row, int64_t count) const {
    const int64_t width = f_.layout.width, s = inner_;
    for (int64_t i = 1; i <= count; ++i) {
      const int64_t left = i < width ? i : reflected(-i, width);
      for (int64_t k = 0; k < s; ++k) {
        row[k - i * s] = row[left * s + k];
        row[(width - 1 + i) * s + k] = row[(width - 1 - left) * s + k];
      }
    }
  }

  // A row seen from the places of a stage, `step` pixels apart.
  Neighbours<T> along(const T* row, int64_t step) const {
    const int64_t s = step * inner_;
    return {row, row - s, row + s, row - 3 * s, row + 3 * s};
  }

  void filter(const Block& x) const {
    const int64_t height = f_.layout.height, strip = kStripBytes / sizeof(T);
    // Rows of the filtered plane, of a and of b that the block's need.
    const auto first = [&](int reach) { return std::max<int64_t>(x.first - reach, 0); };
    const auto last = [&](int reach) { return std::min<int64_t>(x.last + reach, height); };
    const int64_t x0 = first(21), x1 = last(21), a0 = first(18), a1 = last(18), b0 = first(12),
                  b1 = last(12);
    const int64_t side = filled(12 * inner_), line = row_ + 2 * side + 2 * kFill;
    Arena arena((x1 - x0) * pitch_ + (a1 - a0 + b1 - b0 + 1) * strip + 3 * filled(line));
    T* plane = arena.take((x1 - x0) * pitch_);
    T* a = arena.take((a1 - a0) * strip);
    T* b = arena.take((b1 - b0) * strip);
    T* out = arena.take(strip);
    T* row = arena.take(line) + side;
    T* row_a = arena.take(line) + side;
    T* row_b = arena.take(line) + side;
    const RowKernels<T>& kernels = kernels_;
    const Mix<T>& mix = x.sample.mix;

    for (int64_t y = x0; y < x1; ++y) {
      load(x, y, row);
      if (transpose_) {
        cut(x, y, 0, row_, row);
        scale_border(y, 0, row_, row, 2);
      }
      reflect(row, 3);
      kernels.smooth(along(row, 1), filled(row_), row_a);
      reflect(row_a, 6);
      kernels.smooth(along(row_a, 2), filled(row_), row_b);
      reflect(row_b, 12);
      kernels.combine(mix, row, row_a, along(row_b, 4), filled(row_), plane + (y - x0) * pitch_);
    }

    for (int64_t left = 0; left < row_; left += strip) {
      const int64_t n = std::min(strip, row_ - left), whole = filled(n);
      // A row of any of the three, seen from the places of a stage.
      const auto around = [&](const T* rows, int64_t pitch, int64_t top, int64_t y, int64_t step) {
        const auto at = [&](int64_t i) { return rows + (reflected(i, height) - top) * pitch; };
        return Neighbours<T>{at(y), at(y - step), at(y + step), at(y - 3 * step), at(y + 3 * step)};
      };
      for (int64_t y = a0; y < x.last + 18; ++y) {
        if (y < a1)
          kernels.smooth(around(plane + left, pitch_, x0, y, 1), whole, a + (y - a0) * strip);
        if (y - 6 >= b0 && y - 6 < b1)
          kernels.smooth(around(a, strip, a0, y - 6, 2), whole, b + (y - 6 - b0) * strip);
        const int64_t done = y - 18;
        if (done < x.first) continue;
        kernels.combine(mix, plane + left + (done - x0) * pitch_, a + (done - a0) * strip,
                        around(b, strip, b0, done, 4), whole, out);
        if (transpose_)
          scale_border(done, left, n, out, T{0.5});
        else
          epilogue(x, done, left, n, out);
        store(x, done, left, n, out);
      }
    }
  }

  const Filter& f_;
  const VectorKernels<T>& vectors_ = vector_kernels<T>();
  const RowKernels<T>& kernels_ = GANKERNELS_DISPATCH(kKernels<T>);
  Storage in_, out_;
  bool transpose_;
  int64_t inner_, planes_, row_, pitch_, blocks_, rows_;
};

const char* run_any(const Filter& f, const void* in, void* out, bool transpose) {
  return run(f.dtype, [&](auto zero) { Call<decltype(zero)>(f, in, out, transpose).run(); });
}

}  // namespace

const char* forward(const Forward& args) {
  return run_any(args.filter, args.image, args.out, false);
}
const char* transpose(const Transpose& args) {
  return run_any(args.filter, args.grad, args.image, true);
}

}  // namespace gankernels::image_filter::cpu
