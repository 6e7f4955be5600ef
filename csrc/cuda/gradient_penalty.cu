// Launches the kernels of gradient penalties, for every 64 gradients: which chunks there are, and where
// their sums go in the workspace.
#include "cuda/gradient_penalty.cuh"

#include <algorithm>
#include <vector>

namespace gankernels::gradient_penalty {
namespace {

using namespace gankernels::gradient_penalty::cuda;  // the kernels

const char* check(const Penalty& p) {
  bool fits = p.batch <= INT32_MAX && p.count <= INT32_MAX;
  for (int64_t k = 0; k < p.count; ++k) fits &= p.grads[k].size <= (int64_t{1} << 40);
  return fits
             ? nullptr
             : "expected gradients of less than 2^31 samples, and samples of at most 2^40 elements";
}

// Bytes of a chunk: 1024 tiles and more fill a GPU; fewer have fewer partial sums. Whole vectors for
// every thread.
int64_t chunk_bytes(const Penalty& p) {
  constexpr int64_t kRound = kThreads * 16;
  int64_t size = 0;
  for (int64_t k = 0; k < p.count; ++k) size += p.grads[k].size;
  const int64_t bytes = size * p.batch * static_cast<int64_t>(item_size(p.dtype));
  return std::clamp<int64_t>(bytes / 1024 / kRound * kRound, kRound, 64 << 10);
}

// The tables of a call, one for every 64 gradients.
template <class T>
class PenaltyPlan {
 public:
  using Acc = Accumulation<T>;
  using Table = PenaltyTable<Acc, kTensors>;

  explicit PenaltyPlan(const Penalty& p) : p_(p) {
    const int64_t chunk = chunk_bytes(p) / static_cast<int64_t>(sizeof(T));
    Numbers<Acc> numbers{};
    numbers.factor = static_cast<Acc>(p.factor());
    numbers.center = static_cast<Acc>(p.center);
    numbers.one_sided = p.one_sided;
    numbers.reduced = p.reduction != Reduction::kNone;
    numbers.rows = static_cast<int>(p.rows());
    numbers.batch = static_cast<int>(p.batch);
    numbers.sample_weight = p.sample_weight;
    numbers.inv_scale = p.inv_scale;
    numbers.per_tensor = p.per_tensor;
    int64_t column = 0, most = 0;
    for (int64_t k = 0; k < p.count; ++k) {
      if (k % kTensors == 0) {
        tables_.push_back({0, numbers, {}});
        tiles_.push_back(0);
      }
      Table& table = tables_.back();
      const Gradient& x = p.grads[k];
      const int64_t chunks = ceil_div(x.size, chunk);
      const bool vectors =
          x.size % kVector<T> == 0 && aligned(x.g) && aligned(x.h) && aligned(x.out);
      table.items[table.count++] = {x.g,
                                    x.h,
                                    x.out,
                                    x.size,
                                    static_cast<int>(p.per_tensor ? k : 0),
                                    static_cast<int>(chunk),
                                    static_cast<int>(chunks),
                                    static_cast<int>(column),
                                    vectors,
                                    static_cast<int>(tiles_.back())};
      tiles_.back() += chunks * p.batch;
      column += chunks;
      most = std::max(most, p.per_tensor ? chunks : column);
    }
    for (Table& table : tables_) {
      table.numbers.columns = static_cast<int>(column);
      table.numbers.lanes = lanes_for(most);
    }
  }

  // Calls f(numbers) for those of every table.
  template <class F>
  void set(F&& f) {
    for (Table& table : tables_) f(table.numbers);
  }

  void place_partial(Arena& arena, Buffers* buffers) {
    const Numbers<Acc>& n = tables_[0].numbers;
    auto* partial = arena.take<Acc>("partial", p_.batch * n.columns, buffers);
    set([&](auto& x) { x.partial = partial; });
  }
  void place_products(Arena& arena, Buffers* buffers) {
    auto* products = arena.take<Acc>("products", p_.rows() * p_.batch, buffers);
    set([&](auto& x) { x.products = products; });
  }

  // Calls f(table, tiles) for every table, as a table of the least capacity: a kernel for every tile of
  // every gradient.
  template <class F>
  const char* launch_tiles(F&& f) const {
    return launch_from(0, f);
  }

  // A kernel of one block for all rows; the last table will do where there is one row for all.
  template <class F>
  const char* launch_rows(F&& f) const {
    return launch_from(p_.per_tensor ? 0 : tables_.size() - 1, f);
  }

  void declare(Buffers& buffers) const {
    for (int64_t k = 0; k < p_.count; ++k) {
      const Gradient& x = p_.grads[k];
      buffers.in("g", x.g, x.size * p_.batch, sizeof(T));
      if (x.h) buffers.in("h", x.h, x.size * p_.batch, sizeof(T));
      if (x.out) buffers.scratch("out", x.out, x.size * p_.batch, sizeof(T));
    }
    if (p_.sample_weight) buffers.in("sample_weight", p_.sample_weight, p_.batch, sizeof(Acc));
    if (p_.inv_scale) buffers.in("inv_scale", p_.inv_scale, 1, sizeof(Acc));
  }

