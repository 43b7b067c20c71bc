// Softmax losses whose target is a distribution over classes (docs/math.md, section 2): probabilities, or one class
// with label smoothing. Every class takes part, so the policy is asked for each.
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

// What a class needs to know of its row.
template <class V>
struct RowTerms {
  V e_top, q_top, log_p_top, inverse_total, log_total;

  RowTerms(V e_top, V e_others) : e_top(e_top) {
    V total = e_top + e_others;
    inverse_total = 1 / total;
    q_top = e_others * inverse_total;
    log_p_top = -log1p(e_others / e_top);
    log_total = log(total);
  }

  // A class of the row, with e = exp(z).
  template <class Policy>
  IMBLOSS_INLINE Point<V> point(const Policy& policy, Exponent<V> gamma, V z, V e) const {
    V p = e * inverse_total;
    const auto is_top = e == e_top;
    return policy(Row<V>{select(is_top, log_p_top, z - log_total), p, select(is_top, q_top, 1 - p)}, gamma);
  }

  // d loss / d z_j = D_j - p_j sum D, from weighted slopes D. A single class at the top may have p near 1: its own D is
  // then taken out of both terms, D_j q_j - p_j (sum of the other D).
  IMBLOSS_INLINE V grad(V slope, V e, V slopes_top, V slopes_others) const {
    V p = e * inverse_total;
    const auto single_top = (e == e_top) & (q_top < V(0.5));
    return select(single_top, slope * q_top - p * slopes_others, slope - p * (slopes_top + slopes_others));
  }
};

// What a row sums over its classes: its loss, and the weighted slopes of the class at the top and of the others.
template <class V>
struct SlopeSums {
  LongSum<V> loss, top, others;

  struct Run {
    V loss = V(0), top = V(0), others = V(0);
    // Takes in a class with its share of the target, and returns its weighted slope.
    IMBLOSS_INLINE V add(V share, Point<V> point, V e, V e_top) {
      auto absent = share == V(0), is_top = e == e_top;
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
        store(slopes + c, run.add(share, point, exponential, terms.e_top));
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
      V grad = terms.grad(load(slopes + c), load(e + c), all_top, all_others);
      store_grad(job, g, c, n, grad * factor);
    });
  }
}

// ---- many classes that lie side by side, and logits so small that nothing is shifted ------------------------------
// The same with the class at the top taken out of the loops where its p may be near 1, so that these have no selects.
template <class S, class T, class Policy>
class WideSoftRow {
  using A = Accumulate<S>;
  using V = Vec<A>;
  static constexpr int lanes = kLanes<A>;

 public:
  WideSoftRow(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy, A* e, A* slopes)
      : job_(job), targets_(targets), policy_(policy), e_(e), slopes_(slopes), spread_(targets.spread(job)) {}

  // Exponentials, and what the slopes need to know of them; false where logits are not small. Shares t and the
  // gradient g come next; either may be null.
  bool read(const S* x, const T* t, S* g) {
    x_ = x;
    t_ = t;
    g_ = g;
    const RowLogits<S> logits(job_, x);
    A* const exponentials = e_;
    V largest(0);
    Exponentials<V> all;
    for (int64_t c = 0; c < job_.classes;) {
      typename Exponentials<V>::Run run;
      const int64_t end = std::min(job_.classes, c + kRun * lanes);
      for (; c + lanes <= end; c += lanes) {
        if (t) fetch_to_read(t + c, 1);
        fetch_to_read(x + c + kAheadOf<S>, 1);
        V z = logits.at(c), e = exp_of_small(z);
        largest = larger_abs(largest, z);
        store(exponentials + c, e);
        all.add(run, e);
      }
      if (c < end) {
        const Part<A> part = first_lanes<A>(static_cast<int>(end - c));
        V z = logits.at(c, part), e = select(part, exp_of_small(z), V(0));
        largest = larger_abs(largest, z);
        store(exponentials + c, e);
        all.add(run, e);
        c = end;
      }
      all.add(run);
    }
    if (!(max_lane(largest) <= kSmallLogit)) return false;
    // across lanes: the largest of one is among the others of the row
    const A top = max_lane(all.top);
    const auto at_top = all.top == V(top);
    const A tops = sum(select(at_top, V(1), V(0))), lower = sum(select(at_top, V(0), all.top));
    terms_.emplace(V(top), V(sum(all.others.value()) + (lower + (tops - 1) * top)));
    top_class_ = -1;
    if (max_lane(terms_->q_top) < A(0.5)) {
      for (top_class_ = 0; e_[top_class_] != top;) top_class_++;
    }
    return true;
  }

