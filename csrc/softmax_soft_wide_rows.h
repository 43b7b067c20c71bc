// Softmax losses whose target is a distribution over classes, where classes lie side by side, some vectors of them, and
// logits are so small that nothing is shifted. A row with larger ones takes the usual way, and no other with it.
#pragma once

#include "softmax_soft_targets.h"

namespace imbloss {

inline constexpr int64_t kLongSoftRow = 257;  // classes: from here on a row at a time

// ---- up to some hundred classes -----------------------------------------------------------------------------------
// A few rows at a time, lanes along the classes of each; what is done once a row is done in a lane per row.
template <class S, class T, class Policy>
class WideSoftRows {
  using A = Accumulate<S>;
  using V = Vec<A>;
  static constexpr int lanes = kLanes<A>;

 public:
  WideSoftRows(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy)
      : job_(job),
        targets_(targets),
        policy_(policy),
        spread_(targets.spread(job)),
        room_((job.classes + lanes - 1) / lanes * lanes),
        batch_(rows_at_once<A>(room_)),
        fetches_(job.bytes >= kLeastFetched),
        known_(first_lanes<A>(static_cast<int>(room_ - job.classes))),
        gamma_(shared_gamma<V>(job)),
        scratch_(2 * batch_ * room_) {
    for (int r = 0; r < lanes; r++) top_[r] = others_[r] = largest_[r] = loss_[r] = top_slope_[r] = slopes_[r] = V(0);
  }

  void add(int64_t row, BlockSums& sums) {
    int64_t label;
    if (!targets_.counts(job_, row, label, sums)) return leave_out(job_, row);
    const int r = count_++;
    row_[r] = row;
    label_[r] = label;
    take_exponentials(r);
    if (count_ == batch_) finish(sums);
  }

  // Losses and gradients of the rows that were added.
  void finish(BlockSums& sums) {
    if (count_ == 0) return;
    const V tops = maxima(top_);
    A top[lanes], largest[lanes];
    store(top, tops);
    V others[lanes], largest_of_all(0);
    for (int r = 0; r < lanes; r++) {  // of a lane, the largest is among the others of the row
      const auto is_top = top_[r] == V(top[r]);
      others[r] = others_[r] + select(is_top, V(0), top_[r]);
      const uint64_t at_top = lanes_of(is_top);
      if (at_top & (at_top - 1)) {  // several: all but one
        const A more = top[r] * static_cast<A>(__builtin_popcountll(at_top) - 1);
        others[r] = others[r] + select(first_lanes<A>(1), V(more), V(0));
      }
      largest_of_all = max(largest_[r], largest_of_all);  // without what is NaN
    }
    const RowTerms<V> terms(tops, imbloss::sums(others));
    store(largest, max_lane(largest_of_all) <= kSmallLogit ? V(0) : maxima(largest_));
    for (int r = 0; r < count_; r++) {
      odd_[r] = largest[r] > kSmallLogit;
      if (!odd_[r]) take_slopes(r, terms);
    }
    SlopesAndLosses all{imbloss::sums(loss_), imbloss::sums(top_slope_), imbloss::sums(slopes_)};
    if (!targets_.probabilities) add_labels(terms, all);
    const SlopeTotals<V> totals(terms, all.top, all.others);
    A value[lanes];
    store(value, all.loss);
    for (int r = 0; r < count_; r++) {
      const int64_t row = row_[r];
      if (odd_[r]) {
        soft_rows_in_scratch(job_, targets_, policy_, row, row + 1, sums);
        continue;
      }
      const A weight = sample_weight_of(job_, row), loss = weight * value[r];
      sums.loss += loss;
      if (job_.loss) job_.loss[row] = loss;
      if (job_.grad) write(r, totals, weight * job_.inverse_divisor * upstream_of(job_, row));
    }
    count_ = 0;
  }

 private:
  struct SlopesAndLosses {
    V loss, top, others;
  };

  const S* logits_of(int r) const { return row_of(job_.logits, job_.logits_strides, job_.inner, row_[r]); }
  const T* shares_of(int r) const {
    return targets_.probabilities ? row_of(targets_.probabilities, targets_.strides, job_.inner, row_[r]) : nullptr;
  }
  S* gradient_of(int r) const {
    return job_.grad ? row_of(job_.grad, job_.grad_strides, job_.inner, row_[r]) : nullptr;
  }
  A* exponentials_of(int r) { return scratch_.data() + 2 * r * room_; }
  A* slopes_of(int r) { return exponentials_of(r) + room_; }

