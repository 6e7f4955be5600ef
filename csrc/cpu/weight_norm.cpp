// The CPU kernels of weight normalization. Weights are cut into pieces of rows (cpu/rows.h). Rows that
// are in one piece are read for their sums and, while they are in the cache, scaled; long ones take a
// second turn, with the sums of their parts added in order.
//
// Bytes, in sizes of all weights: forward reads 1, writes 1; backward reads 2, writes 1;
// double_backward reads 3, writes 2. Rows in parts are read twice. Deterministic.

#include "weight_norm.h"

#include <vector>

#include "cpu/elements.h"
#include "cpu/rows.h"

namespace gankernels::weight_norm::cpu {
namespace {

using gankernels::cpu::Elements;
using gankernels::cpu::Factor;
using gankernels::cpu::joined;
using gankernels::cpu::narrow;
using gankernels::cpu::RowPieces;
using gankernels::cpu::run;
using gankernels::cpu::widen;

// A part of a row: n elements from `offset` on.
struct Part {
  int64_t row, offset, n;
};

template <class S>
class WeightCall {
 public:
  using T = Accumulation<S>;
  const Elements<S> elements;

  // `streams` sizes of all weights are read and written.
  WeightCall(const Weights& args, int streams)
      : elements(streams * bytes(args)),
        args_(args),
        pieces_(args.count, bytes(args), args.threads) {
    for (int64_t k = 0; k < args.count; ++k) {
      pieces_.add(args.weights[k].rows, args.weights[k].size);
      has_parts_ |= pieces_.parts_of(k) > 1;
    }
  }

  // For every row: `sums` of the weight and a part, added up by `add`, then `write` of the weight, each
  // part, the sums of the row, and whether it is the first part.
  template <class Sums, class Add, class Write>
  void for_each_row(Sums&& sums, Add&& add, Write&& write) const {
    using Total = decltype(sums(args_.weights[0], Part{}));
    std::vector<Total> partial(has_parts_ ? pieces_.parts() : 0);
    pieces_.for_each([&](int64_t k, int64_t row, int64_t part, int64_t offset, int64_t n) {
      const Weight& w = args_.weights[k];
      const Total total = sums(w, Part{row, offset, n});
      if (pieces_.parts_of(k) == 1)
        write(w, Part{row, offset, n}, total, true);
      else
        partial[pieces_.first_part(k, row) + part] = total;
    });
    if (!has_parts_) return;
    pieces_.for_each([&](int64_t k, int64_t row, int64_t part, int64_t offset, int64_t n) {
      if (pieces_.parts_of(k) == 1) return;
      const Total* of_row = partial.data() + pieces_.first_part(k, row);
      Total total = of_row[0];
      for (int64_t i = 1; i < pieces_.parts_of(k); ++i) total = add(total, of_row[i]);
      write(args_.weights[k], Part{row, offset, n}, total, part == 0);
    });
  }

  // Entry i of a vector of the dtype.
  double entry(const void* x, int64_t i) const { return widen(static_cast<const S*>(x)[i]); }
  void set_entry(void* x, int64_t i, double value) const {
    static_cast<S*>(x)[i] = narrow<S>(static_cast<T>(value));
  }
  Row<double> row(const Weight& w, int64_t i) const {
    return {static_cast<const T*>(w.norms)[i], entry(w.g, i)};
  }

 private:
  static int64_t bytes(const Weights& args) {
    int64_t size = 0;
    for (int64_t k = 0; k < args.count; ++k) size += args.weights[k].rows * args.weights[k].size;
    return size * static_cast<int64_t>(sizeof(S));
  }

  const Weights& args_;
  RowPieces pieces_;
  bool has_parts_ = false;
};

template <class S>
void forward(const Forward& args) {
  const WeightCall<S> call(args, 2);
  call.for_each_row(
      [&](const Weight& w, Part part) { return call.elements.norm(w.v, part.offset, part.n); },
      joined,
      [&](const Weight& w, Part part, double norm, bool is_first) {
        using T = Accumulation<S>;
        if (is_first) static_cast<T*>(w.norms)[part.row] = static_cast<T>(norm);
        const Row<double> row{norm, call.entry(w.g, part.row)};
        const Factor of_v(row.inverse(), row.g);
        call.elements.combine(of_v, w.v, 0, nullptr, part.offset, part.n, w.out);
      });
}

template <class S>
void backward(const Backward& args) {
  const WeightCall<S> call(args, 3);
  call.for_each_row(
      [&](const Weight& w, Part part) { return call.elements.dot(w.x, w.v, part.offset, part.n); },
      [](double a, double b) { return a + b; },
      [&](const Weight& w, Part part, double product, bool is_first) {
        const Row<double> row = call.row(w, part.row);
        const double t = product / row.norm;
        if (is_first) call.set_entry(w.d_g, part.row, t);
        const Factor of_v(row.inverse(), row.of_q(t));
        call.elements.combine(row.scale(), w.x, of_v, w.v, part.offset, part.n, w.out);
      });
}

template <class S>
void double_backward(const DoubleBackward& args) {
  struct Products {
    double xv, hv, hx;
  };
  const WeightCall<S> call(args, 5);
  call.for_each_row(
      [&](const Weight& w, Part part) {
        const auto dot = [&](const void* a, const void* b) {
          return call.elements.dot(a, b, part.offset, part.n);
        };
        return Products{dot(w.x, w.v), dot(w.h, w.v), dot(w.h, w.x)};
      },
      [](const Products& a, const Products& b) {
        return Products{a.xv + b.xv, a.hv + b.hv, a.hx + b.hx};
      },
      [&](const Weight& w, Part part, const Products& sum, bool is_first) {
        const Row<double> row = call.row(w, part.row);
        const double t = sum.xv / row.norm, k = sum.hv / row.norm;
        const double e = w.e ? call.entry(w.e, part.row) : 0, n = row.norm;
        const Factor mixed(row.inverse(), row.mixed(k, e)), of_h(row.inverse(), row.of_q(t));
        const Factor of_v(row.inverse(), row.of_q_again(t, k, sum.hx, e) / n);
        if (is_first) call.set_entry(w.d_g, part.row, row.d_g_again(t, k, sum.hx));
        call.elements.combine(row.scale(), w.h, mixed, w.v, part.offset, part.n, w.out);
        call.elements.combine(mixed, w.x, of_h, w.h, of_v, w.v, part.offset, part.n, w.d_v);
      });
}

}  // namespace

const char* forward(const Forward& args) {
  return run(args.dtype, [&](auto zero) { forward<decltype(zero)>(args); });
}
const char* backward(const Backward& args) {
  return run(args.dtype, [&](auto zero) { backward<decltype(zero)>(args); });
}
const char* double_backward(const DoubleBackward& args) {
  return run(args.dtype, [&](auto zero) { double_backward<decltype(zero)>(args); });
}

}  // namespace gankernels::weight_norm::cpu
