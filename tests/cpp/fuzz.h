// What the fuzzers share. A fuzzer draws cases: sizes around the constants that kernels cut their work
// by, layouts, dtypes, options, threads, instruction sets; and compares with plain loops in double.
//
//   fuzz_x [--seed WORD] [--cases N] [--seconds S] [--case NUMBER]
//
// The seed is any word, a commit's hash for example; else that of GANKERNELS_FUZZ_SEED, else "1". Every
// case has a number of its own, which says all about it: --case repeats it alone. Without --seconds the
// number of cases is fixed, so that a seed means the same cases everywhere. For programs of one source
// file.
#pragma once

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "cases.h"
#include "fuzz_sizes.h"

extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));

namespace fuzz {

using namespace cases;

#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kBehind = 0;  // a redzone begins where a block ends
#else
constexpr int64_t kBehind = 64;  // bytes behind a block that must stay as they are
#endif

// --- drawing -------------------------------------------------------------------------------------

// SplitMix64 (Steele, Lea and Flood 2014): the same numbers with every standard library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  // In [low, high].
  int64_t integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  bool chance(double p) { return uniform() < p; }

  template <class T>
  T pick(std::initializer_list<T> list) {
    return list.begin()[integer(0, static_cast<int64_t>(list.size()) - 1)];
  }
  template <class List>
  const auto& of(const List& list) {
    return list[integer(0, static_cast<int64_t>(std::size(list)) - 1)];
  }
  template <class T>
  void shuffle(std::vector<T>& list) {
    for (size_t i = list.size(); i > 1; --i) std::swap(list[i - 1], list[bits() % i]);
  }

  // A size in [1, most]: few, near a constant or a multiple of one, near a power of two, or any.
  int64_t size(int64_t most) {
    const auto bounded = [&](int64_t n) { return std::clamp<int64_t>(n, 1, most); };
    const int64_t kind = integer(0, 9);
    if (kind < 2) return bounded(integer(1, 9));
    if (kind == 9) return integer(1, most);
    int64_t center = int64_t{1} << integer(0, 63 - __builtin_clzll(static_cast<uint64_t>(most)));
    if (kind < 8) {
      const auto end = std::upper_bound(sizes().begin(), sizes().end(), most);
      if (end != sizes().begin()) center = sizes()[integer(0, end - sizes().begin() - 1)];
      if (chance(0.2))
        center *= integer(1, std::max<int64_t>(1, std::min<int64_t>(5, most / center)));
    }
    return bounded(center + pick<int64_t>({-1, 0, 0, 0, 1}));
  }

  // One of the divisors of n.
  int64_t divisor(int64_t n) {
    std::vector<int64_t> all;
    for (int64_t d = 1; d * d <= n; ++d)
      if (n % d == 0) {
        all.push_back(d);
        if (d != n / d) all.push_back(n / d);
      }
    return of(all);
  }

  DType dtype() { return of(kDTypes); }

 private:
  uint64_t state_;
};

// --- what a case is --------------------------------------------------------------------------------

inline std::string& description() {
  static std::string text;
  return text;
}
inline uint64_t& number() {
  static uint64_t case_number = 0;
  return case_number;
}
inline const char*& program() {
  static const char* name = "fuzz";
  return name;
}

__attribute__((format(printf, 1, 2))) inline void say(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  description() += text;
}

// Also called where a sanitizer or a signal ends the program: allocates nothing.
inline void print_case() {
  char head[160];
  std::snprintf(head, sizeof head, "\nThe case, repeated by %s --case %llu:\n", program(),
                static_cast<unsigned long long>(number()));
  for (const char* text : {static_cast<const char*>(head), description().c_str(), "\n"})
    if (::write(STDERR_FILENO, text, std::strlen(text)) < 0) return;
}

inline void on_signal(int which) {
  print_case();
  signal(which, SIG_DFL);
  raise(which);
}

// --- numbers ---------------------------------------------------------------------------------------

// Rounded to `digits` binary digits, ties to even; written apart from cpu/simd/scalars.h.
inline double rounded(double x, int digits, int least_exponent) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int unit = std::max(std::ilogb(x), least_exponent) - (digits - 1);
  return std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
}

inline double from_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  double x = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  if (exponent == 31) x = mantissa ? NAN : INFINITY;
  return bits & 0x8000 ? -x : x;
}

inline uint16_t to_half(double x) {
  const auto sign = static_cast<uint16_t>(std::signbit(x) ? 0x8000 : 0);
  const double a = std::abs(rounded(x, 11, -14));
  if (std::isnan(a)) return sign | 0x7e00;
  if (a >= 65536) return sign | 0x7c00;
  if (a < 0x1p-14) return static_cast<uint16_t>(sign | static_cast<int>(std::ldexp(a, 24)));
  const int exponent = std::ilogb(a);
  const int mantissa = static_cast<int>(std::ldexp(a, 10 - exponent)) - 1024;
  return static_cast<uint16_t>(sign | (exponent + 15) << 10 | mantissa);
}

