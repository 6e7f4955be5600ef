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

// The functions that targets have instructions of their own for:
//   stream_store             an aligned vector, past the caches where a target can
//   stream_end               before others may read what was streamed
//   widen_half, narrow_half  the first of n elements, as many as convert by fours; returns how many

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

#endif
