// Vectors of one instruction set. A Vec<T, U> is U registers of lanes worked on side by side, so that the long
// dependent chains of exp and log overlap. This is the only file that knows intrinsics; what is above it is written
// once, for AVX-512, AVX2 and 16-byte vectors (SSE2, NEON). Needs GCC's vector extensions (GCC or Clang).
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__SANITIZE_ADDRESS__)  // checks around every access: hours to compile if each call is a copy
#define IMBLOSS_INLINE inline
#else
#define IMBLOSS_INLINE inline __attribute__((always_inline))
#endif
#define IMBLOSS_INLINE_LAMBDA __attribute__((always_inline))
#define IMBLOSS_UNROLL _Pragma("GCC unroll 16")

namespace imbloss {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif
inline constexpr int kLineBytes = 64;  // of the caches

// The 16-bit storage types, by their bits: they are read into float32 lanes and rounded when stored.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The type a kernel computes in for logits stored as S.
template <class S>
using Accumulate = std::conditional_t<std::is_same_v<S, double> || std::is_same_v<S, int32_t>, S, float>;

template <class T>
struct RegisterOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Register = typename RegisterOf<T>::type;
template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
template <class T>
inline constexpr int kLanes = kVectorBytes / sizeof(T);

#if defined(__AVX512F__)
template <class T>
using MaskRegister = std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8>;
#else
template <class T>
using MaskRegister = Register<BitsOf<T>>;
#endif

template <class T, int U = 1>
struct Vec {
  using Element = T;
  static constexpr int size = U * kLanes<T>;
  Register<T> r[U];

  Vec() = default;
  static IMBLOSS_INLINE Vec of(Register<T> x) {
    static_assert(U == 1);
    Vec v;
    v.r[0] = x;
    return v;
  }
  IMBLOSS_INLINE Vec(T x) {  // every lane
    IMBLOSS_UNROLL
    for (int i = 0; i < U; i++) r[i] = x - Register<T>{};
  }
};

template <class T, int U = 1>
struct Mask {
  MaskRegister<T> r[U];
};

// The first n lanes of one register: the end of a row.
template <class T>
struct Part {
  MaskRegister<T> r;
  int n;
};

// ---- arithmetic: the compiler's own, a lane at a time in the source, a register at a time in the code ----
// Whole numbers wrap around, which only unsigned ones may.
template <class T>
using Wrapping = Register<std::conditional_t<std::is_same_v<T, int32_t>, uint32_t,
                                             std::conditional_t<std::is_same_v<T, int64_t>, uint64_t, T>>>;

#define IMBLOSS_BINARY(op)                                                     \
  template <class T, int U>                                                    \
  IMBLOSS_INLINE Vec<T, U> operator op(Vec<T, U> a, Vec<T, U> b) {             \
    Vec<T, U> c;                                                               \
    IMBLOSS_UNROLL                                                             \
    for (int i = 0; i < U; i++) {                                              \
      auto x = (Wrapping<T>)a.r[i], y = (Wrapping<T>)b.r[i];                   \
      c.r[i] = (Register<T>)(x op y);                                          \
    }                                                                          \
    return c;                                                                  \
  }                                                                            \
  template <class T, int U>                                                    \
  IMBLOSS_INLINE Vec<T, U> operator op(Vec<T, U> a, std::common_type_t<T> b) { \
    return a op Vec<T, U>(b);                                                  \
  }                                                                            \
  template <class T, int U>                                                    \
  IMBLOSS_INLINE Vec<T, U> operator op(std::common_type_t<T> a, Vec<T, U> b) { \
    return Vec<T, U>(a) op b;                                                  \
  }
IMBLOSS_BINARY(+)
IMBLOSS_BINARY(-)
IMBLOSS_BINARY(*)
IMBLOSS_BINARY(/)
IMBLOSS_BINARY(&)
IMBLOSS_BINARY(|)
IMBLOSS_BINARY(^)
#undef IMBLOSS_BINARY

template <class T, int U>
IMBLOSS_INLINE Vec<T, U> operator-(Vec<T, U> a) {
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) a.r[i] = -a.r[i];
  return a;
}
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> operator<<(Vec<T, U> a, int n) {
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) a.r[i] = (Register<T>)((Wrapping<T>)a.r[i] << n);
  return a;
}
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> operator>>(Vec<T, U> a, int n) {  // arithmetic
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) a.r[i] = a.r[i] >> n;
  return a;
}
template <class T, int U>
IMBLOSS_INLINE Vec<BitsOf<T>, U> to_bits(Vec<T, U> a) {
  Vec<BitsOf<T>, U> b;
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) b.r[i] = (Register<BitsOf<T>>)a.r[i];
  return b;
}
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> from_bits(Vec<BitsOf<T>, U> a) {
  Vec<T, U> b;
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) b.r[i] = (Register<T>)a.r[i];
  return b;
}

