// The kernels of affine resampling's transpose. A block is a tile of 16 x 16 pixels of the image; a thread
// is a pixel. Where several outputs give to one place, they are added up as integers, in fixed point: the
// sum is the same in every order.
#pragma once

#include "affine_resample.cuh"

namespace gankernels::affine_resample::cuda {

// All points of the output's lattice, and all its pixels.
DEVICE Reach points_of(const Resample& r) {
  return {-5, 2 * width(r.out) + 4, -5, 2 * height(r.out) + 4};
}
DEVICE Reach pixels_of(const Resample& r) {
  return {0, width(r.out) - 1, 0, height(r.out) - 1};
}

// The cotangent of an output pixel before the epilogue, of the channel at a place.
template <class T>
DEVICE Accumulation<T> cotangent(const Transpose& args, const Cutout& cut, int sample, int place,
                                 int y, int x) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  if (x < 0 || y < 0 || x >= width(r.out) || y >= height(r.out) || cut.clears(x, y)) return 0;
  const Epilogue& e = r.epilogue;
  const T* pixel = static_cast<const T*>(args.grad) + offset_of(r.out, sample, 0, y, x);
  const auto at = [&](int p) {
    return static_cast<Acc>(widen(load(pixel + e.channel(p) * r.out.channel_stride)));
  };
  if (!e.matrix || place >= e.color_count) return at(place);
  Acc sum = 0;
  for (int i = 0; i < e.color_count; ++i) sum += color_at<Acc>(e, sample, i, place) * at(i);
  return sum;
}

template <class T>
DEVICE void put(const Transpose& args, const Block& block, int place, Accumulation<T> value) {
  const Resample& r = args.resample;
  if (block.x() >= width(r.in) || block.y() >= height(r.in)) return;
  store(static_cast<T*>(args.image) +
            offset_of(r.in, block.sample, r.epilogue.channel(place), block.y(), block.x()),
        narrow<T>(value));
}

template <class T>
DEVICE void put_nothing(const Transpose& args, const Block& block) {
  for (int place = 0; place < args.resample.channels; ++place)
    put<T>(args, block, place, not_a_number<Accumulation<T>>());
}

// --- sums in fixed point

// Bounds of a sum of |f[j]| over taps of one parity: what up-sampling makes of numbers of at most 1 along
// an axis; and of the weights of a Window.
constexpr double tap_sum(int first, int step) {
  double sum = 0;
  for (int j = first; j < kTaps; j += step) sum += kSymlet[j] < 0 ? -kSymlet[j] : kSymlet[j];
  return sum;
}
constexpr double kSpread = std::max(tap_sum(0, 2), tap_sum(1, 2));

// The largest of the block's numbers, for every thread; `odd` if one of them is so large that sums with
// it may not be finite, or is not.
template <class Acc>
struct Largest {
  Acc value;
  bool odd;

  // What is added up in fixed point is at least as large as this, lest its scale overflow: of smaller
  // numbers the last bits are lost.
  static constexpr Acc kLeast = sizeof(Acc) == 4 ? Acc(0x1p-90f) : Acc(0x1p-900);
  static constexpr Acc kMost = sizeof(Acc) == 4 ? Acc(0x1p120f) : Acc(0x1p1000);

  DEVICE static Largest none() { return {0, false}; }
  DEVICE void take(Acc x) {
    const Acc size = magnitude(x);
    if (!(size <= kMost))
      odd = true;
    else if (size > value)
      value = size;
  }
  DEVICE Largest of_block() const {
    const Acc most = block_max<kThreads>(odd ? std::numeric_limits<Acc>::infinity() : value);
    return {most, most > kMost};
  }
};

// What numbers are added up in, in fixed point.
template <class Acc>
using Sum = std::conditional_t<sizeof(Acc) == 4, int, int64_t>;

// Numbers of at most `largest`, of which sums of at most `count` fit Total.
template <class Acc, class Total>
struct Scale {
  Acc to, back;

  DEVICE static Scale of(Acc largest, Acc count) {
    constexpr Acc kRoom = sizeof(Total) == 4 ? Acc(0x1p29f) : Acc(0x1p62f);
    const Acc size = largest > Largest<Acc>::kLeast ? largest : Largest<Acc>::kLeast;
    return {kRoom / count / size, size * (count / kRoom)};
  }
  DEVICE Total fixed(Acc x) const { return static_cast<Total>(std::floor(x * to + Acc(0.5))); }
};

// --- by the lattice

// Nodes of a tile, and one more on either side: those of points next to it.
constexpr int kNodes = kPoints + 2, kSumPitch = 53;

