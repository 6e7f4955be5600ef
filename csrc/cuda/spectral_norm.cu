// Launches the kernels of spectral normalization for every 64 layers: what is read how (walks), where
// it goes in the workspace, and which blocks serve which layer.
#include <algorithm>
#include <initializer_list>
#include <vector>

#include "cuda/spectral_norm_iteration.cuh"
#include "cuda/spectral_norm_normalize.cuh"

namespace gankernels::spectral_norm {
namespace {

using namespace gankernels::spectral_norm::cuda;  // the kernels

// --- memory -----------------------------------------------------------------------------------------

// W as `units` of `width` contiguous elements. `group` consecutive columns belong to one of its rows,
// where it has rows across the units at all.
struct Memory {
  explicit Memory(const Matrix& w)
      : rows_along(w.outer == 1 && w.inner > 1),
        units(rows_along ? w.rows : w.outer),
        width(rows_along ? w.inner : w.rows * w.inner),
        group(rows_along ? 1 : w.inner) {}
  bool rows_along;  // a unit is a row of W: p is u, q is v; else p is v
  int64_t units, width, group;
};

const char* check(const Matrix& w) {
  const Memory memory(w);
  const bool fits = w.rows <= INT32_MAX && w.cols() <= INT32_MAX && memory.units <= INT32_MAX &&
                    memory.width <= INT32_MAX - 2 * kStage;
  return fits ? nullptr : "expected weights of less than 2^31 rows, columns and elements a slab";
}

// The layers of a launch, [begin, end), in ascending order of their sizes, and the bytes of all.
struct Order {
  template <class Layer>
  Order(const Layer* layers, int64_t begin, int64_t end, size_t item) {
    for (int64_t i = begin; i < end; ++i) {
      index.push_back(static_cast<int>(i - begin));
      bytes.push_back(layers[i].w.size() * static_cast<int64_t>(item));
      total += bytes.back();
    }
    std::stable_sort(index.begin(), index.end(), [&](int a, int b) { return bytes[a] < bytes[b]; });
  }
  std::vector<int> index;
  std::vector<int64_t> bytes;
  int64_t total = 0;
};

// Elements of the tiles that weights are cut into from end to end, by layer: whole lines of a cache.
template <class T>
std::vector<int64_t> flat_tiles(const Order& order) {
  constexpr int64_t kLine = 128 / sizeof(T);
  std::vector<int64_t> tiles(order.index.size());
  TileBudget budget(order.total);
  for (const int i : order.index) {
    const int64_t size = order.bytes[i] / static_cast<int64_t>(sizeof(T));
    tiles[i] = ceil_div(ceil_div(size, budget.share(order.bytes[i])), kLine) * kLine;
    budget.take(order.bytes[i], ceil_div(size, tiles[i]));
  }
  return tiles;
}

// How many elements a thread takes at a time: rows that begin anywhere are read one by one.
template <class T>
int vector_for(int64_t width, int64_t group, std::initializer_list<const void*> pointers) {
  bool vectors = width % kVector<T> == 0 && (group == 1 || group % kVector<T> == 0);
  for (const void* p : pointers) vectors &= p == nullptr || aligned(p);
  return vectors ? kVector<T> : 1;
}

// --- power iteration --------------------------------------------------------------------------------

// The workspace of a layer: the two products, and what their sums need.
template <class T>
struct Iteration {
  using Acc = Accumulation<T>;

