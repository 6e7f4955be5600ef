// Affine resampling's transpose by the filter: a box of the output's lattice at a time, whose points give to
// the nodes of the block's tile. gather_tile, at the end, is what the kernel calls.
#pragma once

#include "affine_resample_cotangent.cuh"

namespace gankernels::affine_resample::cuda {

// A tile of the image: a thread has a pixel of every kStep-th row. Of nodes, those that its pixels take, and
// one more on either side: those of points next to it.
template <class Acc>
struct Tile {
  static constexpr int kWidth = sizeof(Acc) == 4 ? 2 * kTile : kTile, kHeight = kTile;
  static constexpr int kPixels = kWidth * kHeight / kThreads, kStep = kHeight / kPixels;
  static constexpr int kAcross = 2 * kWidth + 12, kDown = 2 * kHeight + 12;
  static constexpr int kPitch = kWidth == kTile ? 53 : 85;  // of sums: rows are 21 banks apart

  DEVICE static int x() { return thread_id() % kWidth; }
  DEVICE static int y() { return thread_id() / kWidth; }
};

// The planes of a channel: pixels of the output and what they are up-sampled to along rows; the sums of the
// image's nodes, and in the place of the half-made points what decimating the nodes' columns leaves. A
// lattice's points are in no plane: a thread gives each of them to its nodes as it is made.
template <class Acc>
struct TransposePlanes {
  static constexpr int kSide = sizeof(Acc) == 4 ? 96 : 56;  // of a box of the lattice
  static constexpr int kPixelPitch = kSide / 2 + 5;
  static constexpr int kHalfPitch = kSide + 4;                  // rows are 4 banks apart
  static constexpr int kRowPitch = 2 * Tile<Acc>::kWidth + 12;  // even, for loads of two
  static constexpr int kHalf = (kPixelPitch * kPixelPitch + 3) / 4 * 4;
  static constexpr int kSums = kHalf + kPixelPitch * kHalfPitch;
  static constexpr int kSize = kSums + (Tile<Acc>::kDown * Tile<Acc>::kPitch + 3) / 4 * 4;
  static_assert(kSums - kHalf >= Tile<Acc>::kHeight * kRowPitch);
};

// Takes a box's cotangents to the beginning of `memory`, a channel at a time. The thread has a column of them,
// from `row` on, which is row `top` of the output; where `height` is 0, the column is none of the output.
template <class T>
struct Cotangents {
  using Acc = Accumulation<T>;
  static constexpr int kPitch = TransposePlanes<Acc>::kPixelPitch;
  int row, step, top, to;
  uint32_t height;
  const char* from;  // the first pixel in the first channel
  int64_t step_bytes;

  DEVICE static Cotangents of(const Resample& r, const T* grad, int sample, const Box& box,
                              const Lines& lines) {
    const int x = box.column() + lines.column, row = least(lines.row, box.rows());
    const int y = box.row() + row;
    const bool column = x >= 0 && x < width(r.out);
    return {row,
            lines.step,
            y,
            row * kPitch + lines.column,
            column ? static_cast<uint32_t>(r.out.height) : 0,
            reinterpret_cast<const char*>(grad + offset_of(r.out, sample, 0, y, x)),
            lines.step * r.out.row_stride * static_cast<int64_t>(sizeof(T))};
  }

  // Returns the largest size of the thread's.
  DEVICE int fetch(const Transpose& args, const Box& box, const Cutout& cut, int sample, int place,
                   int64_t channel_bytes, SharedArray<Acc> memory) const {
    const Epilogue& e = args.resample.epilogue;
    const bool mixed = e.matrix && place < e.color_count;
    const char* p = from + channel_bytes;
    return mixed || cut.x0 < cut.x1 ? fetch_as<false>(args, box, cut, sample, place, p, memory)
                                    : fetch_as<true>(args, box, cut, sample, place, p, memory);
  }
  DEVICE static int64_t bytes_of(const Resample& r, int place) {
    return r.epilogue.channel(place) * r.out.channel_stride * static_cast<int64_t>(sizeof(T));
  }

