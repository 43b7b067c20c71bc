// Softmax losses of one target class a row whose classes lie side by side, from one vector of them to kLongRow: a batch
// of rows at a time, which share the logarithms. Exponentials of the logits themselves, as long as these are small: no
// pass for a maximum, and nothing is rounded before exp.
#pragma once

#include "softmax_rows.h"

namespace imbloss {

// z = scale x + bias of one row: of a vector from class c on, or of a part of one. To be held by value: the compiler
// then knows that no store changes it.
template <class S>
struct RowLogits {
  using A = Accumulate<S>;
  const S* x;
  const A *scale, *bias;  // or null

  RowLogits(const SoftmaxRows<S>& job, const S* x) : x(x), scale(job.scale), bias(job.bias) {}

  IMBLOSS_INLINE Vec<A> at(int64_t c) const {
    Vec<A> z = load(x + c);
    if (scale) z = z * load(scale + c);
    if (bias) z = z + load(bias + c);
    return z;
  }
  IMBLOSS_INLINE Vec<A> at(int64_t c, Part<A> part) const {
    Vec<A> z = load(x + c, part, A(0));
    if (scale) z = z * load(scale + c, part, A(0));
    if (bias) z = z + load(bias + c, part, A(0));
    return z;
  }
  A one(int64_t c) const {
    A z = load_one(x + c);
    if (scale) z *= scale[c];
    return bias ? z + bias[c] : z;
  }
};

// The sum in lanes of e, whole vectors.
template <class A>
IMBLOSS_INLINE Vec<A> sum_of_classes(const A* e, int64_t padded) {
  Vec<A> even(0), odd(0);
  int64_t c = 0;
  for (; c + 2 * kLanes<A> <= padded; c += 2 * kLanes<A>) {
    even = even + load(e + c);
    odd = odd + load(e + c + kLanes<A>);
  }
  return c < padded ? even + odd + load(e + c) : even + odd;
}

// Writes exp(z) of all classes into e, and takes their |z| into `largest`.
template <class S, class V>
IMBLOSS_INLINE void exp_of_all_classes(RowLogits<S> logits, int64_t classes, Accumulate<S>* e, V& largest) {
  for (int64_t c = 0; c >= 0; c = next_vector(c, V::size, classes)) {
    V z = logits.at(c);
    largest = larger_abs(largest, z);
    store(e + c, exp_of_small(z));
  }
}

// How many numbers at g come before the first vector of them in aligned memory.
template <class S>
IMBLOSS_INLINE int64_t numbers_before_vectors(const S* g) {
  constexpr size_t bytes = kLanes<Accumulate<S>> * sizeof(S);
  return static_cast<int64_t>((bytes - reinterpret_cast<uintptr_t>(g) % bytes) % bytes / sizeof(S));
}

// Writes e * factor, times the scale, into a row of the gradient.
template <class S>
IMBLOSS_INLINE void scale_classes(const SoftmaxRows<S>& job, const Accumulate<S>* e, Accumulate<S> factor, S* g,
                                  bool streams) {
  using V = Vec<Accumulate<S>>;
  auto grad = [&](int64_t c) IMBLOSS_INLINE_LAMBDA {
    V grad = load(e + c) * factor;
    return job.scale ? grad * load(job.scale + c) : grad;
  };
  if (streams) {  // what is before and behind whole vectors as ever
    store(g, grad(0));
    for (int64_t c = numbers_before_vectors(g); c + V::size <= job.classes; c += V::size) store(g + c, grad(c), true);
    store(g + job.classes - V::size, grad(job.classes - V::size));
    return;
  }
  for (int64_t c = 0; c >= 0; c = next_vector(c, V::size, job.classes)) store(g + c, grad(c));
}

// Whether classes lie side by side, a vector of them at least.
template <class S>
bool rows_are_wide(const SoftmaxRows<S>& job) {
  return job.classes >= kLanes<Accumulate<S>> && job.logits_strides.cls == 1 &&
         (!job.grad || job.grad_strides.cls == 1) && !job.margin;
}

template <class S, class Policy>
void softmax_wide_rows(const SoftmaxRows<S>& job, const Policy& policy, int64_t begin, int64_t end, BlockSums& sums) {
  using A = Accumulate<S>;
  using V = Vec<A>;
  constexpr int lanes = kLanes<A>;
  constexpr int64_t in_cache = 10 * 1024 / sizeof(A);
  const int64_t padded = (job.classes + lanes - 1) / lanes * lanes;
  // few at a time: exponentials stay in the first-level cache beside the logits and the gradient on their way
  const int batch = static_cast<int>(std::clamp<int64_t>(in_cache / padded, 1, lanes));
  Scratch<A> scratch(batch * padded);
  for (int r = 0; r < batch; r++) std::fill_n(scratch.data() + r * padded + job.classes, padded - job.classes, A(0));
  RowLanes<S, lanes> rows;
  std::fill_n(rows.top, lanes, A(0));  // what exponentials are relative to
  Exponent<V> gamma = shared_gamma<V>(job);
  const bool streams = streams_past_caches(job);

  for (int64_t first = begin; first < end; first += batch) {
    const int n = static_cast<int>(std::min<int64_t>(batch, end - first));
    V largest(0);
    V others[lanes];
    for (int r = n; r < lanes; r++) {
      rows.clear(r);
      others[r] = V(0);
    }
    for (int r = 0; r < n; r++) {
      others[r] = V(0);
      if (!rows.read(job, first + r, r, sums)) continue;
      const int64_t y = rows.label[r];
      const RowLogits<S> logits(job, row_of(job.logits, job.logits_strides, job.inner, first + r));
      A* e = scratch.data() + r * padded;
      exp_of_all_classes(logits, job.classes, e, largest);
      e[y] = 0;
      rows.target_z[r] = logits.one(y);
    }
    for (int r = 0; r < n; r++) {
      if (rows.label[r] >= 0) others[r] = sum_of_classes(scratch.data() + r * padded, padded);
    }
    store(rows.others, imbloss::sums(others));
    V target_z = load(rows.target_z);
    largest = larger_abs(largest, target_z);
    if (!(max_lane(largest) <= kSmallLogit)) {
      softmax_rows_in_scratch(job, policy, first, first + n, sums);
      continue;
    }
    if (job.gamma_high) gamma = {load(rows.gamma_high), load(rows.gamma_low)};
    Finished<V> f =
        finish_small(policy, gamma, load(rows.weight), job.inverse_divisor, exp(target_z), load(rows.others));
    if (!all(keeps_digits(f))) {
      softmax_rows_in_scratch(job, policy, first, first + n, sums);
      continue;
    }
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
      scale_classes(job, e, other[r], g, streams);
    }
  }
  if (streams) stream_fence();
}

}  // namespace imbloss