// ---- what differs between instruction sets, on one register ----
#if defined(__AVX512F__)
IMBLOSS_INLINE __m512 max_register(Register<float> a, Register<float> b) { return _mm512_max_ps(a, b); }
IMBLOSS_INLINE __m512d max_register(Register<double> a, Register<double> b) { return _mm512_max_pd(a, b); }
IMBLOSS_INLINE __mmask16 less_register(Register<float> a, Register<float> b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
IMBLOSS_INLINE __mmask8 less_register(Register<double> a, Register<double> b) {
  return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ);
}
IMBLOSS_INLINE __mmask16 equal_register(Register<float> a, Register<float> b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}
IMBLOSS_INLINE __mmask8 equal_register(Register<double> a, Register<double> b) {
  return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ);
}
IMBLOSS_INLINE Register<float> select_register(__mmask16 m, Register<float> a, Register<float> b) {
  return _mm512_mask_blend_ps(m, b, a);
}
IMBLOSS_INLINE Register<double> select_register(__mmask8 m, Register<double> a, Register<double> b) {
  return _mm512_mask_blend_pd(m, b, a);
}
#else
IMBLOSS_INLINE Register<float> max_register(Register<float> a, Register<float> b) {
#if defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return __builtin_ia32_maxps(a, b);
#else
  return a > b ? a : b;
#endif
}
IMBLOSS_INLINE Register<double> max_register(Register<double> a, Register<double> b) {
#if defined(__AVX2__)
  return _mm256_max_pd(a, b);
#elif defined(__SSE2__)
  return __builtin_ia32_maxpd(a, b);
#else
  return a > b ? a : b;
#endif
}
template <class R>
IMBLOSS_INLINE auto less_register(R a, R b) {
  return a < b;
}
template <class R>
IMBLOSS_INLINE auto equal_register(R a, R b) {
  return a == b;
}
template <class M, class R>
IMBLOSS_INLINE R select_register(M m, R a, R b) {
  return m ? a : b;
}
#endif

template <class R>
IMBLOSS_INLINE R min_register(R a, R b) {  // the smaller; b where either is NaN
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == 4) return _mm512_min_ps(a, b);
  else return _mm512_min_pd(a, b);
#elif defined(__AVX2__)
  if constexpr (sizeof(a[0]) == 4) return _mm256_min_ps(a, b);
  else return _mm256_min_pd(a, b);
#elif defined(__SSE2__)
  if constexpr (sizeof(a[0]) == 4) return __builtin_ia32_minps(a, b);
  else return __builtin_ia32_minpd(a, b);
#else
  return a < b ? a : b;
#endif
}

// How many parts of an octave there are powers for in a register: 2^(j / kPowers). None where lanes do not move freely.
#if defined(__AVX512F__)
inline constexpr int kPowers = 16;
#elif defined(__AVX2__)
inline constexpr int kPowers = 8;
#else
inline constexpr int kPowers = 0;
#endif

// 2^(octaves + k / kPowers) of whole k whose last 13 bits are those of the lanes. An entry of the table is the bits of
// 2^(j / kPowers) less what the last bits of k add to the exponent.
template <int octaves>
IMBLOSS_INLINE Register<float> power_register(Register<int32_t> k) {
  [[maybe_unused]] auto add = [](auto a, auto b) { return (Wrapping<int32_t>)a + (Wrapping<int32_t>)b; };
#if defined(__AVX512F__)
  constexpr Register<int32_t> table = {0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532,
                                       0x3f75fed7, 0x3f75583f, 0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
                                       0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
  const __m512i entry = _mm512_permutexvar_epi32((__m512i)k, (__m512i)(table + (octaves << 23)));
  return (Register<float>)add(_mm512_slli_epi32((__m512i)k, 19), entry);
#elif defined(__AVX2__)
  constexpr Register<int32_t> table = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                       0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
  const __m256i entry = _mm256_permutevar8x32_epi32((__m256i)(table + (octaves << 23)), (__m256i)k);
  return (Register<float>)add(_mm256_slli_epi32((__m256i)k, 20), entry);
#else
  return (Register<float>)k;
#endif
}

// p * 2^n for whole n <= 100 (900), p about 1. Underflow is gradual, down to 0.
IMBLOSS_INLINE Register<float> scale_register(Register<float> p, Register<float> n) {
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else  // by exponent bits, 2^24 too large so that they do not wrap around
  return p * (Register<float>)((Register<int32_t>)(n + (0x1.8p23f + 127 + 24)) << 23) * 0x1p-24f;
#endif
}
IMBLOSS_INLINE Register<double> scale_register(Register<double> p, Register<double> n) {
#if defined(__AVX512F__)
  return _mm512_scalef_pd(p, n);
#else
  return p * (Register<double>)((Register<int64_t>)(n + (0x1.8p52 + 1023 + 54)) << 52) * 0x1p-54;
#endif
}

// 1 / x of normal numbers whose reciprocals are normal: 1 ulp.
IMBLOSS_INLINE Register<float> reciprocal_register(Register<float> x) {
#if defined(__AVX512F__)
  const Register<float> r = _mm512_rcp14_ps(x);  // and a step of Newton's
  return r + r * (1 - x * r);
#else
  return 1 / x;
#endif
}
IMBLOSS_INLINE Register<double> reciprocal_register(Register<double> x) { return 1 / x; }

// ---- the same on Vec ----
// The larger of two; b where either is NaN.
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> max(Vec<T, U> a, Vec<T, U> b) {
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) a.r[i] = max_register(a.r[i], b.r[i]);
  return a;
}
// The smaller of two; b where either is NaN.
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> min(Vec<T, U> a, Vec<T, U> b) {
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) a.r[i] = min_register(a.r[i], b.r[i]);
  return a;
}
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> abs(Vec<T, U> a) {
  return from_bits<T>(to_bits(a) & static_cast<BitsOf<T>>(~(uint64_t(1) << (8 * sizeof(T) - 1))));
}
// The larger of a >= 0 and |b|; either where one is NaN.
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> larger_abs(Vec<T, U> a, Vec<T, U> b) {
#if defined(__AVX512DQ__)
  constexpr int larger_magnitude_without_sign = 0b1011;
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) {
    if constexpr (sizeof(T) == 4) a.r[i] = _mm512_range_ps(a.r[i], b.r[i], larger_magnitude_without_sign);
    else a.r[i] = _mm512_range_pd(a.r[i], b.r[i], larger_magnitude_without_sign);
  }
  return a;
