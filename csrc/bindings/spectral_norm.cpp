// Tensors in, contract out: checks, allocation, and the registration of the implementations.
// The schemas are defined in gankernels/ops/spectral_norm.py.
#include "spectral_norm.h"

#include <cmath>

#include "bindings/tensors.h"

namespace gankernels::bindings {
namespace {

namespace sn = gankernels::spectral_norm;
using sn::packed_size;

char* offset(void* data, int64_t elements, DType dtype) {
  return static_cast<char*>(data) + elements * static_cast<int64_t>(item_size(dtype));
}

// The elements of a vector of all layers; null without one.
struct PerLayer {
  PerLayer(const char* op, const char* name, const std::optional<Tensor>& x, size_t count,
           DType dtype, const Tensor& like)
      : dtype_(dtype) {
    if (!x) return;
    check_vector(op, name, *x, static_cast<int64_t>(count), dtype, like);
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

double checked_coefficient(const char* op, std::optional<double> max_norm) {
  if (!max_norm) return 0;
  STD_TORCH_CHECK(*max_norm > 0 && std::isfinite(*max_norm), op,
                  ": expected max_norm to be a positive, finite number, got ", *max_norm);
  return *max_norm;
}

struct IterationOptions {
  int64_t n;
  double eps;
  bool u_first;
  const std::optional<Tensor>& skipped;
  std::optional<double> max_norm;
};

// Returns the packed result; fills `outputs`, one a weight, and `sigma`, where they are given.
Tensor iterate(const char* op, const Tensors& weights, const Tensors& u, const Tensors& v,
               const IterationOptions& options, Tensors* outputs, void* sigma) {
  const DType dtype = check_lists(op, weights, u, v), acc = accumulation(dtype);
  const double max_norm = checked_coefficient(op, options.max_norm);
  const auto count = static_cast<int64_t>(weights.size());
  STD_TORCH_CHECK(options.n >= 1, op, ": expected n to be at least 1, got ", options.n);
  STD_TORCH_CHECK(options.eps >= 0 && std::isfinite(options.eps), op,
                  ": expected a finite eps of at least 0");
  // Mixed precision casts parameters, and leaves buffers in float32.
  const bool wide = acc != dtype && u[0].scalar_type() == scalar_type(acc);
  const DType of_vectors = wide ? acc : dtype;
  std::vector<sn::PowerIterationLayer> layers(weights.size());
  int64_t total = packed_size(count);
  for (size_t i = 0; i < weights.size(); ++i) {
    const Matrix w = matrix_of(op, weights[i], dtype, weights[0]);
    check_vector(op, "u", u[i], w.rows, of_vectors, weights[0]);
    check_vector(op, "v", v[i], w.cols(), of_vectors, weights[0]);
    layers[i].w = w;
    layers[i].u = u[i].data_ptr();
    layers[i].v = v[i].data_ptr();
    total += packed_size(w.rows) + packed_size(w.cols());
  }
  check_distinct(op, u, v);
  int64_t* counters = nullptr;
  if (const auto& skipped = options.skipped) {
    STD_TORCH_CHECK(same_device(*skipped, weights[0]) &&
                        skipped->scalar_type() == ScalarType::Long && skipped->dim() == 1 &&
                        skipped->is_contiguous() && skipped->size(0) == count,
                    op, ": expected skipped to be contiguous int64, one element a weight");
    counters = static_cast<int64_t*>(skipped->data_ptr());
  }

  const Tensor packed = new_vector(weights[0], total, acc);
  void* data = packed.data_ptr();
  int64_t next = packed_size(count);
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].u_out = offset(data, next, acc);
    next += packed_size(layers[i].w.rows);
    layers[i].v_out = offset(data, next, acc);
    next += packed_size(layers[i].w.cols());
    layers[i].skipped = counters ? counters + i : nullptr;
    if (!outputs) continue;
    outputs->push_back(dense_like(weights[i]));
    layers[i].out = outputs->back().data_ptr();
  }
  const sn::PowerIteration args{dtype,           wide,     options.n, options.eps,
                                options.u_first, max_norm, threads(), count,
                                layers.data(),   data,     sigma};
  RUN(op, sn, power_iteration, weights[0], args);
  return packed;
}

Tensor power_iteration(const Tensors& weights, const Tensors& u, const Tensors& v, int64_t n,
                       double eps, bool u_first, const std::optional<Tensor>& skipped) {
  return iterate("power_iteration_", weights, u, v, {n, eps, u_first, skipped, std::nullopt},
                 nullptr, nullptr);
}

// Also returns a sigma of its own, which autograd can hand out without a view of the packed result.
std::tuple<Tensor, Tensor, Tensors> iterate_and_normalize(const Tensors& weights, const Tensors& u,
                                                          const Tensors& v, int64_t n, double eps,
                                                          bool u_first,
                                                          const std::optional<Tensor>& skipped,
                                                          std::optional<double> max_norm) {
  const char* op = "spectral_norm_";
  const DType acc = accumulation(check_lists(op, weights, u, v));
  const Tensor sigma = new_vector(weights[0], static_cast<int64_t>(weights.size()), acc);
  Tensors outputs;
  const Tensor packed =
      iterate(op, weights, u, v, {n, eps, u_first, skipped, max_norm}, &outputs, sigma.data_ptr());
  return {packed, sigma, outputs};
}

// The weights and vectors of a call whose sigma is fixed.
template <class Layer>
std::vector<Layer> constant_layers(const char* op, const Tensors& weights, const Tensors& u,
                                   const Tensors& v, DType dtype) {
  std::vector<Layer> layers(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    layers[i].w = matrix_of(op, weights[i], dtype, weights[0]);
    check_vector(op, "u", u[i], layers[i].w.rows, accumulation(dtype), weights[0]);
    check_vector(op, "v", v[i], layers[i].w.cols(), accumulation(dtype), weights[0]);
    layers[i].u = u[i].data_ptr();
    layers[i].v = v[i].data_ptr();
  }
  return layers;
}

std::tuple<Tensors, Tensor> normalize(const Tensors& weights, const Tensors& u, const Tensors& v,
                                      const std::optional<Tensor>& sigma,
                                      std::optional<double> max_norm, bool /*retain*/, bool guard) {
  const char* op = "spectral_normalize";
  const DType dtype = check_lists(op, weights, u, v), acc = accumulation(dtype);
  const double c = checked_coefficient(op, max_norm);
  auto layers = constant_layers<sn::NormalizeLayer>(op, weights, u, v, dtype);
  const PerLayer known(op, "sigma", sigma, layers.size(), acc, weights[0]);
  const Tensor sigma_out = new_vector(weights[0], static_cast<int64_t>(layers.size()), acc);
  const PerLayer computed(op, "sigma", sigma_out, layers.size(), acc, weights[0]);
  Tensors outputs;
  for (size_t i = 0; i < layers.size(); ++i) {
    outputs.push_back(dense_like(weights[i]));
    layers[i].sigma = known.at(i);
    layers[i].sigma_out = computed.at(i);
    layers[i].out = outputs[i].data_ptr();
  }
  const sn::Normalize args{dtype,         c,    threads(), static_cast<int64_t>(layers.size()),
                           layers.data(), guard};
  RUN(op, sn, normalize, weights[0], args);
  return {outputs, sigma_out};
}

// `layers` have their weights, vectors and sigmas.
Tensors run_backward(const char* op, const Tensors& grads, const Tensors& weights,
                     std::vector<sn::BackwardLayer>& layers,
                     const std::optional<Tensor>& grad_sigma, std::optional<double> max_norm) {
  const DType dtype = dtype_of(op, weights[0]);
  STD_TORCH_CHECK(grads.size() == weights.size(), op, ": expected one gradient a weight");
  const double c = checked_coefficient(op, max_norm);
  const PerLayer seed(op, "grad_sigma", grad_sigma, layers.size(), accumulation(dtype), weights[0]);
  Tensors outputs, inputs;
  for (size_t i = 0; i < layers.size(); ++i) {
    inputs.push_back(laid_out_as(op, "the gradients", grads[i], weights[i]));
    outputs.push_back(dense_like(weights[i]));
    layers[i].g = inputs[i].data_ptr();
    layers[i].grad_sigma = seed.at(i);
    layers[i].out = outputs[i].data_ptr();
  }
  const sn::Backward args{dtype, c, threads(), static_cast<int64_t>(layers.size()), layers.data()};
  RUN(op, sn, backward, weights[0], args);
  return outputs;
}

Tensors backward(const Tensors& grads, const Tensors& weights, const Tensors& u, const Tensors& v,
                 const Tensor& sigma, const std::optional<Tensor>& grad_sigma,
                 std::optional<double> max_norm) {
  const char* op = "spectral_normalize_backward";
  const DType dtype = check_lists(op, weights, u, v);
  auto layers = constant_layers<sn::BackwardLayer>(op, weights, u, v, dtype);
  const PerLayer known(op, "sigma", sigma, layers.size(), accumulation(dtype), weights[0]);
  for (size_t i = 0; i < layers.size(); ++i) layers[i].sigma = known.at(i);
  return run_backward(op, grads, weights, layers, grad_sigma, max_norm);
}

// The same with the packed result of the iteration, which is read where it is.
Tensors packed_backward(const Tensors& grads, const Tensors& weights, const Tensor& packed,
                        const std::optional<Tensor>& grad_sigma, std::optional<double> max_norm) {
  const char* op = "spectral_norm_backward";
  STD_TORCH_CHECK(!weights.empty(), op, ": expected at least one weight");
  const DType dtype = dtype_of(op, weights[0]), acc = accumulation(dtype);
  const auto count = static_cast<int64_t>(weights.size());
  std::vector<sn::BackwardLayer> layers(weights.size());
  int64_t total = packed_size(count);
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].w = matrix_of(op, weights[i], dtype, weights[0]);
    total += packed_size(layers[i].w.rows) + packed_size(layers[i].w.cols());
  }
  check_vector(op, "what the iteration returned", packed, total, acc, weights[0]);
  void* data = packed.data_ptr();
  int64_t next = packed_size(count);
  for (int64_t i = 0; i < count; ++i) {
    layers[i].sigma = offset(data, i, acc);
    layers[i].u = offset(data, next, acc);
    next += packed_size(layers[i].w.rows);
    layers[i].v = offset(data, next, acc);
    next += packed_size(layers[i].w.cols());
  }
  return run_backward(op, grads, weights, layers, grad_sigma, max_norm);
}

