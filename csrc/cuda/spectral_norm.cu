// Launches the kernels of spectral normalization for every 64 layers: what is read how (walks), where
// it goes in the workspace, and which blocks serve which layer.
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

template <class Layer>
int64_t bytes_of(const Layer* layers, int64_t count, DType dtype) {
  int64_t size = 0;
  for (int64_t i = 0; i < count; ++i) size += layers[i].w.size();
  return size * static_cast<int64_t>(item_size(dtype));
}

// Elements of a tile of this call.
template <class T, class Args>
int64_t tile_size(const Args& args) {
  return tile_bytes(bytes_of(args.layers, args.count, args.dtype)) /
         static_cast<int64_t>(sizeof(T));
}

// How many elements a thread takes at a time: rows that begin anywhere are read one by one.
template <class T>
int vector_for(int64_t width, int64_t group, std::initializer_list<const void*> pointers) {
  bool vectors = width % kVector<T> == 0 && (group == 1 || group % kVector<T> == 0);
  for (const void* p : pointers) vectors &= p == nullptr || aligned(p);
  return vectors ? kVector<T> : 1;
}

// Starts one kernel for the tables of all layers; first_tile of each is the sum of those before.
template <auto kernel, class Table>
const char* launch_tiles(const char* name, const Table& table, int64_t tiles, void* stream) {
  return launch<kernel>(name, tiles, kThreads, stream, table);
}

// --- power iteration --------------------------------------------------------------------------------

// The workspace of a layer: the two products, and what their sums need.
template <class T>
struct Iteration {
  using Acc = Accumulation<T>;

  Iteration(const PowerIterationLayer& layer, int64_t target) {
    const Matrix& w = layer.w;
    const Memory m(w);
    const auto vector = [&](int64_t width, int64_t group) {
      return vector_for<T>(width, group, {w.data});
    };
    const Walk along = walk_along(m.units, m.width, vector(m.width, 1), target);
    const Walk across =
        walk_across(1, m.units, m.width, m.group, vector(m.width, m.group), target, kMaxParts);
    // Where a unit holds several columns, W^T u is a product for each unit.
    const Walk inside =
        walk_across(m.units, w.rows, m.group, 1, vector(m.group, 1), target, kMaxParts);
    u = m.rows_along ? along : across;
    v = m.rows_along ? across : m.group == 1 ? along : inside;
    fold = m.rows_along ? 1 : static_cast<int>(m.group);
  }

  void place(const Matrix& w, Arena& arena, Buffers* buffers) {
    const auto partial_size = [](const Walk& walk) { return walk.parts * walk.outputs(); };
    partial = arena.take<Acc>("partial", std::max(partial_size(u), partial_size(v)), buffers);
    u_raw = arena.take<Acc>("u_raw", w.rows, buffers);
    v_raw = arena.take<Acc>("v_raw", w.cols(), buffers);
    u_squares = arena.take<double>("squares", stripes(u), buffers);
    v_squares = arena.take<double>("squares", stripes(v), buffers);
  }
  static int stripes(const Walk& walk) { return walk.batches * walk.stripes; }
  int tickets_needed() const { return std::max(stripes(u), stripes(v)); }

  Walk u, v;  // for the products W v and W^T u
  int fold;   // of W v
  Acc *partial = nullptr, *u_raw = nullptr, *v_raw = nullptr;
  double *u_squares = nullptr, *v_squares = nullptr;
  int* tickets = nullptr;
};

