// The operators on CPU: memory-safety checks, allocation, threads. The only file that knows torch, by its stable ABI;
// the schemas are in imbloss/_ops.py, which also checks arguments in the user's words.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "class_columns.h"
#include "memory.h"
#include "sigmoid_elements.h"
#include "softmax_packed_rows.h"
#include "softmax_rows.h"
#include "softmax_soft_rows.h"

// Of torch 2.11; the target is 2.10.
extern "C" __attribute__((weak)) AOTITorchError
torch_from_blob(void* data, int64_t dim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
                int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* tensor, int32_t layout,
                const uint8_t* metadata, int64_t metadata_size, void (*deleter)(void* data, void* of), void* of);

namespace imbloss {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

enum Reduction : int64_t { kNone, kMean, kSum };  // as in imbloss/_ops.py

void check_reduction(int64_t reduction) {
  STD_TORCH_CHECK(reduction >= kNone && reduction <= kSum, "expected reduction 0, 1 or 2, but got ", reduction);
}

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

int64_t bytes_of(ScalarType dtype) { return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2; }

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

// The optional operands of softmax_rows travel as one list, empty where there is none: an operator's argument costs a
// tenth of a microsecond, given or not. The order is that of imbloss/_ops.py.
enum Operand { kWeight, kSampleWeight, kScale, kBias, kMargin, kGammas, kNormalizer, kNumOperands };
using OperandList = std::vector<std::optional<Tensor>>;

const Tensor* get(const OperandList& operands, Operand which) {
  return operands.empty() || !operands[which] ? nullptr : &*operands[which];
}

// The data of an operand that must be `count` numbers of type T, one after another; null where there is none.
template <class T>
const T* data_of(const Tensor* tensor, const char* name, ScalarType dtype, int64_t count) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(
      tensor->is_cpu() && tensor->scalar_type() == dtype && tensor->is_contiguous() && tensor->numel() == count,
      "expected ", name, " to be a contiguous CPU tensor of ", count, " elements in the accumulation dtype");
  return static_cast<const T*>(tensor->const_data_ptr());
}

// The numbers of a small tensor, whatever their type.
std::vector<double> numbers_in(const Tensor& tensor, const char* name, int64_t count) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous() && tensor.numel() == count, "expected ", name,
                  " to be a contiguous CPU tensor of ", count, " elements");
  auto read = [&](auto zero) {
    const auto* p = static_cast<const decltype(zero)*>(tensor.const_data_ptr());
    return std::vector<double>(p, p + count);
  };
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return read(double{});
    case ScalarType::Float:
      return read(float{});
    case ScalarType::Long:
      return read(int64_t{});
    default:
      throw std::invalid_argument(std::string("expected ") + name + " of dtype float64, float32 or int64");
  }
}

bool fill_new_tensors = false;  // with NaN: tests see what a kernel failed to write

constexpr int kMaxDim = 64;

// By the C shim: torch::stable's new_empty looks its operator up by name, at half a microsecond a call.
Tensor empty_strided(IntHeaderOnlyArrayRef sizes, const int64_t* strides, ScalarType dtype) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides, shim_dtype(dtype),
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Pool pool;

// Torch's own memory, from where a huge page begins: before 2.11 there is no torch_from_blob.
Tensor empty_in_huge_pages(IntHeaderOnlyArrayRef sizes, const int64_t* strides, ScalarType dtype, int64_t bytes) {
  const int64_t element = bytes_of(dtype), all[] = {(bytes + static_cast<int64_t>(kHugePage)) / element}, step = 1;
  Tensor memory = empty_strided({all, 1}, &step, dtype);
  const auto start = reinterpret_cast<uintptr_t>(memory.mutable_data_ptr()),
             aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
  advise_huge_pages(reinterpret_cast<void*>(aligned), bytes);
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(memory.get(), sizes.size(), sizes.data(), strides,
                                                               (aligned - start) / element, &handle));
  return Tensor(handle);
}

// Of a kept block, or of new huge pages.
Tensor empty_large(IntHeaderOnlyArrayRef sizes, const int64_t* strides, ScalarType dtype, int64_t bytes) {
  if (!torch_from_blob && bytes >= static_cast<int64_t>(kHugePage)) {
    return empty_in_huge_pages(sizes, strides, dtype, bytes);
  }
  Block* block = torch_from_blob ? pool.take(bytes) : nullptr;
  if (!block) return empty_strided(sizes, strides, dtype);  // if there is no memory, torch says so
  AtenTensorHandle handle;
  const auto error = torch_from_blob(
      block->data, sizes.size(), sizes.data(), strides, 0, shim_dtype(dtype), aoti_torch_device_type_cpu(), -1, &handle,
      aoti_torch_layout_strided(), nullptr, 0, [](void*, void* of) { pool.give_back(static_cast<Block*>(of)); }, block);
  STABLE_TORCH_ERROR_CODE_CHECK(error);
  return Tensor(handle);
}

Tensor new_tensor(IntHeaderOnlyArrayRef sizes, const int64_t* strides, ScalarType dtype) {
  int64_t elements = 1;  // of dense tensors, the only ones made here
  for (int64_t size : sizes) elements *= size;
  const int64_t bytes = elements * bytes_of(dtype);
  Tensor tensor = bytes < kManyBytes ? empty_strided(sizes, strides, dtype) : empty_large(sizes, strides, dtype, bytes);
  if (fill_new_tensors) torch::stable::fill_(tensor, std::numeric_limits<double>::quiet_NaN());
  return tensor;
}
Tensor new_tensor(IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  int64_t strides[kMaxDim], step = 1;
  for (size_t d = sizes.size(); d-- > 0; step *= std::max<int64_t>(sizes[d], 1)) strides[d] = step;
  return new_tensor(sizes, strides, dtype);
}

// As torch.empty_like: it keeps the strides of dense tensors, and the order of dimensions of others.
Tensor new_tensor_like(const Tensor& x, ScalarType dtype) {
  if (x.is_contiguous()) return new_tensor(x.sizes(), dtype);
  const Tensor like = torch::stable::empty_like(x);
  return new_tensor(like.sizes(), like.strides().data(), dtype);
}
Tensor new_tensor_like(const Tensor& x) { return new_tensor_like(x, x.scalar_type()); }

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

// Rows a block, by the shape alone, so that no result depends on threads. Few blocks are multiples of eight: of two or
// three, one of two threads would wait for the other.
int64_t rows_of_block(int64_t rows, int64_t classes) {
  constexpr int64_t most_elements = 32 * 1024, alone = 12 * 1024, even = 8, whole_vectors = 16;
  if (rows * classes <= alone) return rows;
  const int64_t most = std::max<int64_t>(1, most_elements / classes);
  const int64_t count = ((rows + most - 1) / most + even - 1) / even * even, block = (rows + count - 1) / count;
  return block < whole_vectors ? block : (block + whole_vectors - 1) / whole_vectors * whole_vectors;
}

