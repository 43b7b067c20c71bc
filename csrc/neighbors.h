// Exact k nearest neighbours: docs/math.md, section 6. Tiles of the distance matrix in registers select candidates in
// float32, which are computed again in float64 and certified; a query that is not is searched by differences instead of
// products, and in the end in float64 alone. Exact copies of a point are searched once. Knows no tensors; threads come
// as `parallel(count, f)`, which calls f(0) ... f(count - 1) in any order.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "simd.h"

namespace imbloss {

// A tile is kTileRows queries by kPanel points: its sums fill the registers.
inline constexpr int kTileVectors = 2, kPanel = kTileVectors * kLanes<float>;
inline constexpr int kTileRows = kVectorBytes == 64 ? 12 : 6;
// Queries are packed by blocks; whole panels and whole tiles fit into both sizes.
inline constexpr int64_t kQueryBlock = 192, kDeepQueryBlock = 96, kDeep = 4096;
inline constexpr int64_t kDepth = 512;  // columns summed up at a time: a panel of them stays in the first-level cache
inline constexpr int64_t kSpare = 3;    // candidates beyond k, by which most queries are certified
inline constexpr int64_t kListStep = 16;
inline constexpr int64_t kSymmetric = 4096;    // points from which computing each pair once pays
inline constexpr float kNothing = -1e29f;      // worse than any score
inline constexpr float kPaddingHalf = -1e30f;  // what makes a point that is not there worse still
inline constexpr float kPaddingCoordinate = 1e15f;
static_assert(kQueryBlock % kPanel == 0 && kQueryBlock % kTileRows == 0 && kDeepQueryBlock % kPanel == 0 &&
              kDeepQueryBlock % kTileRows == 0);

// Scores of pairs, the larger the nearer. kProducts: -|a - b|^2 / 2 as a b - |a|^2 / 2 - |b|^2 / 2 of centred points,
// which loses what is small beside |a| and |b|. kDifferences: -|a - b|^2, for twice the instructions.
enum class Form { kProducts, kDifferences };

// Uninitialised, in huge pages where it is large.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    constexpr size_t huge = 2 << 20;
    size_t bytes = std::max<size_t>(count * sizeof(T), 1), alignment = bytes >= 2 * huge ? huge : 64;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    data_.reset(static_cast<T*>(std::aligned_alloc(alignment, bytes)));
    if (!data_) throw std::bad_alloc();
#if defined(__linux__)
    if (alignment == huge) madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
  }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

// Lane 0 is the last one of `before`, lane i is lane i - 1 of v.
template <class R, size_t... I>
IMBLOSS_INLINE R shift_in(R before, R v, std::index_sequence<I...>) {
  return __builtin_shufflevector(before, v, (sizeof...(I) - 1 + I)...);
}

// Puts x, of point `id`, into a descending list; one that is no better than all of it changes nothing. The ids travel
// as floats, whose bits no move changes.
IMBLOSS_INLINE void insert(float* scores, float* ids, int64_t size, float x, int32_t id) {
  constexpr int lanes = kLanes<float>;
  constexpr auto all = std::make_index_sequence<lanes>{};
  const Vec<float> new_score(x), new_id = from_bits<float>(Vec<int32_t>(id));
  for (int64_t at = size - lanes; at >= 0; at -= lanes) {
    const Vec<float> score = load(scores + at), old = load(ids + at);
    Vec<float> before(std::numeric_limits<float>::infinity()), id_before = before;
    if (at > 0) {
      before = load(scores + at - lanes);
      id_before = load(ids + at - lanes);
    }
    Vec<float> shifted, shifted_id;
    shifted.r[0] = shift_in(before.r[0], score.r[0], all);
    shifted_id.r[0] = shift_in(id_before.r[0], old.r[0], all);
    store(scores + at, max(score, min(shifted, new_score)));
    store(ids + at, select(shifted < new_score, shifted_id, select(score < new_score, new_id, old)));
    if (!(score.r[0][0] < x)) return;
  }
}

// Rows of tiles that hold a score worth a look, kept until there are enough of them.
struct Pending {
  static constexpr int kEnough = 96;
  alignas(kVectorBytes) float scores[(kEnough + kTileRows) * kPanel];
  int32_t query[kEnough + kTileRows], point[kEnough + kTileRows];  // of the row, and of its first score
  int count = 0;
  struct Hit {
    float score;
    int32_t list, id;
  };
  std::vector<Hit> hits;
};

