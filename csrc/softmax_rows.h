// Softmax losses of one target class a row (docs/math.md, section 1): the walk over rows and classes. What a row's
// value and slope are is the policy's business; threads, blocks and tensors are ops.cpp's.
#pragma once

#include "rows.h"

namespace imbloss {

// Loss and gradient of rows in lanes, from their sums of exponentials.
template <class V>
struct Finished {
  V value, other, target;  // the loss times its weight, and what RowStats says
  V slope;                 // of finish_small
};
template <class V, class Policy>
IMBLOSS_INLINE Finished<V> finish(const Policy& policy, Exponent<V> gamma, V weight,
                                  typename V::Element inverse_divisor, V below_top, V e_target, V e_others) {
  V total = e_target + e_others, inverse_total = reciprocal(total);
  // total - 1 without cancellation: the 1 is the target's own where the target is on top, else one of the others'
  V excess = select(below_top == V(0), e_others, e_target + (e_others - 1));
  V q = e_others * inverse_total;
  Point<V> point = policy(Row<V>{below_top - log1p(excess, inverse_total), e_target * inverse_total, q}, gamma);
  V slope = weight * inverse_divisor * point.slope;
  return {weight * point.value, -(slope * inverse_total), slope * q};
}
template <class V, class Policy>
IMBLOSS_INLINE Finished<V> finish(const Policy& policy, Exponent<V> gamma, V weight,
                                  typename V::Element inverse_divisor, V below_top, V e_others) {
  return finish(policy, gamma, weight, inverse_divisor, below_top, exp(below_top), e_others);
}

// Logits up to this are small: their exponentials are float32 numbers, and so is the sum of a million of them over one.
inline constexpr float kSmallLogit = 36;

// Loss and gradient of rows whose logits are small enough for exp itself: e = exp(z).
template <class V, class Policy>
IMBLOSS_INLINE Finished<V> finish_small(const Policy& policy, Exponent<V> gamma, V weight,
                                        typename V::Element inverse_divisor, V e_target, V e_others) {
  V inverse_target = reciprocal(e_target), odds = e_others * inverse_target, p = reciprocal(odds + 1), q = odds * p;
  Point<V> point = policy(Row<V>{-log1p(odds, p), p, q}, gamma);
  V slope = weight * inverse_divisor * point.slope;
  return {weight * point.value, -(slope * (p * inverse_target)), slope * q, slope};
}
// Whether products of exponentials with `other` keep their digits. Where p is nearly 1, its power of q may be so small,
// and the sum of the exponentials so large, that it underflows and the gradient does not.
template <class V>
IMBLOSS_INLINE auto keeps_digits(const Finished<V>& f) {
  const V least(std::numeric_limits<typename V::Element>::min());
  return (abs(f.slope) < least) | (least < abs(f.other));
}

// Targets and constants of up to `size` rows, in lanes. A row that does not count has label -1 and, in every lane, p =
// 1 and no weight.
template <class S, int size>
struct RowLanes {
  using A = Accumulate<S>;
  int64_t label[size];
  A counts[size], top[size], target_z[size], others[size], weight[size], gamma_high[size], gamma_low[size];

  // Reads the target of row `row` into lane r; true where it counts.
  bool read(const SoftmaxRows<S>& job, int64_t row, int r, BlockSums& sums) {
    const int64_t y = label[r] = target_of(job, row, sums);
    if (y < 0) {
      clear(r);
      return false;
    }
    counts[r] = 1;
    weight[r] = (job.weight ? job.weight[y] : A(1)) * sample_weight_of(job, row);
    if (job.gamma_high) {
      gamma_high[r] = job.gamma_high[y];
      gamma_low[r] = job.gamma_low[y];
    }
    return true;
  }
  void clear(int r) { counts[r] = top[r] = target_z[r] = others[r] = weight[r] = gamma_high[r] = gamma_low[r] = 0; }