  // Cuts into tiles, and says how many they are.
  void cut(const PowerIterationLayer& layer, int64_t bytes, TileBudget& for_u, TileBudget& for_v) {
    const Matrix& w = layer.w;
    const Memory m(w);
    const auto vector = [&](int64_t width, int64_t group) {
      return vector_for<T>(width, group, {w.data});
    };
    const auto along = [&](int64_t tiles) {
      return walk_along(m.units, m.width, vector(m.width, 1), tiles);
    };
    const auto across = [&](int64_t tiles) {
      return walk_across(1, m.units, m.width, m.group, vector(m.width, m.group), tiles, kMaxParts);
    };
    // Where a unit holds several columns, W^T u is a product for each unit.
    const auto inside = [&](int64_t tiles) {
      return walk_across(m.units, w.rows, m.group, 1, vector(m.group, 1), tiles, kMaxParts);
    };
    u = m.rows_along ? along(for_u.share(bytes)) : across(for_u.share(bytes));
    v = m.rows_along   ? across(for_v.share(bytes))
        : m.group == 1 ? along(for_v.share(bytes))
                       : inside(for_v.share(bytes));
    for_u.take(bytes, u.tiles());
    for_v.take(bytes, v.tiles());
    fold = m.rows_along ? 1 : static_cast<int>(m.group);
  }

  void place(const Matrix& w, Arena& arena, Buffers* buffers) {
    const auto partial_size = [](const Walk& walk) { return walk.parts * walk.outputs(); };
    partial = arena.take<Acc>("partial", std::max(partial_size(u), partial_size(v)), buffers);
    u_raw = arena.take<Acc>("u_raw", w.rows, buffers);
    v_raw = arena.take<Acc>("v_raw", w.cols(), buffers);
    norms = arena.take<Acc>("norms", std::max(stripes(u), stripes(v)), buffers);
    u_norm = arena.take<NormNumbers<Acc>>("norm", 1, buffers);
    v_norm = arena.take<NormNumbers<Acc>>("norm", 1, buffers);
  }
  static int stripes(const Walk& walk) { return walk.batches * walk.stripes; }
  int tickets_needed() const { return std::max(stripes(u), stripes(v)) + 1; }

