// Included by each_target.inc in the namespace of every target, under its pragma: vectors, which
// are those of the compiler's extension, and what targets do by instructions of their own. The
// conditions are on a target's features: the macros of an instruction set, such as __AVX512F__, are
// not yet defined where a pragma has just chosen it. Everything is a template, so that what a
// condition leaves out is not compiled.

template <class T>
struct Vec {
  static constexpr int lanes = kVectorBytes / sizeof(T);
  typedef T type __attribute__((vector_size(kVectorBytes)));

  static type load(const T* p) {
    type x;
    __builtin_memcpy(&x, p, sizeof(x));
    return x;
  }
  static void store(T* p, type x) { __builtin_memcpy(p, &x, sizeof(x)); }
  static T sum(type x) {
    T lane[lanes];
    store(lane, x);
    for (int half = lanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
  }
};

// Half precision: as many elements as a vector has of float32, as they are stored and widened.
struct Bits {
  static constexpr int lanes = kVectorBytes / 4;
  typedef uint16_t half __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint16_t halves __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t whole __attribute__((vector_size(kVectorBytes)));
  typedef Vec<float>::type floats;
};

// The functions that targets have instructions of their own for:
//   stream_store             an aligned vector, past the caches where a target can
//   stream_end               before others may read what was streamed
//   widen_half, narrow_half  the first of n elements, as many as convert by fours; returns how many
//   widen_bits               with zeros before each
//   from_half, to_half       between float16 and float32

template <class B>
inline typename B::floats from_half_each(typename B::half x) {
  typename B::floats wide;
  for (int i = 0; i < B::lanes; ++i) wide[i] = ::gankernels::cpu::half_to_float(x[i]);
  return wide;
}
template <class B>
inline typename B::half to_half_each(typename B::floats x) {
  typename B::half bits;
  for (int i = 0; i < B::lanes; ++i) bits[i] = ::gankernels::cpu::float_to_half(x[i]);
  return bits;
}

#if defined(__x86_64__)

template <class T>
inline void stream_store(T* p, typename Vec<T>::type x) {
  if constexpr (has("avx512f"))
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(x));
  else if constexpr (has("avx2"))
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(x));
  else
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(x));
}

template <class T>
inline void stream_end() {
  _mm_sfence();  // streaming stores are weakly ordered
}

template <class T>
inline int64_t widen_half(const uint16_t* x, int64_t n, T* out) {
  int64_t i = 0;
  if constexpr (sizeof(T) == 4 && has("f16c")) {
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(out + i,
                       _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
    for (; i + 4 <= n; i += 4)
      _mm_storeu_ps(out + i,
                    _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + i))));
  }
  return i;
}

template <class T>
inline int64_t narrow_half(const T* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  if constexpr (sizeof(T) == 4 && has("f16c")) {
    for (; i + 8 <= n; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(x + i), kNearest));
    for (; i + 4 <= n; i += 4)
      _mm_storel_epi64(reinterpret_cast<__m128i*>(out + i),
                       _mm_cvtps_ph(_mm_loadu_ps(x + i), kNearest));
  }
  return i;
}

template <class B>
inline typename B::whole widen_bits(typename B::half x) {
  if constexpr (has("avx512f"))  // GCC warns of the conversions without a mask
    return reinterpret_cast<typename B::whole>(
        _mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(x)));
  else
    return __builtin_convertvector(x, typename B::whole);
}

template <class B>
inline typename B::floats from_half(typename B::half x) {
  if constexpr (has("avx512f"))
    return _mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(x));
  else if constexpr (has("f16c"))
    return _mm256_cvtph_ps(reinterpret_cast<__m128i>(x));
  else
    return from_half_each<B>(x);
}

template <class B>
inline typename B::half to_half(typename B::floats x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  if constexpr (has("avx512f"))
    return reinterpret_cast<typename B::half>(_mm512_maskz_cvtps_ph(0xffff, x, kNearest));
  else if constexpr (has("f16c"))
    return reinterpret_cast<typename B::half>(_mm256_cvtps_ph(x, kNearest));
  else
    return to_half_each<B>(x);
}

#elif defined(__aarch64__)

template <class T>
inline void stream_store(T* p, typename Vec<T>::type x) {
  Vec<T>::store(p, x);
}

template <class T>
inline void stream_end() {}

template <class T>
inline int64_t widen_half(const uint16_t* x, int64_t n, T* out) {
  int64_t i = 0;
  if constexpr (sizeof(T) == 4 && has("+simd")) {
    for (; i + 8 <= n; i += 8) {
      const float16x8_t half = vreinterpretq_f16_u16(vld1q_u16(x + i));
      vst1q_f32(out + i, vcvt_f32_f16(vget_low_f16(half)));
      vst1q_f32(out + i + 4, vcvt_high_f32_f16(half));
    }
    for (; i + 4 <= n; i += 4)
      vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + i))));
  }
  return i;
}

