// Tensors in, contract out: checks, allocation, and the registration of the implementations.
// The schemas are defined in gankernels/ops/weight_norm.py.
#include "weight_norm.h"

#include "bindings/tensors.h"

namespace gankernels::bindings {
namespace {

namespace wn = gankernels::weight_norm;

// The contract's weights: the first dimension of each is its rows.
struct WeightArguments {
  WeightArguments(const char* op, const Tensors& v, const Tensors& g) : op(op) {
    STD_TORCH_CHECK(!v.empty() && v.size() == g.size(), op,
                    ": expected at least one weight, and one g for each");
    dtype = dtype_of(op, v[0]);
    for (size_t k = 0; k < v.size(); ++k) {
      const int64_t size = row_size(op, "weights", v[k], dtype, v[0]), count = v[k].size(0);
      wn::Weight w{count, size};
      w.v = v[k].const_data_ptr();
      w.g = data_of(op, "g", g[k], count, scalar_type(dtype), v[0]);
      list.push_back(w);
      rows += count;
    }
  }

  // The norms, one weight's rows after the other's.
  void set_norms(const Tensor& norms) {
    data_of(op, "norms", norms, rows, scalar_type(accumulation(dtype)), norms);
    const auto step = static_cast<int64_t>(item_size(accumulation(dtype)));
    char* next = static_cast<char*>(norms.data_ptr());
    for (wn::Weight& w : list) w.norms = next, next += w.rows * step;
  }

  // Fresh results, one a weight.
  Tensors results(const Tensors& like, void* wn::Weight::* place) {
    Tensors out;
    for (size_t k = 0; k < like.size(); ++k) {
      out.push_back(dense_like(like[k]));
      list[k].*place = out[k].data_ptr();
    }
    return out;
  }

  // The cotangents of what has the layout of `like`.
  Tensors cotangents(const Tensors& x, const Tensors& like, const void* wn::Weight::* place) {
    STD_TORCH_CHECK(x.size() == like.size(), op, ": expected one cotangent a weight");
    Tensors inputs;
    for (size_t k = 0; k < x.size(); ++k) {
      inputs.push_back(laid_out_as(op, "the cotangents", x[k], like[k]));
      list[k].*place = inputs[k].const_data_ptr();
    }
    return inputs;
  }

  wn::Weights weights() const {
    return {dtype, threads(), static_cast<int64_t>(list.size()), list.data()};
  }

  const char* op;
  DType dtype;
  int64_t rows = 0;
  std::vector<wn::Weight> list;
};

std::tuple<Tensors, Tensor> forward(const Tensors& v, const Tensors& g) {
  WeightArguments call("weight_norm", v, g);
  const Tensors out = call.results(v, &wn::Weight::out);
  const Tensor norms = new_vector(v[0], call.rows, accumulation(call.dtype));
  call.set_norms(norms);
  const wn::Forward args{call.weights()};
  RUN(call.op, wn, forward, v[0], args);
  return {out, norms};
}

std::tuple<Tensors, Tensors> backward(const Tensors& x, const Tensors& v, const Tensors& g,
                                      const Tensor& norms) {
  WeightArguments call("weight_norm_backward", v, g);
  call.set_norms(norms);
  const Tensors inputs = call.cotangents(x, v, &wn::Weight::x);
  const Tensors d_v = call.results(v, &wn::Weight::out);
  const Tensors d_g = call.results(g, &wn::Weight::d_g);
  const wn::Backward args{call.weights()};
  RUN(call.op, wn, backward, v[0], args);
  return {d_v, d_g};
}

std::tuple<Tensors, Tensors, Tensors> double_backward(const Tensors& h, const Tensors& e,
                                                      const Tensors& x, const Tensors& v,
                                                      const Tensors& g, const Tensor& norms) {
  WeightArguments call("weight_norm_double_backward", v, g);
  call.set_norms(norms);
  const Tensors inputs = call.cotangents(x, v, &wn::Weight::x);
  const Tensors seeds = call.cotangents(h, v, &wn::Weight::h);
  const Tensors seeds_of_g = call.cotangents(e, g, &wn::Weight::e);
  const Tensors d_x = call.results(v, &wn::Weight::out);
  const Tensors d_v = call.results(v, &wn::Weight::d_v);
  const Tensors d_g = call.results(g, &wn::Weight::d_g);
  const wn::DoubleBackward args{call.weights()};
  RUN(call.op, wn, double_backward, v[0], args);
  return {d_x, d_v, d_g};
}

GANKERNELS_IMPLEMENTATIONS(m) {
  m.impl("weight_norm", TORCH_BOX(&forward));
  m.impl("weight_norm_backward", TORCH_BOX(&backward));
  m.impl("weight_norm_double_backward", TORCH_BOX(&double_backward));
}

}  // namespace
}  // namespace gankernels::bindings
