// What the softmax traversals share: rows of logits in memory, their targets, and lanes read from and written to them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "policies.h"

namespace imbloss {

// Row i of a tensor is (i / inner, i % inner); its classes are `cls` elements apart.
struct Strides {
  int64_t outer, cls, inner;
};

template <class A>
inline constexpr A kInfinity = std::numeric_limits<A>::infinity();

// One call: its operands, and the outputs that are wanted (the others are null).
template <class S>
struct SoftmaxRows {
  using A = Accumulate<S>;
  int64_t inner, classes, ignore_index;
  const S* logits;
  Strides logits_strides;
  int64_t bytes;          // of the logits
  const int64_t* target;  // class indices, or null where targets are probabilities
  // per class, or null
  const A* scale;
  const A* bias;
  const A* margin;
  const A* weight;
  const A* gamma_high;
  const A* gamma_low;
  double gamma;            // where there is none per class
  const A* sample_weight;  // per row, or null
  A inverse_divisor;       // of "mean"; 1 for the other reductions
  const A* upstream;       // of the loss: one number, or one a row; null is 1
  bool upstream_per_row;

  A* loss;   // per row
  A* stats;  // 3 numbers a row, see RowStats; stats_stride apart
  int64_t stats_stride;
  S* grad;
  Strides grad_strides;
};

// What the gradient needs of a row with one target class, besides its logits:
//   d loss / d x_j = scale_j * other * exp(z_j - top)  (j != y),   d loss / d x_y = scale_y * target
enum RowStats { kTop, kOther, kTarget, kNumRowStats };

// Sums over a block of rows, in index order.
struct BlockSums {
  double loss = 0;
  int64_t bad_row = -1;  // the first row with a target out of range
  int64_t ignored = 0;   // elements that do not count, where they are counted on the way
};

// How many numbers ahead of their use memory is fetched: a page.
template <class S>
inline constexpr int64_t kAheadOf = 4096 / sizeof(S);

// Of f(begin, end, sums), which works on a block, what works on a run of them; there is one at least.
template <class F>
auto block_by_block(F f) {
  return [f](int64_t begin, int64_t end, int64_t block_rows, BlockSums* sums) {
    do {
      f(begin, std::min(end, begin + block_rows), *sums++);
      begin += block_rows;
    } while (begin < end);
  };
}

template <class S>
IMBLOSS_INLINE S* row_of(S* base, const Strides& strides, int64_t inner, int64_t row) {
  if (inner == 1) return base + row * strides.outer;  // a division costs more than a small row
  return base + row / inner * strides.outer + row % inner * strides.inner;
}

// A target that takes part; -1 for one that is ignored or out of range, of which the first is noted.
template <class S>
IMBLOSS_INLINE int64_t target_of(const SoftmaxRows<S>& job, int64_t row, BlockSums& sums) {
  int64_t y = job.target[row];
  if (y == job.ignore_index) return -1;
  if (y >= 0 && y < job.classes) return y;
  if (sums.bad_row < 0) sums.bad_row = row;
  return -1;
}

template <class S>
IMBLOSS_INLINE Accumulate<S> sample_weight_of(const SoftmaxRows<S>& job, int64_t row) {
  return job.sample_weight ? job.sample_weight[row] : Accumulate<S>(1);
}
template <class S>
IMBLOSS_INLINE Accumulate<S> upstream_of(const SoftmaxRows<S>& job, int64_t row) {
  return job.upstream ? job.upstream[job.upstream_per_row ? row : 0] : Accumulate<S>(1);
}

// Whether all of n rows count.
template <class S>
bool all_count(const SoftmaxRows<S>& job, int64_t first, int64_t n) {
  const int64_t* target = job.target + first;
  const auto classes = static_cast<uint64_t>(job.classes);
  uint64_t largest = 0;
  int64_t ignored = 0;
  for (int64_t r = 0; r < n; r++) largest = std::max(largest, static_cast<uint64_t>(target[r]));
  if (largest >= classes) return false;
  if (static_cast<uint64_t>(job.ignore_index) >= classes) return true;
  for (int64_t r = 0; r < n; r++) ignored += target[r] == job.ignore_index;
  return ignored == 0;
}

// The weights of n rows, all of which count.
template <class S>
void read_weights(const SoftmaxRows<S>& job, int64_t first, int64_t n, Accumulate<S>* weight) {
  const int64_t* target = job.target + first;
  for (int64_t r = 0; r < n; r++) weight[r] = job.weight ? job.weight[target[r]] : Accumulate<S>(1);
  for (int64_t r = 0; r < n && job.sample_weight; r++) weight[r] *= job.sample_weight[first + r];
}

// f(0) + ... + f(n - 1) as four sums, none of which waits for another; n is a multiple of 4. Spelled out: of a loop
// over them GCC makes gathers, which take three times as long.
template <class F>
IMBLOSS_INLINE double sum_by_four(int64_t n, F f) {
  double first = 0, second = 0, third = 0, fourth = 0;
  for (int64_t i = 0; i < n; i += 4) {
    first += f(i);
    second += f(i + 1);
    third += f(i + 2);
    fourth += f(i + 3);
  }
  return (first + second) + (third + fourth);
}

// The divisor of "mean": the weights of the rows that count.
template <class S>
double total_weight(const SoftmaxRows<S>& job, int64_t begin, int64_t end, BlockSums& sums) {
  if (job.target && !job.weight && !job.sample_weight) {  // a count, without a branch a row
    constexpr int64_t in_cache = 1024;
    int64_t valid = 0, ignored = 0;
    for (int64_t first = begin; first < end; first += in_cache) {
      const int64_t last = std::min(end, first + in_cache);
      if (all_count(job, first, last - first)) {
        valid += last - first;
        continue;
      }
      for (int64_t row = first; row < last; row++) {
        const bool ignore = job.target[row] == job.ignore_index;
        valid += (static_cast<uint64_t>(job.target[row]) < static_cast<uint64_t>(job.classes)) & !ignore;
        ignored += ignore;
      }
    }
    if (valid + ignored == end - begin) return static_cast<double>(valid);
  }
  double total = 0;
  constexpr int64_t together = 64;
  const bool weighted = job.target && (job.weight || job.sample_weight);
  for (; begin < end; begin += together) {
    const int64_t n = std::min(end - begin, together);
    if (weighted && n == together && all_count(job, begin, n)) {
      const int64_t* y = job.target + begin;
      const Accumulate<S>*of_class = job.weight, *of_row = job.sample_weight ? job.sample_weight + begin : nullptr;
      if (!of_row) total += sum_by_four(n, [&](int64_t r) { return of_class[y[r]]; });
      else if (!of_class) total += sum_by_four(n, [&](int64_t r) { return of_row[r]; });
      else total += sum_by_four(n, [&](int64_t r) { return of_row[r] * double(of_class[y[r]]); });
      continue;
    }
    for (int64_t row = begin; row < begin + n; row++) {
      double weight = sample_weight_of(job, row);
      if (job.target) {
        const int64_t y = target_of(job, row, sums);
        if (y < 0) continue;
        if (job.weight) weight *= job.weight[y];
      }
      total += weight;
    }
  }
  return total;
}

// The exponent that all rows share; where there is one per class, to be filled in lane by lane.
template <class V, class S>
Exponent<V> shared_gamma(const SoftmaxRows<S>& job) {
  Exponent<V> gamma = exponent_of<V>(job.gamma);
  if (job.gamma_high) gamma.whole = -1;
  return gamma;
}

// A sum of many terms with little rounding. The caller adds up runs of `kRun` terms in a register of its own; here
// their totals are summed by 32, by 1024 and beyond.
inline constexpr int64_t kRun = 32;
template <class V>
class LongSum {
 public:
  void add(V run) {
    level_[0] = level_[0] + run;
    for (int i = 1; i < 3 && ++count_[i] == 32; i++) {
      level_[i] = level_[i] + level_[i - 1];
      level_[i - 1] = V(0);
      count_[i] = 0;
    }
  }
  V value() const { return level_[0] + level_[1] + level_[2]; }

