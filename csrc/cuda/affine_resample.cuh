// The kernels of affine resampling; affine_resample.cu launches them. A block is a tile of 16 x 16 pixels
// of a sample's output; a thread is a pixel. All sums are made in a fixed order, without atomics.
#pragma once

#include "affine_resample_planes.cuh"

namespace gankernels::affine_resample::cuda {

constexpr int kGroup = 4;          // channels that end together
constexpr int kPitch = kTile + 1;  // of rows of a tile that are read along columns

template <class Acc>
constexpr Acc not_a_number() {
  return std::numeric_limits<Acc>::quiet_NaN();
}

// --- the end of the pass

// How many channels the group has whose first place is this one.
DEVICE int group_size(const Resample& r, int place) {
  return least(static_cast<int>(r.channels) - place, kGroup);
}

// An element of the color matrix, or of its offset.
template <class Acc>
DEVICE Acc color_at(const Epilogue& e, int sample, int row, int column) {
  const int n = e.color_count;
  return load(static_cast<const Acc*>(e.matrix) + (sample * n + row) * (n + 1) + column);
}

template <class T>
DEVICE void finish(const Forward& args, const Cutout& cut, int sample, int y, int x, int place,
                   Accumulation<T>* value) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Epilogue& e = r.epilogue;
  const int count = group_size(r, place);
  if (e.matrix && place == 0) {
    Acc mixed[3];
    bool identity = true;
    UNROLL(3)
    for (int i = 0; i < 3; ++i) {
      mixed[i] = value[i];
      if (i >= e.color_count) continue;
      mixed[i] = e.offsets ? color_at<Acc>(e, sample, i, e.color_count) : Acc(0);
      identity &= mixed[i] == 0;
      UNROLL(3)
      for (int j = 0; j < 3; ++j) {
        if (j >= e.color_count) continue;
        const Acc factor = color_at<Acc>(e, sample, i, j);
        identity &= factor == Acc(i == j);
        mixed[i] += factor * value[j];
      }
    }
    UNROLL(3)
    for (int i = 0; i < 3; ++i)
      if (!identity) value[i] = mixed[i];
  }
  const Acc sigma = e.sigma && e.offsets ? load(static_cast<const Acc*>(e.sigma) + sample) : Acc(0);
  if (sigma != 0) {
    const int64_t seed = load(e.seed + sample);
    UNROLL(1)
    for (int c = 0; c < count; ++c) {
      const int64_t element = (e.channel(place + c) * r.out.height + y) * r.out.width + x;
      const Acc noise = sigma * static_cast<Acc>(normal_noise(seed, element));
      UNROLL(4)
      for (int k = 0; k < kGroup; ++k) value[k] += k == c ? noise : Acc(0);
    }
  }
  const bool keep = !cut.clears(x, y);
  T* out = static_cast<T*>(args.out) + offset_of(r.out, sample, 0, y, x);
  UNROLL(4)
  for (int k = 0; k < kGroup; ++k)
    if (k < count)
      store(out + e.channel(place + k) * r.out.channel_stride, narrow<T>(keep ? value[k] : Acc(0)));
}

template <class T>
DEVICE Accumulation<T> pixel(const Forward& args, int sample, int64_t channel, int y, int x) {
  return widen(
      load(static_cast<const T*>(args.image) + offset_of(args.resample.in, sample, channel, y, x)));
}

// --- by the lattice

// The seven pixels that a point takes along one axis, from `first` on, and their weights.
template <class Acc>
struct Window {
  int first;
  Range range;
  Acc nearer, farther;
  bool odd;

  DEVICE static Window of(const Node<Acc>& n, const Range& range) {
    return {(n.at >> 1) - 3, range, range.has_node(n.at) ? 1 - n.share : Acc(0),
            range.has_node(n.at + 1) ? n.share : Acc(0), (n.at & 1) != 0};
  }
  DEVICE Acc weight(int i) const {
    if (!range.has_pixel(first + i)) return 0;
    const Acc near_tap = odd ? one_of<Acc>(6 - i, false) : one_of<Acc>(5 - i, true);
    return 2 * (nearer * near_tap + farther * one_of<Acc>(6 - i, odd));
  }
};