#else
  return max(a, abs(b));
#endif
}
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> minus_abs(Vec<T, U> a) {
  return from_bits<T>(to_bits(a) | Vec<BitsOf<T>, U>(std::numeric_limits<BitsOf<T>>::min()));
}
template <class T, int U>
IMBLOSS_INLINE Mask<T, U> operator<(Vec<T, U> a, Vec<T, U> b) {
  Mask<T, U> m;
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) m.r[i] = less_register(a.r[i], b.r[i]);
  return m;
}
template <class T, int U>
IMBLOSS_INLINE Mask<T, U> operator==(Vec<T, U> a, Vec<T, U> b) {
  Mask<T, U> m;
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) m.r[i] = equal_register(a.r[i], b.r[i]);
  return m;
}
template <class T, int U>
IMBLOSS_INLINE Mask<T, U> operator&(Mask<T, U> a, Mask<T, U> b) {
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) a.r[i] = a.r[i] & b.r[i];
  return a;
}
template <class T, int U>
IMBLOSS_INLINE Mask<T, U> operator|(Mask<T, U> a, Mask<T, U> b) {
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) a.r[i] = a.r[i] | b.r[i];
  return a;
}
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> select(Mask<T, U> m, Vec<T, U> a, Vec<T, U> b) {
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) a.r[i] = select_register(m.r[i], a.r[i], b.r[i]);
  return a;
}
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> scale_by_power(Vec<T, U> p, Vec<T, U> n) {
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) p.r[i] = scale_register(p.r[i], n.r[i]);
  return p;
}

template <class T, int U>
IMBLOSS_INLINE Vec<T, U> reciprocal(Vec<T, U> x) {
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) x.r[i] = reciprocal_register(x.r[i]);
  return x;
}

// ---- lanes moved about: what walks over several rows at a time needs ----
#if defined(__AVX512F__) || defined(__AVX2__)
#define IMBLOSS_MOVES_LANES 1
// Lane i of the result is lane index[i].
IMBLOSS_INLINE Vec<float> permute(Vec<float> v, const int32_t* index) {
  Vec<float> moved;
#if defined(__AVX512F__)
  moved.r[0] = _mm512_permutexvar_ps(_mm512_loadu_si512(index), v.r[0]);
#else
  moved.r[0] = _mm256_permutevar8x32_ps(v.r[0], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)));
#endif
  return moved;
}

// Splits pairs that lie one after the other into first and second halves, and puts them together again.
IMBLOSS_INLINE void split_pairs(Register<float> low, Register<float> high, Register<float>& first,
                                Register<float>& second) {
#if defined(__AVX512F__)
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  first = _mm512_permutex2var_ps(low, even, high);
  second = _mm512_permutex2var_ps(low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high);
#else
  auto in_order = [](__m256 v) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8)); };
  first = in_order(_mm256_shuffle_ps(low, high, 0x88));
  second = in_order(_mm256_shuffle_ps(low, high, 0xdd));
#endif
}
IMBLOSS_INLINE void join_pairs(Register<float> first, Register<float> second, Register<float>& low,
                               Register<float>& high) {
#if defined(__AVX512F__)
  const __m512i order = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  low = _mm512_permutex2var_ps(first, order, second);
  high = _mm512_permutex2var_ps(first, _mm512_add_epi32(order, _mm512_set1_epi32(8)), second);
#else
  const __m256 a = _mm256_unpacklo_ps(first, second), b = _mm256_unpackhi_ps(first, second);
  low = _mm256_permute2f128_ps(a, b, 0x20);
  high = _mm256_permute2f128_ps(a, b, 0x31);
#endif
}