  // The sum of f(c, is_last) for vectors from class c on. The last one ends with the row; its lanes `known_` belong to
  // the vector before as well.
  template <class F>
  IMBLOSS_INLINE V sum_of(F f) {
    const int64_t classes = job_.classes;
    V total(0);
    int64_t c = 0;
    for (; c + lanes <= classes; c += lanes) total = total + f(c, std::false_type{});
    if (c < classes) total = total + f(classes - lanes, std::true_type{});
    return total;
  }

  void take_exponentials(int r) {
    const RowLogits<S> logits(job_, logits_of(r));
    const T* const t = shares_of(r);
    A* const e = exponentials_of(r);
    const Part<A> known = known_;
    const bool fetches = fetches_;
    V top(0), largest(0);
    others_[r] = sum_of([&](int64_t c, auto is_last) IMBLOSS_INLINE_LAMBDA {
      if (fetches) {
        fetch_to_read(logits.x + c + kAheadOf<S>, 1);
        if (t) fetch_to_read(t + c, 1);
      }
      V z = logits.at(c), exponential = exp_of_small(z);
      largest = larger_abs(largest, z);
      store(e + c, exponential);
      if constexpr (is_last) exponential = select(known, V(0), exponential);
      V other = min(top, exponential);
      top = max(top, exponential);
      return other;
    });
    top_[r] = top;
    largest_[r] = largest;
  }

  void take_slopes(int r, const RowTerms<V>& terms) {
    Exponent<V> gamma = gamma_;
    switch (gamma.whole) {  // a loop each, compiled for that exponent
      case 0:
        gamma.whole = 0;
        return take_slopes(r, terms.of_row(r), gamma);
      case 2:
        gamma.whole = 2;
        return take_slopes(r, terms.of_row(r), gamma);
      default:
        return take_slopes(r, terms.of_row(r), gamma);
    }
  }
  // Weighted slopes, with labels as if they were spread evenly, and the sums of them and of the loss.
  IMBLOSS_INLINE void take_slopes(int r, const RowTerms<V> terms, Exponent<V> gamma) {
    const Policy policy = policy_;  // a copy: the compiler then knows that no store changes it
    const RowLogits<S> logits(job_, logits_of(r));
    const T* const t = shares_of(r);
    const S* const g = gradient_of(r);
    const A *const weight = job_.weight, *const high = job_.gamma_high, *const low = job_.gamma_low;
    const A* const e = exponentials_of(r);
    A* const slopes = slopes_of(r);
    const V kept(targets_.kept()), spread(spread_);
    const Part<A> known = known_;
    const bool smooths = t && targets_.smoothing != 0, fetches = fetches_ && g;
    V loss(0), top_slope(0);
    slopes_[r] = sum_of([&](int64_t c, auto is_last) IMBLOSS_INLINE_LAMBDA {
      if (fetches) fetch_to_write(g + c, 1);
      if (high) gamma = {load(high + c), load(low + c)};
      V share = t ? load(t + c) : spread;
      if (smooths) share = share * kept + spread;
      if (weight) share = share * load(weight + c);
      V exponential = load(e + c);
      const Point<V> point = terms.point(policy, gamma, logits.at(c), exponential);
      V slope = share * point.slope, value = share * point.value;
      store(slopes + c, slope);
      if constexpr (is_last) {
        slope = select(known, V(0), slope);
        value = select(known, V(0), value);
      }
      loss = loss + value;
      const auto is_single = exponential == terms.e_single;
      top_slope = select(is_single, slope, top_slope);
      return select(is_single, V(0), slope);
    });
    loss_[r] = loss;
    top_slope_[r] = top_slope;
  }