template <class T>
std::vector<Iteration<T>> plan(const PowerIteration& args, int64_t begin, int64_t end, Arena& arena,
                               Buffers* buffers, int** tickets, int64_t* ticket_count) {
  std::vector<Iteration<T>> plans;
  const int64_t target = tile_size<T>(args);
  *ticket_count = 0;
  for (int64_t i = begin; i < end; ++i) {
    plans.emplace_back(args.layers[i], target);
    *ticket_count += plans.back().tickets_needed();
  }
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
  ProductTable table;
  table.count = static_cast<int>(plans.size());
  table.eps = args.eps;
  int64_t tiles = 0;
  for (size_t i = 0; i < plans.size(); ++i) {
    const PowerIterationLayer& from = args.layers[begin + i];
    const Iteration<T>& plan = plans[i];
    ProductLayer& layer = table.layers[i];
    layer.w = from.w.data;
    layer.walk = to_u ? plan.u : plan.v;
    layer.x = {to_u ? plan.v_raw : plan.u_raw, false, {}};
    layer.x_squares = to_u ? plan.v_squares : plan.u_squares;
    layer.x_square_count = plan.stripes(to_u ? plan.v : plan.u);
    if (first) {
      layer.x = {to_u ? from.v : from.u, true, to_u ? column_order(from.w) : ColumnOrder{}};
      layer.x_squares = nullptr;
    }
    layer.fold = to_u ? plan.fold : 1;
    layer.partial = plan.partial;
    layer.result = to_u ? plan.u_raw : plan.v_raw;
    layer.squares = to_u ? plan.u_squares : plan.v_squares;
    layer.tickets = plan.tickets;
    layer.first_tile = static_cast<int>(tiles);
    tiles += layer.walk.tiles();
  }
  return launch_tiles<product<T>>("product", table, tiles, stream);
}

template <class T>
const char* launch_repair(const PowerIteration& args, int64_t begin, int64_t end, void* stream) {
  RepairTable table;
  table.count = 0;
  for (int64_t i = begin; i < end; ++i) {
    const PowerIterationLayer& from = args.layers[i];
    if (from.skipped)
      table.layers[table.count++] = {from.u, from.v, static_cast<int>(from.w.rows),
                                     static_cast<int>(from.w.cols())};
  }
  if (table.count == 0) return nullptr;
  return launch_tiles<repair<T>>("repair", table, 2 * table.count, stream);
}

template <class T>
const char* launch_finish(const PowerIteration& args, int64_t begin,
                          const std::vector<Iteration<T>>& plans, void* stream) {
  FinishTable table;
  table.count = static_cast<int>(plans.size());
  table.eps = args.eps;
  table.max_norm = args.max_norm;
  table.u_first = args.u_first;
  table.tile = static_cast<int>(tile_size<T>(args));
  int64_t tiles = 0;
  for (size_t i = 0; i < plans.size(); ++i) {
    using Acc = Accumulation<T>;
    const PowerIterationLayer& from = args.layers[begin + i];
    const Iteration<T>& plan = plans[i];
    const int64_t index = begin + static_cast<int64_t>(i);
    const bool is_last = index + 1 == args.count;
    FinishLayer& layer = table.layers[i];
    layer.w = from.w.data;
    layer.out = from.out;
    layer.u = from.u, layer.v = from.v;
    layer.u_raw = plan.u_raw, layer.v_raw = plan.v_raw;
    layer.u_squares = plan.u_squares, layer.v_squares = plan.v_squares;
    layer.u_square_count = plan.stripes(plan.u), layer.v_square_count = plan.stripes(plan.v);
    layer.u_out = from.u_out, layer.v_out = from.v_out;
    layer.sigma_out = static_cast<Acc*>(args.sigma_out) + index;
    layer.sigma_copy = args.sigma_copy ? static_cast<Acc*>(args.sigma_copy) + index : nullptr;
    layer.sigma_padding = is_last ? static_cast<int>(packed_size(args.count) - args.count) : 0;
    layer.skipped = from.skipped;
    layer.order = column_order(from.w);
    layer.rows = static_cast<int>(from.w.rows), layer.cols = static_cast<int>(from.w.cols());
    layer.first_tile = static_cast<int>(tiles);
    layer.vector_tiles =
        static_cast<int>(ceil_div(packed_size(layer.rows) + packed_size(layer.cols), kStage));
    layer.size = from.w.size();
    layer.vectors = aligned(from.w.data) && aligned(from.out);
    tiles += layer.vector_tiles + (from.out ? ceil_div(layer.size, table.tile) : 0);
  }
  return launch_tiles<finish<T>>("finish", table, tiles, stream);
}