// S at a point, of its 49 pixels in global memory.
template <class T>
DEVICE Accumulation<T> gathered(const Forward& args, const Window<Accumulation<T>>& x,
                                const Window<Accumulation<T>>& y, int sample, int64_t channel) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  Acc sum = 0;
  UNROLL(1)
  for (int j = 0; j < 7; ++j) {
    const int row = reflected(y.first + j, height(r.in));
    Acc line = 0;
    UNROLL(7)
    for (int i = 0; i < 7; ++i)
      line +=
          x.weight(i) * pixel<T>(args, sample, channel, row, reflected(x.first + i, width(r.in)));
    sum += y.weight(j) * line;
  }
  return sum;
}

// The points of a part of a tile that a thread interpolates: of a column of the lattice, at `step` rows,
// where they lie in a box of nodes. The same for every channel.
template <class Acc>
struct Points {
  static constexpr int kMost = 7;
  static_assert(kMost * (kThreads / kPoints) >= kPoints);
  static_assert(kSide<Acc> * kNodePitch<Acc> < 1 << 15);
  int first[(kMost + 1) / 2];  // the places of two points each, by 16 bits
  Acc share_u[kMost], share_v[kMost];

  DEVICE void fill(const Frame<Acc>& f, const Lines& lines, int count) {
    auto u = f.u.base + f.u.a * lines.column + f.u.b * least(lines.row, count);
    auto v = f.v.base + f.v.a * lines.column + f.v.b * least(lines.row, count);
    UNROLL(7)
    for (int k = 0; k < kMost; ++k) {
      const int at = LocalAxis<Acc>::whole(v) * kNodePitch<Acc> + LocalAxis<Acc>::whole(u);
      first[k / 2] = k % 2 ? first[k / 2] | at << 16 : at & 0xffff;
      share_u[k] = LocalAxis<Acc>::share(u), share_v[k] = LocalAxis<Acc>::share(v);
      u += f.u.b * lines.step, v += f.v.b * lines.step;
    }
  }

  // From nodes to points.
  DEVICE void interpolate(const Lines& lines, int count, SharedArray<Acc> memory) const {
    using P = Planes<Acc>;
    UNROLL(7)
    for (int k = 0; k < kMost; ++k) {
      const int row = lines.row + k * lines.step;
      if (row >= count) break;
      const int at = k % 2 ? first[k / 2] >> 16 : first[k / 2] & 0xffff;
      const Acc left = memory[at], right = memory[at + 1];
      const Acc left_below = memory[at + kNodePitch<Acc>];
      const Acc right_below = memory[at + kNodePitch<Acc> + 1];
      const Acc above = left + share_u[k] * (right - left);
      const Acc below = left_below + share_u[k] * (right_below - left_below);
      memory[P::kHalf + row * P::kPointPitch + lines.column] = above + share_v[k] * (below - above);
    }
  }
};

// The side of a part, and of its lattice.
struct Part {
  int x0, y0, side;
  DEVICE int points() const { return 2 * side + 10; }
  DEVICE Lines lattice() const {
    const int share = side == 16  ? Lines::share_of(42)
                      : side == 8 ? Lines::share_of(26)
                                  : Lines::share_of(18);
    return Lines::of(points(), share);
  }
  DEVICE int hx() const { return 2 * x0 - 5; }
  DEVICE int hy() const { return 2 * y0 - 5; }
};

// What interpolating the points of a part needs: a node more on either side, as positions are rounded,
// and a point next to a node may lie on either.
template <class Acc>
DEVICE Frame<Acc> frame_of(const Record<Acc>& s, const Part& part) {
  const int hx = part.hx(), hy = part.hy();
  const int u = s.u.node(s.u.at(hx, hy) + s.low_u).at - 1;
  const int v = s.v.node(s.v.at(hx, hy) + s.low_v).at - 1;
  const Box box{u - 1 + (u & 1), v - 1 + (v & 1), s.box_width, s.box_height};
  return {box, s.shares, LocalAxis<Acc>::of(s.u, hx, hy, box.u),
          LocalAxis<Acc>::of(s.v, hx, hy, box.v)};
}

