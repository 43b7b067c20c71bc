"""LADE (docs/math.md, section 4) in Triton: sums over the rows of each class beside those over the classes of each row,
from one read of the logits, and the gradient of both in one write. What csrc/class_columns.h is on CPU.

Sums over rows have two levels: each program stores those of its rows, and those of the programs are added up in order.
No atomics, so results repeat. The functions at the end are the operators of imbloss/_ops.py.
"""

import torch
import triton
import triton.language as tl

from imbloss import reference
from imbloss._ops import NUM_COLUMN_FACTORS, NUM_COLUMN_STATS, NUM_ROW_STATS
from imbloss.kernels import launch, rows
from imbloss.kernels.policies import LN2, LOG2E, log, log1p
from imbloss.kernels.rows import LOWEST, exp, higher, load_target, per_class, row_weight


@triton.jit
def _row_offset(row, inner, stride_outer, stride_inner):
    return row // inner * stride_outer + row % inner * stride_inner


@triton.jit
def _exp_below(x, top):
    """exp(x - top), 0 where both are -inf."""
    return tl.exp2((x - tl.where(top == float("-inf"), 0.0, top)) * LOG2E)


@triton.jit
def _importance(importance_ptr, y, counts):
    v = tl.zeros_like(y).to(tl.float32) + 1.0
    if importance_ptr is not None:
        v = tl.load(importance_ptr + y)
    return tl.where(counts, v, 0.0)


