// Softmax losses of one target class a row where classes are many vectors that lie side by side. Exponentials of the
// logits themselves, as softmax_wide_rows.h takes them, of one row at a time; meanwhile the gradient of the row before
// is written, so that arithmetic and memory are busy together, and no row's logarithm is waited for.
#pragma once

#include "softmax_wide_rows.h"

namespace imbloss {

inline constexpr int64_t kLongRow = 512;  // classes: from here on

template <class S>
class LongRows {
  using A = Accumulate<S>;
  using V = Vec<A>;
  static constexpr int kVectors = 8;  // a chunk: of that with the target the sum is made again, without it
  static constexpr int64_t kChunk = kVectors * V::size;

 public:
  explicit LongRows(const SoftmaxRows<S>& job)
      : job_(job),
        streams_(streams_past_caches(job)),
        room_((job.classes + V::size - 1) / V::size * V::size),
        scratch_(2 * room_),
        gamma_(shared_gamma<V>(job)) {}

  template <class Policy>
  void add(const Policy& policy, int64_t row, BlockSums& sums) {
    if (!row_.read(job_, row, 0, sums)) {
      row_.finished(job_, row, 1, Finished<V>{V(0), V(0), V(0), V(0)}, sums);
      if (job_.grad) clear_row(job_, row);
      return;
    }
    const int64_t y = row_.label[0];
    const S* x = row_of(job_.logits, job_.logits_strides, job_.inner, row);
    A* e = scratch_.data() + (second_ ? room_ : 0);
    V largest(0);
    const A others = sum(!waiting_.g ? exp_of_row<Write::kNothing>(x, e, y, largest)
                         : streams_  ? exp_of_row<Write::kPastCaches>(x, e, y, largest)
                                     : exp_of_row<Write::kIntoCaches>(x, e, y, largest));
    waiting_ = {};
    if (job_.gamma_high) gamma_ = {V(row_.gamma_high[0]), V(row_.gamma_low[0])};
    const Finished<V> f = finish_small(policy, gamma_, V(row_.weight[0]), job_.inverse_divisor, V(e[y]), V(others));
    if (!(max_lane(largest) <= kSmallLogit) || !all(keeps_digits(f))) {
      return softmax_rows_in_scratch(job_, policy, row, row + 1, sums);
    }
    row_.finished(job_, row, 1, f, sums);
    if (!job_.grad) return;
    e[y] = -others;  // times `other` it is slope * q
    waiting_ = {e, row_of(job_.grad, job_.grad_strides, job_.inner, row), f.other.r[0][0]};
    second_ = !second_;
  }

  // Writes the gradient of the last row.
  void finish() {
    if (waiting_.g && streams_) write_from<Write::kPastCaches>(0);
    else if (waiting_.g) write_from<Write::kIntoCaches>(0);
    waiting_ = {};
    if (streams_) stream_fence();
  }

 private:
  enum class Write { kNothing, kIntoCaches, kPastCaches };

  // How many numbers at g come before the first whole line of memory.
  static int64_t numbers_before_lines(const S* g) {
    return static_cast<int64_t>((kLineBytes - reinterpret_cast<uintptr_t>(g) % kLineBytes) % kLineBytes / sizeof(S));
  }

  // v, with 0 in the given lane, if there is one of that number.
  static V without_lane(V v, int64_t lane) {
    A numbers[V::size];
    for (int i = 0; i < V::size; i++) numbers[i] = static_cast<A>(i);
    return select(load(numbers) == V(static_cast<A>(lane)), V(0), v);
  }

