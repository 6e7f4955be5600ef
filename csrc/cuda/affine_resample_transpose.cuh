// The kernels of affine resampling's transpose, as gathers: affine_resample.cuh has what they share with
// the forward pass.
#pragma once

#include "affine_resample.cuh"

namespace gankernels::affine_resample::cuda {

// Copies of the image along an axis beyond which every lattice point is tested.
constexpr int kCopies = 16;

// The cotangent of an output pixel before the epilogue, of the channel at a place; 0 beyond the output.
template <class T>
DEVICE Accumulation<T> cotangent(const Transpose& args, int sample, int place, int y, int x) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  if (x < 0 || y < 0 || x >= width(r.out) || y >= height(r.out)) return 0;
  if (!is_kept(r, sample, y, x)) return 0;
  const Epilogue& e = r.epilogue;
  const auto at = [&](int p) {
    return static_cast<Acc>(widen(
        load(static_cast<const T*>(args.grad) + offset_of(r.out, sample, e.channel(p), y, x))));
  };
  if (!e.matrix || place >= e.color_count) return at(place);
  Acc sum = 0;
  for (int i = 0; i < e.color_count; ++i)
    sum += color_at<Acc>(e, sample, i, static_cast<int>(place)) * at(i);
  return sum;
}

// The pixels, as if the image went on beyond its border, that an output may take along one axis.
struct Extent {
  int low, high;

  // u = a hx + b hy + c over the whole lattice.
  DEVICE static Extent of(double a, double b, double c, const Layout& out) {
    const auto w = static_cast<double>(2 * width(out) + 4),
               h = static_cast<double>(2 * height(out) + 4);
    const double low = (a > 0 ? -5 * a : w * a) + (b > 0 ? -5 * b : h * b) + c;
    const double high = (a > 0 ? w * a : -5 * a) + (b > 0 ? h * b : -5 * b) + c;
    return {floor_to(low / 2) - 4, floor_to(high / 2) + 5};
  }
};

// How the image is seen in the plane that reflection makes of it, along one axis: copies number `first`
// to `last`, of which copy k shows it in [k (size - 1), (k + 1) (size - 1)], the odd ones mirrored.
struct Copies {
  int size, first, last;

  DEVICE static Copies of(int size, Padding padding, const Extent& extent) {
    if (padding != Padding::kReflection) return {size, 0, 0};
    const int period = size > 1 ? size - 1 : 1;
    return {size, below(extent.low, period), below(extent.high, period)};
  }
  DEVICE static int below(int a, int b) { return a / b - (a % b != 0 && a < 0); }
  DEVICE int count() const { return last - first + 1; }

  // The first pixel of copy k's tile, which begins at `begin` in the image.
  DEVICE int first_raw(int k, int begin) const {
    return size == 1 || k % 2 == 0 ? raw(k, begin) : raw(k, begin + kTile - 1);
  }

  // Where copy k shows pixel x; pixels on the mirrors belong to the even copies.
  DEVICE int raw(int k, int x) const {
    if (size == 1) return k;
    return k % 2 == 0 ? k * (size - 1) + x : (k + 1) * (size - 1) - x;
  }
  DEVICE bool shows(int k, int x) const {
    return size == 1 || k % 2 == 0 || (x > 0 && x < size - 1);
  }
};

// The range of the output's lattice points that may reach nodes in [low, high] of both axes.
struct Reach {
  int low_x, high_x, low_y, high_y;
  DEVICE bool empty() const { return low_x > high_x || low_y > high_y; }
};

// The inverse of a lattice's map, if there is a usable one.
struct Inverse {
  double a, b, d, e;
  bool usable;

  DEVICE static Inverse of(const Lattice& m) {
    const double det = m.a * m.e - m.b * m.d;
    const double norm = magnitude(m.a) + magnitude(m.b) + magnitude(m.d) + magnitude(m.e);
    Inverse i{m.e / det, -m.b / det, -m.d / det, m.a / det, false};
    i.usable = magnitude(det) > 1e-9 * norm * norm;
    return i;
  }