// Walks over all rows in runs of blocks that follow one another: f(begin, end, rows of a block, sums of each block).
// Merges the sums in order.
template <class F>
BlockSums for_runs_of_blocks(int64_t rows, int64_t classes, F f) {
  const int64_t block_rows = rows_of_block(rows, classes);
  const int64_t count = rows == 0 ? 1 : (rows + block_rows - 1) / block_rows;
  BlockSums all;
  if (count <= 1) {
    f(0, rows, std::max<int64_t>(rows, 1), &all);
    return all;
  }
  std::vector<BlockSums> blocks(count);
  torch::stable::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    f(first * block_rows, std::min(rows, last * block_rows), block_rows, &blocks[first]);
  });
  for (const BlockSums& block : blocks) {
    all.loss += block.loss;
    all.ignored += block.ignored;
    if (all.bad_row < 0) all.bad_row = block.bad_row;
  }
  return all;
}

// The same, block by block: f(begin, end, sums).
template <class F>
BlockSums for_blocks(int64_t rows, int64_t classes, F f) {
  return for_runs_of_blocks(rows, classes, block_by_block(f));
}

// Logits and targets as rows, checked. Targets are class indices, or probabilities of the logits' shape.
struct Rows {
  Tensor logits, target, given;   // given: the logits as the caller has them
  int64_t count, classes, inner;  // count: of rows
  Strides strides, target_strides{};
  bool probabilities;

  Rows(Tensor x, Tensor y) : logits(std::move(x)), target(std::move(y)) {
    const int64_t dim = logits.dim();
    probabilities = target.scalar_type() != ScalarType::Long;
    STD_TORCH_CHECK(logits.is_cpu() && target.is_cpu(), "expected logits and target on the CPU");
    STD_TORCH_CHECK(dim >= 1 && dim <= kMaxDim, "expected logits of 1 to ", kMaxDim, " dimensions, but got ", dim);
    STD_TORCH_CHECK(logits.numel() == 0 || logits.const_data_ptr(), "expected logits with memory behind them");
    given = logits;
    classes = logits.size(dim == 1 ? 0 : 1);
    STD_TORCH_CHECK(classes > 0, "expected logits of at least one class");
    count = logits.numel() / classes;
    if (!row_strides(logits, strides, inner)) {
      logits = torch::stable::contiguous(logits);
      row_strides(logits, strides, inner);
    }
    if (probabilities) {
      STD_TORCH_CHECK(
          std::equal(logits.sizes().begin(), logits.sizes().end(), target.sizes().begin(), target.sizes().end()),
          "expected target probabilities of the logits' shape");
      int64_t same;
      if (!row_strides(target, target_strides, same)) {
        target = torch::stable::contiguous(target);
        row_strides(target, target_strides, same);
      }
    } else {
      STD_TORCH_CHECK(target.numel() == count, "expected target of ", count, " elements, but got ", target.numel());
      if (!target.is_contiguous()) target = torch::stable::contiguous(target);
    }
  }

  // The shape of a loss per row.
  std::vector<int64_t> shape() const {
    const auto sizes = logits.sizes();
    std::vector<int64_t> shape(sizes.begin(), sizes.end());
    shape.erase(shape.begin() + (shape.size() > 1));
    return shape;
  }

  // Memory for a gradient: what torch.empty_like makes of the logits where rows step evenly in that.
  template <class S>
  Tensor new_grad(SoftmaxRows<S>& job) const {
    Tensor grad = new_tensor_like(given);
    int64_t same;
    if (!row_strides(grad, job.grad_strides, same)) {
      grad = new_tensor(given.sizes(), given.scalar_type());
      row_strides(grad, job.grad_strides, same);
    }
    job.grad = static_cast<S*>(grad.mutable_data_ptr());
    return grad;
  }
  // That gradient with the strides of torch.empty_like(logits) in any case, which is what torch.compile counts on.
  Tensor as_given(const Tensor& grad) const {
    if (given.is_contiguous()) return grad;
    Tensor like = torch::stable::empty_like(given);
    if (std::equal(like.strides().begin(), like.strides().end(), grad.strides().begin())) return grad;
    return torch::stable::copy_(like, grad);
  }

  // The gradient over the logits themselves.
  template <class S>
  Tensor grad_over_logits(SoftmaxRows<S>& job) const {
    job.grad = static_cast<S*>(const_cast<void*>(logits.const_data_ptr()));
    job.grad_strides = job.logits_strides;
    return logits;
  }
  // Brings it to the caller's logits, where rows were a copy of them.
  void give_over(const Tensor& grad) const {
    Tensor callers = given;
    if (grad.get() != given.get()) torch::stable::copy_(callers, grad);
  }

  void check_target(const BlockSums& sums, int64_t ignore_index) const {
    if (sums.bad_row < 0) return;
    const int64_t got = static_cast<const int64_t*>(target.const_data_ptr())[sums.bad_row];
    throw std::out_of_range("expected target in [0, " + std::to_string(classes) +
                            ") or ignore_index=" + std::to_string(ignore_index) + ", but got " + std::to_string(got) +
                            " at index " + std::to_string(sums.bad_row));
  }
};

// A call of a traversal with its constants in place; keeps alive what the traversal points to.
template <class S>
struct Call {
  using A = Accumulate<S>;
  const Rows& rows;
  SoftmaxRows<S> job{};
  double divisor = 1;  // of "mean"

  Call(const Rows& rows, const OperandList& operands, double gamma, int64_t ignore_index) : rows(rows) {
    STD_TORCH_CHECK(operands.empty() || operands.size() == kNumOperands, "expected 0 or ", kNumOperands, " operands");
    auto per_class = [&](Operand which, const char* name) {
      return data_of<A>(get(operands, which), name, kScalarType<A>, rows.classes);
    };
    job.inner = rows.inner;
    job.classes = rows.classes;
    job.ignore_index = ignore_index;
    job.logits = static_cast<const S*>(rows.logits.const_data_ptr());
    job.logits_strides = rows.strides;
    job.bytes = rows.count * rows.classes * sizeof(S);
    if (!rows.probabilities) job.target = static_cast<const int64_t*>(rows.target.const_data_ptr());
    job.scale = per_class(kScale, "scale");
    job.bias = per_class(kBias, "bias");
    job.margin = per_class(kMargin, "margin");
    job.weight = per_class(kWeight, "weight");
    job.sample_weight = data_of<A>(get(operands, kSampleWeight), "sample_weight", kScalarType<A>, rows.count);
    job.gamma = gamma;
    if (const Tensor* tensor = get(operands, kGammas)) {
      for (double g : numbers_in(*tensor, "gamma", rows.classes)) {
        gamma_high_.push_back(high_part<A>(g));
        gamma_low_.push_back(static_cast<A>(g - gamma_high_.back()));
      }
      job.gamma_high = gamma_high_.data();
      job.gamma_low = gamma_low_.data();
    }
    job.inverse_divisor = 1;
  }
  Call(const Call&) = delete;