// Part `part` of triples that lie one after the other in three registers.
template <int part, size_t... I>
IMBLOSS_INLINE Register<float> part_of_triples(const Register<float>* all, std::index_sequence<I...>) {
  constexpr int lanes = kLanes<float>;
  auto v = __builtin_shufflevector(all[0], all[1], (int(3 * I) + part < 2 * lanes ? int(3 * I) + part : 0)...);
  return __builtin_shufflevector(v, all[2], (int(3 * I) + part < 2 * lanes ? int(I) : int(3 * I) + part - lanes)...);
}
// Register `which` of the three that hold triples of the parts.
template <int which, size_t... I>
IMBLOSS_INLINE Register<float> register_of_triples(const Register<float>* parts, std::index_sequence<I...>) {
  constexpr int lanes = kLanes<float>, at = which * lanes;
  auto v = __builtin_shufflevector(parts[0], parts[1], ((at + int(I)) / 3 + ((at + int(I)) % 3 == 1 ? lanes : 0))...);
  return __builtin_shufflevector(v, parts[2], ((at + int(I)) % 3 == 2 ? lanes + (at + int(I)) / 3 : int(I))...);
}
// Triples into first, second and third parts, and back.
IMBLOSS_INLINE Vec<float, 3> split_triples(Vec<float, 3> v) {
  constexpr std::make_index_sequence<kLanes<float>> lanes;
  Vec<float, 3> parts;
  parts.r[0] = part_of_triples<0>(v.r, lanes);
  parts.r[1] = part_of_triples<1>(v.r, lanes);
  parts.r[2] = part_of_triples<2>(v.r, lanes);
  return parts;
}
IMBLOSS_INLINE Vec<float, 3> join_triples(Vec<float, 3> parts) {
  constexpr std::make_index_sequence<kLanes<float>> lanes;
  Vec<float, 3> v;
  v.r[0] = register_of_triples<0>(parts.r, lanes);
  v.r[1] = register_of_triples<1>(parts.r, lanes);
  v.r[2] = register_of_triples<2>(parts.r, lanes);
  return v;
}

// A vector of labels as 32-bit numbers, those that do not fit as negative ones.
IMBLOSS_INLINE Vec<int32_t> load_labels(const int64_t* p) {
  Vec<int32_t> v;
#if defined(__AVX512F__)
  const __m256i low = _mm512_cvtusepi64_epi32(_mm512_loadu_si512(p));
  v.r[0] = (Register<int32_t>)_mm512_inserti64x4(_mm512_castsi256_si512(low),
                                                 _mm512_cvtusepi64_epi32(_mm512_loadu_si512(p + 8)), 1);
#else
  const __m256 a = _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  const __m256 b = _mm256_loadu_ps(reinterpret_cast<const float*>(p + 4));
  const __m256i low = (__m256i)_mm256_shuffle_ps(a, b, 0x88), high = (__m256i)_mm256_shuffle_ps(a, b, 0xdd);
  const __m256i fits = _mm256_cmpeq_epi32(high, _mm256_setzero_si256());
  v.r[0] = (Register<int32_t>)_mm256_permute4x64_epi64(
      _mm256_or_si256(low, _mm256_andnot_si256(fits, _mm256_set1_epi32(-1))), 0xd8);
#endif
  return v;
}
// Whether every lane is in [0, n), and none is `but`.
IMBLOSS_INLINE bool all_in_range(Vec<int32_t> v, int32_t n, int32_t but) {
#if defined(__AVX512F__)
  const __m512i i = (__m512i)v.r[0];
  return _mm512_cmpge_epu32_mask(i, _mm512_set1_epi32(n)) == 0 &&
         _mm512_cmpeq_epi32_mask(i, _mm512_set1_epi32(but)) == 0;
#else
  const __m256i i = (__m256i)v.r[0], most = _mm256_set1_epi32(n - 1);
  const __m256i in_range = _mm256_cmpeq_epi32(_mm256_min_epu32(i, most), i);
  return _mm256_movemask_epi8(_mm256_andnot_si256(_mm256_cmpeq_epi32(i, _mm256_set1_epi32(but)), in_range)) == -1;
#endif
}

// Four numbers from each of lanes / 4 places that are `step` apart.
IMBLOSS_INLINE Vec<float> load_quads(const float* p, int64_t step) {
  Vec<float> v;
#if defined(__AVX512F__)
  __m512 quads = _mm512_castps128_ps512(_mm_loadu_ps(p));
  quads = _mm512_insertf32x4(quads, _mm_loadu_ps(p + step), 1);
  quads = _mm512_insertf32x4(quads, _mm_loadu_ps(p + 2 * step), 2);
  v.r[0] = _mm512_insertf32x4(quads, _mm_loadu_ps(p + 3 * step), 3);
#else
  v.r[0] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + step), 1);