// A box's pixels of a channel to the beginning of `memory`, where they arrive at copy_wait(): of the column
// that begins at `from`, in bytes, those of `rows`.
template <class T>
DEVICE void fetch_image(const char* from, int count, const Lines& lines, SharedArray<int64_t> rows,
                        SharedArray<Accumulation<T>> memory) {
  UNROLL(2)
  for (int row = lines.row; row < count; row += lines.step)
    fetch<T>(memory, row * Planes<Accumulation<T>>::kPixelPitch + lines.column,
             reinterpret_cast<const T*>(from + rows[row]));
}

// Zeros where margins leave no pixels. A barrier comes last.
template <class Acc>
DEVICE void limit_pixels(const Resample& r, const Box& box, const Lines& lines,
                         SharedArray<Acc> memory) {
  const Range bx = range_of(r, 0), by = range_of(r, 1);
  const bool column = bx.has_pixel(box.column() + lines.column);
  for (int row = lines.row; row < box.rows(); row += lines.step)
    if (!column || !by.has_pixel(box.row() + row))
      memory[row * Planes<Acc>::kPixelPitch + lines.column] = 0;
  sync_threads();
}

// The points of a part whose nodes do not fit: each takes its own pixels.
template <class T>
DEVICE void gather_points(const Forward& args, const Record<Accumulation<T>>* record,
                          const Part& part, int sample, int64_t channel,
                          SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  using P = Planes<Acc>;
  const Record<Acc> s = load(record);
  const Range bx = range_of(args.resample, 0), by = range_of(args.resample, 1);
  const Lines lines = part.lattice();
  UNROLL(1)
  for (int row = lines.row; row < part.points(); row += lines.step) {
    const int hx = part.hx() + lines.column, hy = part.hy() + row;
    memory[P::kHalf + row * P::kPointPitch + lines.column] =
        gathered<T>(args, Window<Acc>::of(s.u.node(s.u.at(hx, hy)), bx),
                    Window<Acc>::of(s.v.node(s.v.at(hx, hy)), by), sample, channel);
  }
}

// The output pixels of a part of the tile, from (across, down) on, of every channel: up-sampled, interpolated,
// decimated. Where the nodes do not fit, every point takes its own pixels.
template <class T>
DEVICE void filter_part(const Forward& args, const Record<Accumulation<T>>* records, int across,
                        int down, int side, SharedArray<Accumulation<T>> memory,
                        SharedArray<int64_t> rows, SharedArray<Accumulation<T>> results) {
  using Acc = Accumulation<T>;
  using P = Planes<Acc>;
  SHARED(Frame<Acc>, frame, 1);
  const Resample& r = args.resample;
  sync_threads();  // the part before has been made
  const Block block = Block::again();
  const Record<Acc>* record = records + block.sample;
  const Part part{block.x0 + across, block.y0 + down, side};
  const bool fits = load(&record->part) > 0;
  if (fits && thread_id() == 0) frame[0] = frame_of<Acc>(load(record), part);
  sync_threads();
  const int count = part.points();
  int box_rows = 0;
  Lines pixels{};
  Points<Acc> points;
  const char* column = nullptr;
  if (fits) {
    const Frame<Acc> f = frame[0];
    const Box& box = f.box;
    box_rows = box.rows();
    pixels = Lines::of(box.columns(), f.shares.pixels);
    points.fill(f, part.lattice(), count);
    column = reinterpret_cast<const char*>(
        static_cast<const T*>(args.image) +
        offset_of(r.in, block.sample, 0, 0, reflected(box.column() + pixels.column, width(r.in))));
    const int row = thread_id();
    if (row < box.rows())
      rows[row] = reflected(box.row() + row, height(r.in)) * r.in.row_stride *
                  static_cast<int64_t>(sizeof(T));
  }
  sync_threads();
  const auto fetch_channel = [&](int place) {
    fetch_image<T>(
        column + r.epilogue.channel(place) * r.in.channel_stride * static_cast<int64_t>(sizeof(T)),
        box_rows, pixels, rows, memory);
  };
  if (fits) fetch_channel(0);

  const int x = block.x() - part.x0, y = block.y() - part.y0;
  const bool within = x >= 0 && y >= 0 && x < part.side && y < part.side;
  const bool inside = within && block.x() < width(r.out) && block.y() < height(r.out);
  for (int place = 0; place < r.channels; place += kGroup) {
    UNROLL(1)
    for (int c = 0; c < group_size(r, place); ++c) {
      copy_wait();
      sync_threads();
      if (fits) {
        const Frame<Acc> f = frame[0];  // read again: kept, it would cost registers
        if (r.margins) limit_pixels<Acc>(r, f.box, pixels, memory);
        upsample_rows<2, P>(f.box, f.shares, memory, P::kHalf);
        sync_threads();
        upsample_columns<2, P, kNodePitch<Acc>>(f.box, f.shares, memory, P::kHalf, 0);
        sync_threads();
        if (r.margins) limit<Acc>(r, f.box, memory);
        points.interpolate(part.lattice(), count, memory);
      } else {
        gather_points<T>(args, record, part, block.sample, r.epilogue.channel(place + c), memory);
      }
      sync_threads();
      if (fits && place + c + 1 < r.channels) fetch_channel(place + c + 1);
      decimate_rows<Acc>(memory, count, part.side);
      sync_threads();
      if (within) results[c * kThreads + thread_id()] = decimate_column<Acc>(memory, 2 * y, x);
    }
    if (!inside) continue;
    Acc value[kGroup];
    UNROLL(4)
    for (int c = 0; c < kGroup; ++c)
      value[c] = c < group_size(r, place) ? results[c * kThreads + thread_id()] : Acc(0);
    finish<T>(args, load(&record->cut), block.sample, block.y(), block.x(), place, value);
  }
}

