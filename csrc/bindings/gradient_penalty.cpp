// Tensors in, contract out: checks, allocation, and the registration of the implementations.
// The schemas are defined in gankernels/ops/gradient_penalty.py.
#include "gradient_penalty.h"

#include "bindings/tensors.h"

namespace gankernels::bindings {
namespace {

namespace gp = gankernels::gradient_penalty;

struct Options {
  double center;
  bool one_sided;
  double weight;
  bool per_tensor;
  int64_t reduction;  // as torch.nn._reduction counts: none, mean, sum
};

// The contract's penalty and the tensors that it points into.
struct PenaltyArguments {
  PenaltyArguments(const char* op, const Tensors& grads, const std::optional<Tensor>& sample_weight,
                   const std::optional<Tensor>& inv_scale, const Options& options)
      : op(op) {
    STD_TORCH_CHECK(!grads.empty(), op, ": expected at least one gradient");
    STD_TORCH_CHECK(grads[0].dim() >= 1, op, ": expected gradients with a batch dimension");
    STD_TORCH_CHECK(options.reduction >= 0 && options.reduction <= 2, op,
                    ": expected the reduction to be 0 (none), 1 (mean) or 2 (sum)");
    const DType dtype = dtype_of(op, grads[0]);
    acc = accumulation(dtype);
    for (const Tensor& g : grads) {
      const int64_t size = row_size(op, "gradients", g, dtype, grads[0]);
      STD_TORCH_CHECK(g.size(0) == grads[0].size(0), op, ": expected gradients of one batch size");
      list.push_back({g.const_data_ptr(), nullptr, nullptr, size});
    }
    penalty = {dtype,
               static_cast<gp::Reduction>(options.reduction),
               options.one_sided,
               options.per_tensor,
               options.center,
               options.weight,
               threads(),
               grads[0].size(0),
               static_cast<int64_t>(grads.size()),
               list.data(),
               vector("sample_weight", sample_weight, grads[0].size(0), grads[0]),
               vector("inv_scale", inv_scale, 1, grads[0])};
  }

  const void* vector(const char* name, const std::optional<Tensor>& x, int64_t size,
                     const Tensor& like) const {
    return data_of(op, name, x, size, scalar_type(acc), like);
  }

  // The shape of norms, and of values that are not reduced: a row for each gradient, or one.
  std::vector<int64_t> rows() const {
    if (penalty.per_tensor) return {penalty.count, penalty.batch};
    return {penalty.batch};
  }
  std::vector<int64_t> values() const {
    std::vector<int64_t> shape = rows();
    if (penalty.reduction != gp::Reduction::kNone) shape.pop_back();
    return shape;
  }
  Tensor empty(const Tensor& like, const std::vector<int64_t>& shape) const {
    return torch::stable::new_empty(like, shape, scalar_type(acc));
  }

  // Fresh results, one a gradient and laid out as it.
  Tensors results(const Tensors& grads) {
    Tensors out;
    for (size_t i = 0; i < grads.size(); ++i) {
      out.push_back(dense_like(grads[i]));
      list[i].out = out[i].data_ptr();
    }
    return out;
  }

  const char* op;
  DType acc;
  std::vector<gp::Gradient> list;
  gp::Penalty penalty;
};

int64_t norm_count(const gp::Penalty& p) {
  return p.rows() * p.batch;
}

std::tuple<Tensor, Tensor> forward(const Tensors& grads, const std::optional<Tensor>& sample_weight,
                                   const std::optional<Tensor>& inv_scale, double center,
                                   bool one_sided, double weight, bool per_tensor,
                                   int64_t reduction) {
  const PenaltyArguments call("gradient_penalty", grads, sample_weight, inv_scale,
                              {center, one_sided, weight, per_tensor, reduction});
  const Tensor values = call.empty(grads[0], call.values());
  const Tensor norms = call.empty(grads[0], call.rows());
  const gp::Forward args{call.penalty, norms.data_ptr(), values.data_ptr()};
  RUN(call.op, gp, forward, grads[0], args);
  return {values, norms};
}

std::tuple<Tensors, Tensor> backward(const Tensor& seed, const Tensors& grads, const Tensor& norms,
                                     const std::optional<Tensor>& sample_weight,
                                     const std::optional<Tensor>& inv_scale, double center,
                                     bool one_sided, double weight, bool per_tensor,
                                     int64_t reduction) {
  PenaltyArguments call("gradient_penalty_backward", grads, sample_weight, inv_scale,
                        {center, one_sided, weight, per_tensor, reduction});
  const Tensors out = call.results(grads);
  const Tensor d_weight = call.empty(grads[0], {sample_weight ? call.penalty.batch : 0});
  const gp::Backward args{call.penalty,
                          call.vector("norms", norms, norm_count(call.penalty), grads[0]),
                          call.vector("the cotangents", seed, call.penalty.values(), grads[0]),
                          sample_weight ? d_weight.data_ptr() : nullptr};
  RUN(call.op, gp, backward, grads[0], args);
  return {out, d_weight};
}

std::tuple<Tensors, Tensor, Tensor> double_backward(
    const Tensors& h, const std::optional<Tensor>& e, const Tensor& seed, const Tensors& grads,
    const Tensor& norms, const std::optional<Tensor>& sample_weight,
    const std::optional<Tensor>& inv_scale, double center, bool one_sided, double weight,
    bool per_tensor, int64_t reduction) {
  PenaltyArguments call("gradient_penalty_double_backward", grads, sample_weight, inv_scale,
                        {center, one_sided, weight, per_tensor, reduction});
  STD_TORCH_CHECK(h.size() == grads.size(), call.op, ": expected one cotangent a gradient");
  Tensors inputs;
  for (size_t i = 0; i < grads.size(); ++i) {
    inputs.push_back(laid_out_as(call.op, "the cotangents", h[i], grads[i]));
    call.list[i].h = inputs[i].const_data_ptr();
  }
  const Tensors out = call.results(grads);
  const Tensor d_seed = call.empty(grads[0], call.values());
  const Tensor d_weight = call.empty(grads[0], {sample_weight ? call.penalty.batch : 0});
  const gp::DoubleBackward args{
      call.penalty,
      call.vector("norms", norms, norm_count(call.penalty), grads[0]),
      call.vector("the cotangents", seed, call.penalty.values(), grads[0]),
      call.vector("the cotangent of sample_weight's gradient", e, call.penalty.batch, grads[0]),
      d_seed.data_ptr(),
      sample_weight ? d_weight.data_ptr() : nullptr};
  RUN(call.op, gp, double_backward, grads[0], args);
  return {out, d_seed, d_weight};
}

GANKERNELS_IMPLEMENTATIONS(m) {
  m.impl("gradient_penalty", TORCH_BOX(&forward));
  m.impl("gradient_penalty_backward", TORCH_BOX(&backward));
  m.impl("gradient_penalty_double_backward", TORCH_BOX(&double_backward));
}

}  // namespace
}  // namespace gankernels::bindings
