"""Sigmoid losses of elements (docs/math.md, section 5) in Triton: the walk over logits and targets of any strides.
What a value and a slope are is the policy's business.

The functions at the end are the operators of imbloss/_ops.py.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from imbloss._ops import ELEMENT_OPERANDS, REDUCTIONS
from imbloss.kernels import launch, rows
from imbloss.kernels.policies import ELEMENT_POLICIES, sigmoid

TILE = 1024  # elements a program holds


@triton.jit
def _offset(row, cls, inner, stride_outer, stride_class, stride_inner):
    return row * stride_outer + cls * stride_class + inner * stride_inner


@triton.jit
def sigmoid_elements_kernel(
    logits_ptr, target_ptr, loss_ptr, upstream_ptr, grad_ptr, divisor_ptr,
    # per element, or None
    weight_ptr,
    # per class, or None
    positives_ptr, negatives_ptr, pos_weights_ptr, gammas_ptr,
    # shapes
    count, num_classes, num_inner,
    # strides
    stride_outer, stride_class, stride_inner,
    target_stride_outer, target_stride_class, target_stride_inner,
    weight_stride_outer, weight_stride_class, weight_stride_inner,
    upstream_stride_outer, upstream_stride_class, upstream_stride_inner,
    out_stride_outer, out_stride_class, out_stride_inner,
    positive, negative, pos_weight, gamma, policy_args, ignore_index,
    HARD: tl.constexpr, SOFT: tl.constexpr, WHOLE: tl.constexpr,
    BY_CLASS: tl.constexpr, REDUCED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Either loss_ptr or grad_ptr is None; SOFT is None where targets are not floating."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    inner = i % num_inner
    cls = i // num_inner % num_classes
    row = i // num_inner // num_classes
    x = tl.load(
        logits_ptr + _offset(row, cls, inner, stride_outer, stride_class, stride_inner), mask=mask, other=0.0
    ).to(tl.float32)
    target = tl.load(
        target_ptr + _offset(row, cls, inner, target_stride_outer, target_stride_class, target_stride_inner),
        mask=mask, other=0,
    )  # fmt: skip
    counts = mask & (target != ignore_index)
    x = tl.where(counts, x, 0.0)  # 0 whatever an ignored element's logit is
    bad = counts & (counts == 0)
    if BY_CLASS:
        bad = counts & ((target < -1) | (target > num_classes))
        t = tl.where(target == cls, 1.0, 0.0)
    elif SOFT is None:
        bad = counts & (target != 0) & (target != 1)
        t = tl.where(target == 1, 1.0, 0.0)
    else:
        t = tl.where(counts, target.to(tl.float32), 0.0)

    if positives_ptr is not None:
        positive = tl.load(positives_ptr + cls, mask=mask, other=0.0)
        negative = tl.load(negatives_ptr + cls, mask=mask, other=0.0)
        pos_weight = tl.load(pos_weights_ptr + cls, mask=mask, other=0.0)
    if gammas_ptr is not None:
        gamma = tl.load(gammas_ptr + cls, mask=mask, other=0.0)

    is_one = t == 1.0
    log_p, log_q, p, q = sigmoid(tl.where(is_one, x, -x))
    value, slope = HARD(log_p, log_q, p, q, is_one, gamma, policy_args, WHOLE)
    value = tl.where(is_one, pos_weight * value, value)
    slope = tl.where(is_one, pos_weight * slope, -slope)
    factor = t * positive + (1.0 - t) * negative
    if SOFT is not None:
        between = (t != 0.0) & (t != 1.0)
        log_p, log_q, p, q = sigmoid(x)
        soft_value, soft_slope = SOFT(log_p, log_q, p, q, t, pos_weight, gamma, policy_args, WHOLE)
        value = tl.where(between, soft_value, value)
        slope = tl.where(between, soft_slope, slope)
    if weight_ptr is not None:
        offset = _offset(row, cls, inner, weight_stride_outer, weight_stride_class, weight_stride_inner)
        factor = factor * tl.load(weight_ptr + offset, mask=mask, other=0.0)
    factor = tl.where(bad, float("nan"), factor)

    out = _offset(row, cls, inner, out_stride_outer, out_stride_class, out_stride_inner)
    if loss_ptr is not None:
        value = tl.where(counts, value * factor, 0.0)
        if REDUCED:
            tl.store(loss_ptr + tl.program_id(0), tl.sum(value, 0))
        else:
            tl.store(loss_ptr + out, value, mask=mask)
    if grad_ptr is not None:
        offset = _offset(row, cls, inner, upstream_stride_outer, upstream_stride_class, upstream_stride_inner)
        upstream = tl.load(upstream_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if divisor_ptr is not None:
            upstream = tl.div_rn(upstream, tl.load(divisor_ptr).to(tl.float32))
        grad = tl.where(counts, slope * factor * upstream, 0.0)
        tl.store(grad_ptr + out, grad.to(grad_ptr.dtype.element_ty), mask=mask)


# ---- the operators -------------------------------------------------------------------------------------------------
def _as_elements(tensor: Tensor) -> Tensor:
    """(N, C, inner): a view where the strides allow it."""
    n, classes, *inner = tensor.shape if tensor.dim() > 1 else (1, tensor.numel())
    return tensor.reshape(n, classes, math.prod(inner))


def _block(logits: Tensor) -> int:
    return min(TILE, triton.next_power_of_2(max(logits.numel(), 1)))


def _launch(kernel, logits: Tensor, *args, **constants) -> None:
    count, block = logits.numel(), _block(logits)
    if count == 0:
        return
    rows.run(kernel, (launch.cdiv(count, block),), logits.device, *args, BLOCK=block, **constants)


def _elements(
    loss: Tensor | None,
    grad: Tensor | None,
    grad_output: Tensor | None,
    logits: Tensor,
    target: Tensor,
    operands: Sequence[Tensor | None],
    numbers: Sequence[float],
    ignore_index: int,
    reduction: int,
    policy: str,
) -> Tensor | None:
    """Fills in losses, one an element or one a program, or the gradient; returns the divisor of "mean"."""
    if logits.dtype == torch.float64:
        raise TypeError("expected logits of dtype float32, bfloat16 or float16 in a Triton kernel, but got float64")
    weight, pos_weights, alphas, gammas, normalizer = operands or [None] * len(ELEMENT_OPERANDS)
    gamma, alpha, pos_weight, *params = numbers
    rows = _as_elements(logits)
    n, classes, inner = rows.shape
    by_class = target.shape != logits.shape
    divisor = None
    if reduction == REDUCTIONS["mean"]:
        counts = (target != ignore_index).sum() * (classes if by_class else 1)
        divisor = (counts if normalizer is None else normalizer).float()

    positive, negative = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    positives = negatives = None
    per_class = weight is not None and weight.dim() == 1 and weight.numel() == classes
    if per_class or pos_weights is not None or alphas is not None:
        ones = torch.ones(classes, dtype=torch.float32, device=logits.device)
        class_weight = weight if per_class else ones
        positives = class_weight * (positive if alphas is None else alphas)
        negatives = class_weight * (negative if alphas is None else 1 - alphas)
        pos_weights = ones * (pos_weight if pos_weights is None else pos_weights)
    weights = None if weight is None or per_class else _as_elements(weight)

    def strides(tensor: Tensor | None) -> tuple[int, ...]:
        return (0, 0, 0) if tensor is None else tensor.stride()

    target = target.view(torch.uint8) if target.dtype == torch.bool else target
    targets = target.reshape(n, 1, inner) if by_class else _as_elements(target)
    target_strides = (targets.stride(0), 0 if by_class else targets.stride(1), targets.stride(2))
    upstream = None if grad_output is None else _as_elements(grad_output) if grad_output.dim() else grad_output
    out = grad if grad is not None else loss
    hard, soft = ELEMENT_POLICIES[policy]
    _launch(
        sigmoid_elements_kernel, rows,
        rows, targets, loss, upstream, grad, divisor, weights, positives, negatives, pos_weights, gammas,
        rows.numel(), classes, inner, *rows.stride(), *target_strides, *strides(weights),
        *(strides(upstream) if upstream is not None and upstream.dim() else (0, 0, 0)),
        *(strides(out) if out is not None and out.dim() == 3 else (0, 0, 0)),
        positive, negative, pos_weight, gamma, tuple(params) or (0.0,), ignore_index,
        HARD=hard, SOFT=soft if target.is_floating_point() else None,
        WHOLE=int(gamma) if gammas is None and gamma in (0, 1, 2, 3) else -1, BY_CLASS=by_class,
        REDUCED=loss is not None and loss.dim() == 1,
    )  # fmt: skip
    return divisor


def sigmoid_elements(logits, target, operands, numbers, ignore_index, reduction, policy, keep_grad):
    args = logits, target, operands, numbers, ignore_index, reduction, policy
    if reduction == REDUCTIONS["none"]:
        loss = torch.empty_like(logits, dtype=torch.float32)
        losses = _as_elements(loss)
        _elements(losses, None, None, *args)
        loss = _filled(loss, losses)
    else:
        losses = logits.new_empty(triton.cdiv(logits.numel(), _block(logits)), dtype=torch.float32)
        divisor = _elements(losses, None, None, *args)
        loss = losses.sum() if divisor is None else losses.sum() / divisor
    return loss, sigmoid_elements_backward(torch.ones_like(loss), *args) if keep_grad else logits.new_empty(0)


def sigmoid_elements_backward(grad_output, logits, *args):
    grad = torch.empty_like(logits)
    rows = _as_elements(grad)
    _elements(None, rows, grad_output, logits, *args)
    return _filled(grad, rows)


def _filled(tensor: Tensor, rows: Tensor) -> Tensor:
    """The tensor whose elements were written, be they a view of it or not."""
    return tensor if rows.data_ptr() == tensor.data_ptr() else tensor.copy_(rows.view(tensor.shape))
