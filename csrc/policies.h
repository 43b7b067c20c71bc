// The mathematics of the losses on CPU (docs/math.md): a policy turns (log p, p, q) of the target's class into a value
// and its slope d value / d log p. Rows, classes, threads and memory are the traversals' business.
// imbloss/kernels/policies.py holds the same equations for Triton.
#pragma once

#include <stdexcept>
#include <string>
#include <tuple>

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
    V factor = pow(row.q, gamma);
    V value = -(factor * row.log_p);
    if (detach) return {value, -factor};
    V ratio = select(row.q == V(0), V(-1), row.log_p / row.q);  // log p / q -> -1 at p = 1
    V p_ratio = select(row.p == V(0), V(0), row.p * ratio);     // p log p -> 0 at p = 0
    return {value, factor * ((gamma.high + gamma.low) * p_ratio - 1)};
  }
};

using Policies = std::tuple<Focal>;

// Calls f with the policy of that name.
template <class F, size_t I = 0>
void with_policy(const std::string& name, const double* params, size_t num_params, F f) {
  if constexpr (I == std::tuple_size_v<Policies>) {
    throw std::invalid_argument("expected policy to be one that the compiled core knows, but got '" + name + "'");
  } else {
    using Policy = std::tuple_element_t<I, Policies>;
    if (name != Policy::name) return with_policy<F, I + 1>(name, params, num_params, f);
    if (num_params != Policy::num_params) {
      throw std::invalid_argument("expected " + std::to_string(Policy::num_params) + " parameters of policy '" + name +
                                  "', but got " + std::to_string(num_params));
    }
    f(Policy(params));
  }
}

}  // namespace imbloss
