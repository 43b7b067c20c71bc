// exp, log, log1p and pow on Vec, written once for every instruction set. Errors against long double, with fma (without
// it a third more); tests/test_core.py asserts them:
//   exp of x <= 69 (double: 620), with gradual underflow to 0 below -104 (-746), and exp_of_small: 1.1 ulp
//   log of normal x > 0: 1.2 ulp
//   log1p of x >= 0: 1.6 ulp; log1p_of_fraction of 0 <= x <= 1: 1.8 ulp
//   pow of 0 <= x <= 1 to an exponent from 0 to 64: 1.2 (1 + exponent) ulp
// A NaN gives NaN in its own lane. Coefficients: minimax in the relative error (Remez), the leading ones fixed.
#pragma once

#include "simd.h"

namespace imbloss {

template <class V>
IMBLOSS_INLINE V horner(V, typename V::Element c) {
  return V(c);
}
// c0 + c1 x + c2 x^2 + ...
template <class V, class... C>
IMBLOSS_INLINE V horner(V x, typename V::Element c0, C... c) {
  return horner(x, static_cast<typename V::Element>(c)...) * x + c0;
}

template <class T>
inline constexpr T kRoundToWhole = sizeof(T) == 4 ? T(0x1.8p23) : T(0x1.8p52);
// ln 2 in two parts: a whole number times the first is exact, with and without fma
template <class T>
inline constexpr T kLn2High = sizeof(T) == 4 ? T(0.693359375) : T(6.93147180369123816490e-01);
template <class T>
inline constexpr T kLn2Low = sizeof(T) == 4 ? T(-2.12194440054690583e-4) : T(1.90821492927058770002e-10);

// 2^octaves * exp(x), where neither x nor the result is out of range, by a table of powers: with r small, fewer terms
// than over an octave.
template <int octaves, int U>
IMBLOSS_INLINE Vec<float, U> exp_by_powers(Vec<float, U> x) {
  using V = Vec<float, U>;
  constexpr float per_octave = kPowers;
  V shifted = x * (per_octave * 1.4426950408889634f) + kRoundToWhole<float>;
  V k = shifted - kRoundToWhole<float>;
  V r = x - k * (kLn2High<float> / per_octave) - k * (kLn2Low<float> / per_octave);
  V power;
  IMBLOSS_UNROLL
  for (int i = 0; i < U; i++) power.r[i] = power_register<octaves>(to_bits(shifted).r[i]);
  if constexpr (kPowers == 16) r = horner(r, 1, 0.5000161528587341f, 0.166667178273201f) * r;
  else r = horner(r, 1, 0.5f, 0.16668027639389038f, 0.04166042432188988f) * r;
  return power * r + power;
}

template <class T, int U>
IMBLOSS_INLINE Vec<T, U> exp(Vec<T, U> x) {
  using V = Vec<T, U>;
  constexpr T lowest = sizeof(T) == 4 ? T(-104) : T(-746);  // where the result is 0
  V clamped = max(V(lowest), x);
  if constexpr (sizeof(T) == 4 && kPowers > 0) {
    return exp_by_powers<24>(clamped) * 0x1p-24f;  // in normal numbers up to the last product
  } else {
    V n = clamped * T(1.4426950408889634) + kRoundToWhole<T> - kRoundToWhole<T>;
    V r = clamped - n * kLn2High<T> - n * kLn2Low<T>;
    V p;
    if constexpr (sizeof(T) == 4) {
      p = horner(r, 1, 1, 0.49999994138837073f, 0.16666429402484528f, 0.04166801286841812f, 0.008374317179520252f,
                 0.0013843465140870549f);
    } else {
      p = horner(r, 1, 1, 0.50000000000000108968, 0.16666666666666427546, 0.041666666666527670586,
                 0.0083333333334822955041, 0.001388888894433571317, 0.0001984126953831390191, 2.4801492319333656669e-5,
                 2.7557553303371366707e-6, 2.7630542259834853303e-7, 2.5012000019155317886e-8);
    }
    return scale_by_power(p, n);
  }
}

// The same where |x| is at most 69, or the result does not matter.
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> exp_of_small(Vec<T, U> x) {
  if constexpr (sizeof(T) == 4 && kPowers > 0) return exp_by_powers<0>(x);
  else return exp(x);
}

// x = 2^exponent * m with m in [2/3, 4/3): log x = exponent * ln 2 + log m
template <class V>
struct LogParts {
  V exponent, log_m;
};
template <class T, int U>
IMBLOSS_INLINE LogParts<Vec<T, U>> log_parts(Vec<T, U> x) {
  using V = Vec<T, U>;
  using B = BitsOf<T>;
  constexpr B two_thirds = sizeof(T) == 4 ? B(0x3f2aaaab) : B(0x3fe5555555555555);
  constexpr int mantissa = sizeof(T) == 4 ? 23 : 52;
  constexpr B round_bits = sizeof(T) == 4 ? B(0x4b400000) : B(0x4338000000000000);  // of kRoundToWhole
  auto bits = to_bits(x) - two_thirds;
  V exponent = from_bits<T>((bits >> mantissa) + round_bits) - kRoundToWhole<T>;
  V f = from_bits<T>((bits & ((B(1) << mantissa) - 1)) + two_thirds) - 1;
  V log_m;
  if constexpr (sizeof(T) == 4) {
    V tail = horner(f, 0.33333215982629064f, -0.24999797672948273f, 0.20010405911526426f, -0.16680487348484887f,
                    0.14005869099385768f, -0.12184261014322666f, 0.13984436368281208f, -0.12891685049795136f);
    V f2 = f * f;
    log_m = f + (f2 * f * tail - f2 * T(0.5));
  } else {
    V s = f / (f + 2), z = s * s;  // log m = 2 atanh s = f - s (f - 2 z R(z) ...), arranged so that f stays exact
    V tail =
        z * horner(z, 0.66666666666666597335, 0.40000000000055942705, 0.28571428556007049998, 0.22222224276214660551,
                   0.18181667087876900876, 0.15391072446328685071, 0.13174261588296660129, 0.13838568435071367345);
    V half_square = f * f * T(0.5);
    log_m = f - (half_square - s * (half_square + tail));
  }
  return {exponent, log_m + x * 0};  // the bits of a NaN would come out as a number
}

template <class T, int U>
IMBLOSS_INLINE Vec<T, U> log(Vec<T, U> x) {
  auto [exponent, log_m] = log_parts(x);
  return exponent * T(0.6931471805599453) + log_m;
}

template <class T, int U>
IMBLOSS_INLINE Vec<T, U> log1p(Vec<T, U> x) {
  Vec<T, U> s = x + 1;
  return log(s) + (x - (s - 1)) / s;  // the second term is what 1 + x rounded away
}
// The same, with 1 / (1 + x) at hand.
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> log1p(Vec<T, U> x, Vec<T, U> reciprocal) {
  Vec<T, U> s = x + 1;
  return log(s) + (x - (s - 1)) * reciprocal;
}

// log1p of 0 <= x <= 1 without a division.
template <class T, int U>
IMBLOSS_INLINE Vec<T, U> log1p_of_fraction(Vec<T, U> x) {
  if constexpr (sizeof(T) == 4) {
    return x * horner(x, 1, -0.4999993276312655f, 0.33330511308453183f, -0.24958587317586662f, 0.19695400087867117f,
                      -0.15355395218023129f, 0.10680553999230326f, -0.057664432009708395f, 0.020204579658034959f,
                      -0.003318471608173211f);
  } else {
    return log1p(x);
  }
}

// x^n for n in [0, kMostWhole].
inline constexpr int kMostWhole = 4;
template <class V>
IMBLOSS_INLINE V whole_power(V x, int n) {
  V square = x * x;
  switch (n) {
    case 0:
      return V(1);
    case 1:
      return x;
    case 2:
      return square;
    case 3:
      return square * x;
    default:
      return square * square;
  }
}

// The exponent of pow, known once a row or once a loss. `high` has so few bits that its product with the binary
// exponent of a number is exact; `low` is the rest, from the caller's double.
template <class V>
struct Exponent {
  V high, low;
  int whole = -1;  // from 0 to kMostWhole where every lane is that number
};
template <class T>
IMBLOSS_INLINE T high_part(double exponent) {
  float coarse = static_cast<float>(exponent);
  uint32_t bits;
  std::memcpy(&bits, &coarse, 4);
  bits &= 0xffffe000;  // 11 bits
  std::memcpy(&coarse, &bits, 4);
  return coarse;
}

// The same for every lane.
template <class V>
IMBLOSS_INLINE Exponent<V> exponent_of(double exponent) {
  using T = typename V::Element;
  const T high = high_part<T>(exponent);
  const bool is_whole = exponent >= 0 && exponent <= kMostWhole && exponent == static_cast<int>(exponent);
  return {V(high), V(static_cast<T>(exponent - high)), is_whole ? static_cast<int>(exponent) : -1};
}

// The same lane by lane.
template <class T, int U>
IMBLOSS_INLINE Exponent<Vec<T, U>> exponent_of_lanes(Vec<T, U> exponent) {
  constexpr auto high_bits = static_cast<BitsOf<T>>(sizeof(T) == 4 ? 0xffffe000 : 0xfffffc0000000000);
  Vec<T, U> high = from_bits<T>(to_bits(exponent) & high_bits);
  return {high, exponent - high};
}

template <class T, int U>
IMBLOSS_INLINE Vec<T, U> pow(Vec<T, U> x, Exponent<Vec<T, U>> exponent) {
  using V = Vec<T, U>;
  if (exponent.whole >= 0) return whole_power(x, exponent.whole);
  auto [e, log_m] = log_parts(x);
  V exact = exponent.high * e;
  V rest = exponent.low * e + (exponent.high + exponent.low) * (log_m * T(1.4426950408889634));
  V n = exact + rest + kRoundToWhole<T> - kRoundToWhole<T>;
  constexpr T lowest = sizeof(T) == 4 ? -150 : -1076;
  V y = scale_by_power(exp((exact - n + rest) * T(0.6931471805599453)), max(V(lowest), n));
  y = select(n < V(lowest), V(0), y);
  V at_zero = select(exponent.high + exponent.low == V(0), V(1), V(0));
  return select(x == V(0), at_zero, y);
}

}  // namespace imbloss
