// The products of spectral normalization over a weight where it lies in memory.
//
// Memory is a sequence of `units`, one of which is finished before the next begins:
//   kRows     w[rows][cols]          a unit is a row:     contiguous weights
//   kColumns  w[cols][rows]          a unit is a column:  transposed linear layers
//   kSlabs    w[outer][rows][inner]  a unit is `inner` columns: transposed convolutions
// The vector along the units is called p, the one across them q: u and v for kRows, else v and u.
// A range of units gives its part of W q (or W^T q) at once, and adds a partial sum to the other.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/matrix.h"
#include "cpu/elements.h"

namespace gankernels::cpu {

enum class Units { kRows, kColumns, kSlabs };

template <class T>
class StridedMatrix {
 public:
  StridedMatrix(const Matrix& w, DType dtype)
      : kernels_(&vector_kernels<T>()), storage_{w.data, dtype}, inner_(w.inner) {
    if (w.inner == 1) {
      kind = Units::kColumns, units = w.outer, unit_size = w.rows;
    } else if (w.outer == 1) {
      kind = Units::kRows, units = w.rows, unit_size = w.inner;
    } else {
      kind = Units::kSlabs, units = w.outer, unit_size = w.rows * w.inner;
    }
    p_size = kind == Units::kSlabs ? units * inner_ : units;
    q_size = kind == Units::kSlabs ? w.rows : unit_size;
  }

  Units kind;
  int64_t units, unit_size;  // how many, and the elements of one
  int64_t p_size, q_size;

  // How many entries of p a unit has.
  int64_t p_per_unit() const { return p_size / units; }

  // p[begin, end) = the product with q.
  void product(int64_t begin, int64_t end, const T* q, T* p) const {
    if (kind == Units::kSlabs) return slabs<true, false>(begin, end, q, p, nullptr);
    tiles(begin, end, [&](int64_t i, int64_t rows, const T* a) {
      kernels_->product(a, rows, unit_size, q, p + i);
    });
  }

  // z = the part of the units in the product with p.
  void transposed_product(int64_t begin, int64_t end, const T* p, T* z) const {
    if (kind == Units::kSlabs) return slabs<false, true>(begin, end, nullptr, const_cast<T*>(p), z);
    std::fill(z, z + q_size, T(0));
    tiles(begin, end, [&](int64_t i, int64_t rows, const T* a) {
      kernels_->add_transposed_product(a, rows, unit_size, p + i, z);
    });
  }

  // Both in one pass: p from q, and z from that p.
  void both_products(int64_t begin, int64_t end, const T* q, T* p, T* z) const {
    if (kind == Units::kSlabs) return slabs<true, true>(begin, end, q, p, z);
    std::fill(z, z + q_size, T(0));
    tiles(begin, end, [&](int64_t i, int64_t rows, const T* a) {
      kernels_->both_products(a, rows, unit_size, q, p + i, z);
    });
  }

  // Walks p q^T along the memory: f(offset, n, factor, vector) for pieces where it is factor * vector.
  template <class F>
  void outer_product(int64_t begin, int64_t end, const T* p, const T* q, F&& f) const {
    if (kind != Units::kSlabs) {
      for (int64_t i = begin; i < end; ++i) f(i * unit_size, unit_size, p[i], q);
      return;
    }
    const int64_t block = kSlabRows * inner_;
    const T* q_rows = expanded(q);
    T* p_rows = thread_scratch<T, Slot::kSlabRows>(2 * block);
    T* piece = p_rows + block;
    for (int64_t i = begin; i < end; ++i) {
      repeat(p + i * inner_, p_rows);
      for (int64_t k = 0; k < unit_size; k += block) {
        const int64_t n = std::min(block, unit_size - k);
        for (int64_t j = 0; j < n; ++j) piece[j] = q_rows[k + j] * p_rows[j];
        f(i * unit_size + k, n, T(1), piece);
      }
    }
  }

 private:
  static constexpr int64_t kSlabRows = 16;
  static constexpr int64_t kStageElements = 64 << 10;

  // f(first unit, units, elements as T) over the range; all at once where nothing has to be widened.
  template <class F>
  void tiles(int64_t begin, int64_t end, F&& f) const {
    const bool direct = stored_as<T>(storage_.dtype);
    const int64_t most = std::max<int64_t>(8, kStageElements / unit_size / 8 * 8);
    const int64_t step = direct ? end - begin : std::min(end - begin, most);
    T* scratch = direct ? nullptr : thread_scratch<T, Slot::kWidenedUnits>(step * unit_size);
    for (int64_t i = begin; i < end; i += step) {
      const int64_t rows = std::min(step, end - i);
      f(i, rows, staged(*kernels_, storage_, i * unit_size, rows * unit_size, scratch));
    }
  }

  // A slab is rows x inner with a short inner dimension. Working on 16 rows at a time, with the
  // vectors written out to that pattern, its loops are as long as vector instructions want them.
  template <bool kProduct, bool kTransposed>
  void slabs(int64_t begin, int64_t end, const T* q, T* p, T* z) const {
    const int64_t block = kSlabRows * inner_;
    const T* q_rows = kProduct ? expanded(q) : nullptr;
    T* p_rows = thread_scratch<T, Slot::kSlabRows>(2 * block + unit_size);
    T* p_sum = p_rows + block;
    T* z_sum = p_sum + block;
    T* stage =
        stored_as<T>(storage_.dtype) ? nullptr : thread_scratch<T, Slot::kWidenedUnits>(unit_size);
    if (kTransposed) std::fill(z_sum, z_sum + unit_size, T(0));
    for (int64_t i = begin; i < end; ++i) {
      const T* a = staged(*kernels_, storage_, i * unit_size, unit_size, stage);
      if (kProduct) {
        std::fill(p_sum, p_sum + block, T(0));
        for (int64_t k = 0; k < unit_size; k += block)
          kernels_->add_elementwise_product(a + k, q_rows + k, std::min(block, unit_size - k),
                                            p_sum);
        for (int64_t j = 0; j < inner_; ++j) {
          T sum = 0;
          for (int64_t r = 0; r < kSlabRows; ++r) sum += p_sum[r * inner_ + j];
          p[i * inner_ + j] = sum;
        }
      }
      if (kTransposed) {
        repeat(p + i * inner_, p_rows);
        for (int64_t k = 0; k < unit_size; k += block)
          kernels_->add_elementwise_product(a + k, p_rows, std::min(block, unit_size - k),
                                            z_sum + k);
      }
    }
    if (!kTransposed) return;
    for (int64_t r = 0; r < q_size; ++r) {
      T sum = 0;
      for (int64_t j = 0; j < inner_; ++j) sum += z_sum[r * inner_ + j];
      z[r] = sum;
    }
  }

  // q[r] at every element [r][i] of a slab.
  const T* expanded(const T* q) const {
    T* rows = thread_scratch<T, Slot::kSlabExpanded>(unit_size);
    for (int64_t r = 0; r < q_size; ++r) std::fill_n(rows + r * inner_, inner_, q[r]);
    return rows;
  }

  // p[i] at every element [r][i] of 16 rows.
  void repeat(const T* p, T* rows) const {
    for (int64_t r = 0; r < kSlabRows; ++r) std::copy_n(p, inner_, rows + r * inner_);
  }

  const VectorKernels<T>* kernels_;
  Storage storage_;
  int64_t inner_;
};

}  // namespace gankernels::cpu
