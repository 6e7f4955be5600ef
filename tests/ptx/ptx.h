// What translated PTX is written in: values, arithmetic with PTX's rules, checked memory, and the calls
// by which a thread waits. Included by the files that translate.py writes, and by runtime.cpp.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;

// One 4-byte word of shared memory: who touched it since when. An epoch lies between two barriers.
struct Word {
  u32 write_epoch, read_epoch;  // 0: never
  u16 writer, reader;
  u16 exists, many_readers;
  u32 awaited;  // a copy that has not arrived
};
constexpr u16 kAtomically = 0xffff;  // the writer of words that atomics wrote

struct Context {
  u32 tid, ntid, ctaid, nctaid;
  const char* param;
  u32 param_size;
  char* shared;
  Word* words;
  u32 shared_size;
  u32 epoch;
  u32* visits;  // of this thread, by block of instructions
};

constexpr u32 kParamBase = 0x1000;  // so that an address of one space is none of another
constexpr u32 kSharedBase = 0x1000;

struct Param {
  u32 offset, size, align;
};
struct Variable {
  const char* name;
  u32 offset, size;
};
// Instructions without a jump into them or out of them.
struct Block {
  u32 line, instructions;
};
struct Kernel {
  const char* name;
  void (*run)(Context&);
  u32 threads;  // .maxntid
  u32 param_count;
  const Param* params;
  u32 param_size;
  u32 variable_count;
  const Variable* variables;
  u32 shared_size;    // of our layout, with gaps between variables
  u32 declared_size;  // of the variables
  u32 block_count;
  const Block* blocks;
  u64* issues;  // by block of instructions: of warps
};
struct Module {
  Module(u64 text_hash, const char* file, const Kernel* const* kernels, u32 count);
};

// Ends the launch: `what` is reported to the host as the launch's error.
[[noreturn, gnu::cold]] void fault(const Context& c, const char* what, u64 address, u32 line);
void bar_sync(Context& c, u32 id, u32 line);
// Waits for the lanes of `mask`; sets *in_range to whether the lane that was read exists.
enum class Warp : u8 { kUp, kDown, kXor, kIndex, kBallot };
u32 exchange(Context& c, Warp how, u32 value, u32 lanes, u32 clamp, u32 mask, bool* in_range,
             u32 line);
// An asynchronous copy arrives when its thread waits for all but the last `pending` groups, and with
// ~0u for those that are in no group, too.
void cp_async(Context& c, u64 to, u64 from, u32 bytes, u32 line);
void cp_async_commit(Context& c);
void cp_async_wait(Context& c, u32 pending, u32 line);

// --- bits -------------------------------------------------------------------------------------------

template <class T>
using Bits = std::conditional_t<
    sizeof(T) == 1, u8,
    std::conditional_t<sizeof(T) == 2, u16, std::conditional_t<sizeof(T) == 4, u32, u64>>>;

// A register of type R read as a T: the same bits, or the low ones.
template <class T, class R>
inline T get(R r) {
  static_assert(sizeof(T) <= sizeof(R));
  return std::bit_cast<T>(static_cast<Bits<T>>(std::bit_cast<Bits<R>>(r)));
}
// A T put into a register of type R: the same bits, or extended by its sign.
template <class R, class T>
inline R put(T x) {
  static_assert(sizeof(T) <= sizeof(R));
  if constexpr (sizeof(T) == sizeof(R)) {
    return std::bit_cast<R>(x);
  } else {
    static_assert(std::is_integral_v<T>);
    using Wide = std::conditional_t<std::is_signed_v<T>, std::make_signed_t<Bits<R>>, Bits<R>>;
    return std::bit_cast<R>(static_cast<Wide>(x));
  }
}
constexpr f32 F32(u32 bits) {
  return std::bit_cast<f32>(bits);
}
constexpr f64 F64(u64 bits) {
  return std::bit_cast<f64>(bits);
}

// --- arithmetic -------------------------------------------------------------------------------------

// With an explicit .rn ptxas must not fuse it with another; without, it may (-ffp-contract=fast plays
// that; see build.py --fuse).
inline f32 exactly(f32 x) {
  asm("" : "+x"(x));
  return x;
}
inline f64 exactly(f64 x) {
  asm("" : "+x"(x));
  return x;
}