#endif
  return v;
}

// And back.
IMBLOSS_INLINE void store_quads(float* p, int64_t step, Vec<float> v) {
#if defined(__AVX512F__)
  _mm_storeu_ps(p, _mm512_castps512_ps128(v.r[0]));
  _mm_storeu_ps(p + step, _mm512_extractf32x4_ps(v.r[0], 1));
  _mm_storeu_ps(p + 2 * step, _mm512_extractf32x4_ps(v.r[0], 2));
  _mm_storeu_ps(p + 3 * step, _mm512_extractf32x4_ps(v.r[0], 3));
#else
  _mm_storeu_ps(p, _mm256_castps256_ps128(v.r[0]));
  _mm_storeu_ps(p + step, _mm256_extractf128_ps(v.r[0], 1));
#endif
}

// In each quad: a0 b0 a1 b1, and a2 b2 a3 b3.
IMBLOSS_INLINE Vec<float> mix_low(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  a.r[0] = _mm512_unpacklo_ps(a.r[0], b.r[0]);
#else
  a.r[0] = _mm256_unpacklo_ps(a.r[0], b.r[0]);
#endif
  return a;
}
IMBLOSS_INLINE Vec<float> mix_high(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  a.r[0] = _mm512_unpackhi_ps(a.r[0], b.r[0]);
#else
  a.r[0] = _mm256_unpackhi_ps(a.r[0], b.r[0]);
#endif
  return a;
}
// In each quad: a0 a1 b0 b1, and a2 a3 b2 b3.
IMBLOSS_INLINE Vec<float> low_halves(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  a.r[0] = _mm512_shuffle_ps(a.r[0], b.r[0], 0x44);
#else
  a.r[0] = _mm256_shuffle_ps(a.r[0], b.r[0], 0x44);
#endif
  return a;
}
IMBLOSS_INLINE Vec<float> high_halves(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  a.r[0] = _mm512_shuffle_ps(a.r[0], b.r[0], 0xee);
#else
  a.r[0] = _mm256_shuffle_ps(a.r[0], b.r[0], 0xee);
#endif
  return a;
}

// From quads (a, b, c, d), 4 numbers of 4 rows each: lane 4 k + j holds f over the k-th quad of the j-th vector.
template <class F>
IMBLOSS_INLINE Vec<float> reduce_quads(Vec<float> a, Vec<float> b, Vec<float> c, Vec<float> d, F f) {
  Vec<float> ab = f(mix_low(a, b), mix_high(a, b)), cd = f(mix_low(c, d), mix_high(c, d));  // a02 b02 a13 b13
  return f(low_halves(ab, cd), high_halves(ab, cd));
}

// Quad k of v[i] takes the i-th numbers of the k-th quads of all four.
IMBLOSS_INLINE void transpose_quads(Vec<float> (&v)[4]) {
  Vec<float> ab = mix_low(v[0], v[1]), ab_high = mix_high(v[0], v[1]);
  Vec<float> cd = mix_low(v[2], v[3]), cd_high = mix_high(v[2], v[3]);
  v[0] = low_halves(ab, cd);
  v[1] = high_halves(ab, cd);
  v[2] = low_halves(ab_high, cd_high);
  v[3] = high_halves(ab_high, cd_high);
}
#endif

// ---- memory: T lanes from S in memory, any alignment ----
typedef uint16_t HalfRegister __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t WordRegister __attribute__((vector_size(kVectorBytes)));

IMBLOSS_INLINE Register<float> widen(HalfRegister h, BFloat16) {
  return (Register<float>)(__builtin_convertvector(h, WordRegister) << 16);
}
IMBLOSS_INLINE HalfRegister narrow(Register<float> x, BFloat16) {  // to nearest, ties to even; NaN stays NaN
  WordRegister bits = (WordRegister)x;
  WordRegister rounded = bits + 0x7fff + ((bits >> 16) & 1);
  WordRegister is_number = (WordRegister)(x == x);
  rounded = (is_number & rounded) | (~is_number & 0x7fc00000);
  return __builtin_convertvector(rounded >> 16, HalfRegister);
}
#if defined(__AVX512F__)
IMBLOSS_INLINE Register<float> widen(HalfRegister h, Float16) { return _mm512_cvtph_ps((__m256i)h); }
IMBLOSS_INLINE HalfRegister narrow(Register<float> x, Float16) {
  return (HalfRegister)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__AVX2__)
