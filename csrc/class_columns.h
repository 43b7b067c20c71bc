// LADE (docs/math.md, section 4): sums over the rows of each class beside those over the classes of each row, from one
// read of the logits, and the gradient of both in one write. Rows are walked over in tiles. As long as the logits of a
// tile are small, one exponential serves both directions; otherwise each direction shifts by a maximum of its own.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "softmax_packed_rows.h"

namespace imbloss {

// A call. What is per class is padded to whole vectors.
template <class S>
struct ClassColumns {
  using A = Accumulate<S>;
  SoftmaxRows<S> rows;  // logits, targets, sample weights; stats (of PriorCE, without a divisor) and gradient
  bool prior_ce;        // whether there is any
  bool small_prior;     // whether one is too small for sums of plain exponentials
  bool keeps_exp;       // whether exp(logits) of small tiles wait in the gradient's memory for the second pass
  const A* prior;
  const A* log_prior;
  const A* importance;  // v, of the rows with that target; null is 1
  A* target_x;          // per row: room for the target's logit
  // of the gradient: docs/math.md's T, k, k exp(-T) and D of each class, and what multiplies PriorCE's
  const A *top, *slope, *unshifted_slope, *share;
  A row_factor;
};

// In this range exponentials can be summed and divided as they are, given priors that are not too small either.
template <class A>
inline constexpr A kSmallColumnLogit = sizeof(A) == 4 ? 32 : 300;
inline constexpr double kSmallPrior = 1e-9;

// Sums over a block of rows. Totals of exp(x - top) count where `any_row`, tops where `shifted`. The sums of the
// targets' logits and their numbers are null where the caller adds them up.
template <class A>
struct ColumnSums {
  double *total, *own, *count;
  A* top;
  bool any_row, shifted;
  double loss, divisor;
  int64_t bad_row;
};

template <class A>
void add_class(double& total, A& top, double other_total, A other_top) {
  if (other_top > top) {
    total = total * std::exp(double(top) - other_top) + other_total;
    top = other_top;
  } else if (other_top > -kInfinity<A>) {
    total += other_total * std::exp(double(other_top) - top);
  }
}

// Adds `totals` relative to `tops`, which are 0 where there are none.
template <class A, class T>
void add_classes(ColumnSums<A>& sums, int64_t classes, const T* totals, const A* tops) {
  if (tops && !sums.shifted) {
    std::fill_n(sums.top, classes, sums.any_row ? A(0) : -kInfinity<A>);
    sums.shifted = true;
  }
  if (sums.shifted) {
    for (int64_t c = 0; c < classes; c++) add_class(sums.total[c], sums.top[c], totals[c], tops ? tops[c] : A(0));
  } else {
    for (int64_t c = 0; c < classes; c++) sums.total[c] += totals[c];
  }
  sums.any_row = true;
}

// Rows that are worked on together, and sums over them. A row that does not count has no weight and no importance.
template <class S>
struct Tile {
  using A = Accumulate<S>;
  static constexpr int most = 256, lanes = kLanes<A>;

  int64_t begin;
  int rows;
  bool any_counts, all_count;
  const int64_t* label;                   // -1 where the row does not count
  const A *weight, *importance, *counts;  // counts: 1 or 0
  const A* target_x;
  A number[most];  // label
  A top[most], others[most];
  // per class: sums in lanes that are not classes, and in those that are
  A *lane_sum = nullptr, *sum = nullptr, *column_top = nullptr;
  A *own = nullptr, *count = nullptr;  // of the targets of the first `summed` rows
  int summed;
  int64_t padded;

  explicit Tile(int64_t classes) : padded((classes + lanes - 1) / lanes * lanes) { std::fill_n(ones_, most, A(1)); }
  // With memory for sums. `packed`: whether rows are, which have three sums of each class.
  Tile(int64_t classes, bool in_lanes, bool packed) : Tile(classes) {
    const int64_t in_lanes_size = in_lanes ? (packed ? 3 : 1) * classes * lanes : 0;
    memory_.reset(new A[in_lanes_size + (packed ? 4 : 2) * padded]);
    lane_sum = memory_.get();
    sum = lane_sum + in_lanes_size;
    column_top = sum + padded;
    if (packed) own = column_top + padded;
    if (packed) count = own + padded;
  }
  Tile(const Tile&) = delete;

