// Softmax losses of one target class a row where classes are few and rows follow one another in memory: the usual case.
// Vectors of rows at a time, as one run of numbers. What belongs to an element (exp, the gradient) is computed where it
// lies; what belongs to a row (sum, loss, slope) in a lane per row.
#pragma once

#include "softmax_long_rows.h"
#include "softmax_pairs.h"

namespace imbloss {

#if defined(IMBLOSS_MOVES_LANES)
inline constexpr int kMostPacked = 64;

// A vector of rows of C classes, which lie in C vectors.
class PackedRows {
 public:
  static constexpr int lanes = kLanes<float>;
  using V = Vec<float>;

  PackedRows(int classes, const float* scale, const float* bias) : classes_(classes), scaled_(scale), biased_(bias) {
    for (int r = 0, i = 0; r < lanes; r++) {
      for (int c = 0; c < classes; c++, i++) row_[i] = r;
    }
    for (int i = 0; i < lanes; i++) rest_[i] = i % 4 < classes % 4;
    for (int r = 0; r < lanes; r++) first_[r] = r * classes;
    for (int i = 0, c = 0; i < (classes + 1) * lanes && (scale || bias); i++, c = c + 1 == classes ? 0 : c + 1) {
      if (scale) scale_[i] = scale[c];
      if (bias) bias_[i] = bias[c];
    }
  }

  // Lane i is v of the row that the i-th number of the k-th vector belongs to.
  IMBLOSS_INLINE V spread(V v, int k) const { return permute(v, row_ + k * lanes); }

  // Where a label of each row of the u-th vector of rows lies.
  IMBLOSS_INLINE Vec<int32_t> places(Vec<int32_t> labels, int u) const {
    return labels + load(first_) + u * lanes * classes_;
  }

  // Lane i is f over the classes of row i. Reads up to 3 numbers past the last row.
  template <class F>
  IMBLOSS_INLINE V reduce(const float* e, float neutral, F f) const {
    V quads[4] = {V(neutral), V(neutral), V(neutral), V(neutral)};
    int c = 0;
    for (; c + 4 <= classes_; c += 4) {
      IMBLOSS_UNROLL
      for (int j = 0; j < 4; j++) quads[j] = f(quads[j], load_quads(e + j * classes_ + c, 4 * classes_));
    }
    if (c < classes_) {
      const auto rest = V(0) < load(rest_);
      IMBLOSS_UNROLL
      for (int j = 0; j < 4; j++) {
        quads[j] = f(quads[j], select(rest, load_quads(e + j * classes_ + c, 4 * classes_), V(neutral)));
      }
    }
    return reduce_quads(quads[0], quads[1], quads[2], quads[3], f);
  }

  // z = scale x + bias for vectors from the k-th on.
  template <int U>
  IMBLOSS_INLINE Vec<float, U> adjusted(Vec<float, U> x, int k) const {
    if (scaled_) x = x * load<U>(scale_ + k * lanes);
    if (biased_) x = x + load<U>(bias_ + k * lanes);
    return x;
  }
  IMBLOSS_INLINE V scaled(V g, int k) const { return scaled_ ? g * scale(k) : g; }

 protected:
  IMBLOSS_INLINE V scale(int k) const { return load(scale_ + k * lanes); }
  IMBLOSS_INLINE V bias(int k) const { return load(bias_ + k * lanes); }