// Lists of the best, one a query: `size` scores, then `size` ids. A score above threshold[query], its list's entry
// `last`, is worth a look.
struct Lists {
  int64_t size, last;
  Buffer<float> memory;
  std::vector<float> threshold;

  // Those from `count` on take nothing.
  Lists(int64_t padded, int64_t count, int64_t size_, int64_t last_)
      : size(size_), last(last_), memory(padded * 2 * size_), threshold(padded) {
    reset(count);
  }
  void reset(int64_t count) {
    for (int64_t q = 0; q < static_cast<int64_t>(threshold.size()); q++) {
      threshold[q] = q < count ? kNothing : std::numeric_limits<float>::infinity();
      std::fill_n(scores(q), size, kNothing);
      std::fill_n(scores(q) + size, size, from_bits<float>(Vec<int32_t>(-1)).r[0][0]);
    }
  }
  float* scores(int64_t query) const { return memory.get() + query * 2 * size; }
  int32_t id(int64_t query, int64_t rank) const {
    int32_t bits;
    std::memcpy(&bits, scores(query) + size + rank, sizeof(bits));
    return bits;
  }
  IMBLOSS_INLINE void take(int64_t query, float score, int32_t point) {
    float* list = scores(query);
    insert(list, list + size, size, score, point);
    threshold[query] = list[last];
  }
};

// Columns: whether a score is worth a look for the point as well, which then is a query, too.
template <bool kColumns>
void flush(Pending& pending, Lists& lists) {
  const float* thresholds = lists.threshold.data();
  if (kColumns) pending.hits.clear();
  for (int r = 0; r < pending.count; r++) {
    const float* row = pending.scores + r * kPanel;
    const int32_t query = pending.query[r], point = pending.point[r];
    const auto score = load<kTileVectors>(row);
    for (uint64_t m = lanes_of(Vec<float, kTileVectors>(thresholds[query]) < score); m; m &= m - 1) {
      const int lane = __builtin_ctzll(m);
      if constexpr (kColumns) pending.hits.push_back({row[lane], query, point + lane});
      else lists.take(query, row[lane], point + lane);
    }
    if constexpr (kColumns) {
      for (uint64_t m = lanes_of(load<kTileVectors>(thresholds + point) < score); m; m &= m - 1) {
        const int lane = __builtin_ctzll(m);
        pending.hits.push_back({row[lane], point + lane, query});
        __builtin_prefetch(lists.scores(point + lane), 1);
        __builtin_prefetch(lists.scores(point + lane) + lists.size, 1);
      }
    }
  }
  if constexpr (kColumns) {
    for (const auto& hit : pending.hits) lists.take(hit.list, hit.score, hit.id);
  }
  pending.count = 0;
}

// One tile over `depth` columns: a (depth, kTileRows), b (depth, kPanel). Sums begin at what `before` holds or, without
// that, at the halves; they end in `after` or, without that, among the pending where they are worth a look.
template <Form kForm, bool kColumns>
IMBLOSS_INLINE void tile(const float* a, const float* b, int64_t depth, const float* query_half, const float* half,
                         const float* before, float* after, int64_t query, int64_t point, const Lists& lists,
                         Pending& pending) {
  using Row = Vec<float, kTileVectors>;
  Row sum[kTileRows];
  const bool product = kForm == Form::kProducts && !before;
  const Row halves = product ? load<kTileVectors>(half) : Row(0.0f);
  IMBLOSS_UNROLL
  for (int i = 0; i < kTileRows; i++) sum[i] = product ? halves + Row(query_half[i]) : Row(0.0f);
  for (int64_t k = 0; k < depth; k++, a += kTileRows, b += kPanel) {
    const Row points = load<kTileVectors>(b);
    IMBLOSS_UNROLL
    for (int i = 0; i < kTileRows; i++) {
      if constexpr (kForm == Form::kProducts) {
        sum[i] = Row(a[i]) * points + sum[i];
      } else {
        const Row difference = points - Row(a[i]);
        sum[i] = sum[i] - difference * difference;
      }
    }
  }
  if (before) {
    IMBLOSS_UNROLL
    for (int i = 0; i < kTileRows; i++) sum[i] = sum[i] + load<kTileVectors>(before + i * kPanel);
  }
  if (after) {
    IMBLOSS_UNROLL
    for (int i = 0; i < kTileRows; i++) store(after + i * kPanel, sum[i]);
    return;
  }
  const float* threshold = lists.threshold.data();
  const Row of_points = kColumns ? load<kTileVectors>(threshold + point) : Row(0.0f);
  int count = pending.count;
  IMBLOSS_UNROLL
  for (int i = 0; i < kTileRows; i++) {  // every row is stored, and the next one over it if it held nothing
    Row least(threshold[query + i]);
    if constexpr (kColumns) least = min(least, of_points);
    store(pending.scores + count * kPanel, sum[i]);
    pending.query[count] = static_cast<int32_t>(query + i);
    pending.point[count] = static_cast<int32_t>(point);
    count += lanes_of(least < sum[i]) != 0;
  }
  pending.count = count;
}

