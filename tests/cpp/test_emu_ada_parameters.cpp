// The kernel of augmentation parameters on the emulator and that of the CPU, without torch: batches,
// dtypes, what is wanted and orders of threads, against the standard library and each other. Made for
// the sanitizers and for line coverage. Returns non-zero on failure.
#include "ada_parameters.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "emu_cases.h"

namespace {

namespace ap = gankernels::ada_parameters;
using namespace cases;

constexpr ap::Constants kConstants{0.125, 0.2, 1, 0.2, 0.125, 0.2, 0.5, 1, 1, 1, 0.1, 0.5};
constexpr ap::Multipliers kAll{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, {1, 1, 1, 1}, 1, 1};

// --- the arithmetic ------------------------------------------------------------------------------

constexpr ap::Angle kNone = ap::Angle::quarters(0), kHalf = ap::Angle::quarters(2);
static_assert(kNone.cos == 1 && kNone.sin == 0 && kHalf.cos == -1 && kHalf.sin == 0);
static_assert(kAll.geometry() && kAll.filter() && kAll.color(1) && kAll.color(3));
static_assert(!kAll.color(0) && !ap::Multipliers{}.geometry() && !ap::Multipliers{}.filter());

void test_angles() {
  for (int i = -4000; i <= 4000; ++i) {
    const double x = 0.005 * i;
    const ap::Angle found = ap::Angle::of(x);
    CHECK(std::abs(found.cos - std::cos(x)) < 1e-15, "cos %g", x);
    CHECK(std::abs(found.sin - std::sin(x)) < 1e-15, "sin %g", x);
  }
  const ap::Angle none = ap::Angle::of(0);
  CHECK(none.cos == 1 && none.sin == 0, "the angle 0: %g %g", none.cos, none.sin);
  CHECK(std::isnan(ap::Angle::of(NAN).cos), "NaN");
}

void test_strengths() {
  const double p[ap::kGroups] = {NAN, -1, 0.5, 1, 7, INFINITY};
  const ap::Strengths s = ap::Strengths::of(p);
  CHECK(s.blit == 0 && s.geom == 0 && s.color == 0.5, "%g %g %g", s.blit, s.geom, s.color);
  CHECK(s.filter == 1 && s.noise == 1 && s.cutout == 1, "%g %g", s.noise, s.cutout);
}

// --- the launchers -------------------------------------------------------------------------------

struct Case {
  int64_t batch;
  DType acc, p_dtype;
  int64_t p_count, channels;
  double p;
  bool apart;  // drawn in a call, composed in another
  bool margins = false;
};

// Blocks of their exact size.
struct Results {
  explicit Results(const Case& c)
      : values(DType::kFloat64, c.batch * ap::kValues),
        seed(DType::kFloat64, c.batch),
        maps(DType::kFloat64, c.batch * 6),
        color(c.acc, c.batch * c.channels * (c.channels + 1)),
        gains(c.acc, c.batch * 4),
        sigma(c.acc, c.batch),
        box(DType::kFloat64, c.batch * 3),
        margins(DType::kFloat64, 4) {
    for (int64_t k = 0; k < 4; ++k) margins.set(k, 0);
  }

  bool same(const Results& o) const {
    return values.same(o.values) && seed.same(o.seed) && maps.same(o.maps) && color.same(o.color) &&
           gains.same(o.gains) && sigma.same(o.sigma) && box.same(o.box) && margins.same(o.margins);
  }

