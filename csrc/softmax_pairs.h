// Softmax losses of two classes whose logits lie side by side: everything in a lane per row, one exp a row.
#pragma once

#include "softmax_rows.h"

namespace imbloss {

#if defined(IMBLOSS_MOVES_LANES)
// Numbers of a class, and of the other, for each row.
template <int U>
struct Pair {
  Vec<float, U> of[2];
};

template <int U, class S>
IMBLOSS_INLINE Pair<U> load_pairs(const S* p) {
  Vec<float, 2 * U> all = load<2 * U>(p);
  Pair<U> pair;
  IMBLOSS_UNROLL
  for (int u = 0; u < U; u++) split_pairs(all.r[2 * u], all.r[2 * u + 1], pair.of[0].r[u], pair.of[1].r[u]);
  return pair;
}
template <int U, class S>
IMBLOSS_INLINE void store_pairs(S* p, Vec<float, U> first, Vec<float, U> second) {
  Vec<float, 2 * U> all;
  IMBLOSS_UNROLL
  for (int u = 0; u < U; u++) join_pairs(first.r[u], second.r[u], all.r[2 * u], all.r[2 * u + 1]);
  store(p, all);
}

// U vectors of rows from `first` on.
template <int U, class S, class Policy>
IMBLOSS_INLINE void pair_rows(const SoftmaxRows<S>& job, const Policy& policy, Exponent<Vec<float, U>> gamma,
                              int64_t first, BlockSums& sums) {
  constexpr int lanes = kLanes<float>, count = U * lanes;
  using W = Vec<float, U>;
  const int32_t ignored = job.ignore_index == 0 || job.ignore_index == 1 ? static_cast<int32_t>(job.ignore_index) : -1;
  W label;
  bool all_count = true;
  IMBLOSS_UNROLL
  for (int u = 0; u < U; u++) {
    Vec<int32_t> labels = load_labels(job.target + first + u * lanes);
    all_count &= all_in_range(labels, 2, ignored);
    label.r[u] = __builtin_convertvector(labels.r[0], Register<float>);
  }
  float counts[count];
  for (int r = 0; r < count && !all_count; r++) counts[r] = target_of(job, first + r, sums) >= 0;
  const auto is_second = W(0) < label;
  auto of_target = [&](const float* per_class) { return select(is_second, W(per_class[1]), W(per_class[0])); };

  Pair<U> z = load_pairs<U>(job.logits + 2 * first);
  IMBLOSS_UNROLL
  for (int c = 0; c < 2; c++) {
    if (job.scale) z.of[c] = z.of[c] * job.scale[c];
    if (job.bias) z.of[c] = z.of[c] + job.bias[c];
  }
  W target_z = select(is_second, z.of[1], z.of[0]), other_z = select(is_second, z.of[0], z.of[1]);
  if (job.margin) target_z = target_z - of_target(job.margin);
  W weight(1);
  if (job.weight) weight = of_target(job.weight);
  if (job.sample_weight) weight = weight * load<U>(job.sample_weight + first);
  if (job.gamma_high) gamma = {of_target(job.gamma_high), of_target(job.gamma_low)};

  W top = max(target_z, other_z), below = -abs(target_z - other_z);
  W e = exp(below) + (top - top);  // NaN where the top is infinite
  const auto other_on_top = target_z < other_z;
  W inverse_total = reciprocal(e + 1), lower = e * inverse_total;
  W p = select(other_on_top, lower, inverse_total), q = select(other_on_top, inverse_total, lower);
  Point<W> point = policy(Row<W>{select(other_on_top, below, W(0)) - log1p_of_fraction(e), p, q}, gamma);
  W slope = weight * job.inverse_divisor * point.slope;
  Finished<W> f{weight * point.value, -(slope * inverse_total), slope * q};

  if (!all_count) f.value = select(W(0) < load<U>(counts), f.value, W(0));
  sums.loss += sum(f.value);
  if (job.loss) store(job.loss + first, f.value);
  if (job.stats) {
    float* stats = job.stats + first;
    store(stats + kTop * job.stats_stride, top);
    store(stats + kOther * job.stats_stride, f.other);
    store(stats + kTarget * job.stats_stride, f.target);
  }
  if (!job.grad) return;
  W other = -f.target, grad[2] = {select(is_second, other, f.target), select(is_second, f.target, other)};
  IMBLOSS_UNROLL
  for (int c = 0; c < 2; c++) {
    if (job.scale) grad[c] = grad[c] * job.scale[c];
    if (!all_count) grad[c] = select(W(0) < load<U>(counts), grad[c], W(0));
  }
  store_pairs<U>(job.grad + 2 * first, grad[0], grad[1]);
}

// The usual case: one gamma, no weights, nothing kept of a row.
template <class S>
bool pairs_are_plain(const SoftmaxRows<S>& job) {
  return !job.scale && !job.bias && !job.margin && !job.weight && !job.sample_weight && !job.gamma_high && !job.loss &&
         !job.stats && (job.ignore_index < 0 || job.ignore_index > 1);
}

// The same for that case: nothing but signs depends on the label. Adds the values to `total`. Does nothing and returns
// false where a row does not count, or its logits are far apart or not finite.
template <int U, class S, class Policy>
IMBLOSS_INLINE bool plain_pair_rows(const SoftmaxRows<S>& job, const Policy& policy, Exponent<Vec<float, U>> gamma,
                                    int64_t first, Vec<float>& total) {
  constexpr int lanes = kLanes<float>;
  constexpr float far = 69;  // the most that exp_of_small takes
  using W = Vec<float, U>;
  Vec<int32_t, U> second;  // the sign's bit where the target is the second class
  bool all_count = true;
  IMBLOSS_UNROLL
  for (int u = 0; u < U; u++) {
    const Vec<int32_t> labels = load_labels(job.target + first + u * lanes);
    all_count &= all_in_range(labels, 2, -1);
    second.r[u] = (labels << 31).r[0];
  }
  const Pair<U> z = load_pairs<U>(job.logits + 2 * first);
  const W other_above = from_bits<float>(to_bits(z.of[1] - z.of[0]) ^ second), below = minus_abs(other_above);
  if (!all_count || !all(W(-far) < below)) return false;

  W e = exp_of_small(below), inverse_total = reciprocal(e + 1), lower = e * inverse_total;
  const auto other_on_top = W(0) < other_above;
  W p = select(other_on_top, lower, inverse_total), q = select(other_on_top, inverse_total, lower);
  const Point<W> point = policy(Row<W>{select(other_on_top, below, W(0)) - log1p_of_fraction(e), p, q}, gamma);
  total = total + fold(point.value, [](Vec<float> a, Vec<float> b) { return a + b; });
  if (!job.grad) return true;
  const W grad = from_bits<float>(to_bits(point.slope * job.inverse_divisor * q) ^ second);
  store_pairs<U>(job.grad + 2 * first, grad, -grad);
  return true;
}

template <class S, class Policy>
void softmax_pairs(const SoftmaxRows<S>& job, const Policy& policy, int64_t begin, int64_t end, BlockSums& sums) {
  constexpr int abreast = 4, lanes = kLanes<float>, step = abreast * lanes;
  const auto gammas = shared_gamma<Vec<float, abreast>>(job);
  const auto gamma = shared_gamma<Vec<float>>(job);
  const bool plain = pairs_are_plain(job);
  LongSum<Vec<float>> total;
  while (begin + step <= end) {
    Vec<float> run(0);
    for (const int64_t last = std::min(end - step, begin + (kRun - 1) * step); begin <= last; begin += step) {
      if (plain && plain_pair_rows<abreast>(job, policy, gammas, begin, run)) continue;
      pair_rows<abreast>(job, policy, gammas, begin, sums);
    }
    total.add(run);
  }
  sums.loss += sum(total.value());
  for (; begin + lanes <= end; begin += lanes) pair_rows<1>(job, policy, gamma, begin, sums);
  if (begin < end) softmax_rows_in_scratch(job, AnyPolicy<float>(policy), begin, end, sums);
}
#endif

}  // namespace imbloss