// What a number may be off by where it is stored once, relative to itself; and at the least.
inline double unit(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 0x1p-53;
    case DType::kFloat32:
      return 0x1p-24;
    case DType::kBFloat16:
      return 0x1p-8;
    default:
      return 0x1p-11;
  }
}
inline double wide_unit(DType dtype) {
  return unit(accumulation(dtype));
}

// A block of memory of exactly n elements, `shift` elements into an allocation; what it held when it was
// frozen. New memory is NaN, of every dtype.
class Memory {
 public:
  Memory(DType dtype, int64_t n, int64_t shift = 0)
      : dtype(dtype),
        n(n),
        bytes_((n + shift) * static_cast<int64_t>(item_size(dtype)) + kBehind),
        block_(static_cast<char*>(std::malloc(bytes_ ? bytes_ : 1))),
        data(block_.get() + shift * item_size(dtype)) {
    std::memset(block_.get(), 0xff, bytes_);
    freeze();
  }

  double operator[](int64_t i) const {
    double x;
    float single;
    uint16_t half;
    switch (dtype) {
      case DType::kFloat64:
        std::memcpy(&x, data + 8 * i, 8);
        return x;
      case DType::kFloat32:
        std::memcpy(&single, data + 4 * i, 4);
        return single;
      case DType::kBFloat16: {
        std::memcpy(&half, data + 2 * i, 2);
        const uint32_t bits = static_cast<uint32_t>(half) << 16;
        std::memcpy(&single, &bits, 4);
        return single;
      }
      default:
        std::memcpy(&half, data + 2 * i, 2);
        return from_half(half);
    }
  }

  void set(int64_t i, double x) {
    auto single = static_cast<float>(x);
    uint16_t half;
    switch (dtype) {
      case DType::kFloat64:
        std::memcpy(data + 8 * i, &x, 8);
        return;
      case DType::kFloat32:
        std::memcpy(data + 4 * i, &single, 4);
        return;
      case DType::kBFloat16: {
        single = static_cast<float>(rounded(x, 8, -126));
        uint32_t bits;
        std::memcpy(&bits, &single, 4);
        half = static_cast<uint16_t>(bits >> 16);
        break;
      }
      default:
        half = to_half(x);
    }
    std::memcpy(data + 2 * i, &half, 2);
  }

  // Numbers of mean 0 and about the size of `scale`. Now and then a few are as large as all together,
  // at the end or where work is cut: sums over many do not tell without.
  void draw(Random& random, double scale = 1) {
    for (int64_t i = 0; i < n; ++i) set(i, scale * random.uniform(-1.7, 1.7));
    if (n > 16 && random.chance(0.5))
      for (const int64_t i : {n - 1, random.size(n) - 1, random.size(n) - 1})
        set(i, scale * random.pick({-0.4, 0.4}) * std::sqrt(static_cast<double>(n)));
    freeze();
  }

  Vector values() const {
    Vector out(n);
    for (int64_t i = 0; i < n; ++i) out[i] = (*this)[i];
    return out;
  }

  void freeze() { was_.assign(block_.get(), block_.get() + bytes_); }
  // As it was when it was frozen, in front of it and behind it too.
  bool untouched() const { return std::equal(was_.begin(), was_.end(), block_.get()); }
  // The same but for these elements.
  bool untouched_but(const std::vector<char>& elements) const {
    const auto item = static_cast<int64_t>(item_size(dtype)), front = data - block_.get();
    for (int64_t i = 0; i < bytes_; ++i) {
      const int64_t element = i < front ? -1 : (i - front) / item;
      if (element >= 0 && element < n && elements[element]) continue;
      if (was_[i] != block_.get()[i]) return false;
    }
    return true;
  }
  bool surroundings_untouched() const {
    const int64_t front = data - block_.get(), size = n * static_cast<int64_t>(item_size(dtype));
    return std::equal(was_.begin(), was_.begin() + front, block_.get()) &&
           std::equal(was_.begin() + front + size, was_.end(), data + size);
  }
  std::vector<char> contents() const {
    return {data, data + n * static_cast<int64_t>(item_size(dtype))};
  }

  DType dtype;
  int64_t n;

 private:
  struct Free {
    void operator()(char* block) const { std::free(block); }
  };
  int64_t bytes_;
  std::unique_ptr<char, Free> block_;
  std::vector<char> was_;

 public:
  char* data;
};

using Block = std::unique_ptr<Memory>;