  // One axis of the points that lie within `extent` nodes of (u, v), in [low, high].
  DEVICE static void axis(double at, double extent, int low, int high, int* first, int* last) {
    const double from = at - extent - 1e-6, to = at + extent + 1e-6;
    const auto bottom = static_cast<double>(low), top = static_cast<double>(high);
    // Only what lies between is counted by an int.
    *first = from > top ? high + 1 : from > bottom ? floor_to(from) : low;
    *last = to < bottom ? low - 1 : to < top ? floor_to(to) + 1 : high;
  }
  DEVICE Reach reach(const Lattice& m, double u, double v, double extent_u, double extent_v,
                     const Reach& all) const {
    const double x = a * (u - m.c) + b * (v - m.f), y = d * (u - m.c) + e * (v - m.f);
    const double ex = magnitude(a) * extent_u + magnitude(b) * extent_v;
    const double ey = magnitude(d) * extent_u + magnitude(e) * extent_v;
    Reach r;
    axis(x, ex, all.low_x, all.high_x, &r.low_x, &r.high_x);
    axis(y, ey, all.low_y, all.high_y, &r.low_y, &r.high_y);
    return r;
  }
};

// The cotangent of S at a lattice point: the decimation transposed, of up to 36 output pixels.
template <class T>
DEVICE Accumulation<T> spread(const Transpose& args, int sample, int place, int hx, int hy) {
  using Acc = Accumulation<T>;
  Acc sum = 0;
  // h = 2 i - 5 + j, so j has the parity of h + 5.
  const int odd_x = (hx + 5) & 1, odd_y = (hy + 5) & 1;
  const int x = (hx + 5 - odd_x) / 2, y = (hy + 5 - odd_y) / 2;
  UNROLL(1)
  for (int n = 0; n < 6; ++n) {
    Acc line = 0;
    UNROLL(1)
    for (int k = 0; k < 6; ++k)
      line += one_of<Acc>(k, odd_x) * cotangent<T>(args, sample, place, y - n, x - k);
    sum += one_of<Acc>(n, odd_y) * line;
  }
  return sum;
}

// The same for a box of lattice points, into memory[0 ...). Box::u and v are lattice points here.
template <class T>
DEVICE void spread_box(const Transpose& args, const Box& box, int sample, int place,
                       SharedArray<Accumulation<T>> memory) {
  upsample<Accumulation<T>>(box, everywhere(), everywhere(), 1, memory,
                            [&](int y, int x) { return cotangent<T>(args, sample, place, y, x); });
}

// What point (hx, hy) of the lattice gives to node (u, v).
template <class Acc>
DEVICE Acc tent(const Lattice& m, int hx, int hy, int u, int v) {
  const auto x = static_cast<double>(hx), y = static_cast<double>(hy);
  const double du = m.a * x + m.b * y + m.c - static_cast<double>(u);
  const double dv = m.d * x + m.e * y + m.f - static_cast<double>(v);
  const Acc wu = 1 - static_cast<Acc>(magnitude(du));
  const Acc wv = 1 - static_cast<Acc>(magnitude(dv));
  return wu > 0 && wv > 0 ? wu * wv : 0;
}

// All lattice points of the output.
DEVICE Reach points_of(const Resample& r) {
  return {-5, 2 * width(r.out) + 4, -5, 2 * height(r.out) + 4};
}

// Whether the margins leave a node of the doubled plane, and a pixel.
DEVICE bool has_node(const Resample& r, int u, int v) {
  if (!r.margins) return true;
  const Range x = range_of(r, 0), y = range_of(r, 1);
  return u >= x.first && u <= x.last && v >= y.first && v <= y.last;
}
DEVICE bool has_pixel(const Resample& r, int x, int y) {
  if (!r.margins) return true;
  const Range across = range_of(r, 0), down = range_of(r, 1);
  return x >= across.low && x <= across.high && y >= down.low && y <= down.high;
}

// What the transposes of a block share.
struct Gathering {
  Block block;
  Lattice m;
  Inverse inverse;
  bool usable, copy, separable, few;
  Copies across, down;