  // Writes exp(z) of all classes into e, takes their |z| into `largest`, and returns the sum of all but y in lanes.
  // Meanwhile the row that waits is written, in vectors of its own: these fill lines of memory, while no sum depends
  // on where the logits lie.
  template <Write how>
  IMBLOSS_INLINE V exp_of_row(const S* x, A* e, int64_t y, V& largest) {
    const int64_t chunks = job_.classes / kChunk, own = y / kChunk;
    const int64_t start = how == Write::kNothing ? 0 : numbers_before_lines(waiting_.g);
    const RowLogits<S> logits(job_, x);
    const WaitingRow<S> waiting = waiting_;
    auto take = [&](int64_t c, bool fetches) IMBLOSS_INLINE_LAMBDA {
      if (fetches) fetch<how>(x + c + kAheadOf<S>);
      V z = logits.at(c), exponentials = exp_of_small(z);
      largest = larger_abs(largest, z);
      store(e + c, exponentials);
      return exponentials;
    };
    LongSum<V> total;
    auto chunk = [&](int64_t k, auto writes) IMBLOSS_INLINE_LAMBDA {
      V run(0);
      IMBLOSS_UNROLL
      for (int i = 0; i < kVectors; i++) {
        const int64_t c = k * kChunk + i * V::size;
        const bool new_line = i * V::size * sizeof(S) % kLineBytes == 0;
        run = run + take(c, new_line);
        if constexpr (writes) write<how>(logits.scale, waiting, start + c - kChunk, new_line);
      }
      total.add(k == own ? V(0) : run);
    };
    chunk(0, std::false_type{});
    for (int64_t k = 1; k < chunks; k++) chunk(k, std::bool_constant<how != Write::kNothing>{});

    V rest(0);
    int64_t c = chunks * kChunk;
    for (; c + V::size <= job_.classes; c += V::size) rest = rest + without_lane(take(c, true), y - c);
    if (c < job_.classes) {
      const Part<A> part = first_lanes<A>(static_cast<int>(job_.classes - c));
      V z = logits.at(c, part), exponentials = exp_of_small(z);
      largest = larger_abs(largest, z);
      store(e + c, exponentials);
      rest = rest + select(part, without_lane(exponentials, y - c), V(0));
    }
    if (own < chunks) {
      for (c = own * kChunk; c < (own + 1) * kChunk; c += V::size) rest = rest + without_lane(load(e + c), y - c);
    }
    if constexpr (how != Write::kNothing) write_from<how>((chunks - 1) * kChunk);
    return total.value() + rest;
  }

  template <Write how>
  IMBLOSS_INLINE static void fetch(const S* x) {
    if constexpr (how == Write::kPastCaches) fetch_to_read_later(x, 1);
    else fetch_to_read(x, 1);
  }

  // One vector of the row that waits.
  template <Write how>
  IMBLOSS_INLINE static void write(const A* scale, const WaitingRow<S>& row, int64_t c, bool fetches) {
    if (how == Write::kIntoCaches && fetches) fetch_to_write(row.g + c + kAheadOf<S>, 1);
    V grad = load(row.e + c) * row.factor;
    if (scale) grad = grad * load(scale + c);
    store(row.g + c, grad, how == Write::kPastCaches);
  }
  // n numbers of it, into the caches.
  static void write_edge(const A* scale, const WaitingRow<S>& row, int64_t c, int64_t n) {
    for (; n >= V::size; c += V::size, n -= V::size) write<Write::kIntoCaches>(scale, row, c, false);
    const Part<A> part = first_lanes<A>(static_cast<int>(n));
    V grad = load(row.e + c) * row.factor;
    if (scale) grad = grad * load(scale + c, part, A(0));
    store(row.g + c, part, grad);
  }
  // From the given number of classes in whole lines on, and the edges before and behind these. They share no line: one
  // that is written both into and past the caches takes many times as long.
  template <Write how>
  IMBLOSS_INLINE void write_from(int64_t done) {
    constexpr int64_t line = kLineBytes / sizeof(S);
    const WaitingRow<S> row = waiting_;
    const A* scale = job_.scale;
    const int64_t start = numbers_before_lines(row.g), end = start + (job_.classes - start) / line * line;
    for (int64_t c = start + done; c < end; c += V::size) write<how>(scale, row, c, true);
    write_edge(scale, row, 0, start);
    write_edge(scale, row, end, job_.classes - end);
  }

  const SoftmaxRows<S>& job_;
  const bool streams_;
  const int64_t room_;  // of a row
  Scratch<A> scratch_;
  Exponent<V> gamma_;
  RowLanes<S, V::size> row_{};  // in the first lane
  WaitingRow<S> waiting_{};
  bool second_ = false;  // which half of the scratch is free
};

template <class S>
bool rows_are_long(const SoftmaxRows<S>& job) {
  return job.classes >= kLongRow && rows_are_wide(job);
}

// Rows from `begin` on, in blocks with sums of their own.
template <class S, class Policy>
void softmax_long_rows(const SoftmaxRows<S>& job, const Policy& policy, int64_t begin, int64_t end, int64_t block_rows,
                       BlockSums* sums) {
  LongRows<S> rows(job);
  for (; begin < end; begin += block_rows, sums++) {
    for (int64_t row = begin; row < std::min(end, begin + block_rows); row++) rows.add(policy, row, *sums);
  }
  rows.finish();
}

}  // namespace imbloss
