// The operators on CPU: memory-safety checks, allocation, threads. The only file that knows torch, by its stable ABI;
// the schemas are in imbloss/_ops.py, which also checks arguments in the user's words.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "softmax_rows.h"

namespace imbloss {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

enum Reduction : int64_t { kNone, kMean, kSum };  // as in imbloss/_ops.py

template <class S>
constexpr ScalarType kScalarType = std::is_same_v<S, double>     ? ScalarType::Double
                                   : std::is_same_v<S, float>    ? ScalarType::Float
                                   : std::is_same_v<S, BFloat16> ? ScalarType::BFloat16
                                                                 : ScalarType::Half;

int32_t shim_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    default:
      return aoti_torch_dtype_float16();
  }
}

// Calls f with a value of the storage type of `dtype`.
template <class F>
auto with_storage(ScalarType dtype, F f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Float:
      return f(float{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Half:
      return f(Float16{});
    default:
      throw std::invalid_argument("expected logits of dtype float64, float32, bfloat16 or float16");
  }
}

// The data of an optional operand that must be `count` numbers of type T, one after another.
template <class T>
const T* data_of(const MaybeTensor& tensor, const char* name, ScalarType dtype, int64_t count) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(
      tensor->is_cpu() && tensor->scalar_type() == dtype && tensor->is_contiguous() && tensor->numel() == count,
      "expected ", name, " to be a contiguous CPU tensor of ", count, " elements in the accumulation dtype");
  return static_cast<const T*>(tensor->const_data_ptr());
}

// The number in a tensor of one element.
double number_in(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.numel() == 1, "expected normalizer to be a CPU tensor of one element");
  const void* p = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return *static_cast<const double*>(p);
    case ScalarType::Float:
      return *static_cast<const float*>(p);
    case ScalarType::Long:
      return static_cast<double>(*static_cast<const int64_t*>(p));
    default:
      throw std::invalid_argument("expected normalizer of dtype float64, float32 or int64");
  }
}

bool fill_new_tensors = false;  // with NaN: tests see what a kernel failed to write

// By the C shim: torch::stable's new_empty looks its operator up by name, at half a microsecond a call.
Tensor new_tensor(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), shim_dtype(dtype),
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  if (fill_new_tensors) torch::stable::fill_(tensor, std::numeric_limits<double>::quiet_NaN());
  return tensor;
}
Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t d = sizes.size(); d-- > 0; step *= std::max<int64_t>(sizes[d], 1)) strides[d] = step;
  return new_tensor(sizes, strides, dtype);
}

// The strides of x where its elements fill one block of memory in any order of dimensions, else contiguous.
Tensor new_tensor_like(const Tensor& x) {
  const std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end()), strides(x.strides().begin(), x.strides().end());
  if (!x.is_contiguous()) {
    std::vector<size_t> by_stride;
    for (size_t d = 0; d < sizes.size(); d++)
      if (sizes[d] != 1) by_stride.push_back(d);
    std::sort(by_stride.begin(), by_stride.end(), [&](size_t a, size_t b) { return strides[a] < strides[b]; });
    int64_t step = 1;
    bool dense = true;
    for (size_t d : by_stride) {
      dense = dense && strides[d] == step;
      step *= sizes[d];
    }
    if (dense) return new_tensor(sizes, strides, x.scalar_type());
  }
  return new_tensor(sizes, x.scalar_type());
}

// (N, C, d1, ...) as (outer, classes, inner); false where the dimensions after C do not step evenly.
bool row_strides(const Tensor& x, Strides& strides, int64_t& inner) {
  const int64_t dim = x.dim();
  const auto sizes = x.sizes(), steps = x.strides();
  inner = 1;
  if (dim == 1) {
    strides = {0, steps[0], 0};
    return true;
  }
  strides = {steps[0], steps[1], 0};
  for (int64_t d = dim - 1; d >= 2; d--) {
    if (sizes[d] == 1) continue;
    if (inner == 1) strides.inner = steps[d];
    else if (steps[d] != strides.inner * inner) return false;
    inner *= sizes[d];
  }
  return true;
}

// Splits rows into blocks by the shape alone, so that sums do not depend on the number of threads.
template <class F>
void for_blocks(int64_t rows, int64_t classes, std::vector<BlockSums>& blocks, F f) {
  constexpr int64_t block_elements = 32 * 1024, whole_vectors = 16;
  int64_t block_rows = std::max<int64_t>(1, block_elements / classes);
  if (block_rows > whole_vectors) block_rows -= block_rows % whole_vectors;
  const int64_t count = (rows + block_rows - 1) / block_rows;
  blocks.assign(count, {});
  auto run = [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; b++) f(b * block_rows, std::min(rows, (b + 1) * block_rows), blocks[b]);
  };
  if (count <= 1) run(0, count);
  else torch::stable::parallel_for(0, count, 1, run);
}