// The planes of a channel, as those of the forward pass; where the half-made nodes were, the image's nodes
// are added up.
template <class Acc>
constexpr int kTransposed =
    Planes<Acc>::kHalf +
    std::max(Planes<Acc>::kPixelPitch * Planes<Acc>::kHalfPitch, kNodes* kSumPitch);
// Beside them, what tells which copies are reached, or a sweep's sums.
constexpr int kBeside = std::max(2 * kCopies * kCopies, kThreads + kThreads / 2);  // of int64_t

// A box's cotangents of a channel to the beginning of `memory`.
template <class T>
DEVICE Largest<Accumulation<T>> fetch_cotangents(const Transpose& args, const Cutout& cut,
                                                 const Box& box, const Lines& lines, int sample,
                                                 int place, SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  auto largest = Largest<Acc>::none();
  const int count = box.rows(), x = box.column() + lines.column;
  UNROLL(1)
  for (int row = lines.row; row < count; row += 4 * lines.step) {
    Acc value[4];
    UNROLL(4)
    for (int k = 0; k < 4; ++k) {
      const int own = row + k * lines.step;
      value[k] = own < count ? cotangent<T>(args, cut, sample, place, box.row() + own, x) : Acc(0);
    }
    UNROLL(4)
    for (int k = 0; k < 4; ++k) {
      const int own = row + k * lines.step;
      if (own >= count) continue;
      memory[own * Planes<Acc>::kPixelPitch + lines.column] = value[k];
      largest.take(value[k]);
    }
  }
  return largest;
}

// What a point of the lattice gives to the four nodes around it: `at` is the first, in `nodes`.
DEVICE void deposit(float x, const Scale<float, int>& scale, int64_t u, int64_t v, int at,
                    SharedArray<int> nodes) {
  // Shares of an integer, as integers: what one node does not get, the next one does.
  const auto part = [](int twice, int64_t position) {
    const auto share = static_cast<int>(LocalAxis<float>::fraction(position) >> 1);
    return static_cast<int>((int64_t{twice} * share) >> 32);
  };
  const auto twice = static_cast<int>(std::floor(x * (2 * scale.to) + 0.5f));
  const int below = part(twice, v), above = (twice >> 1) - below;
  const int right = part(2 * above, u), right_below = part(2 * below, u);
  atomic_add(nodes + at, above - right);
  atomic_add(nodes + (at + 1), right);
  atomic_add(nodes + (at + kSumPitch), below - right_below);
  atomic_add(nodes + (at + kSumPitch + 1), right_below);
}

DEVICE void deposit(double x, const Scale<double, int64_t>& scale, double u, double v, int at,
                    SharedArray<int64_t> nodes) {
  const double su = LocalAxis<double>::share(u), sv = LocalAxis<double>::share(v);
  const double below = sv * x, above = x - below;
  atomic_add(nodes + at, scale.fixed(above - su * above));
  atomic_add(nodes + (at + 1), scale.fixed(su * above));
  atomic_add(nodes + (at + kSumPitch), scale.fixed(below - su * below));
  atomic_add(nodes + (at + kSumPitch + 1), scale.fixed(su * below));
}

// A copy of the tile: its first pixel in the plane, and the node that the tile's nodes are counted from.
struct TileCopy {
  int x, y;
  DEVICE int u() const { return 2 * x - 6; }
  DEVICE int v() const { return 2 * y - 6; }
};

// What threads need to walk the points of a part of the lattice: made by one of them, in shared memory.
template <class Acc>
struct Walk {
  using Position = typename Axis<Acc>::Position;
  static constexpr int kSize = 6;

  // A barrier has to follow.
  DEVICE static void make(const Record<Acc>* record, const Reach& part, const TileCopy& copy,
                          SharedArray<Position> walk, SharedArray<int> share) {
    if (thread_id() != 0) return;
    const auto u = LocalAxis<Acc>::of(load(&record->u), part.low_x, part.low_y, copy.u());
    const auto v = LocalAxis<Acc>::of(load(&record->v), part.low_x, part.low_y, copy.v());
    walk[0] = u.base, walk[1] = u.a, walk[2] = u.b;
    walk[3] = v.base, walk[4] = v.a, walk[5] = v.b;
    share[0] = Lines::share_of(part.high_x - part.low_x + 1);
  }
};

