// Launches the kernel of image filtering: a block for every tile of every sample.
#include "cuda/image_filter.cuh"

#include "common/tensor_table.cuh"

namespace gankernels::image_filter {
namespace {

using namespace gankernels::image_filter::cuda;  // the kernel

template <class T>
const char* run(const Filter& f, const void* in, void* out, bool transpose, void* stream) {
  using Acc = Accumulation<T>;
  const Epilogue& e = f.epilogue;
  const Layout& l = f.layout;
  if (l.height > INT32_MAX || l.width > INT32_MAX) return "expected sides of less than 2^31 pixels";
  const int64_t elements = f.batch * f.channels * l.height * l.width;
  if (elements == 0) return nullptr;
  const FilterTask task{l,
                        f.channels,
                        ceil_div(l.width, kColumns<Acc>),
                        ceil_div(l.height, kRows),
                        transpose,
                        in,
                        f.gains,
                        out,
                        e.offsets && !transpose ? e.sigma : nullptr,
                        e.seed,
                        e.box};
  Buffers buffers;
  buffers.in("in", in, elements, sizeof(T));
  buffers.scratch("out", out, elements, sizeof(T));
  buffers.in("gains", f.gains, f.batch * kBands, sizeof(Acc));
  if (task.sigma) {
    buffers.in("sigma", task.sigma, f.batch, sizeof(Acc));
    buffers.in("seed", task.seed, f.batch, sizeof(int64_t));
  }
  if (task.box) buffers.in("box", task.box, 3 * f.batch, sizeof(double));
  return launch<filter<T>>("filter", f.batch * task.tiles_x * task.tiles_y, kThreads, stream, task);
}

const char* run_any(const Filter& f, const void* in, void* out, bool transpose, void* stream) {
  return visit_dtype(f.dtype,
                     [&](auto zero) { return run<decltype(zero)>(f, in, out, transpose, stream); });
}

}  // namespace

namespace cuda {

int64_t workspace(const Forward&) {
  return 0;
}
int64_t workspace(const Transpose&) {
  return 0;
}
const char* forward(const Forward& args, void* /*workspace*/, void* stream) {
  return run_any(args.filter, args.image, args.out, false, stream);
}
const char* transpose(const Transpose& args, void* /*workspace*/, void* stream) {
  return run_any(args.filter, args.grad, args.image, true, stream);
}

}  // namespace cuda
}  // namespace gankernels::image_filter
