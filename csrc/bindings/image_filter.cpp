// Tensors in, contract out: checks, allocation, and the registration of the implementations.
// The schemas are defined in gankernels/ops/image_filter.py.
#include "image_filter.h"

#include "bindings/tensors.h"

namespace gankernels::bindings {
namespace {

namespace filter = gankernels::image_filter;

filter::Filter filter_of(const char* op, const Tensor& image, const Tensor& gains,
                         const std::optional<Tensor>& sigma, const std::optional<Tensor>& seed,
                         const std::optional<Tensor>& box) {
  STD_TORCH_CHECK(is_here(image) && image.dim() == 4, op, ": expected an image (B, C, H, W) on ",
                  kPlace);
  STD_TORCH_CHECK(sigma.has_value() == seed.has_value(), op, ": expected sigma and seed, or none");
  const DType dtype = dtype_of(op, image);
  const ScalarType acc = scalar_type(accumulation(dtype));
  filter::Filter f{};
  f.dtype = dtype;
  f.threads = threads();
  f.batch = image.size(0);
  f.channels = image.size(1);
  f.layout = {image.size(2),   image.size(3),   image.stride(0),
              image.stride(1), image.stride(2), image.stride(3)};
  f.gains = data_of(op, "gains", gains, 4 * f.batch, acc, image);
  f.epilogue.offsets = true;
  f.epilogue.sigma = data_of(op, "sigma", sigma, f.batch, acc, image);
  f.epilogue.seed =
      static_cast<const int64_t*>(data_of(op, "seed", seed, f.batch, ScalarType::Long, image));
  f.epilogue.box =
      static_cast<const double*>(data_of(op, "box", box, 3 * f.batch, ScalarType::Double, image));
  return f;
}

// Memory for a result laid out as `image`, whose elements must neither overlap nor have gaps.
Tensor result_like(const char* op, const Tensor& image) {
  STD_TORCH_CHECK(is_dense(in_memory_order(image)), op,
                  ": expected an image whose memory is dense");
  return dense_like(image);
}

Tensor forward(const Tensor& image, const Tensor& gains, const std::optional<Tensor>& sigma,
               const std::optional<Tensor>& seed, const std::optional<Tensor>& box) {
  const char* op = "image_filter";
  const filter::Filter f = filter_of(op, image, gains, sigma, seed, box);
  if (image.numel() == 0) return torch::stable::empty_like(image);
  const Tensor out = result_like(op, image);
  const filter::Forward args{f, image.const_data_ptr(), out.data_ptr()};
  RUN(op, filter, forward, image, args);
  return out;
}

Tensor transpose(const Tensor& grad, const Tensor& gains, const std::optional<Tensor>& box) {
  const char* op = "image_filter_transpose";
  const filter::Filter f = filter_of(op, grad, gains, std::nullopt, std::nullopt, box);
  if (grad.numel() == 0) return torch::stable::empty_like(grad);
  const Tensor image = result_like(op, grad);
  const filter::Transpose args{f, grad.const_data_ptr(), image.data_ptr()};
  RUN(op, filter, transpose, grad, args);
  return image;
}

GANKERNELS_IMPLEMENTATIONS(m) {
  m.impl("image_filter", TORCH_BOX(&forward));
  m.impl("image_filter_transpose", TORCH_BOX(&transpose));
}

}  // namespace
}  // namespace gankernels::bindings