 private:
  // kPlain: without a cutout, or colors.
  template <bool kPlain>
  DEVICE int fetch_as(const Transpose& args, const Box& box, const Cutout& cut, int sample,
                      int place, const char* p, SharedArray<Acc> memory) const {
    const int rows = box.rows(), x = box.column() + to - row * kPitch;
    int largest = 0, own = row, at = to, y = top;
    const auto take = [&](auto count) {
      Acc value[count];
      UNROLL(4)
      for (int k = 0; k < count; ++k) {
        value[k] = 0;
        if (static_cast<uint32_t>(y) < height) {
          if constexpr (kPlain)
            value[k] = widen(load(reinterpret_cast<const T*>(p)));
          else
            value[k] = cotangent<T>(args, cut, sample, place, y, x);
        }
        y += step, p += step_bytes;
      }
      UNROLL(4)
      for (int k = 0; k < count; ++k, at += step * kPitch) {
        memory[at] = value[k];
        largest = most(largest, Size<Acc>::of(value[k]));
      }
      own += count * step;
    };
    UNROLL(1)
    while (own + 3 * step < rows) take(std::integral_constant<int, 4>());
    UNROLL(1)
    while (own < rows) take(std::integral_constant<int, 1>());
    return largest;
  }
};

// What a point of the lattice gives to the four nodes around it: `at` is the first, in `nodes`.
DEVICE void deposit(float x, const Scale<float, int>& scale, int64_t u, int64_t v, int at,
                    SharedArray<int> nodes) {
  // Shares of an integer, as integers: what one node does not get, the next one does. Twice a number by
  // half a share.
  const auto half = [](int64_t position) {
    return static_cast<int>(LocalAxis<float>::fraction(position) >> 1);
  };
  const int twice = rounded(x * (2 * scale.to));
  const int below = multiply_high(twice, half(v)), above = twice - 2 * below;
  const int right = multiply_high(above, half(u)), right_below = multiply_high(2 * below, half(u));
  atomic_add(nodes + at, (above >> 1) - right);
  atomic_add(nodes + (at + 1), right);
  atomic_add(nodes + (at + Tile<float>::kPitch), below - right_below);
  atomic_add(nodes + (at + Tile<float>::kPitch + 1), right_below);
}

DEVICE void deposit(double x, const Scale<double, int64_t>& scale, double u, double v, int at,
                    SharedArray<int64_t> nodes) {
  const double su = LocalAxis<double>::share(u), sv = LocalAxis<double>::share(v);
  const double below = sv * x, above = x - below;
  atomic_add(nodes + at, scale.fixed(above - su * above));
  atomic_add(nodes + (at + 1), scale.fixed(su * above));
  atomic_add(nodes + (at + Tile<double>::kPitch), scale.fixed(below - su * below));
  atomic_add(nodes + (at + Tile<double>::kPitch + 1), scale.fixed(su * below));
}

// A copy of the tile: its first pixel in the plane, and the node that the tile's nodes are counted from.
struct TileCopy {
  int x, y;
  DEVICE int u() const { return 2 * x - 6; }
  DEVICE int v() const { return 2 * y - 6; }
};

// A thread's points of a box of the lattice: eight of a column at a time. u and v are those of the first
// one and of the last, which move by `next` from one time to the next.
template <class Acc>
struct Points8 {
  using Position = typename Axis<Acc>::Position;
  Lines lines;
  Position u, v, last_u, last_v, next_u, next_v, b, e;
  int groups, from, next;

  DEVICE static Points8 of(const Frame<Acc>& frame) {
    using P = TransposePlanes<Acc>;
    const Lines lines = Lines::of(frame.box.width, frame.shares.nodes);
    const int row = 8 * least(lines.row, kThreads);
    const Position u = frame.u.base + frame.u.a * lines.column + frame.u.b * row;
    const Position v = frame.v.base + frame.v.a * lines.column + frame.v.b * row;
    return {lines,
            u,
            v,
            u + 7 * frame.u.b,
            v + 7 * frame.v.b,
            frame.u.b * (8 * lines.step),
            frame.v.b * (8 * lines.step),
            frame.u.b,
            frame.v.b,
            frame.box.height / 8,
            P::kHalf + row / 2 * P::kHalfPitch + lines.column,
            4 * lines.step * P::kHalfPitch};
  }

