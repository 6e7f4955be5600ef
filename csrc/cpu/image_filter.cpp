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

#include "common/parallel.h"
#include "cpu/image_filter/block_rows.h"
#include "cpu/image_filter/row_kernels.h"
#include "cpu/image_filter/sample.h"
#include "cpu/memory/scratch.h"
#include "cpu/simd/targets.h"

namespace gankernels::image_filter::cpu {
namespace {

using gankernels::cpu::run;
using gankernels::cpu::Slot;
using gankernels::cpu::thread_scratch;

#define GANKERNELS_KERNELS "cpu/image_filter/kernels.inc"
#include "cpu/simd/each_target.inc"

constexpr int64_t kStripBytes = 512;           // 45 rows of a strip stay in the first-level cache
constexpr int64_t kPlaneBytes = 1 << 20;       // of a block, in the second
constexpr int64_t kLeastRows = 32;             // of a block
constexpr int64_t kParallelBytes = 128 << 10;  // below, waking the other threads costs more

// Memory of the thread, in whole vectors.
template <class T>
class FilterArena {
 public:
  explicit FilterArena(int64_t count) {
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

template <class T>
class FilterCall {
 public:
  FilterCall(const Filter& f, const void* in, void* out, bool transpose)
      : f_(f), rows_(f, in, out, kernels_), transpose_(transpose) {
    pitch_ = filled(rows_.size) + kFill;  // no power of two: rows share the sets of caches
    const int64_t most = kPlaneBytes / (pitch_ * static_cast<int64_t>(sizeof(T))) - 2 * kReach;
    blocks_ = (f.layout.height - 1) / std::max(most, kLeastRows) + 1;
    block_rows_ = (f.layout.height - 1) / blocks_ + 1;
  }

  void run() const {
    const int64_t bytes =
        f_.batch * f_.channels * f_.layout.height * f_.layout.width * item_size(f_.dtype);
    const int threads = bytes < kParallelBytes ? 1 : f_.threads;
    const int64_t planes = rows_.planes;
    parallel_tasks(threads, f_.batch * planes * blocks_, [&](int64_t task) {
      const int64_t block = task % blocks_, plane = task / blocks_ % planes;
      const int64_t b = task / blocks_ / planes;
      const FilterSample<T> sample(f_, b, transpose_);
      FilterBlock<T> x{sample, plane,
                       b * f_.layout.sample_stride + plane * f_.layout.channel_stride,
                       block * block_rows_, std::min((block + 1) * block_rows_, f_.layout.height)};
      sample.copied ? copy(x) : filter(x);
    });
  }

 private:
  void copy(const FilterBlock<T>& x) const {
    T* row = FilterArena<T>(rows_.size + kFill).take(rows_.size);
    for (int64_t y = x.first; y < x.last; ++y) {
      const bool changed = x.sample.sigma != 0 || x.sample.y.holds(y);
      if (!changed) {
        rows_.copy_bits(x, y);
        continue;
      }
      rows_.load(x, y, row);
      rows_.epilogue(x, y, 0, rows_.size, row);
      rows_.store(x, y, 0, rows_.size, row);
    }
  }

  // `row` continued by `count` pixels to either side.
  void reflect(T* row, int64_t count) const {
    const int64_t width = f_.layout.width, s = rows_.inner;
    for (int64_t i = 1; i <= count; ++i) {
      const int64_t left = i < width ? i : reflected(-i, width);
      for (int64_t k = 0; k < s; ++k) {
        row[k - i * s] = row[left * s + k];
        row[(width - 1 + i) * s + k] = row[(width - 1 - left) * s + k];
      }
    }
  }

  // A row seen from the places of a stage, `step` pixels apart.
  Neighbors<T> along(const T* row, int64_t step) const {
    const int64_t s = step * rows_.inner;
    return {row, row - s, row + s, row - 3 * s, row + 3 * s};
  }

  void filter(const FilterBlock<T>& x) const {
    const int64_t height = f_.layout.height, strip = kStripBytes / sizeof(T);
    // Rows of the filtered plane, of a and of b that the block's need.
    const auto first = [&](int reach) { return std::max<int64_t>(x.first - reach, 0); };
    const auto last = [&](int reach) { return std::min<int64_t>(x.last + reach, height); };
    const int64_t x0 = first(21), x1 = last(21), a0 = first(18), a1 = last(18), b0 = first(12),
                  b1 = last(12);
    const int64_t side = filled(12 * rows_.inner), line = rows_.size + 2 * side + 2 * kFill;
    FilterArena<T> arena((x1 - x0) * pitch_ + (a1 - a0 + b1 - b0 + 1) * strip + 3 * filled(line));
    T* plane = arena.take((x1 - x0) * pitch_);
    T* a = arena.take((a1 - a0) * strip);
    T* b = arena.take((b1 - b0) * strip);
    T* out = arena.take(strip);
    T* row = arena.take(line) + side;
    T* row_a = arena.take(line) + side;
    T* row_b = arena.take(line) + side;
    const Mix<T>& mix = x.sample.mix;

    for (int64_t y = x0; y < x1; ++y) {
      rows_.load(x, y, row);
      if (transpose_) {
        rows_.cut(x, y, 0, rows_.size, row);
        rows_.scale_border(y, 0, rows_.size, row, 2);
      }
      reflect(row, 3);
      kernels_.smooth(along(row, 1), filled(rows_.size), row_a);
      reflect(row_a, 6);
      kernels_.smooth(along(row_a, 2), filled(rows_.size), row_b);
      reflect(row_b, 12);
      kernels_.combine(mix, row, row_a, along(row_b, 4), filled(rows_.size),
                       plane + (y - x0) * pitch_);
    }

    for (int64_t left = 0; left < rows_.size; left += strip) {
      const int64_t n = std::min(strip, rows_.size - left), whole = filled(n);
      // A row of any of the three, seen from the places of a stage.
      const auto around = [&](const T* rows, int64_t pitch, int64_t top, int64_t y, int64_t step) {
        const auto at = [&](int64_t i) { return rows + (reflected(i, height) - top) * pitch; };
        return Neighbors<T>{at(y), at(y - step), at(y + step), at(y - 3 * step), at(y + 3 * step)};
      };
      for (int64_t y = a0; y < x.last + 18; ++y) {
        if (y < a1)
          kernels_.smooth(around(plane + left, pitch_, x0, y, 1), whole, a + (y - a0) * strip);
        if (y - 6 >= b0 && y - 6 < b1)
          kernels_.smooth(around(a, strip, a0, y - 6, 2), whole, b + (y - 6 - b0) * strip);
        const int64_t done = y - 18;
        if (done < x.first) continue;
        kernels_.combine(mix, plane + left + (done - x0) * pitch_, a + (done - a0) * strip,
                         around(b, strip, b0, done, 4), whole, out);
        if (transpose_)
          rows_.scale_border(done, left, n, out, T{0.5});
        else
          rows_.epilogue(x, done, left, n, out);
        rows_.store(x, done, left, n, out);
      }
    }
  }

  const Filter& f_;
  const RowKernels<T>& kernels_ = GANKERNELS_DISPATCH(kKernels<T>);
  const FilterRows<T> rows_;
  bool transpose_;
  int64_t pitch_, blocks_, block_rows_;
};

const char* run_any(const Filter& f, const void* in, void* out, bool transpose) {
  return run(f.dtype, [&](auto zero) {
    FilterCall<Accumulation<decltype(zero)>>(f, in, out, transpose).run();
  });
}

}  // namespace

const char* forward(const Forward& args) {
  return run_any(args.filter, args.image, args.out, false);
}
const char* transpose(const Transpose& args) {
  return run_any(args.filter, args.grad, args.image, true);
}

}  // namespace gankernels::image_filter::cpu
