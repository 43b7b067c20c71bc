// Sigmoid losses of elements (docs/math.md, section 5): the walk over logits and targets of any strides. What an
// element's value and slope are is the policy's business; threads and tensors are ops.cpp's.
//
// Blocks of elements, in the order of memory: operands that lie densely in it are read where they are, others are
// gathered into first-level cache. Where every target of a block is 0 or 1, as codes of a byte each, half the work is
// done (`hard`); else targets are numbers (`soft`).
#pragma once

#include "rows.h"

namespace imbloss {

// What is walked along the logits. kClass is no tensor: its offset is the class of an element.
enum ElementOperand { kLogits, kElementTarget, kClass, kElementWeight, kUpstream, kElementLoss, kGrad, kNumWalked };

// The elements in the order in which the first given of (gradient, losses, logits) lies in memory, neighbouring
// dimensions merged where every operand allows it.
class ElementWalk {
 public:
  static constexpr int kMostDims = 64;
  using Strides = const int64_t*;  // of an operand, in the logits' dimensions; null where there is none

  ElementWalk(int dims, const int64_t* sizes, const Strides (&strides)[kNumWalked]) {
    const Strides order = strides[kGrad] ? strides[kGrad] : strides[kElementLoss] ? strides[kElementLoss] : strides[0];
    int kept[kMostDims], count = 0;
    for (int d = 0; d < dims; d++) {
      if (sizes[d] != 1) kept[count++] = d;
    }
    std::stable_sort(kept, kept + count, [&](int a, int b) { return order[a] > order[b]; });
    for (int i = 0; i < count; i++) {
      const int d = kept[i];
      bool merges = dims_ > 0;
      for (int o = 0; merges && o < kNumWalked; o++) {
        merges = !strides[o] || strides_[o][dims_ - 1] == strides[o][d] * sizes[d];
      }
      if (!merges) sizes_[dims_++] = 1;
      sizes_[dims_ - 1] *= sizes[d];
      for (int o = 0; o < kNumWalked; o++) strides_[o][dims_ - 1] = strides[o] ? strides[o][d] : 0;
    }
    for (int o = 0; o < kNumWalked; o++) {
      int64_t step = 1;
      dense_[o] = true;
      for (int d = dims_ - 1; d >= 0; step *= sizes_[d--]) dense_[o] = dense_[o] && strides_[o][d] == step;
    }
  }

  // Whether element k of the walk is at offset k.
  bool is_dense(ElementOperand operand) const { return dense_[operand]; }
  // From element to element within a stretch.
  int64_t step(ElementOperand operand) const { return dims_ ? strides_[operand][dims_ - 1] : 0; }

  // Calls f(position, n, offset of a, offset of b) for the stretches of [begin, end), position counted from begin.
  template <class F>
  IMBLOSS_INLINE void for_stretches(int64_t begin, int64_t end, ElementOperand a, ElementOperand b, F f) const {
    if (dims_ == 0) return f(int64_t(0), end - begin, int64_t(0), int64_t(0));
    int64_t index[kMostDims], offset_a = 0, offset_b = 0, rest = begin;
    for (int d = dims_ - 1; d >= 0; rest /= sizes_[d--]) {
      index[d] = rest % sizes_[d];
      offset_a += index[d] * strides_[a][d];
      offset_b += index[d] * strides_[b][d];
    }
    const int last = dims_ - 1;
    for (int64_t at = begin; at < end;) {
      const int64_t n = std::min(sizes_[last] - index[last], end - at);
      f(at - begin, n, offset_a, offset_b);
      at += n;
      index[last] += n;
      offset_a += n * strides_[a][last];
      offset_b += n * strides_[b][last];
      for (int d = last; d > 0 && index[d] == sizes_[d]; d--) {
        index[d] = 0;
        index[d - 1]++;
        offset_a += strides_[a][d - 1] - sizes_[d] * strides_[a][d];
        offset_b += strides_[b][d - 1] - sizes_[d] * strides_[b][d];
      }
    }
  }

