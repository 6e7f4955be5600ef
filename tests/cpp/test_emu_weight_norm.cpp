// The CUDA kernels of weight normalization on the emulator, without torch: every launcher over shapes,
// dtypes, alignments and orders of threads, against plain loops in double. Made for the sanitizers and for
// line coverage. Returns non-zero on failure.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "emu_cases.h"
#include "weight_norm_cases.h"

namespace {

using namespace cases;

template <class Args, auto launcher>
const char* launch(const Args& args) {
  return with_workspace(args, wn::cuda::workspace(args), launcher);
}

const Launchers kLaunchers = {launch<wn::Forward, wn::cuda::forward>,
                              launch<wn::Backward, wn::cuda::backward>,
                              launch<wn::DoubleBackward, wn::cuda::double_backward>};

// A chunk has 64 KiB: 8192, 16384 or 32768 elements. A round of a block is 4 KiB of each tensor.
const std::vector<Shapes> kSmall = {
    {{1, 1}},
    {{5, 1}},
    {{3, 37}},
    {{4, 48}},
    {{3, 5}, {2, 64}, {1, 1}, {4, 32}, {3, 16}, {2, 7}, {2, 40}},
    {{2, 1025}, {2, 4104}},
    {{2, 8193}, {1, 16392}, {1, 32776}},
    {{1, 8192}, {1, 32768}},
    {{2, 70008}, {3, 8}, {1, 65536}},
};

// A few tiles of every kind.
const std::vector<Shapes> kTiny = {
    {{3, 5}, {2, 64}, {1, 1}},
    {{1, 33000}, {2, 40}},
};

std::unique_ptr<Case> test_launchers(const Shapes& shapes, const Settings& s, Order order,
                                     const std::string& where) {
  emu::set_order(order, 1);
  auto found = run(kLaunchers, shapes, s);
  check(*found, where);
  return found;
}

// The same bits in every order of the threads.
void test_orders(const Shapes& shapes, const Settings& s, const std::string& where) {
  const auto found = test_launchers(shapes, s, kOrders[0], where);
  for (const Order order : {kOrders[1], kOrders[2], kOrders[3]}) {
    emu::set_order(order, 2);
    same(*found, *run(kLaunchers, shapes, s), where, "the order of threads");
  }
}

void test_settings() {
  int turn = 0;
  for_each_settings([&](const Settings& s, const std::string& where) {
    for (const Shapes& shapes : kTsan ? kTiny : kSmall)
      if (!kTsan && ++turn % 3 == 0)
        test_orders(shapes, s, where);
      else
        test_launchers(shapes, s, kOrders[turn % 4], where);
  });
}

// Tables of 1, 8 and 64 weights: full ones, with one more, and three.
void test_many_weights() {
  for (const DType dtype : kDTypes)
    for (const int count : {1, 2, 8, 9, 64, 65, 130}) {
      Shapes shapes;
      for (int k = 0; k < count; ++k)
        shapes.push_back({1 + k % 3, k % 31 == 5 ? 1100 : 1 + k * 7 % 40});
      // Among those of a table, weights whose rows are in chunks.
      if (count == 9) shapes[1] = shapes[7] = {2, 33000};
      const Settings s = {dtype, count % 2 == 0, count % 2 == 1};
      if (dtype == DType::kFloat32)
        test_orders(shapes, s, std::to_string(count));
      else if (count == 9 || count == 65)
        test_launchers(shapes, s, Order::kRandom, std::to_string(count));
    }
}

// More chunks than a block has threads, which adds them up in turns; tables of every size of such rows.
void test_many_chunks() {
  test_launchers({{1, 257 * 8192 + 8}}, {DType::kFloat64, true, false}, Order::kDescending,
                 "chunks");
  for (const DType dtype : kDTypes)
    for (const int count : {1, 2, 9}) {
      const Shapes shapes(count, {1, 32768 + 8});
      test_launchers(shapes, {dtype, true, false}, Order::kRandom, "long rows");
    }
}

// Norms of numbers whose squares leave the range of their type; of chunks, too.
void test_ranges() {
  for (const double scale : {0x1p-98, 0x1p+98})
    for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16})
      for (const Shapes& shapes : {Shapes{{3, 37}}, {{2, 64}}, {{2, 40000}}})
        test_launchers(shapes, {dtype, true, false, scale}, Order::kRandom, "range");
  for (const double scale : {0x1p-700, 0x1p+700})
    test_launchers({{3, 37}, {1, 20000}}, {DType::kFloat64, true, false, scale}, Order::kRandom,
                   "far");
}

// Rows of zeros, of infinities and of NaN have these for a norm, in every type; rows beside them their own.
void test_special_rows() {
  for (const DType dtype : kDTypes)
    for (const double value : {0.0, HUGE_VAL, std::nan("")})
      for (const Shape& shape : {Shape{3, 37}, Shape{2, 64}, Shape{2, 40000}}) {
        Case c({shape}, {dtype, false, false});
        for (int64_t j = 0; j < shape.size; ++j) c.v[0]->set(j, value);
        c.list[0].out = c.w[0]->data;
        good(kLaunchers.forward({c.weights()}));
        const double norm = (*c.norms[0])[0], beside = (*c.norms[0])[1];
        CHECK(std::isnan(value) ? std::isnan(norm) : norm == value, "a row of %g: %g", value, norm);
        CHECK(std::isfinite(beside) && beside > 0, "beside a row of %g: %g", value, beside);
      }
}

void test_refused() {
  wn::Weight w{};
  w.rows = 1, w.size = (int64_t{1} << 40) + 1;
  const wn::Weights weights{DType::kFloat32, 1, 1, &w};
  const char* error = wn::cuda::forward({weights}, nullptr, nullptr);
  CHECK(error && std::strstr(error, "2^40"), "%s", error ? error : "nothing");
  w.rows = int64_t{1} << 31, w.size = 1;
  error = wn::cuda::backward({weights}, nullptr, nullptr);
  CHECK(error && std::strstr(error, "2^31"), "%s", error ? error : "nothing");
  // In chunks.
  w.rows = int64_t{1} << 20, w.size = int64_t{1} << 30;
  error = wn::cuda::double_backward({weights}, nullptr, nullptr);
  CHECK(error && std::strstr(error, "2^31"), "%s", error ? error : "nothing");
}

}  // namespace

int main() {
  test_settings();
  if (!kTsan) {
    test_many_weights();
    test_many_chunks();
    test_ranges();
    test_special_rows();
  }
  test_refused();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