// Calls f(S, u, v, at) for every point of a part of the lattice that reaches the tile's nodes.
template <class Acc, class F>
DEVICE void for_each_point(const Reach& part, const Box& box,
                           SharedArray<typename Walk<Acc>::Position> walk, SharedArray<int> share,
                           SharedArray<Acc> memory, F&& f) {
  using Position = typename Walk<Acc>::Position;
  const Lines lines = Lines::of(part.high_x - part.low_x + 1, share[0]);
  const int rows = part.high_y - part.low_y + 1;
  if (lines.row >= rows) return;
  Position u = walk[0] + walk[1] * lines.column + walk[2] * lines.row;
  Position v = walk[3] + walk[4] * lines.column + walk[5] * lines.row;
  const Position step_u = walk[2] * lines.step, step_v = walk[5] * lines.step;
  int from = (part.low_y + lines.row - box.v) * kNodePitch<Acc> + part.low_x + lines.column - box.u;
  UNROLL(2)
  for (int row = lines.row; row < rows; row += lines.step) {
    const int iu = LocalAxis<Acc>::whole(u), iv = LocalAxis<Acc>::whole(v);
    if (static_cast<uint32_t>(iu) < kNodes - 1 && static_cast<uint32_t>(iv) < kNodes - 1)
      f(static_cast<Acc>(memory[from]), u, v, iv * kSumPitch + iu);
    u += step_u, v += step_v, from += lines.step * kNodePitch<Acc>;
  }
}

// The thread's pixel of a tile's nodes: decimated. NaN where one of them is not finite. A barrier has to
// come before.
template <class Acc>
DEVICE Acc decimate_sums(SharedArray<Sum<Acc>> nodes, SharedArray<Acc> memory, int x, int y,
                         bool inside) {
  using P = Planes<Acc>;
  const int column = thread_id() % kTile;
  for (int row = thread_id() / kTile; row < kPoints; row += kTile) {
    const int from = (row + 1) * kSumPitch + 2 * column + 1;
    Acc sum = 0;
    UNROLL(12)
    for (int j = 0; j < kTaps; ++j) sum += symlet<Acc>(j) * static_cast<Acc>(nodes[from + j]);
    memory[row * P::kColumnPitch + column] = sum;
  }
  sync_threads();
  return inside ? decimate_column<Acc>(memory, 0, 2 * y, x) : Acc(0);
}

// Zeros where margins leave no nodes of the tile.
template <class Total>
DEVICE void limit_sums(const Resample& r, const TileCopy& copy, SharedArray<Total> nodes) {
  const Range bx = range_of(r, 0), by = range_of(r, 1);
  for (int k = thread_id(); k < kNodes * kNodes; k += kThreads) {
    const int row = k / kNodes, column = k - row * kNodes;
    if (!bx.has_node(copy.u() + column) || !by.has_node(copy.v() + row))
      nodes[row * kSumPitch + column] = 0;
  }
  sync_threads();
}

template <class Total>
DEVICE void clear_sums(SharedArray<Total> nodes) {
  for (int k = thread_id(); k < kNodes * kSumPitch; k += kThreads) nodes[k] = 0;
  sync_threads();
}

// Whether one of the nodes of a pixel is not finite, where `odd` cotangents may make such. Leaves the
// nodes zero.
template <class Acc>
DEVICE bool is_odd(const Resample& r, const Reach& part, const Box& box, const TileCopy& copy,
                   int x, int y, bool inside, SharedArray<typename Walk<Acc>::Position> walk,
                   SharedArray<int> share, SharedArray<Acc> memory, SharedArray<Sum<Acc>> nodes) {
  for_each_point<Acc>(part, box, walk, share, memory, [&](Acc point, auto, auto, int at) {
    if (magnitude(point) <= Largest<Acc>::kMost) return;
    atomic_add(nodes + at, 1);
    atomic_add(nodes + (at + 1), 1);
    atomic_add(nodes + (at + kSumPitch), 1);
    atomic_add(nodes + (at + kSumPitch + 1), 1);
  });
  sync_threads();
  if (r.margins) limit_sums<Sum<Acc>>(r, copy, nodes);
  bool odd = false;
  UNROLL(1)
  for (int k = 0; inside && k < kTaps * kTaps; ++k)
    odd |= nodes[(2 * y + 1 + k / kTaps) * kSumPitch + 2 * x + 1 + k % kTaps] != 0;
  sync_threads();
  clear_sums<Sum<Acc>>(nodes);
  return odd;
}