BlockSums merged(const std::vector<BlockSums>& blocks) {
  BlockSums all;
  for (const BlockSums& block : blocks) {
    all.loss += block.loss;
    if (all.bad_row < 0) all.bad_row = block.bad_row;
  }
  return all;
}

// The operands of softmax_rows and their checks; keeps alive what it points to.
struct Operands {
  Tensor logits, target;
  std::vector<double> gammas;
  int64_t rows, classes, inner;
  Strides strides;

  Operands(Tensor x, Tensor y) : logits(std::move(x)), target(std::move(y)) {
    const int64_t dim = logits.dim();
    STD_TORCH_CHECK(logits.is_cpu() && target.is_cpu(), "expected logits and target on the CPU");
    STD_TORCH_CHECK(dim >= 1, "expected logits of at least one dimension");
    STD_TORCH_CHECK(target.scalar_type() == ScalarType::Long, "expected target of dtype int64");
    classes = logits.size(dim == 1 ? 0 : 1);
    STD_TORCH_CHECK(classes > 0, "expected logits of at least one class");
    rows = logits.numel() / classes;
    STD_TORCH_CHECK(target.numel() == rows, "expected target of ", rows, " elements, but got ", target.numel());
    if (!row_strides(logits, strides, inner)) {
      logits = torch::stable::contiguous(logits);
      row_strides(logits, strides, inner);
    }
    if (!target.is_contiguous()) target = torch::stable::contiguous(target);
  }

  template <class S>
  SoftmaxRows<S> job(int64_t ignore_index, const MaybeTensor& scale, const MaybeTensor& bias) const {
    using A = Accumulate<S>;
    SoftmaxRows<S> job{};
    job.inner = inner;
    job.classes = classes;
    job.ignore_index = ignore_index;
    job.logits = static_cast<const S*>(logits.const_data_ptr());
    job.logits_strides = strides;
    job.target = static_cast<const int64_t*>(target.const_data_ptr());
    job.scale = data_of<A>(scale, "scale", kScalarType<A>, classes);
    job.bias = data_of<A>(bias, "bias", kScalarType<A>, classes);
    job.inverse_divisor = 1;
    return job;
  }

  // A gradient with the logits' shape and, where that is even, their strides.
  template <class S>
  Tensor new_grad(SoftmaxRows<S>& job) const {
    Tensor grad = new_tensor_like(logits);
    int64_t same;
    STD_TORCH_CHECK(row_strides(grad, job.grad_strides, same), "a gradient whose dimensions do not step evenly");
    job.grad = static_cast<S*>(grad.mutable_data_ptr());
    return grad;
  }

  void check_target(const BlockSums& sums, int64_t ignore_index) const {
    if (sums.bad_row < 0) return;
    const int64_t got = static_cast<const int64_t*>(target.const_data_ptr())[sums.bad_row];
    throw std::out_of_range("expected target in [0, " + std::to_string(classes) +
                            ") or ignore_index=" + std::to_string(ignore_index) + ", but got " + std::to_string(got) +
                            " at index " + std::to_string(sums.bad_row));
  }
};

template <class T>
std::vector<double> as_doubles(const Tensor& tensor) {
  const T* p = static_cast<const T*>(tensor.const_data_ptr());
  return std::vector<double>(p, p + tensor.numel());
}

