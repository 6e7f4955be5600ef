// Tensors in, contract out: checks, allocation, and the registration of the implementations.
// The schemas are defined in gankernels/ops/image_filter.py.
#include "image_filter.h"

#include "bindings/tensors.h"

namespace gankernels::bindings {
namespace {

namespace filter = gankernels::image_filter;

// The data of a contiguous tensor of `size` numbers a sample.
const void* numbers(const char* op, const char* name, const std::optional<Tensor>& x, int64_t size,
                    ScalarType type, const Tensor& image) {
  if (!x) return nullptr;
  STD_TORCH_CHECK(same_device(*x, image) && x->scalar_type() == type && x->dim() >= 1 &&
                      x->size(0) == image.size(0) && x->numel() == image.size(0) * size &&
                      x->is_contiguous(),
                  op, ": expected ", name, " of ", size,
                  " contiguous numbers a sample, of its dtype, on the image's device");
  return x->const_data_ptr();
}

filter::Filter filter_of(const char* op, const Tensor& image, const Tensor& gains,
                         const std::optional<Tensor>& sigma, const std::optional<Tensor>& seed,
                         const std::optional<Tensor>& box) {
  STD_TORCH_CHECK(is_here(image) && image.dim() == 4, op, ": expected an image (B, C, H, W) on ",
                  kPlace);
  STD_TORCH_CHECK(sigma.has_value() == seed.has_value(), op, ": expected sigma and seed, or none");
  const DType dtype = dtype_of(op, image);
  const ScalarType wide = scalar_type(accumulation(dtype));
  filter::Filter f{};
  f.dtype = dtype;
  f.threads = threads();
  f.batch = image.size(0);
  f.channels = image.size(1);
  f.layout = {image.size(2),   image.size(3),   image.stride(0),
              image.stride(1), image.stride(2), image.stride(3)};
  f.gains = numbers(op, "gains", gains, 4, wide, image);
  f.epilogue.offsets = true;
  f.epilogue.sigma = numbers(op, "sigma", sigma, 1, wide, image);
  f.epilogue.seed =
      static_cast<const int64_t*>(numbers(op, "seed", seed, 1, ScalarType::Long, image));
  f.epilogue.box =
      static_cast<const double*>(numbers(op, "box", box, 3, ScalarType::Double, image));
  return f;
}

// Memory for a result laid out as `image`, whose elements must neither overlap nor have gaps.
Tensor result_like(const char* op, const Tensor& image) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < image.dim(); ++d)
    if (image.size(d) != 1) dims.emplace_back(image.stride(d), image.size(d));
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    STD_TORCH_CHECK(stride == expected, op, ": expected an image whose memory is dense");
    expected *= size;
  }
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
