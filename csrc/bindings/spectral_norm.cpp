// Tensors in, contract out: checks, allocation, and the registration of the CPU implementations.
// The schemas are defined in gankernels/ops/spectral_norm.py.
#include "spectral_norm.h"

#include <cmath>
#include <cstring>

#include "bindings/tensors.h"

namespace gankernels::bindings {
namespace {

namespace sn = gankernels::spectral_norm;

// Every part of the packed result starts at a multiple of this many elements.
constexpr int64_t kPack = 16;

int64_t packed_size(int64_t size) {
  return (size + kPack - 1) / kPack * kPack;
}

char* offset(void* data, int64_t elements, DType dtype) {
  return static_cast<char*>(data) + elements * static_cast<int64_t>(item_size(dtype));
}

// The elements of a vector of all layers; null without one.
struct PerLayer {
  PerLayer(const char* op, const char* name, const std::optional<Tensor>& x, size_t count,
           DType dtype)
      : dtype_(dtype) {
    if (!x) return;
    check_vector(op, name, *x, static_cast<int64_t>(count), dtype);
    data_ = x->data_ptr();
  }
  void* at(int64_t i) const { return data_ ? offset(data_, i, dtype_) : nullptr; }

 private:
  DType dtype_;
  void* data_ = nullptr;
};

DType check_lists(const char* op, const Tensors& weights, const Tensors& u, const Tensors& v) {
  STD_TORCH_CHECK(!weights.empty(), op, ": expected at least one weight");
  STD_TORCH_CHECK(u.size() == weights.size() && v.size() == weights.size(), op,
                  ": expected one u and one v a weight");
  return dtype_of(op, weights[0]);
}

void check_status(const char* op, const char* status) {
  STD_TORCH_CHECK(status == nullptr, op, ": ", status);
}

// Vectors that a call overwrites must not share memory.
void check_distinct(const char* op, const Tensors& u, const Tensors& v) {
  std::vector<std::pair<char*, char*>> spans;
  for (const Tensors* list : {&u, &v})
    for (const Tensor& x : *list) {
      auto* begin = static_cast<char*>(x.data_ptr());
      spans.emplace_back(begin, begin + x.numel() * x.element_size());
    }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i)
    STD_TORCH_CHECK(spans[i - 1].second <= spans[i].first, op,
                    ": expected every u and v in memory of its own");
}

int threads() {
  return static_cast<int>(torch::stable::get_num_threads());
}

double checked_coefficient(const char* op, std::optional<double> coefficient) {
  if (!coefficient) return 0;
  STD_TORCH_CHECK(*coefficient > 0 && std::isfinite(*coefficient), op,
                  ": expected a positive, finite coefficient, got ", *coefficient);
  return *coefficient;
}

struct IterationOptions {
  int64_t n;
  double eps;
  bool u_first;
  const std::optional<Tensor>& skipped;
  std::optional<double> coefficient;
};

// Returns the packed result; fills `outputs`, one a weight, where it is given.
Tensor iterate(const char* op, const Tensors& weights, const Tensors& u, const Tensors& v,
               const IterationOptions& options, Tensors* outputs) {
  const DType dtype = check_lists(op, weights, u, v), wide = accumulation(dtype);
  const double coefficient = checked_coefficient(op, options.coefficient);
  const auto count = static_cast<int64_t>(weights.size());
  STD_TORCH_CHECK(options.n >= 1, op, ": expected n to be at least 1, got ", options.n);
  STD_TORCH_CHECK(options.eps >= 0 && std::isfinite(options.eps), op,
                  ": expected a finite eps of at least 0");
  std::vector<sn::PowerIterationLayer> layers(weights.size());
  int64_t total = packed_size(count);
  for (size_t i = 0; i < weights.size(); ++i) {
    const Matrix w = matrix_of(op, weights[i], dtype);
    check_vector(op, "u", u[i], w.rows, dtype);
    check_vector(op, "v", v[i], w.cols(), dtype);
    layers[i].w = w;
    layers[i].u = u[i].data_ptr();
    layers[i].v = v[i].data_ptr();
    total += packed_size(w.rows) + packed_size(w.cols());
  }
  check_distinct(op, u, v);
  int64_t* counters = nullptr;
  if (const auto& skipped = options.skipped) {
    STD_TORCH_CHECK(skipped->is_cpu() && skipped->scalar_type() == ScalarType::Long &&
                        skipped->dim() == 1 && skipped->is_contiguous() &&
                        skipped->size(0) == count,
                    op, ": expected skipped to be contiguous int64, one element a weight");
    counters = static_cast<int64_t*>(skipped->data_ptr());
  }

  const Tensor packed = new_vector(weights[0], total, wide);
  void* data = packed.data_ptr();
  // Between the parts too, every call gives the same bytes.
  const auto fill_up = [&](int64_t begin, int64_t size) {
    std::memset(offset(data, begin + size, wide), 0, (packed_size(size) - size) * item_size(wide));
    return begin + packed_size(size);
  };
  int64_t next = fill_up(0, count);
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].sigma_out = offset(data, static_cast<int64_t>(i), wide);
    layers[i].u_out = offset(data, next, wide);
    next = fill_up(next, layers[i].w.rows);
    layers[i].v_out = offset(data, next, wide);
    next = fill_up(next, layers[i].w.cols());
    layers[i].skipped = counters ? counters + i : nullptr;
    if (!outputs) continue;
    outputs->push_back(dense_like(weights[i]));
    layers[i].out = outputs->back().data_ptr();
  }
  check_status(op, sn::cpu::power_iteration({dtype, options.n, options.eps, options.u_first,
                                             coefficient, threads(), count, layers.data()}));
  return packed;
}