  DEVICE static Gathering of(const Resample& r) {
    const Block block = Block::of(r.in);
    return of(r, block, lattice_of(r, block.sample));
  }
  DEVICE static Gathering of(const Resample& r, const Block& block, const Lattice& m) {
    Gathering g;
    g.block = block;
    g.m = m;
    g.inverse = Inverse::of(g.m);
    g.usable = g.m.usable(r.out);
    const Kind kind = g.m.kind(r);
    g.copy = g.usable && kind == Kind::kCopy;
    g.separable = g.usable && kind == Kind::kSeparable;
    g.few = false;
    if (!g.usable) return g;
    g.across = Copies::of(width(r.in), r.padding, Extent::of(g.m.a, g.m.b, g.m.c, r.out));
    g.down = Copies::of(height(r.in), r.padding, Extent::of(g.m.d, g.m.e, g.m.f, r.out));
    g.few = g.inverse.usable && g.across.count() <= kCopies && g.down.count() <= kCopies;
    return g;
  }
};

template <class T>
DEVICE void put(const Transpose& args, const Block& block, int place, Accumulation<T> value) {
  const Resample& r = args.resample;
  if (block.x() >= width(r.in) || block.y() >= height(r.in)) return;
  store(static_cast<T*>(args.image) +
            offset_of(r.in, block.sample, r.epilogue.channel(place), block.y(), block.x()),
        narrow<T>(value));
}

// The outputs that may take the tile which begins at this pixel.
DEVICE Reach outputs_of(const Resample& r, const Gathering& g, int begin_x, int begin_y) {
  const double half = (kPoints - 1) / 2.0;
  const Reach points = g.inverse.reach(g.m, 2 * static_cast<double>(begin_x) - 5 + half,
                                       2 * static_cast<double>(begin_y) - 5 + half, half + 1,
                                       half + 1, points_of(r));
  // Output i takes the points 2 i - 5 to 2 i + 6.
  const auto last = [](int high, int size) { return least((high + 5) >> 1, size - 1); };
  const auto first = [](int low) { return low < 5 ? 0 : (low - 5) >> 1; };
  if (points.empty()) return {0, -1, 0, -1};
  return {first(points.low_x), last(points.high_x, width(r.out)), first(points.low_y),
          last(points.high_y, height(r.out))};
}

// The thread's pixel, of a channel: the sum over all copies of the block's tile, each by way of the
// nodes that it is made into, and the lattice points that reach those, a box of them at a time. All
// threads must call it.
template <class T>
DEVICE Accumulation<T> gather_tile(const Transpose& args, const Block& block, const Lattice& m,
                                   const Inverse& inverse, const Copies& across, const Copies& down,
                                   int place, SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  SHARED(Acc, nodes, kNodes);
  const Resample& r = args.resample;
  Acc sum = 0;
  for (int ky = down.first; ky <= down.last; ++ky)
    for (int kx = across.first; kx <= across.last; ++kx) {
      // The tile's first pixel in this copy, and the nodes from its 5th before on.
      const int begin_x = across.first_raw(kx, block.x0), begin_y = down.first_raw(ky, block.y0);
      const int u0 = 2 * begin_x - 5, v0 = 2 * begin_y - 5;
      const double half = (kPoints - 1) / 2.0;
      const Reach near =
          inverse.reach(m, static_cast<double>(u0) + half, static_cast<double>(v0) + half, half + 1,
                        half + 1, points_of(r));
      if (near.empty()) continue;  // the same for all threads
      for (int k = thread_id(); k < kNodes; k += kThreads) nodes[k] = 0;
      constexpr int kStep = kSide<Acc> - 4;  // a box may be wider by 4
      for (int low_y = near.low_y; low_y <= near.high_y; low_y += kStep)
        for (int low_x = near.low_x; low_x <= near.high_x; low_x += kStep) {
          const Reach part{low_x, least(low_x + kStep - 1, near.high_x), low_y,
                           least(low_y + kStep - 1, near.high_y)};
          const Box box = Box::around(part.low_x, part.high_x, part.low_y, part.high_y);
          spread_box<T>(args, box, block.sample, place, memory);
          for (int k = thread_id(); k < kNodes; k += kThreads) {
            const int u = u0 + k % kPoints, v = v0 + k / kPoints;
            if (!has_node(r, u, v)) continue;
            const Reach own =
                inverse.reach(m, static_cast<double>(u), static_cast<double>(v), 1, 1, part);
            Acc node = 0;
            for (int hy = own.low_y; hy <= own.high_y; ++hy)
              for (int hx = own.low_x; hx <= own.high_x; ++hx)
                node += tent<Acc>(m, hx, hy, u, v) * memory[(hy - box.v) * box.width + hx - box.u];
            nodes[k] = nodes[k] + node;
          }
          sync_threads();
        }
      for (int k = thread_id(); k < kPoints * kTile; k += kThreads) {
        const int from = k / kTile * kPoints + 2 * (k % kTile);
        Acc line = 0;
        UNROLL(12)
        for (int j = 0; j < kTaps; ++j) line += symlet<Acc>(j) * nodes[from + j];
        memory[k] = line;
      }
      sync_threads();
      const int x = block.x(), y = block.y();
      const int at_x = across.raw(kx, x), at_y = down.raw(ky, y);
      const bool inside = x < width(r.in) && y < height(r.in) && across.shows(kx, x) &&
                          down.shows(ky, y) && has_pixel(r, at_x, at_y);
      if (inside) {
        const int from = 2 * (at_y - begin_y) * kTile + at_x - begin_x;
        Acc own = 0;
        UNROLL(12)
        for (int j = 0; j < kTaps; ++j) own += symlet<Acc>(j) * memory[from + j * kTile];
        sum += 4 * own;
      }
      sync_threads();
    }
  return sum;
}