template <class T>
void declare(const PowerIteration& args, int64_t begin, int64_t end, Buffers& buffers) {
  using Acc = Accumulation<T>;
  for (int64_t i = begin; i < end; ++i) {
    const PowerIterationLayer& layer = args.layers[i];
    buffers.in("w", layer.w.data, layer.w.size(), sizeof(T));
    buffers.out("u", layer.u, layer.w.rows, sizeof(T));
    buffers.out("v", layer.v, layer.w.cols(), sizeof(T));
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

template <class T, class Args>
int64_t constant_table(const Args& args, int64_t begin, int64_t end, int terms, Arena& arena,
                       Buffers* buffers, ConstantTable& table) {
  using Acc = Accumulation<T>;
  table.count = static_cast<int>(end - begin);
  table.max_norm = args.max_norm;
  table.guard = false;
  const int64_t target = tile_size<T>(args);
  table.tile = static_cast<int>(target);
  int64_t tiles = 0;
  for (int64_t i = begin; i < end; ++i) {
    const auto& from = args.layers[i];
    const Matrix& w = from.w;
    const Memory m(w);
    const Pointers x = pointers(from);
    ConstantLayer& layer = table.layers[i - begin];
    layer.w = w.data, layer.g = x.g, layer.h = x.h;
    layer.sigma = x.sigma, layer.grad_sigma = x.grad_sigma, layer.sigma_out = x.sigma_out;
    layer.out = x.out, layer.second = x.second;
    layer.size = w.size();
    const Operand u{from.u, false, {}}, v{from.v, false, column_order(w)};
    layer.p = m.rows_along ? u : v;
    layer.q = m.rows_along ? v : u;
    const int vector = vector_for<T>(m.width, m.group, {w.data, x.g, x.h, x.out, x.second});
    layer.walk = walk_across(1, m.units, m.width, m.group, vector, target, INT32_MAX);
    layer.tiles = layer.walk.tiles();
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
  Buffers buffers;
  Arena arena(workspace);
  ConstantTable table;
  const bool known = args.layers[begin].sigma != nullptr;
  const int64_t tiles = constant_table<T>(args, begin, end, known ? 0 : 1, arena, &buffers, table);
  table.guard = args.guard;
  if (!known)
    if (const char* error =
            launch_tiles<add_tiles<T, Sums::kBilinear>>("add_tiles", table, tiles, stream))
      return error;
  int64_t flat = 0;  // scaling goes through memory from end to end, in tiles of its own
  for (int i = 0; i < table.count; ++i) {
    ConstantLayer& layer = table.layers[i];
    layer.first_tile = static_cast<int>(flat);
    layer.walk.vectors = aligned(layer.w) && aligned(layer.out);
    flat += ceil_div(layer.size, table.tile);
  }
  return launch_tiles<cuda::normalize<T>>("normalize", table, flat, stream);
}

template <class T>
const char* run_constant(const Backward& args, int64_t begin, int64_t end, void* workspace,
                         void* stream) {
  Buffers buffers;
  Arena arena(workspace);
  ConstantTable table;
  const int64_t tiles =
      constant_table<T>(args, begin, end, kTerms<Sums::kBackward>, arena, &buffers, table);
  if (const char* error =
          launch_tiles<add_tiles<T, Sums::kBackward>>("add_tiles", table, tiles, stream))
    return error;
  return launch_tiles<cuda::backward<T>>("backward", table, tiles, stream);
}

template <class T>
const char* run_constant(const DoubleBackward& args, int64_t begin, int64_t end, void* workspace,
                         void* stream) {
  Buffers buffers;
  Arena arena(workspace);
  ConstantTable table;
  const int64_t tiles =
      constant_table<T>(args, begin, end, kTerms<Sums::kDoubleBackward>, arena, &buffers, table);
  if (const char* error =
          launch_tiles<add_tiles<T, Sums::kDoubleBackward>>("add_tiles", table, tiles, stream))
    return error;
  return launch_tiles<cuda::double_backward<T>>("double_backward", table, tiles, stream);
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
      ConstantTable table;
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
