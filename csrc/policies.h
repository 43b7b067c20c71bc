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
      const V lowest(-1e30f);
      V p_log_p = row.p * max(lowest, row.log_p);  // p log p -> 0 at p = 0
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

// ---- elements: sigmoid(x) against a target in [0, 1] (docs/math.md, section 5) ------------------------------------
template <class V>
struct Sigmoid {
  V loss_p, loss_q, p, q;  // p = sigmoid(x), q = 1 - p, -log p, -log q, each to full relative precision
  IMBLOSS_INLINE Sigmoid mirrored() const { return {loss_q, loss_p, q, p}; }  // of -x
};
template <class V>
IMBLOSS_INLINE Sigmoid<V> sigmoid(V x) {
  V below = minus_abs(x), e = exp(below), larger = reciprocal(e + 1), smaller = e * larger;
  V loss_larger = log1p_of_fraction(e), loss_smaller = loss_larger - below;
  auto negative = x < V(0);
  return {select(negative, loss_smaller, loss_larger), select(negative, loss_larger, loss_smaller),
          select(negative, smaller, larger), select(negative, larger, smaller)};
}

// share * value: 0 without a share, even of an infinite value.
template <class V>
IMBLOSS_INLINE V times(V share, V value) {
  return select(share == V(0), V(0), share * value);
}
// A loss that can be multiplied by a p of 0.
template <class V>
IMBLOSS_INLINE V finite(V loss) {
  return min(V(1e30f), loss);
}
// q^gamma from -log q, which costs less than pow; 0^0 is 1.
template <class V>
IMBLOSS_INLINE V focal_factor(V q, V loss_q, Exponent<V> gamma) {
  if (gamma.whole >= 0) return whole_power(q, gamma.whole);
  return exp(-(gamma.high + gamma.low) * finite(loss_q));
}
// Binary cross entropy of a target t, and its slope.
template <class V>
IMBLOSS_INLINE Point<V> binary_cross_entropy(const Sigmoid<V>& s, V t, V pos_weight) {
  return {times(pos_weight * t, s.loss_p) + times(1 - t, s.loss_q), (1 - t) * s.p - pos_weight * t * s.q};
}

// A policy has two ways to value and slope of an element:
//   hard: the target is 0 or 1. `s` is that of u, which is x for target 1 and -x for 0; so is the slope, d value / d u.
//   soft: the target is t, in [0, 1]. `s` is that of x, the slope d value / d x.
// The factor of the target that is alpha_t and of `hard` the weight of positives are not their business.

// q_t^gamma BCE, q_t = p (1 - t) + q t: Lin et al. 2017, eq. 5, with torchvision's meaning of soft targets.
struct SigmoidFocal {
  static constexpr const char* name = "sigmoid_focal";
  static constexpr size_t num_params = 0;
  explicit SigmoidFocal(const double*) {}

  template <class V, class M>
  IMBLOSS_INLINE Point<V> hard(const Sigmoid<V>& s, M, Exponent<V> gamma) const {
    V factor = focal_factor(s.q, s.loss_q, gamma), p_loss = s.p * finite(s.loss_p);  // -> 0 at p = 0
    return {factor * s.loss_p, factor * (-((gamma.high + gamma.low) * p_loss) - s.q)};
  }

  template <class V>
  IMBLOSS_INLINE Point<V> soft(const Sigmoid<V>& s, V t, V pos_weight, Exponent<V> gamma) const {
    V q_t = max(V(0), (1 - t) * s.p + t * s.q), factor = pow(q_t, gamma);
    Point<V> bce = binary_cross_entropy(s, t, pos_weight);
    V moved = times(s.p * s.q / q_t, bce.value) * (1 - 2 * t);  // d q_t / d x BCE / q_t
    moved = select(s.p * s.q == V(0), V(0), moved);
    return {factor * bce.value, factor * ((gamma.high + gamma.low) * moved + bce.slope)};
  }
};

// -t q^gamma log p - (1 - t) p_m^gamma_neg log(1 - p_m), p_m = max(p - clip, 0): Ridnik et al. 2021, eq. 4 to 7.
struct Asymmetric {
  static constexpr const char* name = "asymmetric";
  static constexpr size_t num_params = 3;
  double gamma_neg, clip;
  bool detach;
  explicit Asymmetric(const double* params) : gamma_neg(params[0]), clip(params[1]), detach(params[2] != 0) {}