  // Adds the losses of n rows from `row` on to the sum, and stores what is wanted of them.
  template <int U>
  void finished(const SoftmaxRows<S>& job, int64_t row, int n, const Finished<Vec<A, U>>& f, BlockSums& sums) {
    using V = Vec<A, U>;
    const V value = select(V(0) < load<U>(counts), f.value, V(0));  // even where the divisor is 0
    sums.loss += sum(value);
    if (job.loss) store_rows(job.loss + row, n, value);
    if (!job.stats) return;
    A* stats = job.stats + row;
    store_rows(stats + kTop * job.stats_stride, n, load<U>(top));
    store_rows(stats + kOther * job.stats_stride, n, f.other);
    store_rows(stats + kTarget * job.stats_stride, n, f.target);
  }
};

// Replaces e[0..n), n whole vectors, by exp(e - top), and returns its sum.
template <class A>
A exp_and_sum(A* e, int64_t n, A top) {
  constexpr int abreast = 4, lanes = kLanes<A>, step = abreast * lanes;
  LongSum<Vec<A, abreast>> sums;
  int64_t c = 0;
  while (c + step <= n) {
    Vec<A, abreast> run(0);
    for (const int64_t end = std::min(n - step, c + (kRun - 1) * step); c <= end; c += step) {
      Vec<A, abreast> exponentials = exp(load<abreast>(e + c) - top);
      store(e + c, exponentials);
      run = run + exponentials;
    }
    sums.add(run);
  }
  Vec<A> rest(0);
  for (; c < n; c += lanes) {
    Vec<A> exponentials = exp(load(e + c) - top);
    store(e + c, exponentials);
    rest = rest + exponentials;
  }
  return sum(sums.value()) + sum(rest);
}

// Up to one vector of rows at a time: each row's exponentials into scratch, then value and slope of all rows in
// lanes, then the gradient from scratch. For any number of classes and any strides.
template <class S, class Policy>
void softmax_rows_in_scratch(const SoftmaxRows<S>& job, const Policy& policy, int64_t begin, int64_t end,
                             BlockSums& sums) {
  using A = Accumulate<S>;
  using V = Vec<A>;
  constexpr int lanes = kLanes<A>;
  const int64_t padded = (job.classes + lanes - 1) / lanes * lanes;
  const int batch = static_cast<int>(std::clamp<int64_t>(Scratch<A>::kOnStack / padded, 1, lanes));
  Scratch<A> scratch(batch * padded);
  RowLanes<S, lanes> rows;
  Exponent<V> gamma = shared_gamma<V>(job);

  for (int64_t first = begin; first < end; first += batch) {
    const int n = static_cast<int>(std::min<int64_t>(batch, end - first));
    for (int r = n; r < lanes; r++) rows.clear(r);
    for (int r = 0; r < n; r++) {
      if (!rows.read(job, first + r, r, sums)) continue;
      const int64_t y = rows.label[r];
      const S* x = row_of(job.logits, job.logits_strides, job.inner, first + r);
      A* e = scratch.data() + r * padded;

      V largest(-kInfinity<A>);
      for_lanes<A>(job.classes, [&](int64_t c, int count) {
        V z = load_logits(job, x, c, count);
        store(e + c, z);
        largest = max(largest, z);
      });
      rows.top[r] = max_lane(largest);
      rows.target_z[r] = e[y];
      e[y] = -kInfinity<A>;  // out of the sum of the others
      if (job.margin) {
        rows.target_z[r] -= job.margin[y];
        largest = V(-kInfinity<A>);
        for (int64_t c = 0; c < padded; c += lanes) largest = max(largest, load(e + c));
        rows.top[r] = std::max(max_lane(largest), rows.target_z[r]);
      }
      rows.others[r] = exp_and_sum(e, padded, rows.top[r]);
    }

    if (job.gamma_high) gamma = {load(rows.gamma_high), load(rows.gamma_low)};
    Finished<V> f = finish(policy, gamma, load(rows.weight), job.inverse_divisor, load(rows.target_z) - load(rows.top),
                           load(rows.others));
    rows.finished(job, first, n, f, sums);
    if (!job.grad) continue;
    A other[lanes];
    store(other, f.other);
    for (int r = 0; r < n; r++) {
      if (rows.label[r] < 0) {
        clear_row(job, first + r);
        continue;
      }
      S* g = row_of(job.grad, job.grad_strides, job.inner, first + r);
      A* e = scratch.data() + r * padded;
      e[rows.label[r]] = -rows.others[r];  // times `other` it is slope * q
      for_lanes<A>(job.classes, [&](int64_t c, int count) { store_grad(job, g, c, count, load(e + c) * other[r]); });
    }
  }
}

// Dense logits: a vector of neighbouring rows at a time, everything in lanes, the classes one after the other.
template <class S, class Policy>
void softmax_dense_rows(const SoftmaxRows<S>& job, const Policy& policy, int64_t begin, int64_t end, BlockSums& sums) {
  using A = Accumulate<S>;
  constexpr int most = 4 * kLanes<A>;
  Scratch<A> scratch(most * job.classes);
  A* const e = scratch.data();  // [class][row]
  RowLanes<S, most> rows;
  const bool streams = streams_past_caches(job) && job.grad_strides.outer * sizeof(S) % kVectorBytes == 0 &&
                       job.grad_strides.cls * sizeof(S) % kVectorBytes == 0 && job.inner % kLanes<A> == 0;
  for_row_vectors<A, 4>(job.inner, begin, end, [&](auto registers, int64_t row, int n) {
    constexpr int U = registers, width = U * kLanes<A>;
    using V = Vec<A, U>;
    const S* x = row_of(job.logits, job.logits_strides, job.inner, row);
    auto logits = [&](int64_t c) {
      V z = load_rows<U>(x + c * job.logits_strides.cls, n);
      if (job.scale) z = z * job.scale[c];
      if (job.bias) z = z + job.bias[c];
      return z;
    };
    V large(0), top(0);
    for (int64_t c = 0; c < job.classes; c++) {
      V z = logits(c);
      large = larger_abs(large, z);
      store(e + c * width, exp_of_small(z));
    }
    const bool small = max_lane(large) <= kSmallLogit && !job.margin;
    if (!small) {
      top = V(-kInfinity<A>);
      for (int64_t c = 0; c < job.classes; c++) {
        V z = logits(c);
        store(e + c * width, z);
        top = max(top, z);
      }
    }
    bool all_count = true;
    for (int r = n; r < width; r++) rows.clear(r);
    for (int r = 0; r < n; r++) {
      if (!rows.read(job, row + r, r, sums)) {
        all_count = false;
        if (small) rows.target_z[r] = 1;  // p = 1
        continue;
      }
      A& z = e[rows.label[r] * width + r];
      rows.target_z[r] = z - (job.margin ? job.margin[rows.label[r]] : A(0));
      z = small ? A(0) : -kInfinity<A>;  // out of the sum of the others
    }
    if (job.margin) {
      top = load<U>(rows.target_z);
      for (int64_t c = 0; c < job.classes; c++) top = max(top, load<U>(e + c * width));
    }
    store(rows.top, top);
    LongSum<V> total;
    for (int64_t c = 0; c < job.classes;) {
      V run(0);
      for (const int64_t end = std::min(job.classes, c + kRun); c < end; c++) {
        V exponential = load<U>(e + c * width);
        if (!small) {
          exponential = exp(exponential - top);
          store(e + c * width, exponential);
        }
        run = run + exponential;
      }
      total.add(run);
    }
    const V e_others = total.value(), target = load<U>(rows.target_z), weight = load<U>(rows.weight);
    store(rows.others, e_others);

    Exponent<V> gamma = shared_gamma<V>(job);
    if (job.gamma_high) gamma = {load<U>(rows.gamma_high), load<U>(rows.gamma_low)};
    Finished<V> f = small ? finish_small(policy, gamma, weight, job.inverse_divisor, target, e_others)
                          : finish(policy, gamma, weight, job.inverse_divisor, target - top, e_others);
    if (small && !all(keeps_digits(f))) return softmax_rows_in_scratch(job, policy, row, row + n, sums);
    rows.finished(job, row, n, f, sums);
    if (!job.grad) return;
    S* g = row_of(job.grad, job.grad_strides, job.inner, row);
    for (int r = 0; r < n; r++) {
      if (rows.label[r] >= 0) e[rows.label[r] * width + r] = -rows.others[r];  // times `other` it is slope * q
    }
    const auto mask = V(0) < load<U>(rows.counts);
    for (int64_t c = 0; c < job.classes; c++) {
      V grad = load<U>(e + c * width) * f.other;
      if (job.scale) grad = grad * job.scale[c];
      if (!all_count) grad = select(mask, grad, V(0));  // 0 whatever an ignored row's logits are
      if (U > 1) store(g + c * job.grad_strides.cls, grad, streams);
      else store_rows(g + c * job.grad_strides.cls, n, grad);
    }
  });
  if (streams) stream_fence();
}

// ---- the gradient from a forward's stats, for any upstream gradient ----------------------------------------------
template <class S>
void backward_rows(const SoftmaxRows<S>& job, int64_t begin, int64_t end, BlockSums& sums) {
  using A = Accumulate<S>;
  for (int64_t row = begin; row < end; row++) {
    const int64_t y = target_of(job, row, sums);
    if (y < 0) {
      clear_row(job, row);
      continue;
    }
    const A up = upstream_of(job, row);
    const A top = job.stats[kTop * job.stats_stride + row];
    const A other = up * job.stats[kOther * job.stats_stride + row];
    const S* x = row_of(job.logits, job.logits_strides, job.inner, row);
    S* g = row_of(job.grad, job.grad_strides, job.inner, row);
    for_lanes<A>(job.classes,
                 [&](int64_t c, int n) { store_grad(job, g, c, n, exp(load_logits(job, x, c, n) - top) * other); });
    A target = up * job.stats[kTarget * job.stats_stride + row];
    if (job.scale) target *= job.scale[y];
    store_one(g + y * job.grad_strides.cls, target);
  }
}

template <class S>
void backward_dense_rows(const SoftmaxRows<S>& job, int64_t begin, int64_t end, BlockSums& sums) {
  using A = Accumulate<S>;
  for_row_vectors<A, 4>(job.inner, begin, end, [&](auto registers, int64_t row, int n) {
    constexpr int U = registers, width = U * kLanes<A>;
    using V = Vec<A, U>;
    int64_t label[width];
    A up[width], counts[width];
    for (int r = 0; r < width; r++) {
      label[r] = r < n ? target_of(job, row + r, sums) : -1;
      counts[r] = label[r] >= 0;
      up[r] = r < n ? upstream_of(job, row + r) : A(0);
    }
    const auto mask = V(0) < load<U>(counts);
    const A* stats = job.stats + row;
    V top = load_rows<U>(stats + kTop * job.stats_stride, n);
    V other = load<U>(up) * load_rows<U>(stats + kOther * job.stats_stride, n);
    const S* x = row_of(job.logits, job.logits_strides, job.inner, row);
    S* g = row_of(job.grad, job.grad_strides, job.inner, row);
    for (int64_t c = 0; c < job.classes; c++) {
      V z = load_rows<U>(x + c * job.logits_strides.cls, n);
      if (job.scale) z = z * job.scale[c];
      if (job.bias) z = z + job.bias[c];
      V grad = exp(z - top) * other;
      if (job.scale) grad = grad * job.scale[c];
      store_rows(g + c * job.grad_strides.cls, n, select(mask, grad, V(0)));
    }
    for (int r = 0; r < n; r++) {
      if (label[r] < 0) continue;
      A target = up[r] * stats[kTarget * job.stats_stride + r];
      if (job.scale) target *= job.scale[label[r]];
      store_one(g + label[r] * job.grad_strides.cls + r, target);
    }
  });
}

}  // namespace imbloss
