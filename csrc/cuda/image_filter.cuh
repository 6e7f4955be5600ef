// The kernel of image filtering; image_filter.cu launches it. Deterministic: no two threads write the
// same place, and every sum has a fixed order.
#pragma once

#include "common/reduce.cuh"
#include "image_filter.h"

namespace gankernels::image_filter::cuda {

constexpr int kRun = 8;  // pixels in a row that a thread filters: it reads each of 50 once
constexpr int kRows = 32, kRowsAround = kRows + 2 * kReach;  // of a tile
// Columns of a tile: what 48 KiB of shared memory have room for.
template <class Acc>
constexpr int kColumns = sizeof(Acc) == 8 ? 8 : 64;
template <class Acc>
constexpr int kPitch = kColumns<Acc> + 2 * kReach + 1;  // odd: rows begin in different banks

struct FilterTask {
  Layout layout;
  int64_t channels, tiles_x, tiles_y;
  bool transpose;
  const void *in, *gains;
  void* out;
  const void* sigma;
  const int64_t* seed;
  const double* box;
};

// The work of a block: a tile of all channels of one sample.
struct FilterTile {
  int64_t sample, row, column;
  int rows, columns;  // within the image
};

template <class Acc>
DEVICE FilterTile tile_of(const FilterTask& task, int block) {
  const int64_t column = block % task.tiles_x * kColumns<Acc>, rest = block / task.tiles_x;
  const int64_t row = rest % task.tiles_y * kRows, sample = rest / task.tiles_y;
  const int64_t rows = task.layout.height - row, columns = task.layout.width - column;
  return {sample, row, column, static_cast<int>(rows < kRows ? rows : kRows),
          static_cast<int>(columns < kColumns<Acc> ? columns : kColumns<Acc>)};
}

// One axis of a tile and of what is around it: the pixels that are shown there, and whether the cutout
// [begin, end) has them.
DEVICE void look_up(SharedArray<int> pixel, SharedArray<int> cut, int count, int64_t first,
                    int64_t size, int begin, int end) {
  for (int i = thread_id(); i < count; i += kThreads) {
    const int at = static_cast<int>(reflected(first + i, size));
    pixel[i] = at;
    cut[i] = at >= begin && at < end;
  }
}

// The cutout of a sample into shared memory, by one thread: x0, x1, y0, y1.
// double: the edges of the box, once a block
DEVICE void stage_cutout(const double* box, const Layout& l, SharedArray<int> edges) {
  if (thread_id() > 0) return;
  Cutout cutout{};
  if (box) {
    const double numbers[3] = {load(box), load(box + 1), load(box + 2)};
    cutout = Cutout::of(numbers, l.width, l.height);
  }
  edges[0] = cutout.x0, edges[1] = cutout.x1, edges[2] = cutout.y0, edges[3] = cutout.y1;
}

// W of the contract, with `factor` for 1/2.
template <class Acc>
DEVICE Acc at_border(const Layout& l, int x, int y, Acc factor) {
  const bool side = l.width > 1 && (x == 0 || x == l.width - 1);
  const bool end = l.height > 1 && (y == 0 || y == l.height - 1);
  return (side ? factor : Acc{1}) * (end ? factor : Acc{1});
}

// Calls f(row, column) for `rows` x `columns`: a row a warp, lanes side by side.
template <class F>
DEVICE void for_each(int rows, int columns, F&& f) {
  for (int r = thread_id() / kWarp; r < rows; r += kWarps)
    for (int c = thread_id() % kWarp; c < columns; c += kWarp) f(r, c);
}

// Calls put(row, column, number) for all of these with what get(row, column) loads: eight numbers of two
// rows are on their way in every thread before the first is put.
template <class T, class Get, class Put>
DEVICE void stage_each(int rows, int columns, Get&& get, Put&& put) {
  constexpr int kRowsAtOnce = 2, kColumnsAtOnce = 4;
  UNROLL(1)
  for (int r = thread_id() / kWarp; r < rows; r += kRowsAtOnce * kWarps) {
    UNROLL(1)
    for (int c = thread_id() % kWarp; c < columns; c += kColumnsAtOnce * kWarp) {
      T numbers[kRowsAtOnce][kColumnsAtOnce];
      UNROLL(kRowsAtOnce)
      for (int i = 0; i < kRowsAtOnce; ++i) {
        UNROLL(kColumnsAtOnce)
        for (int j = 0; j < kColumnsAtOnce; ++j)
          if (r + i * kWarps < rows && c + j * kWarp < columns)
            numbers[i][j] = get(r + i * kWarps, c + j * kWarp);
      }
      UNROLL(kRowsAtOnce)
      for (int i = 0; i < kRowsAtOnce; ++i) {
        UNROLL(kColumnsAtOnce)
        for (int j = 0; j < kColumnsAtOnce; ++j)
          if (r + i * kWarps < rows && c + j * kWarp < columns)
            put(r + i * kWarps, c + j * kWarp, numbers[i][j]);
      }
    }
  }
}

// kRun neighbors along an axis of shared memory, `step` elements apart; x begins 21 before the first.
template <class Acc>
DEVICE void filter_run(const Acc* taps, SharedArray<Acc> x, int at, int step, Acc* sum) {
  UNROLL(8)
  for (int r = 0; r < kRun; ++r) sum[r] = 0;
  UNROLL(50)
  for (int j = 0; j < kRun + 2 * kReach; ++j) {
    const Acc value = x[at + j * step];
    UNROLL(8)
    for (int r = 0; r < kRun; ++r) {
      const int d = j - r - kReach;
      if (d >= -kReach && d <= kReach) sum[r] += taps[d < 0 ? -d : d] * value;
    }
  }
}

// The taps of a sample's gains.
template <class Acc>
DEVICE void mix_bank(const Acc (&gains)[kBands], Acc (&taps)[kTaps]) {
  constexpr Bank bank = Bank::make();  // of the namespace, no device could see it
  UNROLL(22)
  for (int d = 0; d < kTaps; ++d) {
    taps[d] = 0;
    UNROLL(4)
    for (int i = 0; i < kBands; ++i) taps[d] += gains[i] * static_cast<Acc>(bank.taps[i][d]);
  }
}

// Filters `pixels`, a tile and what is around it, along y into `filtered`, and that along x into the
// tile's place in `pixels`: runs of `columns` columns, and runs of the tile's rows. All threads must call
// it.
template <class Acc>
DEVICE void filter_tile(const Acc* taps, SharedArray<Acc> pixels, SharedArray<Acc> filtered,
                        const FilterTile& tile, int row_runs, int column_runs, int columns) {
  constexpr int kPitch = cuda::kPitch<Acc>;
  for (int i = thread_id(); i < row_runs * columns; i += kThreads) {
    const int run = i / columns * kRun, column = i % columns;
    Acc sum[kRun];
    filter_run<Acc>(taps, pixels, run * kPitch + column, kPitch, sum);
    UNROLL(8)
    for (int r = 0; r < kRun; ++r) filtered[(run + r) * kPitch + column] = sum[r];
  }
  sync_threads();
  // Lanes are rows, which lie in different banks.
  for (int i = thread_id(); i < column_runs * kRows; i += kThreads) {
    const int run = i / kRows * kRun, row = i % kRows;
    if (row >= tile.rows) continue;
    Acc sum[kRun];
    filter_run<Acc>(taps, filtered, row * kPitch + run, 1, sum);
    UNROLL(8)
    for (int r = 0; r < kRun; ++r) pixels[row * kPitch + run + r] = sum[r];
  }
}

// A tile of a sample. It is read with 21 pixels around it into shared memory, filtered along y into
// another part of it, and along x into the first again; so for every channel. The transpose doubles
// the image's border before, and halves it after. A thread has the 22 taps in registers and filters 8
// neighbors at a time: 43 multiply-adds and 6.3 shared loads each.
//
// Reads, of float: 3.8 times the tile, of which caches serve what neighboring tiles share; writes it
// once. Of what is around a tile and in it, a thread has eight loads under way before it uses the first.
template <class T>
KERNEL_FOR(kThreads, 2)
filter(TABLE(FilterTask) task) {
  using Acc = Accumulation<T>;
  constexpr int kPitch = cuda::kPitch<Acc>;
  SHARED(Acc, pixels, kRowsAround * kPitch);
  SHARED(Acc, filtered, kRows * kPitch);
  SHARED(int, source_x, kPitch);
  SHARED(int, source_y, kRowsAround);
  SHARED(int, cut_x, kPitch);
  SHARED(int, cut_y, kRowsAround);
  SHARED(int, edges, 4);
  const Layout& l = task.layout;
  const FilterTile tile = tile_of<Acc>(task, block_id());
  const Acc* gains = static_cast<const Acc*>(task.gains) + kBands * tile.sample;
  const Acc g[kBands] = {load(gains), load(gains + 1), load(gains + 2), load(gains + 3)};
  const Acc sigma = task.sigma ? load(static_cast<const Acc*>(task.sigma) + tile.sample) : Acc{0};
  const double* box = task.box ? task.box + 3 * tile.sample : nullptr;

  // Whole runs, which may go beyond the image: there is something everywhere.
  const int row_runs = (tile.rows + kRun - 1) / kRun;
  const int column_runs = (tile.columns + kRun - 1) / kRun;
  const int rows = row_runs * kRun + 2 * kReach, columns = column_runs * kRun + 2 * kReach;
  stage_cutout(box, l, edges);
  sync_threads();
  look_up(source_x, cut_x, columns, tile.column - kReach, l.width, edges[0], edges[1]);
  look_up(source_y, cut_y, rows, tile.row - kReach, l.height, edges[2], edges[3]);
  sync_threads();

  // Indexed by the block's rows and columns, those around the tile included.
  const auto offset = [&](int row, int column) {
    return source_y[row] * l.row_stride + source_x[column] * l.column_stride;
  };
  const auto is_cut = [&](int row, int column) { return cut_x[column] && cut_y[row]; };
  const auto finished = [&](int64_t channel, int row, int column, Acc value) {
    if (sigma != 0)
      value += sigma * static_cast<Acc>(normal_noise(
                           load(task.seed + tile.sample),
                           (channel * l.height + source_y[row]) * l.width + source_x[column]));
    return is_cut(row, column) ? Acc{0} : value;
  };

  if (g[0] == 1 && g[1] == 1 && g[2] == 1 && g[3] == 1) {
    for (int64_t c = 0; c < task.channels; ++c) {
      const int64_t plane = tile.sample * l.sample_stride + c * l.channel_stride;
      const auto place = [&](int row, int column) {
        return plane + offset(row + kReach, column + kReach);
      };
      stage_each<T>(
          tile.rows, tile.columns,
          [&](int row, int column) {
            return load(static_cast<const T*>(task.in) + place(row, column));
          },
          [&](int row, int column, T number) {
            store(static_cast<T*>(task.out) + place(row, column),
                  narrow<T>(finished(c, row + kReach, column + kReach, widen(number))));
          });
    }
    return;
  }

  Acc taps[kTaps];
  mix_bank(g, taps);
  for (int64_t c = 0; c < task.channels; ++c) {
    const int64_t plane = tile.sample * l.sample_stride + c * l.channel_stride;
    stage_each<T>(
        rows, columns,
        [&](int row, int column) {
          return load(static_cast<const T*>(task.in) + plane + offset(row, column));
        },
        [&](int row, int column, T number) {
          Acc value = widen(number);
          if (task.transpose)
            value = is_cut(row, column)
                        ? Acc{0}
                        : value * at_border(l, source_x[column], source_y[row], Acc{2});
          pixels[row * kPitch + column] = value;
        });
    sync_threads();
    filter_tile<Acc>(taps, pixels, filtered, tile, row_runs, column_runs, columns);
    sync_threads();
    for_each(tile.rows, tile.columns, [&](int row, int column) {
      const int there = row + kReach, here = column + kReach;  // around the tile
      Acc value = pixels[row * kPitch + column];
      if (task.transpose)
        value *= at_border(l, source_x[here], source_y[there], Acc{0.5});
      else
        value = finished(c, there, here, value);
      store(static_cast<T*>(task.out) + plane + offset(there, here), narrow<T>(value));
    });
    // The next channel puts into a place what the same thread has read from there.
  }
}

}  // namespace gankernels::image_filter::cuda