// ---- rows in memory ----
// The sum of (a - b)^2 in float64, of float or double.
template <class S>
double squared_distance(const S* a, const S* b, int64_t d) {
  constexpr int lanes = kLanes<double>;
  typedef S Part __attribute__((vector_size(lanes * sizeof(S))));
  auto wide = [](const S* p) IMBLOSS_INLINE_LAMBDA {
    Part part;
    std::memcpy(&part, p, sizeof(part));
    return __builtin_convertvector(part, Register<double>);
  };
  Vec<double, 2> sum(0.0);
  int64_t k = 0;
  for (; k + 2 * lanes <= d; k += 2 * lanes) {
    IMBLOSS_UNROLL
    for (int i = 0; i < 2; i++) {
      const Register<double> difference = wide(a + k + i * lanes) - wide(b + k + i * lanes);
      sum.r[i] += difference * difference;
    }
  }
  double rest = 0;
  for (; k < d; k++) {
    const double difference = static_cast<double>(a[k]) - static_cast<double>(b[k]);
    rest += difference * difference;
  }
  return imbloss::sum(sum) + rest;
}

// Equal for equal rows; 0.0 equals -0.0.
template <class S>
uint64_t hash_of(const S* row, int64_t d) {
  constexpr int lanes = kLanes<S>;
  Register<uint32_t> h{};
  auto mix = [&](Register<S> x) IMBLOSS_INLINE_LAMBDA {
    Register<uint32_t> bits = (Register<uint32_t>)(x + S(0));
    h = (h ^ bits) * 0x9E3779B1u;
    h ^= h >> 15;
  };
  int64_t k = 0;
  for (; k + lanes <= d; k += lanes) {
    Register<S> x;
    std::memcpy(&x, row + k, sizeof(x));
    mix(x);
  }
  if (k < d) {
    Register<S> x{};
    std::memcpy(&x, row + k, (d - k) * sizeof(S));
    mix(x);
  }
  uint64_t all = 0;
  for (size_t i = 0; i < kVectorBytes / sizeof(uint32_t); i++)
    all = (all ^ h[i]) * 0x9E3779B97F4A7C15u, all ^= all >> 29;
  return all;
}

// Exact copies of points as groups, numbered by their first members; nothing where no point has a copy.
struct Groups {
  std::vector<int32_t> first, members;  // of each group; of all groups, one after the other, ascending
  std::vector<int64_t> start;           // where a group's members begin
  bool any() const { return !first.empty(); }
  int64_t count() const { return static_cast<int64_t>(first.size()); }

  template <class S>
  Groups(const S* points, int64_t n, int64_t d, const std::vector<uint64_t>& hashes) {
    uint64_t mask = 1;
    while (mask < 2 * static_cast<uint64_t>(n)) mask *= 2;
    std::vector<int32_t> slots(mask, -1), group(n);
    mask--;
    for (int64_t i = 0; i < n; i++) {
      uint64_t slot = hashes[i] & mask;
      auto same = [&](int64_t j) {
        return hashes[i] == hashes[j] && std::equal(points + i * d, points + (i + 1) * d, points + j * d);
      };
      while (slots[slot] >= 0 && !same(first[slots[slot]])) slot = (slot + 1) & mask;
      if (slots[slot] < 0) {
        slots[slot] = static_cast<int32_t>(first.size());
        first.push_back(static_cast<int32_t>(i));
      }
      group[i] = slots[slot];
    }
    if (count() == n) {
      first.clear();
      return;
    }
    start.assign(first.size() + 1, 0);
    for (int32_t g : group) start[g + 1]++;
    for (size_t g = 0; g < first.size(); g++) start[g + 1] += start[g];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    members.resize(n);
    for (int64_t i = 0; i < n; i++) members[next[group[i]]++] = static_cast<int32_t>(i);
  }
};