  void divide_by_mean(const OperandList& operands) {
    const Tensor* normalizer = get(operands, kNormalizer);
    divisor = normalizer ? numbers_in(*normalizer, "normalizer", 1)[0] : checked_weight();
    job.inverse_divisor = static_cast<A>(1 / divisor);
  }

  // The weights of the rows that count, once all targets are in range.
  double checked_weight() const {
    BlockSums sums = for_blocks(rows.count, 1, [&](int64_t begin, int64_t end, BlockSums& block) {
      block.loss = total_weight(job, begin, end, block);
    });
    rows.check_target(sums, job.ignore_index);
    return sums.loss;
  }

  // One number, or one a row.
  void read_upstream(Tensor upstream) {
    job.upstream_per_row = upstream.dim() > 0;
    if (upstream.scalar_type() != kScalarType<A>) upstream = torch::stable::to(upstream, kScalarType<A>);
    if (!upstream.is_contiguous()) upstream = torch::stable::contiguous(upstream);
    upstream_ = std::move(upstream);
    job.upstream = data_of<A>(&*upstream_, "grad_output", kScalarType<A>, job.upstream_per_row ? rows.count : 1);
  }

  // Runs f(begin, end, block rows, block sums) over all rows, and reduces their losses: one number, or job.loss as it
  // was filled.
  template <class F>
  Tensor loss(int64_t reduction, F f) {
    Tensor loss = reduction == kNone ? new_tensor(rows.shape(), kScalarType<A>) : new_tensor({}, kScalarType<A>);
    A* values = static_cast<A*>(loss.mutable_data_ptr());
    if (reduction == kNone) job.loss = values;
    BlockSums sums = for_runs_of_blocks(rows.count, rows.classes, f);
    rows.check_target(sums, job.ignore_index);
    if (reduction != kNone) *values = static_cast<A>(sums.loss / divisor);
    return loss;
  }

 private:
  std::vector<A> gamma_high_, gamma_low_;
  std::optional<Tensor> upstream_;
};

// The losses come in the accumulation dtype. `numbers` are gamma and the policy's parameters.

enum class Want { kLoss, kStats, kGrad, kGradOverLogits };

// One class a row: the loss and, where wanted, the gradient or the rows' stats, which a backward needs.
std::tuple<Tensor, Tensor> hard_rows(Tensor logits, Tensor target, const OperandList& operands,
                                     const std::vector<double>& numbers, int64_t ignore_index, int64_t reduction,
                                     const std::string& policy, Want want) {
  Rows rows(std::move(logits), std::move(target));
  check_reduction(reduction);
  STD_TORCH_CHECK(!rows.probabilities, "expected target of dtype int64");
  STD_TORCH_CHECK(!numbers.empty(), "expected gamma to lead the numbers");
  STD_TORCH_CHECK(want != Want::kGrad || reduction != kNone, "expected a reduction where keep_grad is set");
  return with_storage(rows.logits.scalar_type(), [&](auto storage) -> std::tuple<Tensor, Tensor> {
    using S = decltype(storage);
    using A = Accumulate<S>;
    Call<S> call(rows, operands, numbers[0], ignore_index);
    if (want == Want::kGradOverLogits) call.checked_weight();  // nothing is lost to a bad target
    if (reduction == kMean) call.divide_by_mean(operands);
    const int64_t stats_shape[] = {kNumRowStats, want == Want::kStats ? rows.count : 0};
    Tensor kept = want == Want::kGrad             ? rows.new_grad(call.job)
                  : want == Want::kGradOverLogits ? rows.grad_over_logits(call.job)
                                                  : new_tensor({stats_shape, 2}, kScalarType<A>);
    if (want == Want::kStats) {
      call.job.stats = static_cast<A*>(kept.mutable_data_ptr());
      call.job.stats_stride = rows.count;
    }
    Tensor loss = with_policy(policy, numbers, [&](auto f) {
      return call.loss(reduction, [&](int64_t begin, int64_t end, int64_t block_rows, BlockSums* sums) {
        softmax_rows(call.job, f, begin, end, block_rows, sums);
      });
    });
    if (want == Want::kGradOverLogits) rows.give_over(kept);
    return {loss, want == Want::kGrad ? rows.as_given(kept) : kept};
  });
}

std::tuple<Tensor, Tensor> softmax_rows_op(Tensor logits, Tensor target, OperandList operands,
                                           std::vector<double> numbers, int64_t ignore_index, int64_t reduction,
                                           std::string policy, bool keep_grad) {
  return hard_rows(std::move(logits), std::move(target), operands, numbers, ignore_index, reduction, policy,
                   keep_grad ? Want::kGrad : Want::kStats);
}

Tensor softmax_rows_value_op(Tensor logits, Tensor target, OperandList operands, std::vector<double> numbers,
                             int64_t ignore_index, int64_t reduction, std::string policy) {
  return std::get<0>(
      hard_rows(std::move(logits), std::move(target), operands, numbers, ignore_index, reduction, policy, Want::kLoss));
}

Tensor softmax_rows_in_place_op(Tensor logits, Tensor target, OperandList operands, std::vector<double> numbers,
                                int64_t ignore_index, int64_t reduction, std::string policy) {
  return std::get<0>(hard_rows(std::move(logits), std::move(target), operands, numbers, ignore_index, reduction, policy,
                               Want::kGradOverLogits));
}

Tensor softmax_rows_backward_op(Tensor upstream, Tensor logits, Tensor target, Tensor stats, OperandList operands,
                                int64_t ignore_index) {
  Rows rows(std::move(logits), std::move(target));
  STD_TORCH_CHECK(!rows.probabilities, "expected target of dtype int64");
  return with_storage(rows.logits.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulate<S>;
    Call<S> call(rows, operands, 0, ignore_index);
    call.job.stats = const_cast<A*>(data_of<A>(&stats, "stats", kScalarType<A>, kNumRowStats * rows.count));
    call.job.stats_stride = rows.count;
    call.read_upstream(std::move(upstream));
    Tensor grad = rows.new_grad(call.job);
    BlockSums sums = for_blocks(rows.count, rows.classes, [&](int64_t begin, int64_t end, BlockSums& block) {
      softmax_rows_backward(call.job, begin, end, block);
    });
    rows.check_target(sums, ignore_index);
    return rows.as_given(grad);
  });
}

