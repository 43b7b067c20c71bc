// The mathematics of the losses on CPU (docs/math.md): a policy turns (log p, p, q) of the target's class into a value
// and its slope d value / d log p. Rows, classes, threads and memory are the traversals' business. The same in Triton:
// imbloss/kernels/policies.py.
#pragma once

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "vmath.h"

namespace imbloss {

template <class V>
struct Row {
  V log_p, p, q;  // q = 1 - p, summed from the other classes: every digit counts near p = 1
};

template <class V>
struct Point {
  V value, slope;
};

// q^gamma (-log p): Lin et al. 2017, eq. 5. With `detach`, q^gamma counts as a constant in the gradient.
struct Focal {
  static constexpr const char* name = "focal";
  static constexpr size_t num_params = 1;
  bool detach;
  explicit Focal(const double* params) : detach(params[0] != 0) {}

  template <class V>
  IMBLOSS_INLINE Point<V> operator()(Row<V> row, Exponent<V> gamma) const {
    if (gamma.whole == 0) return {-row.log_p, V(-1)};
    V factor = pow(row.q, gamma), value = -(factor * row.log_p);
    if (detach) return {value, -factor};
    if (gamma.whole > 0) {  // q^(gamma - 1) is harmless, and saves a division
      V p_log_p = select(row.p == V(0), V(0), row.p * row.log_p);
      V one_less = pow(row.q, Exponent<V>{gamma.high, gamma.low, gamma.whole - 1});
      return {value, one_less * (p_log_p * gamma.high - row.q)};
    }
    V ratio = select(row.q == V(0), V(-1), row.log_p / row.q);  // log p / q -> -1 at p = 1
    V p_ratio = select(row.p == V(0), V(0), row.p * ratio);     // p log p -> 0 at p = 0
    return {value, factor * ((gamma.high + gamma.low) * p_ratio - 1)};
  }
};

// focal + epsilon q^(gamma + 1): Leng et al. 2022, Poly-1.
struct Poly {
  static constexpr const char* name = "poly";
  static constexpr size_t num_params = 1;
  double epsilon;
  explicit Poly(const double* params) : epsilon(params[0]) {}

  template <class V>
  IMBLOSS_INLINE Point<V> operator()(Row<V> row, Exponent<V> gamma) const {
    const double not_detached = 0;
    Point<V> focal = Focal(&not_detached)(row, gamma);
    V added = pow(row.q, gamma) * V(epsilon);
    return {focal.value + added * row.q, focal.slope - added * (gamma.high + gamma.low + 1) * row.p};
  }
};

using Policies = std::tuple<Focal, Poly>;

// A policy behind function pointers, called for one or four registers of rows. Where rows are long the call is nothing,
// and traversals need not be compiled for every policy.
template <class A>
class AnyPolicy {
 public:
  template <class Policy>
  explicit AnyPolicy(const Policy& policy) : policy_(&policy), one_(&call<Policy, 1>), four_(&call<Policy, 4>) {}

  template <int U>
  Point<Vec<A, U>> operator()(const Row<Vec<A, U>>& row, const Exponent<Vec<A, U>>& gamma) const {
    static_assert(U == 1 || U == 4);
    if constexpr (U == 1) return one_(policy_, row, gamma);
    else return four_(policy_, row, gamma);
  }

 private:
  template <int U>
  using Function = Point<Vec<A, U>> (*)(const void*, const Row<Vec<A, U>>&, const Exponent<Vec<A, U>>&);
  template <class Policy, int U>
  static Point<Vec<A, U>> call(const void* policy, const Row<Vec<A, U>>& row, const Exponent<Vec<A, U>>& gamma) {
    return (*static_cast<const Policy*>(policy))(row, gamma);
  }

  const void* policy_;
  Function<1> one_;
  Function<4> four_;
};

// Calls f with the policy of that name, whose parameters follow gamma in `numbers`.
template <size_t I = 0, class F>
auto with_policy(const std::string& name, const std::vector<double>& numbers, F f) {
  using Policy = std::tuple_element_t<I, Policies>;
  if (name == Policy::name) {
    if (numbers.size() != 1 + Policy::num_params) {
      throw std::invalid_argument("expected gamma and " + std::to_string(Policy::num_params) +
                                  " parameters of policy '" + name + "', but got " + std::to_string(numbers.size()) +
                                  " numbers");
    }
    return f(Policy(numbers.data() + 1));
  }
  if constexpr (I + 1 < std::tuple_size_v<Policies>) return with_policy<I + 1>(name, numbers, f);
  else throw std::invalid_argument("expected policy to be one that the compiled core knows, but got '" + name + "'");
}

}  // namespace imbloss