// The tile where the map takes axes to axes: for every copy of it, a tile of outputs at a time, as the
// product of their cotangents with the weights along either axis. All threads must call it.
template <class T>
DEVICE void gather_along_axes(const Transpose& args, const Gathering& g,
                              SharedArray<Accumulation<T>> memory) {
  using Acc = Accumulation<T>;
  SHARED(int, whole, 4 * kPoints);
  SHARED(Acc, share, 4 * kPoints);
  SHARED(Acc, taps, kPadded);
  constexpr int kPlane = 2 * kThreads;  // behind the weights
  constexpr int kLines = kPlane + kTile * kPitch, kSums = kLines + kTile * kPitch;
  static_assert(kSums + kResults <= kMemory<Acc>);
  const Resample& r = args.resample;
  const Block& block = g.block;
  const Positions<Acc> positions{whole, share};
  const bool swapped = g.m.swapped();
  const int x = block.x(), y = block.y();
  const int column = thread_id() % kTile, row = thread_id() / kTile;
  fill_taps<Acc>(taps);
  for (int place = 0; place < r.channels; place += kGroup) {
    const int count = group_size(r, place);
    for (int c = 0; c < count; ++c) memory[kSums + c * kThreads + thread_id()] = 0;
    for (int ky = g.down.first; ky <= g.down.last; ++ky)
      for (int kx = g.across.first; kx <= g.across.last; ++kx) {
        const int begin_x = g.across.first_raw(kx, block.x0);
        const int begin_y = g.down.first_raw(ky, block.y0);
        const Reach near = outputs_of(r, g, begin_x, begin_y);
        const int at_x = g.across.raw(kx, x) - begin_x, at_y = g.down.raw(ky, y) - begin_y;
        const bool inside =
            x < width(r.in) && y < height(r.in) && g.across.shows(kx, x) && g.down.shows(ky, y);
        for (int oy = near.low_y; oy <= near.high_y; oy += kTile)
          for (int ox = near.low_x; ox <= near.high_x; ox += kTile) {
            // The map is read again: kept since `outputs_of`, it would cost registers.
            positions.fill(lattice_as_given(r, block.sample), 2 * ox - 5, 2 * oy - 5);
            sync_threads();
            // Of pixel `column` and output `row`, and the rest of both.
            memory[thread_id()] =
                weight_of<Acc>(positions, taps, 0, swapped, row, begin_x + column);
            memory[kThreads + thread_id()] =
                weight_of<Acc>(positions, taps, 1, swapped, row, begin_y + column);
            UNROLL(1)
            for (int c = 0; c < count; ++c) {
              memory[kPlane + (swapped ? column * kPitch + row : row * kPitch + column)] =
                  cotangent<T>(args, block.sample, place + c, oy + row, ox + column);
              sync_threads();
              Acc line = 0;
              UNROLL(4)
              for (int i = 0; i < kTile; ++i)
                line += memory[i * kTile + column] * memory[kPlane + row * kPitch + i];
              memory[kLines + row * kPitch + column] = line;
              sync_threads();
              if (!inside) continue;
              Acc sum = memory[kSums + c * kThreads + thread_id()];
              UNROLL(4)
              for (int i = 0; i < kTile; ++i)
                sum += memory[kThreads + i * kTile + at_y] * memory[kLines + i * kPitch + at_x];
              memory[kSums + c * kThreads + thread_id()] = sum;
            }
          }
      }
    for (int c = 0; c < count; ++c)
      put<T>(args, block, place + c, memory[kSums + c * kThreads + thread_id()]);
  }
}

