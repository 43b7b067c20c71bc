"""Softmax losses of one class a row or of a distribution (docs/math.md, sections 1 and 2) in Triton: the walk over rows
and classes, for any number of classes, strides and alignment. What a value and a slope are is the policy's business.

The functions at the end are the operators of imbloss/_ops.py.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from imbloss._ops import NUM_ROW_STATS, OPERANDS, REDUCTIONS
from imbloss.kernels.policies import LN2, LOG2E, POLICIES, log, log1p
from imbloss.priors import check_target, is_debug

TILE = 4096  # elements a program holds at a time
MOST_COLUMNS = 1024


# ---- what the kernels share ----------------------------------------------------------------------------------------
@triton.jit
def _row_offset(row, inner, stride_outer, stride_inner):
    return row // inner * stride_outer + row % inner * stride_inner


@triton.jit
def _exp(z, top2):
    """exp(z - top), with top2 = top * LOG2E rounded: an error that all classes of a row share, and that cancels."""
    return tl.exp2(tl.fma(z, LOG2E, -top2))


@triton.jit
def _per_class(ptr, cols, num_classes):
    return tl.load(ptr + cols, mask=cols < num_classes, other=0.0)


@triton.jit
def _load_logits(ptr, cols, stride_class, scale_ptr, bias_ptr, num_classes, mask):
    """z = scale x + bias of a tile; -inf where masked."""
    z = tl.load(ptr + cols.to(tl.int64) * stride_class, mask=mask, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        z = z * _per_class(scale_ptr, cols, num_classes)
    if bias_ptr is not None:
        z = z + _per_class(bias_ptr, cols, num_classes)
    return tl.where(mask, z, float("-inf"))


@triton.jit
def _log2_scale(top):
    """top * LOG2E for `_exp`; finite before any class was seen, where top is -inf."""
    return tl.where(top == float("-inf"), 0.0, top) * LOG2E


@triton.jit
def _rescale(top, new_top):
    """What turns exponentials relative to one maximum into those relative to a larger one."""
    return tl.where(top == float("-inf"), 0.0, tl.exp2(_log2_scale(top) - _log2_scale(new_top)))


@triton.jit
def _load_target(target_ptr, row, num_rows, num_classes, ignore_index):
    """The class of each row, made safe to index with; which rows count; which of them are in range."""
    label = tl.load(target_ptr + row, mask=row < num_rows, other=ignore_index)
    counts = (label != ignore_index) & (row < num_rows)
    in_range = (label >= 0) & (label < num_classes)
    return tl.where(counts & in_range, label, 0).to(tl.int32), counts, in_range


@triton.jit
def _row_weight(sample_weight_ptr, row, num_rows):
    weight = tl.zeros_like(row).to(tl.float32) + 1.0
    if sample_weight_ptr is not None:
        weight = tl.load(sample_weight_ptr + row, mask=row < num_rows, other=0.0)
    return weight


@triton.jit
def _inverse_divisor(divisor_ptr):
    inverse = 1.0
    if divisor_ptr is not None:
        inverse = tl.div_rn(1.0, tl.load(divisor_ptr).to(tl.float32))
    return inverse


# ---- one class a row -----------------------------------------------------------------------------------------------
@triton.jit
def softmax_rows_kernel(
    logits_ptr, target_ptr, loss_ptr, stats_ptr, divisor_ptr,
    # operands, or None
    weight_ptr, sample_weight_ptr, scale_ptr, bias_ptr, margin_ptr, gammas_ptr,
    # shapes
    num_rows, num_classes, inner,
    # strides
    stride_outer, stride_class, stride_inner,
    gamma, policy_args, ignore_index,
    POLICY: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    y, counts, in_range = _load_target(target_ptr, row, num_rows, num_classes, ignore_index)
    x_ptr = logits_ptr + _row_offset(row, inner, stride_outer, stride_inner)

    # the maximum of the other classes, and the sum of their exponentials relative to it
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    others = tl.zeros((ROWS,), tl.float32)
    for start in range(0, num_classes, COLUMNS):
        cols = start + tl.arange(0, COLUMNS)[None, :]
        mask = (row < num_rows)[:, None] & (cols < num_classes)
        z = _load_logits(x_ptr[:, None], cols, stride_class, scale_ptr, bias_ptr, num_classes, mask)
        z = tl.where(cols == y[:, None], float("-inf"), z)
        new_top = tl.maximum(top, tl.max(z, 1))
        others = others * _rescale(top, new_top) + tl.sum(_exp(z, _log2_scale(new_top)[:, None]), 1)
        top = new_top

    z_y = tl.load(x_ptr + y.to(tl.int64) * stride_class, mask=row < num_rows, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        z_y = z_y * tl.load(scale_ptr + y)
    if bias_ptr is not None:
        z_y = z_y + tl.load(bias_ptr + y)
    if margin_ptr is not None:
        z_y = z_y - tl.load(margin_ptr + y)
    new_top = tl.maximum(top, z_y)
    e_others = others * _rescale(top, new_top)
    top2 = new_top * LOG2E
    e_target = _exp(z_y, top2)
    total = e_target + e_others
    q = tl.div_rn(e_others, total)
    below_top = tl.fma(z_y, LOG2E, -top2) * LN2 - log(total)
    log_p = tl.where(z_y == new_top, -log1p(tl.div_rn(e_others, e_target)), below_top)
    if gammas_ptr is not None:
        gamma = tl.load(gammas_ptr + y)
    value, slope = POLICY(log_p, tl.div_rn(e_target, total), q, gamma, policy_args, WHOLE)

    weight = _row_weight(sample_weight_ptr, row, num_rows)
    if weight_ptr is not None:
        weight = weight * tl.load(weight_ptr + y)
    bad = counts & (in_range == 0)
    value = tl.where(counts, weight * value, 0.0)
    tl.store(loss_ptr + row, tl.where(bad, float("nan"), value), mask=row < num_rows)
    slope = tl.where(bad, float("nan"), slope * weight * _inverse_divisor(divisor_ptr))
    stats_ptr = stats_ptr + row
    tl.store(stats_ptr, top2, mask=row < num_rows)
    tl.store(stats_ptr + num_rows, tl.div_rn(-slope, total), mask=row < num_rows)
    tl.store(stats_ptr + num_rows + num_rows, slope * q, mask=row < num_rows)


@triton.jit
def softmax_rows_backward_kernel(
    logits_ptr, target_ptr, stats_ptr, upstream_ptr, grad_ptr,
    # operands, or None
    scale_ptr, bias_ptr,
    # shapes
    num_rows, num_classes, inner,
    # strides
    stride_outer, stride_class, stride_inner,
    grad_stride_outer, grad_stride_class, grad_stride_inner, upstream_stride,
    ignore_index,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    y, counts, _ = _load_target(target_ptr, row, num_rows, num_classes, ignore_index)
    x_ptr = logits_ptr + _row_offset(row, inner, stride_outer, stride_inner)
    g_ptr = grad_ptr + _row_offset(row, inner, grad_stride_outer, grad_stride_inner)
    upstream = tl.load(upstream_ptr + row * upstream_stride, mask=row < num_rows, other=0.0)
    stats_ptr = stats_ptr + row
    top2 = tl.load(stats_ptr, mask=row < num_rows, other=0.0)
    other = upstream * tl.load(stats_ptr + num_rows, mask=row < num_rows, other=0.0)
    target = upstream * tl.load(stats_ptr + num_rows + num_rows, mask=row < num_rows, other=0.0)
    for start in range(0, num_classes, COLUMNS):
        cols = start + tl.arange(0, COLUMNS)[None, :]
        mask = (row < num_rows)[:, None] & (cols < num_classes)
        z = _load_logits(x_ptr[:, None], cols, stride_class, scale_ptr, bias_ptr, num_classes, mask)
        g = tl.where(cols == y[:, None], target[:, None], _exp(z, top2[:, None]) * other[:, None])
        if scale_ptr is not None:
            g = g * _per_class(scale_ptr, cols, num_classes)
        g = tl.where(counts[:, None], g, 0.0)  # 0 whatever an ignored row's logits are
        tl.store(g_ptr[:, None] + cols.to(tl.int64) * grad_stride_class, g.to(grad_ptr.dtype.element_ty), mask=mask)


# ---- a distribution a row ------------------------------------------------------------------------------------------
@triton.jit
def _shares(probabilities_ptr, y, cols, stride_class, kept, spread, weight_ptr, num_classes, mask):
    """The target's share of each class of a tile, times the class's weight; 0 where masked."""
    if probabilities_ptr is not None:
        share = tl.load(probabilities_ptr + cols.to(tl.int64) * stride_class, mask=mask, other=0.0).to(tl.float32)
    else:
        share = tl.where(cols == y, 1.0, 0.0)
    share = share * kept + spread
    if weight_ptr is not None:
        share = share * _per_class(weight_ptr, cols, num_classes)
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
    p = _exp(z, top2) * inverse_total
    q = tl.where(at_top, e_others[:, None] * inverse_total, 1.0 - p)
    log_p_top = -log1p(tl.div_rn(e_others, e_top))[:, None]
    log_p = tl.where(at_top, log_p_top, tl.fma(z, LOG2E, -top2) * LN2 - log(total)[:, None])
    value, slope = POLICY(log_p, p, q, gamma, policy_args, WHOLE)
    absent = share == 0.0
    return at_top, p, q, tl.where(absent, 0.0, share * value), tl.where(absent, 0.0, share * slope)


@triton.jit
def softmax_soft_rows_kernel(
    logits_ptr, target_ptr, probabilities_ptr, loss_ptr, upstream_ptr, grad_ptr, divisor_ptr,
    # operands, or None
    weight_ptr, sample_weight_ptr, scale_ptr, bias_ptr, gammas_ptr,
    # shapes
    num_rows, num_classes, inner,
    # strides
    stride_outer, stride_class, stride_inner,
    target_stride_outer, target_stride_class, target_stride_inner,
    grad_stride_outer, grad_stride_class, grad_stride_inner, upstream_stride,
    gamma, policy_args, kept, spread, ignore_index,
    POLICY: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Either target_ptr or probabilities_ptr is None; either loss_ptr or grad_ptr."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    x_ptr = (logits_ptr + _row_offset(row, inner, stride_outer, stride_inner))[:, None]
    if probabilities_ptr is None:
        y, counts, in_range = _load_target(target_ptr, row, num_rows, num_classes, ignore_index)
        y = y[:, None]
        t_ptr = None
    else:
        y = None
        counts = row < num_rows
        in_range = counts
        t_ptr = (probabilities_ptr + _row_offset(row, inner, target_stride_outer, target_stride_inner))[:, None]

    # the maximum, how many classes are there, and the sum of the exponentials of those below
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    count = tl.zeros((ROWS,), tl.float32)
    below = tl.zeros((ROWS,), tl.float32)
    for start in range(0, num_classes, COLUMNS):
        cols = start + tl.arange(0, COLUMNS)[None, :]
        mask = (row < num_rows)[:, None] & (cols < num_classes)
        z = _load_logits(x_ptr, cols, stride_class, scale_ptr, bias_ptr, num_classes, mask)
        new_top = tl.maximum(top, tl.max(z, 1))
        surpassed = new_top > top
        below += tl.where(surpassed, count * _exp(top, _log2_scale(top)), 0.0)
        count = tl.where(surpassed, 0.0, count)
        at_top = z == new_top[:, None]
        e = tl.where(at_top, 0.0, _exp(z, _log2_scale(new_top)[:, None]))
        below = below * _rescale(top, new_top) + tl.sum(e, 1)
        count += tl.sum(at_top.to(tl.float32), 1)
        top = new_top
    e_top = _exp(top, top * LOG2E)
    e_others = below + (count - 1.0) * e_top

    loss = tl.zeros((ROWS,), tl.float32)
    slopes_top = tl.zeros((ROWS,), tl.float32)
    slopes_others = tl.zeros((ROWS,), tl.float32)
    for start in range(0, num_classes, COLUMNS):
        cols = start + tl.arange(0, COLUMNS)[None, :]
        mask = (row < num_rows)[:, None] & (cols < num_classes)
        z = _load_logits(x_ptr, cols, stride_class, scale_ptr, bias_ptr, num_classes, mask)
        share = _shares(t_ptr, y, cols, target_stride_class, kept, spread, weight_ptr, num_classes, mask)
        g = gamma
        if gammas_ptr is not None:
            g = _per_class(gammas_ptr, cols, num_classes)
        at_top, _, _, value, slope = _class_slopes(z, top, e_top, e_others, share, g, policy_args, POLICY, WHOLE)
        loss += tl.sum(value, 1)
        slopes_top += tl.sum(tl.where(at_top, slope, 0.0), 1)
        slopes_others += tl.sum(tl.where(at_top, 0.0, slope), 1)

    weight = _row_weight(sample_weight_ptr, row, num_rows)
    bad = counts & (in_range == 0)
    if loss_ptr is not None:
        loss = tl.where(counts, weight * loss, 0.0)
        tl.store(loss_ptr + row, tl.where(bad, float("nan"), loss), mask=row < num_rows)
    if grad_ptr is not None:
        g_ptr = (grad_ptr + _row_offset(row, inner, grad_stride_outer, grad_stride_inner))[:, None]
        upstream = tl.load(upstream_ptr + row * upstream_stride, mask=row < num_rows, other=0.0)
        factor = tl.where(bad, float("nan"), weight * upstream * _inverse_divisor(divisor_ptr))[:, None]
        for start in range(0, num_classes, COLUMNS):
            cols = start + tl.arange(0, COLUMNS)[None, :]
            mask = (row < num_rows)[:, None] & (cols < num_classes)
            z = _load_logits(x_ptr, cols, stride_class, scale_ptr, bias_ptr, num_classes, mask)
            share = _shares(t_ptr, y, cols, target_stride_class, kept, spread, weight_ptr, num_classes, mask)
            g = gamma
            if gammas_ptr is not None:
                g = _per_class(gammas_ptr, cols, num_classes)
            at_top, p, q, _, slope = _class_slopes(z, top, e_top, e_others, share, g, policy_args, POLICY, WHOLE)
            # a single class at the top may have p near 1: its own slope is taken out of both terms
            single_top = at_top & (e_others < e_top)[:, None]
            alone = slope * q - p * slopes_others[:, None]
            grad = factor * tl.where(single_top, alone, slope - p * (slopes_top + slopes_others)[:, None])
            if scale_ptr is not None:
                grad = grad * _per_class(scale_ptr, cols, num_classes)
            grad = tl.where(counts[:, None], grad, 0.0)
            tl.store(g_ptr + cols.to(tl.int64) * grad_stride_class, grad.to(grad_ptr.dtype.element_ty), mask=mask)


# ---- the operators -------------------------------------------------------------------------------------------------
def _as_rows(tensor: Tensor) -> Tensor:
    """(N, C, inner), whose element (i, c, j) is class c of row i * inner + j: a view where the strides allow it."""
    shape = tensor.shape if tensor.dim() > 1 else (1, *tensor.shape)
    return tensor.reshape(*shape[:2], math.prod(shape[2:]))


def _shape(rows: Tensor) -> tuple[int, int, int]:
    """Rows, classes, inner."""
    n, classes, inner = rows.shape
    return n * inner, classes, inner


ANY_ROWS = 1, 2**20  # of a program: the fewest wanted, where the tile allows, and the most


def _tile(num_rows: int, num_classes: int, row_range: tuple[int, int] = ANY_ROWS) -> tuple[int, int]:
    """Rows of a program, and classes that it holds at a time."""
    fewest, most = row_range
    columns = min(triton.next_power_of_2(num_classes), MOST_COLUMNS, max(TILE // fewest, 1))
    return max(min(TILE // columns, triton.next_power_of_2(num_rows), most), 1), columns


def _launch(kernel, rows: Tensor, *args, row_range: tuple[int, int] = ANY_ROWS, **constants) -> None:
    num_rows, num_classes, _ = _shape(rows)
    if num_rows == 0:
        return
    tile_rows, columns = _tile(num_rows, num_classes, row_range)
    with torch.accelerator.device_index(None if rows.is_cpu else rows.device.index):
        kernel[triton.cdiv(num_rows, tile_rows),](*args, ROWS=tile_rows, COLUMNS=columns, **constants)


class _Call:
    """What the operators share: operands, the policy and its parameters, the divisor of "mean"."""

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        operands: Sequence[Tensor | None],
        numbers: Sequence[float],
        ignore_index: int,
        reduction: int,
        policy: str,
    ) -> None:
        if logits.dtype == torch.float64:
            raise TypeError("expected logits of dtype float32, bfloat16 or float16 in a Triton kernel, but got float64")
        self.rows = _as_rows(logits)
        self.num_rows, self.num_classes, self.inner = _shape(self.rows)
        self.target, self.ignore_index, self.reduction = target, ignore_index, reduction
        if is_debug() and not target.is_floating_point():
            check_target(target, self.num_classes, ignore_index)
        self.weight, self.sample_weight, self.scale, self.bias, self.margin, gammas, self.normalizer = operands or [
            None
        ] * len(OPERANDS)
        self.gammas = None if gammas is None else gammas.float()
        self.gamma, *policy_args = numbers
        self.policy_args = tuple(policy_args)
        whole = int(self.gamma) if gammas is None and self.gamma in (0, 1, 2, 3) else -1
        self.constants = {"POLICY": POLICIES[policy], "WHOLE": whole}
        self.divisor = self._divisor() if reduction == REDUCTIONS["mean"] else None
        self.losses = logits.new_empty(self.num_rows, dtype=torch.float32)

    def _divisor(self) -> Tensor:
        """The weights of the rows that count."""
        if self.normalizer is not None:
            return self.normalizer.float()
        if self.target.is_floating_point():
            if self.sample_weight is not None:
                return self.sample_weight.sum()
            return torch.full((), self.num_rows, dtype=torch.float32, device=self.target.device)
        target = self.target.reshape(-1)
        counts = target != self.ignore_index
        if self.weight is None and self.sample_weight is None:
            return counts.sum()
        total = counts if self.weight is None else self.weight[target.clamp(0, self.num_classes - 1)]
        total = total if self.sample_weight is None else total * self.sample_weight.reshape(-1)
        return torch.where(counts, total, 0).sum()

    def loss(self, shape: Sequence[int]) -> Tensor:
        if self.reduction == REDUCTIONS["none"]:
            return self.losses.view(shape)
        return self.losses.sum() if self.divisor is None else self.losses.sum() / self.divisor


def _filled(grad: Tensor, rows: Tensor) -> Tensor:
    """The gradient whose rows were written, be they a view of it or not."""
    return grad if rows.data_ptr() == grad.data_ptr() else grad.copy_(rows.view(grad.shape))


def _upstream(grad_output: Tensor) -> tuple[Tensor, int]:
    """One number, or one a row, and the step from row to row."""
    return grad_output.float().contiguous(), int(grad_output.dim() > 0)


def softmax_rows(logits, target, operands, numbers, ignore_index, reduction, policy, keep_grad):
    call = _Call(logits, target, operands, numbers, ignore_index, reduction, policy)
    stats = logits.new_empty((NUM_ROW_STATS, call.num_rows), dtype=torch.float32)
    _launch(
        softmax_rows_kernel, call.rows,
        call.rows, target.contiguous(), call.losses, stats, call.divisor,
        call.weight, call.sample_weight, call.scale, call.bias, call.margin, call.gammas,
        call.num_rows, call.num_classes, call.inner, *call.rows.stride(),
        call.gamma, call.policy_args, ignore_index, **call.constants,
    )  # fmt: skip
    loss = call.loss(target.shape)
    if not keep_grad:
        return loss, stats
    return loss, softmax_rows_backward(torch.ones_like(loss), logits, target, stats, operands, ignore_index)


def softmax_rows_backward(grad_output, logits, target, stats, operands, ignore_index):
    grad = torch.empty_like(logits)
    return _rows_backward(grad, grad_output, logits, target, stats, operands, ignore_index)


def softmax_rows_(logits, target, operands, numbers, ignore_index, reduction, policy):
    loss, stats = softmax_rows(logits, target, operands, numbers, ignore_index, reduction, policy, False)
    _rows_backward(logits, torch.ones_like(loss), logits, target, stats, operands, ignore_index)
    return loss


def _rows_backward(grad, grad_output, logits, target, stats, operands, ignore_index):
    """Fills `grad`, which may be the logits."""
    _, _, scale, bias, *_ = operands or [None] * len(OPERANDS)
    rows, grad_rows = _as_rows(logits), _as_rows(grad)
    upstream, upstream_stride = _upstream(grad_output)
    _launch(
        softmax_rows_backward_kernel, rows,
        rows, target.contiguous(), stats, upstream, grad_rows, scale, bias,
        *_shape(rows), *rows.stride(), *grad_rows.stride(), upstream_stride, ignore_index,
    )  # fmt: skip
    return _filled(grad, grad_rows)


def softmax_soft_rows(
    logits, target, operands, numbers, label_smoothing, ignore_index, reduction, policy, keep_grad
):  # fmt: skip
    args = logits, target, operands, numbers, label_smoothing, ignore_index, reduction, policy
    call = _soft_rows(None, None, *args)
    loss = call.loss(logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else ())
    return loss, softmax_soft_rows_backward(torch.ones_like(loss), *args) if keep_grad else logits.new_empty(0)


def softmax_soft_rows_backward(grad_output, logits, *args):
    grad = torch.empty_like(logits)
    grad_rows = _as_rows(grad)
    _soft_rows(grad_output, grad_rows, logits, *args)
    return _filled(grad, grad_rows)


def softmax_soft_rows_(logits, *args):
    loss, _ = softmax_soft_rows(logits, *args, False)
    grad_rows = _as_rows(logits)
    _soft_rows(torch.ones_like(loss), grad_rows, logits, *args)
    _filled(logits, grad_rows)
    return loss


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
) -> _Call:
    """The rows' losses or, with an upstream gradient, their gradient into the rows `grad`."""
    call = _Call(logits, target, operands, numbers, ignore_index, reduction, policy)
    soft = target.is_floating_point()
    labels, probabilities = (None, _as_rows(target)) if soft else (target.contiguous(), None)
    upstream, upstream_stride = (None, 0) if grad_output is None else _upstream(grad_output)
    _launch(
        softmax_soft_rows_kernel, call.rows,
        call.rows, labels, probabilities, call.losses if grad is None else None, upstream, grad, call.divisor,
        call.weight, call.sample_weight, call.scale, call.bias, call.gammas,
        call.num_rows, call.num_classes, call.inner, *call.rows.stride(),
        *((0, 0, 0) if probabilities is None else probabilities.stride()),
        *((0, 0, 0) if grad is None else grad.stride()), upstream_stride,
        call.gamma, call.policy_args, 1 - label_smoothing, label_smoothing / call.num_classes, ignore_index,
        **call.constants,
    )  # fmt: skip
    return call