 private:
  V level_[3] = {V(0), V(0), V(0)};
  int count_[3] = {};
};

// ---- lanes along the classes of one row --------------------------------------------------------------------------
// Calls f(c, n) for vectors of n lanes from class c on.
template <class A, class F>
IMBLOSS_INLINE void for_lanes(int64_t classes, F f) {
  constexpr int lanes = kLanes<A>;
  int64_t c = 0;
  for (; c + lanes <= classes; c += lanes) f(c, lanes);
  if (c < classes) f(c, static_cast<int>(classes - c));
}

// The class at which the next vector begins, -1 after the last. That one ends with the last class: it may overlap the
// one before, which costs less than a part of a vector.
IMBLOSS_INLINE int64_t next_vector(int64_t c, int64_t lanes, int64_t classes) {
  return c + lanes == classes ? -1 : std::min(c + lanes, classes - lanes);
}

// Whether the classes of a row lie side by side, in the gradient too.
template <class S>
bool classes_are_adjacent(const SoftmaxRows<S>& job) {
  return job.logits_strides.cls == 1 && (!job.grad || job.grad_strides.cls == 1);
}

// n lanes at p, `step` apart; the others hold `fill`.
template <class S>
IMBLOSS_INLINE Vec<Accumulate<S>> load_lanes(const S* p, int64_t step, int n, Accumulate<S> fill) {
  using A = Accumulate<S>;
  if (step == 1) return n == kLanes<A> ? load(p) : load(p, first_lanes<A>(n), fill);
  A gathered[kLanes<A>];
  for (int i = 0; i < kLanes<A>; i++) gathered[i] = i < n ? load_one(p + i * step) : fill;
  return load(gathered);
}
template <class S>
IMBLOSS_INLINE void store_lanes(S* p, int64_t step, int n, Vec<Accumulate<S>> v) {
  using A = Accumulate<S>;
  if (step == 1) {
    if (n == kLanes<A>) store(p, v);
    else store(p, first_lanes<A>(n), v);
    return;
  }
  A scattered[kLanes<A>];
  store(scattered, v);
  for (int i = 0; i < n; i++) store_one(p + i * step, scattered[i]);
}

// z = scale x + bias of n classes from c on; -inf in lanes past the last class.
template <class S>
IMBLOSS_INLINE Vec<Accumulate<S>> load_logits(const SoftmaxRows<S>& job, const S* row, int64_t c, int n) {
  using A = Accumulate<S>;
  const int64_t step = job.logits_strides.cls;
  Vec<A> z = load_lanes(row + c * step, step, n, -kInfinity<A>);
  if (job.scale) z = z * load_lanes(job.scale + c, 1, n, A(1));
  if (job.bias) z = z + load_lanes(job.bias + c, 1, n, A(0));
  return z;
}

// d loss / d z as d loss / d x.
template <class S>
IMBLOSS_INLINE void store_grad(const SoftmaxRows<S>& job, S* row, int64_t c, int n, Vec<Accumulate<S>> g) {
  if (job.scale) g = g * load_lanes(job.scale + c, 1, n, Accumulate<S>(0));
  const int64_t step = job.grad_strides.cls;
  store_lanes(row + c * step, step, n, g);
}

template <class S>
void clear_row(const SoftmaxRows<S>& job, int64_t row) {
  S* g = row_of(job.grad, job.grad_strides, job.inner, row);
  for (int64_t c = 0; c < job.classes; c++) g[c * job.grad_strides.cls] = S{};
}

// What a row that does not count has: no loss, no gradient.
template <class S>
void leave_out(const SoftmaxRows<S>& job, int64_t row) {
  if (job.loss) job.loss[row] = 0;
  if (job.grad) clear_row(job, row);
}

// ---- lanes along rows: dense logits, whose inner dimensions are contiguous ----------------------------------------
// U registers of rows, of which n count; n = all of them, or U = 1.
template <int U, class S>
IMBLOSS_INLINE Vec<Accumulate<S>, U> load_rows(const S* p, int n, Accumulate<S> fill = 0) {
  using A = Accumulate<S>;
  if constexpr (U == 1) {
    if (n < kLanes<A>) return load(p, first_lanes<A>(n), fill);
  }
  return load<U>(p);
}
template <class S, int U>
IMBLOSS_INLINE void store_rows(S* p, int n, Vec<Accumulate<S>, U> v) {
  using A = Accumulate<S>;
  if constexpr (U == 1) {
    if (n < kLanes<A>) return store(p, first_lanes<A>(n), v);
  }
  store(p, v);
}

// Whether rows, rather than classes, lie side by side in memory.
template <class S>
bool rows_are_adjacent(const SoftmaxRows<S>& job) {
  const bool logits = job.inner > 1 && job.logits_strides.inner == 1 && job.logits_strides.cls != 1;
  return logits && (!job.grad || job.grad_strides.inner == 1);
}

// Whether logits fill the caches, and so does their gradient, wanted or not: a row's loss is the same, to the bit.
template <class S>
bool fills_caches(const SoftmaxRows<S>& job) {
  return job.bytes >= 32 << 20;
}
// Whether the gradient is written past the caches: where it fills them, its memory is aligned and not that of the
// logits, and it is stored as it is computed.
template <class S>
bool streams_past_caches(const SoftmaxRows<S>& job) {
  return std::is_same_v<S, Accumulate<S>> && fills_caches(job) && job.grad && job.grad != job.logits &&
         reinterpret_cast<uintptr_t>(job.grad) % kVectorBytes == 0;
}

// Calls f(integral_constant<int, U>, row, n): `n` rows from `row` on that share their outer index, in U registers.
template <class A, int abreast, class F>
void for_row_vectors(int64_t inner, int64_t begin, int64_t end, F f) {
  constexpr int lanes = kLanes<A>;
  for (int64_t row = begin; row < end;) {
    const int64_t left = std::min(end, (row / inner + 1) * inner) - row;
    if (left >= abreast * lanes) {
      f(std::integral_constant<int, abreast>{}, row, abreast * lanes);
      row += abreast * lanes;
    } else {
      const int n = static_cast<int>(std::min<int64_t>(left, lanes));
      f(std::integral_constant<int, 1>{}, row, n);
      row += n;
    }
  }
}

// Room for n numbers: on the stack where it fits, as it does unless there are many thousand classes.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t n) : heap_(n > kOnStack ? new A[n] : nullptr), data_(heap_ ? heap_.get() : stack_) {}
  Scratch(const Scratch&) = delete;
  A* data() { return data_; }
  static constexpr int64_t kOnStack = 32 * 1024 / sizeof(A);  // which stays in the first-level cache

 private:
  alignas(kVectorBytes) A stack_[kOnStack];
  std::unique_ptr<A[]> heap_;
  A* data_;
};

}  // namespace imbloss