// --- axis by axis

// The taps, with a zero on either side.
constexpr int kPadded = kTaps + 2;
template <class Acc>
DEVICE void fill_taps(SharedArray<Acc> taps) {
  const int k = thread_id();
  if (k < kPadded) taps[k] = one_of<Acc>((k - 1) >> 1, !(k & 1));
}

// A coordinate, 0: u, or 1: v, of the points of a tile's columns or rows, counted from (hx, hy) on: of a
// map that takes axes to axes.
template <class Acc>
DEVICE Node<Acc> along(const Record<Acc>& s, int axis, int hx, int hy, int i) {
  const bool down = (axis == 1) != s.swapped;
  const Axis<Acc>& own = axis ? s.v : s.u;
  return own.node(own.at(down ? hx : hx + i, down ? hy + i : hy));
}

// What output n of a tile takes of pixel p along an axis of the image, where the map takes axes to
// axes: the three steps of the filter in one.
template <class Acc>
DEVICE Acc weight_of(const Record<Acc>& s, SharedArray<Acc> taps, int axis, int hx, int hy, int n,
                     int p) {
  Acc sum = 0;
  UNROLL(12)
  for (int j = 0; j < kTaps; ++j) {
    const auto node = along(s, axis, hx, hy, 2 * n + j);
    const int tap = node.at + 6 - 2 * p;  // in `taps`
    if (tap < 0 || tap >= kPadded - 1) continue;
    sum += symlet<Acc>(j) * ((1 - node.share) * taps[tap] + node.share * taps[tap + 1]);
  }
  return 2 * sum;
}

// What a tile takes of the image where the map takes axes to axes: `taps` pixels an output along either
// axis, and all of them from (column, row) on. The weights lie in memory[0 ...), the pixels behind.
struct Footprint {
  int taps, column, columns, row, rows;

  template <class Acc>
  DEVICE static Footprint of(const Record<Acc>& s, int hx, int hy) {
    const int x0 = start(s, 0, hx, hy, 0), x1 = start(s, 0, hx, hy, kTile - 1);
    const int y0 = start(s, 1, hx, hy, 0), y1 = start(s, 1, hx, hy, kTile - 1);
    const int column = least(x0, x1), row = least(y0, y1);
    return {s.taps, column, most(x0, x1) - column + s.taps, row, most(y0, y1) - row + s.taps};
  }

  // The first pixel of output n.
  template <class Acc>
  DEVICE static int start(const Record<Acc>& s, int axis, int hx, int hy, int n) {
    const int from = along(s, axis, hx, hy, 2 * n).at;
    const int to = along(s, axis, hx, hy, 2 * n + kTaps - 1).at;
    return (least(from, to) - 5) >> 1;
  }

