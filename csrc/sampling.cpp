// The operators of sampling on CPU: memory-safety checks, allocation, threads. Beside ops.cpp the only file that knows
// torch; the schemas are in imbloss/_ops.py, the user's arguments are checked in imbloss/sampling.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
#include <functional>
#include <optional>
#include <tuple>

#include "interpolated_rows.h"
#include "neighbors.h"

namespace imbloss {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_rows(const Tensor& rows, const Tensor& points, const char* name) {
  STD_TORCH_CHECK(rows.is_cpu() && rows.dim() == 2 && rows.is_contiguous() &&
                      rows.scalar_type() == points.scalar_type() && rows.size(1) == points.size(1),
                  "expected ", name, " to be contiguous rows on the CPU, of one dtype and length");
}

const int64_t* numbers_in(const std::optional<Tensor>& tensor, int64_t count, const char* name) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(tensor->is_cpu() && tensor->is_contiguous() && tensor->scalar_type() == ScalarType::Long &&
                      tensor->numel() == count,
                  "expected ", name, " to be a contiguous CPU tensor of ", count, " int64 numbers");
  return static_cast<const int64_t*>(tensor->const_data_ptr());
}

// Calls f(0) ... f(count - 1) on torch's threads; an exception comes out of the call.
void parallel(int64_t count, const std::function<void(int64_t)>& f) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) f(i);
  });
}

template <class S>
void search(const Tensor& points, const std::optional<Tensor>& queries, const int64_t* exclude, int64_t k,
            const Tensor& distances, const Tensor& indices, int64_t* done) {
  auto rows = [](const Tensor& tensor) { return static_cast<const S*>(tensor.const_data_ptr()); };
  NeighborJob<S> job{rows(points),
                     points.size(0),
                     points.size(1),
                     queries ? rows(*queries) : nullptr,
                     distances.size(0),
                     exclude,
                     k,
                     static_cast<S*>(distances.mutable_data_ptr()),
                     static_cast<int64_t*>(indices.mutable_data_ptr()),
                     done};
  search_neighbors(job, static_cast<int>(torch::stable::get_num_threads()), parallel);
}

std::tuple<Tensor, Tensor> neighbors_op(Tensor points, std::optional<Tensor> queries, std::optional<Tensor> exclude,
                                        int64_t k, std::optional<Tensor> done) {
  check_rows(points, points, "points");
  if (queries) check_rows(*queries, points, "queries");
  const int64_t n = points.size(0), m = queries ? queries->size(0) : n;
  STD_TORCH_CHECK(points.size(1) > 0, "expected points of at least one column");
  STD_TORCH_CHECK(n < std::numeric_limits<int32_t>::max() / 2 && m < std::numeric_limits<int32_t>::max() / 2,
                  "expected fewer than 2^30 points and queries");
  STD_TORCH_CHECK(queries || !exclude, "expected exclude with queries alone");
  STD_TORCH_CHECK(k > 0 && k <= n - (!queries || exclude), "expected k of at most the points there are, but got ", k);
  const int64_t* excluded = numbers_in(exclude, m, "exclude");
  numbers_in(done, 1, "done");
  const int64_t shape[] = {m, k};
  Tensor distances = torch::stable::new_empty(points, {shape, 2});
  Tensor indices = torch::stable::new_empty(points, {shape, 2}, ScalarType::Long);
  auto* counter = done ? static_cast<int64_t*>(done->mutable_data_ptr()) : nullptr;
  if (m == 0) return {distances, indices};
  switch (points.scalar_type()) {
    case ScalarType::Float:
      search<float>(points, queries, excluded, k, distances, indices, counter);
      break;
    case ScalarType::Double:
      search<double>(points, queries, excluded, k, distances, indices, counter);
      break;
    default:
      throw std::invalid_argument("expected points of dtype float32 or float64");
  }
  return {distances, indices};
}

// Asks for huge pages inside a new tensor's memory: faults of small ones cost more than what is written into them.
void advise_huge_pages(const Tensor& tensor, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t huge = 2 << 20;
  const auto start = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t begin = (start + huge - 1) / huge * huge, end = (start + bytes) / huge * huge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // where it fails, all is well
#endif
}

template <class S>
Tensor interpolated(const Tensor& rows, const int64_t* parent, const int64_t* neighbour, const Tensor& gap) {
  using A = Accumulate<S>;
  constexpr ScalarType wide = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(gap.is_cpu() && gap.is_contiguous() && gap.scalar_type() == wide,
                  "expected gap to be a contiguous CPU tensor in the accumulation dtype");
  const int64_t n = rows.size(0), d = rows.size(1), all = n + gap.numel();
  const int64_t shape[] = {all, d};
  Tensor out = torch::stable::new_empty(rows, {shape, 2});
  advise_huge_pages(out, all * d * static_cast<int64_t>(sizeof(S)));
  const InterpolatedRows<S> job{static_cast<const S*>(rows.const_data_ptr()),
                                n,
                                d,
                                parent,
                                neighbour,
                                static_cast<const A*>(gap.const_data_ptr()),
                                static_cast<S*>(out.mutable_data_ptr())};
  std::atomic<int64_t> bad{-1};
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / d);
  torch::stable::parallel_for(0, all, grain, [&](int64_t begin, int64_t end) {
    const int64_t row = interpolated_rows(job, begin, end);
    if (row >= 0) bad = row;
  });
  if (bad >= 0) throw std::out_of_range("expected parent and neighbour to be indices of rows");
  return out;
}

Tensor interpolated_rows_op(Tensor rows, Tensor parent, Tensor neighbour, Tensor gap) {
  check_rows(rows, rows, "rows");
  STD_TORCH_CHECK(rows.size(1) > 0, "expected rows of at least one column");
  const int64_t *from = numbers_in(parent, gap.numel(), "parent"),
                *to = numbers_in(neighbour, gap.numel(), "neighbour");
  switch (rows.scalar_type()) {
    case ScalarType::Float:
      return interpolated<float>(rows, from, to, gap);
    case ScalarType::Double:
      return interpolated<double>(rows, from, to, gap);
    case ScalarType::BFloat16:
      return interpolated<BFloat16>(rows, from, to, gap);
    case ScalarType::Half:
      return interpolated<Float16>(rows, from, to, gap);
    default:
      throw std::invalid_argument("expected rows of dtype float64, float32, bfloat16 or float16");
  }
}

}  // namespace
}  // namespace imbloss

STABLE_TORCH_LIBRARY_IMPL(imbloss, CPU, m) {
  m.impl("neighbors", TORCH_BOX(&imbloss::neighbors_op));
  m.impl("interpolated_rows", TORCH_BOX(&imbloss::interpolated_rows_op));
}