// A distribution a row: the loss and, where wanted, its gradient (else nothing, in a tensor of no elements), times
// `upstream` where one is given.
std::tuple<Tensor, Tensor> soft_rows(std::optional<Tensor> upstream, Tensor logits, Tensor target,
                                     const OperandList& operands, const std::vector<double>& numbers,
                                     double label_smoothing, int64_t ignore_index, int64_t reduction,
                                     const std::string& policy, Want want) {
  Rows rows(std::move(logits), std::move(target));
  check_reduction(reduction);
  STD_TORCH_CHECK(!numbers.empty(), "expected gamma to lead the numbers");
  STD_TORCH_CHECK(!get(operands, kMargin), "expected no margin beside soft targets");
  const int64_t none[] = {0};
  return with_storage(rows.logits.scalar_type(), [&](auto storage) -> std::tuple<Tensor, Tensor> {
    using S = decltype(storage);
    using A = Accumulate<S>;
    Call<S> call(rows, operands, numbers[0], ignore_index);
    if (want == Want::kGradOverLogits) call.checked_weight();  // nothing is lost to a bad target
    if (reduction == kMean) call.divide_by_mean(operands);
    if (upstream) call.read_upstream(std::move(*upstream));
    Tensor grad = want == Want::kGrad             ? rows.new_grad(call.job)
                  : want == Want::kGradOverLogits ? rows.grad_over_logits(call.job)
                                                  : new_tensor({none, 1}, kScalarType<S>);
    // Probabilities are read in the logits' dtype or the accumulation dtype.
    auto run = [&](auto target_storage) {
      using T = decltype(target_storage);
      SoftTargets<S, T> targets{nullptr, rows.target_strides, static_cast<A>(label_smoothing)};
      if (rows.probabilities) targets.probabilities = static_cast<const T*>(rows.target.const_data_ptr());
      return with_policy(policy, numbers, [&](auto f) {
        return call.loss(reduction, block_by_block([&](int64_t begin, int64_t end, BlockSums& sums) {
                           softmax_soft_rows(call.job, targets, f, begin, end, sums);
                         }));
      });
    };
    const ScalarType dtype = rows.target.scalar_type();
    STD_TORCH_CHECK(!rows.probabilities || dtype == kScalarType<S> || dtype == kScalarType<A>,
                    "expected target probabilities of the logits' dtype or float32");
    Tensor loss = dtype == kScalarType<S> || !rows.probabilities ? run(S{}) : run(A{});
    if (want == Want::kGradOverLogits) rows.give_over(grad);
    return {loss, want == Want::kGrad ? rows.as_given(grad) : grad};
  });
}

std::tuple<Tensor, Tensor> softmax_soft_rows_op(Tensor logits, Tensor target, OperandList operands,
                                                std::vector<double> numbers, double label_smoothing,
                                                int64_t ignore_index, int64_t reduction, std::string policy,
                                                bool keep_grad) {
  return soft_rows(std::nullopt, std::move(logits), std::move(target), operands, numbers, label_smoothing, ignore_index,
                   reduction, policy, keep_grad ? Want::kGrad : Want::kLoss);
}

Tensor softmax_soft_rows_in_place_op(Tensor logits, Tensor target, OperandList operands, std::vector<double> numbers,
                                     double label_smoothing, int64_t ignore_index, int64_t reduction,
                                     std::string policy) {
  return std::get<0>(soft_rows(std::nullopt, std::move(logits), std::move(target), operands, numbers, label_smoothing,
                               ignore_index, reduction, policy, Want::kGradOverLogits));
}

Tensor softmax_soft_rows_backward_op(Tensor upstream, Tensor logits, Tensor target, OperandList operands,
                                     std::vector<double> numbers, double label_smoothing, int64_t ignore_index,
                                     int64_t reduction, std::string policy) {
  return std::get<1>(soft_rows(std::move(upstream), std::move(logits), std::move(target), operands, numbers,
                               label_smoothing, ignore_index, reduction, policy, Want::kGrad));
}

// ---- class columns -------------------------------------------------------------------------------------------------
// Operands: the prior, sample weights, the normalizer. Numbers: the factors of PriorCE and of LADER, and lambda. As in
// imbloss/_ops.py and imbloss/reference.py.
enum ColumnOperand { kPrior, kColumnSampleWeight, kColumnNormalizer, kNumColumnOperands };
enum ColumnNumber { kPriorCE, kAlpha, kLambda, kNumColumnNumbers };
enum ColumnStats { kColumnTop, kColumnTotal, kColumnOwn, kColumnCount, kNumColumnStats };
constexpr int64_t kNumColumnFactors = 3, kNumTotals = 2;

// A call of the traversal in its steps, with everything that it points to.
template <class S>
struct ColumnsCall {
  using A = Accumulate<S>;
  const Rows& rows;
  const OperandList& operands;
  ClassColumns<S> job{};
  Regulariser regulariser{};
  int64_t padded;             // classes, in whole vectors
  std::vector<double> prior;  // padded with 0
  std::vector<ColumnSums<A>> blocks;
  double loss = 0, divisor = 0;  // of PriorCE

  ColumnsCall(const Rows& rows, const OperandList& operands, const std::vector<double>& numbers, int64_t ignore_index,
              const std::string& estimator)
      : rows(rows), operands(operands), padded((rows.classes + kWhole - 1) / kWhole * kWhole) {
    STD_TORCH_CHECK(!rows.probabilities, "expected target of dtype int64");
    STD_TORCH_CHECK(operands.size() == kNumColumnOperands && operands[kPrior], "expected ", int(kNumColumnOperands),
                    " operands, the prior first");
    STD_TORCH_CHECK(numbers.size() == kNumColumnNumbers, "expected ", int(kNumColumnNumbers), " numbers");
    STD_TORCH_CHECK(estimator == "official" || estimator == "paper", "expected estimator official or paper");
    regulariser = {numbers[kAlpha], numbers[kLambda], 0, rows.classes, estimator == "official"};
    job.rows.inner = rows.inner;
    job.rows.classes = rows.classes;
    job.rows.ignore_index = ignore_index;
    job.rows.logits = static_cast<const S*>(rows.logits.const_data_ptr());
    job.rows.logits_strides = rows.strides;
    job.rows.target = static_cast<const int64_t*>(rows.target.const_data_ptr());
    job.rows.sample_weight = data_of<A>(operand(kColumnSampleWeight), "sample_weight", kScalarType<A>, rows.count);
    job.prior_ce = numbers[kPriorCE] != 0;
    read_prior();
  }
  ColumnsCall(const ColumnsCall&) = delete;

  void keep_stats(A* stats) {
    target_x_.reset(new A[rows.count]);
    job.target_x = target_x_.get();
    job.rows.stats = stats;
    job.rows.stats_stride = rows.count;
  }

  // Reads all logits: the rows' stats, and the sums of the columns.
  void sum() {
    const int64_t count = num_blocks();
    totals_.reset(new double[count * rows.classes]);
    tops_.reset(new A[count * rows.classes]);
    small_.resize(count);
    // the targets' sums by block where that costs little memory: a number or two a row, or as classes are few
    constexpr int64_t few_classes = 64;
    const bool own_by_block = block_rows_ >= 8 * rows.classes || rows.classes <= few_classes;
    std::vector<double> own(own_by_block ? 2 * rows.classes * count : 0);
    blocks.reserve(count);
    for (int64_t b = 0; b < count; b++) {
      double* mine = own_by_block ? own.data() + 2 * rows.classes * b : nullptr;
      blocks.push_back({totals_.get() + b * rows.classes, mine, mine ? mine + rows.classes : nullptr,
                        tops_.get() + b * rows.classes, false, false, 0, 0, -1});
    }
    columns_.reset(new double[kNumColumnStats * padded]);
    in_blocks([&](int64_t b, int64_t begin, int64_t end) {
      small_[b].reset(new bool[(end - begin) / kFewestTileRows + 1]);
      sum_columns(job, begin, end, blocks[b], small_[b].get());
    });
    BlockSums first_bad;
    for (int64_t b = count; b-- > 0;) {
      if (blocks[b].bad_row >= 0) first_bad.bad_row = blocks[b].bad_row;
    }
    rows.check_target(first_bad, job.rows.ignore_index);
    merge(own_by_block);
    if (!own_by_block) sum_targets(job, 0, rows.count, column(kColumnOwn), column(kColumnCount));
  }

