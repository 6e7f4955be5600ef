// Affine resampling's transpose by the filter: a box of the output's lattice at a time, whose points give to
// the nodes of the block's tile. gather_tile, at the end, is what the kernel calls.
#pragma once

#include "affine_resample_cotangent.cuh"

namespace gankernels::affine_resample::cuda {

// Nodes of a tile, and one more on either side: those of points next to it.
constexpr int kNodes = kPoints + 2, kSumPitch = 53;

// The planes of a channel: pixels of the output and what they are up-sampled to along rows; the sums of the
// image's nodes, and in the place of the half-made points what decimating their rows leaves; and the
// results of the threads' own pixels. A lattice's points are in no plane: a thread gives each of them to
// its nodes as it is made.
template <class Acc>
struct TransposePlanes {
  static constexpr int kSide = sizeof(Acc) == 4 ? 80 : 40;
  static constexpr int kHalf = (kSide / 2 + 5) * Planes<Acc>::kPixelPitch / 4 * 4 + 4;
  static constexpr int kSums = kHalf + (kSide / 2 + 5) * Planes<Acc>::kHalfPitch;
  // Of numbers of 4 bytes, as many as threads clear together.
  static constexpr int kCleared = sizeof(Acc) == 4 ? 3 * 4 * kThreads : kNodes * kSumPitch;
  static constexpr int kResults = kSums + kCleared;
  static constexpr int kSize = kResults + kGroup * kThreads;
  static_assert((kSums - kHalf) >= kPoints * Planes<Acc>::kColumnPitch);
};
// Beside them, which copies are reached, or a sweep's sums.
constexpr int kReached = 6;  // ints a copy
constexpr int kBeside =
    std::max(kReached * kCopies * kCopies / 2, kThreads + kThreads / 2);  // of int64_t

// Takes a box's cotangents to the beginning of `memory`, a channel at a time. The thread has a column of
// them, of which rows [low, high) are within the image.
template <class T>
struct Cotangents {
  using Acc = Accumulation<T>;
  Cutout cut;
  int sample, x, y, row, step, rows, low, high, to;
  const char* from;  // the first pixel in the first channel
  int64_t step_bytes;

  DEVICE static Cotangents of(const Resample& r, const T* grad, const Cutout& cut, int sample,
                              const Box& box, const Lines& lines) {
    const int x = box.column() + lines.column, y = box.row();
    const bool column = x >= 0 && x < width(r.out);
    const int row = least(lines.row, box.rows());
    return {cut,
            sample,
            x,
            y,
            row,
            lines.step,
            box.rows(),
            most(0, -y),
            column ? most(height(r.out) - y, most(0, -y)) : most(0, -y),
            row * Planes<Acc>::kPixelPitch + lines.column,
            reinterpret_cast<const char*>(grad + offset_of(r.out, sample, 0, y + row, x)),
            lines.step * r.out.row_stride * static_cast<int64_t>(sizeof(T))};
  }

  // Returns the largest size of the thread's.
  DEVICE int fetch(const Transpose& args, int place, int64_t channel_bytes,
                   SharedArray<Acc> memory) const {
    const Epilogue& e = args.resample.epilogue;
    const bool mixed = e.matrix && place < e.color_count;
    const char* p = from + channel_bytes;
    return mixed || cut.x0 < cut.x1 ? fetch_as<false>(args, place, p, memory)
                                    : fetch_as<true>(args, place, p, memory);
  }
  DEVICE static int64_t bytes_of(const Resample& r, int place) {
    return r.epilogue.channel(place) * r.out.channel_stride * static_cast<int64_t>(sizeof(T));
  }