IMBLOSS_INLINE Register<float> widen(HalfRegister h, Float16) { return _mm256_cvtph_ps((__m128i)h); }
IMBLOSS_INLINE HalfRegister narrow(Register<float> x, Float16) {
  return (HalfRegister)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
IMBLOSS_INLINE Register<float> widen(HalfRegister h, Float16) {
  WordRegister w = __builtin_convertvector(h, WordRegister);
  WordRegister sign = (w & 0x8000) << 16, magnitude = (w & 0x7fff) << 13;
  Register<float> x = (Register<float>)magnitude * 0x1p112f;  // rebias the exponent; subnormals come out right
  WordRegister special = (WordRegister)((w & 0x7fff) >= 0x7c00);
  return (Register<float>)((special & (magnitude | 0x7f800000)) | (~special & (WordRegister)x) | sign);
}
IMBLOSS_INLINE HalfRegister narrow(Register<float> x, Float16) {
  WordRegister bits = (WordRegister)x, sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  // normal: rebias and round to nearest even; subnormal: let a float addition round at 2^-24
  WordRegister normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  WordRegister small = (WordRegister)((Register<float>)magnitude + 0.5f) - (126u << 23);
  WordRegister is_small = (WordRegister)(magnitude < (113u << 23));
  WordRegister is_large = (WordRegister)(magnitude >= (143u << 23));
  WordRegister is_nan = (WordRegister)(magnitude > 0x7f800000);
  WordRegister h = (is_small & small) | (~is_small & normal);
  h = (is_large & 0x7c00) | (~is_large & h);
  h = (is_nan & 0x7e00) | (~is_nan & h);
  return __builtin_convertvector(h | sign, HalfRegister);
}
#endif

template <int U = 1, class S>
IMBLOSS_INLINE Vec<Accumulate<S>, U> load(const S* p) {
  using T = Accumulate<S>;
  Vec<T, U> v;
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) {
    if constexpr (std::is_same_v<S, T>) {
      std::memcpy(&v.r[i], p + i * kLanes<T>, kVectorBytes);
    } else {
      HalfRegister h;
      std::memcpy(&h, p + i * kLanes<T>, sizeof(h));
      v.r[i] = widen(h, S{});
    }
  }
  return v;
}
template <class S, int U>
IMBLOSS_INLINE void store(S* p, Vec<Accumulate<S>, U> v) {
  using T = Accumulate<S>;
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) {
    if constexpr (std::is_same_v<S, T>) {
      std::memcpy(p + i * kLanes<T>, &v.r[i], kVectorBytes);
    } else {
      HalfRegister h = narrow(v.r[i], S{});
      std::memcpy(p + i * kLanes<T>, &h, sizeof(h));
    }
  }
}

template <class T>
IMBLOSS_INLINE Part<T> first_lanes(int n) {
#if defined(__AVX512F__)
  return {static_cast<MaskRegister<T>>((1u << n) - 1), n};
#else
  MaskRegister<T> lane;
  for (int i = 0; i < kLanes<T>; i++) lane[i] = i;
  return {lane < (static_cast<BitsOf<T>>(n) - MaskRegister<T>{}), n};
#endif
}
// Lanes outside the part hold `fill`, and their memory is not read.
template <class S>
IMBLOSS_INLINE Vec<Accumulate<S>> load(const S* p, Part<Accumulate<S>> part, Accumulate<S> fill) {
  using T = Accumulate<S>;
  Vec<T> v(fill);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>) {
    v.r[0] = _mm512_mask_loadu_ps(v.r[0], part.r, p);
  } else if constexpr (std::is_same_v<S, double>) {
    v.r[0] = _mm512_mask_loadu_pd(v.r[0], part.r, p);
  } else {
    HalfRegister h = (HalfRegister)_mm256_maskz_loadu_epi16(part.r, p);
    v.r[0] = select_register(part.r, widen(h, S{}), v.r[0]);
  }
#else
  if constexpr (std::is_same_v<S, T>) {
    for (int i = 0; i < part.n; i++) v.r[0][i] = p[i];
  } else {
    HalfRegister h{};
    for (int i = 0; i < part.n; i++) h[i] = p[i].bits;
    v.r[0] = select_register(part.r, widen(h, S{}), v.r[0]);
  }
#endif
  return v;
}
template <class S>
IMBLOSS_INLINE void store(S* p, Part<Accumulate<S>> part, Vec<Accumulate<S>> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>) {
    _mm512_mask_storeu_ps(p, part.r, v.r[0]);
  } else if constexpr (std::is_same_v<S, double>) {
    _mm512_mask_storeu_pd(p, part.r, v.r[0]);
  } else {
    _mm256_mask_storeu_epi16(p, part.r, (__m256i)narrow(v.r[0], S{}));
  }
#else
  if constexpr (std::is_same_v<S, Accumulate<S>>) {
    for (int i = 0; i < part.n; i++) p[i] = v.r[0][i];
  } else {
    HalfRegister h = narrow(v.r[0], S{});
    for (int i = 0; i < part.n; i++) p[i].bits = h[i];
  }
#endif
}

template <class T>
IMBLOSS_INLINE Vec<T> select(Part<T> part, Vec<T> a, Vec<T> b) {
  a.r[0] = select_register(part.r, a.r[0], b.r[0]);
  return a;
}

