// common/platform.h for the host compiler: the same names, on the engine. Included from there only.
#pragma once

#include <bit>
#include <cmath>
#include <source_location>
#include <type_traits>

#include "emu/engine.h"

#define KERNEL(threads) void
#define KERNEL_FOR(threads, blocks) KERNEL(threads)
#define DEVICE inline
#define TABLE(...) const __VA_ARGS__&
#define UNROLL(n)
// A static of its own in every instantiation names the memory.
#define SHARED(T, name, n)                          \
  static constexpr char name##_identity = #name[0]; \
  ::gankernels::emu::Shared<T> name(&name##_identity, #name, n)

namespace gankernels {
namespace emu {

using Where = std::source_location;

// An array in the shared memory of the current block.
template <class T>
class Shared {
 public:
  class Element {
   public:
    Element(T* p, Where where) : p_(p), where_(where) {}
    operator T() const {
      shared_access(p_, sizeof(T), Access::kRead, where_);
      return *p_;
    }
    Element& operator=(T x) {
      shared_access(p_, sizeof(T), Access::kWrite, where_);
      *p_ = x;
      return *this;
    }
    Element& operator=(const Element& other) { return *this = static_cast<T>(other); }
    Element& operator+=(T x) { return *this = static_cast<T>(*this) + x; }

   private:
    T* p_;
    Where where_;
  };

  Shared(const void* identity, const char* name, size_t count)
      : base_(static_cast<T*>(shared_memory(identity, name, count * sizeof(T)))) {}

  explicit Shared(T* base) : base_(base) {}

  // The subscript operator cannot take the caller's place as a default argument; it is a converting
  // index instead.
  struct Index {
    template <class I>
    Index(I i, Where where = Where::current()) : i(static_cast<int64_t>(i)), where(where) {}
    int64_t i;
    Where where;
  };
  Element operator[](Index at) const { return {base_ + at.i, at.where}; }

  // A place in the array, for shared_load and its like.
  struct Place {
    T* p;
  };
  Place operator+(int64_t i) const { return {base_ + i}; }

 private:
  T* base_;
};

}  // namespace emu

template <class T>
using SharedArray = emu::Shared<T>;

inline int thread_id() {
  return emu::current_thread();
}
inline int block_id() {
  return emu::current_block();
}

template <class T>
T load(const T* p, emu::Where where = emu::Where::current()) {
  emu::global_access(p, sizeof(T), alignof(T), emu::Access::kRead, where);
  return *p;
}
template <int N, class T>
Vector<T, N> load(const T* p, emu::Where where = emu::Where::current()) {
  emu::global_access(p, N * sizeof(T), N * sizeof(T), emu::Access::kRead, where);
  return *reinterpret_cast<const Vector<T, N>*>(p);
}
template <class T>
void store(T* p, std::type_identity_t<T> x, emu::Where where = emu::Where::current()) {
  emu::global_access(p, sizeof(T), alignof(T), emu::Access::kWrite, where);
  *p = x;
}
template <class T, int N>
void store(T* p, const Vector<T, N>& x, emu::Where where = emu::Where::current()) {
  emu::global_access(p, N * sizeof(T), N * sizeof(T), emu::Access::kWrite, where);
  *reinterpret_cast<Vector<T, N>*>(p) = x;
}
template <int N, class Place>
auto shared_load(Place place, emu::Where where = emu::Where::current()) {
  using T = std::remove_pointer_t<decltype(place.p)>;
  emu::shared_access(place.p, N * sizeof(T), emu::Access::kRead, where);
  return *reinterpret_cast<const Vector<T, N>*>(place.p);
}
template <class Place, class T, int N>
void shared_store(Place place, const Vector<T, N>& x, emu::Where where = emu::Where::current()) {
  emu::shared_access(place.p, N * sizeof(T), emu::Access::kWrite, where);
  *reinterpret_cast<Vector<T, N>*>(place.p) = x;
}
template <class U, class Place>
SharedArray<U> shared_view(Place place) {
  return SharedArray<U>(reinterpret_cast<U*>(place.p));
}
template <class Place, class T>
void copy_async(Place to, const T* from, emu::Where where = emu::Where::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  emu::copy_async(to.p, from, sizeof(T), where);
}
inline void copy_wait(emu::Where where = emu::Where::current()) {
  emu::copy_wait(where);
}

inline void sync_threads(emu::Where where = emu::Where::current()) {
  emu::barrier(where);
}
template <class T>
T shuffle_xor(T x, int lanes, emu::Where where = emu::Where::current()) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  const uint64_t got = emu::exchange(0xffffffffu, std::bit_cast<Bits>(x), lanes, where);
  return std::bit_cast<T>(static_cast<Bits>(got));
}
inline void sync_warp(uint32_t mask = 0xffffffffu, emu::Where where = emu::Where::current()) {
  emu::warp_barrier(mask, where);
}
inline void fence(emu::Where where = emu::Where::current()) {
  emu::fence(where);
}
// Integers only: the sum of floats depends on the order, which is an error here.
template <class T>
T atomic_add(T* p, std::type_identity_t<T> x, emu::Where where = emu::Where::current()) {
  emu::atomic_access(p, sizeof(T), std::is_floating_point_v<T>, where);
  if constexpr (std::is_integral_v<T>) return __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
  return *p;
}
// In shared memory.
template <class Place, class T = std::remove_pointer_t<decltype(Place::p)>>
T atomic_add(Place place, std::type_identity_t<T> x, emu::Where where = emu::Where::current()) {
  emu::shared_atomic_access(place.p, sizeof(T), std::is_floating_point_v<T>, where);
  if constexpr (std::is_integral_v<T>) return __atomic_fetch_add(place.p, x, __ATOMIC_RELAXED);
  return *place.p;
}
template <class Place, class T = std::remove_pointer_t<decltype(Place::p)>>
T atomic_or(Place place, std::type_identity_t<T> x, emu::Where where = emu::Where::current()) {
  emu::shared_atomic_access(place.p, sizeof(T), false, where);
  return __atomic_fetch_or(place.p, x, __ATOMIC_RELAXED);
}

template <class Place, class T = std::remove_pointer_t<decltype(Place::p)>>
T atomic_max(Place place, std::type_identity_t<T> x, emu::Where where = emu::Where::current()) {
  emu::shared_atomic_access(place.p, sizeof(T), false, where);
  T before = __atomic_load_n(place.p, __ATOMIC_RELAXED);
  while (x > before && !__atomic_compare_exchange_n(place.p, &before, x, false, __ATOMIC_RELAXED,
                                                    __ATOMIC_RELAXED)) {
  }
  return before;
}

inline int multiply_high(int a, int b) {
  return static_cast<int>((int64_t{a} * b) >> 32);
}
inline int rounded(float x) {
  return static_cast<int>(std::nearbyint(x));
}
inline int64_t rounded(double x) {
  return static_cast<int64_t>(std::nearbyint(x));
}

inline float widen(float x) {
  return x;
}
inline double widen(double x) {
  return x;
}
inline float widen(Half x) {
  return static_cast<float>(std::bit_cast<_Float16>(x.bits));
}
inline float widen(BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

template <class T>
T narrow(Accumulation<T> x) {
  return x;
}
template <>
inline Half narrow<Half>(float x) {
  return {std::bit_cast<uint16_t>(static_cast<_Float16>(x))};
}
// To the nearest, ties to even; NaN stays NaN.
template <>
inline BFloat16 narrow<BFloat16>(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// The memory that the kernels of a call may touch, for the life of a scope.
class Buffers {
 public:
  Buffers() { emu::begin_call(); }
  ~Buffers() { emu::end_call(); }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  void in(const char* name, const void* p, int64_t count, size_t item) {
    emu::add_buffer(name, p, count * item, item, emu::Content::kConstant);
  }
  void out(const char* name, void* p, int64_t count, size_t item) {
    emu::add_buffer(name, p, count * item, item, emu::Content::kDefined);
  }
  void scratch(const char* name, void* p, int64_t count, size_t item) {
    emu::add_buffer(name, p, count * item, item, emu::Content::kUndefined);
  }
};

template <auto kernel, class... Arguments>
const char* launch(const char* name, int64_t blocks, int threads, void* /*stream*/,
                   const Arguments&... arguments) {
  return emu::run(name, blocks, threads, [&] { kernel(arguments...); });
}

inline const char* fill_zero(void* p, size_t bytes, void* /*stream*/) {
  return emu::fill(p, bytes);
}

}  // namespace gankernels