// What a pixel of a copy of the tile gets of a part of the lattice, in one channel: up-sampled, added to
// nodes, decimated.
template <class T>
DEVICE Accumulation<T> gather_part(const Transpose& args, const Record<Accumulation<T>>* record,
                                   const TileCopy& copy, const Reach& part, int x, int y,
                                   bool inside, int sample, int place,
                                   SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const auto nodes = shared_view<Sum<Acc>>(memory + Planes<Acc>::kHalf);
  const Box box = Box::around(part.low_x, part.high_x, part.low_y, part.high_y);
  const BoxLines lines = BoxLines::of(box);
  sync_threads();  // what was here before has been read
  SHARED(typename Walk<Acc>::Position, walk, Walk<Acc>::kSize);
  SHARED(int, share, 1);
  Walk<Acc>::make(record, part, copy, walk, share);
  const auto largest =
      fetch_cotangents<T>(args, load(&record->cut), box, lines.pixels, sample, place, memory)
          .of_block();
  if (largest.value == 0) return 0;  // the same for all threads
  upsample<1, Acc>(box, lines, memory);
  clear_sums<Sum<Acc>>(nodes);
  Acc own = 0;
  if (largest.odd && is_odd<Acc>(r, part, box, copy, x, y, inside, walk, share, memory, nodes))
    own = not_a_number<Acc>();
  const auto scale = Scale<Acc, Sum<Acc>>::of(
      largest.odd ? Largest<Acc>::kMost : largest.value * static_cast<Acc>(kSpread * kSpread),
      load(&record->reaching));
  // What is not finite has been dealt with; it gives nothing here.
  const Acc most = Largest<Acc>::kMost;
  for_each_point<Acc>(part, box, walk, share, memory, [&](Acc point, auto u, auto v, int at) {
    if (magnitude(point) <= most) deposit(point, scale, u, v, at, nodes);
  });
  sync_threads();
  if (r.margins) limit_sums<Sum<Acc>>(r, copy, nodes);
  return own + 4 * scale.back * decimate_sums<Acc>(nodes, memory, x, y, inside);
}

// The parts of a pixel that come by a copy of the tile, of every channel of a group, a box of the lattice
// at a time.
template <class T>
DEVICE void gather_copy(const Transpose& args, const Record<Accumulation<T>>* record,
                        const TileCopy& copy, const Reach& points, int x, int y, bool inside,
                        int sample, int place, SharedArray<Accumulation<T>> memory,
                        Accumulation<T>* value) {
  using Acc = Accumulation<T>;
  constexpr int kStep = kSide<Acc> - 8;  // a box may be higher by 8
  int low_x = points.low_x, low_y = points.low_y;
  while (low_y <= points.high_y) {
    const Reach part{low_x, least(low_x + kStep - 1, points.high_x), low_y,
                     least(low_y + kStep - 1, points.high_y)};
    UNROLL(1)
    for (int c = 0; c < group_size(args.resample, place); ++c) {
      const Acc own =
          gather_part<T>(args, record, copy, part, x, y, inside, sample, place + c, memory);
      UNROLL(4)
      for (int k = 0; k < kGroup; ++k) value[k] += k == c ? own : Acc(0);
    }
    low_x += kStep;
    if (low_x > points.high_x) low_x = points.low_x, low_y += kStep;
  }
}

// The block's pixels: the sum over all copies of its tile that the output's lattice reaches.
template <class T>
DEVICE void gather_tile(const Transpose& args, const Record<Accumulation<T>>* record,
                        const Block& block, SharedArray<Accumulation<T>> memory,
                        SharedArray<int> reached) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Record<Acc> s = load(record);
  const Range bx = range_of(r, 0), by = range_of(r, 1);
  const int across = s.across.count(), count = across * s.down.count();
  const int k = thread_id(), row = k / across;
  if (k < count) {
    const TileCopy copy{s.across.first_raw(s.across.first + k - row * across, block.x0),
                        s.down.first_raw(s.down.first + row, block.y0)};
    const Acc half = Acc(kNodes - 1) / 2;
    const Reach points = reach<Acc>(s, static_cast<Acc>(copy.u()) + half,
                                    static_cast<Acc>(copy.v()) + half, half, points_of(r));
    reached[4 * k] = points.low_x, reached[4 * k + 1] = points.high_x;
    reached[4 * k + 2] = points.low_y, reached[4 * k + 3] = points.high_y;
  }
  sync_threads();
  const int x = block.x(), y = block.y();
  for (int place = 0; place < r.channels; place += kGroup) {
    Acc value[kGroup] = {};
    UNROLL(1)
    for (int i = 0; i < count; ++i) {
      const Reach points{reached[4 * i], reached[4 * i + 1], reached[4 * i + 2],
                         reached[4 * i + 3]};
      if (points.empty()) continue;  // the same for all threads
      const int ky = s.down.first + i / across, kx = s.across.first + i % across;
      const TileCopy copy{s.across.first_raw(kx, block.x0), s.down.first_raw(ky, block.y0)};
      const int at_x = s.across.raw(kx, x), at_y = s.down.raw(ky, y);
      const bool inside = x < width(r.in) && y < height(r.in) && s.across.shows(kx, x) &&
                          s.down.shows(ky, y) && bx.has_pixel(at_x) && by.has_pixel(at_y);
      gather_copy<T>(args, record, copy, points, at_x - copy.x, at_y - copy.y, inside, block.sample,
                     place, memory, value);
    }
    UNROLL(4)
    for (int c = 0; c < kGroup; ++c)
      if (c < group_size(r, place)) put<T>(args, block, place + c, value[c]);
  }
}