  // The loss from the columns and the totals, and the factors of its gradient in the accumulation dtype.
  double finish(int64_t reduction, double prior_ce, A* factors) {
    double mean_of = 1;
    if (reduction == kMean) {
      const std::optional<Tensor>& normalizer = operands[kColumnNormalizer];
      mean_of = normalizer ? numbers_in(*normalizer, "normalizer", 1)[0] : divisor;
    }
    Vec<double> counted(0);
    for (int64_t c = 0; c < padded; c += kLanes<double>) counted = counted + load(column(kColumnCount) + c);
    regulariser.rows = imbloss::sum(counted);
    std::vector<double> terms((rows.classes + kChunk - 1) / kChunk);
    in_chunks([&](int64_t begin, int64_t end) { terms[begin / kChunk] = finish_classes(begin, end, factors); });
    double value = job.prior_ce ? prior_ce * loss / mean_of : 0;
    for (double term : terms) value += term;
    factors[kNumColumnFactors * rows.classes] = static_cast<A>(prior_ce / mean_of);
    return value;
  }

  // The gradient times `upstream`, into job.rows.grad. With the tiles of sum() known to be small, if that was called.
  void gradient(const A* factors, A upstream) {
    const A *top = factors, *slope = top + rows.classes, *share = slope + rows.classes;
    per_class_.reset(new A[4 * padded]);
    A *tops = per_class_.get(), *slopes = tops + padded, *unshifted = slopes + padded, *shares = unshifted + padded;
    bool shifted = false;
    for (int64_t c = 0; c < rows.classes; c++) {
      tops[c] = top[c];
      shifted |= top[c] != 0;
      unshifted[c] = slopes[c] = slope[c] * upstream;
      shares[c] = share[c] * upstream;
    }
    for (int64_t c = 0; c < rows.classes && shifted; c++) {
      if (top[c] != 0) unshifted[c] = slopes[c] * std::exp(-top[c]);
    }
    job.top = tops;
    job.slope = slopes;
    job.unshifted_slope = unshifted;
    job.share = shares;
    job.row_factor = factors[kNumColumnFactors * rows.classes];
    const bool summed = !small_.empty();
    in_blocks([&](int64_t b, int64_t begin, int64_t end) {
      columns_gradient(job, begin, end, upstream, summed ? small_[b].get() : nullptr, summed);
    });
  }

  double* column(ColumnStats which) { return columns_.get() + which * padded; }

 private:
  static constexpr int64_t kWhole = 16, kChunk = 512, kFewestTileRows = 32;
  std::unique_ptr<A[]> constants_, per_class_, target_x_, tops_;
  std::unique_ptr<double[]> totals_, columns_;  // of the blocks; kNumColumnStats a class, padded with 0
  std::vector<std::unique_ptr<bool[]>> small_;
  int64_t block_rows_ = 1;

  const Tensor* operand(ColumnOperand which) const { return operands[which] ? &*operands[which] : nullptr; }

  void read_prior() {
    prior = numbers_in(*operands[kPrior], "prior", rows.classes);
    prior.resize(padded, 1.0);
    Vec<double> lowest(1), totals(0);
    for (int64_t c = 0; c < padded; c += kLanes<double>) {
      const Vec<double> p = load(prior.data() + c);
      lowest = min(p, lowest);
      totals = totals + p;
    }
    const double least = -max_lane(-lowest), total = imbloss::sum(totals) - static_cast<double>(padded - rows.classes);
    for (int64_t c = 0; c < rows.classes && !(least > 0 && std::isfinite(total)); c++) {
      if (prior[c] > 0 && prior[c] < kInfinity<double>) continue;
      throw std::invalid_argument("expected prior > 0 and finite, but got " + shown(prior[c]) + " at index " +
                                  std::to_string(c));
    }
    std::fill(prior.begin() + rows.classes, prior.end(), 0.0);
    if (!(std::abs(total - 1) <= 1e-4)) {
      char text[32];
      std::snprintf(text, sizeof(text), "%.6g", total);
      throw std::invalid_argument("expected prior to sum to 1 within 1e-4, but got a sum of " + std::string(text));
    }
    constants_.reset(new A[3 * padded]);
    A *pi = constants_.get(), *log_pi = pi + padded, *importance = log_pi + padded;
    for (int64_t c = 0; c < padded; c++) pi[c] = static_cast<A>(prior[c]);
    for (int64_t c = 0; c < rows.classes && !regulariser.official; c++) {
      importance[c] = static_cast<A>(1 / (prior[c] * static_cast<double>(rows.classes)));
    }
    for (int64_t c = 0; c < padded; c += kLanes<A>) store(log_pi + c, log(load(pi + c)));
    std::fill(log_pi + rows.classes, log_pi + padded, -kInfinity<A>);
    job.small_prior = least < kSmallPrior;
    job.prior = pi;
    job.log_prior = log_pi;
    if (!regulariser.official) job.importance = importance;
  }

  // As Python shows a number.
  static std::string shown(double x) {
    char text[32];
    std::snprintf(text, sizeof(text), x == std::floor(x) && std::abs(x) < 1e16 ? "%.1f" : "%.17g", x);
    return text;
  }

