// The kernels of affine resampling's transpose; affine_resample.cu launches them. A block is a tile of 16 x 16
// pixels of the image and a thread a pixel, or, by the filter, of twice as many (Tile).
#pragma once

#include "affine_resample_transpose_plain.cuh"
#include "affine_resample_transpose_sweep.cuh"

namespace gankernels::affine_resample::cuda {

// grad_image = R^T epilogue^T grad, of the filter. A block is a tile of the image. Reads what the tile's
// copies are reached from, at unit scale some 4 elements an element, most of them from cache; writes 1.
template <class T>
KERNEL_FOR(kThreads, kBlocksOf<T>)
gather(TABLE(Transpose) args, const Record<Accumulation<T>>* records) {
  using Acc = Accumulation<T>;
  constexpr int kWidth = Tile<Acc>::kWidth;
  const Resample& r = args.resample;
  const Block block = Block::of(r.in, kWidth);
  const Record<Acc> s = Record<Acc>::of(r, records, block.sample);
  SHARED(Acc, memory, TransposePlanes<Acc>::kSize);
  if (s.usable && s.invertible && s.kind != Kind::kCopy)
    return gather_tile<T>(args, records + block.sample, memory);
  // The other ways take a thread for each pixel.
  UNROLL(1)
  for (int x = block.x0; x < least(block.x0 + kWidth, width(r.in)); x += kTile) {
    const Block own{block.sample, x, block.y0};
    if (!s.usable)
      put_nothing<T>(args, own);
    else if (s.invertible)
      gather_moved<T>(args, s, own);
    else if (s.kind == Kind::kCopy)
      gather_all<T, false>(args, s, own, memory, sweep_sums<Acc>(memory));
    else
      gather_all<T, true>(args, s, own, memory, sweep_sums<Acc>(memory));
  }
}

// The same of the plain filters.
template <class T>
KERNEL_FOR(kThreads, 2)
gather_plainly(TABLE(Transpose) args, const Record<Accumulation<T>>* records) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Block block = Block::of(r.in);
  const Record<Acc> s = Record<Acc>::of(r, records, block.sample);
  if (!s.usable) return put_nothing<T>(args, block);
  const bool edge = block.x0 == 0 || block.y0 == 0 || block.x0 + kTile >= width(r.in) ||
                    block.y0 + kTile >= height(r.in);
  SHARED(int64_t, sums, kSweepSums);
  if (!s.invertible || (edge && r.padding == Padding::kBorder))
    return gather_all<T, false>(args, s, block, shared_view<Acc>(sums + 0), sums);
  if (s.kind == Kind::kCopy) return gather_moved<T>(args, s, block);
  gather_near<T>(args, s, block);
}

}  // namespace gankernels::affine_resample::cuda