// Arguments of a search. Points and queries are contiguous rows of d numbers; no queries: the points are the queries,
// each without itself. exclude: for each query, a point that it may not get; or null.
template <class S>
struct NeighborJob {
  const S* points;
  int64_t n, d;
  const S* queries;
  int64_t m;  // of results
  const int64_t* exclude;
  int64_t k;
  S* distances;             // (m, k)
  int64_t* indices;         // (m, k)
  int64_t* done = nullptr;  // thousandths of the work, for whoever watches
};

template <class S, class Parallel>
class NeighborSearch {
 public:
  NeighborSearch(const NeighborJob<S>& job, int threads, Parallel parallel)
      : job_(job), threads_(threads), parallel_(parallel), groups_(prepare()) {
    own_ = !job.queries;
    searched_ = groups_.any() ? groups_.count() : job.n;
    asked_ = own_ ? searched_ : job.m;
    // an excluded point is searched for, and dropped at the end
    wanted_ = std::min(job.k + (own_ || job.exclude), searched_);
    const int64_t listed = std::min(wanted_ + kSpare, searched_);
    last_ = listed - 1;
    size_ = (listed + kListStep - 1) / kListStep * kListStep;
    block_ = job.d > kDeep ? kDeepQueryBlock : kQueryBlock;
    padded_ = (searched_ + kQueryBlock - 1) / kQueryBlock * kQueryBlock;
  }

  void run() {
    total_ = static_cast<double>(asked_) * searched_;
    Form form = products_are_hopeless() ? Form::kDifferences : Form::kProducts;
    std::vector<int32_t> left = form == Form::kProducts ? select<Form::kProducts>() : select<Form::kDifferences>();
    if (form == Form::kProducts && !left.empty()) left = select_for<Form::kDifferences>(left);
    if (!left.empty()) search_directly(left);
  }

 private:
  struct Found {
    double square;
    int64_t index;
    bool operator<(const Found& o) const { return square < o.square || (square == o.square && index < o.index); }
  };

  // One pass over the rows: mean and largest deviation of the columns, hashes, and whether all is finite.
  Groups prepare() {
    const int64_t d = job_.d, rows = 256, blocks = (job_.n + rows - 1) / rows;
    const int64_t parts = std::min<int64_t>(blocks, 64);  // sums do not depend on the threads
    std::vector<double> sums(parts * d, 0.0);
    std::vector<S> low(parts * d, std::numeric_limits<S>::infinity()), high(parts * d, -low[0]);
    std::vector<uint64_t> hashes(job_.n);
    parallel_(parts, [&](int64_t part) {
      double* sum = &sums[part * d];
      for (int64_t i = job_.n * part / parts; i < job_.n * (part + 1) / parts; i++) {
        const S* row = job_.points + i * d;
        hashes[i] = hash_of(row, d);
        for (int64_t c = 0; c < d; c++) sum[c] += row[c];
        extend(row, &low[part * d], &high[part * d]);
      }
    });
    mean_.assign(d, 0.0);
    double sum_of_sums = 0;
    for (int64_t part = 0; part < parts; part++) {
      for (int64_t c = 0; c < d; c++) {
        mean_[c] += sums[part * d + c] / static_cast<double>(job_.n);
        low[c] = std::min(low[c], low[part * d + c]);
        high[c] = std::max(high[c], high[part * d + c]);
      }
    }
    for (int64_t c = 0; c < d; c++) sum_of_sums += std::abs(mean_[c]);
    if (!std::isfinite(sum_of_sums)) {
      check_finite(job_.points, job_.n, "points");
      for (int64_t c = 0; c < d; c++) mean_[c] = low[c] / 2.0 + high[c] / 2.0;  // sums that overflowed
    }
    for (int64_t q = 0; q < job_.m && job_.queries; q++) {
      const S* row = job_.queries + q * d;
      S all = 0;
      for (int64_t c = 0; c < d; c++) all += row[c] - row[c];  // NaN if one is not finite
      if (!(all == 0)) check_finite(job_.queries, job_.m, "queries");
      extend(row, low.data(), high.data());
    }
    double largest = 0, largest_raw = 0;
    for (int64_t c = 0; c < d; c++) {
      largest = std::max({largest, high[c] - mean_[c], mean_[c] - low[c]});
      largest_raw = std::max<double>({largest_raw, high[c], -static_cast<double>(low[c])});
    }
    auto power = [](double x) { return x > 0 && std::isfinite(x) ? std::ldexp(1.0, -std::ilogb(x) - 1) : 1.0; };
    scale_ = power(largest);
    scale_raw_ = power(largest_raw);
    return Groups(job_.points, job_.n, d, hashes);
  }

