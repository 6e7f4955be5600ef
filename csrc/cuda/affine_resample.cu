// What the host starts for affine resampling: the samples' records, and a pass
// over the pixels.
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

int64_t blocks(const Resample& r, const Layout& tiled, int columns) {
  return r.batch * ((tiled.width + columns - 1) / columns) * ((tiled.height + kTile - 1) / kTile);
}

size_t record_size(const Resample& r) {
  return r.dtype == DType::kFloat64 ? sizeof(Record<double>) : sizeof(Record<float>);
}

// A multiple of 256 bytes, as every workspace.
int64_t records_size(const Resample& r) {
  return (r.batch * static_cast<int64_t>(record_size(r)) + 255) / 256 * 256;
}

// Writes the records, where samples differ, then runs a kernel that reads them, on tiles of `columns`.
template <class Acc, auto kernel, class Args>
const char* run(const char* name, const Args& args, const Layout& tiled, int columns,
                void* workspace, void* stream) {
  const Resample& r = args.resample;
  auto* records = Record<Acc>::is_still(r) ? nullptr : static_cast<Record<Acc>*>(workspace);
  const int64_t prepared = (r.batch + kThreads - 1) / kThreads;
  const char* error =
      records ? launch<prepare<Acc>>("prepare", prepared, kThreads, stream, r, records) : nullptr;
  if (error) return error;
  return launch<kernel>(name, blocks(r, tiled, columns), kThreads, stream, args,
                        static_cast<const Record<Acc>*>(records));
}

}  // namespace

int64_t workspace(const Forward& args) {
  return records_size(args.resample);
}
int64_t workspace(const Transpose& args) {
  return records_size(args.resample);
}

const char* forward(const Forward& args, void* workspace, void* stream) {
  const Resample& r = args.resample;
  if (r.batch == 0 || r.channels == 0) return nullptr;
  Buffers buffers;
  add_constants(r, buffers);
  buffers.in("image", args.image, span(r, r.in), item_size(r.dtype));
  buffers.out("out", args.out, span(r, r.out), item_size(r.dtype));
  buffers.scratch("records", workspace, r.batch, record_size(r));
  return visit_dtype(r.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Acc = Accumulation<T>;
    if (r.filter == Filter::kSym6)
      return run<Acc, resample<T>>("resample", args, r.out, kTile, workspace, stream);
    return run<Acc, resample_plainly<T>>("resample_plainly", args, r.out, kTile, workspace, stream);
  });
}

const char* transpose(const Transpose& args, void* workspace, void* stream) {
  const Resample& r = args.resample;
  if (r.batch == 0 || r.channels == 0) return nullptr;
  Buffers buffers;
  add_constants(r, buffers);
  buffers.in("grad", args.grad, span(r, r.out), item_size(r.dtype));
  buffers.out("image", args.image, span(r, r.in), item_size(r.dtype));
  buffers.scratch("records", workspace, r.batch, record_size(r));
  return visit_dtype(r.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Acc = Accumulation<T>;
    if (r.filter == Filter::kSym6)
      return run<Acc, gather<T>>("gather", args, r.in, Tile<Acc>::kWidth, workspace, stream);
    return run<Acc, gather_plainly<T>>("gather_plainly", args, r.in, kTile, workspace, stream);
  });
}

}  // namespace gankernels::affine_resample::cuda
