// Affine resampling's transpose by every filter where an image's pixels cannot tell which outputs took them:
// every block looks at all outputs. gather_all, at the end, is what the kernels call.
#pragma once

#include "affine_resample_transpose_lattice.cuh"

namespace gankernels::affine_resample::cuda {

constexpr int kSweepBox = 40,
              kSweepPitch = 41;  // a box of the lattice, whose points are in a plane
constexpr int kSweepSums = kThreads + kThreads / 2;  // of int64_t

// The pixels that take what is given to them by any output: where the map has no usable inverse, or shows
// the image very often, or many positions to its border. Every block looks at the whole output, and adds
// what is its own.
template <class Acc>
struct Sweep {
  SharedArray<int64_t> sums;  // of the tile's pixels
  SharedArray<int> odd;       // whether something that is not finite came
  Block block;
  int width, height;  // of the image
  Scale<Acc, int64_t> scale;

  // The place of a pixel of the image, or -1 if it is another tile's, or none.
  DEVICE int place(int x, int y) const {
    const int i = x - block.x0, j = y - block.y0;
    return i < 0 || j < 0 || i >= kTile || j >= kTile ? -1 : j * kTile + i;
  }
  DEVICE void clear() const {
    sync_threads();
    sums[thread_id()] = 0;
    odd[thread_id()] = 0;
    sync_threads();
  }
  DEVICE void add(int place, Acc x) const {
    if (Size<Acc>::of(x) <= Size<Acc>::kMost)
      atomic_add(sums + place, scale.fixed(x));
    else
      atomic_or(odd + place, 1);
  }
  DEVICE Acc result() const {
    sync_threads();
    if (odd[thread_id()]) return not_a_number<Acc>();
    return static_cast<Acc>(sums[thread_id()]) * scale.back;
  }
};

// The size of the largest cotangent of a channel; of numbers that are odd, those do not count.
template <class T>
DEVICE int largest_of(const Transpose& args, const Cutout& cut, int sample, int place) {
  using S = Size<Accumulation<T>>;
  const Resample& r = args.resample;
  int largest = 0;
  for (int y = 0; y < height(r.out); ++y)
    for (int x = thread_id(); x < width(r.out); x += kThreads) {
      const int size = S::of(cotangent<T>(args, cut, sample, place, y, x));
      if (size <= S::kMost) largest = most(largest, size);
    }
  return block_max<kThreads>(largest);
}

// By a plain filter, or copied.
template <class T>
DEVICE void sweep_pixels(const Transpose& args, const Record<Accumulation<T>>& s, int place,
                         const Sweep<Accumulation<T>>& sweep) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const bool nearest = r.filter == Filter::kNearest || s.kind == Kind::kCopy;
  for (int y = 0; y < height(r.out); ++y)
    for (int x = thread_id(); x < width(r.out); x += kThreads) {
      const auto taps = Taps<Acc>::of(s, nearest, x, y);
      UNROLL(1)
      for (int k = 0; k < taps.count(); ++k) {
        const int to = sweep.place(padded(taps.x(k), sweep.width, r.padding),
                                   padded(taps.y(k), sweep.height, r.padding));
        if (to < 0) continue;
        const Acc own = cotangent<T>(args, s.cut, sweep.block.sample, place, y, x);
        sweep.add(to, Size<Acc>::of(own) <= Size<Acc>::kMost ? taps.weight(k) * own
                                                             : not_a_number<Acc>());
      }
    }
}

