// Softmax losses of one target class a row whose classes lie side by side, from one vector of them to kLongRow: a batch
// of rows at a time, which share the logarithms. Exponentials of the logits themselves, as long as these are small: no
// pass for a maximum, and nothing is rounded before exp.
#pragma once

#include "softmax_rows.h"

namespace imbloss {

inline constexpr int64_t kLongRow = 384;  // classes: from here on, softmax_long_rows.h

inline constexpr int64_t kLeastFetched = 4 << 20;  // bytes of logits from which on memory of rows to come is fetched

// How many rows of exponentials, `room` numbers each, to a batch. Those of two batches stay in the first-level cache
// beside the logits and the gradient on their way.
template <class A>
int rows_at_once(int64_t room) {
  constexpr int64_t in_cache = 10 * 1024 / sizeof(A);
  return static_cast<int>(std::clamp<int64_t>(in_cache / room, 1, kLanes<A>));
}

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

// A row whose exponentials e are known and whose gradient is still to be written.
template <class S>
struct WaitingRow {
  using A = Accumulate<S>;
  const A* e;
  S* g;  // null: there is none
  A factor;
  const A* scale;  // per class, or null

  // Of classes from c on, from their exponentials.
  IMBLOSS_INLINE Vec<A> gradient(Vec<A> exponentials, int64_t c) const {
    Vec<A> grad = exponentials * factor;
    return scale ? grad * load(scale + c) : grad;
  }
  IMBLOSS_INLINE Vec<A> gradient(Vec<A> exponentials, int64_t c, Part<A> part) const {
    Vec<A> grad = exponentials * factor;
    return scale ? grad * load(scale + c, part, A(0)) : grad;
  }
};

// Writes exp(z) of all classes into e, and takes their |z| into `largest`. Meanwhile a row that waits is written, if
// `writes`, and memory of rows to come is fetched, if `fetches`.
template <bool writes, bool fetches, class S, class V>
IMBLOSS_INLINE void exp_of_all_classes(RowLogits<S> logits, int64_t classes, Accumulate<S>* e, V& largest,
                                       WaitingRow<S> row) {
  for (int64_t c = 0; c >= 0; c = next_vector(c, V::size, classes)) {
    if constexpr (fetches) fetch_to_read(logits.x + c + kAheadOf<S>, 1);
    V z = logits.at(c);
    largest = larger_abs(largest, z);
    store(e + c, exp_of_small(z));
    if constexpr (writes) {
      if constexpr (fetches) fetch_to_write(row.g + c + kAheadOf<S>, 1);
      store(row.g + c, row.gradient(load(row.e + c), c));
    }
  }
}

// Writes the gradient of a row that waits.
template <class S>
IMBLOSS_INLINE void write_classes(WaitingRow<S> row, int64_t classes) {
  for (int64_t c = 0; c >= 0; c = next_vector(c, kLanes<Accumulate<S>>, classes)) {
    store(row.g + c, row.gradient(load(row.e + c), c));
  }
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
  const int64_t padded = (job.classes + lanes - 1) / lanes * lanes;
  const int batch = rows_at_once<A>(padded);
  Scratch<A> scratch(2 * batch * padded);
  A *exponentials = scratch.data(), *of_waiting = exponentials + batch * padded;
  for (int r = 0; r < 2 * batch; r++) std::fill_n(exponentials + r * padded + job.classes, padded - job.classes, A(0));
  RowLanes<S, lanes> rows;
  std::fill_n(rows.top, lanes, A(0));  // what exponentials are relative to
  Exponent<V> gamma = shared_gamma<V>(job);
  const bool fetches = job.bytes >= kLeastFetched;
  WaitingRow<S> waiting[lanes] = {};  // the batch before
  auto write = [&](int r) {
    if (waiting[r].g) write_classes(waiting[r], job.classes);
    waiting[r].g = nullptr;
  };

  for (int64_t first = begin; first < end; first += batch) {
    const int n = static_cast<int>(std::min<int64_t>(batch, end - first));
    V largest(0);
    V others[lanes];
    for (int r = n; r < lanes; r++) {
      rows.clear(r);
      others[r] = V(0);
      write(r);
    }
    for (int r = 0; r < n; r++) {
      others[r] = V(0);
      if (!rows.read(job, first + r, r, sums)) continue;
      const int64_t y = rows.label[r];
      const RowLogits<S> logits(job, row_of(job.logits, job.logits_strides, job.inner, first + r));
      A* e = exponentials + r * padded;
      if (waiting[r].g) {
        if (fetches) exp_of_all_classes<true, true>(logits, job.classes, e, largest, waiting[r]);
        else exp_of_all_classes<true, false>(logits, job.classes, e, largest, waiting[r]);
        waiting[r].g = nullptr;
      } else {
        exp_of_all_classes<false, false>(logits, job.classes, e, largest, waiting[r]);
      }
      e[y] = 0;
      rows.target_z[r] = logits.one(y);
    }
    for (int r = 0; r < n; r++) {
      write(r);
      if (rows.label[r] >= 0) others[r] = sum_of_classes(exponentials + r * padded, padded);
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
      A* e = exponentials + r * padded;
      e[rows.label[r]] = -rows.others[r];  // times `other` it is slope * q
      waiting[r] = {e, row_of(job.grad, job.grad_strides, job.inner, first + r), other[r], job.scale};
    }
    std::swap(exponentials, of_waiting);
  }
  for (int r = 0; r < lanes; r++) write(r);
}

}  // namespace imbloss
