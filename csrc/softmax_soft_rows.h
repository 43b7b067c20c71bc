// Softmax losses whose target is a distribution over classes (docs/math.md, section 2): probabilities, or one class
// with label smoothing. Every class takes part, so the policy is asked for each.
#pragma once

#include "rows.h"

namespace imbloss {

// The target's share of each class of a row: from probabilities stored as T, or from one class.
template <class S, class T>
struct SoftTargets {
  using A = Accumulate<S>;
  const T* probabilities;  // or null: one class a row, from the job
  Strides strides;
  A smoothing;  // eps: t_c = (1 - eps) p_c + eps / C

  A kept() const { return 1 - smoothing; }
  A spread(const SoftmaxRows<S>& job) const { return smoothing / job.classes; }

  // Whether the row counts; `label` is its class, -1 where targets are probabilities.
  bool counts(const SoftmaxRows<S>& job, int64_t row, int64_t& label, BlockSums& sums) const {
    label = probabilities ? -1 : target_of(job, row, sums);
    return probabilities || label >= 0;
  }

  // Shares of n classes from c on of a row; 0 in lanes past the last class.
  IMBLOSS_INLINE Vec<A> classes(const SoftmaxRows<S>& job, const T* row, int64_t label, int64_t c, int n) const {
    if (probabilities) {
      Vec<A> p = load_lanes(row + c * strides.cls, strides.cls, n, A(0));
      if (smoothing == 0) return p;
      return select(lanes_below(n), p * kept() + spread(job), Vec<A>(0));
    }
    A t[kLanes<A>];
    for (int i = 0; i < kLanes<A>; i++) t[i] = i < n ? spread(job) : A(0);
    if (label >= c && label < c + n) t[label - c] += kept();
    return load(t);
  }

  static IMBLOSS_INLINE Mask<A, 1> lanes_below(int n) {
    A lane[kLanes<A>];
    for (int i = 0; i < kLanes<A>; i++) lane[i] = i;
    return load(lane) < Vec<A>(n);
  }
};

// A class of a row. `e` is exp(z - top); the classes at the top have e = 1 and share the complement that was summed
// from the others, all else has p <= 1/2, where 1 - p loses nothing.
template <class V, class Policy>
IMBLOSS_INLINE Point<V> class_point(const Policy& policy, Exponent<V> gamma, V below_top, V e, V e_others,
                                    V inverse_total, V log_total) {
  V p = e * inverse_total;
  V q = select(e == V(1), e_others * inverse_total, 1 - p);
  return policy(Row<V>{below_top - log_total, p, q}, gamma);
}

// d loss / d z_j = D_j - p_j sum D, from weighted slopes D. A single class at the top may have p near 1: its own D is
// then taken out of both terms, D_j q_j - p_j (sum of the other D).
template <class V>
IMBLOSS_INLINE V class_grad(V slope, V e, V e_others, V inverse_total, V slopes_top, V slopes_others) {
  V p = e * inverse_total;
  V alone = slope * (e_others * inverse_total) - p * slopes_others;
  auto single_top = (e == V(1)) & (e_others < V(1));
  return select(single_top, alone, slope - p * (slopes_top + slopes_others));
}

// What a row sums over its classes: its loss, and the weighted slopes of the class at the top and of the others.
template <class V>
struct SlopeSums {
  LongSum<V> loss, top, others;

