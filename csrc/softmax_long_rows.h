// Softmax losses of one target class a row where classes are many vectors that lie side by side. Exponentials of the
// logits themselves, as softmax_wide_rows.h takes them, of a few rows at a time, which share the logarithms; meanwhile
// the gradient of the rows before is written, so that arithmetic and memory are busy together.
#pragma once

#include "softmax_wide_rows.h"

namespace imbloss {

// Whether exponentials wait for their factor where the gradient will lie, and are not carried to and from memory of
// their own: no logits are there, which a row with large ones needs again, and no numbers of fewer digits.
template <class S>
bool exponentials_fit_gradient(const SoftmaxRows<S>& job) {
  return std::is_same_v<S, Accumulate<S>> && job.grad && job.grad != job.logits && !streams_past_caches(job);
}

template <class S>
class LongRows {
  using A = Accumulate<S>;
  using V = Vec<A>;
  static constexpr int kVectors = 8;  // a chunk: of that with the target the sum is made again, without it
  static constexpr int64_t kChunk = kVectors * V::size, kLine = kLineBytes / sizeof(S);

 public:
  static constexpr int64_t kFewestClasses = 128;
  static_assert(kChunk <= kFewestClasses, "a row has a chunk");

  explicit LongRows(const SoftmaxRows<S>& job)
      : job_(job),
        streams_(streams_past_caches(job)),
        in_gradient_(exponentials_fit_gradient(job)),
        room_((job.classes + V::size - 1) / V::size * V::size),
        batch_(rows_at_once<A>(room_)),
        scratch_(in_gradient_ ? 0 : 2 * batch_ * room_),
        gamma_(shared_gamma<V>(job)) {
    for (int r = 0; r < V::size; r++) clear(r);
  }

  // The row behind the one before, if that was of the same block.
  template <class Policy>
  void add(const Policy& policy, int64_t row, BlockSums& sums) {
    const int r = count_++;
    const WaitingRow<S> waiting = waiting_[r];
    if (rows_.read(job_, row, r, sums)) {
      const S* x = row_of(job_.logits, job_.logits_strides, job_.inner, row);
      A* e = exponentials(row, r);
      const int64_t y = rows_.label[r];
      V largest(0);
      const A others = sum(!waiting.g     ? exp_of_row<Write::kNothing>(x, e, y, largest, waiting)
                           : in_gradient_ ? exp_of_row<Write::kFromGradient>(x, e, y, largest, waiting)
                           : streams_     ? exp_of_row<Write::kPastCaches>(x, e, y, largest, waiting)
                                          : exp_of_row<Write::kIntoCaches>(x, e, y, largest, waiting));
      others_ = with_lane(others_, r, others);
      target_ = with_lane(target_, r, e[y]);
      largest_ = with_lane(largest_, r, max_lane(largest));
      waiting_[r].g = nullptr;
    } else {
      clear(r);
      write_waiting(r);
    }
    if (count_ == batch_) finish_rows(policy, row + 1, sums);
  }

  // Of the block that ends before row `end`.
  template <class Policy>
  void end_block(const Policy& policy, int64_t end, BlockSums& sums) {
    if (count_ > 0) finish_rows(policy, end, sums);
  }

  // Writes the gradient of the last rows.
  void finish() {
    for (int r = 0; r < batch_; r++) write_waiting(r);
    write_begun_line();
    if (streams_) stream_fence();
  }

 private:
  // What is written while exponentials are taken: the row that waits, from scratch into or past the caches, or from the
  // gradient's own memory.
  enum class Write { kNothing, kIntoCaches, kPastCaches, kFromGradient };

  A* exponentials(int64_t row, int r) {
    if constexpr (std::is_same_v<S, A>) {
      if (in_gradient_) return row_of(job_.grad, job_.grad_strides, job_.inner, row);
    }
    return scratch_.data() + (second_ * batch_ + r) * room_;
  }

  // Lane r is of no row that counts: p = 1.
  void clear(int r) {
    rows_.clear(r);
    rows_.label[r] = -1;
    others_ = with_lane(others_, r, 0);
    target_ = with_lane(target_, r, 1);
    largest_ = with_lane(largest_, r, 0);
  }