  DEVICE int pixels() const { return 2 * kTile * taps; }
  DEVICE int lines() const { return pixels() + columns * rows; }
  template <class Acc>
  DEVICE bool fits() const {
    constexpr int kMost = 128;
    return taps > 0 && taps <= kMost && columns <= kMost && rows <= kMost &&
           lines() + rows * kPitch <= Planes<Acc>::kSize;
  }

  // The first pixels, relative to column and row, and the weights. A barrier has to follow.
  template <class Acc>
  DEVICE void fill(const Record<Acc>& s, int hx, int hy, SharedArray<Acc> table,
                   SharedArray<int> starts, SharedArray<Acc> memory) const {
    const int n = thread_id() % kTile, first = thread_id() / kTile;
    for (int axis = 0; axis < 2; ++axis) {
      const int begin = start(s, axis, hx, hy, n);
      if (first == 0) starts[axis * kTile + n] = begin - (axis ? row : column);
      for (int tap = first; tap < taps; tap += kTile)
        memory[(axis * taps + tap) * kTile + n] =
            weight_of<Acc>(s, table, axis, hx, hy, n, begin + tap);
    }
  }
};

// The thread's output pixel, of a channel, without its epilogue.
template <class T>
DEVICE Accumulation<T> filter_along_axes(const Forward& args, const Footprint& f,
                                         const Lines& lines, bool swapped, SharedArray<int> starts,
                                         int sample, int64_t channel,
                                         SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const int pixels = f.pixels(), behind = f.lines();
  const T* plane =
      static_cast<const T*>(args.image) +
      offset_of(r.in, sample, channel, 0, reflected(f.column + lines.column, width(r.in)));
  UNROLL(4)
  for (int row = lines.row; row < f.rows; row += lines.step)
    fetch<T>(memory, pixels + row * f.columns + lines.column,
             plane + reflected(f.row + row, height(r.in)) * r.in.row_stride);
  copy_wait();
  sync_threads();
  const int n = thread_id() % kTile;
  for (int row = thread_id() / kTile; row < f.rows; row += kTile) {
    const int from = pixels + row * f.columns + starts[n];
    Acc sum = 0;
    UNROLL(4)
    for (int i = 0; i < f.taps; ++i) sum += memory[i * kTile + n] * memory[from + i];
    memory[behind + row * kPitch + n] = sum;
  }
  sync_threads();
  const int x = thread_id() % kTile, y = thread_id() / kTile;
  const int across = swapped ? y : x, down = swapped ? x : y;  // of the image's axes
  const int from = behind + starts[kTile + down] * kPitch + across;
  Acc sum = 0;
  UNROLL(4)
  for (int i = 0; i < f.taps; ++i)
    sum += memory[(f.taps + i) * kTile + down] * memory[from + i * kPitch];
  return sum;
}

// Every output pixel of the block, where the map takes axes to axes.
template <class T>
DEVICE void filter_separably(const Forward& args, const Record<Accumulation<T>>& s,
                             const Block& block, const Footprint& footprint,
                             SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  SHARED(Acc, taps, kPadded);
  SHARED(int, starts, 2 * kTile);
  const Resample& r = args.resample;
  fill_taps<Acc>(taps);
  sync_threads();
  footprint.fill<Acc>(s, 2 * block.x0 - 5, 2 * block.y0 - 5, taps, starts, memory);
  const Lines lines = Lines::of(footprint.columns);
  const bool inside = block.x() < width(r.out) && block.y() < height(r.out);
  for (int place = 0; place < r.channels; place += kGroup) {
    Acc value[kGroup] = {};
    UNROLL(1)
    for (int c = 0; c < group_size(r, place); ++c) {
      const Acc sum = filter_along_axes<T>(args, footprint, lines, s.swapped, starts, block.sample,
                                           r.epilogue.channel(place + c), memory);
      UNROLL(4)
      for (int k = 0; k < kGroup; ++k) value[k] = k == c ? sum : value[k];
    }
    if (inside) finish<T>(args, s.cut, block.sample, block.y(), block.x(), place, value);
  }
}

// --- copies and the plain filters

// Where a pixel of the output lies in the image: by a plain filter, up to four pixels.
template <class Acc>
struct Taps {
  int column, row;
  Acc share_u, share_v;
  bool nearest;

