// Tensors in, contract out: checks, allocation, and the registration of the implementations.
// The schemas are defined in gankernels/ops/affine_resample.py.
#include "affine_resample.h"

#include "bindings/tensors.h"

namespace gankernels::bindings {
namespace {

namespace ar = gankernels::affine_resample;
using Optional = std::optional<Tensor>;

Layout layout_of(const Tensor& x) {
  return {x.size(2), x.size(3), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// A fresh image: channels_last where `like` is, else contiguous.
Tensor image_like(const Tensor& like, int64_t height, int64_t width) {
  const int64_t batch = like.size(0), channels = like.size(1), pixels = like.size(2) * like.size(3);
  const bool channels_last = !like.is_contiguous() && channels > 1 && like.stride(1) == 1;
  const bool dense = channels_last && like.stride(3) == channels &&
                     like.stride(2) == channels * like.size(3) &&
                     like.stride(0) == channels * pixels;
  const bool same = height == like.size(2) && width == like.size(3);
  if (same && (like.is_contiguous() || dense)) return dense_like(like);
  if (!channels_last) return torch::stable::new_empty(like, {batch, channels, height, width});
  const Tensor nhwc = torch::stable::new_empty(like, {batch, height, width, channels});
  return torch::stable::transpose(torch::stable::transpose(nhwc, 1, 3), 2, 3);
}

struct Resampling {
  Optional maps, margins;
  int64_t filter, padding;
  bool lossless;
  int64_t height, width;  // of the result
};

struct Epilogues {
  Optional color;
  std::vector<int64_t> channels;
  Optional sigma, seed, box;
  bool offsets = true;
};

// The contract's call: `in` is on the image's side of the map, `out` on the output's.
struct ResampleArguments {
  ResampleArguments(const char* op, const Tensor& in, const Tensor& out, const Resampling& how,
                    const Epilogues& epilogue)
      : op(op), like(in) {
    STD_TORCH_CHECK(how.filter >= 0 && how.filter <= 2 && how.padding >= 0 && how.padding <= 2, op,
                    ": expected a filter and a padding by their numbers, 0 to 2");
    const DType dtype = dtype_of(op, in);
    const int64_t batch = in.size(0);
    resample = {dtype,
                static_cast<ar::Filter>(how.filter),
                static_cast<ar::Padding>(how.padding),
                how.lossless,
                threads(),
                batch,
                in.size(1),
                layout_of(in),
                layout_of(out),
                data<double>("maps", how.maps, ScalarType::Double, 6 * batch),
                data<int64_t>("margins", how.margins, ScalarType::Long, 4),
                {}};
    const auto count = static_cast<int64_t>(epilogue.channels.size());
    STD_TORCH_CHECK(count == 0 || count == 1 || count == 3, op,
                    ": expected 0, 1 or 3 color channels");
    STD_TORCH_CHECK(epilogue.color.has_value() == (count > 0), op,
                    ": expected color matrices where there are color channels");
    STD_TORCH_CHECK(epilogue.seed.has_value() == epilogue.sigma.has_value(), op,
                    ": expected a seed where there is a sigma");
    Epilogue& e = resample.epilogue;
    e.offsets = epilogue.offsets;
    e.color_count = static_cast<int>(count);
    for (int64_t k = 0; k < count; ++k) {
      e.color[k] = epilogue.channels[k];
      STD_TORCH_CHECK(e.color[k] >= (k ? e.color[k - 1] + 1 : 0) && e.color[k] < in.size(1), op,
                      ": expected ascending color channels of the image");
    }
    const ScalarType acc = scalar_type(accumulation(dtype));
    e.matrix = data<void>("color", epilogue.color, acc, batch * count * (count + 1));
    e.sigma = data<void>("sigma", epilogue.sigma, acc, batch);
    e.seed = data<int64_t>("seed", epilogue.seed, ScalarType::Long, batch);
    e.box = data<double>("box", epilogue.box, ScalarType::Double, 3 * batch);
  }

  template <class T>
  const T* data(const char* name, const Optional& x, ScalarType type, int64_t size) const {
    return static_cast<const T*>(data_of(op, name, x, size, type, like));
  }

  const char* op;
  const Tensor& like;
  ar::Resample resample;
};

void check_image(const char* op, const Tensor& x, int64_t height, int64_t width) {
  STD_TORCH_CHECK(is_here(x), op, ": expected images on ", kPlace);
  STD_TORCH_CHECK(x.dim() == 4 && x.size(2) > 0 && x.size(3) > 0, op,
                  ": expected images of shape (B, C, H, W) with pixels");
  constexpr int64_t kMost = 1 << 28;  // the kernels count pixels by 32 bits
  STD_TORCH_CHECK(height > 0 && width > 0, op, ": expected a result with pixels");
  STD_TORCH_CHECK(height <= kMost && width <= kMost && x.size(2) <= kMost && x.size(3) <= kMost, op,
                  ": expected sides of at most ", kMost, " pixels");
}

Tensor apply(const char* op, const Tensor& image, const Resampling& how,
             const Epilogues& epilogue) {
  check_image(op, image, how.height, how.width);
  const Tensor out = image_like(image, how.height, how.width);
  if (out.numel() == 0) return out;
  const ResampleArguments call(op, image, out, how, epilogue);
  const ar::Forward args{call.resample, image.const_data_ptr(), out.data_ptr()};
  RUN(op, ar, forward, image, args);
  return out;
}

Tensor apply_transposed(const char* op, const Tensor& grad, const Resampling& how,
                        const Epilogues& epilogue) {
  check_image(op, grad, how.height, how.width);
  const Tensor image = image_like(grad, how.height, how.width);
  if (image.numel() == 0) return image;
  const ResampleArguments call(op, image, grad, how, epilogue);
  const ar::Transpose args{call.resample, grad.const_data_ptr(), image.data_ptr()};
  RUN(op, ar, transpose, grad, args);
  return image;
}

Tensor resample(const Tensor& image, const Tensor& maps, const Optional& margins, int64_t filter,
                int64_t padding, bool lossless, int64_t height, int64_t width) {
  return apply("affine_resample", image, {maps, margins, filter, padding, lossless, height, width},
               {});
}

Tensor resample_transpose(const Tensor& grad, const Tensor& maps, const Optional& margins,
                          int64_t filter, int64_t padding, bool lossless, int64_t height,
                          int64_t width) {
  return apply_transposed("affine_resample_transpose", grad,
                          {maps, margins, filter, padding, lossless, height, width}, {});
}

Tensor augment(const Tensor& image, const Optional& maps, const Optional& margins, int64_t filter,
               int64_t padding, bool lossless, const Optional& color, std::vector<int64_t> channels,
               const Optional& sigma, const Optional& seed, const Optional& box, bool offsets) {
  return apply("affine_augment", image,
               {maps, margins, filter, padding, lossless, image.size(2), image.size(3)},
               {color, std::move(channels), sigma, seed, box, offsets});
}

Tensor augment_transpose(const Tensor& grad, const Optional& maps, const Optional& margins,
                         int64_t filter, int64_t padding, bool lossless, const Optional& color,
                         std::vector<int64_t> channels, const Optional& box) {
  return apply_transposed("affine_augment_transpose", grad,
                          {maps, margins, filter, padding, lossless, grad.size(2), grad.size(3)},
                          {color, std::move(channels), {}, {}, box, false});
}

GANKERNELS_IMPLEMENTATIONS(m) {
  m.impl("affine_resample", TORCH_BOX(&resample));
  m.impl("affine_resample_transpose", TORCH_BOX(&resample_transpose));
  m.impl("affine_augment", TORCH_BOX(&augment));
  m.impl("affine_augment_transpose", TORCH_BOX(&augment_transpose));
}

}  // namespace
}  // namespace gankernels::bindings