  // Values, slopes and factors of the rows that were added, the last of which comes before `end`; they wait now, where
  // no row does. An odd row, of large logits or few digits, is done again the usual way, and no other with it.
  template <class Policy>
  void finish_rows(const Policy& policy, int64_t end, BlockSums& sums) {
    const int64_t first = end - count_;
    for (int r = count_; r < batch_; r++) {
      clear(r);
      write_waiting(r);
    }
    if (job_.gamma_high) gamma_ = {load(rows_.gamma_high), load(rows_.gamma_low)};
    const Finished<V> f = finish_small(policy, gamma_, load(rows_.weight), job_.inverse_divisor, target_, others_);
    const auto usual = (largest_ < V(kSmallLogit)) & keeps_digits(f);
    A factor[V::size], others[V::size], odd[V::size] = {};
    if (!all(usual)) {
      store(odd, select(usual, V(0), V(1)));
      for (int r = 0; r < count_; r++) {
        if (odd[r] != 0) rows_.counts[r] = 0;
      }
    }
    rows_.finished(job_, first, count_, f, sums);
    store(factor, f.other);
    store(others, others_);
    for (int r = 0; r < count_; r++) {
      if (odd[r] != 0) {
        softmax_rows_in_scratch(job_, policy, first + r, first + r + 1, sums);
      } else if (job_.grad && rows_.label[r] < 0) {
        clear_row(job_, first + r);
      } else if (job_.grad) {
        A* e = exponentials(first + r, r);
        e[rows_.label[r]] = -others[r];  // times `other` it is slope * q
        waiting_[r] = {e, row_of(job_.grad, job_.grad_strides, job_.inner, first + r), factor[r], job_.scale};
      }
    }
    count_ = 0;
    second_ = !second_;
  }

  // How many numbers at g come before the first whole line of memory.
  static int64_t numbers_before_lines(const S* g) {
    return static_cast<int64_t>((kLineBytes - reinterpret_cast<uintptr_t>(g) % kLineBytes) % kLineBytes / sizeof(S));
  }

  // v, with `number` in the given lane, if there is one of that number. In registers: lanes that were stored one by one
  // cannot be loaded together before all stores are done.
  static V with_lane(V v, int64_t lane, A number) {
    A numbers[V::size];
    for (int i = 0; i < V::size; i++) numbers[i] = static_cast<A>(i);
    return select(load(numbers) == V(static_cast<A>(lane)), V(number), v);
  }

  // Writes exp(z) of all classes into e, takes their |z| into `largest`, and returns the sum of all but y in lanes.
  // Meanwhile the row that waits is written, in vectors of its own: these fill lines of memory, while no sum depends
  // on where the logits lie. It begins a chunk late: its factor may be on its way.
  template <Write how>
  IMBLOSS_INLINE V exp_of_row(const S* x, A* e, int64_t y, V& largest, const WaitingRow<S> waiting) {
    const int64_t chunks = job_.classes / kChunk, own = y / kChunk;
    const int64_t start = how == Write::kNothing ? 0 : numbers_before_lines(waiting.g);
    const RowLogits<S> logits(job_, x);
    const bool in_gradient = how == Write::kFromGradient || (how == Write::kNothing && in_gradient_);
    auto take = [&](int64_t c, bool fetches) IMBLOSS_INLINE_LAMBDA {
      if (fetches) fetch<how>(x + c + kAheadOf<S>);
      if (fetches && in_gradient) fetch_to_write(e + c + kAheadOf<S>, 1);
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
        if constexpr (writes) write_vector<how>(waiting, start + c - kChunk, new_line);
      }
      total.add(k == own ? V(0) : run);
    };
    chunk(0, std::false_type{});
    for (int64_t k = 1; k < chunks; k++) chunk(k, std::bool_constant<how != Write::kNothing>{});

    V rest(0);
    int64_t c = chunks * kChunk;
    for (; c + V::size <= job_.classes; c += V::size) rest = rest + with_lane(take(c, true), y - c, 0);
    if (c < job_.classes) {
      const Part<A> part = first_lanes<A>(static_cast<int>(job_.classes - c));
      V z = logits.at(c, part), exponentials = exp_of_small(z);
      largest = larger_abs(largest, z);
      store(e + c, part, exponentials);
      rest = rest + select(part, with_lane(exponentials, y - c, 0), V(0));
    }
    if (own < chunks) {
      for (c = own * kChunk; c < (own + 1) * kChunk; c += V::size) rest = rest + with_lane(load(e + c), y - c, 0);
    }
    if constexpr (how != Write::kNothing) write_rest<how>(waiting, (chunks - 1) * kChunk);
    return total.value() + rest;
  }

  template <Write how>
  IMBLOSS_INLINE static void fetch(const S* x) {
    if constexpr (how == Write::kPastCaches) fetch_to_read_later(x, 1);
    else fetch_to_read(x, 1);
  }