// --- axis by axis

// The outputs that may take the tile which begins at this pixel.
template <class Acc>
DEVICE Reach outputs_of(const Resample& r, const Record<Acc>& s, const TileCopy& copy) {
  const Acc half = Acc(kNodes - 1) / 2;
  const Reach points = reach<Acc>(s, static_cast<Acc>(copy.u()) + half,
                                  static_cast<Acc>(copy.v()) + half, half, points_of(r));
  // Output i takes the points 2 i - 5 to 2 i + 6.
  const auto last = [](int high, int size) { return least((high + 5) >> 1, size - 1); };
  const auto first = [](int low) { return low < 5 ? 0 : (low - 5) >> 1; };
  if (points.empty()) return {0, -1, 0, -1};
  return {first(points.low_x), last(points.high_x, width(r.out)), first(points.low_y),
          last(points.high_y, height(r.out))};
}

// The planes of the separable transpose: weights along either axis, cotangents, lines of them; the taps;
// and the sums of the threads' own pixels.
template <class Acc>
struct AxesPlanes {
  static constexpr int kCotangents = 2 * kThreads, kLines = kCotangents + kTile * kPitch;
  static constexpr int kTable = kLines + kTile * kPitch, kSums = kTable + kPadded;
  static_assert(kSums + kGroup * kThreads <= kTransposed<Acc>);
};

// What a tile of outputs, from (ox, oy) on, gives to a copy of the tile, of a group's channels: the
// product of its cotangents with the weights along either axis. The pixel is at (x, y) of the copy.
template <class T>
DEVICE void gather_outputs(const Transpose& args, const Record<Accumulation<T>>* record,
                           const TileCopy& copy, int ox, int oy, int x, int y, bool inside,
                           int sample, int place, SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  using P = AxesPlanes<Acc>;
  const int column = thread_id() % kTile, row = thread_id() / kTile;
  const Record<Acc> s = load(record);
  const auto taps = shared_view<Acc>(memory + P::kTable);
  // Of pixel `column` and output `row`.
  const int hx = 2 * ox - 5, hy = 2 * oy - 5;
  const Acc weight_x = weight_of<Acc>(s, taps, 0, hx, hy, row, copy.x + column);
  const Acc weight_y = weight_of<Acc>(s, taps, 1, hx, hy, row, copy.y + column);
  sync_threads();  // the tile before has taken its weights
  memory[thread_id()] = weight_x;
  memory[kThreads + thread_id()] = weight_y;
  UNROLL(1)
  for (int c = 0; c < group_size(args.resample, place); ++c) {
    memory[P::kCotangents + (s.swapped ? column * kPitch + row : row * kPitch + column)] =
        cotangent<T>(args, s.cut, sample, place + c, oy + row, ox + column);
    sync_threads();
    Acc line = 0;
    UNROLL(4)
    for (int i = 0; i < kTile; ++i)
      line += memory[i * kTile + column] * memory[P::kCotangents + row * kPitch + i];
    memory[P::kLines + row * kPitch + column] = line;
    sync_threads();
    if (!inside) continue;
    const int own = P::kSums + c * kThreads + thread_id();
    Acc sum = memory[own];
    UNROLL(4)
    for (int i = 0; i < kTile; ++i)
      sum += memory[kThreads + i * kTile + y] * memory[P::kLines + i * kPitch + x];
    memory[own] = sum;
  }
}

