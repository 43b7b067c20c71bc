// Softmax losses whose target is a distribution over classes: rows side by side, few classes, and which traversal
// serves which shape.
#pragma once

#include "softmax_soft_wide_rows.h"

namespace imbloss {

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
    auto logits = [&](int64_t c) IMBLOSS_INLINE_LAMBDA {
      V z = load_rows<U>(x + c * job.logits_strides.cls, n);
      if (job.scale) z = z * job.scale[c];
      if (job.bias) z = z + job.bias[c];
      return z;
    };
    const V row_weight = job.sample_weight ? load_rows<U>(job.sample_weight + row, n) : V(1);
    V factor(0);
    if (job.grad) {
      factor = row_weight * job.inverse_divisor;
      if (job.upstream)
        factor = factor * (job.upstream_per_row ? load_rows<U>(job.upstream + row, n) : V(*job.upstream));
    }
    S* const g = job.grad ? row_of(job.grad, job.grad_strides, job.inner, row) : nullptr;

    // Whether the rows are done. Where all logits are small nothing is shifted, and log p is finite.
    auto rows = [&](auto is_small) IMBLOSS_INLINE_LAMBDA {
      constexpr bool small = is_small;
      V shift(0);
      if constexpr (!small) {
        shift = V(-kInfinity<A>);
        for (int64_t c = 0; c < job.classes; c++) shift = max(shift, logits(c));
      }
      auto shifted = [&](int64_t c) IMBLOSS_INLINE_LAMBDA {
        V z = logits(c);
        return small ? z : z - shift;
      };
      V largest(0);
      Exponentials<V> all;
      for (int64_t c = 0; c < job.classes;) {
        typename Exponentials<V>::Run run;
        for (const int64_t end = std::min(job.classes, c + kRun); c < end; c++) {
          V z = shifted(c), exponential = small ? exp_of_small(z) : exp(z);
          if constexpr (small) largest = larger_abs(largest, z);
          store(e + c * width, exponential);
          all.add(run, exponential);
        }
        all.add(run);
      }
      if constexpr (small) {
        if (!(max_lane(largest) <= kSmallLogit)) return false;
      }
      const RowTerms<V> terms(all.top, all.others.value());

      Exponent<V> gamma = shared_gamma<V>(job);
      SlopeSums<V> sums_of_slopes;
      for (int64_t c = 0; c < job.classes;) {
        typename SlopeSums<V>::Run run;
        for (const int64_t end = std::min(job.classes, c + kRun); c < end; c++) {
          if (job.gamma_high) gamma = {V(job.gamma_high[c]), V(job.gamma_low[c])};
          V exponential = load<U>(e + c * width);
          Point<V> point = terms.point(policy, gamma, shifted(c), exponential);
          V share = t ? load_rows<U>(t + c * targets.strides.cls, n)
                      : select(load<U>(label) == V(static_cast<A>(c)), V(1), V(0));
          share = share * targets.kept() + targets.spread(job);
          if (job.weight) share = share * job.weight[c];
          store(slopes + c * width, run.template add<small>(share, point, exponential, terms.e_single));
        }
        sums_of_slopes.add(run);
      }
      const V value = select(mask, row_weight * sums_of_slopes.loss.value(), V(0));
      sums.loss += sum(value);
      if (job.loss) store_rows(job.loss + row, n, value);
      if (!g) return true;
      const SlopeTotals<V> totals(terms, sums_of_slopes.top.value(), sums_of_slopes.others.value());
      for (int64_t c = 0; c < job.classes; c++) {
        V grad = totals.grad(load<U>(slopes + c * width), load<U>(e + c * width)) * factor;
        grad = select(mask, grad, V(0));
        if (job.scale) grad = grad * job.scale[c];
        store_rows(g + c * job.grad_strides.cls, n, grad);
      }
      return true;
    };
    if (!rows(std::true_type{})) rows(std::false_type{});
  });
}

// ---- few classes that lie side by side: a block of rows is turned into dense logits, and its gradient back ---------
#if defined(IMBLOSS_MOVES_LANES)
inline constexpr int64_t kMostTurned = 47;
#else
inline constexpr int64_t kMostTurned = 15;
#endif

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
  const bool wide = rows_are_wide(job) && (!targets.probabilities || targets.strides.cls == 1);
  if (dense) soft_dense_rows(job, targets, policy, begin, end, sums);
  else if (rows_can_turn(job, targets)) soft_turned_rows(job, targets, policy, begin, end, sums);
  else if (wide && job.classes < kLongSoftRow) soft_wide_rows(job, targets, policy, begin, end, sums);
  else if (wide) soft_long_rows(job, targets, policy, begin, end, sums);
  else soft_rows_in_scratch(job, targets, policy, begin, end, sums);
}

}  // namespace imbloss