  // The loss; keeps the weighted slopes.
  A loss(int64_t label, Exponent<V> gamma) {
    A value = 0, top_slope = 0;
    switch (job_.gamma_high ? -1 : gamma.whole) {  // a loop each, compiled for that exponent
      case 0:
        gamma.whole = 0;
        value = sum_of_slopes(gamma);
        break;
      case 2:
        gamma.whole = 2;
        value = sum_of_slopes(gamma);
        break;
      default:
        value = sum_of_slopes(gamma);
    }
    auto one = [&](int64_t c, A share) {
      if (job_.weight) share *= job_.weight[c];
      if (job_.gamma_high) gamma = {V(job_.gamma_high[c]), V(job_.gamma_low[c])};
      const Point<V> point = terms_->point(policy_, gamma, V(RowLogits<S>(job_, x_).one(c)), V(e_[c]));
      value += share == 0 ? A(0) : share * max_lane(point.value);
      return share == 0 ? A(0) : share * max_lane(point.slope);
    };
    if (top_class_ >= 0) top_slope = one(top_class_, t_ ? share(top_class_) : spread_);
    if (label >= 0) {
      const A more = one(label, targets_.kept());
      slopes_[label] += more;
      (label == top_class_ ? top_slope : others_) += more;
    }
    top_slope_ = top_slope;
    return value;
  }

  void gradient(A factor) {
    S* const g = g_;
    const A *const e = e_, *const slopes = slopes_, *const scale = job_.scale;
    const V all(top_slope_ + others_);
    const V inverse_total = terms_->inverse_total;
    auto grad = [&](V slope, V e) IMBLOSS_INLINE_LAMBDA { return (slope - e * inverse_total * all) * factor; };
    int64_t c = 0;
    for (; c + lanes <= job_.classes; c += lanes) {
      V v = grad(load(slopes + c), load(e + c));
      store(g + c, scale ? v * load(scale + c) : v);
    }
    if (c < job_.classes) {
      const Part<A> part = first_lanes<A>(static_cast<int>(job_.classes - c));
      V v = grad(load(slopes + c), load(e + c));
      store(g + c, part, scale ? v * load(scale + c, part, A(0)) : v);
    }
    if (top_class_ < 0) return;
    const A p = e_[top_class_] * max_lane(terms_->inverse_total), q = max_lane(terms_->q_top);
    const A v = (top_slope_ * q - p * others_) * factor;
    store_one(g + top_class_, job_.scale ? v * job_.scale[top_class_] : v);
  }

 private:
  const SoftmaxRows<S>& job_;
  const SoftTargets<S, T>& targets_;
  const Policy& policy_;
  A *const e_, *const slopes_;
  const A spread_;
  const S* x_;
  const T* t_;
  S* g_;
  std::optional<RowTerms<V>> terms_;
  int64_t top_class_;  // -1 where it needs no care
  A top_slope_, others_;

  A share(int64_t c) const { return load_one(t_ + c) * targets_.kept() + spread_; }

  // Of all classes but the one at the top: their sums, with labels as if they were spread evenly.
  IMBLOSS_INLINE A sum_of_slopes(Exponent<V> gamma) {
    const RowLogits<S> logits(job_, x_);
    const T* const t = t_;
    S* const g = g_;
    const A *const weight = job_.weight, *const high = job_.gamma_high, *const low = job_.gamma_low, *const e = e_;
    A* const weighted = slopes_;
    const V kept(targets_.kept()), spread(spread_), log_total = terms_->log_total;
    const V inverse_total = terms_->inverse_total;
    auto of_class = [&](V z, V e) IMBLOSS_INLINE_LAMBDA {
      V p = e * inverse_total;
      return policy_(Row<V>{z - log_total, p, 1 - p}, gamma);
    };
    LongSum<V> loss, slopes;
    const int64_t ends[] = {top_class_ < 0 ? job_.classes : top_class_, job_.classes};
    int64_t c = 0;
    for (const int64_t end : ends) {
      while (c < end) {
        V run_loss(0), run_slopes(0);
        const int64_t run_end = std::min(end, c + kRun * lanes);
        for (; c + lanes <= run_end; c += lanes) {
          if (g) fetch_to_write(g + c, 1);
          if (high) gamma = {load(high + c), load(low + c)};
          V share = t ? load(t + c) * kept + spread : spread;
          if (weight) share = share * load(weight + c);
          const Point<V> point = of_class(logits.at(c), load(e + c));
          V slope = share * point.slope;
          store(weighted + c, slope);
          run_slopes = run_slopes + slope;
          run_loss = run_loss + share * point.value;
        }
        if (c < run_end) {
          const Part<A> part = first_lanes<A>(static_cast<int>(run_end - c));
          if (high) gamma = {load(high + c, part, A(0)), load(low + c, part, A(0))};
          V share = t ? load(t + c, part, A(0)) * kept + spread : spread;
          if (weight) share = share * load(weight + c, part, A(0));
          const Point<V> point = of_class(logits.at(c, part), load(e + c, part, A(1)));
          V slope = select(part, share * point.slope, V(0));
          store(weighted + c, part, slope);
          run_slopes = run_slopes + slope;
          run_loss = run_loss + select(part, share * point.value, V(0));
          c = run_end;
        }
        loss.add(run_loss);
        slopes.add(run_slopes);
      }
      if (c < job_.classes) weighted[c++] = 0;  // the top
    }
    others_ = sum(slopes.value());
    return sum(loss.value());
  }
};