  // Calls f(S, u, v, at) for those that reach the tile's nodes. Those beyond the lattice are 0.
  template <class F>
  DEVICE void for_each(SharedArray<Acc> memory, F&& f) const {
    constexpr int kMost_u = Tile<Acc>::kAcross - 1, kMost_v = Tile<Acc>::kDown - 1;
    const auto whole = [](Position u) { return LocalAxis<Acc>::whole(u); };
    Position first_u = u, first_v = v, end_u = last_u, end_v = last_v;
    int own = from;
    UNROLL(1)
    for (int group = lines.row; group < groups; group += lines.step, first_u += next_u,
             first_v += next_v, end_u += next_u, end_v += next_v, own += next) {
      Position pu = first_u, pv = first_v;
      const int iu = whole(pu), iv = whole(pv), ju = whole(end_u), jv = whole(end_v);
      // None lies in the tile if both ends lie on one side of it.
      if (((iu & ju) | (iv & jv)) < 0 || least(iu, ju) >= kMost_u || least(iv, jv) >= kMost_v)
        continue;
      Acc point[8];
      upsample_column<1, TransposePlanes<Acc>>(memory, own, point);
      UNROLL(8)
      for (int n = 0; n < 8; ++n) {
        const int at_u = whole(pu), at_v = whole(pv);
        if (static_cast<uint32_t>(at_u) < kMost_u && static_cast<uint32_t>(at_v) < kMost_v)
          f(point[n], pu, pv, at_v * Tile<Acc>::kPitch + at_u);
        pu += b, pv += e;
      }
    }
  }
};

// The first half of decimation: of the columns of a tile's nodes. Eight pixels a thread.
template <class Acc>
DEVICE void decimate_columns(SharedArray<Sum<Acc>> nodes, SharedArray<Acc> memory) {
  using P = TransposePlanes<Acc>;
  constexpr int kEach = 8, kColumns = Tile<Acc>::kAcross - 2;
  static_assert(kColumns * Tile<Acc>::kHeight / kEach <= kThreads);
  const int part = thread_id() / kColumns, column = thread_id() - part * kColumns;
  if (part >= Tile<Acc>::kHeight / kEach) return;
  const int from = (2 * kEach * part + 1) * Tile<Acc>::kPitch + column + 1;
  Acc node[2 * kEach + 10], sum[kEach];
  UNROLL(26)
  for (int n = 0; n < 2 * kEach + 10; ++n)
    node[n] = static_cast<Acc>(nodes[from + n * Tile<Acc>::kPitch]);
  decimated<kEach>(node, sum);
  const int to = P::kHalf + kEach * part * P::kRowPitch + column;
  UNROLL(8)
  for (int k = 0; k < kEach; ++k) memory[to + k * P::kRowPitch] = sum[k];
}

// The second half: a pixel of the tile.
template <class Acc>
DEVICE Acc decimate_row(SharedArray<Acc> memory, int x, int y) {
  using P = TransposePlanes<Acc>;
  Acc sum = 0;
  UNROLL(6)
  for (int j = 0; j < kTaps; j += 2) {
    const auto two = shared_load<2>(memory + (P::kHalf + y * P::kRowPitch + 2 * x + j));
    sum += symlet<Acc>(j) * two.at[0];
    sum += symlet<Acc>(j + 1) * two.at[1];
  }
  return sum;
}

// Zeros where margins leave no nodes of the tile.
template <class Acc>
DEVICE void limit_sums(const Resample& r, const TileCopy& copy, SharedArray<Sum<Acc>> nodes) {
  constexpr int kAcross = Tile<Acc>::kAcross;
  const Range bx = range_of(r, 0), by = range_of(r, 1);
  for (int k = thread_id(); k < kAcross * Tile<Acc>::kDown; k += kThreads) {
    const int row = k / kAcross, column = k - row * kAcross;
    if (!bx.has_node(copy.u() + column) || !by.has_node(copy.v() + row))
      nodes[row * Tile<Acc>::kPitch + column] = 0;
  }
  sync_threads();
}

template <class Acc>
DEVICE void clear_sums(SharedArray<Sum<Acc>> nodes) {
  using P = TransposePlanes<Acc>;
  constexpr int kEach = 16 / sizeof(Acc), kCount = (P::kSize - P::kSums) / kEach;
  UNROLL(5)
  for (int k = 0; k < kCount; k += kThreads)
    if (k + thread_id() < kCount)
      shared_store(nodes + kEach * (k + thread_id()), Vector<Sum<Acc>, kEach>{});
}

// In the place of the thread's cotangents that are so large that sums with them may not be finite, or are not,
// a number. Returns the largest size of the others.
template <class Acc>
DEVICE int replace_odd(const Box& box, const Lines& pixels, Acc by, SharedArray<Acc> memory) {
  int largest = 0;
  UNROLL(1)
  for (int row = pixels.row; row < box.rows(); row += pixels.step) {
    const int at = row * TransposePlanes<Acc>::kPixelPitch + pixels.column;
    const int size = Size<Acc>::of(memory[at]);
    if (size > Size<Acc>::kMost)
      memory[at] = by;
    else
      largest = most(largest, size);
  }
  return largest;
}

// The thread's pixels in a copy of the tile, and which of them it shows, by their bits.
template <class Acc>
struct OwnPixels {
  int x, y[Tile<Acc>::kPixels];
  uint32_t shown;