  // The targets and what goes with them, but for their logits.
  void read(const ClassColumns<S>& job, int64_t first, int64_t end, BlockSums& sums) {
    const int64_t *target = job.rows.target + first, classes = job.rows.classes;
    begin = first;
    rows = static_cast<int>(end - first);
    all_count = imbloss::all_count(job.rows, first, rows);
    any_counts = all_count && rows > 0;
    label = target;
    weight = importance = counts = ones_;
    if (all_count) {
      if (job.rows.sample_weight) weight = job.rows.sample_weight + first;
      for (int r = 0; r < rows && job.importance; r++) importance_[r] = job.importance[target[r]];
    } else {
      for (int r = 0; r < rows; r++) {
        const int64_t y = label_[r] = target_of(job.rows, begin + r, sums);
        counts_[r] = y >= 0;
        weight_[r] = y >= 0 ? sample_weight_of(job.rows, begin + r) : A(0);
        importance_[r] = y >= 0 ? (job.importance ? job.importance[y] : A(1)) : A(0);
        any_counts |= y >= 0;
      }
      label = label_;
      weight = weight_;
      counts = counts_;
    }
    if (job.importance || !all_count) importance = importance_;
    few_classes_ = all_count && classes <= lanes;
    for (int r = 0; r < rows; r++) index_[r] = static_cast<int32_t>(label[r]);
    for (int r = 0; r < rows; r++) number[r] = static_cast<A>(index_[r]);
    target_x = job.target_x + first;
    summed = 0;
  }
  // Fills in job.target_x.
  void read_logits(const ClassColumns<S>& job) const {
    const int64_t step = job.rows.logits_strides.cls;
    A* x = job.target_x + begin;
    const S* row = logits(job, 0);
    const int64_t next = job.rows.logits_strides.outer;
    if (all_count && job.rows.inner == 1) {
      for (int r = 0; r < rows; r++, row += next) x[r] = load_one(row + label[r] * step);
    } else {
      for (int r = 0; r < rows; r++) x[r] = label[r] < 0 ? A(0) : load_one(logits(job, r) + label[r] * step);
    }
  }
  bool weighted() const { return importance != ones_; }

  // For n rows from r on, the value of each row's class; 0 where the row does not count.
  IMBLOSS_INLINE Vec<A> by_label(const A* values, int r, int n) const {
#if defined(IMBLOSS_MOVES_LANES)
    if constexpr (std::is_same_v<A, float>) {
      if (few_classes_ && n == lanes) return permute(load(values), index_ + r);
    }
#endif
    A gathered[lanes];
    if (all_count && n == lanes) {
      for (int i = 0; i < lanes; i++) gathered[i] = values[label[r + i]];
    } else {
      for (int i = 0; i < lanes; i++) gathered[i] = i < n && label[r + i] >= 0 ? values[label[r + i]] : A(0);
    }
    return load(gathered);
  }
  const S* logits(const ClassColumns<S>& job, int r) const {
    return row_of(job.rows.logits, job.rows.logits_strides, job.rows.inner, begin + r);
  }
  S* grad(const ClassColumns<S>& job, int r) const {
    return row_of(job.rows.grad, job.rows.grad_strides, job.rows.inner, begin + r);
  }
  // That row where exponentials wait in it, else null.
  A* kept_exp(const ClassColumns<S>& job, int r) const {
    if constexpr (std::is_same_v<S, A>) return job.keeps_exp ? grad(job, r) : nullptr;
    else return nullptr;
  }

  // Calls f(integral_constant<int, U>, rows) for U rows that count at a time, from row `first` on.
  template <class F>
  void for_counting(int first, F f) const {
    constexpr int abreast = 4;
    int list[abreast], n = 0;
    for (int r = first; r < rows; r++) {
      if (label[r] < 0) continue;
      list[n++] = r;
      if (n < abreast) continue;
      f(std::integral_constant<int, abreast>{}, list);
      n = 0;
    }
    for (int i = 0; i < n; i++) f(std::integral_constant<int, 1>{}, list + i);
  }