  struct Run {
    V loss = V(0), top = V(0), others = V(0);
    // Takes in a class with its share of the target, and returns its weighted slope.
    IMBLOSS_INLINE V add(V share, Point<V> point, V e) {
      auto absent = share == V(0), is_top = e == V(1);
      V slope = select(absent, V(0), share * point.slope);
      loss = loss + select(absent, V(0), share * point.value);  // nothing, even at log p = -inf
      top = top + select(is_top, slope, V(0));
      others = others + select(is_top, V(0), slope);
      return slope;
    }
  };
  void add(const Run& run) {
    loss.add(run.loss);
    top.add(run.top);
    others.add(run.others);
  }
};

// One row at a time, lanes along its classes; for any strides.
template <class S, class T, class Policy>
void soft_rows_in_scratch(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy,
                          int64_t begin, int64_t end, BlockSums& sums) {
  using A = Accumulate<S>;
  using V = Vec<A>;
  constexpr int lanes = kLanes<A>;
  const int64_t padded = (job.classes + lanes - 1) / lanes * lanes;
  Scratch<A> scratch(2 * padded);
  A* const e = scratch.data();
  A* const slopes = e + padded;
  Exponent<V> gamma = shared_gamma<V>(job);

  for (int64_t row = begin; row < end; row++) {
    int64_t label;
    if (!targets.counts(job, row, label, sums)) {
      if (job.loss) job.loss[row] = 0;
      if (job.grad) clear_row(job, row);
      continue;
    }
    const S* x = row_of(job.logits, job.logits_strides, job.inner, row);
    const T* t = targets.probabilities ? row_of(targets.probabilities, targets.strides, job.inner, row) : nullptr;
    V largest(-kInfinity<A>);
    for_lanes<A>(job.classes, [&](int64_t c, int n) {
      V z = load_logits(job, x, c, n);
      store(slopes + c, z);
      largest = max(largest, z);
    });
    const A top = max_lane(largest);
    LongSum<V> below;
    V at_top(0);
    for (int64_t c = 0; c < padded;) {
      V run(0);
      for (const int64_t end = std::min(padded, c + kRun * lanes); c < end; c += lanes) {
        V z = load(slopes + c) - top, exponential = exp(z);
        auto is_top = exponential == V(1);
        store(slopes + c, z);
        store(e + c, exponential);
        run = run + select(is_top, V(0), exponential);
        at_top = at_top + select(is_top, V(1), V(0));
      }
      below.add(run);
    }
    const V e_others(sum(below.value()) + (sum(at_top) - 1));
    const V total = e_others + 1, inverse_total = 1 / total, log_total = log1p(e_others);

    SlopeSums<V> sums_of_slopes;
    for (int64_t from = 0; from < job.classes; from += kRun * lanes) {
      typename SlopeSums<V>::Run run;
      for_lanes<A>(std::min(job.classes - from, kRun * lanes), [&](int64_t i, int n) {
        const int64_t c = from + i;
        if (job.gamma_high)
          gamma = {load_lanes(job.gamma_high + c, 1, n, A(0)), load_lanes(job.gamma_low + c, 1, n, A(0))};
        V exponential = load(e + c);
        Point<V> point = class_point(policy, gamma, load(slopes + c), exponential, e_others, inverse_total, log_total);
        V share = targets.classes(job, t, label, c, n);
        if (job.weight) share = share * load_lanes(job.weight + c, 1, n, A(0));
        store(slopes + c, run.add(share, point, exponential));
      });
      sums_of_slopes.add(run);
    }
    const A weight = sample_weight_of(job, row), value = weight * sum(sums_of_slopes.loss.value());
    sums.loss += value;
    if (job.loss) job.loss[row] = value;
    if (!job.grad) continue;
    S* g = row_of(job.grad, job.grad_strides, job.inner, row);
    const V factor(weight * job.inverse_divisor * upstream_of(job, row));
    const V all_top(sum(sums_of_slopes.top.value())), all_others(sum(sums_of_slopes.others.value()));
    for_lanes<A>(job.classes, [&](int64_t c, int n) {
      V grad = class_grad(load(slopes + c), load(e + c), e_others, inverse_total, all_top, all_others);
      store_grad(job, g, c, n, grad * factor);
    });
  }
}

// Dense logits: a vector of neighbouring rows at a time, everything in lanes, the classes one after the other.
template <class S, class T, class Policy>
void soft_dense_rows(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy, int64_t begin,
                     int64_t end, BlockSums& sums) {
  using A = Accumulate<S>;
  constexpr int most = 4 * kLanes<A>;
  Scratch<A> scratch(2 * most * job.classes);
  for_row_vectors<A>(job.inner, begin, end, [&](auto registers, int64_t row, int n) {
    constexpr int U = registers, width = U * kLanes<A>;
    using V = Vec<A, U>;
    A* const e = scratch.data();  // [class][row]
    A* const slopes = e + job.classes * width;
    const S* x = row_of(job.logits, job.logits_strides, job.inner, row);
    const T* t = targets.probabilities ? row_of(targets.probabilities, targets.strides, job.inner, row) : nullptr;
    A label[width], factor[width];
    for (int r = 0; r < width; r++) {
      int64_t y = -1;
      const bool counts = r < n && targets.counts(job, row + r, y, sums);
      label[r] = static_cast<A>(y);
      factor[r] = counts ? sample_weight_of(job, row + r) : A(0);
    }
    V top(-kInfinity<A>);
    for (int64_t c = 0; c < job.classes; c++) {
      V z = load_rows<U>(x + c * job.logits_strides.cls, n);
      if (job.scale) z = z * job.scale[c];
      if (job.bias) z = z + job.bias[c];
      store(slopes + c * width, z);
      top = max(top, z);
    }
    LongSum<V> below;
    V at_top(0);
    for (int64_t c = 0; c < job.classes;) {
      V run(0);
      for (const int64_t end = std::min(job.classes, c + kRun); c < end; c++) {
        V z = load<U>(slopes + c * width) - top, exponential = exp(z);
        auto is_top = exponential == V(1);
        store(slopes + c * width, z);
        store(e + c * width, exponential);
        run = run + select(is_top, V(0), exponential);
        at_top = at_top + select(is_top, V(1), V(0));
      }
      below.add(run);
    }
    const V e_others = below.value() + (at_top - 1), inverse_total = 1 / (e_others + 1), log_total = log1p(e_others);

    Exponent<V> gamma = shared_gamma<V>(job);
    SlopeSums<V> sums_of_slopes;
    for (int64_t c = 0; c < job.classes;) {
      typename SlopeSums<V>::Run run;
      for (const int64_t end = std::min(job.classes, c + kRun); c < end; c++) {
        if (job.gamma_high) gamma = {V(job.gamma_high[c]), V(job.gamma_low[c])};
        V exponential = load<U>(e + c * width);
        Point<V> point =
            class_point(policy, gamma, load<U>(slopes + c * width), exponential, e_others, inverse_total, log_total);
        V share = t ? load_rows<U>(t + c * targets.strides.cls, n)
                    : select(load<U>(label) == V(static_cast<A>(c)), V(1), V(0));
        share = share * targets.kept() + targets.spread(job);
        if (job.weight) share = share * job.weight[c];
        store(slopes + c * width, run.add(share, point, exponential));
      }
      sums_of_slopes.add(run);
    }
    A value[width], counts[width];
    store(value, load<U>(factor) * sums_of_slopes.loss.value());
    for (int r = 0; r < width; r++) {
      counts[r] = r < n && (targets.probabilities || label[r] >= 0);
      if (counts[r] == 0) value[r] = 0;
      if (r >= n) continue;
      sums.loss += value[r];
      if (job.loss) job.loss[row + r] = value[r];
      factor[r] *= job.inverse_divisor * upstream_of(job, row + r);
    }
    if (!job.grad) return;
    const auto mask = V(0) < load<U>(counts);
    const V all_top = sums_of_slopes.top.value(), all_others = sums_of_slopes.others.value();
    S* g = row_of(job.grad, job.grad_strides, job.inner, row);
    for (int64_t c = 0; c < job.classes; c++) {
      V grad =
          class_grad(load<U>(slopes + c * width), load<U>(e + c * width), e_others, inverse_total, all_top, all_others);
      grad = select(mask, grad * load<U>(factor), V(0));
      if (job.scale) grad = grad * job.scale[c];
      store_rows(g + c * job.grad_strides.cls, n, grad);
    }
  });
}

// The one place that chooses a traversal by shape.
template <class S, class T, class Policy>
void softmax_soft_rows(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy, int64_t begin,
                       int64_t end, BlockSums& sums) {
  // labels are compared as numbers of type A, exact up to 2^24
  const bool dense =
      rows_are_adjacent(job) && job.classes <= (1 << 24) && (!targets.probabilities || targets.strides.inner == 1);
  if (dense) soft_dense_rows(job, targets, policy, begin, end, sums);
  else soft_rows_in_scratch(job, targets, policy, begin, end, sums);
}

}  // namespace imbloss
