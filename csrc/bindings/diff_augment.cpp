// Tensors in, contract out: checks, allocation, and the registration of the implementations.
// The schema is defined in gankernels/ops/diff_augment.py.
#include "diff_augment.h"

#include "bindings/tensors.h"

namespace gankernels::bindings {
namespace {

namespace da = gankernels::diff_augment;

constexpr const char* kOp = "diff_augment_parameters";

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> compute(const Tensor& uniforms, int64_t height,
                                                           int64_t width, bool maps, bool box,
                                                           int64_t color_channels, bool mix,
                                                           bool before, bool after, bool float64) {
  STD_TORCH_CHECK(is_here(uniforms) && uniforms.dim() == 2, kOp, ": expected uniforms (B, 7) on ",
                  kPlace);
  STD_TORCH_CHECK(height > 0 && width > 0, kOp, ": expected a positive height and width");
  STD_TORCH_CHECK(color_channels == 0 || color_channels == 1 || color_channels == 3, kOp,
                  ": expected 0, 1 or 3 color channels");
  da::Parameters args{};
  args.acc = float64 ? DType::kFloat64 : DType::kFloat32;
  args.batch = uniforms.size(0);
  args.height = height;
  args.width = width;
  args.color_channels = color_channels;
  args.before = before;
  args.after = after;
  args.uniforms = static_cast<const da::Uniforms*>(
      data_of(kOp, "uniforms", uniforms, args.batch * da::kUniforms, ScalarType::Double, uniforms));
  // Results that are not wanted are empty.
  const auto empty = [&](bool wanted, std::vector<int64_t> shape, ScalarType dtype) {
    if (!wanted) return torch::stable::new_empty(uniforms, {0}, dtype);
    shape.insert(shape.begin(), args.batch);
    return torch::stable::new_empty(uniforms, shape, dtype);
  };
  const auto data = [](const Tensor& x, bool wanted) { return wanted ? x.data_ptr() : nullptr; };
  const ScalarType acc = scalar_type(args.acc);
  const bool colored = color_channels > 0;
  const Tensor out_maps = empty(maps, {2, 3}, ScalarType::Double);
  const Tensor out_box = empty(box, {3}, ScalarType::Double);
  const Tensor out_color = empty(colored, {color_channels, color_channels + 1}, acc);
  const Tensor out_mix = empty(mix, {da::kMix}, acc);
  const Tensor out_shade = empty(colored, {}, acc);
  args.maps = static_cast<double*>(data(out_maps, maps));
  args.box = static_cast<double*>(data(out_box, box));
  args.color = data(out_color, colored);
  args.mix = data(out_mix, mix);
  args.shade = data(out_shade, colored);
  RUN(kOp, da, compute, uniforms, args);
  return {out_maps, out_box, out_color, out_mix, out_shade};
}

GANKERNELS_IMPLEMENTATIONS(m) {
  m.impl("diff_augment_parameters", TORCH_BOX(&compute));
}

}  // namespace
}  // namespace gankernels::bindings
