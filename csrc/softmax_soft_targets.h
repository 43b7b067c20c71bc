// What the traversals of targets that are a distribution over classes share (docs/math.md, section 2): probabilities,
// or one class with label smoothing. Every class takes part, so the policy is asked for each.
#pragma once

#include <optional>

#include "softmax_packed_rows.h"

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

// The exponentials of a row in lanes: the largest, and the sum of all others, from which its complement comes. All else
// has p <= 1/2, where 1 - p loses nothing.
template <class V>
struct Exponentials {
  V top = V(0);
  LongSum<V> others;

  struct Run {
    V others = V(0);
  };
  IMBLOSS_INLINE void add(Run& run, V e) {
    run.others = run.others + min(top, e);
    top = max(top, e);
  }
  void add(const Run& run) { others.add(run.others); }
};

// What a class needs to know of its row. A single class at the top may have p near 1: its q, and its log p, come from
// the sum of the others.
template <class V>
struct RowTerms {
  V e_top, q_top, log_p_top, inverse_total, log_total;
  V e_single;  // of a single class at the top; a number that is no exponential where its p is about 1/2 or less

  RowTerms(V e_top, V e_others) : e_top(e_top) {
    V total = e_top + e_others;
    inverse_total = 1 / total;
    q_top = e_others * inverse_total;
    log_p_top = -log1p(e_others / e_top);
    log_total = log(total);
    e_single = select(q_top < V(0.49), e_top, V(-1));  // of two with the same p, q is 1/2, rounded
  }

  RowTerms(V e_top, V q_top, V log_p_top, V inverse_total, V log_total, V e_single)
      : e_top(e_top),
        q_top(q_top),
        log_p_top(log_p_top),
        inverse_total(inverse_total),
        log_total(log_total),
        e_single(e_single) {}

  // Of rows in lanes, those of row r in every lane.
  IMBLOSS_INLINE RowTerms of_row(int r) const {
    return {lane(e_top, r),         lane(q_top, r),     lane(log_p_top, r),
            lane(inverse_total, r), lane(log_total, r), lane(e_single, r)};
  }

  // A class of the row, with e = exp(z).
  template <class Policy>
  IMBLOSS_INLINE Point<V> point(const Policy& policy, Exponent<V> gamma, V z, V e) const {
    V p = e * inverse_total;
    const auto is_single = e == e_single;
    return policy(Row<V>{select(is_single, log_p_top, z - log_total), p, select(is_single, q_top, 1 - p)}, gamma);
  }
};

// What a row sums over its classes: its loss, and the weighted slopes of the single class at the top and of the others.
template <class V>
struct SlopeSums {
  LongSum<V> loss, top, others;

  struct Run {
    V loss = V(0), top = V(0), others = V(0);
    // Takes in a class with its share of the target, and returns its weighted slope.
    template <bool finite>
    IMBLOSS_INLINE V add(V share, Point<V> point, V e, V e_single) {
      const auto is_single = e == e_single;
      V slope = share * point.slope, value = share * point.value;
      if constexpr (!finite) {  // nothing, even at log p = -inf
        const auto absent = share == V(0);
        slope = select(absent, V(0), slope);
        value = select(absent, V(0), value);
      }
      loss = loss + value;
      top = select(is_single, slope, top);
      others = others + select(is_single, V(0), slope);
      return slope;
    }
  };
  void add(const Run& run) {
    loss.add(run.loss);
    top.add(run.top);
    others.add(run.others);
  }
};

// d loss / d z_j = D_j - p_j sum D, from weighted slopes D. That of a single class at the top is taken out of both
// terms, D_j q_j - p_j (sum of the other D).
template <class V>
struct SlopeTotals {
  V e_single, grad_of_single, inverse_total, all;

  SlopeTotals(const RowTerms<V>& terms, V top, V others)
      : e_single(terms.e_single),
        grad_of_single(top * terms.q_top - terms.e_top * terms.inverse_total * others),
        inverse_total(terms.inverse_total),
        all(top + others) {}

  SlopeTotals(V e_single, V grad_of_single, V inverse_total, V all)
      : e_single(e_single), grad_of_single(grad_of_single), inverse_total(inverse_total), all(all) {}

  // Of rows in lanes, those of row r in every lane.
  IMBLOSS_INLINE SlopeTotals of_row(int r) const {
    return {lane(e_single, r), lane(grad_of_single, r), lane(inverse_total, r), lane(all, r)};
  }

  IMBLOSS_INLINE V grad(V slope, V e) const {  // p first: both its factors may be large where the other is tiny
    return select(e == e_single, grad_of_single, slope - e * inverse_total * all);
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
      leave_out(job, row);
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
    Exponentials<V> all;
    for (int64_t c = 0; c < padded;) {
      typename Exponentials<V>::Run run;
      for (const int64_t end = std::min(padded, c + kRun * lanes); c < end; c += lanes) {
        V z = load(slopes + c) - top, exponential = exp(z);
        store(slopes + c, z);
        store(e + c, exponential);
        all.add(run, exponential);
      }
      all.add(run);
    }
    // across lanes: the largest of one is among the others of the row
    const A lane_tops = sum(select(all.top == V(1), V(0), all.top)), at_top = sum(select(all.top == V(1), V(1), V(0)));
    const RowTerms<V> terms(V(1), V(sum(all.others.value()) + (lane_tops + (at_top - 1))));

    SlopeSums<V> sums_of_slopes;
    for (int64_t from = 0; from < job.classes; from += kRun * lanes) {
      typename SlopeSums<V>::Run run;
      for_lanes<A>(std::min(job.classes - from, kRun * lanes), [&](int64_t i, int n) {
        const int64_t c = from + i;
        if (job.gamma_high)
          gamma = {load_lanes(job.gamma_high + c, 1, n, A(0)), load_lanes(job.gamma_low + c, 1, n, A(0))};
        V exponential = load(e + c);
        Point<V> point = terms.point(policy, gamma, load(slopes + c), exponential);
        V share = targets.classes(job, t, label, c, n);
        if (job.weight) share = share * load_lanes(job.weight + c, 1, n, A(0));
        store(slopes + c, run.template add<false>(share, point, exponential, terms.e_single));
      });
      sums_of_slopes.add(run);
    }
    const A weight = sample_weight_of(job, row), value = weight * sum(sums_of_slopes.loss.value());
    sums.loss += value;
    if (job.loss) job.loss[row] = value;
    if (!job.grad) continue;
    S* g = row_of(job.grad, job.grad_strides, job.inner, row);
    const V factor(weight * job.inverse_divisor * upstream_of(job, row));
    const SlopeTotals<V> totals(terms, V(sum(sums_of_slopes.top.value())), V(sum(sums_of_slopes.others.value())));
    for_lanes<A>(job.classes, [&](int64_t c, int n) {
      V grad = totals.grad(load(slopes + c), load(e + c));
      store_grad(job, g, c, n, grad * factor);
    });
  }
}

}  // namespace imbloss