  // Blocks by the shape alone: at most 64, whose sums of columns are a small part of the gradient's memory.
  int64_t num_blocks() {
    constexpr int64_t elements = 16 * 1024, fewest_rows = 32, most = 64;
    const int64_t wanted = std::min({rows.count * rows.classes / elements, rows.count / fewest_rows, most});
    const int64_t count = wanted <= 1 ? 1 : wanted + wanted % 2;  // two threads have as much to do
    block_rows_ = std::max<int64_t>((((rows.count + count - 1) / count) + kWhole - 1) / kWhole * kWhole, 1);
    return std::max<int64_t>((rows.count + block_rows_ - 1) / block_rows_, 1);
  }
  template <class F>
  void in_blocks(F f) {
    const int64_t count = num_blocks();
    auto block = [&](int64_t b) { f(b, b * block_rows_, std::min(rows.count, (b + 1) * block_rows_)); };
    if (count == 1) return block(0);
    torch::stable::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; b++) block(b);
    });
  }
  template <class F>
  void in_chunks(F f) {
    const int64_t count = (rows.classes + kChunk - 1) / kChunk;
    auto chunk = [&](int64_t i) { f(i * kChunk, std::min(rows.classes, (i + 1) * kChunk)); };
    if (count == 1) return chunk(0);
    torch::stable::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) chunk(i);
    });
  }

  // Adds up the blocks, in order.
  void merge(bool own_by_block) {
    bool shifted = false, any_row = false;
    for (const ColumnSums<A>& block : blocks) {
      loss += block.loss;
      divisor += block.divisor;
      shifted |= block.any_row && block.shifted;
      any_row |= block.any_row;
    }
    in_chunks([&](int64_t begin, int64_t end) {
      double *top = column(kColumnTop), *total = column(kColumnTotal);
      const int64_t filled = end == rows.classes ? padded : end;
      for (int i = 0; i < kNumColumnStats; i++) {
        double* sums = column(static_cast<ColumnStats>(i));
        std::fill(sums + begin, sums + filled, 0.0);
      }
      if (shifted || !any_row) std::fill(top + begin, top + end, -kInfinity<double>);
      for (const ColumnSums<A>& block : blocks) {
        if (!block.any_row) continue;
        for (int64_t c = begin; c < end; c++) {
          if (shifted) add_class(total[c], top[c], block.total[c], block.shifted ? double(block.top[c]) : 0.0);
          else total[c] += block.total[c];
        }
      }
      for (const ColumnSums<A>& block : blocks) {
        for (int64_t c = begin; c < end && own_by_block; c++) {
          column(kColumnOwn)[c] += block.own[c];
          column(kColumnCount)[c] += block.count[c];
        }
      }
    });
  }

  double finish_classes(int64_t begin, int64_t end, A* factors) {
    constexpr int lanes = kLanes<double>;
    double sum = 0, value[lanes], slope[lanes], share[lanes];
    for (int64_t c = begin; c < end; c += lanes) {
      ClassTerm term =
          class_term(regulariser, load(prior.data() + c), load(column(kColumnTop) + c), load(column(kColumnTotal) + c),
                     load(column(kColumnOwn) + c), load(column(kColumnCount) + c));
      store(value, term.value);
      store(slope, term.slope);
      store(share, term.share);
      for (int64_t i = 0; i < lanes && c + i < end; i++) {
        const double top = column(kColumnTop)[c + i];
        sum += value[i];
        factors[c + i] = top == -kInfinity<double> ? A(0) : static_cast<A>(top);
        factors[rows.classes + c + i] = static_cast<A>(slope[i]);
        factors[2 * rows.classes + c + i] = static_cast<A>(share[i]);
      }
    }
    return sum;
  }
};

// What the backward needs, in one tensor: the rows' stats, three factors of each class, the factor of PriorCE.
int64_t kept_numbers(const Rows& rows) { return kNumRowStats * rows.count + kNumColumnFactors * rows.classes + 1; }

std::tuple<Tensor, Tensor> class_columns_op(Tensor logits, Tensor target, OperandList operands,
                                            std::vector<double> numbers, int64_t ignore_index, int64_t reduction,
                                            std::string estimator, bool keep_grad) {
  Rows rows(std::move(logits), std::move(target));
  STD_TORCH_CHECK(reduction == kMean || reduction == kSum, "expected reduction 1 or 2, but got ", reduction);
  return with_storage(rows.logits.scalar_type(), [&](auto storage) -> std::tuple<Tensor, Tensor> {
    using S = decltype(storage);
    using A = Accumulate<S>;
    ColumnsCall<S> call(rows, operands, numbers, ignore_index, estimator);
    const int64_t kept_shape[] = {kept_numbers(rows)};
    std::unique_ptr<A[]> stats_and_factors;
    Tensor kept = keep_grad ? rows.new_grad(call.job.rows) : new_tensor({kept_shape, 1}, kScalarType<A>);
    if (keep_grad) stats_and_factors.reset(new A[kept_shape[0]]);
    call.job.keeps_exp = keep_grad && std::is_same_v<S, A>;
    A* stats = keep_grad ? stats_and_factors.get() : static_cast<A*>(kept.mutable_data_ptr());
    A* factors = stats + kNumRowStats * rows.count;
    call.keep_stats(stats);
    call.sum();
    Tensor loss = new_tensor({}, kScalarType<A>);
    *static_cast<A*>(loss.mutable_data_ptr()) = static_cast<A>(call.finish(reduction, numbers[kPriorCE], factors));
    if (!keep_grad) return {loss, kept};
    call.gradient(factors, A(1));
    return {loss, rows.as_given(kept)};
  });
}

// One process's sums: the rows' stats, the columns' (in float64), the sum of PriorCE and the divisor of its mean.
std::tuple<Tensor, Tensor, Tensor> class_columns_statistics_op(Tensor logits, Tensor target, OperandList operands,
                                                               std::vector<double> numbers, int64_t ignore_index,
                                                               std::string estimator) {
  Rows rows(std::move(logits), std::move(target));
  return with_storage(rows.logits.scalar_type(), [&](auto storage) -> std::tuple<Tensor, Tensor, Tensor> {
    using S = decltype(storage);
    using A = Accumulate<S>;
    ColumnsCall<S> call(rows, operands, numbers, ignore_index, estimator);
    const int64_t stats_shape[] = {kNumRowStats, rows.count}, columns_shape[] = {kNumColumnStats, rows.classes};
    const int64_t totals_shape[] = {kNumTotals};
    Tensor stats = new_tensor({stats_shape, 2}, kScalarType<A>);
    Tensor columns = new_tensor({columns_shape, 2}, ScalarType::Double);
    Tensor totals = new_tensor({totals_shape, 1}, ScalarType::Double);
    call.keep_stats(static_cast<A*>(stats.mutable_data_ptr()));
    call.sum();
    for (int i = 0; i < kNumColumnStats; i++) {
      const double* column = call.column(static_cast<ColumnStats>(i));
      std::copy(column, column + rows.classes, static_cast<double*>(columns.mutable_data_ptr()) + i * rows.classes);
    }
    static_cast<double*>(totals.mutable_data_ptr())[0] = call.loss;
    static_cast<double*>(totals.mutable_data_ptr())[1] = call.divisor;
    return {stats, columns, totals};
  });
}

Tensor class_columns_backward_op(Tensor upstream, Tensor logits, Tensor target, Tensor kept, OperandList operands,
                                 std::vector<double> numbers, int64_t ignore_index, std::string estimator) {
  Rows rows(std::move(logits), std::move(target));
  return with_storage(rows.logits.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulate<S>;
    ColumnsCall<S> call(rows, operands, numbers, ignore_index, estimator);
    A* stats = const_cast<A*>(data_of<A>(&kept, "kept", kScalarType<A>, kept_numbers(rows)));
    call.keep_stats(stats);
    Tensor grad = rows.new_grad(call.job.rows);
    call.gradient(stats + kNumRowStats * rows.count, static_cast<A>(numbers_in(upstream, "grad_output", 1)[0]));
    return rows.as_given(grad);
  });
}

// ---- sigmoid elements ----------------------------------------------------------------------------------------------
enum ElementOperandIndex {
  kWeightOfElement,
  kPosWeights,
  kAlphas,
  kElementGammas,
  kElementNormalizer,
  kNumElementOperands
};