  Numbers values, seed, maps, color, gains, sigma, box, margins;
};

struct Inputs {
  explicit Inputs(const Case& c)
      : uniforms(DType::kFloat64, c.batch * ap::kUniforms),
        normals(DType::kFloat64, c.batch * ap::kNormals),
        p(c.p_dtype, c.p_count) {
    std::mt19937 random(1);
    std::uniform_real_distribution<double> uniform;
    for (int64_t i = 0; i < uniforms.n; ++i) uniforms.set(i, uniform(random));
    normals.draw(random);
    for (int64_t i = 0; i < p.n; ++i) p.set(i, c.p / (1 + static_cast<double>(i)));
  }
  Numbers uniforms, normals, p;
};

ap::Parameters drawing(const Case& c, const Inputs& in, Results& out) {
  ap::Parameters args{};
  args.acc = c.acc;
  args.batch = c.batch;
  args.multipliers = kAll;
  args.constants = kConstants;
  args.uniforms = reinterpret_cast<const ap::Uniforms*>(in.uniforms.data);
  args.normals = reinterpret_cast<const ap::Normals*>(in.normals.data);
  args.p = in.p.data;
  args.p_dtype = c.p_dtype;
  args.p_count = c.p_count;
  args.values = reinterpret_cast<ap::Values*>(out.values.data);
  args.seed = reinterpret_cast<int64_t*>(out.seed.data);
  return args;
}

ap::Parameters composing(const Case& c, ap::Parameters args, Results& out) {
  args.height = 24;
  args.width = 40;
  args.color_channels = c.channels;
  args.maps = reinterpret_cast<double*>(out.maps.data);
  args.color = c.channels ? out.color.data : nullptr;
  args.gains = out.gains.data;
  args.sigma = out.sigma.data;
  args.box = reinterpret_cast<double*>(out.box.data);
  if (c.margins) args.margins = reinterpret_cast<int64_t*>(out.margins.data);
  return args;
}

// All in one call, or values first and then what they are composed to.
template <class Launch>
Results run(const Case& c, const Inputs& in, Launch&& launch) {
  Results out(c);
  const ap::Parameters draw = drawing(c, in, out);
  if (!c.apart) {
    good(launch(composing(c, draw, out)));
    return out;
  }
  good(launch(draw));
  ap::Parameters compose{};
  compose.acc = c.acc;
  compose.batch = c.batch;
  compose.input_values = draw.values;
  good(launch(composing(c, compose, out)));
  return out;
}

Results on_cpu(const Case& c, const Inputs& in) {
  return run(c, in, ap::cpu::compute);
}

Results emulated(const Case& c, const Inputs& in) {
  return run(c, in, [](const ap::Parameters& args) {
    return with_workspace(args, ap::cuda::workspace(args), ap::cuda::compute);
  });
}

// In plain numbers: what the map of the sample is made of, and what it is.
void check_sample(const Case& c, const Results& out, int64_t i, const std::string& where) {
  const double* v = reinterpret_cast<const double*>(out.values.data) + i * ap::kValues;
  double map[6] = {1 - 2 * v[0], 0, 0, 0, 1, 0};
  const auto times = [&](double a, double b, double tx, double d, double e, double ty) {
    const double m[6] = {map[0], map[1], map[2], map[3], map[4], map[5]};
    for (int row = 0; row < 6; row += 3) {
      map[row] = m[row] * a + m[row + 1] * d;
      map[row + 1] = m[row] * b + m[row + 1] * e;
      map[row + 2] = m[row] * tx + m[row + 1] * ty + m[row + 2];
    }
  };
  const auto turn = [&](double a) {
    times(std::cos(a), -std::sin(a), 0, std::sin(a), std::cos(a), 0);
  };
  turn(v[1] * ap::kPi / 2);
  times(1, 0, -std::round(v[2] * 40), 0, 1, -std::round(v[3] * 24));
  times(1 / v[4], 0, 0, 0, 1 / v[4], 0);
  turn(v[5]);
  times(1 / v[6], 0, 0, 0, v[6], 0);
  turn(v[7]);
  times(1, 0, -v[8] * 40, 0, 1, -v[9] * 24);
  for (int k = 0; k < 6; ++k)
    CHECK(std::abs(out.maps[i * 6 + k] - map[k]) < 1e-12, "%s: map %d of %ld: %g, not %g",
          where.c_str(), k, long(i), out.maps[i * 6 + k], map[k]);
  double gray = 0;  // what is made of the color (1, 1, 1)
  for (int64_t k = 0; k < c.channels; ++k) gray += out.color[i * c.channels * (c.channels + 1) + k];
  const double expected = v[11] * (1 - 2 * v[12]);
  if (c.channels)
    CHECK(std::abs(gray - expected) < tolerance(c.acc) * (4 + 4 * v[11] * v[14]),
          "%s: gray of %ld: %g, not %g", where.c_str(), long(i), gray, expected);
  double power = 0;
  bool amplified = false;
  for (int k = 0; k < 4; ++k) {
    const double g = out.gains[i * 4 + k];
    power += (k == 0 ? 10 : 1) * g * g / 13;
    amplified |= v[15 + k] != 1;
  }
  CHECK(amplified || power == 1 || std::abs(power - 1) < 1e-15, "%s: power %g", where.c_str(),
        power);
  CHECK(out.sigma[i] == (c.acc == DType::kFloat64 ? v[19] : static_cast<float>(v[19])), "%s: sigma",
        where.c_str());
  CHECK(out.box[3 * i] == v[21] && out.box[3 * i + 1] == v[22] && out.box[3 * i + 2] == v[20],
        "%s: box", where.c_str());
}

// The corners of every sample, padded by the filter, are within the margins, and one touches each.
void check_margins(const Results& out, int64_t batch, const std::string& where) {
  const auto* margins = reinterpret_cast<const int64_t*>(out.margins.data);
  const double half[2] = {39.0 / 2, 23.0 / 2};
  double needed[4] = {};
  for (int64_t i = 0; i < batch; ++i)
    for (int corner = 0; corner < 4; ++corner)
      for (int side = 0; side < 4; ++side) {
        const int row = side / 2;
        const double u = corner % 2 ? half[0] : -half[0], v = corner / 2 ? half[1] : -half[1];
        const double at = out.maps[i * 6 + 3 * row] * u + out.maps[i * 6 + 3 * row + 1] * v +
                          out.maps[i * 6 + 3 * row + 2];
        needed[side] = std::max(needed[side], (side % 2 ? at : -at) + 6 - half[row]);
      }
  for (int side = 0; side < 4; ++side) {
    const double right = std::min(needed[side], 2 * half[side / 2]);
    CHECK(margins[side] >= right - 1e-9 && margins[side] < right + 1 + 1e-9,
          "%s: margin %d is %ld, not %g", where.c_str(), side, long(margins[side]), right);
  }
}

void close(const Numbers& got, const Numbers& expected, const std::string& where) {
  for (int64_t i = 0; i < got.n; ++i) {
    const double bound = tolerance(got.dtype) * (1 + std::abs(expected[i]));
    CHECK(std::abs(got[i] - expected[i]) <= bound, "%s: %g at %ld, not %g", where.c_str(), got[i],
          long(i), expected[i]);
  }
}

void test(const Case& c) {
  const std::string where = "batch " + std::to_string(c.batch) + ", channels " +
                            std::to_string(c.channels) + ", p " + std::to_string(c.p) + " of " +
                            std::to_string(c.p_count);
  const Inputs in(c);
  const Results cpu = on_cpu(c, in);
  emu::set_order(kOrders[0], 1);
  const Results first = emulated(c, in);
  close(first.values, cpu.values, where + ", values");
  CHECK(first.seed.same(cpu.seed), "%s: seeds", where.c_str());
  CHECK(first.margins.same(cpu.margins), "%s: margins", where.c_str());
  if (c.margins) check_margins(first, c.batch, where);
  close(first.maps, cpu.maps, where + ", maps");
  close(first.color, cpu.color, where + ", color");
  close(first.gains, cpu.gains, where + ", gains");
  for (int64_t i = 0; i < c.batch; ++i) {
    check_sample(c, cpu, i, where + " on the CPU");
    check_sample(c, first, i, where + " emulated");
  }
  for (const Order order : {kOrders[1], kOrders[2], kOrders[3]}) {
    emu::set_order(order, 2);
    CHECK(emulated(c, in).same(first), "%s: the order of threads", where.c_str());
  }
}

}  // namespace

int main() {
  test_angles();
  test_strengths();
  for (const int64_t batch :
       kTsan ? std::vector<int64_t>{33} : std::vector<int64_t>{1, 32, 33, 100})
    for (const int64_t channels : {0, 1, 3})
      for (const DType acc : {DType::kFloat32, DType::kFloat64})
        for (const bool apart : {false, true}) {
          test({batch, acc, DType::kFloat32, 1, channels, 0.7, apart});
          test({batch, acc, DType::kFloat64, 6, channels, 1.3, apart});
        }
  test({20, DType::kFloat64, DType::kFloat64, 1, 3, 0, false});
  for (const int64_t batch : kTsan ? std::vector<int64_t>{2} : std::vector<int64_t>{1, 33, 300})
    for (const double p : {0.0, 0.02, 0.9})
      for (const DType acc : {DType::kFloat32, DType::kFloat64})
        test({batch, acc, DType::kFloat32, 1, 3, p, batch == 33, true});
  const ap::Parameters nothing{};
  good(ap::cpu::compute(nothing));
  good(ap::cuda::compute(nothing, nullptr, nullptr));
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