  void extend(const S* row, S* low, S* high) const {
    for (int64_t c = 0; c < job_.d; c++) {
      low[c] = row[c] < low[c] ? row[c] : low[c];
      high[c] = row[c] > high[c] ? row[c] : high[c];
    }
  }

  void check_finite(const S* rows, int64_t count, const char* name) const {
    for (int64_t i = 0; i < count; i++) {
      for (int64_t c = 0; c < job_.d; c++) {
        const double x = rows[i * job_.d + c];
        if (!std::isfinite(x)) {
          throw std::invalid_argument(std::string("expected ") + name + " to be finite, but got " +
                                      (std::isnan(x) ? "nan"
                                       : x > 0       ? "inf"
                                                     : "-inf") +
                                      " in row " + std::to_string(i));
        }
      }
    }
  }

  const S* point(int64_t i) const { return job_.points + (groups_.any() ? groups_.first[i] : i) * job_.d; }
  const S* query(int64_t q) const { return own_ ? point(q) : job_.queries + q * job_.d; }

  // ---- panels ----
  // A row as kernels read it: column c at out[c * step]. Products: centred, and the result is -|row|^2 / 2.
  // Differences: float32 as it is, since centring would round it; float64 has to be rounded to float32 and centring
  // helps.
  template <Form kForm>
  float pack(const S* row, float* out, int64_t step) const {
    if constexpr (kForm == Form::kDifferences && std::is_same_v<S, float>) {
      const float scale = static_cast<float>(scale_raw_);
      for (int64_t c = 0; c < job_.d; c++) out[c * step] = row[c] * scale;
      return 0;
    } else {
      double squares = 0;
      for (int64_t c = 0; c < job_.d; c++) {
        const float x = static_cast<float>((row[c] - mean_[c]) * scale_);
        out[c * step] = x;
        squares += static_cast<double>(x) * x;
      }
      return static_cast<float>(-squares / 2);
    }
  }

  template <Form kForm>
  struct Panels {
    Buffer<float> rows;         // panels of (d, kPanel)
    std::vector<float> halves;  // -|b|^2 / 2
    double longest = 0;         // of |b|
    Panels(int64_t padded, int64_t d) : rows(padded * d), halves(padded, 0.0f) {}
  };

  template <Form kForm>
  Panels<kForm> pack_points() {
    Panels<kForm> panels(padded_, job_.d);
    parallel_(padded_ / kQueryBlock, [&](int64_t block) {
      for (int64_t i = block * kQueryBlock; i < (block + 1) * kQueryBlock; i++) {
        float* out = panels.rows.get() + i / kPanel * kPanel * job_.d + i % kPanel;
        if (i < searched_) {
          panels.halves[i] = pack<kForm>(point(i), out, kPanel);
        } else {
          const float padding = kForm == Form::kProducts ? 0.0f : kPaddingCoordinate;
          for (int64_t c = 0; c < job_.d; c++) out[c * kPanel] = padding;
          panels.halves[i] = kPaddingHalf;
        }
      }
    });
    for (int64_t i = 0; i < searched_; i++) {
      panels.longest = std::max(panels.longest, std::sqrt(-2.0 * panels.halves[i]));
    }
    return panels;
  }

  // What a thread needs for a block of queries.
  struct Block {
    Buffer<float> rows;         // tiles of (d, kTileRows)
    std::vector<float> halves;  // of the queries
    std::vector<float> sums;    // of tiles, between one stretch of columns and the next
    Pending pending;
    Block(int64_t block, int64_t d) : rows(block * d), halves(block), sums(d > kDepth ? block * kQueryBlock : 0) {}
  };

  template <Form kForm, class RowOf>
  void pack_queries(Block& block, int64_t count, RowOf row) const {
    for (int64_t i = 0; i < block_; i++) {
      float* out = block.rows.get() + i / kTileRows * kTileRows * job_.d + i % kTileRows;
      if (i < count) {
        block.halves[i] = pack<kForm>(row(i), out, kTileRows);
      } else {
        const float padding = kForm == Form::kProducts ? 0.0f : -kPaddingCoordinate;
        for (int64_t c = 0; c < job_.d; c++) out[c * kTileRows] = padding;
        block.halves[i] = kPaddingHalf;
      }
    }
  }