// The tile where the map takes axes to axes: of every copy of it, a tile of outputs at a time.
template <class T>
DEVICE void gather_along_axes(const Transpose& args, const Record<Accumulation<T>>* record,
                              const Block& block, SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  using P = AxesPlanes<Acc>;
  const Resample& r = args.resample;
  const int x = block.x(), y = block.y();
  fill_taps<Acc>(shared_view<Acc>(memory + P::kTable));
  sync_threads();
  UNROLL(1)
  for (int place = 0; place < r.channels; place += kGroup) {
    for (int c = 0; c < kGroup; ++c) memory[P::kSums + c * kThreads + thread_id()] = 0;
    const int across = load(&record->across).count();
    const int copies = across * load(&record->down).count();
    UNROLL(1)
    for (int i = 0; i < copies; ++i) {
      // The record is read again: kept, it would cost registers.
      const Record<Acc> s = load(record);
      const int ky = s.down.first + i / across, kx = s.across.first + i % across;
      const TileCopy copy{s.across.first_raw(kx, block.x0), s.down.first_raw(ky, block.y0)};
      const Reach near = outputs_of<Acc>(r, s, copy);
      const int at_x = s.across.raw(kx, x) - copy.x, at_y = s.down.raw(ky, y) - copy.y;
      const bool inside =
          x < width(r.in) && y < height(r.in) && s.across.shows(kx, x) && s.down.shows(ky, y);
      int ox = near.low_x, oy = near.low_y;
      while (ox <= near.high_x && oy <= near.high_y) {
        gather_outputs<T>(args, record, copy, ox, oy, at_x, at_y, inside, block.sample, place,
                          memory);
        ox += kTile;
        if (ox > near.high_x) ox = near.low_x, oy += kTile;
      }
    }
    for (int c = 0; c < group_size(r, place); ++c)
      put<T>(args, block, place + c, memory[P::kSums + c * kThreads + thread_id()]);
  }
}

// --- copies and the plain filters

// The thread's pixel where whole pixels were moved: each place that shows it has one output pixel.
template <class T>
DEVICE void gather_moved(const Transpose& args, const Record<Accumulation<T>>& s,
                         const Block& block) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  // The map is its own inverse but for the order of its axes: each step is 1, -1 or 0.
  const auto u0 = s.u.at(0, 0), v0 = s.v.at(0, 0);
  const int c = s.u.nearest(u0), f = s.v.nearest(v0);
  const int a = s.u.nearest(s.u.at(2, 0)) - c, b = s.u.nearest(s.u.at(0, 2)) - c;
  const int d = s.v.nearest(s.v.at(2, 0)) - f, e = s.v.nearest(s.v.at(0, 2)) - f;
  const int x = block.x(), y = block.y();
  for (int place = 0; place < r.channels; place += kGroup) {
    Acc value[kGroup] = {};
    for (int ky = s.down.first; ky <= s.down.last; ++ky)
      for (int kx = s.across.first; kx <= s.across.last; ++kx) {
        if (!s.across.shows(kx, x) || !s.down.shows(ky, y)) continue;
        const int u = s.across.raw(kx, x) - c, v = s.down.raw(ky, y) - f;
        UNROLL(4)
        for (int k = 0; k < kGroup; ++k)
          if (k < group_size(r, place))
            value[k] +=
                cotangent<T>(args, s.cut, block.sample, place + k, b * u + e * v, a * u + d * v);
      }
    UNROLL(4)
    for (int k = 0; k < kGroup; ++k)
      if (k < group_size(r, place)) put<T>(args, block, place + k, value[k]);
  }
}

// The thread's pixel by a plain filter: of every copy of it, the outputs that may take it there.
template <class T>
DEVICE void gather_near(const Transpose& args, const Record<Accumulation<T>>& s,
                        const Block& block) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const bool nearest = r.filter == Filter::kNearest;
  const int x = block.x(), y = block.y();
  if (x >= width(r.in) || y >= height(r.in)) return;
  const Reach all = pixels_of(r);
  const Reach points{2 * all.low_x, 2 * all.high_x, 2 * all.low_y, 2 * all.high_y};
  for (int place = 0; place < r.channels; place += kGroup) {
    Acc value[kGroup] = {};
    UNROLL(1)
    for (int ky = s.down.first; ky <= s.down.last; ++ky) UNROLL(1)
    for (int kx = s.across.first; kx <= s.across.last; ++kx) {
      if (!s.across.shows(kx, x) || !s.down.shows(ky, y)) continue;
      const int at_x = s.across.raw(kx, x), at_y = s.down.raw(ky, y);
      const Reach near =
          reach<Acc>(s, static_cast<Acc>(2 * at_x), static_cast<Acc>(2 * at_y), Acc(2), points);
      UNROLL(1)
      for (int oy = (near.low_y + 1) >> 1; oy <= near.high_y >> 1; ++oy) UNROLL(1)
      for (int ox = (near.low_x + 1) >> 1; ox <= near.high_x >> 1; ++ox) {
        const auto taps = Taps<Acc>::of(s, nearest, ox, oy);
        const int i = at_x - taps.column, j = at_y - taps.row;
        const int last = nearest ? 0 : 1;
        if (i < 0 || j < 0 || i > last || j > last) continue;
        const Acc weight = taps.weight(2 * j + i);
        UNROLL(4)
        for (int k = 0; k < kGroup; ++k)
          if (k < group_size(r, place))
            value[k] += weight * cotangent<T>(args, s.cut, block.sample, place + k, oy, ox);
      }
    }
    UNROLL(4)
    for (int k = 0; k < kGroup; ++k)
      if (k < group_size(r, place)) put<T>(args, block, place + k, value[k]);
  }
}