template <class S, class T, class Policy>
void soft_wide_rows(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy, int64_t begin,
                    int64_t end, BlockSums& sums) {
  using A = Accumulate<S>;
  using V = Vec<A>;
  constexpr int lanes = kLanes<A>;
  const int64_t padded = (job.classes + lanes - 1) / lanes * lanes;
  Scratch<A> scratch(2 * padded);
  WideSoftRow<S, T, Policy> wide(job, targets, policy, scratch.data(), scratch.data() + padded);
  const Exponent<V> gamma = shared_gamma<V>(job);
  for (int64_t row = begin; row < end; row++) {
    int64_t label;
    if (!targets.counts(job, row, label, sums)) {
      leave_out(job, row);
      continue;
    }
    const T* t = targets.probabilities ? row_of(targets.probabilities, targets.strides, job.inner, row) : nullptr;
    S* g = job.grad ? row_of(job.grad, job.grad_strides, job.inner, row) : nullptr;
    if (!wide.read(row_of(job.logits, job.logits_strides, job.inner, row), t, g)) {
      soft_rows_in_scratch(job, targets, policy, row, row + 1, sums);
      continue;
    }
    const A weight = sample_weight_of(job, row), value = weight * wide.loss(label, gamma);
    sums.loss += value;
    if (job.loss) job.loss[row] = value;
    if (g) wide.gradient(weight * job.inverse_divisor * upstream_of(job, row));
  }
}

inline constexpr int kSoftAbreast = 2;  // vectors of rows: with more of them sums do not fit into registers

