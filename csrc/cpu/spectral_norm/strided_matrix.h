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
#include "cpu/memory/scratch.h"
#include "cpu/simd/scalars.h"
#include "cpu/simd/vector_kernels.h"

namespace gankernels::cpu {

enum class Units { kRows, kColumns, kSlabs };

// Of elements of S; vectors are of T, what it is accumulated in.
template <class S>
class StridedMatrix {
 public:
  using T = Accumulation<S>;

  explicit StridedMatrix(const Matrix& w)
      : kernels_(&vector_kernels<S>()), data_(static_cast<const S*>(w.data)), inner_(w.inner) {
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
    kernels_->product(unit(begin), end - begin, unit_size, q, p + begin);
  }

  // z = the part of the units in the product with p.
  void transposed_product(int64_t begin, int64_t end, const T* p, T* z) const {
    if (kind == Units::kSlabs) return slabs<false, true>(begin, end, nullptr, const_cast<T*>(p), z);
    std::fill(z, z + q_size, T(0));
    kernels_->add_transposed_product(unit(begin), end - begin, unit_size, p + begin, z);
  }

  // Both in one pass: p from q, and z from that p.
  void both_products(int64_t begin, int64_t end, const T* q, T* p, T* z) const {
    if (kind == Units::kSlabs) return slabs<true, true>(begin, end, q, p, z);
    std::fill(z, z + q_size, T(0));
    kernels_->both_products(unit(begin), end - begin, unit_size, q, p + begin, z);
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

  const S* unit(int64_t i) const { return data_ + i * unit_size; }

  // A slab is rows x inner with a short inner dimension. Working on 16 rows at a time, with the
  // vectors written out to that pattern, its loops are as long as vector instructions want them.
  template <bool kProduct, bool kTransposed>
  void slabs(int64_t begin, int64_t end, const T* q, T* p, T* z) const {
    const int64_t block = kSlabRows * inner_;
    const T* q_rows = kProduct ? expanded(q) : nullptr;
    T* p_rows = thread_scratch<T, Slot::kSlabRows>(2 * block + unit_size);
    T* p_sum = p_rows + block;
    T* z_sum = p_sum + block;
    if (kTransposed) std::fill(z_sum, z_sum + unit_size, T(0));
    for (int64_t i = begin; i < end; ++i) {
      const S* a = unit(i);
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

  const VectorKernels<S>* kernels_;
  const S* data_;
  int64_t inner_;
};

}  // namespace gankernels::cpu
