// Launches the kernel of the parameters of differentiable augmentation.
#include "cuda/diff_augment.cuh"

namespace gankernels::diff_augment::cuda {

int64_t workspace(const Parameters&) {
  return 0;
}

const char* compute(const Parameters& args, void* /*workspace*/, void* stream) {
  if (args.batch == 0) return nullptr;  // no launch has no blocks
  const int64_t acc = item_size(args.acc), channels = args.color_channels;
  Buffers buffers;
  buffers.in("uniforms", args.uniforms, args.batch * kUniforms, sizeof(double));
  const auto out = [&](const char* name, void* data, int64_t count, int64_t item) {
    if (data) buffers.scratch(name, data, args.batch * count, item);
  };
  out("maps", args.maps, 6, sizeof(double));
  out("box", args.box, 3, sizeof(double));
  out("color", args.color, channels * (channels + 1), acc);
  out("mix", args.mix, kMix, acc);
  out("shade", args.shade, 1, acc);
  return visit_accumulation(args.acc, [&](auto zero) {
    return launch<parameters<decltype(zero)>>("diff_augment", (args.batch + kBlock - 1) / kBlock,
                                              kBlock, stream, args);
  });
}

}  // namespace gankernels::diff_augment::cuda