  Walk u, v;  // for the products W v and W^T u
  int fold;   // of W v
  Acc *partial = nullptr, *u_raw = nullptr, *v_raw = nullptr, *norms = nullptr;
  NormNumbers<Acc>*u_norm = nullptr, *v_norm = nullptr;
  int* tickets = nullptr;
};

template <class T>
std::vector<Iteration<T>> plan(const PowerIteration& args, int64_t begin, int64_t end, Arena& arena,
                               Buffers* buffers, int** tickets, int64_t* ticket_count) {
  std::vector<Iteration<T>> plans(end - begin);
  const Order order(args.layers, begin, end, sizeof(T));
  TileBudget for_u(order.total), for_v(order.total);
  for (const int i : order.index)
    plans[i].cut(args.layers[begin + i], order.bytes[i], for_u, for_v);
  *ticket_count = 0;
  for (const Iteration<T>& each : plans) *ticket_count += each.tickets_needed();
  *tickets = arena.take<int>("tickets", *ticket_count, buffers);
  int* next = *tickets;
  for (size_t i = 0; i < plans.size(); ++i) {
    plans[i].place(args.layers[begin + i].w, arena, buffers);
    if (next) plans[i].tickets = next, next += plans[i].tickets_needed();
  }
  return plans;
}

// W v (`to_u`) or W^T u for all layers. In the first step x is what the caller has.
template <class T>
const char* launch_product(const PowerIteration& args, int64_t begin,
                           const std::vector<Iteration<T>>& plans, bool to_u, bool first,
                           void* stream) {
  return visit_capacity(static_cast<int64_t>(plans.size()), [&](auto capacity) {
    ProductTable<capacity> table;
    table.count = static_cast<int>(plans.size());
    table.eps = args.eps;
    table.max_norm = args.max_norm;
    int64_t tiles = 0;
    for (size_t i = 0; i < plans.size(); ++i) {
      const PowerIterationLayer& from = args.layers[begin + i];
      const Iteration<T>& plan = plans[i];
      ProductLayer& layer = table.layers[i];
      layer.w = from.w.data;
      layer.walk = to_u ? plan.u : plan.v;
      layer.x = {to_u ? plan.v_raw : plan.u_raw, false, {}};
      layer.x_norm = to_u ? plan.v_norm : plan.u_norm;
      if (first) {
        layer.x = {to_u ? from.v : from.u, !args.wide_vectors,
                   to_u ? column_order(from.w) : ColumnOrder{}};
        layer.x_norm = nullptr;
      }
      layer.fold = to_u ? plan.fold : 1;
      layer.guarded = from.skipped != nullptr;
      layer.partial = plan.partial;
      layer.result = to_u ? plan.u_raw : plan.v_raw;
      layer.norms = plan.norms;
      layer.norm = to_u ? plan.u_norm : plan.v_norm;
      layer.tickets = plan.tickets;
      layer.first_tile = static_cast<int>(tiles);
      tiles += layer.walk.tiles();
    }
    return launch<product<T, capacity>>("product", tiles, kBlock, stream, table);
  });
}

template <class T>
const char* launch_repair(const PowerIteration& args, int64_t begin, int64_t end, void* stream) {
  std::vector<RepairLayer> guarded;
  for (int64_t i = begin; i < end; ++i) {
    const PowerIterationLayer& from = args.layers[i];
    if (from.skipped)
      guarded.push_back(
          {from.u, from.v, static_cast<int>(from.w.rows), static_cast<int>(from.w.cols())});
  }
  if (guarded.empty()) return nullptr;
  return visit_capacity(static_cast<int64_t>(guarded.size()), [&](auto capacity) {
    RepairTable<capacity> table;
    table.count = static_cast<int>(guarded.size());
    std::copy(guarded.begin(), guarded.end(), table.layers);
    const int64_t blocks = int64_t{2} * table.count;
    if (args.wide_vectors)
      return launch<repair<Accumulation<T>, capacity>>("repair", blocks, kBlock, stream, table);
    return launch<repair<T, capacity>>("repair", blocks, kBlock, stream, table);
  });
}

template <class T>
const char* launch_finish(const PowerIteration& args, int64_t begin,
                          const std::vector<Iteration<T>>& plans, void* stream) {
  using Acc = Accumulation<T>;
  const auto count = static_cast<int64_t>(plans.size());
  const Order order(args.layers, begin, begin + count, sizeof(T));
  const std::vector<int64_t> flat = flat_tiles<T>(order);
  return visit_capacity(count, [&](auto capacity) {
    FinishTable<capacity> table;
    table.count = static_cast<int>(count);
    table.u_first = args.u_first, table.wide_vectors = args.wide_vectors;
    int64_t tiles = 0;
    for (int64_t i = 0; i < count; ++i) {
      const PowerIterationLayer& from = args.layers[begin + i];
      const Iteration<T>& plan = plans[i];
      const int64_t index = begin + i;
      const bool is_last = index + 1 == args.count;
      FinishLayer& layer = table.layers[i];
      layer.w = from.w.data;
      layer.out = from.out;
      layer.u = from.u, layer.v = from.v;
      layer.u_raw = plan.u_raw, layer.v_raw = plan.v_raw;
      layer.u_norm = plan.u_norm, layer.v_norm = plan.v_norm;
      layer.u_out = from.u_out, layer.v_out = from.v_out;
      layer.sigma_out = static_cast<Acc*>(args.sigma_out) + index;
      layer.sigma_copy = args.sigma_copy ? static_cast<Acc*>(args.sigma_copy) + index : nullptr;
      layer.sigma_padding = is_last ? static_cast<int>(packed_size(args.count) - args.count) : 0;
      layer.skipped = from.skipped;
      layer.order = column_order(from.w);
      layer.rows = static_cast<int>(from.w.rows), layer.cols = static_cast<int>(from.w.cols());
      layer.first_tile = static_cast<int>(tiles);
      layer.size = from.w.size();
      layer.tile = flat[i];
      layer.vectors = aligned(from.w.data) && aligned(from.out);
      // As many tiles as W has, each with a part of u and v; without an `out`, theirs alone.
      const int64_t entries = packed_size(layer.rows) + packed_size(layer.cols);
      const int64_t wanted =
          from.out ? ceil_div(layer.size, layer.tile) : ceil_div(entries, kStage);
      layer.vector_tile = static_cast<int>(ceil_div(entries, wanted));
      tiles += wanted;
    }
    return launch<finish<T, capacity>>("finish", tiles, kBlock, stream, table);
  });
}

template <class T>
void declare(const PowerIteration& args, int64_t begin, int64_t end, Buffers& buffers) {
  using Acc = Accumulation<T>;
  for (int64_t i = begin; i < end; ++i) {
    const PowerIterationLayer& layer = args.layers[i];
    buffers.in("w", layer.w.data, layer.w.size(), sizeof(T));
    const size_t item = args.wide_vectors ? sizeof(Acc) : sizeof(T);
    buffers.out("u", layer.u, layer.w.rows, item);
    buffers.out("v", layer.v, layer.w.cols(), item);
    buffers.scratch("u_out", layer.u_out, packed_size(layer.w.rows), sizeof(Acc));
    buffers.scratch("v_out", layer.v_out, packed_size(layer.w.cols()), sizeof(Acc));
    if (layer.skipped) buffers.out("skipped", layer.skipped, 1, sizeof(int64_t));
    if (layer.out) buffers.scratch("out", layer.out, layer.w.size(), sizeof(T));
  }
  buffers.scratch("sigma_out", args.sigma_out, packed_size(args.count), sizeof(Acc));
  if (args.sigma_copy) buffers.scratch("sigma_copy", args.sigma_copy, args.count, sizeof(Acc));
}

template <class T>
const char* run_iteration(const PowerIteration& args, int64_t begin, int64_t end, void* workspace,
                          void* stream) {
  Buffers buffers;
  declare<T>(args, begin, end, buffers);
  Arena arena(workspace);
  int* tickets;
  int64_t ticket_count;
  const auto plans = plan<T>(args, begin, end, arena, &buffers, &tickets, &ticket_count);
  if (const char* error = fill_zero(tickets, ticket_count * sizeof(int), stream)) return error;
  if (const char* error = launch_repair<T>(args, begin, end, stream)) return error;
  for (int64_t step = 0; step < args.n; ++step)
    for (const bool to_u : {args.u_first, !args.u_first}) {
      const bool first = step == 0 && to_u == args.u_first;
      if (const char* error = launch_product<T>(args, begin, plans, to_u, first, stream))
        return error;
    }
  return launch_finish<T>(args, begin, plans, stream);
}

// --- with constant u and v --------------------------------------------------------------------------

struct Pointers {
  const void *g = nullptr, *h = nullptr, *sigma = nullptr, *grad_sigma = nullptr;
  void *sigma_out = nullptr, *out = nullptr, *second = nullptr;
};

Pointers pointers(const NormalizeLayer& x) {
  return {.sigma = x.sigma, .sigma_out = x.sigma_out, .out = x.out};
}
Pointers pointers(const BackwardLayer& x) {
  return {.g = x.g, .sigma = x.sigma, .grad_sigma = x.grad_sigma, .out = x.out};
}
Pointers pointers(const DoubleBackwardLayer& x) {
  return {.g = x.g,
          .h = x.h,
          .sigma = x.sigma,
          .sigma_out = x.d_grad_sigma,
          .out = x.d_g,
          .second = x.d_w};
}

// The layers [begin, end) of a table, and of how many tiles they are.
template <class T, class Args, class Table>
int64_t constant_table(const Args& args, int64_t begin, int64_t end, int terms, Arena& arena,
                       Buffers* buffers, Table& table) {
  using Acc = Accumulation<T>;
  table.count = static_cast<int>(end - begin);
  table.max_norm = args.max_norm;
  table.guard = false;
  const Order order(args.layers, begin, end, sizeof(T));
  TileBudget budget(order.total);
  const std::vector<int64_t> flat = flat_tiles<T>(order);
  for (const int i : order.index) {
    const auto& from = args.layers[begin + i];
    const Memory m(from.w);
    const Pointers x = pointers(from);
    ConstantLayer& layer = table.layers[i];
    const int64_t share = budget.share(order.bytes[i]);
    const int vector = vector_for<T>(m.width, m.group, {from.w.data, x.g, x.h, x.out, x.second});
    layer.walk = walk_across(1, m.units, m.width, m.group, vector, share, INT32_MAX);
    layer.tiles = layer.walk.tiles();
    layer.size = from.w.size();
    layer.tile = flat[i];
    budget.take(order.bytes[i], layer.tiles);
  }
  int64_t tiles = 0;
  for (int64_t i = begin; i < end; ++i) {
    const auto& from = args.layers[i];
    const Matrix& w = from.w;
    const Pointers x = pointers(from);
    ConstantLayer& layer = table.layers[i - begin];
    layer.w = w.data, layer.g = x.g, layer.h = x.h;
    layer.sigma = x.sigma, layer.grad_sigma = x.grad_sigma, layer.sigma_out = x.sigma_out;
    layer.out = x.out, layer.second = x.second;
    const Operand u{from.u, false, {}}, v{from.v, false, column_order(w)};
    const bool rows_along = Memory(w).rows_along;
    layer.p = rows_along ? u : v;
    layer.q = rows_along ? v : u;
    layer.sums = terms ? arena.take<Acc>("sums", int64_t{terms} * layer.tiles, buffers) : nullptr;
    layer.first_tile = static_cast<int>(tiles);
    tiles += layer.tiles;
    if (!buffers) continue;
    buffers->in("w", w.data, w.size(), sizeof(T));
    buffers->in("u", from.u, w.rows, sizeof(Acc));
    buffers->in("v", from.v, w.cols(), sizeof(Acc));
    if (x.g) buffers->in("g", x.g, w.size(), sizeof(T));
    if (x.h) buffers->in("h", x.h, w.size(), sizeof(T));
    if (x.sigma) buffers->in("sigma", x.sigma, 1, sizeof(Acc));
    if (x.grad_sigma) buffers->in("grad_sigma", x.grad_sigma, 1, sizeof(Acc));
    if (x.sigma_out) buffers->scratch("sigma_out", x.sigma_out, 1, sizeof(Acc));
    buffers->scratch("out", x.out, w.size(), sizeof(T));
    if (x.second) buffers->scratch("second", x.second, w.size(), sizeof(T));
  }
  return tiles;
}

template <class T>
const char* run_constant(const Normalize& args, int64_t begin, int64_t end, void* workspace,
                         void* stream) {
  return visit_capacity(end - begin, [&](auto capacity) -> const char* {
    Buffers buffers;
    Arena arena(workspace);
    ConstantTable<capacity> table;
    const bool known = args.layers[begin].sigma != nullptr;
    const int64_t tiles =
        constant_table<T>(args, begin, end, known ? 0 : 1, arena, &buffers, table);
    table.guard = args.guard;
    if (!known)
      if (const char* error = launch<add_tiles<T, Sums::kBilinear, capacity>>(
              "add_tiles", tiles, kBlock, stream, table))
        return error;
    int64_t flat = 0;  // scaling goes through memory from end to end, in tiles of its own
    for (int i = 0; i < table.count; ++i) {
      ConstantLayer& layer = table.layers[i];
      layer.first_tile = static_cast<int>(flat);
      layer.walk.vectors = aligned(layer.w) && aligned(layer.out);
      flat += ceil_div(layer.size, layer.tile);
    }
    return launch<cuda::normalize<T, capacity>>("normalize", flat, kBlock, stream, table);
  });
}

template <class T>
const char* run_constant(const Backward& args, int64_t begin, int64_t end, void* workspace,
                         void* stream) {
  return visit_capacity(end - begin, [&](auto capacity) -> const char* {
    Buffers buffers;
    Arena arena(workspace);
    ConstantTable<capacity> table;
    const int64_t tiles =
        constant_table<T>(args, begin, end, kTerms<Sums::kBackward>, arena, &buffers, table);
    if (const char* error = launch<add_tiles<T, Sums::kBackward, capacity>>("add_tiles", tiles,
                                                                            kBlock, stream, table))
      return error;
    return launch<cuda::backward<T, capacity>>("backward", tiles, kBlock, stream, table);
  });
}

template <class T>
const char* run_constant(const DoubleBackward& args, int64_t begin, int64_t end, void* workspace,
                         void* stream) {
  return visit_capacity(end - begin, [&](auto capacity) -> const char* {
    Buffers buffers;
    Arena arena(workspace);
    ConstantTable<capacity> table;
    const int64_t tiles =
        constant_table<T>(args, begin, end, kTerms<Sums::kDoubleBackward>, arena, &buffers, table);
    if (const char* error = launch<add_tiles<T, Sums::kDoubleBackward, capacity>>(
            "add_tiles", tiles, kBlock, stream, table))
      return error;
    return launch<cuda::double_backward<T, capacity>>("double_backward", tiles, kBlock, stream,
                                                      table);
  });
}

// --- every 64 layers --------------------------------------------------------------------------------

// Calls f(begin, end) for every group of layers, until one returns a message.
template <class Args, class F>
const char* for_each_group(const Args& args, F&& f) {
  for (int64_t i = 0; i < args.count; ++i)
    if (const char* error = check(args.layers[i].w)) return error;
  for (int64_t begin = 0; begin < args.count; begin += kTensors)
    if (const char* error = f(begin, std::min<int64_t>(begin + kTensors, args.count))) return error;
  return nullptr;
}

template <class Args>
int64_t constant_workspace(const Args& args, int terms) {
  int64_t most = 0;
  visit_dtype(args.dtype, [&](auto zero) {
    for_each_group(args, [&](int64_t begin, int64_t end) -> const char* {
      Arena arena(nullptr);
      ConstantTable<kTensors> table;
      constant_table<decltype(zero)>(args, begin, end, terms, arena, nullptr, table);
      most = std::max(most, arena.used());
      return nullptr;
    });
  });
  return most;
}

template <class Args>
const char* constant(const Args& args, void* workspace, void* stream) {
  return visit_dtype(args.dtype, [&](auto zero) {
    return for_each_group(args, [&](int64_t begin, int64_t end) {
      return run_constant<decltype(zero)>(args, begin, end, workspace, stream);
    });
  });
}

}  // namespace

namespace cuda {

int64_t workspace(const PowerIteration& args) {
  int64_t most = 0;
  visit_dtype(args.dtype, [&](auto zero) {
    for_each_group(args, [&](int64_t begin, int64_t end) -> const char* {
      Arena arena(nullptr);
      int* tickets;
      int64_t count;
      plan<decltype(zero)>(args, begin, end, arena, nullptr, &tickets, &count);
      most = std::max(most, arena.used());
      return nullptr;
    });
  });
  return most;
}
int64_t workspace(const Normalize& args) {
  return args.count > 0 && args.layers[0].sigma ? 0 : constant_workspace(args, 1);
}
int64_t workspace(const Backward& args) {
  return constant_workspace(args, 1);
}
int64_t workspace(const DoubleBackward& args) {
  return constant_workspace(args, 3);
}

const char* power_iteration(const PowerIteration& args, void* workspace, void* stream) {
  return visit_dtype(args.dtype, [&](auto zero) {
    return for_each_group(args, [&](int64_t begin, int64_t end) {
      return run_iteration<decltype(zero)>(args, begin, end, workspace, stream);
    });
  });
}
const char* normalize(const Normalize& args, void* workspace, void* stream) {
  return constant(args, workspace, stream);
}
const char* backward(const Backward& args, void* workspace, void* stream) {
  return constant(args, workspace, stream);
}
const char* double_backward(const DoubleBackward& args, void* workspace, void* stream) {
  return constant(args, workspace, stream);
}

}  // namespace cuda
}  // namespace gankernels::spectral_norm
