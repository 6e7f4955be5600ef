// Launches the kernel of augmentation parameters.
#include "cuda/ada_parameters.cuh"

namespace gankernels::ada_parameters {
namespace {

void declare(const Parameters& args, Buffers& buffers) {
  const int64_t acc = item_size(args.acc), channels = args.color_channels;
  if (args.uniforms) {
    buffers.in("uniforms", args.uniforms, args.batch * kUniforms, sizeof(double));
    buffers.in("normals", args.normals, args.batch * kNormals, sizeof(double));
    buffers.in("p", args.p, args.p_count, item_size(args.p_dtype));
    buffers.scratch("values", args.values, args.batch * kValues, sizeof(double));
    buffers.scratch("seed", args.seed, args.batch, sizeof(int64_t));
  } else {
    buffers.in("values", args.input_values, args.batch * kValues, sizeof(double));
  }
  const auto out = [&](const char* name, void* data, int64_t count, int64_t item) {
    if (data) buffers.scratch(name, data, args.batch * count, item);
  };
  out("maps", args.maps, 6, sizeof(double));
  if (args.margins) buffers.scratch("margins", args.margins, 4, sizeof(int64_t));
  out("color", args.color, channels * (channels + 1), acc);
  out("gains", args.gains, 4, acc);
  out("sigma", args.sigma, 1, acc);
  out("box", args.box, 3, sizeof(double));
}

}  // namespace

namespace cuda {

int64_t workspace(const Parameters&) {
  return 0;
}

const char* compute(const Parameters& args, void* /*workspace*/, void* stream) {
  if (args.batch == 0 && !args.margins) return nullptr;  // no launch has no blocks
  Buffers buffers;
  declare(args, buffers);
  return visit_accumulation(args.acc, [&](auto zero) {
    if (args.margins)
      return launch<cuda::compute_with_margins<decltype(zero)>>("ada_parameters", 1, kThreads,
                                                                stream, args);
    return launch<cuda::compute<decltype(zero)>>(
        "ada_parameters", (args.batch + kBlock - 1) / kBlock, kBlock, stream, args);
  });
}

}  // namespace cuda
}  // namespace gankernels::ada_parameters