template <class T>
inline int64_t narrow_half(const T* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  if constexpr (sizeof(T) == 4 && has("+simd")) {
    for (; i + 8 <= n; i += 8) {
      const float16x4_t low = vcvt_f16_f32(vld1q_f32(x + i));
      vst1q_u16(out + i, vreinterpretq_u16_f16(vcvt_high_f16_f32(low, vld1q_f32(x + i + 4))));
    }
    for (; i + 4 <= n; i += 4)
      vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
  }
  return i;
}

template <class B>
inline typename B::whole widen_bits(typename B::half x) {
  return __builtin_convertvector(x, typename B::whole);
}

template <class B>
inline typename B::floats from_half(typename B::half x) {
  if constexpr (has("+simd"))
    return reinterpret_cast<typename B::floats>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(x)));
  else
    return from_half_each<B>(x);
}

template <class B>
inline typename B::half to_half(typename B::floats x) {
  if constexpr (has("+simd"))
    return reinterpret_cast<typename B::half>(vcvt_f16_f32(reinterpret_cast<float32x4_t>(x)));
  else
    return to_half_each<B>(x);
}

#else

template <class T>
inline void stream_store(T* p, typename Vec<T>::type x) {
  Vec<T>::store(p, x);
}
template <class T>
inline void stream_end() {}
template <class T>
inline int64_t widen_half(const uint16_t*, int64_t, T*) {
  return 0;
}
template <class T>
inline int64_t narrow_half(const T*, int64_t, uint16_t*) {
  return 0;
}

template <class B>
inline typename B::whole widen_bits(typename B::half x) {
  return __builtin_convertvector(x, typename B::whole);
}
template <class B>
inline typename B::floats from_half(typename B::half x) {
  return from_half_each<B>(x);
}
template <class B>
inline typename B::half to_half(typename B::floats x) {
  return to_half_each<B>(x);
}

#endif

// A vector of T, what S is accumulated in, from elements as they are stored, and back.
template <class S>
inline typename Vec<Accumulation<S>>::type load_wide(const S* p) {
  if constexpr (sizeof(S) != 2) {
    return Vec<S>::load(p);
  } else {
    Bits::half x;
    __builtin_memcpy(&x, p, sizeof(x));
    if constexpr (std::is_same_v<S, Half>)
      return from_half<Bits>(x);
    else  // the upper halves of float32
      return reinterpret_cast<Vec<float>::type>(widen_bits<Bits>(x) << 16);
  }
}

// float_to_bfloat16 of scalars.h: the numbers are the upper halves of these.
inline Bits::whole rounded_to_upper(Bits::floats x) {
  const auto bits = reinterpret_cast<Bits::whole>(x);
  const Bits::whole rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return x != x ? bits | 0x400000 : rounded;
}

template <class S>
inline void store_narrow(S* p, typename Vec<Accumulation<S>>::type x) {
  if constexpr (sizeof(S) != 2) {
    Vec<S>::store(p, x);
  } else {
    Bits::half bits;
    if constexpr (std::is_same_v<S, Half>)
      bits = to_half<Bits>(x);
    else
      bits = __builtin_convertvector(rounded_to_upper(x) >> 16, Bits::half);
    __builtin_memcpy(p, &bits, sizeof(bits));
  }
}

// As many elements as fill a vector, from one vector of T, or from two.
template <class S>
constexpr int kVectors = sizeof(Accumulation<S>) / sizeof(S);

template <class A, int... kIndex>
inline auto chosen(A a, A b, std::integer_sequence<int, kIndex...>) {
  return __builtin_shufflevector(a, b, kIndex...);
}
template <int... kIndex>
constexpr auto odd_numbers(std::integer_sequence<int, kIndex...>) {
  return std::integer_sequence<int, 2 * kIndex + 1 ...>{};
}

template <class S, bool kStream>
inline void store_filled(S* p, const typename Vec<Accumulation<S>>::type (&x)[kVectors<S>]) {
  using T = Accumulation<S>;
  typename Vec<T>::type filled;
  if constexpr (sizeof(S) != 2) {
    filled = x[0];
  } else if constexpr (std::is_same_v<S, Half>) {
    constexpr auto kAll = std::make_integer_sequence<int, 2 * Bits::lanes>{};
    filled =
        reinterpret_cast<decltype(filled)>(chosen(to_half<Bits>(x[0]), to_half<Bits>(x[1]), kAll));
  } else {
    constexpr auto kUpper = odd_numbers(std::make_integer_sequence<int, 2 * Bits::lanes>{});
    filled = reinterpret_cast<decltype(filled)>(
        chosen(reinterpret_cast<Bits::halves>(rounded_to_upper(x[0])),
               reinterpret_cast<Bits::halves>(rounded_to_upper(x[1])), kUpper));
  }
  if constexpr (kStream)
    stream_store<T>(reinterpret_cast<T*>(p), filled);
  else
    __builtin_memcpy(p, &filled, sizeof(filled));
}
