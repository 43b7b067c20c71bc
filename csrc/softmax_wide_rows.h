// Softmax losses of one target class a row where classes are many and lie side by side. Exponentials of the logits
// themselves, as long as these are small: no pass for a maximum, and nothing is rounded before exp.
#pragma once

#include "softmax_rows.h"

namespace imbloss {

inline constexpr int kAbreast = 2;  // vectors worked on side by side

// z = scale x + bias of U vectors from class c on, or of a part of one.
template <int U, class S>
IMBLOSS_INLINE Vec<Accumulate<S>, U> wide_logits(const SoftmaxRows<S>& job, const S* x, int64_t c) {
  auto z = load<U>(x + c);
  if (job.scale) z = z * load<U>(job.scale + c);
  if (job.bias) z = z + load<U>(job.bias + c);
  return z;
}
template <class S>
IMBLOSS_INLINE Vec<Accumulate<S>> wide_logits(const SoftmaxRows<S>& job, const S* x, int64_t c,
                                              Part<Accumulate<S>> part) {
  using A = Accumulate<S>;
  Vec<A> z = load(x + c, part, A(0));
  if (job.scale) z = z * load(job.scale + c, part, A(0));
  if (job.bias) z = z + load(job.bias + c, part, A(0));
  return z;
}

// Writes exp(z) of classes first to last - 1 into e, returns their sum in lanes, and takes their |z| into `largest`.
// Meanwhile the memory of the gradient g comes closer; null is none.
template <class S, class V>
IMBLOSS_INLINE V exp_of_classes(const SoftmaxRows<S>& job, const S* x, Accumulate<S>* e, int64_t first, int64_t last,
                                V& largest, S* g) {
  using A = Accumulate<S>;
  constexpr int lanes = kLanes<A>, step = kAbreast * lanes;
  int64_t c = first;
  V total(0);
  if (c + step <= last) {
    LongSum<Vec<A, kAbreast>> sums;
    Vec<A, kAbreast> large(0);
    while (c + step <= last) {
      Vec<A, kAbreast> run(0);
      for (const int64_t end = std::min(last - step, c + (kRun - 1) * step); c <= end; c += step) {
        Vec<A, kAbreast> z = wide_logits<kAbreast>(job, x, c), exponentials = exp_of_small(z);
        large = max(large, abs(z));
        store(e + c, exponentials);
        if (g) fetch_to_write(g + c, step);
        run = run + exponentials;
      }
      sums.add(run);
    }
    total = fold(sums.value(), [](V a, V b) { return a + b; });
    largest = max(largest, fold(large, [](V a, V b) { return max(a, b); }));
  }
  for (; c + lanes <= last; c += lanes) {
    V z = wide_logits<1>(job, x, c), exponentials = exp_of_small(z);
    largest = max(largest, abs(z));
    store(e + c, exponentials);
    total = total + exponentials;
  }
  if (c < last) {
    const Part<A> part = first_lanes<A>(static_cast<int>(last - c));
    V z = wide_logits(job, x, c, part), exponentials = select(part, exp_of_small(z), V(0));
    largest = max(largest, abs(z));
    store(e + c, exponentials);
    total = total + exponentials;
  }
  return total;
}

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
IMBLOSS_INLINE void exp_of_all_classes(const SoftmaxRows<S>& job, const S* x, Accumulate<S>* e, V& largest) {
  for (int64_t c = 0; c >= 0; c = next_vector(c, V::size, job.classes)) {
    V z = wide_logits<1>(job, x, c);
    largest = max(largest, abs(z));
    store(e + c, exp_of_small(z));
  }
}

// Writes e * factor, times the scale, into a row of the gradient. Meanwhile logits that come next, if not null, come
// closer.
template <class S>
IMBLOSS_INLINE void scale_classes(const SoftmaxRows<S>& job, const Accumulate<S>* e, Accumulate<S> factor, S* g,
                                  bool streams, const S* next) {
  using V = Vec<Accumulate<S>>;
  auto grad = [&](int64_t c) IMBLOSS_INLINE_LAMBDA {
    if (next) fetch_to_read(next + c, V::size);
    V grad = load(e + c) * factor;
    return job.scale ? grad * load(job.scale + c) : grad;
  };
  if (streams) {  // from the first whole line on; what is before and behind it as ever
    int64_t c = (kVectorBytes - reinterpret_cast<uintptr_t>(g) % kVectorBytes) % kVectorBytes / sizeof(S);
    store(g, grad(0));
    for (; c + V::size <= job.classes; c += V::size) store(g + c, grad(c), true);
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
  constexpr int64_t many = 512, in_cache = 10 * 1024 / sizeof(A);
  const int64_t padded = (job.classes + lanes - 1) / lanes * lanes;
  const int64_t room = padded + lanes;  // of a row: its second part may begin anywhere
  // few at a time: exponentials stay in the first-level cache beside the logits and the gradient on their way
  const int batch = static_cast<int>(std::clamp<int64_t>(in_cache / room, 1, lanes));
  Scratch<A> scratch(batch * room);
  for (int r = 0; r < batch; r++) std::fill_n(scratch.data() + r * room + job.classes, room - job.classes, A(0));
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
      const S* x = row_of(job.logits, job.logits_strides, job.inner, first + r);
      A* e = scratch.data() + r * room;
      if (job.classes >= many) {
        S* g = job.grad && !streams ? row_of(job.grad, job.grad_strides, job.inner, first + r) : nullptr;
        others[r] = exp_of_classes(job, x, e, 0, y, largest, g);
        others[r] = others[r] + exp_of_classes(job, x, e, y + 1, job.classes, largest, g);
      } else {
        exp_of_all_classes(job, x, e, largest);
        e[y] = 0;
      }
      rows.target_z[r] = load_one(x + y);
      if (job.scale) rows.target_z[r] *= job.scale[y];
      if (job.bias) rows.target_z[r] += job.bias[y];
    }
    for (int r = 0; r < n && job.classes < many; r++) {
      if (rows.label[r] >= 0) others[r] = sum_of_classes(scratch.data() + r * room, padded);
    }
    store(rows.others, imbloss::sums(others));
    V target_z = load(rows.target_z);
    largest = max(largest, abs(target_z));
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
      A* e = scratch.data() + r * room;
      e[rows.label[r]] = -rows.others[r];  // times `other` it is slope * q
      // only fetched: past the last row there is none
      const S* next = row_of(job.logits, job.logits_strides, job.inner, first + n + r);
      scale_classes(job, e, other[r], g, streams, job.classes >= many ? next : nullptr);
    }
  }
  if (streams) stream_fence();
}

}  // namespace imbloss