Tensor power_iteration(const Tensors& weights, const Tensors& u, const Tensors& v, int64_t n,
                       double eps, bool u_first, const std::optional<Tensor>& skipped) {
  return iterate("power_iteration_", weights, u, v, {n, eps, u_first, skipped, std::nullopt},
                 nullptr);
}

// Also returns a sigma of its own, which autograd can hand out without a view of the packed result.
std::tuple<Tensor, Tensor, Tensors> iterate_and_normalize(const Tensors& weights, const Tensors& u,
                                                          const Tensors& v, int64_t n, double eps,
                                                          bool u_first,
                                                          const std::optional<Tensor>& skipped,
                                                          std::optional<double> coefficient) {
  Tensors outputs;
  Tensor packed =
      iterate("spectral_norm_", weights, u, v, {n, eps, u_first, skipped, coefficient}, &outputs);
  const DType wide = accumulation(dtype_of("spectral_norm_", weights[0]));
  const Tensor sigma = new_vector(packed, static_cast<int64_t>(weights.size()), wide);
  std::memcpy(sigma.data_ptr(), packed.data_ptr(), weights.size() * item_size(wide));
  return {packed, sigma, outputs};
}

// The weights and vectors of a call whose sigma is fixed.
template <class Layer>
std::vector<Layer> constant_layers(const char* op, const Tensors& weights, const Tensors& u,
                                   const Tensors& v, DType dtype) {
  std::vector<Layer> layers(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    layers[i].w = matrix_of(op, weights[i], dtype);
    check_vector(op, "u", u[i], layers[i].w.rows, accumulation(dtype));
    check_vector(op, "v", v[i], layers[i].w.cols(), accumulation(dtype));
    layers[i].u = u[i].data_ptr();
    layers[i].v = v[i].data_ptr();
  }
  return layers;
}

std::tuple<Tensors, Tensor> normalize(const Tensors& weights, const Tensors& u, const Tensors& v,
                                      const std::optional<Tensor>& sigma,
                                      std::optional<double> coefficient, bool /*retain*/) {
  const char* op = "spectral_normalize";
  const DType dtype = check_lists(op, weights, u, v), wide = accumulation(dtype);
  const double c = checked_coefficient(op, coefficient);
  auto layers = constant_layers<sn::NormalizeLayer>(op, weights, u, v, dtype);
  const PerLayer known(op, "sigma", sigma, layers.size(), wide);
  const Tensor sigma_out = new_vector(weights[0], static_cast<int64_t>(layers.size()), wide);
  const PerLayer found(op, "sigma", sigma_out, layers.size(), wide);
  Tensors outputs;
  for (size_t i = 0; i < layers.size(); ++i) {
    outputs.push_back(dense_like(weights[i]));
    layers[i].sigma = known.at(i);
    layers[i].sigma_out = found.at(i);
    layers[i].out = outputs[i].data_ptr();
  }
  check_status(op, sn::cpu::normalize(
                       {dtype, c, threads(), static_cast<int64_t>(layers.size()), layers.data()}));
  return {outputs, sigma_out};
}