// --- all outputs

// The pixels that take what is given to them by any output: where the map has no usable inverse, or shows
// the image very often, or many positions to its border. Every block looks at the whole output, and adds
// what is its own.
template <class Acc>
struct Sweep {
  SharedArray<int64_t> sums;  // of the tile's pixels
  SharedArray<int> odd;       // whether something that is not finite came
  Block block;
  int width, height;  // of the image
  Scale<Acc, int64_t> scale;

  // The place of a pixel of the image, or -1 if it is another tile's, or none.
  DEVICE int place(int x, int y) const {
    const int i = x - block.x0, j = y - block.y0;
    return i < 0 || j < 0 || i >= kTile || j >= kTile ? -1 : j * kTile + i;
  }
  DEVICE void clear() const {
    sync_threads();
    sums[thread_id()] = 0;
    odd[thread_id()] = 0;
    sync_threads();
  }
  DEVICE void add(int place, Acc x) const {
    if (magnitude(x) <= Largest<Acc>::kMost)
      atomic_add(sums + place, scale.fixed(x));
    else
      atomic_or(odd + place, 1);
  }
  DEVICE Acc result() const {
    sync_threads();
    if (odd[thread_id()]) return not_a_number<Acc>();
    return static_cast<Acc>(sums[thread_id()]) * scale.back;
  }
};

// The largest cotangent of a channel; of numbers that are not finite, those do not count.
template <class T>
DEVICE Accumulation<T> largest_of(const Transpose& args, const Cutout& cut, int sample, int place) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  auto largest = Largest<Acc>::none();
  for (int y = 0; y < height(r.out); ++y)
    for (int x = thread_id(); x < width(r.out); x += kThreads)
      largest.take(cotangent<T>(args, cut, sample, place, y, x));
  largest.odd = false;
  return largest.of_block().value;
}

// By a plain filter, or copied.
template <class T>
DEVICE void sweep_pixels(const Transpose& args, const Record<Accumulation<T>>& s, int place,
                         const Sweep<Accumulation<T>>& sweep) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const bool nearest = r.filter == Filter::kNearest || s.kind == Kind::kCopy;
  for (int y = 0; y < height(r.out); ++y)
    for (int x = thread_id(); x < width(r.out); x += kThreads) {
      const auto taps = Taps<Acc>::of(s, nearest, x, y);
      UNROLL(1)
      for (int k = 0; k < taps.count(); ++k) {
        const int to = sweep.place(padded(taps.x(k), sweep.width, r.padding),
                                   padded(taps.y(k), sweep.height, r.padding));
        if (to >= 0)
          sweep.add(to,
                    taps.weight(k) * cotangent<T>(args, s.cut, sweep.block.sample, place, y, x));
      }
    }
}

