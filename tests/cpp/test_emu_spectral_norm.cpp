// The CUDA kernels on the emulator, without torch: every launcher over layouts, dtypes, alignments and
// orders of threads, against plain loops in double; and the faults that the emulator must find. Made
// for the sanitizers and for line coverage. Returns non-zero on failure.
//
// --race before | after | barrier: plants one race that only ThreadSanitizer can see.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "common/platform.h"
#include "emu/faults.h"
#include "emu_cases.h"
#include "spectral_norm_cases.h"

namespace {

using namespace cases;

template <class Args, auto launcher>
const char* launch(const Args& args) {
  return with_workspace(args, sn::cuda::workspace(args), launcher);
}

const Launchers kLaunchers = {launch<sn::PowerIteration, sn::cuda::power_iteration>,
                              launch<sn::Normalize, sn::cuda::normalize>,
                              launch<sn::Backward, sn::cuda::backward>,
                              launch<sn::DoubleBackward, sn::cuda::double_backward>};

// A warp holds 256 or 512 bytes of a row: 32 to 256 elements, or 16 or 32 where rows are not aligned. A
// tile of so few elements has 8 KiB; a thread takes 4 rows of it at a time, a block 16 or 32.
const std::vector<Layout> kSmall = {
    {"one element", 1, 1, 1, {}, {}},
    {"one row", 1, 1, 37, {}, {}},
    {"one row of vectors", 1, 1, 48, {}, {}},
    {"one column", 1, 37, 1, {}, {}},
    {"contiguous", 1, 31, 33, {}, {}},
    {"contiguous, tall", 1, 701, 5, {}, {}},
    {"contiguous, vectors", 1, 70, 144, {}, {}},
    {"contiguous, wide", 1, 2, 533, {}, {}},
    {"contiguous, wide vectors", 1, 2, 544, {}, {}},
    {"channels_last", 1, 12, 7 * 6, {7, 6}, {1, 7}},
    {"channels_last, vectors", 1, 5, 16 * 6, {16, 6}, {1, 16}},
    {"channels_last, 5-D", 1, 5, 3 * 2 * 4, {3, 2, 4}, {1, 12, 3}},
    {"transposed", 33, 31, 1, {}, {}},
    {"transposed, wide", 521, 7, 1, {}, {}},
    {"transposed, vectors", 200, 48, 1, {}, {}},
    {"transposed, permuted", 6 * 12, 10, 1, {6, 12}, {12, 1}},
    {"slabs", 6, 37, 12, {}, {}},
    {"slabs of one row", 6, 1, 16, {}, {}},
    {"slabs of vectors", 3, 48, 16, {}, {}},
    {"slabs of four", 20, 11, 4, {}, {}},
    {"slabs, odd", 5, 16, 9, {}, {}},
    {"slabs, permuted", 5 * 6, 7, 4, {6, 5, 4}, {4, 24, 1}},
    {"slabs of more than a warp holds", 2, 5, 301, {}, {}},
    {"slabs of more vectors than a warp holds", 2, 4, 528, {}, {}},
};

// A few tiles of every kind of walk.
const std::vector<Layout> kTiny = {
    {"contiguous", 1, 50, 66, {}, {}},  {"contiguous, wide", 1, 2, 544, {}, {}},
    {"transposed", 200, 10, 1, {}, {}}, {"slabs", 2, 30, 16, {}, {}},
    {"slabs, odd", 2, 150, 9, {}, {}},  {"slabs of more than a warp holds", 2, 3, 301, {}, {}},
};

// Several spans in a stripe, several stages in a part, many parts; 12 MiB have larger tiles.
const std::vector<Layout> kLarge = {
    {"large, few rows, odd", 1, 2, 33001, {}, {}},
    {"large, many rows", 1, 70001, 3, {}, {}},
    {"large, transposed", 70001, 2, 1, {}, {}},
    {"large, many parts", 1, 5000, 12, {}, {}},
    {"one column", 1, 37, 1, {}, {}},
};
const std::vector<Layout> kLarger = {
    {"larger", 1, 1200, 1312, {}, {}},
    {"large, one row", 1, 1, 66048, {}, {}},
    {"one element", 1, 1, 1, {}, {}},
};

// One run against the plain loops.
Cases test_launchers(const std::vector<Layout>& layouts, const Settings& s, Order order,
                     const std::string& where) {
  emu::set_order(order, 1);
  Cases found = run(kLaunchers, layouts, s);
  check_all(found, layouts, s, where);
  return found;
}

void test_settings() {
  int turn = 0;
  for (const DType dtype : kDTypes)
    for (const bool shifted : {false, true})
      for (const bool u_first : {true, false}) {
        ++turn;
        const int n = u_first == shifted ? 3 : 1;
        Settings s = {dtype, n, u_first, turn % 3 == 0 ? 12.0 : 0.0, 1};
        s.shifted = shifted;
        s.known = turn / 2 % 2;
        s.seeded = turn / 4 % 2;
        s.guarded = turn % 5 < 2;
        s.with_out = turn % 4 != 3;
        s.wide_vectors = turn / 2 % 2 == 0;
        const std::string where =
            std::string(kNames[static_cast<int>(dtype)]) + (shifted ? ", shifted" : "") +
            (u_first ? ", u first, n = " : ", v first, n = ") + std::to_string(n);
        if (kTsan && shifted != (turn / 4 % 2 == 0)) continue;
        const Cases found = test_launchers(kTsan ? kTiny : kSmall, s, kOrders[turn % 4], where);
        if (kTsan || n == 3) continue;
        emu::set_order(kOrders[(turn + 2) % 4], 2);
        same(found, run(kLaunchers, kSmall, s), where, "the order of threads");
      }
}

void test_sizes() {
  Settings s = {DType::kFloat32, 1, true, 0, 1};
  s.shifted = false;
  test_launchers(kLarge, s, Order::kDescending, "large");
  s.dtype = DType::kFloat64;
  s.u_first = false;
  test_launchers(kLarger, s, Order::kAscending, "larger");
}

// Tables of 1, 8 and 64 layers: full ones, with one more, and more layers than one launch has.
void test_many_layers() {
  for (const int count : {1, 2, 8, 9, 64, 65, 130}) {
    std::vector<Layout> many;
    for (int i = 0; i < count; ++i) many.push_back(kSmall[i * 7 % 5]);
    for (const bool known : {false, true}) {
      Settings s = {DType::kFloat32, 1, known, 0, 1};
      s.known = known;
      s.guarded = known;
      test_launchers(many, s, known ? Order::kRandom : Order::kAscending,
                     std::to_string(count) + " layers");
    }
  }
}

// Every dtype in tables of 1 and 8 layers; the layouts of test_settings take one of 64. With vectors and
// without, alone and side by side.
void test_small_tables() {
  const Layout odd = {"odd", 1, 5, 7, {}, {}}, vectors = {"vectors", 1, 9, 48, {}, {}},
               slabs = {"slabs", 3, 5, 16, {}, {}};
  int turn = 0;
  for (const DType dtype : kDTypes)
    for (const std::vector<Layout>& layouts :
         {std::vector{odd}, std::vector{vectors}, std::vector{odd, vectors, slabs}}) {
      Settings s = {dtype, 1, ++turn % 2 == 0, 0, 1};
      s.shifted = false;
      test_launchers(layouts, s, kOrders[turn % 4],
                     std::string(kNames[static_cast<int>(dtype)]) + ", a table of " +
                         std::to_string(layouts.size()));
    }
}

void test_refused() {
  const Matrix w{nullptr, 1, int64_t{1} << 31, 1, 0, {}, {}};
  const sn::PowerIterationLayer iteration{w, {}, {}, {}, {}, {}, {}};
  const sn::BackwardLayer backward{w, {}, {}, {}, {}, {}, {}};
  const char* error = sn::cuda::power_iteration(
      {DType::kFloat32, false, 1, 1e-12, true, 0, 1, 1, &iteration, nullptr, nullptr}, nullptr,
      nullptr);
  CHECK(error && std::strstr(error, "2^31"), "%s", error ? error : "nothing");
  error = sn::cuda::backward({DType::kFloat32, 0, 1, 1, &backward}, nullptr, nullptr);
  CHECK(error && std::strstr(error, "2^31"), "%s", error ? error : "nothing");
}

// The engine throws before a planted access happens, so that no sanitizer sees it.
void test_faults() {
  for (const std::string& name : emu::fault_names())
    for (const Order order : kOrders) {
      emu::set_order(order, 3);
      CHECK(emu::run_fault(name, true), "%s: not found", name.c_str());
      const char* found = emu::run_fault(name, false);
      CHECK(found == nullptr, "%s: %s", name.c_str(), found);
    }
}

// --- for ThreadSanitizer ---------------------------------------------------------------------------

// Which of what orders a ticket is missing.
enum class Missing { kNothing, kBefore, kAfter, kBarrier };

// out = the sum of what every block stored, by the last of them. Through plain pointers, of which the
// engine knows nothing.
struct Ticket {
  float *partial, *out;
  int* ticket;
  int blocks;
  Missing missing;
};

void add_up(const Ticket& d) {
  using namespace gankernels;
  SHARED(int, last, 1);
  const int t = thread_id();
  if (t == 1) d.partial[block_id()] = 1;
  if (d.missing != Missing::kBarrier) sync_threads();
  if (t == 0) {
    if (d.missing != Missing::kBefore) fence();
    last[0] = atomic_add(d.ticket, 1) == d.blocks - 1;
    if (d.missing != Missing::kAfter) fence();
  }
  sync_threads();
  if (!last[0] || t != 2) return;
  for (int i = 0; i < d.blocks; ++i) *d.out += d.partial[i];
  *d.ticket = 0;
}

void run_ticket(Missing missing, Order order) {
  constexpr int kBlocks = 5;
  float partial[kBlocks], out = 0;
  int ticket = 0;
  emu::set_order(order, 4);
  gankernels::Buffers buffers;
  buffers.out("ticket", &ticket, 1, sizeof(int));
  for (int launch = 1; launch <= 3; ++launch) {
    const Ticket data{partial, &out, &ticket, kBlocks, missing};
    const char* error = emu::run("add_up", kBlocks, 64, [&] { add_up(data); });
    good(error);
    CHECK(out == static_cast<float>(launch * kBlocks), "%g", out);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--race") == 0) {
    const std::string which = argv[2];
    run_ticket(which == "before"  ? Missing::kBefore
               : which == "after" ? Missing::kAfter
                                  : Missing::kBarrier,
               Order::kAscending);
    return 0;
  }
  for (const Order order : kOrders) run_ticket(Missing::kNothing, order);
  test_faults();
  for (const DType dtype : kDTypes)
    if (!kTsan || dtype == DType::kFloat32) {
      check_guard(kLaunchers, dtype);
      for (const int count : kTsan ? std::vector{1} : std::vector{1, 3, 9}) {
        check_recovery(kLaunchers, dtype, count);
        check_sigma_guard(kLaunchers, dtype, count);
      }
    }
  test_settings();
  if (!kTsan) {
    test_small_tables();
    test_many_layers();
    test_sizes();
  }
  test_refused();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