template <class T>
inline T add(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return a + b;
  else
    return static_cast<T>(static_cast<Bits<T>>(a) + static_cast<Bits<T>>(b));
}
template <class T>
inline T sub(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return a - b;
  else
    return static_cast<T>(static_cast<Bits<T>>(a) - static_cast<Bits<T>>(b));
}
template <class T>
inline T mul(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return a * b;
  else
    return static_cast<T>(u64{static_cast<Bits<T>>(a)} * static_cast<Bits<T>>(b));
}
template <class T>
inline auto mul_wide(T a, T b) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4);
  using Unsigned = std::conditional_t<sizeof(T) == 2, u32, u64>;
  using Wide = std::conditional_t<std::is_signed_v<T>, std::make_signed_t<Unsigned>, Unsigned>;
  return static_cast<Wide>(static_cast<Wide>(a) * static_cast<Wide>(b));
}
template <class T>
inline T mul_hi(T a, T b) {
  if constexpr (sizeof(T) == 4) return static_cast<T>(mul_wide(a, b) >> 32);
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> 64);
}
// The upper (left) or lower half of b:a, shifted by the low bits of n, or by at most 32.
inline u32 funnel(u32 a, u32 b, u32 n, bool left, bool clamp) {
  n = clamp ? (n > 32 ? 32 : n) : n & 31;
  const u64 both = u64{b} << 32 | a;
  return static_cast<u32>(left ? both << n >> 32 : both >> n);
}
inline f32 fma(f32 a, f32 b, f32 c) {
  return __builtin_fmaf(a, b, c);
}
inline f64 fma(f64 a, f64 b, f64 c) {
  return __builtin_fma(a, b, c);
}

template <class T>
inline T divide(const Context& c, T a, T b, bool remainder, u32 line) {
  if (b == 0) fault(c, "integer division by zero", 0, line);
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return remainder ? 0 : sub<T>(0, a);
  return static_cast<T>(remainder ? a % b : a / b);
}

// The number where the other is NaN; -0 is below +0.
template <class T>
inline T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (a != a) return b;
    if (b != b) return a;
    if (a == b) return std::signbit(a) ? a : b;
  }
  return a < b ? a : b;
}
template <class T>
inline T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (a != a) return b;
    if (b != b) return a;
    if (a == b) return std::signbit(a) ? b : a;
  }
  return a < b ? b : a;
}
template <class T>
inline T neg(T a) {
  if constexpr (std::is_floating_point_v<T>)
    return -a;
  else
    return sub<T>(0, a);
}
template <class T>
inline T abs(T a) {
  if constexpr (std::is_floating_point_v<T>)
    return std::fabs(a);
  else
    return a < 0 ? neg(a) : a;
}

template <class T>
inline T shl(T a, u32 n) {
  return n >= sizeof(T) * 8 ? T{0} : static_cast<T>(static_cast<Bits<T>>(a) << n);
}
template <class T>
inline T shr(T a, u32 n) {
  constexpr u32 kMost = sizeof(T) * 8;
  if (n >= kMost) return a < T{0} ? static_cast<T>(-1) : T{0};
  return static_cast<T>(a >> n);
}
// Puts the low `length` bits of `from` into `into`, at `position`.
template <class T>
inline T bfi(T from, T into, u32 position, u32 length) {
  position &= 0xff, length &= 0xff;
  for (u32 i = 0; i < length && position + i < sizeof(T) * 8; ++i) {
    const T bit = T{1} << (position + i);
    into = (from >> i & 1) ? into | bit : into & ~bit;
  }
  return into;
}
// Four bytes of the eight of a and b, or eight times their sign, as the nibbles of `choice` say.
inline u32 prmt(u32 a, u32 b, u32 choice) {
  const u64 bytes = u64{b} << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 nibble = choice >> (4 * i) & 15;
    const u32 byte = bytes >> (8 * (nibble & 7)) & 0xff;
    result |= (nibble & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << (8 * i);
  }
  return result;
}

// --- comparisons: the ones with a u are true where an operand is NaN ----------------------------------

#define PTX_COMPARE(name, op)          \
  template <class T>                   \
  inline bool name(T a, T b) {         \
    return a op b;                     \
  }                                    \
  template <class T>                   \
  inline bool name##u(T a, T b) {      \
    return a != a || b != b || a op b; \
  }
PTX_COMPARE(lt, <)
PTX_COMPARE(le, <=)
PTX_COMPARE(gt, >)
PTX_COMPARE(ge, >=)
PTX_COMPARE(eq, ==)
#undef PTX_COMPARE
template <class T>
inline bool ne(T a, T b) {
  return a == a && b == b && a != b;
}
template <class T>
inline bool neu(T a, T b) {
  return !(a == b);
}
template <class T>
inline bool num(T a, T b) {
  return a == a && b == b;
}
template <class T>
inline bool nan(T a, T b) {
  return !num(a, b);
}

// --- conversions --------------------------------------------------------------------------------------

// Towards zero, saturated. Of NaN: the lowest number where either side has 64 bits, else 0 (PTX ISA,
// cvt); the x86 instructions say otherwise.
template <class To, class From>
inline To to_integer(From x) {
  constexpr bool kWide = sizeof(From) == 8 || sizeof(To) == 8;
  static_assert(std::is_signed_v<To>);
  if (x != x) return kWide ? std::numeric_limits<To>::min() : 0;
  x = std::trunc(x);
  const From limit = std::ldexp(From{1}, sizeof(To) * 8 - 1);
  if (x >= limit) return std::numeric_limits<To>::max();
  if (x < -limit) return std::numeric_limits<To>::min();
  return static_cast<To>(x);
}
inline f32 f32_of_f16(u16 x) {
  return static_cast<f32>(std::bit_cast<_Float16>(x));
}
inline u16 f16_of_f32(f32 x) {
  return x != x ? u16{0x7fff} : std::bit_cast<u16>(static_cast<_Float16>(x));
}
inline f32 f32_of_bf16(u16 x) {
  return std::bit_cast<f32>(static_cast<u32>(x) << 16);
}
inline u16 bf16_of_f32(f32 x) {
  if (x != x) return 0x7fff;
  const u32 bits = std::bit_cast<u32>(x), low = bits & 0xffff, high = bits >> 16;
  return static_cast<u16>(high + (low > 0x8000 || (low == 0x8000 && (high & 1))));
}