// Stores past the caches, for results larger than they are; p is aligned to a vector. stream_fence() ends a run of
// them.
template <class T, int U>
IMBLOSS_INLINE void stream(T* p, Vec<T, U> v) {
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) {
#if defined(__clang__)
    __builtin_nontemporal_store(v.r[i], reinterpret_cast<Register<T>*>(p + i * kLanes<T>));
#elif defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p + i * kLanes<T>), (__m512i)v.r[i]);
#elif defined(__AVX2__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p + i * kLanes<T>), (__m256i)v.r[i]);
#else
    std::memcpy(p + i * kLanes<T>, &v.r[i], kVectorBytes);
#endif
  }
}
IMBLOSS_INLINE void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Fetches the lines of n numbers into the caches ahead of time, to be read or to be written: where what is needed next
// lies too far away for the machine to guess.
template <class T>
IMBLOSS_INLINE void fetch_to_read(const T* p, int n) {
  IMBLOSS_UNROLL
  for (int i = 0; i < n; i += kLineBytes / static_cast<int>(sizeof(T))) __builtin_prefetch(p + i);
}
// The same into the second-level cache: what comes from memory in a long stream would crowd the first.
template <class T>
IMBLOSS_INLINE void fetch_to_read_later(const T* p, int n) {
  IMBLOSS_UNROLL
  for (int i = 0; i < n; i += kLineBytes / static_cast<int>(sizeof(T))) __builtin_prefetch(p + i, 0, 2);
}
template <class T>
IMBLOSS_INLINE void fetch_to_write(T* p, int n) {
  IMBLOSS_UNROLL
  for (int i = 0; i < n; i += kLineBytes / static_cast<int>(sizeof(T))) __builtin_prefetch(p + i, 1);
}

template <class S, int U>
IMBLOSS_INLINE void store(S* p, Vec<Accumulate<S>, U> v, bool streams) {
  if constexpr (std::is_same_v<S, Accumulate<S>>) {
    if (streams) return stream(p, v);
  }
  store(p, v);
}

// ---- masks as bytes, one a lane: 0, or anything else where set ----
template <class T>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(kLanes<T>)));
};
template <class T, int U = 1>
IMBLOSS_INLINE Mask<T, U> load_mask(const uint8_t* p) {
  Mask<T, U> m;
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i));
      m.r[i] = _mm_test_epi8_mask(bytes, bytes);
    } else {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * i));
      m.r[i] = static_cast<__mmask8>(_mm_test_epi8_mask(bytes, bytes));
    }
#else
    typename BytesOf<T>::type bytes;
    std::memcpy(&bytes, p + i * kLanes<T>, sizeof(bytes));
    m.r[i] = __builtin_convertvector(bytes, MaskRegister<T>) != 0;
#endif
  }
  return m;
}
template <class T>
IMBLOSS_INLINE void store_mask(uint8_t* p, Mask<T> m) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_movm_epi8(m.r[0]);
  if constexpr (sizeof(T) == 4) _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  else _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
#else
  const auto bytes = __builtin_convertvector(m.r[0], typename BytesOf<T>::type);
  std::memcpy(p, &bytes, sizeof(bytes));
#endif
}
template <class T, int U>
IMBLOSS_INLINE bool all(Mask<T, U> m) {
  IMBLOSS_UNROLL
  for (int u = 1; u < U; u++) m.r[0] = m.r[0] & m.r[u];
#if defined(__AVX512F__)
  return m.r[0] == static_cast<MaskRegister<T>>((1u << kLanes<T>)-1);
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)m.r[0]) == -1;
#else
  bool every = true;
  for (int i = 0; i < kLanes<T>; i++) every = every && m.r[0][i];
  return every;
#endif
}

// Lane i as bit i, of up to 64.
template <class T, int U>
IMBLOSS_INLINE uint64_t lanes_of(Mask<T, U> m) {
  uint64_t bits = 0;
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) {
#if defined(__AVX512F__)
    const uint64_t lanes = m.r[i];
#elif defined(__AVX2__)
    uint64_t lanes;
    if constexpr (sizeof(T) == 4) lanes = static_cast<unsigned>(_mm256_movemask_ps((__m256)m.r[i]));
    else lanes = static_cast<unsigned>(_mm256_movemask_pd((__m256d)m.r[i]));
#elif defined(__SSE2__)
    uint64_t lanes;
    if constexpr (sizeof(T) == 4) lanes = static_cast<unsigned>(__builtin_ia32_movmskps((Register<float>)m.r[i]));
    else lanes = static_cast<unsigned>(__builtin_ia32_movmskpd((Register<double>)m.r[i]));
#else
    uint64_t lanes = 0;
    for (int l = 0; l < kLanes<T>; l++) lanes |= static_cast<uint64_t>(m.r[i][l] & 1) << l;
#endif
    bits |= lanes << (i * kLanes<T>);
  }
  return bits;
}