TargetType target_type_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return TargetType::kFloat;
    case ScalarType::Double:
      return TargetType::kDouble;
    case ScalarType::Half:
      return TargetType::kHalf;
    case ScalarType::BFloat16:
      return TargetType::kBFloat16;
    case ScalarType::Bool:
      return TargetType::kBool;
    case ScalarType::Byte:
      return TargetType::kUInt8;
    case ScalarType::Char:
      return TargetType::kInt8;
    case ScalarType::Short:
      return TargetType::kInt16;
    case ScalarType::Int:
      return TargetType::kInt32;
    case ScalarType::Long:
      return TargetType::kInt64;
    default:
      throw std::invalid_argument("expected targets of a floating, integer or bool dtype");
  }
}

bool same_sizes(const Tensor& a, const Tensor& b) {
  return std::equal(a.sizes().begin(), a.sizes().end(), b.sizes().begin(), b.sizes().end());
}

// Logits and targets, checked: a target for each element, or with the class dimension missing.
struct Elements {
  Tensor logits, target;
  int64_t class_dim, classes;
  bool by_class;
  std::vector<int64_t> class_strides, target_strides;

  Elements(Tensor x, Tensor y) : logits(std::move(x)), target(std::move(y)) {
    const int64_t dim = logits.dim();
    STD_TORCH_CHECK(logits.is_cpu() && target.is_cpu(), "expected logits and target on the CPU");
    STD_TORCH_CHECK(dim <= kMaxDim, "expected logits of 0 to ", kMaxDim, " dimensions, but got ", dim);
    STD_TORCH_CHECK(logits.numel() == 0 || logits.const_data_ptr(), "expected logits with memory behind them");
    class_dim = dim > 1 ? 1 : 0;
    classes = dim == 0 ? 1 : logits.size(class_dim);
    class_strides.assign(dim, 0);
    if (dim > 0) class_strides[class_dim] = 1;
    target_strides.assign(target.strides().begin(), target.strides().end());
    by_class = !same_sizes(logits, target);
    if (!by_class) return;
    std::vector<int64_t> rows(logits.sizes().begin(), logits.sizes().end());
    if (dim > 0) rows.erase(rows.begin() + class_dim);
    STD_TORCH_CHECK(dim > 0 && std::equal(rows.begin(), rows.end(), target.sizes().begin(), target.sizes().end()),
                    "expected target of the logits' shape, or of that shape without the class dimension");
    target_strides.insert(target_strides.begin() + class_dim, 0);
  }

  // The first target out of range, named.
  [[noreturn]] void report_bad_target(int64_t ignore_index) const {
    Tensor labels = torch::stable::contiguous(torch::stable::to(target, ScalarType::Long));
    const auto* label = static_cast<const int64_t*>(labels.const_data_ptr());
    const int64_t least = by_class ? -1 : 0, most = by_class ? classes : 1;
    int64_t i = 0;
    while (label[i] == ignore_index || (label[i] >= least && label[i] <= most)) i++;
    const std::string range = by_class ? "in [-1, " + std::to_string(classes) + "]" : "0, 1";
    throw std::out_of_range("expected targets " + range + " or ignore_index=" + std::to_string(ignore_index) +
                            ", but got " + std::to_string(label[i]) + " at index " + std::to_string(i));
  }

  // How many elements do not count, where that is told by few numbers; else 0.
  int64_t ignored_rows(int64_t ignore_index) const {
    if (!by_class) return 0;
    Tensor labels = torch::stable::contiguous(torch::stable::to(target, ScalarType::Long));
    const auto* label = static_cast<const int64_t*>(labels.const_data_ptr());
    return classes * std::count(label, label + labels.numel(), ignore_index);
  }
};

const Tensor* get(const OperandList& operands, ElementOperandIndex which) {
  return operands.empty() || !operands[which] ? nullptr : &*operands[which];
}

// `numbers` are gamma, alpha (negative: off), pos_weight and the policy's parameters.
enum ElementNumber { kGammaNumber, kAlphaNumber, kPosWeightNumber, kNumElementNumbers };

// Factors of positives and negatives, tables of them in `room` where they differ by class.
template <class A>
ElementFactors<A> factors_of(const OperandList& operands, const std::vector<double>& numbers,
                             const Tensor* class_weight, int64_t classes, std::vector<A>& room) {
  auto per_class = [&](const Tensor* tensor, const char* name) {
    return data_of<A>(tensor, name, kScalarType<A>, classes);
  };
  const double alpha = numbers[kAlphaNumber];
  ElementFactors<A> factors{alpha < 0 ? 1 : alpha, alpha < 0 ? 1 : 1 - alpha, numbers[kPosWeightNumber],
                            numbers[kGammaNumber]};
  factors.gammas = per_class(get(operands, kElementGammas), "gamma");
  const A* weight = per_class(class_weight, "weight");
  const A* alphas = per_class(get(operands, kAlphas), "alpha");
  const A* pos_weights = per_class(get(operands, kPosWeights), "pos_weight");
  if (!weight && !alphas && !pos_weights) return factors;
  room.resize(3 * classes);
  A *positives = room.data(), *negatives = positives + classes, *positive_weights = negatives + classes;
  for (int64_t c = 0; c < classes; c++) {
    const double w = weight ? weight[c] : 1;
    positives[c] = static_cast<A>(w * (alphas ? alphas[c] : factors.positive));
    negatives[c] = static_cast<A>(w * (alphas ? 1 - static_cast<double>(alphas[c]) : factors.negative));
    positive_weights[c] = static_cast<A>(pos_weights ? pos_weights[c] : factors.pos_weight);
  }
  factors.positives = positives;
  factors.negatives = negatives;
  factors.pos_weights = positive_weights;
  return factors;
}

// Runs the traversal; the sum of the losses, or their mean.
template <class S>
double reduce_elements(SigmoidElements<S>& job, const Elements& input, const std::string& policy,
                       const std::vector<double>& numbers, int64_t reduction, const Tensor* normalizer) {
  std::vector<double> policy_numbers{numbers[kGammaNumber]};
  policy_numbers.insert(policy_numbers.end(), numbers.begin() + kNumElementNumbers, numbers.end());
  const int64_t count = input.logits.numel();
  const bool counts = reduction == kMean && !normalizer;
  int64_t ignored = counts ? input.ignored_rows(job.ignore_index) : 0;
  while (true) {
    double divisor = 1;
    if (reduction == kMean) divisor = normalizer ? numbers_in(*normalizer, "normalizer", 1)[0] : count - ignored;
    job.inverse_divisor = static_cast<typename SigmoidElements<S>::A>(1 / divisor);
    const BlockSums sums = with_policy_of<ElementPolicies>(policy, policy_numbers, [&](auto f) {
      return for_blocks(
          count, 1, [&](int64_t begin, int64_t end, BlockSums& block) { sigmoid_elements(job, f, begin, end, block); });
    });
    if (sums.bad_row >= 0) input.report_bad_target(job.ignore_index);
    if (!counts || sums.ignored == ignored) return sums.loss / divisor;
    ignored = sums.ignored;  // which changes the divisor, and what was divided by it
    if (!job.grad) return sums.loss / static_cast<double>(count - ignored);
  }
}