  // One vector of a row that waits.
  template <Write how>
  IMBLOSS_INLINE static void write_vector(const WaitingRow<S>& row, int64_t c, bool fetches) {
    if (how == Write::kIntoCaches && fetches) fetch_to_write(row.g + c + kAheadOf<S>, 1);
    store(row.g + c, row.gradient(load(row.e + c), c), how == Write::kPastCaches);
  }
  // Its whole lines but for the numbers of them that are done, and the edges before and behind.
  template <Write how>
  IMBLOSS_INLINE void write_rest(const WaitingRow<S> row, int64_t done) {
    const int64_t start = numbers_before_lines(row.g), end = start + (job_.classes - start) / kLine * kLine;
    for (int64_t c = start + done; c < end; c += V::size) write_vector<how>(row, c, true);
    if constexpr (how == Write::kPastCaches) {
      if (start > 0) finish_line(row, start);
      if (end < job_.classes) begin_line(row, end);
    } else {
      write_edge(row, 0, start);
      write_edge(row, end, job_.classes - end);
    }
  }
  // n numbers, into the caches.
  static void write_edge(const WaitingRow<S>& row, int64_t c, int64_t n) {
    for (; n >= V::size; c += V::size, n -= V::size) write_vector<Write::kIntoCaches>(row, c, false);
    if (n == 0) return;
    const Part<A> part = first_lanes<A>(static_cast<int>(n));
    store(row.g + c, part, row.gradient(load(row.e + c, part, A(0)), c, part));
  }

  // A line of memory that is written both past the caches and into them takes many times as long. So what a row begins
  // waits for the next row, which finishes it, if that comes next.
  // Kept from class c on; vectors that end with the row begin before that.
  void begin_line(const WaitingRow<S>& row, int64_t c) {
    write_begun_line();
    begun_ = row.g + c;
    in_begun_ = job_.classes - c;
    for (int64_t i = -kLine; i < 0; i += V::size) {
      store(begun_line_ + kLine + in_begun_ + i, row.gradient(load(row.e + job_.classes + i), job_.classes + i));
    }
  }
  void finish_line(const WaitingRow<S>& row, int64_t n) {
    if (!begun_ || begun_ + in_begun_ != row.g) return write_edge(row, 0, n);
    S* const line = begun_line_ + kLine;
    for (int64_t i = 0; i < n; i += V::size) store(line + in_begun_ + i, row.gradient(load(row.e + i), i));
    for (int64_t i = 0; i < kLine; i += V::size) store(begun_ + i, load(line + i), true);
    begun_ = nullptr;
  }
  void write_begun_line() {
    if (begun_) std::copy_n(begun_line_ + kLine, in_begun_, begun_);
    begun_ = nullptr;
  }

  // The row that waits in place r, if there is one.
  void write_waiting(int r) {
    if (!waiting_[r].g) return;
    if (in_gradient_) write_rest<Write::kFromGradient>(waiting_[r], 0);
    else if (streams_) write_rest<Write::kPastCaches>(waiting_[r], 0);
    else write_rest<Write::kIntoCaches>(waiting_[r], 0);
    waiting_[r].g = nullptr;
  }

  const SoftmaxRows<S>& job_;
  const bool streams_, in_gradient_;
  const int64_t room_;  // of a row
  const int batch_;
  Scratch<A> scratch_;
  Exponent<V> gamma_;
  RowLanes<S, V::size> rows_{};          // top stays 0: what exponentials are relative to
  V others_ = V(0), target_ = V(1);      // exponentials of the rows: of all classes but the target, of the target
  V largest_ = V(0);                     // of their |z|
  int count_ = 0;                        // of the rows in lanes
  WaitingRow<S> waiting_[V::size] = {};  // the batch before
  S begun_line_[3 * kLine];              // the second third: the others take the rest of vectors that are stored to it
  S* begun_ = nullptr;                   // where it belongs; null: there is none
  int64_t in_begun_ = 0;                 // numbers
  bool second_ = false;                  // which half of the scratch is free
};

template <class S>
bool rows_are_long(const SoftmaxRows<S>& job) {
  return rows_are_wide(job) && (job.classes >= kLongRow || (job.classes >= LongRows<S>::kFewestClasses &&
                                                            std::is_same_v<S, Accumulate<S>> && fills_caches(job)));
}

// Rows from `begin` on, in blocks with sums of their own.
template <class S, class Policy>
void softmax_long_rows(const SoftmaxRows<S>& job, const Policy& policy, int64_t begin, int64_t end, int64_t block_rows,
                       BlockSums* sums) {
  LongRows<S> rows(job);
  for (; begin < end; begin += block_rows, sums++) {
    const int64_t last = std::min(end, begin + block_rows);
    for (int64_t row = begin; row < last; row++) rows.add(policy, row, *sums);
    rows.end_block(policy, last, *sums);
  }
  rows.finish();
}

}  // namespace imbloss