// Dense logits: a vector of neighbouring rows at a time, everything in lanes, the classes one after the other.
template <class S, class T, class Policy>
void soft_dense_rows(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy, int64_t begin,
                     int64_t end, BlockSums& sums) {
  using A = Accumulate<S>;
  constexpr int most = kSoftAbreast * kLanes<A>;
  Scratch<A> scratch(2 * most * job.classes);
  for_row_vectors<A, kSoftAbreast>(job.inner, begin, end, [&](auto registers, int64_t row, int n) {
    constexpr int U = registers, width = U * kLanes<A>;
    using V = Vec<A, U>;
    A* const e = scratch.data();  // [class][row]
    A* const slopes = e + job.classes * width;
    const S* x = row_of(job.logits, job.logits_strides, job.inner, row);
    const T* t = targets.probabilities ? row_of(targets.probabilities, targets.strides, job.inner, row) : nullptr;
    A label[width], counts[width];
    for (int r = 0; r < width; r++) {
      int64_t y = -1;
      counts[r] = r < n && targets.counts(job, row + r, y, sums);
      label[r] = static_cast<A>(y);
    }
    const auto mask = V(0) < load<U>(counts);
    V shift(0);
    auto logits = [&](int64_t c) IMBLOSS_INLINE_LAMBDA {
      V z = load_rows<U>(x + c * job.logits_strides.cls, n);
      if (job.scale) z = z * job.scale[c];
      if (job.bias) z = z + job.bias[c];
      return z - shift;
    };
    Exponentials<V> all;
    for (bool again = false;; again = true) {
      V largest(0);
      for (int64_t c = 0; c < job.classes;) {
        typename Exponentials<V>::Run run;
        for (const int64_t end = std::min(job.classes, c + kRun); c < end; c++) {
          V z = logits(c), exponential = exp(z);
          largest = larger_abs(largest, z);
          store(e + c * width, exponential);
          all.add(run, exponential);
        }
        all.add(run);
      }
      if (again || max_lane(largest) <= kSmallLogit) break;
      V top(-kInfinity<A>);
      for (int64_t c = 0; c < job.classes; c++) top = max(top, logits(c));
      shift = top;
      all = {};
    }
    const RowTerms<V> terms(all.top, all.others.value());

    Exponent<V> gamma = shared_gamma<V>(job);
    SlopeSums<V> sums_of_slopes;
    for (int64_t c = 0; c < job.classes;) {
      typename SlopeSums<V>::Run run;
      for (const int64_t end = std::min(job.classes, c + kRun); c < end; c++) {
        if (job.gamma_high) gamma = {V(job.gamma_high[c]), V(job.gamma_low[c])};
        V exponential = load<U>(e + c * width);
        Point<V> point = terms.point(policy, gamma, logits(c), exponential);
        V share = t ? load_rows<U>(t + c * targets.strides.cls, n)
                    : select(load<U>(label) == V(static_cast<A>(c)), V(1), V(0));
        share = share * targets.kept() + targets.spread(job);
        if (job.weight) share = share * job.weight[c];
        store(slopes + c * width, run.add(share, point, exponential, terms.e_top));
      }
      sums_of_slopes.add(run);
    }
    V factor = job.sample_weight ? load_rows<U>(job.sample_weight + row, n) : V(1);
    const V value = select(mask, factor * sums_of_slopes.loss.value(), V(0));
    sums.loss += sum(value);
    if (job.loss) store_rows(job.loss + row, n, value);
    if (!job.grad) return;
    factor = factor * job.inverse_divisor;
    if (job.upstream) factor = factor * (job.upstream_per_row ? load_rows<U>(job.upstream + row, n) : V(*job.upstream));
    const V all_top = sums_of_slopes.top.value(), all_others = sums_of_slopes.others.value();
    S* g = row_of(job.grad, job.grad_strides, job.inner, row);
    for (int64_t c = 0; c < job.classes; c++) {
      V grad = terms.grad(load<U>(slopes + c * width), load<U>(e + c * width), all_top, all_others);
      grad = select(mask, grad * factor, V(0));
      if (job.scale) grad = grad * job.scale[c];
      store_rows(g + c * job.grad_strides.cls, n, grad);
    }
  });
}

// ---- few classes that lie side by side: a block of rows is turned into dense logits, and its gradient back ---------
inline constexpr int64_t kMostTurned = 256;

// [row][class] to [class][row], for n rows that are `step` apart and at most `width`.
template <class S>
void turn(const S* rows, int64_t step, int n, int64_t classes, Accumulate<S>* turned, int width) {
  int r = 0;
#if defined(IMBLOSS_MOVES_LANES)
  if constexpr (std::is_same_v<S, float>) {
    constexpr int lanes = kLanes<float>;
    for (; classes == 2 && step == 2 && r + lanes <= n; r += lanes) {
      Vec<float, 2> pairs = load<2>(rows + r * 2);
      Vec<float> first, second;
      split_pairs(pairs.r[0], pairs.r[1], first.r[0], second.r[0]);
      store(turned + r, first);
      store(turned + width + r, second);
    }
    for (; classes == 3 && step == 3 && r + lanes <= n; r += lanes) {
      const Vec<float, 3> parts = split_triples(load<3>(rows + r * 3));
      IMBLOSS_UNROLL
      for (int c = 0; c < 3; c++) {
        Vec<float> part;
        part.r[0] = parts.r[c];
        store(turned + c * width + r, part);
      }
    }
    for (; classes >= 4 && r + lanes <= n; r += lanes) {
      for (int64_t c = 0; c >= 0; c = next_vector(c, 4, classes)) {
        Vec<float> quads[4];
        for (int j = 0; j < 4; j++) quads[j] = load_quads(rows + (r + j) * step + c, 4 * step);
        transpose_quads(quads);
        for (int j = 0; j < 4; j++) store(turned + (c + j) * width + r, quads[j]);
      }
    }
  }
#endif
  for (; r < n; r++) {
    for (int64_t c = 0; c < classes; c++) turned[c * width + r] = load_one(rows + r * step + c);
  }
}
// And back.
template <class S>
void turn_back(const Accumulate<S>* turned, int width, int n, int64_t classes, S* rows, int64_t step) {
  int r = 0;
#if defined(IMBLOSS_MOVES_LANES)
  if constexpr (std::is_same_v<S, float>) {
    constexpr int lanes = kLanes<float>;
    for (; classes == 2 && step == 2 && r + lanes <= n; r += lanes) {
      Vec<float, 2> pairs;
      join_pairs(load(turned + r).r[0], load(turned + width + r).r[0], pairs.r[0], pairs.r[1]);
      store(rows + r * 2, pairs);
    }
    for (; classes == 3 && step == 3 && r + lanes <= n; r += lanes) {
      Vec<float, 3> parts;
      IMBLOSS_UNROLL
      for (int c = 0; c < 3; c++) parts.r[c] = load(turned + c * width + r).r[0];
      store(rows + r * 3, join_triples(parts));
    }
    for (; classes >= 4 && r + lanes <= n; r += lanes) {
      for (int64_t c = 0; c >= 0; c = next_vector(c, 4, classes)) {
        Vec<float> quads[4];
        for (int j = 0; j < 4; j++) quads[j] = load(turned + (c + j) * width + r);
        transpose_quads(quads);
        for (int j = 0; j < 4; j++) store_quads(rows + (r + j) * step + c, 4 * step, quads[j]);
      }
    }
  }
#endif
  for (; r < n; r++) {
    for (int64_t c = 0; c < classes; c++) store_one(rows + r * step + c, turned[c * width + r]);
  }
}