// By the lattice, a box of it at a time: every point gives to its 49 pixels.
template <class T>
DEVICE void sweep_lattice(const Transpose& args, const Record<Accumulation<T>>& s, int place,
                          const Sweep<Accumulation<T>>& sweep,
                          SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  using P = TransposePlanes<Acc>;
  const Resample& r = args.resample;
  const Range bx = range_of(r, 0), by = range_of(r, 1);
  const Reach all = points_of(r);
  UNROLL(1)
  for (int low_y = all.low_y; low_y <= all.high_y; low_y += kSweepBox) UNROLL(1)
  for (int low_x = all.low_x; low_x <= all.high_x; low_x += kSweepBox) {
    const Box box = Box::from(low_x, all.high_x, low_y, all.high_y, kSweepBox);
    const Shares shares = Shares::of(box.width);
    sync_threads();  // the box before has been given
    Cotangents<T>::of(r, static_cast<const T*>(args.grad), sweep.block.sample, box,
                      Lines::of(box.columns()))
        .fetch(args, box, s.cut, sweep.block.sample, place, Cotangents<T>::bytes_of(r, place),
               memory);
    replace_odd<Acc>(box, Lines::of(box.columns()), not_a_number<Acc>(), memory);
    sync_threads();
    upsample_rows<1, P>(box, shares, memory, P::kHalf);
    sync_threads();
    upsample_columns<1, P, kSweepPitch>(box, shares, memory, P::kHalf, P::kSums);
    sync_threads();
    const Lines lines = Lines::of(box.width);
    const int hx = box.u + lines.column;
    UNROLL(1)
    for (int row = lines.row; row < box.height; row += lines.step) {
      const int hy = box.v + row;
      if (hx > all.high_x || hy > all.high_y) continue;
      const Acc point = memory[P::kSums + row * kSweepPitch + lines.column];
      const auto wx = Window<Acc>::of(s.u.node(s.u.at(hx, hy)), bx);
      const auto wy = Window<Acc>::of(s.v.node(s.v.at(hx, hy)), by);
      UNROLL(1)
      for (int j = 0; j < 7; ++j) {
        const int y = reflected(wy.first + j, sweep.height);
        if (y < sweep.block.y0 || y >= sweep.block.y0 + kTile) continue;
        UNROLL(1)
        for (int i = 0; i < 7; ++i) {
          const int to = sweep.place(reflected(wx.first + i, sweep.width), y);
          const Acc weight = wx.weight(i) * wy.weight(j);
          if (to >= 0 && weight != 0) sweep.add(to, weight * point);
        }
      }
    }
  }
}

// The place of a sweep's sums in the planes of the transpose: behind its points, which are where sums of
// nodes are otherwise.
template <class Acc>
DEVICE SharedArray<int64_t> sweep_sums(SharedArray<Acc> memory) {
  using P = TransposePlanes<Acc>;
  constexpr int kAt = P::kSums + kSweepBox * kSweepPitch;
  static_assert(kAt % 4 == 0);
  static_assert(kAt * sizeof(Acc) + kSweepSums * sizeof(int64_t) <= P::kSize * sizeof(Acc));
  return shared_view<int64_t>(memory + kAt);
}

// A tile of kTile x kTile pixels. By the lattice, `sums` may lie where sweep_sums() says.
template <class T, bool kLattice>
DEVICE void gather_all(const Transpose& args, const Record<Accumulation<T>>& s, const Block& block,
                       SharedArray<Accumulation<T>> memory, SharedArray<int64_t> sums) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Reach all = points_of(r);
  // What a pixel is given at most: by every point, and by a point to each of its pixels.
  const Acc count = static_cast<Acc>(all.high_x - all.low_x + 1) *
                    static_cast<Acc>(all.high_y - all.low_y + 1) *
                    static_cast<Acc>(4 * kSpread * kSpread * kSpread * kSpread);
  for (int place = 0; place < r.channels; ++place) {
    const int largest = largest_of<T>(args, s.cut, block.sample, place);
    const Sweep<Acc> sweep{sums,         shared_view<int>(sums + kThreads),      block, width(r.in),
                           height(r.in), Scale<Acc, int64_t>::of(largest, count)};
    sweep.clear();
    if constexpr (kLattice)
      sweep_lattice<T>(args, s, place, sweep, memory);
    else
      sweep_pixels<T>(args, s, place, sweep);
    put<T>(args, block, place, sweep.result());
  }
}

}  // namespace gankernels::affine_resample::cuda