 private:
  // kPlain: without a cutout, or colors.
  template <bool kPlain>
  DEVICE int fetch_as(const Transpose& args, int place, const char* p,
                      SharedArray<Acc> memory) const {
    const auto height = static_cast<uint32_t>(high - low);
    int largest = 0, own = row, at = to, inner = row - low;
    const auto take = [&](auto count) {
      Acc value[count];
      UNROLL(4)
      for (int k = 0; k < count; ++k) {
        value[k] = 0;
        if (static_cast<uint32_t>(inner) < height) {
          if constexpr (kPlain)
            value[k] = widen(load(reinterpret_cast<const T*>(p)));
          else
            value[k] = cotangent<T>(args, cut, sample, place, y + low + inner, x);
        }
        inner += step, p += step_bytes;
      }
      UNROLL(4)
      for (int k = 0; k < count; ++k, at += step * Planes<Acc>::kPixelPitch) {
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

// A thread's points of a box of the lattice: eight of a column at a time. u and v are those of the first
// one and of the last, which move by `next` from one time to the next.
template <class Acc>
struct Points8 {
  using Position = typename Axis<Acc>::Position;
  Lines lines;
  Position u, v, last_u, last_v, next_u, next_v, b, e;
  int groups, from, next;

  DEVICE static Points8 of(const Frame<Acc>& frame) {
    using P = Planes<Acc>;
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
            TransposePlanes<Acc>::kHalf + row / 2 * P::kHalfPitch + lines.column,
            4 * lines.step * P::kHalfPitch};
  }

  // Calls f(S, u, v, at) for those that reach the tile's nodes. Those beyond the lattice are 0.
  template <class F>
  DEVICE void for_each(SharedArray<Acc> memory, F&& f) const {
    const auto whole = [](Position u) { return LocalAxis<Acc>::whole(u); };
    Position first_u = u, first_v = v, end_u = last_u, end_v = last_v;
    int own = from;
    UNROLL(1)
    for (int group = lines.row; group < groups; group += lines.step, first_u += next_u,
             first_v += next_v, end_u += next_u, end_v += next_v, own += next) {
      Position pu = first_u, pv = first_v;
      const int iu = whole(pu), iv = whole(pv), ju = whole(end_u), jv = whole(end_v);
      // None lies in the tile if both ends lie on one side of it.
      if (((iu & ju) | (iv & jv)) < 0 || most(least(iu, ju), least(iv, jv)) >= kNodes - 1) continue;
      Acc point[8];
      upsample_column<1, Acc>(memory, own, point);
      UNROLL(8)
      for (int n = 0; n < 8; ++n) {
        const int at_u = whole(pu), at_v = whole(pv);
        if (static_cast<uint32_t>(at_u) < kNodes - 1 && static_cast<uint32_t>(at_v) < kNodes - 1)
          f(point[n], pu, pv, at_v * kSumPitch + at_u);
        pu += b, pv += e;
      }
    }
  }
};

// The thread's pixel of a tile's nodes: decimated. A barrier has to come before.
template <class Acc>
DEVICE Acc decimate_sums(SharedArray<Sum<Acc>> nodes, SharedArray<Acc> memory, int x, int y,
                         bool inside) {
  using P = TransposePlanes<Acc>;
  // Four columns a thread.
  const int row = thread_id() / 4, column = thread_id() % 4 * 4;
  static_assert(4 * kPoints <= kThreads);
  if (row < kPoints) {
    const int from = (row + 1) * kSumPitch + 2 * column + 1;
    Acc node[18];
    UNROLL(18)
    for (int n = 0; n < 18; ++n) node[n] = static_cast<Acc>(nodes[from + n]);
    decimated<Acc>(node, memory, P::kHalf + row * Planes<Acc>::kColumnPitch + column);
  }
  sync_threads();
  return inside ? decimate_column<Acc>(memory, P::kHalf, 2 * y, x) : Acc(0);
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

template <class Acc>
DEVICE void clear_sums(SharedArray<Sum<Acc>> nodes) {
  constexpr int kEach = 16 / sizeof(Acc),
                kTurns = TransposePlanes<Acc>::kCleared / kEach / kThreads;
  UNROLL(4)
  for (int k = 0; k < kTurns; ++k)
    shared_store(nodes + kEach * (k * kThreads + thread_id()), Vector<Sum<Acc>, kEach>{});
  constexpr int kDone = kEach * kTurns * kThreads;
  if constexpr (kDone < TransposePlanes<Acc>::kCleared)
    for (int k = kDone + thread_id(); k < TransposePlanes<Acc>::kCleared; k += kThreads)
      nodes[k] = 0;
}

// In the place of the thread's cotangents that are so large that sums with them may not be finite, or are not,
// a number. Returns the largest size of the others.
template <class Acc>
DEVICE int replace_odd(const Box& box, const Lines& pixels, Acc by, SharedArray<Acc> memory) {
  int largest = 0;
  UNROLL(1)
  for (int row = pixels.row; row < box.rows(); row += pixels.step) {
    const int at = row * Planes<Acc>::kPixelPitch + pixels.column;
    const int size = Size<Acc>::of(memory[at]);
    if (size > Size<Acc>::kMost)
      memory[at] = by;
    else
      largest = most(largest, size);
  }
  return largest;
}

// Whether the thread's pixel takes an odd cotangent. Leaves zeros in the place of those, and clears the sums;
// `largest` becomes the size of the largest other one. A barrier comes last.
template <class Acc>
DEVICE bool takes_odd(const Resample& r, const Frame<Acc>& frame, const Lines& pixels,
                      const Points8<Acc>& points, const TileCopy& copy, int x, int y, bool inside,
                      SharedArray<Acc> memory, SharedArray<Sum<Acc>> nodes, int* largest) {
  replace_odd<Acc>(frame.box, pixels, not_a_number<Acc>(), memory);
  sync_threads();
  upsample_rows<1, Acc>(frame.box, frame.shares, memory, TransposePlanes<Acc>::kHalf);
  sync_threads();
  points.for_each(memory, [&](Acc point, auto, auto, int at) {
    if (point == point) return;
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
  clear_sums<Acc>(nodes);
  *largest = block_max<kThreads>(replace_odd<Acc>(frame.box, pixels, 0, memory));
  return odd;
}

// Adds to the threads' results what a copy of the tile gets of a box of the lattice, in the channels of a
// group: up-sampled, added to nodes, decimated. The thread's pixel is at (x, y) of the copy.
template <class T>
DEVICE void gather_box(const Transpose& args, const Record<Accumulation<T>>* record,
                       const TileCopy& copy, const Box& box, int x, int y, bool inside, int sample,
                       int place, SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  using P = TransposePlanes<Acc>;
  SHARED(Frame<Acc>, frame, 1);
  SHARED(int, largest, kGroup);
  SHARED(int64_t, channel_bytes, kGroup);
  const Resample& r = args.resample;
  const auto nodes = shared_view<Sum<Acc>>(memory + P::kSums);
  sync_threads();  // the box before has been gathered
  if (thread_id() == 0)
    frame[0] = {box, Shares::of(box.width),
                LocalAxis<Acc>::of(load(&record->u), box.u, box.v, copy.u()),
                LocalAxis<Acc>::of(load(&record->v), box.u, box.v, copy.v())};
  if (thread_id() < kGroup) {
    largest[thread_id()] = 0;
    channel_bytes[thread_id()] =
        Cotangents<T>::bytes_of(r, least(place + thread_id(), static_cast<int>(r.channels) - 1));
  }
  sync_threads();
  const Frame<Acc> f = frame[0];
  const Lines pixels = Lines::of(f.box.columns(), f.shares.pixels);
  const auto cotangents = Cotangents<T>::of(r, static_cast<const T*>(args.grad), load(&record->cut),
                                            sample, f.box, pixels);
  const auto points = Points8<Acc>::of(f);
  const Acc reaching = load(&record->reaching) * static_cast<Acc>(kSpread * kSpread);
  const int group = group_size(r, place);
  UNROLL(1)
  for (int c = 0; c < group; ++c) {
    int top = cotangents.fetch(args, place + c, channel_bytes[c], memory);
    clear_sums<Acc>(nodes);
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) top = most(top, shuffle_xor(top, lanes));
    if (thread_id() % kWarp == 0) atomic_max(largest + c, top);
    sync_threads();
    top = largest[c];
    if (top == 0) continue;  // the same for all threads
    bool odd = false;
    if (top > Size<Acc>::kMost) {
      odd = takes_odd<Acc>(r, f, pixels, points, copy, x, y, inside, memory, nodes, &top);
    }
    upsample_rows<1, Acc>(f.box, f.shares, memory, P::kHalf);
    sync_threads();
    const auto scale = Scale<Acc, Sum<Acc>>::of(top, reaching);
    points.for_each(
        memory, [&](Acc point, auto u, auto v, int at) { deposit(point, scale, u, v, at, nodes); });
    sync_threads();
    if (r.margins) limit_sums<Sum<Acc>>(r, copy, nodes);
    const Acc own = 4 * scale.back * decimate_sums<Acc>(nodes, memory, x, y, inside);
    memory[P::kResults + c * kThreads + thread_id()] += odd ? not_a_number<Acc>() : own;
  }
}

// Which copies of the tile the output's lattice reaches: how many, and of each its numbers and the points that
// do.
template <class T>
DEVICE int find_copies(const Resample& r, const Record<Accumulation<T>>& s, const Block& block,
                       SharedArray<int> reached) {
  using Acc = Accumulation<T>;
  SHARED(int, found, 1);
  const int across = s.across.count(), count = across * s.down.count();
  const int k = thread_id();
  if (k < count) {
    const int row = k / across;
    const TileCopy copy{s.across.first_raw(s.across.first + k - row * across, block.x0),
                        s.down.first_raw(s.down.first + row, block.y0)};
    const Acc half = Acc(kNodes - 1) / 2;
    const Reach points = reach<Acc>(s, static_cast<Acc>(copy.u()) + half,
                                    static_cast<Acc>(copy.v()) + half, half, points_of(r));
    const int values[kReached] = {s.across.first + k - row * across,
                                  s.down.first + row,
                                  points.low_x,
                                  points.high_x,
                                  points.low_y,
                                  points.high_y};
    for (int i = 0; i < kReached; ++i) reached[kReached * k + i] = values[i];
  }
  sync_threads();
  if (k == 0) {
    int n = 0;
    UNROLL(1)
    for (int from = 0; from < count; ++from) {
      if (reached[kReached * from + 2] > reached[kReached * from + 3] ||
          reached[kReached * from + 4] > reached[kReached * from + 5])
        continue;
      for (int i = 0; i < kReached; ++i) reached[kReached * n + i] = reached[kReached * from + i];
      ++n;
    }
    found[0] = n;
  }
  sync_threads();
  return found[0];
}

// The block's pixels: the sum over all copies of its tile that the output's lattice reaches, a box of it at a
// time.
template <class T>
DEVICE void gather_tile(const Transpose& args, const Record<Accumulation<T>>* record,
                        const Block& block, SharedArray<Accumulation<T>> memory,
                        SharedArray<int> reached) {
  using Acc = Accumulation<T>;
  using P = TransposePlanes<Acc>;
  const Resample& r = args.resample;
  const int copies = find_copies<T>(r, load(record), block, reached);
  for (int place = 0; place < r.channels; place += kGroup) {
    UNROLL(4)
    for (int c = 0; c < kGroup; ++c) memory[P::kResults + c * kThreads + thread_id()] = 0;
    UNROLL(1)
    for (int i = 0; i < copies; ++i) {
      const Record<Acc> s = load(record);
      const int kx = reached[kReached * i], ky = reached[kReached * i + 1];
      const TileCopy copy{s.across.first_raw(kx, block.x0), s.down.first_raw(ky, block.y0)};
      const int x = block.x(), y = block.y();
      const int at_x = s.across.raw(kx, x), at_y = s.down.raw(ky, y);
      const bool inside = x < width(r.in) && y < height(r.in) && s.across.shows(kx, x) &&
                          s.down.shows(ky, y) && range_of(r, 0).has_pixel(at_x) &&
                          range_of(r, 1).has_pixel(at_y);
      // A box ends where the next one begins.
      const int high_x = reached[kReached * i + 3], high_y = reached[kReached * i + 5];
      Box box{};
      UNROLL(1)
      for (int v = reached[kReached * i + 4]; v <= high_y; v = box.v + box.height) UNROLL(1)
      for (int u = reached[kReached * i + 2]; u <= high_x; u = box.u + box.width) {
        box = Box::from(u, high_x, v, high_y, P::kSide);
        gather_box<T>(args, record, copy, box, at_x - copy.x, at_y - copy.y, inside, block.sample,
                      place, memory);
      }
    }
    const int group = group_size(r, place);
    for (int c = 0; c < group; ++c)
      put<T>(args, block, place + c, memory[P::kResults + c * kThreads + thread_id()]);
  }
}

}  // namespace gankernels::affine_resample::cuda