// --- memory: N elements at their common alignment ------------------------------------------------------

template <class T, int N>
struct Elements {
  T at[N];
};

template <class T, int N>
inline void check_global(const Context& c, u64 address, u32 line) {
  if (address % (N * sizeof(T))) fault(c, "misaligned access to global memory", address, line);
  if (address < 0x10000) fault(c, "access to global memory at an address near null", address, line);
}
template <class T, int N>
inline Elements<T, N> ld_global(const Context& c, u64 address, u32 line) {
  check_global<T, N>(c, address, line);
  Elements<T, N> x;
  const T* p =
      reinterpret_cast<const T*>(address);  // element by element: AddressSanitizer checks each
  for (int i = 0; i < N; ++i) x.at[i] = p[i];
  return x;
}
template <class T, int N>
inline void st_global(const Context& c, u64 address, const Elements<T, N>& x, u32 line) {
  check_global<T, N>(c, address, line);
  T* p = reinterpret_cast<T*>(address);
  for (int i = 0; i < N; ++i) p[i] = x.at[i];
}
// f(what is there) is put there.
template <class T, class F>
inline T atom_global(const Context& c, u64 address, F f, u32 line) {
  check_global<T, 1>(c, address, line);
  T* p = reinterpret_cast<T*>(address);
  return std::exchange(*p, f(*p));
}

template <class T, int N>
inline Elements<T, N> ld_param(const Context& c, u64 address, u32 line) {
  const u64 offset = address - kParamBase;
  if (offset > c.param_size || N * sizeof(T) > c.param_size - offset)
    fault(c, "access outside of the kernel's parameters", address, line);
  if (offset % (N * sizeof(T))) fault(c, "misaligned access to a parameter", address, line);
  Elements<T, N> x;
  std::memcpy(&x, c.param + offset, sizeof x);
  return x;
}

template <class T, int N>
inline u64 check_shared(const Context& c, u64 address, bool write, u32 line, bool atomic = false,
                        u32 unused = 0) {
  constexpr u32 kSize = N * sizeof(T);
  static_assert(sizeof(T) >= 4, "races are looked for in words");
  const u64 offset = address - kSharedBase;
  if (offset > c.shared_size || kSize > c.shared_size - offset)
    fault(c, "access outside of shared memory", address, line);
  if (offset % kSize) fault(c, "misaligned access to shared memory", address, line);
  for (u32 k = 0; k < kSize / 4; ++k) {
    if (unused >> k & 1) continue;
    Word& w = c.words[offset / 4 + k];
    if (!w.exists) fault(c, "access between the variables of shared memory", address, line);
    if (w.awaited) fault(c, "access to shared memory before a copy has arrived", address, line);
    if ((!write || atomic) && !w.write_epoch)
      fault(c, "read of shared memory that was not written", address, line);
    if (w.write_epoch == c.epoch && w.writer != c.tid && !(atomic && w.writer == kAtomically))
      fault(c,
            write ? "race in shared memory: written by two threads"
                  : "race in shared memory: read after another thread's write",
            address, line);
    const bool read_now = w.read_epoch == c.epoch;
    if (write) {
      if (read_now && (w.many_readers || w.reader != c.tid))
        fault(c, "race in shared memory: written after another thread's read", address, line);
      w.write_epoch = c.epoch, w.writer = atomic ? kAtomically : static_cast<u16>(c.tid);
    } else {
      w.many_readers = read_now && (w.many_readers || w.reader != c.tid);
      w.read_epoch = c.epoch, w.reader = static_cast<u16>(c.tid);
    }
  }
  return offset;
}
// `unused`: words that nobody looks at, as those between the members of a struct.
template <class T, int N>
inline Elements<T, N> ld_shared(const Context& c, u64 address, u32 line, u32 unused = 0) {
  const u64 offset = check_shared<T, N>(c, address, false, line, false, unused);
  Elements<T, N> x;
  std::memcpy(&x, c.shared + offset, sizeof x);
  return x;
}
template <class T, int N>
inline void st_shared(const Context& c, u64 address, const Elements<T, N>& x, u32 line) {
  const u64 offset = check_shared<T, N>(c, address, true, line);
  std::memcpy(c.shared + offset, &x, sizeof x);
}

template <class T, class F>
inline T atom_shared(const Context& c, u64 address, F f, u32 line) {
  T* p = reinterpret_cast<T*>(c.shared + check_shared<T, 1>(c, address, true, line, true));
  return std::exchange(*p, f(*p));
}

}  // namespace ptx