  // A block of queries, the first of which has list `query`, against points [begin, end).
  template <Form kForm, bool kColumns>
  void sweep(Block& block, const Panels<kForm>& panels, int64_t begin, int64_t end, int64_t query, Lists& lists) {
    const int64_t d = job_.d;
    Pending& pending = block.pending;
    for (int64_t group = begin; group < end; group += kQueryBlock) {
      const int64_t group_end = std::min(end, group + kQueryBlock);
      for (int64_t k = 0; k < d; k += kDepth) {
        const int64_t depth = std::min(kDepth, d - k);
        const bool first = k == 0, last = k + depth == d;
        for (int64_t j = group; j < group_end; j += kPanel) {
          const float* b = panels.rows.get() + j * d + k * kPanel;
          float* sums = d > kDepth ? &block.sums[(j - group) * block_] : nullptr;
          for (int64_t i = 0; i < block_; i += kTileRows) {
            tile<kForm, kColumns>(block.rows.get() + i * d + k * kTileRows, b, depth, &block.halves[i],
                                  &panels.halves[j], first ? nullptr : sums + i * kPanel,
                                  last ? nullptr : sums + i * kPanel, query + i, j, lists, pending);
            if (pending.count >= Pending::kEnough) flush<kColumns>(pending, lists);
          }
        }
      }
    }
    flush<kColumns>(pending, lists);
    report(static_cast<double>(end - begin) * block_ * (kColumns ? 2 : 1));
  }

  void report(double pairs) {
    if (!job_.done) return;
    const int64_t so_far = done_.fetch_add(static_cast<int64_t>(pairs)) + static_cast<int64_t>(pairs);
    __atomic_store_n(job_.done, std::min<int64_t>(999, static_cast<int64_t>(1000 * so_far / total_)), __ATOMIC_RELAXED);
  }

  // ---- selection ----
  // Queries that are left uncertain.
  template <Form kForm>
  std::vector<int32_t> select() {
    if (!own_ || searched_ < kSymmetric) {
      std::vector<int32_t> every(asked_);
      for (int64_t q = 0; q < asked_; q++) every[q] = static_cast<int32_t>(q);
      return select_for<kForm>(every);
    }
    return select_pairs<kForm>();
  }

  template <Form kForm>
  std::vector<int32_t> select_for(const std::vector<int32_t>& which) {
    const Panels<kForm> panels = pack_points<kForm>();
    return select_for<kForm>(which, panels);
  }

  // Block by block, each against all points.
  template <Form kForm>
  std::vector<int32_t> select_for(const std::vector<int32_t>& which, const Panels<kForm>& panels) {
    const int64_t count = static_cast<int64_t>(which.size());
    // small blocks where there are few queries, so that all threads have some
    const int64_t blocks = (count + block_ - 1) / block_;
    std::vector<uint8_t> uncertain(count, 0);
    parallel_(blocks, [&](int64_t b) {
      const int64_t begin = b * block_, size = std::min(block_, count - begin);
      auto block = std::make_unique<Block>(block_, job_.d);
      Lists lists(block_, size, size_, last_);
      pack_queries<kForm>(*block, size, [&](int64_t i) { return query(which[begin + i]); });
      sweep<kForm, false>(*block, panels, 0, padded_, 0, lists);
      Scratch scratch;
      for (int64_t i = 0; i < size; i++) {
        uncertain[begin + i] = !finish<kForm>(which[begin + i], lists, i, block->halves[i], panels.longest, scratch);
      }
    });
    return those(which, uncertain);
  }

  // Each pair once: as a tournament of parts, in whose rounds every part meets one other, so that no two threads touch
  // the same lists.
  template <Form kForm>
  std::vector<int32_t> select_pairs() {
    const Panels<kForm> panels = pack_points<kForm>();
    const int64_t blocks = (searched_ + kQueryBlock - 1) / kQueryBlock;
    const int64_t parts = std::max<int64_t>(2, std::min<int64_t>(2 * threads_, blocks / 2 * 2));
    auto begin_of = [&](int64_t part) { return blocks * part / parts * kQueryBlock; };
    Lists lists(padded_, searched_, size_, last_);
    parallel_(parts, [&](int64_t part) {
      auto block = std::make_unique<Block>(block_, job_.d);
      for (int64_t i = begin_of(part); i < begin_of(part + 1); i += block_) {
        pack_own<kForm>(*block, i);
        sweep<kForm, false>(*block, panels, i, i + block_, i, lists);
        sweep<kForm, true>(*block, panels, i + block_, begin_of(part + 1), i, lists);
      }
    });
    for (int64_t round = 0; round < parts - 1; round++) {
      parallel_(parts / 2, [&](int64_t match) {
        auto seat = [&](int64_t s) { return s == 0 ? 0 : 1 + (s - 1 + round) % (parts - 1); };  // part 0 stays seated
        const int64_t one = seat(match), other = seat(parts - 1 - match);
        auto block = std::make_unique<Block>(block_, job_.d);
        for (int64_t i = begin_of(one); i < begin_of(one + 1); i += block_) {
          pack_own<kForm>(*block, i);
          sweep<kForm, true>(*block, panels, begin_of(other), begin_of(other + 1), i, lists);
        }
      });
    }
    std::vector<int32_t> every(asked_);
    std::vector<uint8_t> uncertain(asked_, 0);
    const int64_t step = 256;
    parallel_((asked_ + step - 1) / step, [&](int64_t b) {
      Scratch scratch;
      for (int64_t q = b * step; q < std::min(asked_, (b + 1) * step); q++) {
        every[q] = static_cast<int32_t>(q);
        uncertain[q] = !finish<kForm>(q, lists, q, panels.halves[q], panels.longest, scratch);
      }
    });
    return those(every, uncertain);
  }