// One value, through the same conversions.
template <class S>
IMBLOSS_INLINE Accumulate<S> load_one(const S* p) {
  if constexpr (std::is_same_v<S, Accumulate<S>>) return *p;
  else return widen(HalfRegister{} + p->bits, S{})[0];
}
template <class S>
IMBLOSS_INLINE void store_one(S* p, Accumulate<S> x) {
  if constexpr (std::is_same_v<S, Accumulate<S>>) *p = x;
  else p->bits = narrow(x - Register<float>{}, S{})[0];
}

// ---- across lanes, in a fixed order ----
// Lane i in every lane; of a vector in memory, where many are asked for.
template <class T>
IMBLOSS_INLINE Vec<T> lane(const Vec<T>& v, int i) {
  T one;
  std::memcpy(&one, reinterpret_cast<const char*>(&v) + i * sizeof(T), sizeof(T));
  return Vec<T>(one);
}
// Lane i of the result is lane (i + n) % lanes.
template <int n, class R, size_t... I>
IMBLOSS_INLINE R rotate(R v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, (I + n) % sizeof...(I)...);
}
// Every lane of the result is f over all lanes.
template <int n, class T, class F>
IMBLOSS_INLINE Register<T> reduce_register(Register<T> v, F f) {
  if constexpr (n == 0) return v;
  else return reduce_register<n / 2, T>(f(v, rotate<n>(v, std::make_index_sequence<kLanes<T>>{})), f);
}
template <class T, int U, class F>
IMBLOSS_INLINE T reduce(Vec<T, U> v, F f) {
  IMBLOSS_UNROLL
  for (int u = U; u > 1; u /= 2) {
    IMBLOSS_UNROLL
    for (int i = 0; i < u / 2; i++) v.r[i] = f(v.r[i], v.r[i + u / 2]);
  }
  return reduce_register<kLanes<T> / 2, T>(v.r[0], f)[0];
}
// One register: f over those of v.
template <class T, int U, class F>
IMBLOSS_INLINE Vec<T> fold(Vec<T, U> v, F f) {
  Vec<T> all;
  all.r[0] = v.r[0];
  IMBLOSS_UNROLL
  for (int i = 1; i < U; i++) {
    Vec<T> next;
    next.r[0] = v.r[i];
    all = f(all, next);
  }
  return all;
}
template <class T, int U>
IMBLOSS_INLINE T sum(Vec<T, U> v) {
  return reduce(v, [](Register<T> a, Register<T> b) { return a + b; });
}
// Lane i is f over the lanes of v[i].
template <class T, class F>
IMBLOSS_INLINE Vec<T> reduce_each(const Vec<T>* v, F f) {
#if defined(IMBLOSS_MOVES_LANES)
  if constexpr (std::is_same_v<T, float>) {
    using V = Vec<float>;
    V quads[kLanes<float> / 4];  // lane 4 k + j of quads[i]: the k-th quad of v[4 i + j]
    IMBLOSS_UNROLL
    for (int i = 0; i < kLanes<float> / 4; i++)
      quads[i] = reduce_quads(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3], f);
#if defined(__AVX512F__)
    auto halves = [&](Vec<float> a, Vec<float> b) {
      return f(V::of(_mm512_shuffle_f32x4(a.r[0], b.r[0], 0x44)), V::of(_mm512_shuffle_f32x4(a.r[0], b.r[0], 0xee)));
    };
    const Vec<float> low = halves(quads[0], quads[1]), high = halves(quads[2], quads[3]);
    return f(V::of(_mm512_shuffle_f32x4(low.r[0], high.r[0], 0x88)),
             V::of(_mm512_shuffle_f32x4(low.r[0], high.r[0], 0xdd)));
#else
    return f(V::of(_mm256_permute2f128_ps(quads[0].r[0], quads[1].r[0], 0x20)),
             V::of(_mm256_permute2f128_ps(quads[0].r[0], quads[1].r[0], 0x31)));
#endif
  }
#endif
  T each[kLanes<T>];
  for (int i = 0; i < kLanes<T>; i++) {
    each[i] = reduce(v[i], [&](Register<T> a, Register<T> b) { return f(Vec<T>::of(a), Vec<T>::of(b)).r[0]; });
  }
  return load(each);
}
template <class T>
IMBLOSS_INLINE Vec<T> sums(const Vec<T>* v) {
  return reduce_each(v, [](Vec<T> a, Vec<T> b) { return a + b; });
}
template <class T>
IMBLOSS_INLINE Vec<T> maxima(const Vec<T>* v) {
  return reduce_each(v, [](Vec<T> a, Vec<T> b) { return max(a, b); });
}
template <class T, int U>
IMBLOSS_INLINE T max_lane(Vec<T, U> v) {
  return reduce(v, [](Register<T> a, Register<T> b) { return Register<T>(max_register(a, b)); });
}

}  // namespace imbloss
