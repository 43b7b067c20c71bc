// The operators of sampling on CPU: memory-safety checks, allocation, threads. Beside ops.cpp the only file that knows
// torch; the schemas are in imbloss/_ops.py, the user's arguments are checked in imbloss/sampling.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <functional>
#include <optional>
#include <tuple>

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

}  // namespace
}  // namespace imbloss

STABLE_TORCH_LIBRARY_IMPL(imbloss, CPU, m) { m.impl("neighbors", TORCH_BOX(&imbloss::neighbors_op)); }