@triton.jit
def class_columns_kernel(
    logits_ptr, target_ptr, loss_ptr, stats_ptr, sums_ptr,
    # operands, or None
    log_prior_ptr, importance_ptr, sample_weight_ptr,
    # shapes
    num_rows, num_classes, inner,
    # strides
    sums_step, stride_outer, stride_class, stride_inner,
    ignore_index,
    PRIOR_CE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    y, counts, in_range = load_target(target_ptr, row, row < num_rows, num_classes, ignore_index)
    x_ptr = logits_ptr + _row_offset(row, inner, stride_outer, stride_inner)
    v = _importance(importance_ptr, y, counts)

    top2 = tl.full((ROWS,), LOWEST, tl.float32)
    others = tl.zeros((ROWS,), tl.float32)
    for start in range(0, num_classes, COLUMNS):
        cols = start + tl.arange(0, COLUMNS)
        mask = counts[:, None] & (cols < num_classes)[None, :]
        x = tl.load(x_ptr[:, None] + cols.to(tl.int64)[None, :] * stride_class, mask=mask, other=0.0).to(tl.float32)
        x = tl.where((counts & (in_range == 0))[:, None], float("nan"), x)
        is_target = cols[None, :] == y[:, None]
        # the rows of each class
        shown = tl.where(mask, x, float("-inf"))
        class_top = tl.max(shown, 0)
        e = tl.where(mask, _exp_below(shown, class_top[None, :]) * v[:, None], 0.0)
        own = is_target & mask
        out_ptr = sums_ptr + tl.program_id(0).to(tl.int64) * num_classes + cols
        tl.store(out_ptr, class_top, mask=cols < num_classes)
        tl.store(out_ptr + sums_step, tl.sum(e, 0), mask=cols < num_classes)
        tl.store(out_ptr + 2 * sums_step, tl.sum(tl.where(own, x, 0.0), 0), mask=cols < num_classes)
        tl.store(out_ptr + 3 * sums_step, tl.sum(own.to(tl.float32), 0), mask=cols < num_classes)
        # the classes of each row, but for the target's
        if PRIOR_CE:
            z = x + per_class(log_prior_ptr, cols, num_classes)[None, :]
            z = tl.where(mask & (is_target == 0), z, float("-inf"))
            new_top2 = higher(top2, tl.max(z, 1))
            others = others * tl.exp2(top2 - new_top2) + tl.sum(exp(z, new_top2[:, None]), 1)
            top2 = new_top2

    loss = tl.zeros((ROWS,), tl.float32)
    if PRIOR_CE:
        z_y = tl.load(x_ptr + y.to(tl.int64) * stride_class, mask=counts, other=0.0).to(tl.float32)
        z_y += tl.load(log_prior_ptr + y)
        new_top2 = higher(top2, z_y)
        leads = z_y * LOG2E >= top2
        e_others = others * tl.exp2(top2 - new_top2)
        top2 = new_top2
        e_target = exp(z_y, top2)
        total = e_target + e_others
        below_top = tl.fma(z_y, LOG2E, -top2) * LN2 - log(total)
        log_p = tl.where(leads, -log1p(tl.div_rn(e_others, e_target)), below_top)
        weight = tl.where(counts, row_weight(sample_weight_ptr, row, row < num_rows), 0.0)
        weight = tl.where(counts & (in_range == 0), float("nan"), weight)
        loss = tl.where(counts, -weight * log_p, 0.0)
        stats_ptr = stats_ptr + row
        tl.store(stats_ptr, tl.where(counts, top2, 0.0), mask=row < num_rows)
        tl.store(stats_ptr + num_rows, tl.where(counts, tl.div_rn(weight, total), 0.0), mask=row < num_rows)
        of_target = tl.where(counts, -weight * tl.div_rn(e_others, total), 0.0)
        tl.store(stats_ptr + num_rows + num_rows, of_target, mask=row < num_rows)
    bad = counts & (in_range == 0)
    tl.store(loss_ptr + row, tl.where(bad, float("nan"), loss), mask=row < num_rows)


@triton.jit
def class_columns_backward_kernel(
    logits_ptr, target_ptr, stats_ptr, factors_ptr, upstream_ptr, grad_ptr,
    # operands, or None
    log_prior_ptr, importance_ptr,
    # shapes
    num_rows, num_classes, inner,
    # strides
    stride_outer, stride_class, stride_inner,
    grad_stride_outer, grad_stride_class, grad_stride_inner,
    ignore_index,
    PRIOR_CE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    y, counts, in_range = load_target(target_ptr, row, row < num_rows, num_classes, ignore_index)
    x_ptr = logits_ptr + _row_offset(row, inner, stride_outer, stride_inner)
    g_ptr = grad_ptr + _row_offset(row, inner, grad_stride_outer, grad_stride_inner)
    v = _importance(importance_ptr, y, counts)
    upstream = tl.load(upstream_ptr)
    slope_ptr = factors_ptr + num_classes
    share_ptr = slope_ptr + num_classes
    if PRIOR_CE:
        factor = tl.load(share_ptr + num_classes)
        stats_ptr = stats_ptr + row
        top2 = tl.load(stats_ptr, mask=row < num_rows, other=0.0)
        other = factor * tl.load(stats_ptr + num_rows, mask=row < num_rows, other=0.0)
        of_target = factor * tl.load(stats_ptr + num_rows + num_rows, mask=row < num_rows, other=0.0)
    for start in range(0, num_classes, COLUMNS):
        cols = start + tl.arange(0, COLUMNS)
        inside = (row < num_rows)[:, None] & (cols < num_classes)[None, :]
        mask = inside & counts[:, None]
        is_target = cols[None, :] == y[:, None]
        x = tl.load(x_ptr[:, None] + cols.to(tl.int64)[None, :] * stride_class, mask=mask, other=0.0).to(tl.float32)
        class_top = per_class(factors_ptr, cols, num_classes)[None, :]
        g = v[:, None] * per_class(slope_ptr, cols, num_classes)[None, :] * _exp_below(x, class_top)
        g -= tl.where(is_target, per_class(share_ptr, cols, num_classes)[None, :], 0.0)
        if PRIOR_CE:
            z = x + per_class(log_prior_ptr, cols, num_classes)[None, :]
            g += tl.where(is_target, of_target[:, None], exp(z, top2[:, None]) * other[:, None])
        g = tl.where((in_range == 0)[:, None], float("nan"), g * upstream)
        g = tl.where(mask, g, 0.0)
        out_ptr = g_ptr[:, None] + cols.to(tl.int64)[None, :] * grad_stride_class
        tl.store(out_ptr, g.to(grad_ptr.dtype.element_ty), mask=inside)


# ---- the operators -------------------------------------------------------------------------------------------------
def _constants(prior: torch.Tensor, estimator: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The log prior, and what each row counts by its target."""
    importance = None if estimator == reference.OFFICIAL else (1 / (len(prior) * prior)).float()
    return prior.log().float(), importance


def _run(kernel, x: torch.Tensor, *args, **constants) -> None:
    num_rows = x.shape[0] * x.shape[2]
    tile = launch.columns(num_rows, x.shape[1])
    if num_rows:
        grid = (launch.cdiv(num_rows, tile.rows),)
        rows.run(kernel, grid, x.device, *args, ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps, **constants)


def class_columns_statistics(logits, target, operands, numbers, ignore_index, estimator):
    rows.check_dtype(logits)
    prior, sample_weight, _ = operands
    x = rows.as_rows(logits)
    num_rows, num_classes, inner = x.shape[0] * x.shape[2], x.shape[1], x.shape[2]
    programs = launch.cdiv(num_rows, launch.columns(num_rows, num_classes).rows)
    stats = logits.new_zeros((NUM_ROW_STATS, num_rows), dtype=torch.float32)
    losses = logits.new_empty(num_rows, dtype=torch.float32)
    sums = logits.new_empty((NUM_COLUMN_STATS, programs, num_classes), dtype=torch.float32)
    _run(
        class_columns_kernel, x,
        x, target.contiguous(), losses, stats, sums, *_constants(prior, estimator), sample_weight,
        num_rows, num_classes, inner, sums.stride(0), *x.stride(), ignore_index,
        PRIOR_CE=bool(numbers[0]),
    )  # fmt: skip
    counts = target != ignore_index
    weights = counts if sample_weight is None else torch.where(counts, sample_weight, 0)
    totals = torch.stack([losses.sum(dtype=torch.float64), weights.sum(dtype=torch.float64)])
    tops, totals_below, own, count = sums
    top = tops.amax(0) if programs else tops.new_full((num_classes,), -torch.inf)
    scale = (tops - torch.where(top == -torch.inf, 0, top)).exp()
    columns = [top.double(), *((part.double()).sum(0) for part in (totals_below * scale, own, count))]
    return stats, torch.stack(columns), totals


def class_columns(logits, target, operands, numbers, ignore_index, reduction, estimator, keep_grad):
    of_rows, columns, totals = class_columns_statistics(logits, target, operands, numbers, ignore_index, estimator)
    loss, factors = reference.finish_columns(columns, totals, operands, numbers, reduction, estimator)
    loss, kept = loss.float(), torch.cat([of_rows.flatten(), factors.float()])
    if not keep_grad:
        return loss, kept
    args = logits, target, kept, operands, numbers, ignore_index, estimator
    return loss, class_columns_backward(torch.ones_like(loss), *args)


def class_columns_backward(grad_output, logits, target, kept, operands, numbers, ignore_index, estimator):
    x = rows.as_rows(logits)
    num_rows, num_classes, inner = x.shape[0] * x.shape[2], x.shape[1], x.shape[2]
    grad = torch.empty_like(logits)
    grad_rows = rows.as_rows(grad)
    stats, factors = kept.split([NUM_ROW_STATS * num_rows, NUM_COLUMN_FACTORS * num_classes + 1])
    _run(
        class_columns_backward_kernel, x,
        x, target.contiguous(), stats, factors, grad_output.float(), grad_rows, *_constants(operands[0], estimator),
        num_rows, num_classes, inner, *x.stride(), *grad_rows.stride(), ignore_index,
        PRIOR_CE=bool(numbers[0]),
    )  # fmt: skip
    return rows.filled(grad, grad_rows)
