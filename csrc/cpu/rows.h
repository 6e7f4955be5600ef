// Tensors of rows cut into pieces: parts of long rows, or several short ones, by the shapes alone, so
// that results do not depend on the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/parallel.h"

namespace gankernels::cpu {

class RowPieces {
 public:
  static constexpr int64_t kPiece = 32 << 10;  // elements
  // Below, waking the other threads costs more.
  static constexpr int64_t kParallelBytes = 128 << 10;

  RowPieces(int64_t count, int64_t bytes, int threads)
      : threads_(bytes < kParallelBytes ? 1 : threads) {
    cuts_.reserve(count);
  }

  // One more tensor.
  void add(int64_t rows, int64_t size) {
    const int64_t parts = (size + kPiece - 1) / kPiece;
    const int64_t together = parts > 1 ? 1 : std::max<int64_t>(1, kPiece / size);
    cuts_.push_back({rows, size, parts, together, parts_, tasks_});
    parts_ += parts * rows;
    tasks_ += (rows + together - 1) / together * parts;
  }

  int64_t parts() const { return parts_; }  // of all rows of all tensors
  // The number of the first part of a row, and how many parts it has.
  int64_t first_part(int64_t k, int64_t row) const {
    return cuts_[k].first_part + row * cuts_[k].parts;
  }
  int64_t parts_of(int64_t k) const { return cuts_[k].parts; }

  // Calls f(tensor, row, part, offset, n) for every part of every row, on all threads.
  template <class F>
  void for_each(F&& f) const {
    parallel_tasks(threads_, tasks_, [&](int64_t task) {
      int64_t k = static_cast<int64_t>(cuts_.size()) - 1;
      while (cuts_[k].first_task > task) --k;
      const Cut& cut = cuts_[k];
      const int64_t piece = task - cut.first_task, part = piece % cut.parts;
      const int64_t first = piece / cut.parts * cut.together;
      const int64_t last = std::min(first + cut.together, cut.rows), size = cut.size;
      for (int64_t i = first; i < last; ++i)
        f(k, i, part, i * size + part * kPiece, std::min(kPiece, size - part * kPiece));
    });
  }

 private:
  struct Cut {
    int64_t rows, size;
    int64_t parts;     // of a row
    int64_t together;  // rows of a piece; 1 where there are parts
    int64_t first_part, first_task;
  };
  std::vector<Cut> cuts_;
  int64_t parts_ = 0, tasks_ = 0;
  int threads_;
};

}  // namespace gankernels::cpu