// `grad_sigma` is in the schema for autograd: the result is linear in it and does not depend on it.
std::tuple<Tensors, Tensors, Tensor> double_backward(const Tensors& h, const Tensors& grads,
                                                     const Tensors& weights, const Tensors& u,
                                                     const Tensors& v, const Tensor& sigma,
                                                     const std::optional<Tensor>& /*grad_sigma*/,
                                                     std::optional<double> max_norm) {
  const char* op = "spectral_normalize_double_backward";
  const DType dtype = check_lists(op, weights, u, v), acc = accumulation(dtype);
  STD_TORCH_CHECK(grads.size() == weights.size() && h.size() == weights.size(), op,
                  ": expected one gradient and one cotangent a weight");
  const double c = checked_coefficient(op, max_norm);
  auto layers = constant_layers<sn::DoubleBackwardLayer>(op, weights, u, v, dtype);
  const PerLayer known(op, "sigma", sigma, layers.size(), acc, weights[0]);
  const Tensor d_seed = new_vector(weights[0], static_cast<int64_t>(layers.size()), acc);
  const PerLayer seed(op, "grad_sigma", d_seed, layers.size(), acc, weights[0]);
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
  const sn::DoubleBackward args{dtype, c, threads(), static_cast<int64_t>(layers.size()),
                                layers.data()};
  RUN(op, sn, double_backward, weights[0], args);
  return {d_grads, d_weights, d_seed};
}

GANKERNELS_IMPLEMENTATIONS(m) {
  m.impl("power_iteration_", TORCH_BOX(&power_iteration));
  m.impl("spectral_norm_", TORCH_BOX(&iterate_and_normalize));
  m.impl("spectral_normalize", TORCH_BOX(&normalize));
  m.impl("spectral_norm_backward", TORCH_BOX(&packed_backward));
  m.impl("spectral_normalize_backward", TORCH_BOX(&backward));
  m.impl("spectral_normalize_double_backward", TORCH_BOX(&double_backward));
}

}  // namespace
}  // namespace gankernels::bindings