  // What a label has beyond an even share.
  void add_labels(const RowTerms<V>& terms, SlopesAndLosses& all) {
    A z[lanes] = {}, e[lanes] = {}, share[lanes] = {}, high[lanes] = {}, low[lanes] = {}, more[lanes];
    for (int r = 0; r < count_; r++) {
      const int64_t y = label_[r];
      if (odd_[r]) continue;
      z[r] = RowLogits<S>(job_, logits_of(r)).one(y);
      e[r] = exponentials_of(r)[y];
      share[r] = job_.weight ? targets_.kept() * job_.weight[y] : targets_.kept();
      if (job_.gamma_high) {
        high[r] = job_.gamma_high[y];
        low[r] = job_.gamma_low[y];
      }
    }
    Exponent<V> gamma = gamma_;
    if (job_.gamma_high) gamma = {load(high), load(low)};
    V exponential = load(e);
    const Point<V> point = terms.point(policy_, gamma, load(z), exponential);
    V slope = load(share) * point.slope;
    const auto is_single = exponential == terms.e_single;
    all.loss = all.loss + load(share) * point.value;
    all.top = all.top + select(is_single, slope, V(0));
    all.others = all.others + select(is_single, V(0), slope);
    store(more, slope);
    for (int r = 0; r < count_; r++) {
      if (!odd_[r]) slopes_of(r)[label_[r]] += more[r];
    }
  }

  void write(int r, const SlopeTotals<V>& all, A factor) {
    const A *const e = exponentials_of(r), *const slopes = slopes_of(r), *const scale = job_.scale;
    S* const g = gradient_of(r);
    const SlopeTotals<V> totals = all.of_row(r);
    const int64_t classes = job_.classes;
    for (int64_t c = 0; c >= 0; c = next_vector(c, lanes, classes)) {
      V v = totals.grad(load(slopes + c), load(e + c)) * factor;
      store(g + c, scale ? v * load(scale + c) : v);
    }
  }

  const SoftmaxRows<S>& job_;
  const SoftTargets<S, T>& targets_;
  const Policy& policy_;
  const A spread_;
  const int64_t room_;  // of a row
  const int batch_;
  const bool fetches_;
  const Part<A> known_;
  const Exponent<V> gamma_;
  Scratch<A> scratch_;
  // of the rows that were added
  int count_ = 0;
  int64_t row_[lanes], label_[lanes];
  bool odd_[lanes];   // their logits are not small
  V top_[lanes];      // exponentials: of each lane the largest,
  V others_[lanes];   // and the sum of the others
  V largest_[lanes];  // |z|
  V loss_[lanes];
  V top_slope_[lanes];  // of the single class at the top
  V slopes_[lanes];     // of the others
};

template <class S, class T, class Policy>
void soft_wide_rows(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy, int64_t begin,
                    int64_t end, BlockSums& sums) {
  WideSoftRows<S, T, Policy> rows(job, targets, policy);
  for (int64_t row = begin; row < end; row++) rows.add(row, sums);
  rows.finish(sums);
}

// ---- more classes -------------------------------------------------------------------------------------------------
// A row at a time, with the class at the top taken out of the loops where its p may be near 1, so that these have no
// selects.
template <class S, class T, class Policy>
class LongSoftRow {
  using A = Accumulate<S>;
  using V = Vec<A>;
  static constexpr int lanes = kLanes<A>;

 public:
  LongSoftRow(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy, A* e, A* slopes)
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
    if (max_lane(terms_->e_single) >= 0) {
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
void soft_long_rows(const SoftmaxRows<S>& job, const SoftTargets<S, T>& targets, const Policy& policy, int64_t begin,
                    int64_t end, BlockSums& sums) {
  using A = Accumulate<S>;
  using V = Vec<A>;
  constexpr int lanes = kLanes<A>;
  const int64_t padded = (job.classes + lanes - 1) / lanes * lanes;
  Scratch<A> scratch(2 * padded);
  LongSoftRow<S, T, Policy> long_row(job, targets, policy, scratch.data(), scratch.data() + padded);
  const Exponent<V> gamma = shared_gamma<V>(job);
  for (int64_t row = begin; row < end; row++) {
    int64_t label;
    if (!targets.counts(job, row, label, sums)) {
      leave_out(job, row);
      continue;
    }
    const T* t = targets.probabilities ? row_of(targets.probabilities, targets.strides, job.inner, row) : nullptr;
    S* g = job.grad ? row_of(job.grad, job.grad_strides, job.inner, row) : nullptr;
    if (!long_row.read(row_of(job.logits, job.logits_strides, job.inner, row), t, g)) {
      soft_rows_in_scratch(job, targets, policy, row, row + 1, sums);
      continue;
    }
    const A weight = sample_weight_of(job, row), value = weight * long_row.loss(label, gamma);
    sums.loss += value;
    if (job.loss) job.loss[row] = value;
    if (g) long_row.gradient(weight * job.inverse_divisor * upstream_of(job, row));
  }
}

}  // namespace imbloss
