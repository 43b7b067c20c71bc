// Rows, and behind them new ones between two of them: row[parent] + gap (row[neighbour] - row[parent]). In the
// accumulation type, so that half precision is rounded once. Knows no tensors.
#pragma once

#include <algorithm>

#include "simd.h"

namespace imbloss {

template <class S>
struct InterpolatedRows {
  const S* rows;  // (n, d)
  int64_t n, d;
  const int64_t *parent, *neighbour;  // of each new row
  const Accumulate<S>* gap;
  S* out;  // (n + new, d)
};

// Rows [begin, end) of the result; the first new row with an index outside [0, n), or -1.
template <class S>
int64_t interpolated_rows(const InterpolatedRows<S>& job, int64_t begin, int64_t end) {
  using A = Accumulate<S>;
  constexpr int lanes = kLanes<A>;
  const int64_t d = job.d, copied = std::min(end, job.n);
  if (begin < copied) std::copy(job.rows + begin * d, job.rows + copied * d, job.out + begin * d);
  const Part<A> part = first_lanes<A>(static_cast<int>(d % lanes));
  for (int64_t i = std::max(begin, job.n); i < end; i++) {
    const int64_t row = i - job.n, parent = job.parent[row], neighbour = job.neighbour[row];
    if (parent < 0 || parent >= job.n || neighbour < 0 || neighbour >= job.n) return row;
    const S *a = job.rows + parent * d, *b = job.rows + neighbour * d;
    S* out = job.out + i * d;
    const Vec<A> gap(job.gap[row]);
    auto between = [&](Vec<A> from, Vec<A> to) IMBLOSS_INLINE_LAMBDA { return from + gap * (to - from); };
    int64_t c = 0;
    for (; c + lanes <= d; c += lanes) store(out + c, between(load(a + c), load(b + c)));
    if (c < d) store(out + c, part, between(load(a + c, part, A(0)), load(b + c, part, A(0))));
  }
  return -1;
}

}  // namespace imbloss
