// The CUDA kernels of gradient penalties on the emulator, without torch: every launcher over shapes,
// dtypes, alignments and orders of threads, against plain loops in double. Made for the sanitizers and
// for line coverage. Returns non-zero on failure.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "emu_cases.h"
#include "gradient_penalty_cases.h"

namespace {

using namespace cases;

template <class Args, auto launcher>
const char* launch(const Args& args) {
  return with_workspace(args, gp::cuda::workspace(args), launcher);
}

const Launchers kLaunchers = {launch<gp::Forward, gp::cuda::forward>,
                              launch<gp::Backward, gp::cuda::backward>,
                              launch<gp::DoubleBackward, gp::cuda::double_backward>};

// A chunk has 4 KiB, at the least: 512, 1024 or 2048 elements.
const std::vector<Shape> kSmall = {
    {"one element", 1, {1}},
    {"elements", 5, {1}},
    {"odd", 3, {37}},
    {"vectors", 4, {48}},
    {"a list", 3, {5, 64, 1, 32, 16}},
    {"a chunk and one element", 3, {513, 1025, 2049}},
    {"whole chunks", 2, {2048, 1024}},
    {"chunks of vectors", 3, {16, 2576, 8, 40}},
};

// A few tiles of every kind.
const std::vector<Shape> kTiny = {
    {"a list", 3, {5, 64, 1}},
    {"chunks of vectors", 2, {1032, 40, 48}},
};

// What the block that finishes does in several turns.
const std::vector<Shape> kTurns = {
    {"more samples than a block has threads", 1030, {3}},
    {"more samples than a block has warps",
     34,
     {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1}},
    {"more chunks than a warp has lanes", 2, {36 * 1024 + 8, 3}},
};

std::unique_ptr<Case> test_launchers(const Shape& shape, const Settings& s, Order order,
                                     const std::string& where) {
  emu::set_order(order, 1);
  auto found = run(kLaunchers, shape, s);
  check(*found, where);
  return found;
}

// The same bits in every order of the threads.
void test_orders(const Shape& shape, const Settings& s, const std::string& where) {
  const auto found = test_launchers(shape, s, kOrders[0], where);
  for (const Order order : {kOrders[1], kOrders[2], kOrders[3]}) {
    emu::set_order(order, 2);
    same(*found, *run(kLaunchers, shape, s), where, "the order of threads");
  }
}

void test_settings() {
  int turn = 0;
  for_each_settings([&](const Settings& s, const std::string& where) {
    ++turn;
    for (const Shape& shape : kTsan ? kTiny : kSmall)
      if (!kTsan && turn % 5 == 0)
        test_orders(shape, s, where);
      else
        test_launchers(shape, s, kOrders[turn % 4], where);
  });
}

// Tables of 1, 8 and 64 gradients: full ones, with one more, and three. Other dtypes have one of 64:
// test_settings has their smaller ones.
void test_many_gradients() {
  for (const bool per_tensor : {false, true}) {
    Settings s = {DType::kFloat32,
                  per_tensor ? Reduction::kNone : Reduction::kMean,
                  false,
                  per_tensor,
                  1,
                  true,
                  true,
                  true,
                  per_tensor};
    const auto many = [](int count) {
      Shape shape = {"many gradients", 3, {}};
      for (int k = 0; k < count; ++k) shape.sizes.push_back(k % 31 == 5 ? 1100 : 1 + k * 7 % 40);
      return shape;
    };
    for (const int count : {1, 2, 8, 9, 64, 65, 130})
      test_orders(many(count), s, std::to_string(count));
    for (const DType dtype : {DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
      s.dtype = dtype;
      test_launchers(many(9), s, Order::kRandom, kNames[static_cast<int>(dtype)]);
    }
  }
}

// From 16 MiB on chunks have 16 KiB, four vectors for every thread: the whole of what nvcc unrolls.
void test_sizes() {
  Settings s = {DType::kFloat32, Reduction::kSum, true, false, 1, true, true, true, true};
  for (const Shape& shape : kTurns)
    for (const bool per_tensor : {false, true}) {
      s.per_tensor = per_tensor;
      test_orders(shape, s, "turns");
    }
  test_launchers({"large", 2, {1500, (2 << 20) + 24}}, s, Order::kDescending, "large");
}

void test_refused() {
  const gp::Gradient x{nullptr, nullptr, nullptr, (int64_t{1} << 40) + 1};
  gp::Penalty penalty{};
  penalty.batch = penalty.count = 1;
  penalty.grads = &x;
  const char* error = gp::cuda::forward({penalty, nullptr, nullptr}, nullptr, nullptr);
  CHECK(error && std::strstr(error, "2^40"), "%s", error ? error : "nothing");
  const gp::Gradient small{nullptr, nullptr, nullptr, 1};
  penalty.grads = &small;
  penalty.batch = int64_t{1} << 31;
  error = gp::cuda::backward({penalty, nullptr, nullptr, nullptr}, nullptr, nullptr);
  CHECK(error && std::strstr(error, "2^31"), "%s", error ? error : "nothing");
}

}  // namespace

int main() {
  test_settings();
  if (!kTsan) {
    test_many_gradients();
    test_sizes();
  }
  test_refused();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
