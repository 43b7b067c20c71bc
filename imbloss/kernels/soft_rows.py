"""Softmax losses of a distribution a row, or of a class with label smoothing (docs/math.md, section 2) in Triton: rows
that a program holds or walks thrice, for any strides. What a value and a slope are is the policy's business.

The functions at the end are operators of imbloss/_ops.py.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from imbloss._ops import REDUCTIONS
from imbloss.kernels import rows
from imbloss.kernels.policies import LN2, LOG2E, POLICIES, log, log1p
from imbloss.kernels.rows import (
    LOWEST,
    classes_of_block,
    exp,
    higher,
    inverse_divisor,
    load_logits,
    load_target,
    per_class,
    row_weight,
    rows_at,
    rows_of_program,
)
from imbloss.priors import check_target, is_debug


@triton.jit
def _shares(probabilities_ptr, y, cols, stride_class, kept, spread, weight_ptr, num_classes, mask, VEC: tl.constexpr):
    """The target's share of each class of a tile, times the class's weight; 0 where masked."""
    if VEC > 1:
        num_classes = num_classes // VEC * VEC
    if probabilities_ptr is not None:
        share = tl.load(probabilities_ptr + cols.to(tl.int64) * stride_class, mask=mask, other=0.0).to(tl.float32)
    else:
        share = tl.where(cols == y, 1.0, 0.0)
    share = share * kept + spread
    if weight_ptr is not None:
        share = share * per_class(weight_ptr, cols, num_classes)
    return tl.where(mask, share, 0.0)


@triton.jit
def _class_slopes(z, top, e_top, e_others, share, gamma, policy_args, POLICY: tl.constexpr, WHOLE: tl.constexpr):
    """Of the classes of a tile: whether they are at the top, p, q, and the weighted value and slope.

    The classes at the top share the complement that was summed from the others; all else has p <= 1/2, where 1 - p
    loses nothing. No share, no contribution, even at log p = -inf.
    """
    at_top = z == top[:, None]
    top2 = (top * LOG2E)[:, None]
    total = e_top + e_others
    inverse_total = tl.div_rn(1.0, total)[:, None]
    p = exp(z, top2) * inverse_total
    q = tl.where(at_top, e_others[:, None] * inverse_total, 1.0 - p)
    log_p_top = -log1p(tl.div_rn(e_others, e_top))[:, None]
    log_p = tl.where(at_top, log_p_top, tl.fma(z, LOG2E, -top2) * LN2 - log(total)[:, None])
    value, slope = POLICY(log_p, p, q, gamma, policy_args, WHOLE)
    absent = share == 0.0
    return at_top, p, q, tl.where(absent, 0.0, share * value), tl.where(absent, 0.0, share * slope)


@triton.jit
def _load_block(
    i, here, x_ptr, t_ptr, y, stride_class, target_stride_class, weight_ptr, scale_ptr, bias_ptr, gammas_ptr, gamma,
    kept, spread, num_classes, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Logits (-inf where there are none), shares and gammas of a block."""
    cols, mask = classes_of_block(i, here, num_classes, BLOCKS, COLUMNS, VEC)
    z = load_logits(x_ptr, cols, stride_class, scale_ptr, bias_ptr, num_classes, mask, VEC)
    z = tl.where(mask & (cols < num_classes), z, float("-inf"))
    share = _shares(t_ptr, y, cols, target_stride_class, kept, spread, weight_ptr, num_classes, mask, VEC)
    if gammas_ptr is not None:
        gamma = per_class(gammas_ptr, cols, num_classes)
    return z, share, gamma


@triton.jit
def _add_tops(z, top, count, below):
    """The maximum, how many classes are there, and the sum of the exponentials of those below: with one more block."""
    new_top = tl.maximum(top, tl.max(z, 1))
    top2, new_top2 = higher(LOWEST, top), higher(LOWEST, new_top)
    surpassed = new_top > top
    below += tl.where(surpassed, count * exp(top, top2), 0.0)
    at_top = z == new_top[:, None]
    e = tl.where(at_top, 0.0, exp(z, new_top2[:, None]))
    below = below * tl.exp2(top2 - new_top2) + tl.sum(e, 1)
    count = tl.where(surpassed, 0.0, count) + tl.sum(at_top.to(tl.float32), 1)
    return new_top, count, below