  DEVICE static Taps of(const Record<Acc>& s, bool nearest, int x, int y) {
    const auto u = s.u.at(2 * x, 2 * y), v = s.v.at(2 * x, 2 * y);
    if (nearest) return {s.u.nearest(u), s.v.nearest(v), 0, 0, true};
    const auto pu = s.u.pixel(u), pv = s.v.pixel(v);
    return {pu.at, pv.at, pu.share, pv.share, false};
  }
  DEVICE int count() const { return nearest ? 1 : 4; }
  DEVICE int x(int k) const { return column + k % 2; }
  DEVICE int y(int k) const { return row + k / 2; }
  DEVICE Acc weight(int k) const {
    if (nearest) return 1;
    return (k % 2 ? share_u : 1 - share_u) * (k / 2 ? share_v : 1 - share_v);
  }
};

// The block's pixels, by a plain filter; NaN where the map is not usable.
template <class T>
DEVICE void plain_tile(const Forward& args, const Record<Accumulation<T>>& s, const Block& block,
                       bool nearest) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const int x = block.x(), y = block.y();
  if (x >= width(r.out) || y >= height(r.out)) return;
  const auto taps = Taps<Acc>::of(s, nearest, x, y);
  int64_t offset[4];
  UNROLL(4)
  for (int k = 0; k < 4; ++k) {
    const int column = padded(taps.x(k), width(r.in), r.padding);
    const int row = padded(taps.y(k), height(r.in), r.padding);
    const bool here = s.usable && k < taps.count() && column >= 0 && row >= 0;
    offset[k] = here ? offset_of(r.in, block.sample, 0, row, column) : -1;
  }
  for (int place = 0; place < r.channels; place += kGroup) {
    Acc value[kGroup] = {};
    UNROLL(4)
    for (int c = 0; c < kGroup; ++c) {
      if (c >= group_size(r, place)) continue;
      const T* plane =
          static_cast<const T*>(args.image) + r.epilogue.channel(place + c) * r.in.channel_stride;
      UNROLL(4)
      for (int k = 0; k < 4; ++k) {
        if (offset[k] < 0) continue;
        const Acc x = widen(load(plane + offset[k]));
        value[c] = taps.nearest ? x : value[c] + taps.weight(k) * x;  // a copy keeps the sign of 0
      }
      if (!s.usable) value[c] = not_a_number<Acc>();
    }
    finish<T>(args, s.cut, block.sample, y, x, place, value);
  }
}

// --- kernels

// out = epilogue(resampled image), by the filter, or copied. A block is a tile of the output. Reads the
// tile's footprint, at unit scale some 4 elements an output element, most of them from cache; writes 1.
template <class T>
KERNEL_FOR(kThreads, kBlocksOf<T>)
resample(TABLE(Forward) args, const Record<Accumulation<T>>* records) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Block block = Block::of(r.out);
  const Record<Acc> s = Record<Acc>::of(r, records, block.sample);
  if (!s.usable || s.kind == Kind::kCopy) return plain_tile<T>(args, s, block, true);
  SHARED(Acc, memory, Planes<Acc>::kSize);
  SHARED(int64_t, rows, Planes<Acc>::kPixelPitch);
  SHARED(Acc, results, kGroup * kThreads);  // of the thread's own pixel
  if (s.kind == Kind::kSeparable && !s.part) {
    const Footprint footprint = Footprint::of(s, 2 * block.x0 - 5, 2 * block.y0 - 5);
    if (footprint.fits<Acc>()) return filter_separably<T>(args, s, block, footprint, memory);
  }
  const int side = s.part ? s.part : kPart<Acc>;
  UNROLL(1)
  for (int down = 0; down < kTile; down += side) UNROLL(1)
  for (int across = 0; across < kTile; across += side)
    filter_part<T>(args, records, across, down, side, memory, rows, results);
}

// The same by the plain filters. Reads 4 elements an output element, or 1; writes 1.
template <class T>
KERNEL_FOR(kThreads, 2)
resample_plainly(TABLE(Forward) args, const Record<Accumulation<T>>* records) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Block block = Block::of(r.out);
  const Record<Acc> s = Record<Acc>::of(r, records, block.sample);
  plain_tile<T>(args, s, block, r.filter == Filter::kNearest || s.kind == Kind::kCopy);
}

}  // namespace gankernels::affine_resample::cuda