 private:
  int dims_ = 0;
  int64_t sizes_[kMostDims], strides_[kNumWalked][kMostDims];
  bool dense_[kNumWalked];
};

enum class TargetType { kFloat, kDouble, kHalf, kBFloat16, kBool, kUInt8, kInt8, kInt16, kInt32, kInt64 };

// What multiplies the losses of positives and of negatives, and gamma: for every class, or as numbers.
template <class A>
struct ElementFactors {
  double positive, negative, pos_weight, gamma;
  const A* positives;  // these three are given together or not at all
  const A* negatives;
  const A* pos_weights;
  const A* gammas;
};

// One call: its operands, and the outputs that are wanted (the others are null).
template <class S>
struct SigmoidElements {
  using A = Accumulate<S>;
  const ElementWalk& walk;
  const S* logits;
  const void* target;
  TargetType target_type;
  bool by_class;  // the target is the index of the positive class; -1 or `classes` where there is none
  int64_t classes, ignore_index;
  ElementFactors<A> factors;
  const A* weight;    // per element, or null
  A inverse_divisor;  // of "mean"; 1 for the other reductions
  const A* upstream;  // of the loss: one number, or one an element; null is 1
  bool upstream_per_element;

  A* loss;  // per element
  S* grad;
  bool streams;  // the gradient past the caches
};

inline constexpr int kElementBlock = 1024;

// A block of elements side by side, and room for what is not so in memory, or of another type.
template <class A>
struct ElementBlock {
  int n;
  const A* x;
  const uint8_t* codes;  // of hard targets, 0 for 0; also read past n, up to a whole vector
  const A* target;       // of soft targets
  A ignored;             // that target does not count
  const A* upstream;     // per element, or null
  A* loss;
  A* grad;
  bool streams;  // the gradient
  alignas(kVectorBytes) A positives[kElementBlock], negatives[kElementBlock], pos_weights[kElementBlock];
  alignas(kVectorBytes) A gammas[kElementBlock], targets[kElementBlock], upstreams[kElementBlock];
  alignas(kVectorBytes) A losses[kElementBlock], logits[kElementBlock], grads[kElementBlock];
  alignas(kVectorBytes) uint8_t code_bytes[kElementBlock];
};

// ---- gathering -----------------------------------------------------------------------------------------------------
template <class T>
IMBLOSS_INLINE auto number_at(const T* p) {
  if constexpr (std::is_arithmetic_v<T>) return *p;
  else return load_one(p);
}

template <class T, class U>
IMBLOSS_INLINE void copy_strided(const T* from, int64_t step, int64_t n, U* to) {
  int64_t i = 0;
  if constexpr (std::is_same_v<T, U>) {
    if (step == 1) std::memcpy(to, from, n * sizeof(T));
    else
      for (; i < n; i++) to[i] = from[i * step];
  } else {
    if constexpr (std::is_same_v<U, Accumulate<T>>) {
      for (; step == 1 && i + kLanes<U> <= n; i += kLanes<U>) store(to + i, load(from + i));
    }
    for (; i < n; i++) to[i] = static_cast<U>(number_at(from + i * step));
  }
}

// The block's part of an operand: where it is, or gathered into `room`.
template <class T, class U>
const U* gathered(const ElementWalk& walk, ElementOperand operand, const T* data, int64_t begin, int n, U* room) {
  if constexpr (std::is_same_v<T, U>) {
    if (walk.is_dense(operand)) return data + begin;
  }
  const int64_t step = walk.step(operand);
  walk.for_stretches(begin, begin + n, operand, operand, [&](int64_t position, int64_t count, int64_t offset, int64_t) {
    copy_strided(data + offset, step, count, room + position);
  });
  return room;
}

template <class S, class A>
void scatter(const ElementWalk& walk, ElementOperand operand, const A* block, int64_t begin, int n, S* data) {
  const int64_t step = walk.step(operand);
  walk.for_stretches(begin, begin + n, operand, operand, [&](int64_t position, int64_t count, int64_t offset, int64_t) {
    int64_t i = 0;
    for (; step == 1 && i + kLanes<A> <= count; i += kLanes<A>) store(data + offset + i, load(block + position + i));
    for (; i < count; i++) store_one(data + offset + i * step, block[position + i]);
  });
}

// Codes of hard targets.
enum TargetCode : uint8_t { kZero, kOne, kIgnored };

// Codes from integers, labels of elements or classes; true where all are kZero or kOne.
template <class S, class I>
bool read_codes(const SigmoidElements<S>& job, const I* labels, int64_t begin, int n, uint8_t* codes, BlockSums& sums) {
  const int64_t step = job.walk.step(kElementTarget), class_step = job.walk.step(kClass);
  const int64_t ignore = job.ignore_index, classes = job.classes;
  bool bad = false, ignores = false;
  auto class_code = [&](int64_t label, int64_t cls) {
    if (label == ignore) return kIgnored;
    bad |= label < -1 || label > classes;
    return label == cls ? kOne : kZero;
  };
  job.walk.for_stretches(begin, begin + n, kElementTarget, kClass,
                         [&](int64_t position, int64_t count, int64_t offset, int64_t cls) {
                           uint8_t* const code = codes + position;
                           if (!job.by_class) {
                             for (int64_t i = 0; i < count; i++) {
                               const int64_t label = labels[offset + i * step];
                               const bool is_ignored = label == ignore, is_hard = label == 0 || label == 1;
                               code[i] = is_ignored ? kIgnored : static_cast<uint8_t>(label == 1);
                               bad |= !is_hard & !is_ignored;
                               ignores |= is_ignored;
                             }
                           } else if (step == 0 && class_step == 1) {  // the classes of one row
                             const int64_t label = labels[offset];
                             const TargetCode others = class_code(label, -2);
                             std::memset(code, others, count);
                             if (others == kIgnored) ignores = true;
                             else if (label >= cls && label < cls + count && label < classes) code[label - cls] = kOne;
                           } else {
                             for (int64_t i = 0; i < count; i++) {
                               code[i] = class_code(labels[offset + i * step], cls + i * class_step);
                               ignores |= code[i] == kIgnored;
                             }
                           }
                         });
  if (bad && sums.bad_row < 0) sums.bad_row = begin;
  return !ignores;
}

// Codes from numbers; false at once where one is neither 0 nor 1.
template <class A>
bool codes_of(const A* target, int n, uint8_t* codes) {
  using V = Vec<A>;
  bool is_hard = true;
  for_lanes<A>(n, [&](int64_t i, int count) {
    if (!is_hard) return;
    V t = load_rows<1>(target + i, count);
    const auto one = t == V(1);
    store_mask(codes + i, one);
    is_hard = all(one | (t == V(0)));
  });
  return is_hard;
}

// Fills in the block's targets; true where they are hard.
template <class S>
bool read_targets(const SigmoidElements<S>& job, int64_t begin, ElementBlock<Accumulate<S>>& block, BlockSums& sums) {
  using A = Accumulate<S>;
  const bool hard_counts = job.ignore_index != 0 && job.ignore_index != 1;
  auto numbers = [&](const auto* target) {
    block.target = gathered(job.walk, kElementTarget, target, begin, block.n, block.targets);
    block.ignored = static_cast<A>(job.ignore_index);
    block.codes = block.code_bytes;
    return hard_counts && codes_of(block.target, block.n, block.code_bytes);
  };
  auto integers = [&](const auto* labels) {
    block.codes = block.code_bytes;
    if (read_codes(job, labels, begin, block.n, block.code_bytes, sums)) return true;
    for (int i = 0; i < block.n; i++) block.targets[i] = block.code_bytes[i];
    block.target = block.targets;
    block.ignored = kIgnored;
    return false;
  };
  switch (job.target_type) {
    case TargetType::kFloat:
      return numbers(static_cast<const float*>(job.target));
    case TargetType::kDouble:
      return numbers(static_cast<const double*>(job.target));
    case TargetType::kHalf:
      return numbers(static_cast<const Float16*>(job.target));
    case TargetType::kBFloat16:
      return numbers(static_cast<const BFloat16*>(job.target));
    case TargetType::kBool: {
      const auto* bytes = static_cast<const uint8_t*>(job.target);
      if (!hard_counts) return integers(bytes);
      block.codes = gathered(job.walk, kElementTarget, bytes, begin, block.n, block.code_bytes);
      return true;
    }
    case TargetType::kUInt8:
      return integers(static_cast<const uint8_t*>(job.target));
    case TargetType::kInt8:
      return integers(static_cast<const int8_t*>(job.target));
    case TargetType::kInt16:
      return integers(static_cast<const int16_t*>(job.target));
    case TargetType::kInt32:
      return integers(static_cast<const int32_t*>(job.target));
    default:
      return integers(static_cast<const int64_t*>(job.target));
  }
}

// Fills in the block's factors.
template <class S>
void read_factors(const SigmoidElements<S>& job, int64_t begin, ElementBlock<Accumulate<S>>& block) {
  using A = Accumulate<S>;
  const ElementFactors<A>& factors = job.factors;
  const int64_t step = job.walk.step(kClass);
  auto from_classes = [&](const A* values, A* room) {
    job.walk.for_stretches(begin, begin + block.n, kClass, kClass,
                           [&](int64_t position, int64_t count, int64_t cls, int64_t) {
                             if (step == 0) std::fill_n(room + position, count, values[cls]);
                             else copy_strided(values + cls, step, count, room + position);
                           });
  };
  if (factors.positives) {
    from_classes(factors.positives, block.positives);
    from_classes(factors.negatives, block.negatives);
    from_classes(factors.pos_weights, block.pos_weights);
  } else {
    std::fill_n(block.positives, block.n, static_cast<A>(factors.positive));
    std::fill_n(block.negatives, block.n, static_cast<A>(factors.negative));
    std::fill_n(block.pos_weights, block.n, static_cast<A>(factors.pos_weight));
  }
  if (factors.gammas) from_classes(factors.gammas, block.gammas);
  if (job.weight) {
    const A* weight = gathered(job.walk, kElementWeight, job.weight, begin, block.n, block.losses);
    for (int i = 0; i < block.n; i++) {
      block.positives[i] *= weight[i];
      block.negatives[i] *= weight[i];
    }
  }
}

// ---- values and gradients ------------------------------------------------------------------------------------------
// Calls f(integral_constant<int, U>, i, n) for U registers of n elements from i on; n = all of them, or U = 1.
template <int abreast, class A, class F>
IMBLOSS_INLINE void for_registers(int n, F f) {
  constexpr int lanes = kLanes<A>;
  int i = 0;
  for (; i + abreast * lanes <= n; i += abreast * lanes) f(std::integral_constant<int, abreast>{}, i, abreast * lanes);
  for (; i < n; i += lanes) f(std::integral_constant<int, 1>{}, i, std::min(lanes, n - i));
}

// The lanes of n elements.
template <class A, int U>
IMBLOSS_INLINE Vec<A, U> only_first(int n, Vec<A, U> v) {
  if constexpr (U == 1) {
    if (n < kLanes<A>) return select(Mask<A>{{first_lanes<A>(n).r}}, v, Vec<A>(0));
  }
  return v;
}

// Factors of a kernel's lanes: the same for all elements, or the block's.
template <bool Varied, class V>
IMBLOSS_INLINE V factor_of(const typename V::Element* lanes, double number, int i, int n) {
  if constexpr (Varied) return load_rows<V::size / kLanes<typename V::Element>>(lanes + i, n);
  else return V(static_cast<typename V::Element>(number));
}
template <class V, class A>
IMBLOSS_INLINE Exponent<V> gamma_of(const ElementFactors<A>& factors, const ElementBlock<A>& block, int i, int n) {
  if (factors.gammas) return exponent_of_lanes(load_rows<V::size / kLanes<A>>(block.gammas + i, n));
  return exponent_of<V>(factors.gamma);
}

// Every target is 0 or 1. Square: gamma is known to be 2, and needs no other way to a power.
template <bool Varied, bool Square, class A, class Policy>
double hard_elements(const Policy& policy, const ElementFactors<A>& factors, const ElementBlock<A>& block, A scale) {
  constexpr int abreast = 4;
  Vec<A, abreast> total(0);
  Vec<A> rest(0);
  for_registers<abreast, A>(block.n, [&](auto registers, int i, int n) IMBLOSS_INLINE_LAMBDA {
    constexpr int U = registers;
    using V = Vec<A, U>;
    const uint8_t* codes = block.codes + i;
    uint8_t last[kLanes<A>] = {};
    if (U == 1 && n < kLanes<A>) {
      std::memcpy(last, codes, n);
      codes = last;
    }
    const auto positive = load_mask<A, U>(codes);
    V x = load_rows<U>(block.x + i, n);
    V one = factor_of<Varied, V>(block.positives, factors.positive, i, n) *
            factor_of<Varied, V>(block.pos_weights, factors.pos_weight, i, n);
    V zero = factor_of<Varied, V>(block.negatives, factors.negative, i, n);
    const Exponent<V> gamma = gamma_of<V>(factors, block, i, n);
    if (Square && gamma.whole != 2) __builtin_unreachable();
    Point<V> point = policy.hard(sigmoid(select(positive, x, -x)), positive, gamma);
    V value = only_first(n, point.value * select(positive, one, zero));
    if constexpr (U == abreast) total = total + value;
    else rest = rest + value;
    if (block.loss) store_rows(block.loss + i, n, value);
    if (!block.grad) return;
    V grad = point.slope * select(positive, one * scale, -(zero * scale));
    if (block.upstream) grad = grad * load_rows<U>(block.upstream + i, n);
    if (U == abreast && block.streams) stream(block.grad + i, grad);
    else store_rows(block.grad + i, n, grad);
  });
  return static_cast<double>(sum(total)) + sum(rest);
}

// Any targets; their factors are the block's.
template <class A, class Policy>
double soft_elements(const Policy& policy, const ElementFactors<A>& factors, const ElementBlock<A>& block, A scale,
                     int64_t& ignored) {
  constexpr int abreast = 2;
  Vec<A, abreast> total(0);
  Vec<A> rest(0);
  for_registers<abreast, A>(block.n, [&](auto registers, int i, int n) IMBLOSS_INLINE_LAMBDA {
    constexpr int U = registers;
    using V = Vec<A, U>;
    V t = load_rows<U>(block.target + i, n), x = load_rows<U>(block.x + i, n);
    const auto is_ignored = t == V(block.ignored);
    ignored += static_cast<int64_t>(sum(only_first(n, select(is_ignored, V(1), V(0)))));
    t = select(is_ignored, V(0), t);
    x = select(is_ignored, V(0), x);
    V pos_weight = load_rows<U>(block.pos_weights + i, n);
    Point<V> point = policy.soft(sigmoid(x), t, pos_weight, gamma_of<V>(factors, block, i, n));
    V factor = t * load_rows<U>(block.positives + i, n) + (1 - t) * load_rows<U>(block.negatives + i, n);
    V value = only_first(n, select(is_ignored, V(0), point.value * factor));
    if constexpr (U == abreast) total = total + value;
    else rest = rest + value;
    if (block.loss) store_rows(block.loss + i, n, value);
    if (!block.grad) return;
    V grad = point.slope * factor * scale;
    if (block.upstream) grad = grad * load_rows<U>(block.upstream + i, n);
    store_rows(block.grad + i, n, select(is_ignored, V(0), grad));
  });
  return static_cast<double>(sum(total)) + sum(rest);
}

// Sums of the elements [begin, end): their losses, and how many do not count.
template <class S, class Policy>
void sigmoid_elements(const SigmoidElements<S>& job, const Policy& policy, int64_t begin, int64_t end,
                      BlockSums& sums) {
  using A = Accumulate<S>;
  ElementBlock<A> block;
  const bool varied = job.factors.positives || job.factors.gammas || job.weight;
  const bool per_element = job.upstream && job.upstream_per_element;
  const bool dense_loss = job.walk.is_dense(kElementLoss);
  const bool dense_grad = job.walk.is_dense(kGrad) && std::is_same_v<S, A>;
  const A scale = job.inverse_divisor * (job.upstream && !per_element ? *job.upstream : A(1));
  block.streams = job.streams && dense_grad;
  for (int64_t at = begin; at < end; at += kElementBlock) {
    block.n = static_cast<int>(std::min<int64_t>(kElementBlock, end - at));
    block.x = gathered(job.walk, kLogits, job.logits, at, block.n, block.logits);
    block.upstream = per_element ? gathered(job.walk, kUpstream, job.upstream, at, block.n, block.upstreams) : nullptr;
    const bool is_hard = read_targets(job, at, block, sums);
    if (varied || !is_hard) read_factors(job, at, block);
    block.loss = !job.loss ? nullptr : dense_loss ? job.loss + at : block.losses;
    block.grad = job.grad ? block.grads : nullptr;
    if constexpr (std::is_same_v<S, A>) {
      if (job.grad && dense_grad) block.grad = job.grad + at;
    }

    if (!is_hard) sums.loss += soft_elements(policy, job.factors, block, scale, sums.ignored);
    else if (varied) sums.loss += hard_elements<true, false>(policy, job.factors, block, scale);
    else if (job.factors.gamma == 2) sums.loss += hard_elements<false, true>(policy, job.factors, block, scale);
    else sums.loss += hard_elements<false, false>(policy, job.factors, block, scale);

    if (block.loss && !dense_loss) scatter(job.walk, kElementLoss, block.losses, at, block.n, job.loss);
    if (block.grad && !dense_grad) scatter(job.walk, kGrad, block.grads, at, block.n, job.grad);
  }
  if (block.streams) stream_fence();
}

}  // namespace imbloss