  DEVICE static OwnPixels of(const Resample& r, const Record<Acc>& s, const Block& block, int kx,
                             int ky, const TileCopy& copy) {
    const Range bx = range_of(r, 0), by = range_of(r, 1);
    const int x = block.x0 + Tile<Acc>::x(), at_x = s.across.raw(kx, x);
    const bool column = x < width(r.in) && s.across.shows(kx, x) && bx.has_pixel(at_x);
    OwnPixels own{at_x - copy.x, {}, 0};
    UNROLL(2)
    for (int p = 0; p < Tile<Acc>::kPixels; ++p) {
      const int y = block.y0 + Tile<Acc>::y() + p * Tile<Acc>::kStep, at_y = s.down.raw(ky, y);
      own.y[p] = at_y - copy.y;
      if (column && y < height(r.in) && s.down.shows(ky, y) && by.has_pixel(at_y))
        own.shown |= 1u << p;
    }
    return own;
  }
};

// Which of the thread's pixels take an odd cotangent, by their bits. Leaves zeros in the place of those, and
// clears the sums; `largest` becomes the size of the largest other one. A barrier comes last.
template <class Acc>
DEVICE uint32_t take_odd(const Resample& r, const Frame<Acc>& frame, const Points8<Acc>& points,
                         const TileCopy& copy, const OwnPixels<Acc>& own, SharedArray<Acc> memory,
                         SharedArray<Sum<Acc>> nodes, int* largest) {
  using P = TransposePlanes<Acc>;
  const Lines pixels = Lines::of(frame.box.columns(), frame.shares.pixels);
  constexpr int kPitch = Tile<Acc>::kPitch;
  replace_odd<Acc>(frame.box, pixels, not_a_number<Acc>(), memory);
  sync_threads();
  upsample_rows<1, P>(frame.box, frame.shares, memory, P::kHalf);
  sync_threads();
  points.for_each(memory, [&](Acc point, auto, auto, int at) {
    if (point == point) return;
    atomic_add(nodes + at, 1);
    atomic_add(nodes + (at + 1), 1);
    atomic_add(nodes + (at + kPitch), 1);
    atomic_add(nodes + (at + kPitch + 1), 1);
  });
  sync_threads();
  if (r.margins) limit_sums<Acc>(r, copy, nodes);
  uint32_t odd = 0;
  UNROLL(2)
  for (int p = 0; p < Tile<Acc>::kPixels; ++p) UNROLL(1)
  for (int k = 0; k < kTaps * kTaps; ++k)
    if (nodes[(2 * own.y[p] + 1 + k / kTaps) * kPitch + 2 * own.x + 1 + k % kTaps] != 0)
      odd |= 1u << p;
  sync_threads();
  clear_sums<Acc>(nodes);
  *largest = block_max<kThreads>(replace_odd<Acc>(frame.box, pixels, 0, memory));
  return odd;
}

// The results of the thread's pixels, in the channels of a group.
template <class Acc>
struct Results {
  Acc at[Tile<Acc>::kPixels][kGroup];
};

// Adds to the thread's results what a copy of the tile gets of a box of the lattice: up-sampled, added to
// nodes, decimated.
template <class T>
DEVICE void gather_box(const Transpose& args, const Record<Accumulation<T>>* record, const Box& box,
                       const OwnPixels<Accumulation<T>>& own, int place, SharedArray<TileCopy> copy,
                       SharedArray<Accumulation<T>> memory, Results<Accumulation<T>>* results) {
  using Acc = Accumulation<T>;
  using P = TransposePlanes<Acc>;
  SHARED(Frame<Acc>, frame, 1);
  SHARED(int, largest, kGroup);
  SHARED(int64_t, channel_bytes, kGroup);
  const Resample& r = args.resample;
  const auto nodes = shared_view<Sum<Acc>>(memory + P::kSums);
  sync_threads();  // the box before has been gathered
  if (thread_id() == 0) {
    const TileCopy at = copy[0];
    frame[0] = {box, Shares::of(box.width),
                LocalAxis<Acc>::of(load(&record->u), box.u, box.v, at.u()),
                LocalAxis<Acc>::of(load(&record->v), box.u, box.v, at.v())};
  }
  if (thread_id() < kGroup) {
    largest[thread_id()] = 0;
    channel_bytes[thread_id()] =
        Cotangents<T>::bytes_of(r, least(place + thread_id(), static_cast<int>(r.channels) - 1));
  }
  sync_threads();
  const auto cotangents = [&] {
    const Frame<Acc> f = frame[0];
    return Cotangents<T>::of(r, static_cast<const T*>(args.grad), Block::again().sample, f.box,
                             Lines::of(f.box.columns(), f.shares.pixels));
  }();
  const auto points = Points8<Acc>::of(frame[0]);
  const Acc reaching = load(&record->reaching) * static_cast<Acc>(kSpread * kSpread);
  const int group = group_size(r, place);
  UNROLL(1)
  for (int c = 0; c < group; ++c) {
    const Frame<Acc> f = frame[0];  // read again: kept, it would cost registers
    int top = cotangents.fetch(args, f.box, load(&record->cut), Block::again().sample, place + c,
                               channel_bytes[c], memory);
    clear_sums<Acc>(nodes);
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) top = most(top, shuffle_xor(top, lanes));
    if (thread_id() % kWarp == 0) atomic_max(largest + c, top);
    sync_threads();
    top = largest[c];
    if (top == 0) continue;  // the same for all threads
    uint32_t odd = 0;
    if (top > Size<Acc>::kMost)
      odd = take_odd<Acc>(r, f, points, copy[0], own, memory, nodes, &top);
    upsample_rows<1, P>(f.box, f.shares, memory, P::kHalf);
    sync_threads();
    const auto scale = Scale<Acc, Sum<Acc>>::of(top, reaching);
    points.for_each(
        memory, [&](Acc point, auto u, auto v, int at) { deposit(point, scale, u, v, at, nodes); });
    sync_threads();
    if (r.margins) limit_sums<Acc>(r, copy[0], nodes);
    decimate_columns<Acc>(nodes, memory);
    sync_threads();
    UNROLL(2)
    for (int p = 0; p < Tile<Acc>::kPixels; ++p) {
      if ((own.shown >> p & 1) == 0) continue;
      Acc value = 4 * scale.back * decimate_row<Acc>(memory, own.x, own.y[p]);
      if (odd >> p & 1) value = not_a_number<Acc>();
      UNROLL(4)
      for (int k = 0; k < kGroup; ++k) results->at[p][k] += k == c ? value : Acc(0);
    }
  }
}