// By the lattice, a box of it at a time: every point gives to its 49 pixels.
template <class T>
DEVICE void sweep_lattice(const Transpose& args, const Record<Accumulation<T>>& s, int place,
                          const Sweep<Accumulation<T>>& sweep,
                          SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Range bx = range_of(r, 0), by = range_of(r, 1);
  const Reach all = points_of(r);
  constexpr int kStep = kSide<Acc> - 8;
  UNROLL(1)
  for (int low_y = all.low_y; low_y <= all.high_y; low_y += kStep) UNROLL(1)
  for (int low_x = all.low_x; low_x <= all.high_x; low_x += kStep) {
    const Box box = Box::around(low_x, least(low_x + kStep - 1, all.high_x), low_y,
                                least(low_y + kStep - 1, all.high_y));
    const BoxLines lines = BoxLines::of(box);
    fetch_cotangents<T>(args, s.cut, box, lines.pixels, sweep.block.sample, place, memory);
    sync_threads();
    upsample<1, Acc>(box, lines, memory);
    const int hx = box.u + lines.nodes.column;
    const int high_x = least(low_x + kStep - 1, all.high_x);
    const int high_y = least(low_y + kStep - 1, all.high_y);
    UNROLL(1)
    for (int row = lines.nodes.row; row < box.height; row += lines.nodes.step) {
      const int hy = box.v + row;
      if (hx < low_x || hx > high_x || hy < low_y || hy > high_y) continue;
      const Acc point = memory[row * kNodePitch<Acc> + lines.nodes.column];
      const auto wx = Window<Acc>::of(s.u.node(s.u.at(hx, hy)), bx);
      const auto wy = Window<Acc>::of(s.v.node(s.v.at(hx, hy)), by);
      UNROLL(1)
      for (int j = 0; j < 7; ++j) {
        const int y = reflected(wy.first + j, sweep.height);
        if (y < sweep.block.y0 || y >= sweep.block.y0 + kTile) continue;
        UNROLL(1)
        for (int i = 0; i < 7; ++i) {
          const int to = sweep.place(reflected(wx.first + i, sweep.width), y);
          const Acc weight = wx.weight(i) * wy.weight(j);
          if (to >= 0 && weight != 0) sweep.add(to, weight * point);
        }
      }
    }
    sync_threads();
  }
}

template <class T, bool kLattice>
DEVICE void gather_all(const Transpose& args, const Record<Accumulation<T>>& s, const Block& block,
                       SharedArray<Accumulation<T>> memory, SharedArray<int64_t> beside) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Reach all = points_of(r);
  // What a pixel is given at most: by every point, and by a point to each of its pixels.
  const Acc count = static_cast<Acc>(all.high_x - all.low_x + 1) *
                    static_cast<Acc>(all.high_y - all.low_y + 1) *
                    static_cast<Acc>(4 * kSpread * kSpread * kSpread * kSpread);
  for (int place = 0; place < r.channels; ++place) {
    const Acc largest = largest_of<T>(args, s.cut, block.sample, place);
    const Sweep<Acc> sweep{beside,       shared_view<int>(beside + kThreads),    block, width(r.in),
                           height(r.in), Scale<Acc, int64_t>::of(largest, count)};
    sweep.clear();
    if constexpr (kLattice)
      sweep_lattice<T>(args, s, place, sweep, memory);
    else
      sweep_pixels<T>(args, s, place, sweep);
    put<T>(args, block, place, sweep.result());
  }
}

// --- kernels

// grad_image = R^T epilogue^T grad, of the filter. A block is a tile of the image. Reads what the tile's
// copies are reached from, at unit scale some 4 elements an element, most of them from cache; writes 1.
template <class T>
KERNEL_FOR(kThreads, kBlocksOf<T>)
gather(TABLE(Transpose) args, const Record<Accumulation<T>>* records) {
  using Acc = Accumulation<T>;
  const Block block = Block::of(args.resample.in);
  const Record<Acc> s = load(records + block.sample);
  if (!s.usable) return put_nothing<T>(args, block);
  if (s.kind == Kind::kCopy && s.invertible) return gather_moved<T>(args, s, block);
  SHARED(Acc, memory, kTransposed<Acc>);
  SHARED(int64_t, beside, kBeside);
  if (!s.invertible && s.kind == Kind::kCopy)
    return gather_all<T, false>(args, s, block, memory, beside);
  if (!s.invertible) return gather_all<T, true>(args, s, block, memory, beside);
  if (s.kind == Kind::kSeparable)
    return gather_along_axes<T>(args, records + block.sample, block, memory);
  gather_tile<T>(args, records + block.sample, block, memory, shared_view<int>(beside + 0));
}

// The same of the plain filters.
template <class T>
KERNEL_FOR(kThreads, 2)
gather_plainly(TABLE(Transpose) args, const Record<Accumulation<T>>* records) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Block block = Block::of(r.in);
  const Record<Acc> s = load(records + block.sample);
  if (!s.usable) return put_nothing<T>(args, block);
  const bool edge = block.x0 == 0 || block.y0 == 0 || block.x0 + kTile >= width(r.in) ||
                    block.y0 + kTile >= height(r.in);
  SHARED(int64_t, beside, kBeside);
  if (!s.invertible || (edge && r.padding == Padding::kBorder))
    return gather_all<T, false>(args, s, block, shared_view<Acc>(beside + 0), beside);
  if (s.kind == Kind::kCopy) return gather_moved<T>(args, s, block);
  gather_near<T>(args, s, block);
}

}  // namespace gankernels::affine_resample::cuda