  template <Form kForm>
  void pack_own(Block& block, int64_t begin) const {
    pack_queries<kForm>(block, std::min(block_, searched_ - begin), [&](int64_t i) { return point(begin + i); });
  }

  // Whether most of a few queries, spread over all, stay uncertain: products then cost time for nothing.
  bool products_are_hopeless() {
    if (asked_ < 2 * kSymmetric) return false;
    const int64_t sample = kDeepQueryBlock;
    std::vector<int32_t> few(sample);
    for (int64_t i = 0; i < sample; i++) few[i] = static_cast<int32_t>(asked_ * i / sample);
    const Panels<Form::kProducts> panels = pack_points<Form::kProducts>();
    return 2 * select_for<Form::kProducts>(few, panels).size() > static_cast<size_t>(sample);
  }

  static std::vector<int32_t> those(const std::vector<int32_t>& which, const std::vector<uint8_t>& chosen) {
    std::vector<int32_t> found;
    for (size_t i = 0; i < which.size(); i++) {
      if (chosen[i]) found.push_back(which[i]);
    }
    return found;
  }

  // ---- the end of a query ----
  struct Scratch {
    std::vector<Found> found, expanded;
  };

  // Computes the candidates again and, if they are certain, writes the result.
  template <Form kForm>
  bool finish(int64_t q, const Lists& lists, int64_t list, double half, double longest, Scratch& scratch) {
    auto& found = scratch.found;
    found.clear();
    const S* row = query(q);
    for (int64_t rank = 0; rank <= last_; rank++) {
      const int32_t id = lists.id(list, rank);
      if (id >= 0) found.push_back({squared_distance(row, point(id), job_.d), id});
    }
    if (static_cast<int64_t>(found.size()) < wanted_) return false;
    std::sort(found.begin(), found.end());
    found.resize(wanted_);
    if (last_ + 1 < searched_ && !is_certain<kForm>(found.back().square, lists.scores(list)[last_], half, longest)) {
      return false;
    }
    write(q, scratch);
    return true;
  }

  // Whether every point that is not listed, whose score is no better than `score`, is farther than `kth`, squared.
  // docs/math.md, section 6.
  template <Form kForm>
  bool is_certain(double kth, double score, double half, double longest) const {
    constexpr double unit = 0x1p-24, tiny = 0x1p-120;
    const double depth = static_cast<double>(std::min(job_.d, kDepth) + (job_.d + kDepth - 1) / kDepth + 8);
    const bool raw = kForm == Form::kDifferences && std::is_same_v<S, float>;
    const double scale = raw ? scale_raw_ : scale_;
    kth *= scale * scale;
    // points that are longer are farther than the k-th
    const double length = std::sqrt(-2 * half), reach = std::min(longest, length + std::sqrt(kth));
    const double both = 1.001 * (length + reach);
    if (kForm == Form::kProducts) return kth / 2 < -score - depth * unit * both * both / 2 - tiny;
    const double rounded = raw ? 0 : unit * both;  // of the points themselves
    const double nearest = std::sqrt(std::max(0.0, -score * (1 - depth * unit) - tiny)) - rounded;
    return nearest > 0 && kth < nearest * nearest;
  }