// The copy of a tile whose numbers are kx and ky.
template <class Acc>
DEVICE TileCopy copy_of(const Record<Acc>& s, const Block& block, int kx, int ky) {
  return {s.across.first_raw(kx, block.x0, Tile<Acc>::kWidth),
          s.down.first_raw(ky, block.y0, Tile<Acc>::kHeight)};
}

// The points of the lattice that reach it.
template <class Acc>
DEVICE Reach points_near(const Resample& r, const Record<Acc>& s, const TileCopy& copy) {
  const Acc half_u = Acc(Tile<Acc>::kAcross - 1) / 2, half_v = Acc(Tile<Acc>::kDown - 1) / 2;
  return reach<Acc>(s, static_cast<Acc>(copy.u()) + half_u, static_cast<Acc>(copy.v()) + half_v,
                    half_u, half_v, points_of(r));
}

// Which copies of the tile the output's lattice reaches: how many, and the numbers of each.
template <class Acc>
DEVICE int find_copies(const Resample& r, const Record<Acc>& s, const Block& block,
                       SharedArray<int> reached) {
  SHARED(int, found, 1);
  const int across = s.across.count(), count = across * s.down.count();
  const int k = thread_id();
  if (k < count) {
    const int row = k / across, kx = s.across.first + k - row * across, ky = s.down.first + row;
    reached[k] = points_near<Acc>(r, s, copy_of<Acc>(s, block, kx, ky)).empty() ? -1 : k;
  }
  sync_threads();
  if (k == 0) {
    int n = 0;
    UNROLL(1)
    for (int from = 0; from < count; ++from) {
      const int own = reached[from];
      if (own >= 0) reached[n++] = own;
    }
    found[0] = n;
  }
  sync_threads();
  return found[0];
}