template <class S, class T, class Policy>
void soft_turned_rows(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy, int64_t begin,
                      int64_t end, BlockSums& sums) {
  using A = Accumulate<S>;
  constexpr int width = kSoftAbreast * kLanes<A>;
  alignas(kVectorBytes) A logits[kMostTurned * width], shares[kMostTurned * width], grad[kMostTurned * width];
  const Strides dense{0, width, 1};
  const SoftTargets<A, A> turned_targets{targets.probabilities ? shares : nullptr, dense, targets.smoothing};
  for (int64_t row = begin; row < end; row += width) {
    const int n = static_cast<int>(std::min<int64_t>(width, end - row));
    turn(job.logits + row * job.logits_strides.outer, job.logits_strides.outer, n, job.classes, logits, width);
    if (targets.probabilities)
      turn(targets.probabilities + row * targets.strides.outer, targets.strides.outer, n, job.classes, shares, width);
    SoftmaxRows<A> block{};
    block.inner = width;
    block.classes = job.classes;
    block.ignore_index = job.ignore_index;
    block.logits = logits;
    block.logits_strides = block.grad_strides = dense;
    if (job.target) block.target = job.target + row;
    block.scale = job.scale;
    block.bias = job.bias;
    block.weight = job.weight;
    block.gamma_high = job.gamma_high;
    block.gamma_low = job.gamma_low;
    block.gamma = job.gamma;
    if (job.sample_weight) block.sample_weight = job.sample_weight + row;
    block.inverse_divisor = job.inverse_divisor;
    if (job.upstream) block.upstream = job.upstream + (job.upstream_per_row ? row : 0);
    block.upstream_per_row = job.upstream_per_row;
    if (job.loss) block.loss = job.loss + row;
    if (job.grad) block.grad = grad;
    BlockSums block_sums;
    soft_dense_rows(block, turned_targets, policy, 0, n, block_sums);
    sums.loss += block_sums.loss;
    if (sums.bad_row < 0 && block_sums.bad_row >= 0) sums.bad_row = row + block_sums.bad_row;
    if (job.grad)
      turn_back(grad, width, n, job.classes, job.grad + row * job.grad_strides.outer, job.grad_strides.outer);
  }
}