  // Here q_m, what the clip leaves of q, and 1 - q_m = p + clip belong to the negatives alone.
  template <class V, class M>
  IMBLOSS_INLINE Point<V> hard(const Sigmoid<V>& s, M positive, Exponent<V> gamma) const {
    const Exponent<V> negative = exponent_of<V>(gamma_neg);
    const bool clipped = clip != 0, whole = gamma.whole >= 0 && negative.whole >= 0;
    V exponent = select(positive, gamma.high + gamma.low, negative.high + negative.low);
    V q_m = clipped ? select(positive, s.q, max(V(0), s.q - clip)) : s.q;
    V factor = whole     ? select(positive, whole_power(q_m, gamma.whole), whole_power(q_m, negative.whole))
               : clipped ? pow(q_m, exponent_of_lanes(exponent))
                         : focal_factor(s.q, s.loss_q, exponent_of_lanes(exponent));
    V loss = s.loss_p, slope = s.q;    // without the factor: -log p, and minus its slope
    V moved = s.p * finite(s.loss_p);  // minus d log q_m / d u times the loss
    if (clipped) {
      V rest = s.p + clip, p_q = s.p * s.q;
      V clipped_loss = log1p(q_m / rest);
      auto cut = q_m == V(0);
      loss = select(positive, loss, clipped_loss);
      slope = select(positive, slope, select(cut, V(0), p_q / rest));
      moved = select(positive, moved, select(cut, V(0), p_q * clipped_loss / q_m));
    }
    return {factor * loss, factor * (detach ? -slope : -(exponent * moved) - slope)};
  }

  template <class V>
  IMBLOSS_INLINE Point<V> soft(const Sigmoid<V>& s, V t, V pos_weight, Exponent<V> gamma) const {
    Point<V> one = hard(s, V(0) < V(1), gamma), zero = hard(s.mirrored(), V(1) < V(0), gamma);
    V share = pos_weight * t;
    return {times(share, one.value) + times(1 - t, zero.value), share * one.slope - (1 - t) * zero.slope};
  }
};

// |t - p|^beta BCE, beta in the place of gamma: Li et al. 2020, eq. 3.
struct QualityFocal {
  static constexpr const char* name = "quality_focal";
  static constexpr size_t num_params = 0;
  explicit QualityFocal(const double*) {}

  template <class V, class M>
  IMBLOSS_INLINE Point<V> hard(const Sigmoid<V>& s, M positive, Exponent<V> beta) const {
    return SigmoidFocal(nullptr).hard(s, positive, beta);
  }

  template <class V>
  IMBLOSS_INLINE Point<V> soft(const Sigmoid<V>& s, V t, V pos_weight, Exponent<V> beta) const {
    V excess = (1 - t) * s.p - t * s.q, distance = abs(excess), factor = pow(distance, beta);  // p - t
    Point<V> bce = binary_cross_entropy(s, t, pos_weight);
    V moved = times(s.p * s.q / excess, bce.value);  // d log|p - t| / d x BCE
    moved = select(distance == V(0), V(0), moved);
    return {factor * bce.value, factor * ((beta.high + beta.low) * moved + bce.slope)};
  }
};

using ElementPolicies = std::tuple<SigmoidFocal, Asymmetric, QualityFocal>;

// Calls f with the policy of that name, whose parameters follow gamma in `numbers`.
template <class Policies, size_t I = 0, class F>
auto with_policy_of(const std::string& name, const std::vector<double>& numbers, F f) {
  using Policy = std::tuple_element_t<I, Policies>;
  if (name == Policy::name) {
    if (numbers.size() != 1 + Policy::num_params) {
      throw std::invalid_argument("expected gamma and " + std::to_string(Policy::num_params) +
                                  " parameters of policy '" + name + "', but got " + std::to_string(numbers.size()) +
                                  " numbers");
    }
    return f(Policy(numbers.data() + 1));
  }
  if constexpr (I + 1 < std::tuple_size_v<Policies>) return with_policy_of<Policies, I + 1>(name, numbers, f);
  else throw std::invalid_argument("expected policy to be one that the compiled core knows, but got '" + name + "'");
}
template <class F>
auto with_policy(const std::string& name, const std::vector<double>& numbers, F f) {
  return with_policy_of<Policies>(name, numbers, f);
}

}  // namespace imbloss
