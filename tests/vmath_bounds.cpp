// Largest error of csrc/vmath.h against long double, in ulp of the result: one line "name type ulp" a function.
// The argument is the number of points, evenly spaced in their bits.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "../csrc/vmath.h"

using namespace imbloss;

template <class T>
long double ulps(T got, long double want) {
  if (std::isnan(got)) return 1e30L;
  long double smallest = sizeof(T) == 4 ? 0x1p-126L : 0x1p-1022L;
  if (std::fabs(want) < smallest) return std::fabs(got) <= smallest ? 0 : 1e30L;  // may be flushed
  int exponent;
  std::frexp(want, &exponent);
  return std::fabs(got - want) / std::ldexp(1.0L, exponent - (sizeof(T) == 4 ? 24 : 53));
}

// Points of [a, b], both of one sign, evenly spaced in their bits.
template <class T, class F, class G>
long double worst(T a, T b, long count, F vector, G exact) {
  BitsOf<T> from, to;
  std::memcpy(&from, &a, sizeof(T));
  std::memcpy(&to, &b, sizeof(T));
  long double most = 0;
  T x[Vec<T>::size], y[Vec<T>::size];
  for (long i = 0; i < count;) {
    int n = 0;
    for (; n < Vec<T>::size; n++, i++) {
      BitsOf<T> bits = from + static_cast<BitsOf<T>>((to - from) * (static_cast<long double>(i % count) / (count - 1)));
      std::memcpy(&x[n], &bits, sizeof(T));
    }
    store(y, vector(load(x)));
    for (int j = 0; j < n; j++) {
      long double error = ulps(y[j], exact(static_cast<long double>(x[j])));
      if (error > most) most = error;
    }
  }
  return most;
}

template <class T>
void report(const char* type, long count) {
  using V = Vec<T>;
  T tiny = sizeof(T) == 4 ? T(0x1p-126) : T(0x1p-1022), low = sizeof(T) == 4 ? T(-103) : T(-745);
  T high = sizeof(T) == 4 ? 69 : 620;
  auto e = [](V x) { return exp(x); };
  auto el = [](long double x) { return std::exp(x); };
  std::printf("exp %s %.3Lf\n", type, std::fmax(worst<T>(T(-1e-9), low, count, e, el), worst<T>(T(1e-9), high, count, e, el)));
  auto small = [](V x) { return exp_of_small(x); };
  std::printf("exp_of_small %s %.3Lf\n", type, std::fmax(worst<T>(T(-1e-9), T(-69), count, small, el), worst<T>(T(1e-9), T(69), count, small, el)));
  std::printf("log %s %.3Lf\n", type, worst<T>(tiny, T(1e30), count, [](V x) { return log(x); }, [](long double x) { return std::log(x); }));
  std::printf("log1p %s %.3Lf\n", type, worst<T>(tiny, T(1e30), count, [](V x) { return log1p(x); }, [](long double x) { return std::log1p(x); }));
  std::printf("log1p_of_fraction %s %.3Lf\n", type, worst<T>(tiny, T(1), count, [](V x) { return log1p_of_fraction(x); }, [](long double x) { return std::log1p(x); }));
  long double most = 0;
  for (double g : {0.0, 0.3, 0.5, 1.0 / 3, 1.5, 2.7, 3.3, 5.0, 17.3, 64.0}) {
    Exponent<V> exponent{V(high_part<T>(g)), V(static_cast<T>(g - high_part<T>(g)))};
    long double error = worst<T>(tiny, T(1), count / 4, [&](V x) { return pow(x, exponent); },
                                 [&](long double x) { return std::pow(x, static_cast<long double>(g)); });
    most = std::fmax(most, error / (1 + g));
    if (std::getenv("VERBOSE")) std::printf("  pow %s exponent %g: %.3Lf ulp\n", type, g, error);
  }
  std::printf("pow %s %.3Lf\n", type, most);  // ulp / (1 + exponent)
}

template <class T>
void edges() {
  T nan = NAN, x[] = {nan, T(-INFINITY), 0, -0.0f, T(-1e30), 1, nan, T(0.5)};
  T padded[Vec<T>::size] = {}, y[Vec<T>::size];
  for (int from = 0; from < 8; from += Vec<T>::size) {
    for (int i = 0; i < Vec<T>::size && from + i < 8; i++) padded[i] = x[from + i];
    store(y, exp(load(padded)));
    for (int i = 0; i < Vec<T>::size && from + i < 8; i++) {
      T want = std::exp(padded[i]);
      if (!(std::isnan(want) ? std::isnan(y[i]) : want == 0 || want == 1 ? y[i] == want : std::fabs(y[i] - want) < 1e-6))
        std::printf("edge exp(%g) = %g\n", double(padded[i]), double(y[i]));
    }
  }
  Exponent<Vec<T>> half{Vec<T>(T(0.5)), Vec<T>(0)};
  if (pow(Vec<T>(0), half).r[0][0] != 0) std::printf("edge pow(0, 0.5)\n");
  if (!std::isnan(pow(Vec<T>(nan), half).r[0][0])) std::printf("edge pow(nan)\n");
  if (!std::isnan(exp_of_small(Vec<T>(nan)).r[0][0])) std::printf("edge exp_of_small(nan)\n");
  if (exp_of_small(Vec<T>(0)).r[0][0] != 1) std::printf("edge exp_of_small(0)\n");
  if (!std::isnan(log1p(Vec<T>(nan)).r[0][0])) std::printf("edge log1p(nan)\n");
  if (log1p(Vec<T>(0)).r[0][0] != 0) std::printf("edge log1p(0)\n");
}

int main(int argc, char** argv) {
  long count = argc > 1 ? std::atol(argv[1]) : 1000000;
  report<float>("float", count);
  report<double>("double", count);
  edges<float>();
  edges<double>();
}
