// The kernels of affine resampling's transpose; affine_resample.cu launches them. A block is a tile of 16 x 16
// pixels of the image; a thread is a pixel.
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
  const Block block = Block::of(args.resample.in);
  const Record<Acc> s = Record<Acc>::of(args.resample, records, block.sample);
  if (!s.usable) return put_nothing<T>(args, block);
  if (s.kind == Kind::kCopy && s.invertible) return gather_moved<T>(args, s, block);
  SHARED(Acc, memory, TransposePlanes<Acc>::kSize);
  SHARED(int64_t, beside, kBeside);
  if (!s.invertible && s.kind == Kind::kCopy)
    return gather_all<T, false>(args, s, block, memory, beside);
  if (!s.invertible) return gather_all<T, true>(args, s, block, memory, beside);
  gather_tile<T>(args, records + block.sample, block, memory, shared_view<int>(beside + 0));
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
  SHARED(int64_t, beside, kBeside);
  if (!s.invertible || (edge && r.padding == Padding::kBorder))
    return gather_all<T, false>(args, s, block, shared_view<Acc>(beside + 0), beside);
  if (s.kind == Kind::kCopy) return gather_moved<T>(args, s, block);
  gather_near<T>(args, s, block);
}

}  // namespace gankernels::affine_resample::cuda
