// Launches the kernels of weight normalization, for every 64 weights: which rows are cut into chunks, and
// where their sums go in the workspace.
#include "cuda/weight_norm.cuh"

#include <algorithm>
#include <vector>

namespace gankernels::weight_norm {
namespace {

using namespace gankernels::weight_norm::cuda;  // the kernels

// Bytes of a row that a block takes whole, as it reads them twice: out of the caches the second time, where
// they hold those of all resident blocks.
constexpr int64_t kRowBytes = 64 << 10;

template <class T>
const char* check(const Weights& args) {
  bool fits = args.count <= INT32_MAX;
  for (int64_t k = 0; k < args.count; ++k) {
    const Weight& w = args.weights[k];
    fits &= w.rows <= INT32_MAX && w.size <= (int64_t{1} << 40) &&
            w.rows * ceil_div(w.size, kRowBytes / static_cast<int64_t>(sizeof(T))) <= INT32_MAX;
  }
  return fits ? nullptr
              : "expected weights of less than 2^31 rows, and rows of at most 2^40 elements";
}

// The weights [begin, end) of a launch.
template <class T, Pass kPass>
class RowPlan {
 public:
  RowPlan(const Weights& args, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Weight& w = args.weights[k];
      const int64_t most = kRowBytes / static_cast<int64_t>(sizeof(T));
      const int64_t chunks = ceil_div(w.size, most);
      // Chunks of one size, in whole vectors.
      const int64_t chunk =
          std::min(most, ceil_div(ceil_div(w.size, chunks), kVector<T>) * kVector<T>);
      bool vectors = w.size % kVector<T> == 0;
      for (const void* p :
           {w.v, w.x, w.h, static_cast<const void*>(w.out), static_cast<const void*>(w.d_v)})
        vectors &= aligned(p);
      items_.push_back({w.v, w.g, w.x, w.h, w.e, w.norms, w.out, w.d_g, w.d_v, nullptr, w.size,
                        static_cast<int>(chunk), static_cast<int>(ceil_div(w.size, chunk)), vectors,
                        0});
      rows_.push_back(w.rows);
    }
  }

  void place(Arena& arena, Buffers* buffers) {
    using Acc = Accumulation<T>;
    for (size_t k = 0; k < items_.size(); ++k)
      if (items_[k].chunks > 1)
        items_[k].partial =
            arena.take<Acc>("partial", rows_[k] * items_[k].chunks * kSums<kPass>, buffers);
  }

  const char* launch_all(void* stream) const {
    const char* error = launch_for(true, [&]<int C>(const WeightTable<C>& table, int64_t tiles) {
      return launch<row_sums<T, kPass, C>>("row_sums", tiles, kThreads, stream, table);
    });
    if (error) return error;
    return launch_for(false, [&]<int C>(const WeightTable<C>& table, int64_t tiles) {
      return launch<scale_rows<T, kPass, C>>("scale_rows", tiles, kThreads, stream, table);
    });
  }

 private:
  // Calls f(table, tiles) with those of all weights, or of the ones whose rows are in chunks, if any.
  template <class F>
  const char* launch_for(bool chunked, F&& f) const {
    std::vector<Item> chosen;
    int64_t tiles = 0;
    for (size_t k = 0; k < items_.size(); ++k) {
      if (chunked && items_[k].chunks == 1) continue;
      chosen.push_back(items_[k]);
      chosen.back().first_tile = static_cast<int>(tiles);
      tiles += rows_[k] * items_[k].chunks;
    }
    if (chosen.empty()) return nullptr;
    if (tiles > INT32_MAX) return "expected less than 2^31 rows, or chunks of long ones, in all";
    return visit_capacity(static_cast<int64_t>(chosen.size()), [&](auto capacity) {
      WeightTable<capacity> table{static_cast<int>(chosen.size()), {}};
      std::copy(chosen.begin(), chosen.end(), table.items);
      return f(table, tiles);
    });
  }

  std::vector<Item> items_;
  std::vector<int64_t> rows_;
};

template <class T, Pass kPass>
void declare(const Weights& args, Buffers& buffers) {
  using Acc = Accumulation<T>;
  for (int64_t k = 0; k < args.count; ++k) {
    const Weight& w = args.weights[k];
    const int64_t size = w.rows * w.size;
    buffers.in("v", w.v, size, sizeof(T));
    buffers.in("g", w.g, w.rows, sizeof(T));
    if (kPass == Pass::kForward)
      buffers.scratch("norms", w.norms, w.rows, sizeof(Acc));
    else
      buffers.in("norms", w.norms, w.rows, sizeof(Acc));
    if (w.x) buffers.in("x", w.x, size, sizeof(T));
    if (w.h) buffers.in("h", w.h, size, sizeof(T));
    if (w.e) buffers.in("e", w.e, w.rows, sizeof(T));
    buffers.scratch("out", w.out, size, sizeof(T));
    if (w.d_g) buffers.scratch("d_g", w.d_g, w.rows, sizeof(T));
    if (w.d_v) buffers.scratch("d_v", w.d_v, size, sizeof(T));
  }
}

// All launches of a pass, for every 64 weights.
template <class T, Pass kPass>
const char* run(const Weights& args, void* workspace, void* stream) {
  if (const char* error = check<T>(args)) return error;
  Buffers buffers;
  declare<T, kPass>(args, buffers);
  Arena arena(workspace);
  std::vector<RowPlan<T, kPass>> plans;
  for (int64_t begin = 0; begin < args.count; begin += kTensors) {
    plans.emplace_back(args, begin, std::min(begin + kTensors, args.count));
    plans.back().place(arena, &buffers);
  }
  for (const auto& plan : plans)
    if (const char* error = plan.launch_all(stream)) return error;
  return nullptr;
}

template <Pass kPass>
const char* run_any(const Weights& args, void* workspace, void* stream) {
  return visit_dtype(
      args.dtype, [&](auto zero) { return run<decltype(zero), kPass>(args, workspace, stream); });
}

template <Pass kPass>
int64_t workspace_of(const Weights& args) {
  return visit_dtype(args.dtype, [&](auto zero) {
    Arena arena(nullptr);
    for (int64_t begin = 0; begin < args.count; begin += kTensors)
      RowPlan<decltype(zero), kPass>(args, begin, std::min(begin + kTensors, args.count))
          .place(arena, nullptr);
    return arena.used();
  });
}

}  // namespace

namespace cuda {

int64_t workspace(const Forward& args) {
  return workspace_of<Pass::kForward>(args);
}
int64_t workspace(const Backward& args) {
  return workspace_of<Pass::kBackward>(args);
}
int64_t workspace(const DoubleBackward& args) {
  return workspace_of<Pass::kDoubleBackward>(args);
}

const char* forward(const Forward& args, void* workspace, void* stream) {
  return run_any<Pass::kForward>(args, workspace, stream);
}
const char* backward(const Backward& args, void* workspace, void* stream) {
  return run_any<Pass::kBackward>(args, workspace, stream);
}
const char* double_backward(const DoubleBackward& args, void* workspace, void* stream) {
  return run_any<Pass::kDoubleBackward>(args, workspace, stream);
}

}  // namespace cuda
}  // namespace gankernels::weight_norm