 private:
  std::unique_ptr<A[]> memory_;
  bool few_classes_;  // so few that their values fit into a vector
  int32_t index_[most];
  int64_t label_[most];
  A weight_[most], importance_[most], counts_[most], ones_[most];
};

// ---- lanes along classes: any strides ----------------------------------------------------------------------------
template <int U, class S>
IMBLOSS_INLINE Vec<Accumulate<S>, U> load_abreast(const S* const* x, int64_t c, int64_t step, int n) {
  Vec<Accumulate<S>, U> v;
  IMBLOSS_UNROLL
  for (int u = 0; u < U; u++) v.r[u] = load_lanes(x[u] + c * step, step, n, Accumulate<S>(0)).r[0];
  return v;
}
template <int U, class S>
IMBLOSS_INLINE void store_abreast(S* const* x, int64_t c, int64_t step, int n, Vec<Accumulate<S>, U> v) {
  IMBLOSS_UNROLL
  for (int u = 0; u < U; u++) {
    Vec<Accumulate<S>> one;
    one.r[0] = v.r[u];
    store_lanes(x[u] + c * step, step, n, one);
  }
}
template <int U, class A>
IMBLOSS_INLINE Vec<A, U> repeat(Vec<A> v) {
  Vec<A, U> all;
  IMBLOSS_UNROLL
  for (int u = 0; u < U; u++) all.r[u] = v.r[0];
  return all;
}
template <int U, class A>
IMBLOSS_INLINE Vec<A, U> one_each(const A* values, const int* rows) {
  Vec<A, U> v;
  IMBLOSS_UNROLL
  for (int u = 0; u < U; u++) v.r[u] = Vec<A>(values[rows[u]]).r[0];
  return v;
}

// The largest logit of each class, and the largest z of each row.
template <class S>
void tops_by_class(const ClassColumns<S>& job, Tile<S>& tile) {
  using A = Accumulate<S>;
  const int64_t step = job.rows.logits_strides.cls;
  std::fill_n(tile.column_top, tile.padded, -kInfinity<A>);
  for (int r = 0; r < tile.rows; r++) {
    if (tile.label[r] < 0) continue;
    const S* x = tile.logits(job, r);
    Vec<A> largest(-kInfinity<A>);
    for_lanes<A>(job.rows.classes, [&](int64_t c, int n) {
      Vec<A> z = load_lanes(x + c * step, step, n, -kInfinity<A>);
      A* top = tile.column_top + c;
      store(top, max(z, load(top)));
      largest = max(largest, z + load(job.log_prior + c));
    });
    tile.top[r] = max_lane(largest);
  }
}

// Sums the rows from `first` on of each class, and the classes of each row but for the target. Returns the largest
// logit, where they are not shifted. Adjacent: the classes of a row lie side by side, in the gradient too.
template <bool Shifted, bool Adjacent, class S>
Accumulate<S> sum_by_class(const ClassColumns<S>& job, Tile<S>& tile, int first = 0) {
  using A = Accumulate<S>;
  constexpr int lanes = kLanes<A>;
  const int64_t step = Adjacent ? 1 : job.rows.logits_strides.cls, grad_step = Adjacent ? 1 : job.rows.grad_strides.cls;
  A* const sums = tile.sum;
  Vec<A> largest(0);
  std::fill_n(sums, tile.padded, A(0));
  tile.for_counting(first, [&](auto registers, const int* rows) {
    constexpr int U = registers;
    using V = Vec<A, U>;
    const S* x[U];
    A* kept[U];
    int64_t target[U];  // where the vector with the target begins
    for (int u = 0; u < U; u++) {
      x[u] = tile.logits(job, rows[u]);
      kept[u] = tile.kept_exp(job, rows[u]);
      target[u] = tile.label[rows[u]] / lanes * lanes;
    }
    // of the vectors from c on, the first with a target
    auto next_target = [&](int64_t c) {
      int64_t next = job.rows.classes;
      for (int u = 0; u < U; u++) {
        if (target[u] >= c) next = std::min(next, target[u]);
      }
      return next;
    };
    int64_t next = next_target(0);
    const V v = one_each<U>(tile.importance, rows), top = Shifted ? one_each<U>(tile.top, rows) : V(0);
    LongSum<V> others;
    V run(0);
    int left = kRun;
    for_lanes<A>(job.rows.classes, [&](int64_t c, int n) IMBLOSS_INLINE_LAMBDA {
      V z = load_abreast<U>(x, c, step, n), row(0), column;
      if constexpr (Shifted) {
        if (job.prior_ce) row = exp(z + repeat<U>(load(job.log_prior + c)) - top);
        Vec<A> class_top = load(tile.column_top + c);
        column = exp(z - repeat<U>(select(class_top == Vec<A>(-kInfinity<A>), Vec<A>(0), class_top)));
      } else {
        column = exp_of_small(z);
        if (kept[0]) store_abreast(kept, c, grad_step, n, column);
        row = column * repeat<U>(load(job.prior + c));
        V size = abs(z);
        IMBLOSS_UNROLL
        for (int u = 0; u < U; u++) largest.r[0] = max_register(largest.r[0], size.r[u]);
      }
      Vec<A> total(0);
      column = column * v;
      IMBLOSS_UNROLL
      for (int u = 0; u < U; u++) total.r[0] += column.r[u];
      store(sums + c, load(sums + c) + total);
      if (c == next) {
        for (int u = 0; u < U; u++) {
          if (c == target[u]) row.r[u][tile.label[rows[u]] - c] = 0;
        }
        next = next_target(c + 1);
      }
      run = run + row;
      if (--left > 0) return;
      others.add(run);
      run = V(0);
      left = kRun;
    });
    others.add(run);
    const V sum_of_others = others.value();
    IMBLOSS_UNROLL
    for (int u = 0; u < U; u++) {
      Vec<A> one;
      one.r[0] = sum_of_others.r[u];
      tile.others[rows[u]] = sum(one);
    }
  });
  return max_lane(largest);
}

// Everything but the targets' entries, as `other` times the row's exponentials and `slope` times the class's.
template <bool Shifted, bool Adjacent, class S>
void gradient_by_class(const ClassColumns<S>& job, Tile<S>& tile, const Accumulate<S>* other, int first = 0) {
  using A = Accumulate<S>;
  const int64_t step = Adjacent ? 1 : job.rows.logits_strides.cls, grad_step = Adjacent ? 1 : job.rows.grad_strides.cls;
  for (int r = first; r < tile.rows && !tile.all_count; r++) {
    if (tile.label[r] < 0) clear_row(job.rows, tile.begin + r);
  }
  tile.for_counting(first, [&](auto registers, const int* rows) {
    constexpr int U = registers;
    using V = Vec<A, U>;
    const S* x[U];
    S* g[U];
    A* kept[U];
    for (int u = 0; u < U; u++) {
      x[u] = tile.logits(job, rows[u]);
      g[u] = tile.grad(job, rows[u]);
      kept[u] = tile.kept_exp(job, rows[u]);
    }
    const V v = one_each<U>(tile.importance, rows), a = one_each<U>(other, rows);
    const V top = Shifted ? one_each<U>(tile.top, rows) : V(0);
    for_lanes<A>(job.rows.classes, [&](int64_t c, int n) IMBLOSS_INLINE_LAMBDA {
      V grad;
      if constexpr (Shifted) {
        V z = load_abreast<U>(x, c, step, n);
        grad = exp(z - repeat<U>(load(job.top + c))) * (v * repeat<U>(load(job.slope + c)));
        if (job.prior_ce) grad = grad + exp(z + repeat<U>(load(job.log_prior + c)) - top) * a;
      } else {
        V e = kept[0] ? load_abreast<U>(kept, c, grad_step, n) : exp_of_small(load_abreast<U>(x, c, step, n));
        grad = e * (a * repeat<U>(load(job.prior + c)) + v * repeat<U>(load(job.unshifted_slope + c)));
      }
      store_abreast(g, c, grad_step, n, grad);
    });
  });
}

// ---- lanes along rows: dense logits ------------------------------------------------------------------------------
template <bool Shifted, class S>
Accumulate<S> sum_by_row(const ClassColumns<S>& job, Tile<S>& tile) {
  using A = Accumulate<S>;
  constexpr int lanes = kLanes<A>;
  const int64_t classes = job.rows.classes, step = job.rows.logits_strides.cls;
  // Calls f(U, row in the tile, n, load of class c with 0 in rows that do not count)
  auto walk = [&](auto f) {
    for_row_vectors<A, 4>(job.rows.inner, tile.begin, tile.begin + tile.rows, [&](auto registers, int64_t row, int n) {
      constexpr int U = registers;
      using V = Vec<A, U>;
      const int r = static_cast<int>(row - tile.begin);
      const S* x = tile.logits(job, r);
      const auto counts = V(0) < load_rows<U>(tile.counts + r, n);
      f(registers, r, n, [&](int64_t c) { return select(counts, load_rows<U>(x + c * step, n), V(0)); });
    });
  };
  if constexpr (Shifted) {
    std::vector<A> tops(classes * lanes, -kInfinity<A>);
    walk([&](auto registers, int r, int n, auto load_class) {
      constexpr int U = registers;
      using V = Vec<A, U>;
      const auto counts = V(0) < load_rows<U>(tile.counts + r, n);
      V top(-kInfinity<A>);
      for (int64_t c = 0; c < classes; c++) {
        V z = load_class(c), only = select(counts, z, V(-kInfinity<A>));
        top = max(top, z + job.log_prior[c]);
        Vec<A> column = load(tops.data() + c * lanes);
        IMBLOSS_UNROLL
        for (int u = 0; u < U; u++) column.r[0] = max_register(only.r[u], column.r[0]);
        store(tops.data() + c * lanes, column);
      }
      store_rows(tile.top + r, n, top);
    });
    for (int64_t c = 0; c < classes; c++) tile.column_top[c] = max_lane(load(tops.data() + c * lanes));
  }
  Vec<A> largest(0);
  A* const sums = tile.lane_sum;
  std::fill_n(sums, classes * lanes, A(0));
  walk([&](auto registers, int r, int n, auto load_class) {
    constexpr int U = registers;
    using V = Vec<A, U>;
    const V v = load_rows<U>(tile.importance + r, n), y = load_rows<U>(tile.number + r, n);
    const V top = Shifted ? load_rows<U>(tile.top + r, n) : V(0);
    A* const kept = tile.kept_exp(job, r);
    LongSum<V> others;
    for (int64_t c = 0; c < classes;) {
      V run(0);
      for (const int64_t end = std::min(classes, c + kRun); c < end; c++) {
        V z = load_class(c), row(0), column;
        if constexpr (Shifted) {
          const A class_top = tile.column_top[c];
          if (job.prior_ce) row = exp(z + job.log_prior[c] - top);
          column = exp(z - (class_top == -kInfinity<A> ? A(0) : class_top));
        } else {
          column = exp_of_small(z);
          if (kept) store_rows(kept + c * job.rows.grad_strides.cls, n, column);
          row = column * job.prior[c];
          V size = abs(z);
          IMBLOSS_UNROLL
          for (int u = 0; u < U; u++) largest.r[0] = max_register(largest.r[0], size.r[u]);
        }
        run = run + select(y == V(static_cast<A>(c)), V(0), row);
        column = column * v;
        Vec<A> total = load(sums + c * lanes);
        IMBLOSS_UNROLL
        for (int u = 0; u < U; u++) total.r[0] += column.r[u];
        store(sums + c * lanes, total);
      }
      others.add(run);
    }
    store_rows(tile.others + r, n, others.value());
  });
  for (int64_t c = 0; c < classes; c++) tile.sum[c] = sum(load(sums + c * lanes));
  return max_lane(largest);
}

template <bool Shifted, class S>
void gradient_by_row(const ClassColumns<S>& job, Tile<S>& tile, const Accumulate<S>* other) {
  using A = Accumulate<S>;
  const int64_t step = job.rows.logits_strides.cls, grad_step = job.rows.grad_strides.cls;
  for_row_vectors<A, 4>(job.rows.inner, tile.begin, tile.begin + tile.rows, [&](auto registers, int64_t row, int n) {
    constexpr int U = registers;
    using V = Vec<A, U>;
    const int r = static_cast<int>(row - tile.begin);
    const S* x = tile.logits(job, r);
    S* g = tile.grad(job, r);
    const V v = load_rows<U>(tile.importance + r, n), a = load_rows<U>(other + r, n);
    const V top = Shifted ? load_rows<U>(tile.top + r, n) : V(0);
    const auto counts = V(0) < load_rows<U>(tile.counts + r, n);
    const A* const kept = tile.kept_exp(job, r);
    for (int64_t c = 0; c < job.rows.classes; c++) {
      V grad;
      if constexpr (Shifted) {
        V z = load_rows<U>(x + c * step, n);
        grad = exp(z - job.top[c]) * (v * job.slope[c]);
        if (job.prior_ce) grad = grad + exp(z + job.log_prior[c] - top) * a;
      } else {
        V e = kept ? load_rows<U>(kept + c * grad_step, n) : exp_of_small(load_rows<U>(x + c * step, n));
        grad = e * (a * job.prior[c] + v * job.unshifted_slope[c]);
      }
      store_rows(g + c * grad_step, n, select(counts, grad, V(0)));
    }
  });
}

// ---- few classes, rows that follow one another: a vector of rows as one run of numbers ----------------------------
#if defined(IMBLOSS_MOVES_LANES)
template <bool Weighted, int U, class S>
IMBLOSS_INLINE Vec<float, U> load_packed(const S* x, const Tile<S>& tile, const PackedRows& packed, int r, int i,
                                         int classes) {
  constexpr int lanes = PackedRows::lanes;
  Vec<float, U> z;
  IMBLOSS_UNROLL
  for (int u = 0; u < U; u++) {
    Vec<float> one = load(x + (u * classes + i) * lanes);
    if (Weighted && !tile.all_count) {
      one = select(Vec<float>(0) < packed.spread(load(tile.counts + r + u * lanes), i), one, Vec<float>(0));
    }
    z.r[u] = one.r[0];
  }
  return z;
}

// What packed rows share. Factors of the gradient may be null.
struct PackedColumns : PackedRows {
  PackedColumns(int classes, const float* prior, const float* slope, const float* share)
      : PackedRows(classes, prior, slope) {
    for (int i = 0, c = 0; i < classes * lanes; i++, c = c + 1 == classes ? 0 : c + 1) {
      class_[i] = static_cast<float>(c);
      if (share) share_[i] = share[c];
    }
  }
  // Which numbers of the k-th vector are the targets', given the rows' labels.
  IMBLOSS_INLINE Mask<float> targets(V labels, int k) const { return spread(labels, k) == load(class_ + k * lanes); }
  IMBLOSS_INLINE V prior(int k) const { return scale(k); }
  IMBLOSS_INLINE V slope(int k) const { return bias(k); }
  IMBLOSS_INLINE V share(int k) const { return load(share_ + k * lanes); }

