// Softmax losses of one target class a row (docs/math.md, section 1): the walk over rows and classes. What a row's
// value and slope are is the policy's business; threads, blocks and tensors are ops.cpp's.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "policies.h"

namespace imbloss {

// Row i of the logits is (i / inner, i % inner); its classes are `cls` elements apart.
struct Strides {
  int64_t outer, cls, inner;
};

// One call: its operands, and the outputs that are wanted (the others are null).
template <class S>
struct SoftmaxRows {
  using A = Accumulate<S>;
  int64_t inner, classes, ignore_index;
  const S* logits;
  Strides logits_strides;
  const int64_t* target;
  // per class, or null
  const A* scale;
  const A* bias;
  const A* margin;
  const A* weight;
  const double* gammas;
  double gamma;            // where gammas is null
  const A* sample_weight;  // per row, or null
  A inverse_divisor;       // of "mean"; 1 for the other reductions

  A* loss;   // per row
  A* stats;  // 3 numbers a row, see RowStats; stats_stride apart
  int64_t stats_stride;
  S* grad;  // for an upstream gradient of 1
  Strides grad_strides;
};

// What the gradient needs of a row, besides its logits:
//   d loss / d x_j = scale_j * other * exp(z_j - top)  (j != y),   d loss / d x_y = scale_y * target
enum RowStats { kTop, kOther, kTarget, kNumRowStats };

// Sums over a block of rows, in index order.
struct BlockSums {
  double loss = 0;
  int64_t bad_row = -1;  // the first row with a target out of range
};

// A row at p, `stride` apart, to and from n lanes in a contiguous row that is padded to whole vectors.
template <class S, bool Affine>
IMBLOSS_INLINE Vec<Accumulate<S>> load_lanes(const SoftmaxRows<S>& job, const S* row, int64_t c, int n) {
  using A = Accumulate<S>;
  constexpr A fill = -std::numeric_limits<A>::infinity();
  constexpr int lanes = kLanes<A>;
  Vec<A> x;
  if (job.logits_strides.cls == 1) {
    x = n == lanes ? load(row + c) : load(row + c, first_lanes<A>(n), fill);
  } else {
    A gathered[lanes];
    for (int i = 0; i < lanes; i++) gathered[i] = i < n ? load_one(row + (c + i) * job.logits_strides.cls) : fill;
    x = load(gathered);
  }
  if constexpr (Affine) {
    if (n == lanes) {
      if (job.scale) x = x * load(job.scale + c);
      if (job.bias) x = x + load(job.bias + c);
    } else {
      Part<A> part = first_lanes<A>(n);
      if (job.scale) x = x * load(job.scale + c, part, A(1));
      if (job.bias) x = x + load(job.bias + c, part, A(0));
    }
  }
  return x;
}

template <class S, bool Affine>
IMBLOSS_INLINE void store_lanes(const SoftmaxRows<S>& job, S* row, int64_t c, int n, Vec<Accumulate<S>> g) {
  using A = Accumulate<S>;
  constexpr int lanes = kLanes<A>;
  if constexpr (Affine) {
    if (job.scale) g = g * (n == lanes ? load(job.scale + c) : load(job.scale + c, first_lanes<A>(n), A(0)));
  }
  if (job.grad_strides.cls == 1) {
    if (n == lanes) store(row + c, g);
    else store(row + c, first_lanes<A>(n), g);
  } else {
    A scattered[lanes];
    store(scattered, g);
    for (int i = 0; i < n; i++) store_one(row + (c + i) * job.grad_strides.cls, scattered[i]);
  }
}

// Calls f(c, n) for vectors of n lanes from class c on.
template <class A, class F>
IMBLOSS_INLINE void for_lanes(int64_t classes, F f) {
  constexpr int lanes = kLanes<A>;
  int64_t c = 0;
  for (; c + lanes <= classes; c += lanes) f(c, lanes);
  if (c < classes) f(c, static_cast<int>(classes - c));
}

template <class S>
IMBLOSS_INLINE const S* row_of(const S* base, const Strides& strides, int64_t inner, int64_t row) {
  if (inner == 1) return base + row * strides.outer;  // a division costs more than a small row
  return base + row / inner * strides.outer + row % inner * strides.inner;
}
template <class S>
IMBLOSS_INLINE S* row_of(S* base, const Strides& strides, int64_t inner, int64_t row) {
  return const_cast<S*>(row_of(const_cast<const S*>(base), strides, inner, row));
}

template <class S>
void clear_row(const SoftmaxRows<S>& job, int64_t row) {
  S* g = row_of(job.grad, job.grad_strides, job.inner, row);
  for (int64_t c = 0; c < job.classes; c++) g[c * job.grad_strides.cls] = S{};
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

// The divisor of "mean": the weights of the rows that count.
template <class S>
double total_weight(const SoftmaxRows<S>& job, int64_t begin, int64_t end, BlockSums& sums) {
  double total = 0;
  for (int64_t row = begin; row < end; row++) {
    const int64_t y = target_of(job, row, sums);
    if (y < 0) continue;
    total += (job.weight ? double(job.weight[y]) : 1) * (job.sample_weight ? double(job.sample_weight[row]) : 1);
  }
  return total;
}

// Replaces e[0..n), n whole vectors, by exp(e - top), and returns its sum.
template <class A>
A exp_and_sum(A* e, int64_t n, A top) {
  constexpr int abreast = 4, lanes = kLanes<A>;
  Vec<A, abreast> sums(0);
  int64_t c = 0;
  for (; c + abreast * lanes <= n; c += abreast * lanes) {
    Vec<A, abreast> exponentials = exp(load<abreast>(e + c) - top);
    store(e + c, exponentials);
    sums = sums + exponentials;
  }
  Vec<A> rest(0);
  for (; c < n; c += lanes) {
    Vec<A> exponentials = exp(load(e + c) - top);
    store(e + c, exponentials);
    rest = rest + exponentials;
  }
  return sum(sums) + sum(rest);
}

// Up to one vector of rows at a time: each row's exponentials into scratch, then value and slope of all rows in
// lanes, then the gradient from scratch. For any number of classes and any strides.
template <class S, bool Affine, class Policy>
void softmax_rows_in_scratch(const SoftmaxRows<S>& job, const Policy& policy, int64_t begin, int64_t end,
                             BlockSums& sums) {
  using A = Accumulate<S>;
  using V = Vec<A>;
  constexpr int lanes = kLanes<A>;
  constexpr A infinity = std::numeric_limits<A>::infinity();
  constexpr int64_t scratch_bytes = 32 * 1024;  // stays in the first-level cache
  const int64_t padded = (job.classes + lanes - 1) / lanes * lanes;
  const int batch = static_cast<int>(std::clamp<int64_t>(scratch_bytes / (padded * sizeof(A)), 1, lanes));
  alignas(kVectorBytes) A on_stack[scratch_bytes / sizeof(A)];
  std::unique_ptr<A[]> on_heap(padded > scratch_bytes / int64_t(sizeof(A)) ? new A[padded] : nullptr);
  A* scratch = on_heap ? on_heap.get() : on_stack;

  A top[lanes], target_z[lanes], others[lanes], weight[lanes], gamma_high[lanes], gamma_low[lanes];
  int64_t label[lanes];
  Exponent<V> gamma{V(high_part<A>(job.gamma)), V(static_cast<A>(job.gamma - high_part<A>(job.gamma)))};
  if (!job.gammas && (job.gamma == 0 || job.gamma == 1 || job.gamma == 2 || job.gamma == 3)) {
    gamma.whole = static_cast<int>(job.gamma);
  }

  for (int64_t first = begin; first < end; first += batch) {
    const int rows = static_cast<int>(std::min<int64_t>(batch, end - first));
    for (int r = 0; r < lanes; r++) {  // p = 1 and no weight, unless a row says otherwise
      top[r] = target_z[r] = others[r] = weight[r] = gamma_high[r] = gamma_low[r] = 0;
    }
    for (int r = 0; r < rows; r++) {
      const int64_t y = label[r] = target_of(job, first + r, sums);
      if (y < 0) continue;
      const S* x = row_of(job.logits, job.logits_strides, job.inner, first + r);
      A* e = scratch + r * padded;

      V largest(-infinity);
      for_lanes<A>(job.classes, [&](int64_t c, int n) {
        V z = load_lanes<S, Affine>(job, x, c, n);
        store(e + c, z);
        largest = max(largest, z);
      });
      top[r] = max_lane(largest);
      target_z[r] = e[y];
      e[y] = -infinity;  // out of the sum of the others
      if (job.margin) {
        target_z[r] -= job.margin[y];
        largest = V(-infinity);
        for (int64_t c = 0; c < padded; c += lanes) largest = max(largest, load(e + c));
        top[r] = std::max(max_lane(largest), target_z[r]);
      }

      others[r] = exp_and_sum(e, padded, top[r]);
      weight[r] = (job.weight ? job.weight[y] : A(1)) * (job.sample_weight ? job.sample_weight[first + r] : A(1));
      if (job.gammas) {
        gamma_high[r] = high_part<A>(job.gammas[y]);
        gamma_low[r] = static_cast<A>(job.gammas[y] - gamma_high[r]);
      }
    }

    if (job.gammas) gamma = {load(gamma_high), load(gamma_low)};
    V e_others = load(others), below_top = load(target_z) - load(top), e_target = exp(below_top);
    V total = e_target + e_others;
    // total - 1 without cancellation: the 1 is the target's own where the target is on top, else one of the others'
    V excess = select(below_top == V(0), e_others, e_target + (e_others - 1));
    V p = e_target / total, q = e_others / total;
    Point<V> point = policy(Row<V>{below_top - log1p(excess), p, q}, gamma);
    V value = load(weight) * point.value, slope = load(weight) * job.inverse_divisor * point.slope;
    V other = -slope / total, target = slope * q;

    A out[lanes];
    store(out, value);
    for (int r = 0; r < rows; r++) {
      if (label[r] < 0) out[r] = 0;
      sums.loss += out[r];
      if (job.loss) job.loss[first + r] = out[r];
    }
    if (job.stats) {
      A* stats = job.stats + first;
      Part<A> part = first_lanes<A>(rows);
      store(stats + kTop * job.stats_stride, part, load(top));
      store(stats + kOther * job.stats_stride, part, other);
      store(stats + kTarget * job.stats_stride, part, target);
    }
    if (job.grad) {
      store(out, other);
      for (int r = 0; r < rows; r++) {
        if (label[r] < 0) {
          clear_row(job, first + r);
          continue;
        }
        S* g = row_of(job.grad, job.grad_strides, job.inner, first + r);
        A* e = scratch + r * padded;
        e[label[r]] = -others[r];  // times `other` it is slope * q
        for_lanes<A>(job.classes,
                     [&](int64_t c, int n) { store_lanes<S, Affine>(job, g, c, n, load(e + c) * out[r]); });
      }
    }
  }
}

// The one place that chooses a traversal by shape.
template <class S, class Policy>
void softmax_rows(const SoftmaxRows<S>& job, const Policy& policy, int64_t begin, int64_t end, BlockSums& sums) {
  if (job.scale || job.bias) softmax_rows_in_scratch<S, true>(job, policy, begin, end, sums);
  else softmax_rows_in_scratch<S, false>(job, policy, begin, end, sums);
}

// The gradient from a forward's stats, for any upstream gradient: one number, or one a row.
template <class S, bool Affine>
void softmax_rows_backward(const SoftmaxRows<S>& job, const Accumulate<S>* upstream, bool per_row, int64_t begin,
                           int64_t end, BlockSums& sums) {
  using A = Accumulate<S>;
  for (int64_t row = begin; row < end; row++) {
    const int64_t y = target_of(job, row, sums);
    if (y < 0) {
      clear_row(job, row);
      continue;
    }
    const A up = upstream[per_row ? row : 0];
    const A top = job.stats[kTop * job.stats_stride + row];
    const A other = up * job.stats[kOther * job.stats_stride + row];
    const S* x = row_of(job.logits, job.logits_strides, job.inner, row);
    S* g = row_of(job.grad, job.grad_strides, job.inner, row);
    for_lanes<A>(job.classes, [&](int64_t c, int n) {
      store_lanes<S, Affine>(job, g, c, n, exp(load_lanes<S, Affine>(job, x, c, n) - top) * other);
    });
    A target = up * job.stats[kTarget * job.stats_stride + row];
    if (Affine && job.scale) target *= job.scale[y];
    store_one(g + y * job.grad_strides.cls, target);
  }
}

}  // namespace imbloss
