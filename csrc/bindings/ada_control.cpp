// Tensors in, contract out: checks and the registration of the implementations.
// The schema is defined in gankernels/ops/ada_control.py.
#include "ada_control.h"

#include "bindings/tensors.h"

namespace gankernels::bindings {
namespace {

namespace ac = gankernels::ada_control;

constexpr const char* kOp = "ada_control_";

void add_scores(const Tensors& scores, int group, const Tensor& state, ac::Update& args) {
  for (const Tensor& x : scores) {
    STD_TORCH_CHECK(same_device(x, state) && x.is_contiguous(), kOp,
                    ": expected contiguous scores on the state's device");
    STD_TORCH_CHECK(args.count < ac::kScores, kOp, ": expected at most ", ac::kScores,
                    " tensors of scores");
    args.scores[args.count++] = {x.const_data_ptr(), x.numel(), dtype_of(kOp, x),
                                 static_cast<int8_t>(group)};
  }
}

void update(const Tensor& state, const std::optional<Tensor>& p, const Tensors& real,
            const Tensors& fake, const Tensors& validation, const std::optional<Tensor>& sums,
            int64_t images, int64_t metric, double target, int64_t interval, double images_to_one,
            double p_max) {
  STD_TORCH_CHECK(is_here(state), kOp, ": expected a state on ", kPlace);
  STD_TORCH_CHECK(metric >= 0 && metric < 3 && interval > 0 && images >= 0, kOp,
                  ": expected a metric of 0 to 2, a positive interval and a number of images");
  ac::Update args{};
  // What is written: the schema says so.
  args.state = static_cast<ac::State*>(
      const_cast<void*>(data_of(kOp, "state", state, ac::kState, ScalarType::Double, state)));
  args.p =
      static_cast<float*>(const_cast<void*>(data_of(kOp, "p", p, 1, ScalarType::Float, state)));
  args.sums =
      static_cast<const double*>(data_of(kOp, "sums", sums, ac::kSums, ScalarType::Double, state));
  args.adds = !sums;
  args.images = images;
  add_scores(real, 0, state, args);
  add_scores(fake, 1, state, args);
  add_scores(validation, 2, state, args);
  args.control = {static_cast<ac::Metric>(metric), target, interval, images_to_one, p_max};
  RUN(kOp, ac, update, state, args);
}

GANKERNELS_IMPLEMENTATIONS(m) {
  m.impl("ada_control_", TORCH_BOX(&update));
}

}  // namespace
}  // namespace gankernels::bindings