 private:
  int classes_;
  bool scaled_, biased_;
  alignas(kVectorBytes) int32_t row_[kMostPacked * lanes], first_[lanes];
  // constants of a vector of rows, and a vector more: two are read at a time
  alignas(kVectorBytes) float rest_[lanes], scale_[(kMostPacked + 1) * lanes], bias_[(kMostPacked + 1) * lanes];
};

// U vectors of rows from `first` on; `e` has room for their numbers and 4 more.
template <int U, class S, class Policy>
void packed_rows(const SoftmaxRows<S>& job, const Policy& policy, const PackedRows& packed, int64_t first, float* e,
                 BlockSums& sums) {
  constexpr int lanes = PackedRows::lanes, count = U * lanes;
  using V = Vec<float>;
  using W = Vec<float, U>;
  const int classes = static_cast<int>(job.classes), vectors = classes * U;
  const S* x = job.logits + first * classes;
  auto logits = [&](auto abreast, int k) {
    Vec<float, abreast> z = load<abreast>(x + k * lanes);
    return packed.adjusted(z, k % classes);
  };
  auto reduce = [&](float neutral, auto f) {
    W all;
    IMBLOSS_UNROLL
    for (int u = 0; u < U; u++) all.r[u] = packed.reduce(e + u * lanes * classes, neutral, f).r[0];
    return all;
  };

  Vec<float, 2> large(0);
  int k = 0;
  for (; k + 2 <= vectors; k += 2) {
    Vec<float, 2> z = logits(std::integral_constant<int, 2>{}, k);
    large = larger_abs(large, z);
    store(e + k * lanes, exp_of_small(z));
  }
  V largest = fold(large, [](V a, V b) { return max(a, b); });
  if (k < vectors) {
    V z = logits(std::integral_constant<int, 1>{}, k);
    largest = larger_abs(largest, z);
    store(e + k * lanes, exp_of_small(z));
  }

  int32_t at[count];  // of the target, in e; of a row that does not count, a place that nobody reads
  const int64_t* target = job.target + first;
  const int32_t ignored =
      job.ignore_index >= 0 && job.ignore_index < classes ? static_cast<int32_t>(job.ignore_index) : -1;
  bool all_count = true;
  for (int u = 0; u < U; u++) {
    Vec<int32_t> labels = load_labels(target + u * lanes);
    all_count &= all_in_range(labels, classes, ignored);
    store(at + u * lanes, packed.places(labels, u));
  }
  float counts[count];
  if (!all_count) {
    for (int r = 0; r < count; r++) {
      counts[r] = target_of(job, first + r, sums) >= 0;
      if (counts[r] == 0) at[r] = count * classes;
    }
  }
  W weight(1);
  if (job.weight || job.sample_weight) {
    float each[count];
    if (all_count) read_weights(job, first, count, each);
    for (int r = 0; r < count && !all_count; r++) {
      each[r] = counts[r] == 0 ? 0 : (job.weight ? job.weight[target[r]] : 1) * sample_weight_of(job, first + r);
    }
    weight = load<U>(each);
  }
  Exponent<W> gamma = shared_gamma<W>(job);
  if (job.gamma_high) {
    float high[count], low[count];
    for (int r = 0; r < count; r++) {
      const bool out = !all_count && counts[r] == 0;
      high[r] = out ? 0 : job.gamma_high[target[r]];
      low[r] = out ? 0 : job.gamma_low[target[r]];
    }
    gamma = {load<U>(high), load<U>(low)};
  }

  auto add = [](V a, V b) { return a + b; };
  W top(0), e_others;
  Finished<W> f;
  float at_target[count];
  bool small = max_lane(largest) <= kSmallLogit && !job.margin;
  if (small) {
    for (int r = 0; r < count; r++) {
      at_target[r] = e[at[r]];
      e[at[r]] = 0;  // out of the sum of the others
    }
    e_others = reduce(0, add);
    f = finish_small(policy, gamma, weight, job.inverse_divisor, load<U>(at_target), e_others);
    const auto kept = keeps_digits(f);
    small = all_count ? all(kept) : all(kept | (load<U>(counts) == W(0)));
  }
  if (!small) {
    for (int k = 0; k < vectors; k++) store(e + k * lanes, logits(std::integral_constant<int, 1>{}, k));
    for (int r = 0; r < count; r++) {
      if (job.margin && (all_count || counts[r] != 0)) e[at[r]] -= job.margin[target[r]];
      at_target[r] = e[at[r]];
    }
    top = reduce(-kInfinity<float>, [](V a, V b) { return max(a, b); });
    for (int r = 0; r < count; r++) e[at[r]] = -kInfinity<float>;
    for (int u = 0, k = 0; u < U; u++) {
      V row_top;
      row_top.r[0] = top.r[u];
      for (int i = 0; i < classes; i++, k++) store(e + k * lanes, exp(load(e + k * lanes) - packed.spread(row_top, i)));
    }
    e_others = reduce(0, add);
    f = finish(policy, gamma, weight, job.inverse_divisor, load<U>(at_target) - top, e_others);
  }

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
  float others[count];
  store(others, e_others);
  for (int r = 0; r < count; r++) e[at[r]] = -others[r];  // times `other` it is slope * q
  S* g = job.grad + first * classes;
  for (int u = 0, k = 0; u < U; u++) {
    V other;
    other.r[0] = f.other.r[u];
    for (int i = 0; i < classes; i++, k++) {
      V grad = load(e + k * lanes) * packed.spread(other, i);
      store(g + k * lanes, packed.scaled(grad, i));
    }
  }
  for (int r = 0; r < count && !all_count; r++) {
    if (counts[r] == 0) clear_row(job, first + r);
  }
}

template <class S, class Policy>
void softmax_packed_rows(const SoftmaxRows<S>& job, const Policy& policy, int64_t begin, int64_t end, BlockSums& sums) {
  constexpr int abreast = 4, lanes = PackedRows::lanes;
  const PackedRows packed(static_cast<int>(job.classes), job.scale, job.bias);
  alignas(kVectorBytes) float e[abreast * lanes * kMostPacked + 4];
  e[abreast * lanes * job.classes] = 0;
  for (; begin + abreast * lanes <= end; begin += abreast * lanes)
    packed_rows<abreast>(job, policy, packed, begin, e, sums);
  for (; begin + lanes <= end; begin += lanes) packed_rows<1>(job, policy, packed, begin, e, sums);
  if (begin < end) softmax_rows_in_scratch(job, AnyPolicy<float>(policy), begin, end, sums);
}

// The gradient from a forward's stats.
template <class S>
void backward_packed_rows(const SoftmaxRows<S>& job, int64_t begin, int64_t end, BlockSums& sums) {
  constexpr int lanes = PackedRows::lanes;
  using V = Vec<float>;
  const int classes = static_cast<int>(job.classes);
  const PackedRows packed(classes, job.scale, job.bias);
  for (; begin + lanes <= end; begin += lanes) {
    const float* stats = job.stats + begin;
    V upstream(1);
    if (job.upstream) upstream = job.upstream_per_row ? load(job.upstream + begin) : V(*job.upstream);
    const V top = load(stats + kTop * job.stats_stride), other = upstream * load(stats + kOther * job.stats_stride);
    float target[lanes];
    store(target, upstream * load(stats + kTarget * job.stats_stride));
    const S* x = job.logits + begin * classes;
    S* g = job.grad + begin * classes;
    for (int k = 0; k < classes; k++) {
      V e = exp(packed.adjusted(load(x + k * lanes), k) - packed.spread(top, k));
      store(g + k * lanes, packed.scaled(e * packed.spread(other, k), k));
    }
    for (int r = 0; r < lanes; r++) {
      const int64_t y = target_of(job, begin + r, sums);
      if (y < 0) clear_row(job, begin + r);
      else store_one(g + r * classes + y, job.scale ? target[r] * job.scale[y] : target[r]);
    }
  }
  if (begin < end) backward_rows(job, begin, end, sums);
}

// Whether rows are few numbers that follow one another.
template <class S>
bool rows_are_packed(const SoftmaxRows<S>& job) {
  auto packed = [&](const Strides& s) {
    return job.inner == 1 && s.outer == job.classes && (s.cls == 1 || job.classes == 1);
  };
  return std::is_same_v<Accumulate<S>, float> && job.classes >= 2 && job.classes <= kMostPacked &&
         packed(job.logits_strides) && (!job.grad || packed(job.grad_strides));
}
#endif

// The two places that choose a traversal by shape.
// A run of blocks from row `begin` on, each with sums of its own.
template <class S, class Policy>
void softmax_rows(const SoftmaxRows<S>& job, const Policy& policy, int64_t begin, int64_t end, int64_t block_rows,
                  BlockSums* sums) {
  const AnyPolicy<Accumulate<S>> any(policy);
  if (rows_are_long(job)) return softmax_long_rows(job, any, begin, end, block_rows, sums);
  block_by_block([&](int64_t first, int64_t last, BlockSums& block) {
#if defined(IMBLOSS_MOVES_LANES)
    if constexpr (std::is_same_v<Accumulate<S>, float>) {
      if (rows_are_packed(job)) {
        if (job.classes == 2) return softmax_pairs(job, policy, first, last, block);
        return softmax_packed_rows(job, policy, first, last, block);
      }
    }
#endif
    if (rows_are_wide(job)) softmax_wide_rows(job, any, first, last, block);
    else if (rows_are_adjacent(job)) softmax_dense_rows(job, any, first, last, block);
    else softmax_rows_in_scratch(job, any, first, last, block);
  })(begin, end, block_rows, sums);
}

template <class S>
void softmax_rows_backward(const SoftmaxRows<S>& job, int64_t begin, int64_t end, BlockSums& sums) {
#if defined(IMBLOSS_MOVES_LANES)
  if constexpr (std::is_same_v<Accumulate<S>, float>) {
    if (rows_are_packed(job)) return backward_packed_rows(job, begin, end, sums);
  }
#endif
  if (rows_are_adjacent(job)) backward_dense_rows(job, begin, end, sums);
  else backward_rows(job, begin, end, sums);
}

}  // namespace imbloss
