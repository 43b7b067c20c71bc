// Softmax losses of one target class a row where classes are few and rows follow one another in memory: the usual case.
// Vectors of rows at a time, as one run of numbers. What belongs to an element (exp, the gradient) is computed where it
// lies; what belongs to a row (sum, loss, slope) in a lane per row.
#pragma once

#include "softmax_rows.h"

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
    for (int r = 0; r < lanes && scale; r++) std::copy(scale, scale + classes, scale_ + r * classes);
    for (int r = 0; r < lanes && bias; r++) std::copy(bias, bias + classes, bias_ + r * classes);
  }

  // Lane i is v of the row that the i-th number of the k-th vector belongs to.
  IMBLOSS_INLINE V spread(V v, int k) const { return permute(v, row_ + k * lanes); }

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

  // z = scale x + bias for the k-th vector.
  IMBLOSS_INLINE V adjusted(V x, int k) const {
    if (scaled_) x = x * load(scale_ + k * lanes);
    if (biased_) x = x + load(bias_ + k * lanes);
    return x;
  }
  IMBLOSS_INLINE V scaled(V g, int k) const { return scaled_ ? g * load(scale_ + k * lanes) : g; }

 private:
  int classes_;
  bool scaled_, biased_;
  alignas(kVectorBytes) int32_t row_[kMostPacked * lanes];
  alignas(kVectorBytes) float rest_[lanes], scale_[kMostPacked * lanes], bias_[kMostPacked * lanes];
};

// Loss and gradient of rows whose logits are small enough for exp itself: e = exp(z).
template <class V, class Policy>
IMBLOSS_INLINE Finished<V> finish_small(const Policy& policy, Exponent<V> gamma, V weight, float inverse_divisor,
                                        V e_target, V e_others) {
  V odds = e_others / e_target, p = 1 / (odds + 1), q = odds * p;
  Point<V> point = policy(Row<V>{-log1p(odds), p, q}, gamma);
  V slope = weight * inverse_divisor * point.slope;
  return {weight * point.value, -(slope * p / e_target), slope * q};
}

// U vectors of rows from `first` on; `e` has room for their numbers and 4 more.
template <int U, bool Affine, class S, class Policy>
void packed_rows(const SoftmaxRows<S>& job, const Policy& policy, const PackedRows& packed, int64_t first, float* e,
                 BlockSums& sums) {
  constexpr int lanes = PackedRows::lanes, count = U * lanes;
  constexpr float small = 40;  // so that exp(2 * 40) times the classes is a number
  using V = Vec<float>;
  using W = Vec<float, U>;
  const int classes = static_cast<int>(job.classes), vectors = classes * U;
  const S* x = job.logits + first * classes;
  auto logits = [&](int k) {
    V z = load(x + k * lanes);
    return Affine ? packed.adjusted(z, k % classes) : z;
  };
  auto reduce = [&](float neutral, auto f) {
    W all;
    IMBLOSS_UNROLL
    for (int u = 0; u < U; u++) all.r[u] = packed.reduce(e + u * lanes * classes, neutral, f).r[0];
    return all;
  };

  V largest(0);
  for (int k = 0; k < vectors; k++) {
    V z = logits(k);
    largest = max(largest, abs(z));
    store(e + k * lanes, exp(z));
  }

  int32_t at[count];  // of the target, in e; of a row that does not count, a place that nobody reads
  const int64_t* target = job.target + first;
  bool all_count = true;
  for (int r = 0; r < count; r++) {
    const int64_t y = target[r];
    all_count &= (static_cast<uint64_t>(y) < static_cast<uint64_t>(classes)) & (y != job.ignore_index);
    at[r] = static_cast<int32_t>(static_cast<uint32_t>(r * classes) + static_cast<uint32_t>(y));  // y may be anything
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
    for (int r = 0; r < count; r++) {
      const bool out = !all_count && counts[r] == 0;
      each[r] = out ? 0 : (job.weight ? job.weight[target[r]] : 1) * sample_weight_of(job, first + r);
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
  if (max_lane(largest) <= small && !job.margin) {
    for (int r = 0; r < count; r++) at_target[r] = e[at[r]];
    for (int r = 0; r < count; r++) e[at[r]] = 0;  // out of the sum of the others
    e_others = reduce(0, add);
    f = finish_small(policy, gamma, weight, job.inverse_divisor, load<U>(at_target), e_others);
  } else {
    for (int k = 0; k < vectors; k++) store(e + k * lanes, logits(k));
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
      store(g + k * lanes, Affine ? packed.scaled(grad, i) : grad);
    }
  }
  for (int r = 0; r < count && !all_count; r++) {
    if (counts[r] == 0) clear_row(job, first + r);
  }
}

template <bool Affine, class S, class Policy>
void softmax_packed_rows(const SoftmaxRows<S>& job, const Policy& policy, int64_t begin, int64_t end, BlockSums& sums) {
  constexpr int abreast = 4, lanes = PackedRows::lanes;
  const PackedRows packed(static_cast<int>(job.classes), job.scale, job.bias);
  alignas(kVectorBytes) float e[abreast * lanes * kMostPacked + 4];
  e[abreast * lanes * job.classes] = 0;
  for (; begin + abreast * lanes <= end; begin += abreast * lanes)
    packed_rows<abreast, Affine>(job, policy, packed, begin, e, sums);
  for (; begin + lanes <= end; begin += lanes) packed_rows<1, Affine>(job, policy, packed, begin, e, sums);
  if (begin < end) softmax_rows_in_scratch<Affine>(job, policy, begin, end, sums);
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

// The one place that chooses a traversal by shape.
template <class S, class Policy>
void softmax_rows(const SoftmaxRows<S>& job, const Policy& policy, int64_t begin, int64_t end, BlockSums& sums) {
  const bool affine = job.scale || job.bias, dense = rows_are_adjacent(job);
#if defined(IMBLOSS_MOVES_LANES)
  if constexpr (std::is_same_v<Accumulate<S>, float>) {
    if (rows_are_packed(job)) {
      if (affine) softmax_packed_rows<true>(job, policy, begin, end, sums);
      else softmax_packed_rows<false>(job, policy, begin, end, sums);
      return;
    }
  }
#endif
  if (dense && affine) softmax_dense_rows<true>(job, policy, begin, end, sums);
  else if (dense) softmax_dense_rows<false>(job, policy, begin, end, sums);
  else if (affine) softmax_rows_in_scratch<true>(job, policy, begin, end, sums);
  else softmax_rows_in_scratch<false>(job, policy, begin, end, sums);
}

}  // namespace imbloss