// The loss and, with `keep_grad`, its gradient (else nothing, in a tensor of no elements), times `upstream` where one
// is given.
std::tuple<Tensor, Tensor> elements(std::optional<Tensor> upstream, Tensor logits, Tensor target,
                                    const OperandList& operands, const std::vector<double>& numbers,
                                    int64_t ignore_index, int64_t reduction, const std::string& policy,
                                    bool keep_grad) {
  const Elements input(std::move(logits), std::move(target));
  check_reduction(reduction);
  STD_TORCH_CHECK(numbers.size() >= kNumElementNumbers, "expected gamma, alpha and pos_weight to lead the numbers");
  STD_TORCH_CHECK(operands.empty() || operands.size() == kNumElementOperands, "expected 0 or ", kNumElementOperands,
                  " operands");
  return with_storage(input.logits.scalar_type(), [&](auto storage) -> std::tuple<Tensor, Tensor> {
    using S = decltype(storage);
    using A = Accumulate<S>;
    const bool per_element = reduction == kNone && !upstream;  // the loss that is wanted
    const int64_t none[] = {0};
    Tensor loss = per_element ? new_tensor_like(input.logits, kScalarType<A>) : new_tensor({}, kScalarType<A>);
    Tensor grad = keep_grad ? new_tensor_like(input.logits, kScalarType<S>) : new_tensor({none, 1}, kScalarType<S>);

    const Tensor* weight = get(operands, kWeightOfElement);
    const bool of_classes = weight && weight->dim() == 1 && input.logits.dim() != 1;
    STD_TORCH_CHECK(
        !weight || of_classes ||
            (weight->scalar_type() == kScalarType<A> && weight->is_cpu() && same_sizes(*weight, input.logits)),
        "expected weight of the classes or the elements, in the accumulation dtype");
    std::vector<A> tables;
    const ElementFactors<A> factors =
        factors_of<A>(operands, numbers, of_classes ? weight : nullptr, input.classes, tables);

    if (upstream && upstream->scalar_type() != kScalarType<A>) upstream = torch::stable::to(*upstream, kScalarType<A>);
    const bool upstream_per_element = upstream && upstream->dim() > 0;
    STD_TORCH_CHECK(!upstream_per_element || same_sizes(*upstream, input.logits),
                    "expected grad_output to be one number or one an element");

    ElementWalk::Strides strides[kNumWalked] = {};
    strides[kLogits] = input.logits.strides().data();
    strides[kElementTarget] = input.target_strides.data();
    if (input.by_class || factors.positives || factors.gammas) strides[kClass] = input.class_strides.data();
    if (weight && !of_classes) strides[kElementWeight] = weight->strides().data();
    if (upstream_per_element) strides[kUpstream] = upstream->strides().data();
    if (per_element) strides[kElementLoss] = loss.strides().data();
    if (keep_grad) strides[kGrad] = grad.strides().data();
    const ElementWalk walk(static_cast<int>(input.logits.dim()), input.logits.sizes().data(), strides);

    SigmoidElements<S> job{walk};
    job.logits = static_cast<const S*>(input.logits.const_data_ptr());
    job.target = input.target.const_data_ptr();
    job.target_type = target_type_of(input.target.scalar_type());
    STD_TORCH_CHECK(!input.by_class || job.target_type >= TargetType::kUInt8,
                    "expected class indices of an integer dtype");
    job.by_class = input.by_class;
    job.classes = input.classes;
    job.ignore_index = ignore_index;
    job.factors = factors;
    if (weight && !of_classes) job.weight = static_cast<const A*>(weight->const_data_ptr());
    if (upstream) job.upstream = static_cast<const A*>(upstream->const_data_ptr());
    job.upstream_per_element = upstream_per_element;
    A* const values = static_cast<A*>(loss.mutable_data_ptr());
    if (per_element) job.loss = values;
    if (keep_grad) job.grad = static_cast<S*>(grad.mutable_data_ptr());
    constexpr int64_t streamed_bytes = 16 << 20;  // well beyond the caches
    job.streams = keep_grad && input.logits.numel() * static_cast<int64_t>(sizeof(S)) >= streamed_bytes &&
                  reinterpret_cast<uintptr_t>(job.grad) % kVectorBytes == 0;

    const double reduced = reduce_elements(job, input, policy, numbers, reduction, get(operands, kElementNormalizer));
    if (!per_element) *values = static_cast<A>(reduced);
    return {loss, grad};
  });
}

std::tuple<Tensor, Tensor> sigmoid_elements_op(Tensor logits, Tensor target, OperandList operands,
                                               std::vector<double> numbers, int64_t ignore_index, int64_t reduction,
                                               std::string policy, bool keep_grad) {
  return elements(std::nullopt, std::move(logits), std::move(target), operands, numbers, ignore_index, reduction,
                  policy, keep_grad);
}

Tensor sigmoid_elements_backward_op(Tensor upstream, Tensor logits, Tensor target, OperandList operands,
                                    std::vector<double> numbers, int64_t ignore_index, int64_t reduction,
                                    std::string policy) {
  return std::get<1>(elements(std::move(upstream), std::move(logits), std::move(target), operands, numbers,
                              ignore_index, reduction, policy, true));
}

}  // namespace

void set_fill_new_tensors(bool fill) { fill_new_tensors = fill; }
void keep_at_most(size_t bytes) { pool.keep_at_most(bytes); }
size_t kept() { return pool.kept(); }

}  // namespace imbloss

STABLE_TORCH_LIBRARY_IMPL(imbloss, CPU, m) {
  m.impl("softmax_rows", TORCH_BOX(&imbloss::softmax_rows_op));
  m.impl("softmax_rows_value", TORCH_BOX(&imbloss::softmax_rows_value_op));
  m.impl("softmax_rows_", TORCH_BOX(&imbloss::softmax_rows_in_place_op));
  m.impl("softmax_rows_backward", TORCH_BOX(&imbloss::softmax_rows_backward_op));
  m.impl("softmax_soft_rows", TORCH_BOX(&imbloss::softmax_soft_rows_op));
  m.impl("softmax_soft_rows_", TORCH_BOX(&imbloss::softmax_soft_rows_in_place_op));
  m.impl("softmax_soft_rows_backward", TORCH_BOX(&imbloss::softmax_soft_rows_backward_op));
  m.impl("class_columns", TORCH_BOX(&imbloss::class_columns_op));
  m.impl("class_columns_statistics", TORCH_BOX(&imbloss::class_columns_statistics_op));
  m.impl("class_columns_backward", TORCH_BOX(&imbloss::class_columns_backward_op));
  m.impl("sigmoid_elements", TORCH_BOX(&imbloss::sigmoid_elements_op));
  m.impl("sigmoid_elements_backward", TORCH_BOX(&imbloss::sigmoid_elements_backward_op));
}