 private:
  alignas(kVectorBytes) float class_[kMostPacked * lanes], share_[kMostPacked * lanes];
};

// Sums lie as the numbers do: lane after lane, the classes of as many rows as a vector has lanes. Returns the size of
// the largest logit in each lane.
template <bool Weighted, int U, class S>
Vec<float> sum_packed_rows(const ClassColumns<S>& job, Tile<S>& tile, const PackedColumns& packed, int r, float* e) {
  using V = Vec<float>;
  constexpr int lanes = PackedRows::lanes;
  const int classes = static_cast<int>(job.rows.classes);
  const S* x = tile.logits(job, r);
  float* const kept = tile.kept_exp(job, r);
  float *total = tile.lane_sum, *own = total + classes * lanes, *count = own + classes * lanes;
  V largest(0);
  for (int i = 0; i < classes; i++) {
    Vec<float, U> z = load_packed<Weighted, U>(x, tile, packed, r, i, classes), column = exp_of_small(z), size = abs(z);
    V totals = load(total + i * lanes), owns = load(own + i * lanes), counts = load(count + i * lanes);
    IMBLOSS_UNROLL
    for (int u = 0; u < U; u++) {
      V one, logit;
      one.r[0] = column.r[u];
      logit.r[0] = z.r[u];
      largest.r[0] = max_register(largest.r[0], size.r[u]);
      if (kept) store(kept + (u * classes + i) * lanes, one);
      const auto is_target = packed.targets(load(tile.number + r + u * lanes), i);
      store(e + (u * classes + i) * lanes, select(is_target, V(0), one * packed.prior(i)));
      owns = owns + select(is_target, logit, V(0));
      counts = counts + select(is_target, V(1), V(0));
      if (Weighted) one = one * packed.spread(load(tile.importance + r + u * lanes), i);
      totals = totals + one;
    }
    store(total + i * lanes, totals);
    store(own + i * lanes, owns);
    store(count + i * lanes, counts);
  }
  IMBLOSS_UNROLL
  for (int u = 0; u < U; u++) {
    auto add = [](V a, V b) { return a + b; };
    store(tile.others + r + u * lanes, packed.reduce(e + u * lanes * classes, 0, add));
  }
  return largest;
}

// The targets' entries too where classes are few. Where they are more, to write these again costs less.
constexpr int kMostWithTargets = 32;

template <bool Weighted, int U, class S>
void gradient_packed_rows(const ClassColumns<S>& job, Tile<S>& tile, const PackedColumns& packed, const float* other,
                          const float* of_target, int r) {
  using V = Vec<float>;
  constexpr int lanes = PackedRows::lanes;
  const int classes = static_cast<int>(job.rows.classes);
  const S* x = tile.logits(job, r);
  S* g = tile.grad(job, r);
  const float* const kept = tile.kept_exp(job, r);
  const bool targets_too = classes <= kMostWithTargets;
  Vec<float, U> v = load<U>(tile.importance + r), factor = load<U>(other + r);
  // other prior + v slope = v (other / v prior + slope)
  if (Weighted) factor = select(Vec<float, U>(0) < v, factor / v, Vec<float, U>(0));
  for (int i = 0; i < classes; i++) {
    Vec<float, U> e;
    if (kept) {
      IMBLOSS_UNROLL
      for (int u = 0; u < U; u++) e.r[u] = load(kept + (u * classes + i) * lanes).r[0];
    } else {
      e = exp_of_small(load_packed<Weighted, U>(x, tile, packed, r, i, classes));
    }
    IMBLOSS_UNROLL
    for (int u = 0; u < U; u++) {
      V one, a, of_row;
      one.r[0] = e.r[u];
      a.r[0] = factor.r[u];
      of_row.r[0] = v.r[u];
      if (Weighted) one = one * packed.spread(of_row, i);
      if (!targets_too) {
        store(g + (u * classes + i) * lanes, one * packed.adjusted(packed.spread(a, i), i));
        continue;
      }
      const auto is_target = packed.targets(load(tile.number + r + u * lanes), i);
      const V by_row = select(is_target, V(0), packed.spread(a, i) * packed.prior(i));
      const V only = packed.spread(load(of_target + r + u * lanes), i) - packed.share(i);
      store(g + (u * classes + i) * lanes, one * (by_row + packed.slope(i)) + select(is_target, only, V(0)));
    }
  }
}

// Calls f(integral_constant<int, U>, r) for U vectors of rows at a time; returns the first row of the rest.
template <class F>
int for_packed(int rows, F f) {
  constexpr int abreast = 4, lanes = PackedRows::lanes;
  int r = 0;
  for (; r + abreast * lanes <= rows; r += abreast * lanes) f(std::integral_constant<int, abreast>{}, r);
  for (; r + lanes <= rows; r += lanes) f(std::integral_constant<int, 1>{}, r);
  return r;
}

template <class S>
float sum_packed(const ClassColumns<S>& job, const PackedColumns& packed, Tile<S>& tile) {
  using V = Vec<float>;
  constexpr int lanes = PackedRows::lanes;
  const int classes = static_cast<int>(job.rows.classes);
  alignas(kVectorBytes) float e[4 * lanes * kMostPacked + 4];
  float *total = tile.lane_sum, *own = total + classes * lanes, *count = own + classes * lanes;
  std::fill_n(total, 3 * classes * lanes, 0.0f);
  V largest(0);
  tile.summed = for_packed(tile.rows, [&](auto registers, int r) {
    const V of_rows = tile.weighted() ? sum_packed_rows<true, registers>(job, tile, packed, r, e)
                                      : sum_packed_rows<false, registers>(job, tile, packed, r, e);
    largest = max(largest, of_rows);
  });
  const float largest_rest = sum_by_class<false, true>(job, tile, tile.summed);
  for_lanes<float>(classes, [&](int64_t c, int n) {
    V totals = load(tile.sum + c), owns(0), counts(0);
    for (int64_t at = c; at < c + lanes * classes; at += classes) {
      totals = totals + load_lanes(total + at, 1, n, 0.0f);
      owns = owns + load_lanes(own + at, 1, n, 0.0f);
      counts = counts + load_lanes(count + at, 1, n, 0.0f);
    }
    store(tile.sum + c, totals);
    store(tile.own + c, owns);
    store(tile.count + c, counts);
  });
  return std::max(max_lane(largest), largest_rest);
}

// Returns the first row whose target's entry is still to be written.
template <class S>
int gradient_packed(const ClassColumns<S>& job, const PackedColumns& packed, Tile<S>& tile, const float* other,
                    float factor) {
  const float* stats = job.rows.stats + kTarget * job.rows.stats_stride + tile.begin;
  float of_target[Tile<S>::most];
  for (int r = 0; r < tile.rows; r++) of_target[r] = stats[r] * factor;
  const int rest = for_packed(tile.rows, [&](auto registers, int r) {
    if (tile.weighted()) gradient_packed_rows<true, registers>(job, tile, packed, other, of_target, r);
    else gradient_packed_rows<false, registers>(job, tile, packed, other, of_target, r);
  });
  for (int r = 0; r < rest && !tile.all_count; r++) {
    if (tile.label[r] < 0) clear_row(job.rows, tile.begin + r);
  }
  gradient_by_class<false, true>(job, tile, other, rest);
  return job.rows.classes <= kMostWithTargets ? rest : 0;
}
#endif

// ---- a tile, whichever way its lanes run -------------------------------------------------------------------------
#if !defined(IMBLOSS_MOVES_LANES)
struct PackedColumns {
  PackedColumns(int, const float*, const float*, const float*) {}
};
#endif

template <class S>
bool columns_are_packed(const ClassColumns<S>& job) {
#if defined(IMBLOSS_MOVES_LANES)
  return rows_are_packed(job.rows);
#else
  return false;
#endif
}

// Calls f(tile's begin, end); the shape alone decides.
template <class S, class F>
void for_tiles(const ClassColumns<S>& job, int64_t begin, int64_t end, F f) {
  constexpr int64_t elements = 64 * 1024, fewest = 32, most = Tile<S>::most;
  const int64_t rows = std::clamp(elements / job.rows.classes / fewest * fewest, fewest, most);
  for (; begin < end; begin += rows) f(begin, std::min(end, begin + rows));
}

// PriorCE of a tile's rows, with the stats that its gradient needs.
template <bool Shifted, class S>
void finish_tile(const ClassColumns<S>& job, Tile<S>& tile, ColumnSums<Accumulate<S>>& sums) {
  using A = Accumulate<S>;
  using V = Vec<A>;
  const int64_t stride = job.rows.stats_stride;
  V loss(0), divisor(0);
  for (int r = 0; r < tile.rows; r += kLanes<A>) {
    const int n = std::min(tile.rows - r, kLanes<A>);
    auto of_rows = [&](const A* values, A fill) { return load_lanes(values + r, 1, n, fill); };
    const V of_target = tile.by_label(Shifted ? job.log_prior : job.prior, r, n);
    const V weight = of_rows(tile.weight, 0), x = of_rows(tile.target_x, 0);
    const auto counts = V(0) < of_rows(tile.counts, 0);
    const V others = select(counts, of_rows(tile.others, 0), V(0));
    Finished<V> f;
    V top(0);
    const double no_detach = 0;
    const Focal cross_entropy(&no_detach);
    if constexpr (Shifted) {
      top = select(counts, of_rows(tile.top, 0), V(0));
      f = finish(cross_entropy, exponent_of<V>(0), weight, A(1), x + of_target - top, others);
    } else {
      f = finish_small(cross_entropy, exponent_of<V>(0), weight, A(1),
                       select(counts, exp_of_small(x) * of_target, V(1)), others);
    }
    if (!job.prior_ce) f.value = f.other = f.target = top = V(0);
    loss = loss + select(counts, f.value, V(0));
    divisor = divisor + weight;
    A* stats = job.rows.stats + tile.begin + r;
    store_lanes(stats + kTop * stride, 1, n, top);
    store_lanes(stats + kOther * stride, 1, n, select(counts, f.other, V(0)));
    store_lanes(stats + kTarget * stride, 1, n, select(counts, f.target, V(0)));
  }
  sums.loss += sum(loss);
  sums.divisor += sum(divisor);
}

// Nothing where rows are not packed.
template <class S>
std::optional<PackedColumns> packed_columns_of(const ClassColumns<S>& job) {
  if constexpr (std::is_same_v<Accumulate<S>, float>) {
    const int classes = static_cast<int>(job.rows.classes);
    if (columns_are_packed(job)) {
      return std::optional<PackedColumns>(std::in_place, classes, job.prior, job.unshifted_slope, job.share);
    }
  }
  return {};
}

template <class S>
bool sum_small_tile(const ClassColumns<S>& job, const PackedColumns* packed, Tile<S>& tile) {
  using A = Accumulate<S>;
#if defined(IMBLOSS_MOVES_LANES)
  if constexpr (std::is_same_v<A, float>) {
    if (packed) return sum_packed(job, *packed, tile) <= kSmallColumnLogit<A>;
  }
#endif
  const A largest = rows_are_adjacent(job.rows)      ? sum_by_row<false>(job, tile)
                    : classes_are_adjacent(job.rows) ? sum_by_class<false, true>(job, tile)
                                                     : sum_by_class<false, false>(job, tile);
  return largest <= kSmallColumnLogit<A>;
}

// Adds the sum of the targets' logits of each class, and their number, to those of the rows from `begin` to `end`.
template <class S>
void sum_targets(const ClassColumns<S>& job, int64_t begin, int64_t end, double* own, double* count) {
  for (int64_t row = begin; row < end; row++) {
    const int64_t y = job.rows.target[row];
    if (y == job.rows.ignore_index || y < 0 || y >= job.rows.classes) continue;
    own[y] += job.target_x[row];
    count[y] += 1;
  }
}

// Adds a block of rows to its sums. Notes in `small`, a byte a tile, which tiles were not shifted.
template <class S>
void sum_columns(const ClassColumns<S>& job, int64_t begin, int64_t end, ColumnSums<Accumulate<S>>& sums, bool* small) {
  const int64_t classes = job.rows.classes;
  const bool dense = rows_are_adjacent(job.rows);
  const auto packed = packed_columns_of(job);
  Tile<S> tile(classes, dense || packed, packed.has_value());
  std::fill_n(sums.total, classes, 0.0);
  BlockSums targets;
  for_tiles(job, begin, end, [&](int64_t first, int64_t last) {
    tile.read(job, first, last, targets);
    if (!packed) tile.read_logits(job);
    *small = !job.small_prior && sum_small_tile(job, packed ? &*packed : nullptr, tile);
    if (packed) tile.read_logits(job);  // now that they are in the cache
    if (*small) {
      finish_tile<false>(job, tile, sums);
    } else if (dense) {
      sum_by_row<true>(job, tile);
      finish_tile<true>(job, tile, sums);
    } else {
      tops_by_class(job, tile);
      sum_by_class<true, false>(job, tile);
      finish_tile<true>(job, tile, sums);
    }
    if (tile.any_counts) add_classes(sums, classes, tile.sum, *small ? nullptr : tile.column_top);
    if (sums.own) {
      const int summed = *small ? tile.summed : 0;
      for (int64_t c = 0; c < classes && summed > 0; c++) {
        sums.own[c] += tile.own[c];
        sums.count[c] += tile.count[c];
      }
      sum_targets(job, first + summed, last, sums.own, sums.count);
    }
    small++;
  });
  sums.bad_row = targets.bad_row;
}

// ---- the classes' share of the loss, and the factors of its gradient -----------------------------------------------
struct Regulariser {
  double alpha, lam, rows;
  int64_t classes;
  bool official;
};

// Of a vector of classes. Returns alpha LADER's terms.
struct ClassTerm {
  Vec<double> value, slope, share;
};
IMBLOSS_INLINE ClassTerm class_term(const Regulariser& r, Vec<double> prior, Vec<double> top, Vec<double> total,
                                    Vec<double> own, Vec<double> count) {
  using V = Vec<double>;
  const V none(0), log_total = select(total == none, V(-kInfinity<double>), log(total));
  V second = top + log_total - std::log(r.rows);
  auto takes_part = none < count;
  if (r.official) {
    second = second - log(prior + 1e-9) + std::log(1.0 / static_cast<double>(r.classes) + 1e-9);
    takes_part = none < V(r.rows);
    count = count + 1e-8;
  }
  V share = select(takes_part, prior * r.alpha, none);
  return {select(takes_part, share * (second + second * second * r.lam - own / count), none),
          select(takes_part, share * (second * (2 * r.lam) + 1) / total, none),
          select(takes_part, share / count, none)};
}

// ---- the gradient ------------------------------------------------------------------------------------------------
// The entries of the targets from a row of the tile on, whatever was written there.
template <bool Shifted, class S>
void store_targets(const ClassColumns<S>& job, const Tile<S>& tile, Accumulate<S> upstream, int first = 0) {
  using A = Accumulate<S>;
  using V = Vec<A>;
  constexpr int lanes = kLanes<A>;
  const A* of_target = job.rows.stats + kTarget * job.rows.stats_stride + tile.begin;
  for (int r = first; r < tile.rows; r += lanes) {
    const int n = std::min(tile.rows - r, lanes);
    auto of_rows = [&](const A* values) { return load_lanes(values + r, 1, n, A(0)); };
    V x = of_rows(tile.target_x);
    if (Shifted) x = x - tile.by_label(job.top, r, n);
    V column = exp(x) * tile.by_label(Shifted ? job.slope : job.unshifted_slope, r, n) * of_rows(tile.importance);
    A grad[lanes];
    store(grad, column - tile.by_label(job.share, r, n) + of_rows(of_target) * (job.row_factor * upstream));
    for (int i = 0; i < n; i++) {
      const int64_t y = tile.label[r + i];
      if (y >= 0) store_one(tile.grad(job, r + i) + y * job.rows.grad_strides.cls, grad[i]);
    }
  }
}

// Writes the gradient of a block of rows. The factors of the classes have the upstream gradient in them. `small`: as
// sum_columns noted it, or null; `known_x`: whether that has filled in the targets' logits.
template <class S>
void columns_gradient(const ClassColumns<S>& job, int64_t begin, int64_t end, Accumulate<S> upstream, const bool* small,
                      bool known_x) {
  using A = Accumulate<S>;
  const bool dense = rows_are_adjacent(job.rows);
  Tile<S> tile(job.rows.classes);
  [[maybe_unused]] const auto packed = packed_columns_of(job);
  BlockSums ignored;
  A other[Tile<S>::most];
  for_tiles(job, begin, end, [&](int64_t first, int64_t last) {
    tile.read(job, first, last, ignored);
    if (!known_x) tile.read_logits(job);
    const A *stats = job.rows.stats + first, factor = job.row_factor * upstream;
    std::copy_n(stats + kTop * job.rows.stats_stride, tile.rows, tile.top);
    for (int r = 0; r < tile.rows; r++) {  // 0 where the row does not count, be the factor infinite
      const A of_row = stats[kOther * job.rows.stats_stride + r];
      other[r] = of_row == 0 ? A(0) : of_row * factor;
    }
    const bool shifted = !small || !*small++;
    int first_target = 0;
    if (shifted && dense) gradient_by_row<true>(job, tile, other);
    else if (shifted) gradient_by_class<true, false>(job, tile, other);
    else if (dense) gradient_by_row<false>(job, tile, other);
#if defined(IMBLOSS_MOVES_LANES)
    else if (packed) {
      if constexpr (std::is_same_v<A, float>) first_target = gradient_packed(job, *packed, tile, other, factor);
    }
#endif
    else if (classes_are_adjacent(job.rows))
      gradient_by_class<false, true>(job, tile, other);
    else gradient_by_class<false, false>(job, tile, other);
    if (shifted) store_targets<true>(job, tile, upstream);
    else store_targets<false>(job, tile, upstream, first_target);
  });
}

}  // namespace imbloss
