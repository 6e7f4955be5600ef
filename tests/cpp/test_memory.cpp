// Memory that is missing: how much there is, by made-up descriptions of control groups; and every
// allocation of a call failing once, on whichever thread it is, after which the call must say so.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <new>
#include <string>
#include <vector>

#include "cases.h"
#include "common/matrix.h"
#include "common/parallel.h"
#include "cpu/memory/memory_limit.h"
#include "gradient_penalty.h"
#include "spectral_norm.h"

namespace {

std::atomic<int64_t> allocations_left{-1};  // before the one that fails; below 0 none does

void* allocate(size_t size) {
  if (allocations_left >= 0 && allocations_left.fetch_sub(1) == 0) throw std::bad_alloc();
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(size_t size) {
  return allocate(size);
}
void* operator new[](size_t size) {
  return allocate(size);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, size_t) noexcept {
  std::free(memory);
}

namespace {

using namespace cases;
namespace sn = gankernels::spectral_norm;
namespace gp = gankernels::gradient_penalty;
namespace files = std::filesystem;

// --- how much there is -----------------------------------------------------------------------------

void write(const files::path& file, const std::string& text) {
  files::create_directories(file.parent_path());
  std::ofstream(file) << text << "\n";
}

void test_limits() {
  const files::path root = files::temp_directory_path() / ("gankernels" + std::to_string(getpid()));
  const std::string proc = root / "proc", groups = root / "cgroup";
  const auto limit = [&] { return gankernels::memory_limit(proc, groups); };
  const size_t machine = limit();
  CHECK(machine > 0, "the machine has no memory");

  const auto expect = [&](const char* what, size_t right) {
    CHECK(limit() == right, "%s: %zu, not %zu", what, limit(), right);
  };
  write(proc + "/cgroup", "0::/a/b");
  expect("no files", machine);
  write(groups + "/a/b/memory.max", "max");
  expect("max", machine);
  write(groups + "/a/memory.max", "5000");
  expect("of the group above", 5000);
  write(groups + "/a/b/memory.max", "7000");
  expect("more than the group above", 5000);
  write(groups + "/a/b/memory.max", "3000");
  expect("less than the group above", 3000);
  write(groups + "/memory.max", "2000");
  expect("of the root", 2000);
  write(proc + "/cgroup", "0::/");
  expect("a container's own root", 2000);
  write(proc + "/cgroup", "0::/not/there");
  expect("the host's path", 2000);

  write(proc + "/cgroup", "12:cpu,cpuacct:/a\n3:memory:/c/d\n1:name=systemd:/c");
  expect("version 1 without a file", machine);
  write(groups + "/memory/c/memory.limit_in_bytes", "900");
  expect("version 1, of the group above", 900);
  write(groups + "/memory/c/d/memory.limit_in_bytes", "9223372036854771712");
  expect("version 1, unlimited", 900);
  write(proc + "/cgroup", "3:hugetlb,memory:/c/d\n0::/a/b");
  expect("both versions", 900);
  write(proc + "/cgroup", "");
  expect("an empty file", machine);
  write(proc + "/cgroup", "no colon\n:\n0::/a");
  expect("lines of another form", 2000);
  files::remove_all(root);
}

// --- none is left ----------------------------------------------------------------------------------

void test_tasks_that_throw() {
  for (const int threads : {1, 2, 4}) {
    std::atomic<int> begun{0};
    bool caught = false;
    try {
      gankernels::parallel_tasks(threads, 1000, [&](int64_t i) {
        ++begun;
        if (i % 7 == 3) throw std::bad_alloc();
      });
    } catch (const std::bad_alloc&) {
      caught = true;
    }
    CHECK(caught, "%d threads", threads);
    CHECK(begun >= 4 && begun < 1000, "%d threads: %d tasks begun", threads, begun.load());
  }
}

// Calls `call` until none of its allocations fails. It must say so each time that one does, unless it
// can do without, as the pool can that gives a block back.
template <class Call>
void fail_in_turn(const char* what, Call&& call) {
  int errors = 0;
  for (int64_t k = 0; k < 100000; k += 1 + k / 16) {
    allocations_left = k;
    const char* error = call();
    const bool failed = allocations_left < 0;
    allocations_left = -1;
    errors += error != nullptr;
    if (failed) continue;
    CHECK(!error, "%s: %s, where nothing fails", what, error);
    CHECK(errors > 0, "%s: of %ld allocations none is missed", what, long(k));
    return;
  }
  CHECK(false, "%s: no end", what);
}

void test_operators() {
  // In half precision, which is widened into memory of the threads; enough for several of them.
  const DType dtype = DType::kBFloat16, wide = DType::kFloat32;
  const int64_t rows = 40, cols = 900, count = 2;
  std::mt19937 random(3);
  const auto drawn = [&](DType type, int64_t n) {
    auto x = std::make_unique<Numbers>(type, n);
    x->draw(random);
    return x;
  };
  std::vector<std::unique_ptr<Numbers>> all;
  const auto data = [&](DType type, int64_t n) {
    all.push_back(drawn(type, n));
    return static_cast<void*>(all.back()->data);
  };
  std::vector<sn::PowerIterationLayer> iteration;
  std::vector<sn::NormalizeLayer> normalize;
  std::vector<sn::BackwardLayer> backward;
  std::vector<sn::DoubleBackwardLayer> twice;
  std::vector<int64_t> skipped(count);
  std::vector<gp::Gradient> gradients;
  for (int64_t i = 0; i < count; ++i) {
    const gankernels::Matrix w{data(dtype, rows * cols), 1, rows, cols, 0, {}, {}};
    void* u = data(wide, sn::packed_size(rows));
    void* v = data(wide, sn::packed_size(cols));
    void* sigma = data(wide, 1);
    void* g = data(dtype, rows * cols);
    void* h = data(dtype, rows * cols);
    void* out = data(dtype, rows * cols);
    iteration.push_back({w, data(dtype, rows), data(dtype, cols), u, v, &skipped[i], out});
    normalize.push_back({w, u, v, nullptr, sigma, out});
    backward.push_back({w, g, u, v, sigma, nullptr, out});
    twice.push_back({w, h, g, u, v, sigma, out, data(dtype, rows * cols), data(wide, 1)});
    gradients.push_back({g, h, out, rows * cols / 2});
  }
  void* sigmas = data(wide, sn::packed_size(count));
  const gp::Penalty penalty{dtype, gp::Reduction::kMean, false,   true,   1, 1, 4, 2,
                            count, gradients.data(),     nullptr, nullptr};
  void* norms = data(wide, 2 * count);
  void* values = data(wide, count);
  void* d_seed = data(wide, count);
  for (const int threads : {1, 4}) {
    fail_in_turn("power_iteration", [&] {
      return sn::cpu::power_iteration(
          {dtype, false, 2, 1e-12, true, 0, threads, count, iteration.data(), sigmas, nullptr});
    });
    fail_in_turn("normalize", [&] {
      return sn::cpu::normalize({dtype, 0, threads, count, normalize.data(), true});
    });
    fail_in_turn("backward",
                 [&] { return sn::cpu::backward({dtype, 0, threads, count, backward.data()}); });
    fail_in_turn("double_backward", [&] {
      return sn::cpu::double_backward({dtype, 0, threads, count, twice.data()});
    });
    gp::Penalty p = penalty;
    p.threads = threads;
    fail_in_turn("penalty", [&] { return gp::cpu::forward({p, norms, values}); });
    fail_in_turn("penalty, backward",
                 [&] { return gp::cpu::backward({p, norms, values, nullptr}); });
    fail_in_turn("penalty, double backward", [&] {
      return gp::cpu::double_backward({p, norms, values, nullptr, d_seed, nullptr});
    });
  }
}

}  // namespace

int main() {
  test_limits();
  test_tasks_that_throw();
  test_operators();
  return failures == 0 ? 0 : 1;
}