  // The arguments that both orders of the backward pass share.
  template <class Args>
  void declare_backward(const Args& args, Buffers& buffers) {
    buffers.in("norms", args.norms, p_.rows() * p_.batch, sizeof(Acc));
    buffers.in("seed", args.seed, p_.values(), sizeof(Acc));
    if (args.d_sample_weight)
      buffers.scratch("d_sample_weight", args.d_sample_weight, p_.batch, sizeof(Acc));
    set([&](auto& n) {
      n.norms = args.norms, n.seed = args.seed, n.d_sample_weight = args.d_sample_weight;
    });
  }

 private:
  template <class F>
  const char* launch_from(size_t first, F& f) const {
    for (size_t k = first; k < tables_.size(); ++k) {
      const Table& all = tables_[k];
      const char* error = visit_capacity(all.count, [&](auto capacity) {
        PenaltyTable<Acc, capacity> table{all.count, all.numbers, {}};
        std::copy_n(all.items, all.count, table.items);
        return f(table, tiles_[k]);
      });
      if (error) return error;
    }
    return nullptr;
  }

  const Penalty& p_;
  std::vector<Table> tables_;
  std::vector<int64_t> tiles_;
};

template <class T>
const char* run(const Forward& args, void* workspace, void* stream) {
  using Acc = Accumulation<T>;
  const Penalty& p = args.penalty;
  Buffers buffers;
  PenaltyPlan<T> plan(p);
  plan.declare(buffers);
  buffers.scratch("norms", args.norms, p.rows() * p.batch, sizeof(Acc));
  buffers.scratch("values", args.values, p.values(), sizeof(Acc));
  Arena arena(workspace);
  plan.place_partial(arena, &buffers);
  plan.set([&](auto& n) { n.norms_out = args.norms, n.values = args.values; });
  const char* error =
      plan.launch_tiles([&]<int C>(const PenaltyTable<Acc, C>& table, int64_t tiles) {
        return launch<products<T, true, C>>("products", tiles, kThreads, stream, table);
      });
  if (error) return error;
  return plan.launch_rows([&]<int C>(const PenaltyTable<Acc, C>& table, int64_t) {
    return launch<finish<T, C>>("finish", 1, kFinishThreads, stream, table);
  });
}

template <class T>
const char* run(const Backward& args, void* /*workspace*/, void* stream) {
  Buffers buffers;
  PenaltyPlan<T> plan(args.penalty);
  plan.declare(buffers);
  plan.declare_backward(args, buffers);
  return plan.launch_tiles(
      [&]<int C>(const PenaltyTable<Accumulation<T>, C>& table, int64_t tiles) {
        return launch<cuda::backward<T, C>>("backward", tiles, kThreads, stream, table);
      });
}

template <class T>
const char* run(const DoubleBackward& args, void* workspace, void* stream) {
  using Acc = Accumulation<T>;
  const Penalty& p = args.penalty;
  Buffers buffers;
  PenaltyPlan<T> plan(p);
  plan.declare(buffers);
  plan.declare_backward(args, buffers);
  if (args.e) buffers.in("e", args.e, p.batch, sizeof(Acc));
  buffers.scratch("d_seed", args.d_seed, p.values(), sizeof(Acc));
  Arena arena(workspace);
  plan.place_partial(arena, &buffers);
  plan.place_products(arena, &buffers);
  plan.set([&](auto& n) { n.e = args.e, n.d_seed = args.d_seed; });
  const char* error =
      plan.launch_tiles([&]<int C>(const PenaltyTable<Acc, C>& table, int64_t tiles) {
        return launch<products<T, false, C>>("products", tiles, kThreads, stream, table);
      });
  if (error) return error;
  error = plan.launch_rows([&]<int C>(const PenaltyTable<Acc, C>& table, int64_t) {
    return launch<finish_double<T, C>>("finish_double", 1, kFinishThreads, stream, table);
  });
  if (error) return error;
  return plan.launch_tiles([&]<int C>(const PenaltyTable<Acc, C>& table, int64_t tiles) {
    return launch<cuda::double_backward<T, C>>("double_backward", tiles, kThreads, stream, table);
  });
}

int64_t workspace_of(const Penalty& p, bool with_products) {
  return visit_dtype(p.dtype, [&](auto zero) {
    Arena arena(nullptr);
    PenaltyPlan<decltype(zero)> plan(p);
    plan.place_partial(arena, nullptr);
    if (with_products) plan.place_products(arena, nullptr);
    return arena.used();
  });
}

template <class Args>
const char* run_any(const Args& args, void* workspace, void* stream) {
  if (const char* error = check(args.penalty)) return error;
  return visit_dtype(args.penalty.dtype,
                     [&](auto zero) { return run<decltype(zero)>(args, workspace, stream); });
}

}  // namespace

namespace cuda {

int64_t workspace(const Forward& args) {
  return workspace_of(args.penalty, false);
}
int64_t workspace(const Backward&) {
  return 0;
}
int64_t workspace(const DoubleBackward& args) {
  return workspace_of(args.penalty, true);
}

const char* forward(const Forward& args, void* workspace, void* stream) {
  return run_any(args, workspace, stream);
}
const char* backward(const Backward& args, void* workspace, void* stream) {
  return run_any(args, workspace, stream);
}
const char* double_backward(const DoubleBackward& args, void* workspace, void* stream) {
  return run_any(args, workspace, stream);
}

}  // namespace cuda
}  // namespace gankernels::gradient_penalty