// ---- two classes that lie side by side: one exp a row, and the gradient of the second is minus that of the first ----
#if defined(IMBLOSS_MOVES_LANES)
// U vectors of rows from `first` on.
template <int U, class S, class T, class Policy>
void soft_pair_rows(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy, int64_t first,
                    BlockSums& sums) {
  constexpr int lanes = kLanes<float>, count = U * lanes;
  using W = Vec<float, U>;
  Pair<U> z = load_pairs<U>(job.logits + 2 * first), share;
  W counts(1);
  if (targets.probabilities) {
    share = load_pairs<U>(targets.probabilities + 2 * first);
  } else {
    float label[count], whether[count];
    for (int r = 0; r < count; r++) {
      int64_t y;
      whether[r] = targets.counts(job, first + r, y, sums);
      label[r] = static_cast<float>(y);
    }
    counts = load<U>(whether);
    const auto is_second = W(0) < load<U>(label);
    share = {{select(is_second, W(0), W(1)), select(is_second, W(1), W(0))}};
  }
  IMBLOSS_UNROLL
  for (int c = 0; c < 2; c++) {
    if (job.scale) z.of[c] = z.of[c] * job.scale[c];
    if (job.bias) z.of[c] = z.of[c] + job.bias[c];
    share.of[c] = share.of[c] * targets.kept() + targets.spread(job);
    if (job.weight) share.of[c] = share.of[c] * job.weight[c];
  }

  W top = max(z.of[0], z.of[1]), below = -abs(z.of[0] - z.of[1]);
  W e = exp(below) + (top - top);  // NaN where the top is infinite
  W high = reciprocal(e + 1), low = e * high, log_high = -log1p_of_fraction(e), log_low = below + log_high;
  const auto second_on_top = z.of[0] < z.of[1];
  const W p[2] = {select(second_on_top, low, high), select(second_on_top, high, low)};
  const W log_p[2] = {select(second_on_top, log_low, log_high), select(second_on_top, log_high, log_low)};
  Exponent<W> gamma = shared_gamma<W>(job);
  W value(0), slope[2];
  IMBLOSS_UNROLL
  for (int c = 0; c < 2; c++) {
    if (job.gamma_high) gamma = {W(job.gamma_high[c]), W(job.gamma_low[c])};
    const Point<W> point = policy(Row<W>{log_p[c], p[c], p[1 - c]}, gamma);
    const auto absent = share.of[c] == W(0);
    slope[c] = select(absent, W(0), share.of[c] * point.slope);
    value = value + select(absent, W(0), share.of[c] * point.value);  // nothing, even at log p = -inf
  }

  const auto counted = W(0) < counts;
  W factor = job.sample_weight ? load<U>(job.sample_weight + first) : W(1);
  value = select(counted, factor * value, W(0));
  sums.loss += sum(value);
  if (job.loss) store(job.loss + first, value);
  if (!job.grad) return;
  factor = factor * job.inverse_divisor;
  if (job.upstream) factor = factor * (job.upstream_per_row ? load<U>(job.upstream + first) : W(*job.upstream));
  const W grad = select(counted, (slope[0] * p[1] - slope[1] * p[0]) * factor, W(0));
  const W scale[2] = {job.scale ? W(job.scale[0]) : W(1), job.scale ? W(job.scale[1]) : W(1)};
  store_pairs<U>(job.grad + 2 * first, grad * scale[0], -grad * scale[1]);
}

template <class S, class T>
bool rows_are_soft_pairs(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets) {
  return std::is_same_v<Accumulate<S>, float> && job.classes == 2 && rows_are_packed(job) &&
         (!targets.probabilities || (targets.strides.outer == 2 && targets.strides.cls == 1));
}
#endif

template <class S, class T>
bool rows_can_turn(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets) {
  return job.classes <= kMostTurned && job.inner == 1 && job.logits_strides.cls == 1 &&
         (!job.grad || job.grad_strides.cls == 1) && (!targets.probabilities || targets.strides.cls == 1);
}

// The one place that chooses a traversal by shape.
template <class S, class T, class Policy>
void softmax_soft_rows(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy, int64_t begin,
                       int64_t end, BlockSums& sums) {
  // labels are compared as numbers of type A, exact up to 2^24
#if defined(IMBLOSS_MOVES_LANES)
  if constexpr (std::is_same_v<Accumulate<S>, float>) {
    constexpr int abreast = 2, lanes = kLanes<float>;
    const bool pairs = rows_are_soft_pairs(job, targets);
    for (; pairs && begin + abreast * lanes <= end; begin += abreast * lanes) {
      soft_pair_rows<abreast>(job, targets, policy, begin, sums);
    }
  }
#endif
  const bool dense =
      rows_are_adjacent(job) && job.classes <= (1 << 24) && (!targets.probabilities || targets.strides.inner == 1);
  if (dense) soft_dense_rows(job, targets, policy, begin, end, sums);
  else if (rows_can_turn(job, targets)) soft_turned_rows(job, targets, policy, begin, end, sums);
  else if (rows_are_wide(job) && (!targets.probabilities || targets.strides.cls == 1))
    soft_wide_rows(job, targets, policy, begin, end, sums);
  else soft_rows_in_scratch(job, targets, policy, begin, end, sums);
}

}  // namespace imbloss