@triton.jit
def _add_slopes(
    z, share, gamma, top, e_top, e_others, loss, of_top, of_others, policy_args,
    POLICY: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    at_top, _, _, value, slope = _class_slopes(z, top, e_top, e_others, share, gamma, policy_args, POLICY, WHOLE)
    loss += tl.sum(value, 1)
    of_top += tl.sum(tl.where(at_top, slope, 0.0), 1)
    return loss, of_top, of_others + tl.sum(tl.where(at_top, 0.0, slope), 1)


@triton.jit
def _store_gradient(
    i, g_ptr, z, share, gamma, top, e_top, e_others, of_top, of_others, factor, here, counts, scale_ptr,
    num_classes, stride_class, policy_args,
    POLICY: tl.constexpr, WHOLE: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    cols, mask = classes_of_block(i, here, num_classes, BLOCKS, COLUMNS, VEC)
    at_top, p, q, _, slope = _class_slopes(z, top, e_top, e_others, share, gamma, policy_args, POLICY, WHOLE)
    # a single class at the top may have p near 1: its own slope is taken out of both terms
    single_top = at_top & (e_others < e_top)[:, None]
    alone = slope * q - p * of_others[:, None]
    grad = factor[:, None] * tl.where(single_top, alone, slope - p * (of_top + of_others)[:, None])
    if scale_ptr is not None:
        if VEC > 1:
            num_classes = num_classes // VEC * VEC
        grad = grad * per_class(scale_ptr, cols, num_classes)
    grad = tl.where(counts[:, None], grad, 0.0)
    tl.store(g_ptr + cols.to(tl.int64) * stride_class, grad.to(g_ptr.dtype.element_ty), mask=mask)


@triton.jit
def softmax_soft_rows_kernel(
    logits_ptr, target_ptr, probabilities_ptr, loss_ptr, upstream_ptr, grad_ptr, divisor_ptr,
    # operands, or None
    weight_ptr, sample_weight_ptr, scale_ptr, bias_ptr, gammas_ptr,
    # shapes
    num_classes, inner,
    # strides
    stride_outer, stride_class, stride_inner,
    target_stride_outer, target_stride_class, target_stride_inner,
    grad_stride_outer, grad_stride_class, grad_stride_inner, upstream_stride,
    gamma, policy_args, kept, spread, ignore_index,
    POLICY: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Either target_ptr or probabilities_ptr is None; either loss_ptr or grad_ptr."""
    outer, i, here, row = rows_of_program(inner, ROWS)
    x_ptr = rows_at(logits_ptr, outer, i, stride_outer, stride_inner, VEC)
    if probabilities_ptr is None:
        y, counts, in_range = load_target(target_ptr, row, here, num_classes, ignore_index)
        y = y[:, None]
        t_ptr = None
    else:
        y = None
        counts = here
        in_range = here
        t_ptr = rows_at(probabilities_ptr, outer, i, target_stride_outer, target_stride_inner, VEC)

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    count = tl.zeros((ROWS,), tl.float32)
    below = tl.zeros((ROWS,), tl.float32)
    tiles = ()
    if BLOCKS > 0:
        for b in tl.static_range(BLOCKS):
            tile = _load_block(
                b, here, x_ptr, t_ptr, y, stride_class, target_stride_class, weight_ptr, scale_ptr, bias_ptr,
                gammas_ptr, gamma, kept, spread, num_classes, BLOCKS, COLUMNS, VEC,
            )  # fmt: skip
            tiles = tiles + (tile,)
            top, count, below = _add_tops(tile[0], top, count, below)
    else:
        for b in range(0, tl.cdiv(num_classes, COLUMNS)):
            z, _, _ = _load_block(
                b, here, x_ptr, t_ptr, y, stride_class, target_stride_class, weight_ptr, scale_ptr, bias_ptr,
                gammas_ptr, gamma, kept, spread, num_classes, BLOCKS, COLUMNS, VEC,
            )  # fmt: skip
            top, count, below = _add_tops(z, top, count, below)
    e_top = exp(top, higher(LOWEST, top))
    e_others = below + (count - 1.0) * e_top

    loss = tl.zeros((ROWS,), tl.float32)
    of_top = tl.zeros((ROWS,), tl.float32)
    of_others = tl.zeros((ROWS,), tl.float32)
    if BLOCKS > 0:
        for b in tl.static_range(BLOCKS):
            z, share, g = tiles[b]
            loss, of_top, of_others = _add_slopes(
                z, share, g, top, e_top, e_others, loss, of_top, of_others, policy_args, POLICY, WHOLE
            )
    else:
        for b in range(0, tl.cdiv(num_classes, COLUMNS)):
            z, share, g = _load_block(
                b, here, x_ptr, t_ptr, y, stride_class, target_stride_class, weight_ptr, scale_ptr, bias_ptr,
                gammas_ptr, gamma, kept, spread, num_classes, BLOCKS, COLUMNS, VEC,
            )  # fmt: skip
            loss, of_top, of_others = _add_slopes(
                z, share, g, top, e_top, e_others, loss, of_top, of_others, policy_args, POLICY, WHOLE
            )

    weight = row_weight(sample_weight_ptr, row, here)
    bad = counts & (in_range == 0)
    if loss_ptr is not None:
        loss = tl.where(counts, weight * loss, 0.0)
        tl.store(loss_ptr + row, tl.where(bad, float("nan"), loss), mask=here)
    if grad_ptr is not None:
        g_ptr = rows_at(grad_ptr, outer, i, grad_stride_outer, grad_stride_inner, VEC)
        upstream = tl.load(upstream_ptr + row * upstream_stride, mask=here, other=0.0)
        factor = tl.where(bad, float("nan"), weight * upstream * inverse_divisor(divisor_ptr))
        if BLOCKS > 0:
            for b in tl.static_range(BLOCKS):
                z, share, g = tiles[b]
                _store_gradient(
                    b, g_ptr, z, share, g, top, e_top, e_others, of_top, of_others, factor, here, counts, scale_ptr,
                    num_classes, grad_stride_class, policy_args, POLICY, WHOLE, BLOCKS, COLUMNS, VEC,
                )  # fmt: skip
        else:
            for b in range(0, tl.cdiv(num_classes, COLUMNS)):
                z, share, g = _load_block(
                    b, here, x_ptr, t_ptr, y, stride_class, target_stride_class, weight_ptr, scale_ptr, bias_ptr,
                    gammas_ptr, gamma, kept, spread, num_classes, BLOCKS, COLUMNS, VEC,
                )  # fmt: skip
                _store_gradient(
                    b, g_ptr, z, share, g, top, e_top, e_others, of_top, of_others, factor, here, counts, scale_ptr,
                    num_classes, grad_stride_class, policy_args, POLICY, WHOLE, BLOCKS, COLUMNS, VEC,
                )  # fmt: skip


# ---- the operators -------------------------------------------------------------------------------------------------
def softmax_soft_rows(
    logits, target, operands, numbers, label_smoothing, ignore_index, reduction, policy, keep_grad
):  # fmt: skip
    args = logits, target, operands, numbers, label_smoothing, ignore_index, reduction, policy
    losses, divisor = _soft_rows(None, None, *args)
    loss = losses if reduction == REDUCTIONS["none"] else losses.sum()
    loss = loss if divisor is None else loss / divisor
    return loss, softmax_soft_rows_backward(torch.ones_like(loss), *args) if keep_grad else logits.new_empty(0)


def softmax_soft_rows_backward(grad_output, logits, *args):
    grad = torch.empty_like(logits)
    grad_rows = rows.as_rows(grad)
    _soft_rows(grad_output, grad_rows, logits, *args)
    return rows.filled(grad, grad_rows)


def softmax_soft_rows_(logits, *args):
    loss, _ = softmax_soft_rows(logits, *args, False)
    grad_rows = rows.as_rows(logits)
    _soft_rows(torch.ones_like(loss), grad_rows, logits, *args)
    rows.filled(logits, grad_rows)
    return loss


def _divisor(target, num_rows, operands, ignore_index) -> Tensor:
    """Of the mean: the weights of the rows that count."""
    weight, sample_weight, *_, normalizer = operands
    if normalizer is not None:
        return normalizer.float()
    if target.is_floating_point():
        if sample_weight is not None:
            return sample_weight.sum()
        return torch.full((), num_rows, dtype=torch.float32, device=target.device)
    target = target.reshape(-1)
    counts = target != ignore_index
    if weight is None and sample_weight is None:
        return counts.sum()
    total = counts if weight is None else weight[target.clamp(0, len(weight) - 1)]
    total = total if sample_weight is None else total * sample_weight.reshape(-1)
    return torch.where(counts, total, 0).sum()


def _soft_rows(
    grad_output: Tensor | None,
    grad: Tensor | None,
    logits: Tensor,
    target: Tensor,
    operands: Sequence[Tensor | None],
    numbers: Sequence[float],
    label_smoothing: float,
    ignore_index: int,
    reduction: int,
    policy: str,
) -> tuple[Tensor | None, Tensor | None]:
    """The rows' losses or, with an upstream gradient, their gradient into the rows `grad`; and the divisor."""
    rows.check_dtype(logits)
    operands = operands or rows.NO_OPERANDS
    weight, sample_weight, scale, bias, _, gammas, _ = operands
    soft = target.is_floating_point()
    if is_debug() and not soft:
        check_target(target, logits.shape[1] if logits.dim() > 1 else len(logits), ignore_index)
    x = rows.as_rows(logits)
    probabilities = rows.as_rows(target) if soft else None
    walk = rows.Walk(*[tensor for tensor in (x, probabilities, grad) if tensor is not None], stores=grad is not None)
    divisor = _divisor(target, walk.num_rows, operands, ignore_index) if reduction == REDUCTIONS["mean"] else None
    losses = None
    if grad is None:
        losses = logits.new_empty(logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else (), dtype=torch.float32)
    upstream, upstream_stride = (None, 0) if grad_output is None else rows.upstream_of(grad_output)
    of_x, *others = walk.strides
    of_target = others.pop(0) if soft else (0, 0, 0)
    of_grad = others.pop(0) if others else (0, 0, 0)
    gamma, *policy_args = numbers
    walk.run_tiles(
        softmax_soft_rows_kernel,
        x, None if soft else target.contiguous(), probabilities, losses, upstream, grad, divisor,
        weight, sample_weight, scale, bias, None if gammas is None else gammas.float(),
        walk.num_classes, walk.inner, *of_x, *of_target, *of_grad, upstream_stride,
        gamma, tuple(policy_args), 1 - label_smoothing, label_smoothing / walk.num_classes, ignore_index,
        POLICY=POLICIES[policy], WHOLE=rows.whole(gamma, gammas),
    )  # fmt: skip
    return losses, divisor