  // scratch.found, in order, as the result of query q, and of its copies.
  void write(int64_t q, Scratch& scratch) {
    if (!groups_.any()) {
      write_row(q, own_ ? q : job_.exclude ? job_.exclude[q] : -1, scratch.found);
    } else if (!own_) {
      const int64_t exclude = job_.exclude ? job_.exclude[q] : -1;
      expand(exclude, scratch);
      write_row(q, exclude, scratch.expanded);
    } else {
      for (int64_t i = groups_.start[q]; i < groups_.start[q + 1]; i++) {
        expand(groups_.members[i], scratch);
        write_row(groups_.members[i], groups_.members[i], scratch.expanded);
      }
    }
  }

  // The members of the groups found, up to k at least and in order.
  void expand(int64_t exclude, Scratch& scratch) const {
    auto& all = scratch.expanded;
    all.clear();
    for (const Found& group : scratch.found) {
      if (static_cast<int64_t>(all.size()) >= job_.k && group.square > all.back().square) break;
      int64_t taken = 0;
      for (int64_t i = groups_.start[group.index]; i < groups_.start[group.index + 1] && taken < job_.k; i++) {
        if (groups_.members[i] == exclude) continue;
        all.push_back({group.square, groups_.members[i]});
        taken++;
      }
    }
    std::sort(all.begin(), all.end());
  }

  void write_row(int64_t row, int64_t exclude, const std::vector<Found>& found) {
    int64_t at = row * job_.k;
    const int64_t end = at + job_.k;
    for (size_t i = 0; at < end; i++) {
      if (found[i].index == exclude) continue;
      job_.distances[at] = static_cast<S>(std::sqrt(found[i].square));
      job_.indices[at++] = found[i].index;
    }
  }

  // ---- without any selection ----
  // All distances in float64, by blocks of queries and points.
  void search_directly(const std::vector<int32_t>& which) {
    constexpr int lanes = kLanes<double>, rows = 4;
    const int64_t d = job_.d, count = static_cast<int64_t>(which.size());
    const int64_t per_block = std::max<int64_t>(rows, std::min<int64_t>(64, count / (4 * threads_) / rows * rows));
    parallel_((count + per_block - 1) / per_block, [&](int64_t b) {
      const int64_t begin = b * per_block, size = std::min(per_block, count - begin);
      Buffer<double> panel(lanes * d);
      std::vector<std::vector<Found>> best(size);
      for (int64_t j = 0; j < searched_; j += lanes) {
        const int there = static_cast<int>(std::min<int64_t>(lanes, searched_ - j));
        for (int l = 0; l < lanes; l++) {
          const S* row = point(j + std::min(l, there - 1));
          for (int64_t c = 0; c < d; c++) panel[c * lanes + l] = row[c];
        }
        for (int64_t i = 0; i < size; i += rows) {
          const S* row[rows];
          for (int r = 0; r < rows; r++) row[r] = query(which[begin + std::min(i + r, size - 1)]);
          Vec<double> sum[rows] = {0.0, 0.0, 0.0, 0.0};
          for (int64_t c = 0; c < d; c++) {
            const Vec<double> there_ = load(panel.get() + c * lanes);
            IMBLOSS_UNROLL
            for (int r = 0; r < rows; r++) {
              const Vec<double> difference = there_ - Vec<double>(static_cast<double>(row[r][c]));
              sum[r] = sum[r] + difference * difference;
            }
          }
          for (int r = 0; r < rows && i + r < size; r++) {
            for (int l = 0; l < there; l++) keep(best[i + r], {sum[r].r[0][l], j + l});
          }
        }
      }
      Scratch scratch;
      for (int64_t i = 0; i < size; i++) {
        scratch.found = best[i];
        write(which[begin + i], scratch);
      }
    });
  }

  // Points come in order, so that an equal one is behind those that are there.
  void keep(std::vector<Found>& best, Found one) const {
    const bool full = static_cast<int64_t>(best.size()) == wanted_;
    if (full && !(one.square < best.back().square)) return;
    if (full) best.pop_back();
    best.insert(std::upper_bound(best.begin(), best.end(), one), one);
  }

  const NeighborJob<S>& job_;
  const int threads_;
  Parallel parallel_;
  std::vector<double> mean_;
  double scale_ = 1, scale_raw_ = 1;  // powers of two that bring the largest coordinates near 1
  Groups groups_;
  bool own_;
  int64_t searched_, asked_, padded_;  // points without copies; queries; and with padding
  int64_t wanted_, last_, size_, block_;
  double total_ = 1;
  std::atomic<int64_t> done_{0};
};

template <class S, class Parallel>
void search_neighbors(const NeighborJob<S>& job, int threads, Parallel parallel) {
  NeighborSearch<S, Parallel>(job, threads, parallel).run();
}

}  // namespace imbloss
