// Tensors in, contract out: checks, allocation, and the registration of the implementations.
// The schema is defined in gankernels/ops/ada_parameters.py.
#include "ada_parameters.h"

#include <cmath>
#include <cstring>

#include "bindings/tensors.h"

namespace gankernels::bindings {
namespace {

namespace ap = gankernels::ada_parameters;

constexpr const char* kOp = "ada_parameters";

// The data of a contiguous float64 tensor of `columns` a sample.
template <class Row>
const Row* rows(const char* name, const Tensor& x, int64_t batch, const Tensor& like) {
  constexpr int64_t kColumns = sizeof(Row) / sizeof(double);
  STD_TORCH_CHECK(is_here(x) && same_device(x, like) && x.scalar_type() == ScalarType::Double, kOp,
                  ": expected ", name, " of float64 on ", kPlace);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == batch && x.size(1) == kColumns && x.is_contiguous(),
                  kOp, ": expected contiguous ", name, " of ", kColumns, " columns");
  return static_cast<const Row*>(x.const_data_ptr());
}

// As a struct of doubles.
template <class Struct>
Struct numbers(const char* name, const std::vector<double>& x) {
  STD_TORCH_CHECK(x.size() * sizeof(double) == sizeof(Struct), kOp, ": expected ",
                  sizeof(Struct) / sizeof(double), " ", name);
  for (const double e : x)
    STD_TORCH_CHECK(std::isfinite(e) && e >= 0, kOp, ": expected ", name,
                    " that are finite and not negative");
  Struct out;
  std::memcpy(&out, x.data(), sizeof out);
  return out;
}

void set_p(const Tensor& p, const Tensor& like, ap::Parameters& args) {
  const ScalarType dtype = p.scalar_type();
  STD_TORCH_CHECK(same_device(p, like) && p.is_contiguous() &&
                      (dtype == ScalarType::Float || dtype == ScalarType::Double),
                  kOp, ": expected p of float32 or float64, on the draws' device");
  STD_TORCH_CHECK(p.dim() == 0 || (p.dim() == 1 && p.size(0) == ap::kGroups), kOp,
                  ": expected p to be a scalar, or one number a group");
  args.p = p.const_data_ptr();
  args.p_dtype = dtype_of(kOp, p);
  args.p_count = p.numel();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> compute(
    const std::optional<Tensor>& p, const std::optional<Tensor>& uniforms,
    const std::optional<Tensor>& normals, const std::optional<Tensor>& values,
    const std::vector<double>& multipliers, const std::vector<double>& constants,
    std::optional<int64_t> height, std::optional<int64_t> width, int64_t color_channels,
    bool float64, bool margins) {
  const bool draws = !values;
  STD_TORCH_CHECK(
      draws == uniforms.has_value() && draws == normals.has_value() && (!draws || p.has_value()),
      kOp, ": expected either p, uniforms and normals, or values");
  STD_TORCH_CHECK(
      height.has_value() == width.has_value() && (!height || (*height > 0 && *width > 0)), kOp,
      ": expected a positive height and width, or neither");
  STD_TORCH_CHECK(color_channels == 0 || color_channels == 1 || color_channels == 3, kOp,
                  ": expected 0, 1 or 3 color channels");
  const Tensor& like = draws ? *uniforms : *values;
  STD_TORCH_CHECK(like.dim() == 2, kOp, ": expected a row a sample");

  ap::Parameters args{};
  args.acc = float64 ? DType::kFloat64 : DType::kFloat32;
  args.batch = like.size(0);
  args.multipliers = numbers<ap::Multipliers>("multipliers", multipliers);
  args.constants = numbers<ap::Constants>("constants", constants);
  if (draws) {
    args.uniforms = rows<ap::Uniforms>("uniforms", *uniforms, args.batch, like);
    args.normals = rows<ap::Normals>("normals", *normals, args.batch, like);
    set_p(*p, like, args);
  } else {
    args.input_values = rows<ap::Values>("values", *values, args.batch, like);
  }
  args.height = height.value_or(0);
  args.width = width.value_or(0);
  args.color_channels = color_channels;

  // Results that are not wanted are empty.
  const ScalarType acc = scalar_type(args.acc);
  const auto empty = [&](bool wanted, std::vector<int64_t> shape, ScalarType dtype) {
    if (wanted)
      shape.insert(shape.begin(), args.batch);
    else
      shape = {0};
    return torch::stable::new_empty(like, shape, dtype);
  };
  const auto data = [](const Tensor& x, bool wanted) { return wanted ? x.data_ptr() : nullptr; };
  const ap::Multipliers& m = args.multipliers;
  const bool composed = height.has_value(), geometry = composed && m.geometry(),
             colored = composed && m.color(color_channels), filtered = composed && m.filter(),
             noisy = composed && m.noise > 0, cut = composed && m.cutout > 0,
             padded = geometry && margins;
  const Tensor drawn = empty(draws, {ap::kValues}, ScalarType::Double);
  const Tensor seed = empty(draws, {}, ScalarType::Long);
  const Tensor maps = empty(geometry, {2, 3}, ScalarType::Double);
  const Tensor color = empty(colored, {color_channels, color_channels + 1}, acc);
  const Tensor gains = empty(filtered, {4}, acc);
  const Tensor sigma = empty(noisy, {}, acc);
  const Tensor box = empty(cut, {3}, ScalarType::Double);
  const Tensor of_batch = torch::stable::new_empty(like, {padded ? 4 : 0}, ScalarType::Long);
  args.values = static_cast<ap::Values*>(data(drawn, draws));
  args.seed = static_cast<int64_t*>(data(seed, draws));
  args.maps = static_cast<double*>(data(maps, geometry));
  args.margins = static_cast<int64_t*>(data(of_batch, padded));
  args.color = data(color, colored);
  args.gains = data(gains, filtered);
  args.sigma = data(sigma, noisy);
  args.box = static_cast<double*>(data(box, cut));
  RUN(kOp, ap, compute, like, args);
  return {drawn, seed, maps, color, gains, sigma, box, of_batch};
}

GANKERNELS_IMPLEMENTATIONS(m) {
  m.impl("ada_parameters", TORCH_BOX(&compute));
}

}  // namespace
}  // namespace gankernels::bindings