// The thread's pixel where the map has no usable inverse, or shows the image very often: every point of
// the lattice is tested.
template <class T>
DEVICE Accumulation<T> gather_all(const Transpose& args, const Lattice& m, const Reach& all,
                                  int sample, int place, int y, int x) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Range bx = range_of(r, 0), by = range_of(r, 1);
  Acc sum = 0;
  for (int hy = all.low_y; hy <= all.high_y; ++hy)
    for (int hx = all.low_x; hx <= all.high_x; ++hx) {
      const auto px = static_cast<double>(hx), py = static_cast<double>(hy);
      const double u = m.a * px + m.b * py + m.c;
      const double v = m.d * px + m.e * py + m.f;
      const int nu = floor_to(u), nv = floor_to(v);
      const auto wx = Window<Acc>::of(nu, static_cast<Acc>(u - static_cast<double>(nu)), bx);
      const auto wy = Window<Acc>::of(nv, static_cast<Acc>(v - static_cast<double>(nv)), by);
      Acc weight_x = 0, weight_y = 0;
      UNROLL(1)
      for (int i = 0; i < 7; ++i) {
        if (reflected(wx.first + i, width(r.in)) == x) weight_x += wx.weight(i);
        if (reflected(wy.first + i, height(r.in)) == y) weight_y += wy.weight(i);
      }
      if (weight_x != 0 && weight_y != 0)
        sum += weight_x * weight_y * spread<T>(args, sample, place, hx, hy);
    }
  return sum;
}

// The thread's pixel of the plain filters and of copies, of the outputs within reach of where it is
// seen. Where `everywhere`, of all outputs that show it anywhere.
template <class T>
DEVICE Accumulation<T> gather_plain(const Transpose& args, const Lattice& m, bool copy,
                                    const Reach& reach, bool everywhere, int sample, int place,
                                    int y, int x) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const bool nearest = copy || r.filter == Filter::kNearest;
  Acc sum = 0;
  for (int oy = reach.low_y; oy <= reach.high_y; ++oy)
    for (int ox = reach.low_x; ox <= reach.high_x; ++ox) {
      const double u = position(m.a, m.b, m.c, ox, oy);
      const double v = position(m.d, m.e, m.f, ox, oy);
      const int column = nearest ? nearest_of(u) : floor_to(u);
      const int row = nearest ? nearest_of(v) : floor_to(v);
      const Acc su = static_cast<Acc>(u - static_cast<double>(column));
      const Acc sv = static_cast<Acc>(v - static_cast<double>(row));
      Acc weight = 0;
      for (int k = 0; k < (nearest ? 1 : 4); ++k) {
        const int i = k % 2, j = k / 2;
        const int cx = everywhere ? padded(column + i, width(r.in), r.padding) : column + i;
        const int cy = everywhere ? padded(row + j, height(r.in), r.padding) : row + j;
        if (cx == x && cy == y) weight += nearest ? 1 : (i ? su : 1 - su) * (j ? sv : 1 - sv);
      }
      if (weight != 0) sum += weight * cotangent<T>(args, sample, place, oy, ox);
    }
  return sum;
}

// The same, copy by copy of the pixel.
template <class T>
DEVICE Accumulation<T> gather_copies(const Transpose& args, const Lattice& m,
                                     const Inverse& inverse, bool few, bool copy,
                                     const Copies& across, const Copies& down, const Reach& all,
                                     int sample, int place, int y, int x) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const bool edge = x == 0 || y == 0 || x == width(r.in) - 1 || y == height(r.in) - 1;
  if (!few || (edge && r.padding == Padding::kBorder))
    return gather_plain<T>(args, m, copy, all, true, sample, place, y, x);
  const Reach points{2 * all.low_x, 2 * all.high_x, 2 * all.low_y, 2 * all.high_y};
  Acc sum = 0;
  for (int ky = down.first; ky <= down.last; ++ky)
    for (int kx = across.first; kx <= across.last; ++kx) {
      if (!across.shows(kx, x) || !down.shows(ky, y)) continue;
      const int cx = across.raw(kx, x), cy = down.raw(ky, y);
      Reach near = inverse.reach(m, 2.0 * static_cast<double>(cx), 2.0 * static_cast<double>(cy), 2,
                                 2, points);
      near = {(near.low_x + 1) >> 1, near.high_x >> 1, (near.low_y + 1) >> 1, near.high_y >> 1};
      sum += gather_plain<T>(args, m, copy, near, false, sample, place, cy, cx);
    }
  return sum;
}