// A block that begins anywhere.
inline Block block(Random& random, DType dtype, int64_t n) {
  const int64_t shift = random.chance(0.5) ? 0 : random.integer(1, 17);
  return std::make_unique<Memory>(dtype, n, shift);
}
inline Block drawn(Random& random, DType dtype, int64_t n, double scale = 1) {
  Block out = block(random, dtype, n);
  out->draw(random, scale);
  return out;
}

// Whether `found` is `right` up to `bound`, in a dtype that may be too narrow to hold it.
inline bool within(DType dtype, double found, double right, double bound) {
  if (std::isnan(right) ? std::isnan(found) : std::abs(found - right) <= bound) return true;
  if (found == right) return true;                              // infinite
  const double most = dtype == DType::kFloat16 ? 65504 : 1e38;  // what float16 holds
  return std::isinf(found) && found * right > 0 && std::abs(right) + bound >= most;
}

// Element i of `got` is `expected(i)`, rounded once, and off by at most `error(i)` before.
template <class Expected, class Error>
void near(const char* what, const Memory& got, int64_t n, Expected&& expected, Error&& error) {
  const double one = unit(got.dtype) * 1.001;
  const double least = got.dtype == DType::kFloat16   ? 0x1p-25
                       : got.dtype == DType::kFloat64 ? 1e-300
                                                      : 1e-37;
  for (int64_t i = 0; i < n; ++i) {
    const double right = expected(i), found = got[i],
                 bound = one * std::abs(right) + error(i) + least;
    if (within(got.dtype, found, right, bound)) continue;
    CHECK(false, "%s: element %ld of %ld is %.9g, expected %.9g within %.2g", what, long(i),
          long(n), found, right, bound);
    return;
  }
}

inline void near(const char* what, double got, double right, double bound) {
  CHECK((std::isnan(right) && std::isnan(got)) || got == right || std::abs(got - right) <= bound,
        "%s: %.12g, expected %.12g within %.2g", what, got, right, bound);
}

// --- settings of the machine -----------------------------------------------------------------------

inline void draw_isa(Random& random) {
  static const std::vector<const char*> all = gankernels::cpu::isas();
  gankernels::cpu::set_isa(random.of(all));
  say("%s", gankernels::cpu::isa());
}

// --- the loop --------------------------------------------------------------------------------------

inline uint64_t hash_of(const std::string& word) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : word) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

constexpr int kMostFailures = 5;        // cases
constexpr unsigned kMostSeconds = 120;  // a case: it hangs

inline void one_case(uint64_t case_number, const std::function<void(Random&)>& test) {
  number() = case_number;
  description().clear();
  Random random(case_number);
  alarm(kMostSeconds);
  const int before = failures;
  test(random);
  if (failures != before) {
    std::fflush(stdout);
    print_case();
  }
}

// Runs `cases` cases, or what the arguments say.
inline void run(int argc, char** argv, int64_t cases, const std::function<void(Random&)>& test) {
  program() = argv[0];
  const char* from_environment = std::getenv("GANKERNELS_FUZZ_SEED");
  std::string seed = from_environment && *from_environment ? from_environment : "1";
  double seconds = 0;
  const char* single = nullptr;
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (option == "--seed")
      seed = value;
    else if (option == "--cases")
      cases = std::atoll(value);
    else if (option == "--seconds")
      seconds = std::atof(value);
    else if (option == "--case")
      single = value;
    else {
      CHECK(false, "expected --seed, --cases, --seconds or --case, got %s", option.c_str());
      return;
    }
  }
  for (const int which : {SIGALRM, SIGABRT}) signal(which, on_signal);
  if (__sanitizer_set_death_callback)
    __sanitizer_set_death_callback(print_case);
  else
    for (const int which : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) signal(which, on_signal);
  if (single) {
    one_case(std::strtoull(single, nullptr, 10), test);
    std::printf("%s\n%d failures\n", description().c_str(), failures);
    return;
  }
  std::printf("%s --seed %s\n", argv[0], seed.c_str());
  std::fflush(stdout);
  const auto start = std::chrono::steady_clock::now();
  const auto passed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  Random numbers(hash_of(seed));
  int64_t done = 0;
  int failed = 0;
  for (; seconds > 0 ? passed() < seconds : done < cases; ++done) {
    const int before = failures;
    one_case(numbers.bits(), test);
    failed += failures != before;
    if (failed == kMostFailures) break;
  }
  std::printf("%ld cases in %.1f s, %d failures\n", long(done), passed(), failures);
}

}  // namespace fuzz

// Where the runtime of undefined behavior is one of its own, it says nothing before it ends.
extern "C" const char* __ubsan_default_options() {
  return "abort_on_error=1:print_stacktrace=1";
}