// The block's pixels: the sum over all copies of its tile that the output's lattice reaches, a box of it at a
// time. What is the same for all threads is read again where it is needed: kept, it would cost registers.
template <class T>
DEVICE void gather_tile(const Transpose& args, const Record<Accumulation<T>>* record,
                        SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  SHARED(int, reached, kCopies* kCopies);
  SHARED(TileCopy, copy, 1);
  SHARED(Reach, near, 1);
  const Resample& r = args.resample;
  const int copies = find_copies<Acc>(r, load(record), Block::again(), reached);
  for (int place = 0; place < r.channels; place += kGroup) {
    Results<Acc> results{};
    UNROLL(1)
    for (int i = 0; i < copies; ++i) {
      const Record<Acc> s = load(record);
      const int row = reached[i] / s.across.count();
      const int kx = s.across.first + reached[i] - row * s.across.count(), ky = s.down.first + row;
      const TileCopy at = copy_of<Acc>(s, Block::again(), kx, ky);
      const auto own = OwnPixels<Acc>::of(r, s, Block::again(), kx, ky, at);
      sync_threads();  // the copy before has been gathered
      if (thread_id() == 0) copy[0] = at, near[0] = points_near<Acc>(r, s, at);
      sync_threads();
      Reach points = near[0];
      UNROLL(1)
      for (int v = points.low_y, next = v; v <= points.high_y; v = next) {
        UNROLL(1)
        for (int u = points.low_x; u <= points.high_x;) {
          const Box box =
              Box::from(u, points.high_x, v, points.high_y, TransposePlanes<Acc>::kSide);
          u = box.u + box.width, next = box.v + box.height;  // where the next one begins
          gather_box<T>(args, record, box, own, place, copy, memory, &results);
          points = near[0];
        }
      }
    }
    const Block block = Block::again();
    const int x = block.x0 + Tile<Acc>::x(), y = block.y0 + Tile<Acc>::y();
    if (x >= width(r.in)) continue;
    T* image = static_cast<T*>(args.image) + offset_of(r.in, block.sample, 0, y, x);
    UNROLL(4)
    for (int c = 0; c < kGroup; ++c) {
      if (c >= group_size(r, place)) break;
      T* to = image + r.epilogue.channel(place + c) * r.in.channel_stride;
      UNROLL(2)
      for (int p = 0; p < Tile<Acc>::kPixels; ++p, to += Tile<Acc>::kStep * r.in.row_stride)
        if (y + p * Tile<Acc>::kStep < height(r.in)) store(to, narrow<T>(results.at[p][c]));
    }
  }
}

}  // namespace gankernels::affine_resample::cuda