// The thread's pixel where whole pixels were moved: each place that shows it has one output pixel.
template <class T>
DEVICE Accumulation<T> gather_moved(const Transpose& args, const Gathering& g, int place) {
  const int a = static_cast<int>(g.m.a), b = static_cast<int>(g.m.b);
  const int d = static_cast<int>(g.m.d), e = static_cast<int>(g.m.e);
  const int c = floor_to(g.m.c / 2), f = floor_to(g.m.f / 2);
  const int x = g.block.x(), y = g.block.y();
  Accumulation<T> sum = 0;
  for (int ky = g.down.first; ky <= g.down.last; ++ky)
    for (int kx = g.across.first; kx <= g.across.last; ++kx) {
      if (!g.across.shows(kx, x) || !g.down.shows(ky, y)) continue;
      const int u = g.across.raw(kx, x) - c, v = g.down.raw(ky, y) - f;
      // The map is its own inverse but for the order of its axes: each step is 1, -1 or 0.
      sum += cotangent<T>(args, g.block.sample, place, b * u + e * v, a * u + d * v);
    }
  return sum;
}

// grad_image = R^T epilogue^T grad, of the filter. A block is a tile of the image. Reads what the tile's
// copies are reached from, at unit scale some 4 elements an element, most of them from cache; writes 1.
template <class T>
KERNEL_FOR(kThreads, 2)
gather(TABLE(Transpose) args) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  // To bring far maps near would take registers that are needed here.
  const Block block = Block::of(r.in);
  const Gathering g = Gathering::of(r, block, lattice_as_given(r, block.sample));
  if (g.usable && !g.copy && !g.few) return;  // gather_slowly has it
  SHARED(Acc, memory, kMemory<Acc>);
  if (g.separable) return gather_along_axes<T>(args, g, memory);
  for (int place = 0; place < r.channels; ++place) {
    Acc value = not_a_number<Acc>();
    if (g.copy)
      value = gather_moved<T>(args, g, place);
    else if (g.usable)
      value = gather_tile<T>(args, g.block, g.m, g.inverse, g.across, g.down, place, memory);
    put<T>(args, g.block, place, value);
  }
}

// The samples that `gather` leaves: far maps among them, and those that are not finite. Reads the whole
// output for every element.
template <class T>
KERNEL_FOR(kThreads, 1)
gather_slowly(TABLE(Transpose) args) {
  const Resample& r = args.resample;
  const Block block = Block::of(r.in);
  const bool far = !lattice_as_given(r, block.sample).usable(r.out);
  const Gathering g = Gathering::of(r);
  if (!far && (g.copy || g.few)) return;
  for (int place = 0; place < r.channels; ++place) {
    Accumulation<T> value = not_a_number<Accumulation<T>>();
    if (g.copy)
      value = gather_moved<T>(args, g, place);
    else if (g.usable)
      value =
          gather_all<T>(args, g.m, points_of(r), g.block.sample, place, g.block.y(), g.block.x());
    put<T>(args, g.block, place, value);
  }
}

// The same of the plain filters.
template <class T>
KERNEL_FOR(kThreads, 2)
gather_plainly(TABLE(Transpose) args) {
  using Acc = Accumulation<T>;
  const Resample& r = args.resample;
  const Gathering g = Gathering::of(r);
  const int x = g.block.x(), y = g.block.y();
  if (x >= width(r.in) || y >= height(r.in)) return;
  const Reach pixels{0, width(r.out) - 1, 0, height(r.out) - 1};
  for (int place = 0; place < r.channels; ++place)
    put<T>(args, g.block, place,
           g.usable ? gather_copies<T>(args, g.m, g.inverse, g.few, g.copy, g.across, g.down,
                                       pixels, g.block.sample, place, y, x)
                    : not_a_number<Acc>());
}

}  // namespace gankernels::affine_resample::cuda
