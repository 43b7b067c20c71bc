"""Sigmoid losses of elements (docs/math.md, section 5) in Triton: the walk over logits and targets of any strides.
What a value and a slope are is the policy's business.

Elements are rows and columns of a tile. What differs by class stands in columns where these are the classes, else a row
has one class; without any such thing and gaps in memory, all elements are one row. The functions at the end are the
operators of imbloss/_ops.py.
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


@triton.jit
def _place(outer, cls, k, stride_outer, stride_class, stride_inner):
    return (outer * stride_outer + cls * stride_class)[:, None] + k * stride_inner


@triton.jit
def _load(ptr, mask, FULL: tl.constexpr):
    return tl.load(ptr) if FULL else tl.load(ptr, mask=mask, other=0)


@triton.jit
def _of_class(ptr, cls, k, here, inside, IN_COLUMNS: tl.constexpr):
    """A number of each class, for a tile."""
    if IN_COLUMNS:
        value = tl.load(ptr + k, mask=inside, other=0.0)
    else:
        value = tl.load(ptr + cls, mask=here, other=0.0)[:, None]
    return value


@triton.jit
def sigmoid_elements_kernel(
    logits_ptr, target_ptr, loss_ptr, upstream_ptr, grad_ptr, divisor_ptr,
    # per element, or None
    weight_ptr,
    # per class, or None
    positives_ptr, negatives_ptr, pos_weights_ptr, gammas_ptr,
    # shapes
    num_rows, num_columns, row_classes, num_classes,
    # strides
    stride_outer, stride_class, stride_inner,
    target_stride_outer, target_stride_class, target_stride_inner,
    weight_stride_outer, weight_stride_class, weight_stride_inner,
    upstream_stride_outer, upstream_stride_class, upstream_stride_inner,
    out_stride_outer, out_stride_class, out_stride_inner,
    positive, negative, pos_weight, gamma, policy_args, ignore_index,
    HARD: tl.constexpr, SOFT: tl.constexpr, WHOLE: tl.constexpr,
    BY_CLASS: tl.constexpr, IN_COLUMNS: tl.constexpr, REDUCED: tl.constexpr, ONE_UPSTREAM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Either loss_ptr or grad_ptr is None; SOFT is None where targets are not floating.

    row_classes: how many classes the rows are of, one after the other; 1 where classes are columns or none. FULL: no
    tile has elements that are not there.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = (tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    here, inside = row < num_rows, k < num_columns
    mask = here[:, None] & inside
    outer, cls = row // row_classes, row % row_classes
    x = _load(logits_ptr + _place(outer, cls, k, stride_outer, stride_class, stride_inner), mask, FULL).to(tl.float32)
    target_place = _place(outer, cls, k, target_stride_outer, target_stride_class, target_stride_inner)
    target = _load(target_ptr + target_place, mask, FULL)
    counts = mask & (target != ignore_index)
    x = tl.where(counts, x, 0.0)  # 0 whatever an ignored element's logit is
    if BY_CLASS:
        bad = counts & ((target < -1) | (target > num_classes))
        is_one = target == (k if IN_COLUMNS else cls[:, None])
    elif SOFT is None:
        bad = counts & ((target >> 1) != 0)
        is_one = (target.to(tl.int32) & 1) != 0
    else:
        t = tl.where(counts, target.to(tl.float32), 0.0)
        is_one = t == 1.0

    if positives_ptr is not None:
        positive = _of_class(positives_ptr, cls, k, here, inside, IN_COLUMNS)
        negative = _of_class(negatives_ptr, cls, k, here, inside, IN_COLUMNS)
        pos_weight = _of_class(pos_weights_ptr, cls, k, here, inside, IN_COLUMNS)
    if gammas_ptr is not None:
        gamma = _of_class(gammas_ptr, cls, k, here, inside, IN_COLUMNS)

    log_p, log_q, p, q = sigmoid(tl.where(is_one, x, -x))
    value, slope = HARD(log_p, log_q, p, q, is_one, gamma, policy_args, WHOLE)
    if SOFT is None:
        factor = tl.where(is_one, pos_weight * positive, negative)
        slope = tl.where(is_one, slope, -slope)
    else:
        value = tl.where(is_one, pos_weight * value, value)
        slope = tl.where(is_one, pos_weight * slope, -slope)
        factor = t * positive + (1.0 - t) * negative
        between = (t != 0.0) & (t != 1.0)
        log_p, log_q, p, q = sigmoid(x)
        soft_value, soft_slope = SOFT(log_p, log_q, p, q, t, pos_weight, gamma, policy_args, WHOLE)
        value = tl.where(between, soft_value, value)
        slope = tl.where(between, soft_slope, slope)
    if weight_ptr is not None:
        place = _place(outer, cls, k, weight_stride_outer, weight_stride_class, weight_stride_inner)
        factor = factor * _load(weight_ptr + place, mask, FULL)
    if SOFT is None:
        factor = tl.where(bad, float("nan"), factor)

    out = _place(outer, cls, k, out_stride_outer, out_stride_class, out_stride_inner)
    if loss_ptr is not None:
        value = tl.where(counts, value * factor, 0.0)
        if REDUCED:
            program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
            tl.store(loss_ptr + program, tl.sum(tl.sum(value, 1), 0))
        elif FULL:
            tl.store(loss_ptr + out, value)
        else:
            tl.store(loss_ptr + out, value, mask=mask)
    if grad_ptr is not None:
        if ONE_UPSTREAM:
            upstream = tl.load(upstream_ptr).to(tl.float32)
        else:
            place = _place(outer, cls, k, upstream_stride_outer, upstream_stride_class, upstream_stride_inner)
            upstream = _load(upstream_ptr + place, mask, FULL).to(tl.float32)
        if divisor_ptr is not None:
            upstream = upstream * tl.div_rn(1.0, tl.load(divisor_ptr).to(tl.float32))
        grad = tl.where(counts, slope * factor * upstream, 0.0).to(grad_ptr.dtype.element_ty)
        if FULL:
            tl.store(grad_ptr + out, grad)
        else:
            tl.store(grad_ptr + out, grad, mask=mask)


# ---- the operators -------------------------------------------------------------------------------------------------
def _as_elements(tensor: Tensor) -> Tensor:
    """(N, C, inner): a view where the strides allow it."""
    n, classes, *inner = tensor.shape if tensor.dim() > 1 else (1, tensor.numel())
    return tensor.reshape(n, classes, math.prod(inner))


def _strides(tensor: Tensor | None) -> tuple[int, int, int]:
    """A tensor of one number stands for as many as there are elements."""
    return (0, 0, 0) if tensor is None or tensor.dim() == 0 else tensor.stride()


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
) -> tuple[Tensor | None, Tensor | None]:
    """Fills in losses, one an element, or the gradient; returns the sums of programs where neither is given, and the
    divisor of "mean"."""
    rows.check_dtype(logits)
    weight, pos_weights, alphas, gammas, normalizer = operands or [None] * len(ELEMENT_OPERANDS)
    gamma, alpha, pos_weight, *params = numbers
    x = _as_elements(logits)
    n, classes, inner = x.shape
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

    target = target.view(torch.uint8) if target.dtype == torch.bool else target
    targets = target.reshape(n, 1, inner) if by_class else _as_elements(target)
    of_target = (targets.stride(0), 0 if by_class else targets.stride(1), targets.stride(2))
    upstream = None if grad_output is None else _as_elements(grad_output) if grad_output.dim() else grad_output
    reduced = loss is None and grad is None
    out = grad if grad is not None else loss
    strides = [_strides(x), of_target, _strides(weights), _strides(upstream), _strides(out)]
    tile = launch.elements((n, classes, inner), tuple(strides), by_class or positives is not None or gammas is not None)
    if reduced:
        loss = logits.new_empty(math.prod(tile.grid), dtype=torch.float32)
    hard, soft = ELEMENT_POLICIES[policy]
    if logits.numel():
        rows.run(
            sigmoid_elements_kernel, tile.grid, logits.device,
            x, targets, loss, upstream, grad, divisor, weights, positives, negatives, pos_weights, gammas,
            *tile.shape, tile.row_classes, classes, *[step for each in tile.strides for step in each],
            positive, negative, pos_weight, gamma, tuple(params) or (0.0,), ignore_index,
            HARD=hard, SOFT=soft if target.is_floating_point() else None, WHOLE=rows.whole(gamma, gammas),
            BY_CLASS=by_class, IN_COLUMNS=tile.in_columns, REDUCED=reduced,
            ONE_UPSTREAM=upstream is not None and upstream.dim() == 0,
            ROWS=tile.rows, COLUMNS=tile.columns, FULL=tile.full,
        )  # fmt: skip
    return loss, divisor


def sigmoid_elements(logits, target, operands, numbers, ignore_index, reduction, policy, keep_grad):
    args = logits, target, operands, numbers, ignore_index, reduction, policy
    if reduction == REDUCTIONS["none"]:
        loss = torch.empty_like(logits, dtype=torch.float32)
        losses = _as_elements(loss)
        _elements(losses, None, None, *args)
        loss = rows.filled(loss, losses)
    else:
        sums, divisor = _elements(None, None, None, *args)
        loss = sums.sum() if divisor is None else sums.sum() / divisor
    return loss, sigmoid_elements_backward(torch.ones_like(loss), *args) if keep_grad else logits.new_empty(0)


def sigmoid_elements_backward(grad_output, logits, *args):
    grad = torch.empty_like(logits)
    elements = _as_elements(grad)
    _elements(None, elements, grad_output, logits, *args)
    return rows.filled(grad, elements)