Tensors backward(const Tensors& grads, const Tensors& weights, const Tensors& u, const Tensors& v,
                 const Tensor& sigma, const std::optional<Tensor>& grad_sigma,
                 std::optional<double> coefficient) {
  const char* op = "spectral_normalize_backward";
  const DType dtype = check_lists(op, weights, u, v), wide = accumulation(dtype);
  STD_TORCH_CHECK(grads.size() == weights.size(), op, ": expected one gradient a weight");
  const double c = checked_coefficient(op, coefficient);
  auto layers = constant_layers<sn::BackwardLayer>(op, weights, u, v, dtype);
  const PerLayer known(op, "sigma", sigma, layers.size(), wide);
  const PerLayer seed(op, "grad_sigma", grad_sigma, layers.size(), wide);
  Tensors outputs, inputs;
  for (size_t i = 0; i < layers.size(); ++i) {
    inputs.push_back(laid_out_as(op, "the gradients", grads[i], weights[i]));
    outputs.push_back(dense_like(weights[i]));
    layers[i].g = inputs[i].data_ptr();
    layers[i].sigma = known.at(i);
    layers[i].grad_sigma = seed.at(i);
    layers[i].out = outputs[i].data_ptr();
  }
  check_status(op, sn::cpu::backward(
                       {dtype, c, threads(), static_cast<int64_t>(layers.size()), layers.data()}));
  return outputs;
}

// `grad_sigma` is in the schema for autograd: the result is linear in it and does not depend on it.
std::tuple<Tensors, Tensors, Tensor> double_backward(const Tensors& h, const Tensors& grads,
                                                     const Tensors& weights, const Tensors& u,
                                                     const Tensors& v, const Tensor& sigma,
                                                     const std::optional<Tensor>& /*grad_sigma*/,
                                                     std::optional<double> coefficient) {
  const char* op = "spectral_normalize_double_backward";
  const DType dtype = check_lists(op, weights, u, v), wide = accumulation(dtype);
  STD_TORCH_CHECK(grads.size() == weights.size() && h.size() == weights.size(), op,
                  ": expected one gradient and one cotangent a weight");
  const double c = checked_coefficient(op, coefficient);
  auto layers = constant_layers<sn::DoubleBackwardLayer>(op, weights, u, v, dtype);
  const PerLayer known(op, "sigma", sigma, layers.size(), wide);
  const Tensor d_seed = new_vector(weights[0], static_cast<int64_t>(layers.size()), wide);
  const PerLayer seed(op, "grad_sigma", d_seed, layers.size(), wide);
  Tensors d_grads, d_weights, inputs;
  for (size_t i = 0; i < layers.size(); ++i) {
    inputs.push_back(laid_out_as(op, "the gradients", grads[i], weights[i]));
    layers[i].g = inputs.back().data_ptr();
    inputs.push_back(laid_out_as(op, "the cotangents", h[i], weights[i]));
    layers[i].h = inputs.back().data_ptr();
    d_grads.push_back(dense_like(weights[i]));
    d_weights.push_back(dense_like(weights[i]));
    layers[i].d_g = d_grads[i].data_ptr();
    layers[i].d_w = d_weights[i].data_ptr();
    layers[i].sigma = known.at(i);
    layers[i].d_grad_sigma = seed.at(i);
  }
  check_status(op, sn::cpu::double_backward(
                       {dtype, c, threads(), static_cast<int64_t>(layers.size()), layers.data()}));
  return {d_grads, d_weights, d_seed};
}

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("power_iteration_", TORCH_BOX(&power_iteration));
  m.impl("spectral_norm_", TORCH_BOX(&iterate_and_normalize));
  m.impl("spectral_normalize", TORCH_BOX(&normalize));
  m.impl("spectral_normalize_backward", TORCH_BOX(&backward));
  m.impl("spectral_normalize_double_backward", TORCH_BOX(&double_backward));
}

}  // namespace
}  // namespace gankernels::bindings