// The loss and what its backward needs: the rows' stats or, with `keep_grad`, the gradient itself.
std::tuple<Tensor, Tensor> softmax_rows_op(Tensor logits, Tensor target, MaybeTensor weight, MaybeTensor sample_weight,
                                           MaybeTensor scale, MaybeTensor bias, MaybeTensor margin, MaybeTensor gammas,
                                           MaybeTensor normalizer, double gamma, std::optional<double> divisor,
                                           int64_t ignore_index, int64_t reduction, std::string policy,
                                           std::vector<double> params, std::optional<ScalarType> loss_dtype,
                                           bool keep_grad) {
  Operands operands(std::move(logits), std::move(target));
  const int64_t rows = operands.rows, classes = operands.classes;
  STD_TORCH_CHECK(!keep_grad || reduction != kNone, "expected a reduction where keep_grad is set");
  return with_storage(operands.logits.scalar_type(), [&](auto storage) -> std::tuple<Tensor, Tensor> {
    using S = decltype(storage);
    using A = Accumulate<S>;
    SoftmaxRows<S> job = operands.job<S>(ignore_index, scale, bias);
    job.margin = data_of<A>(margin, "margin", kScalarType<A>, classes);
    job.weight = data_of<A>(weight, "weight", kScalarType<A>, classes);
    job.sample_weight = data_of<A>(sample_weight, "sample_weight", kScalarType<A>, rows);
    job.gamma = gamma;
    if (gammas) {
      const bool is_double = gammas->scalar_type() == ScalarType::Double;
      data_of<void>(gammas, "gamma", is_double ? ScalarType::Double : ScalarType::Float, classes);
      operands.gammas = is_double ? as_doubles<double>(*gammas) : as_doubles<float>(*gammas);
      job.gammas = operands.gammas.data();
    }

    std::vector<BlockSums> blocks;
    double total_weight = 1;
    if (reduction == kMean) {
      if (divisor) {
        total_weight = *divisor;
      } else if (normalizer) {
        total_weight = number_in(*normalizer);
      } else {
        for_blocks(rows, 1, blocks, [&](int64_t begin, int64_t end, BlockSums& sums) {
          for (int64_t row = begin; row < end; row++) {
            const int64_t y = target_of(job, row, sums);
            if (y < 0) continue;
            sums.loss +=
                (job.weight ? double(job.weight[y]) : 1) * (job.sample_weight ? double(job.sample_weight[row]) : 1);
          }
        });
        BlockSums sums = merged(blocks);
        operands.check_target(sums, ignore_index);
        total_weight = sums.loss;
      }
      job.inverse_divisor = static_cast<A>(1 / total_weight);
    }

    const auto shape = operands.target.sizes();
    Tensor loss =
        reduction == kNone ? new_tensor({shape.begin(), shape.end()}, kScalarType<A>) : new_tensor({}, kScalarType<A>);
    A* losses = static_cast<A*>(loss.mutable_data_ptr());
    if (reduction == kNone) job.loss = losses;
    Tensor kept = keep_grad ? operands.new_grad(job) : new_tensor({kNumRowStats, rows}, kScalarType<A>);
    if (!keep_grad) {
      job.stats = static_cast<A*>(kept.mutable_data_ptr());
      job.stats_stride = rows;
    }
    with_policy(policy, params, [&](auto f) {
      for_blocks(rows, classes, blocks,
                 [&](int64_t begin, int64_t end, BlockSums& sums) { softmax_rows(job, f, begin, end, sums); });
    });
    BlockSums sums = merged(blocks);
    operands.check_target(sums, ignore_index);
    if (reduction != kNone) *losses = static_cast<A>(sums.loss / total_weight);
    const ScalarType dtype = loss_dtype.value_or(kScalarType<S>);
    if (dtype != kScalarType<A>) loss = torch::stable::to(loss, dtype);
    return {loss, kept};
  });
}

Tensor softmax_rows_backward_op(Tensor upstream, Tensor logits, Tensor target, Tensor stats, MaybeTensor scale,
                                MaybeTensor bias, int64_t ignore_index) {
  Operands operands(std::move(logits), std::move(target));
  const int64_t rows = operands.rows;
  return with_storage(operands.logits.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulate<S>;
    SoftmaxRows<S> job = operands.job<S>(ignore_index, scale, bias);
    job.stats = const_cast<A*>(data_of<A>(stats, "stats", kScalarType<A>, kNumRowStats * rows));
    job.stats_stride = rows;
    const bool per_row = upstream.dim() > 0;
    if (upstream.scalar_type() != kScalarType<A>) upstream = torch::stable::to(upstream, kScalarType<A>);
    if (!upstream.is_contiguous()) upstream = torch::stable::contiguous(upstream);
    const A* up = data_of<A>(upstream, "grad_output", kScalarType<A>, per_row ? rows : 1);
    Tensor grad = operands.new_grad(job);
    std::vector<BlockSums> blocks;
    for_blocks(rows, operands.classes, blocks, [&](int64_t begin, int64_t end, BlockSums& sums) {
      if (job.scale || job.bias) softmax_rows_backward<S, true>(job, up, per_row, begin, end, sums);
      else softmax_rows_backward<S, false>(job, up, per_row, begin, end, sums);
    });
    operands.check_target(merged(blocks), ignore_index);
    return grad;
  });
}

}  // namespace

void set_fill_new_tensors(bool fill) { fill_new_tensors = fill; }

}  // namespace imbloss

STABLE_TORCH_LIBRARY_IMPL(imbloss, CPU, m) {
  m.impl("softmax_rows", TORCH_BOX(&imbloss::softmax_rows_op));
  m.impl("softmax_rows_backward", TORCH_BOX(&imbloss::softmax_rows_backward_op));
}
