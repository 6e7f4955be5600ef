// What the host starts for affine resampling: one launch a pass, two for the transpose of the
// filter, and no workspace.
#include "affine_resample.cuh"
#include "affine_resample_transpose.cuh"

namespace gankernels::affine_resample::cuda {
namespace {

// How many elements from the first on an image reaches.
int64_t span(const Resample& r, const Layout& l) {
  return 1 + (r.batch - 1) * l.sample_stride + (r.channels - 1) * l.channel_stride +
         (l.height - 1) * l.row_stride + (l.width - 1) * l.column_stride;
}

void add_constants(const Resample& r, Buffers& buffers) {
  const Epilogue& e = r.epilogue;
  const size_t acc = item_size(accumulation(r.dtype));
  if (r.maps) buffers.in("maps", r.maps, 6 * r.batch, sizeof(double));
  if (r.margins) buffers.in("margins", r.margins, 4, sizeof(int64_t));
  if (e.matrix) buffers.in("color", e.matrix, r.batch * e.color_count * (e.color_count + 1), acc);
  if (e.sigma) buffers.in("sigma", e.sigma, r.batch, acc);
  if (e.sigma) buffers.in("seed", e.seed, r.batch, sizeof(int64_t));
  if (e.box) buffers.in("box", e.box, 3 * r.batch, sizeof(double));
}

int64_t blocks(const Resample& r, const Layout& tiled) {
  return r.batch * ((tiled.width + kTile - 1) / kTile) * ((tiled.height + kTile - 1) / kTile);
}

}  // namespace

int64_t workspace(const Forward&) {
  return 0;
}
int64_t workspace(const Transpose&) {
  return 0;
}

const char* forward(const Forward& args, void*, void* stream) {
  const Resample& r = args.resample;
  if (r.batch == 0 || r.channels == 0) return nullptr;
  Buffers buffers;
  add_constants(r, buffers);
  buffers.in("image", args.image, span(r, r.in), item_size(r.dtype));
  buffers.out("out", args.out, span(r, r.out), item_size(r.dtype));
  return visit_dtype(r.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t count = blocks(r, r.out);
    if (r.filter == Filter::kSym6)
      return launch<resample<T>>("resample", count, kThreads, stream, args);
    return launch<resample_plainly<T>>("resample_plainly", count, kThreads, stream, args);
  });
}

const char* transpose(const Transpose& args, void*, void* stream) {
  const Resample& r = args.resample;
  if (r.batch == 0 || r.channels == 0) return nullptr;
  Buffers buffers;
  add_constants(r, buffers);
  buffers.in("grad", args.grad, span(r, r.out), item_size(r.dtype));
  buffers.out("image", args.image, span(r, r.in), item_size(r.dtype));
  return visit_dtype(r.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t count = blocks(r, r.in);
    if (r.filter == Filter::kSym6) {
      if (const char* error = launch<gather<T>>("gather", count, kThreads, stream, args))
        return error;
      return launch<gather_slowly<T>>("gather_slowly", count, kThreads, stream, args);
    }
    return launch<gather_plainly<T>>("gather_plainly", count, kThreads, stream, args);
  });
}

}  // namespace gankernels::affine_resample::cuda
