"""LADE (docs/math.md, section 4) in Triton: sums over the rows of each class, and the gradient of both terms in one
write. What csrc/class_columns.h is on CPU; the sums over the classes of each row are those of softmax_rows.py.

Sums over rows have two levels: each program stores those of its rows, and those of the programs are added up in order.
No atomics, so results repeat. The functions at the end are the operators of imbloss/_ops.py.
"""

import torch
import triton
import triton.language as tl

from imbloss import reference
from imbloss._ops import NUM_COLUMN_FACTORS, NUM_COLUMN_STATS, NUM_ROW_STATS, REDUCTIONS
from imbloss.kernels import launch, rows, softmax_rows
from imbloss.kernels.policies import LOG2E
from imbloss.kernels.rows import LOWEST, exp, load_target, per_class


@triton.jit
def _exp_below(x, top):
    """exp(x - top) of a finite top, which has no error that its own rounding would make."""
    return tl.exp2((x - top) * LOG2E)


@triton.jit
def _row_offset(row, inner, stride_outer, stride_inner, FLAT: tl.constexpr):
    """FLAT: all rows have one distance."""
    return row * stride_inner if FLAT else row // inner * stride_outer + row % inner * stride_inner


@triton.jit
def _importance(importance_ptr, y, counts, in_range):
    """What a row counts by its target: 0 where ignored, NaN where that is no class."""
    v = tl.zeros_like(y).to(tl.float32) + 1.0
    if importance_ptr is not None:
        v = tl.load(importance_ptr + y)
    return tl.where(counts, tl.where(in_range, v, float("nan")), 0.0)


@triton.jit
def class_columns_kernel(
    logits_ptr, target_ptr, sums_ptr,
    # operands, or None
    importance_ptr,
    # shapes
    num_rows, num_classes, inner, steps,
    # strides
    sums_step, stride_outer, stride_class, stride_inner,
    ignore_index,
    FLAT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Of some classes and `steps` times ROWS rows: the maximum, the sum of the exponentials below it, each times what
    its row counts, and of the rows of the class the sum of its logits and their number."""
    if VEC > 1:
        stride_inner = stride_inner // VEC * VEC
        num_classes = num_classes // VEC * VEC
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x_ptr = logits_ptr + (cols.to(tl.int64) * stride_class)[None, :]
    top = tl.full((COLUMNS,), LOWEST, tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    own = tl.zeros((COLUMNS,), tl.float32)
    count = tl.zeros((COLUMNS,), tl.float32)
    for step in range(0, steps):
        row = (tl.program_id(0).to(tl.int64) * steps + step) * ROWS + tl.arange(0, ROWS)
        y, counts, in_range = load_target(target_ptr, row, row < num_rows, num_classes, ignore_index)
        v = _importance(importance_ptr, y, counts, in_range)[:, None]
        offset = _row_offset(row, inner, stride_outer, stride_inner, FLAT)[:, None]
        mask = counts[:, None] & (cols < num_classes)[None, :]
        x = tl.load(x_ptr + offset, mask=mask, other=float("-inf")).to(tl.float32)
        new_top = tl.maximum(top, tl.max(x, 0))
        e = _exp_below(x, new_top[None, :]) * v
        total = total * _exp_below(top, new_top) + tl.sum(e, 0)
        top = new_top
        is_target = (cols[None, :] == y[:, None]) & counts[:, None]
        own += tl.sum(tl.where(is_target, x, 0.0), 0)
        count += tl.sum(is_target.to(tl.float32), 0)
    out_ptr = sums_ptr + tl.program_id(0).to(tl.int64) * num_classes + cols
    mask = cols < num_classes
    tl.store(out_ptr, top, mask=mask)
    tl.store(out_ptr + sums_step, total, mask=mask)
    tl.store(out_ptr + 2 * sums_step, own, mask=mask)
    tl.store(out_ptr + 3 * sums_step, count, mask=mask)


@triton.jit
def class_columns_backward_kernel(
    logits_ptr, target_ptr, stats_ptr, factors_ptr, upstream_ptr, grad_ptr,
    # operands, or None
    log_prior_ptr, importance_ptr,
    # shapes
    num_rows, num_classes, inner, steps,
    # strides
    stride_outer, stride_class, stride_inner,
    grad_stride_outer, grad_stride_class, grad_stride_inner,
    ignore_index,
    PRIOR_CE: tl.constexpr, FLAT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    if VEC > 1:
        stride_inner, grad_stride_inner = stride_inner // VEC * VEC, grad_stride_inner // VEC * VEC
        num_classes = num_classes // VEC * VEC
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x_ptr = logits_ptr + (cols.to(tl.int64) * stride_class)[None, :]
    g_ptr = grad_ptr + (cols.to(tl.int64) * grad_stride_class)[None, :]
    slope_ptr = factors_ptr + num_classes
    share_ptr = slope_ptr + num_classes
    upstream = tl.load(upstream_ptr)
    top = per_class(factors_ptr, cols, num_classes)[None, :]
    slope = (upstream * per_class(slope_ptr, cols, num_classes))[None, :]
    share = (upstream * per_class(share_ptr, cols, num_classes))[None, :]
    if PRIOR_CE:
        factor = upstream * tl.load(share_ptr + num_classes)
        bias = per_class(log_prior_ptr, cols, num_classes)[None, :]
    for step in range(0, steps):
        row = (tl.program_id(0).to(tl.int64) * steps + step) * ROWS + tl.arange(0, ROWS)
        here = row < num_rows
        y, counts, in_range = load_target(target_ptr, row, here, num_classes, ignore_index)
        v = _importance(importance_ptr, y, counts, in_range)[:, None]
        inside = here[:, None] & (cols < num_classes)[None, :]
        is_target = cols[None, :] == y[:, None]
        offset = _row_offset(row, inner, stride_outer, stride_inner, FLAT)[:, None]
        x = tl.load(x_ptr + offset, mask=inside & counts[:, None], other=0.0).to(tl.float32)
        g = v * slope * _exp_below(x, top) - tl.where(is_target, share, 0.0)
        if PRIOR_CE:
            top2 = tl.load(stats_ptr + row, mask=here, other=0.0)[:, None]
            other = (factor * tl.load(stats_ptr + num_rows + row, mask=here, other=0.0))[:, None]
            of_target = (factor * tl.load(stats_ptr + 2 * num_rows + row, mask=here, other=0.0))[:, None]
            g += tl.where(is_target, of_target, exp(x + bias, top2) * other)
        g = tl.where(counts[:, None], g, 0.0)
        grad_offset = _row_offset(row, inner, grad_stride_outer, grad_stride_inner, FLAT)[:, None]
        tl.store(g_ptr + grad_offset, g.to(grad_ptr.dtype.element_ty), mask=inside)


# ---- the operators -------------------------------------------------------------------------------------------------
def _constants(prior: torch.Tensor, estimator: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The log prior, and what each row counts by its target."""
    importance = None if estimator == reference.OFFICIAL else (1 / (len(prior) * prior)).float()
    return prior.log().float(), importance


def _run(kernel, tensors: list[torch.Tensor], pre: tuple, post: tuple, ignore_index: int, **constants) -> None:
    """`pre`: arguments before the shapes; `post`: between those and the strides."""
    shape, strides, tile = _plan(tensors)
    outer, classes, inner = shape
    if outer * inner:
        rows.run(
            kernel, (tile.programs, launch.cdiv(classes, tile.columns)), tensors[0].device,
            *pre, outer * inner, classes, inner, tile.steps, *post,
            *[step for each in strides for step in each], ignore_index,
            FLAT=outer == 1, ROWS=tile.rows, COLUMNS=tile.columns, VEC=tile.vector, num_warps=tile.warps,
            **constants,
        )  # fmt: skip


def class_columns_statistics(logits, target, operands, numbers, ignore_index, estimator):
    prior, sample_weight, _ = operands
    log_prior, importance = _constants(prior, estimator)
    counts = target != ignore_index
    weights = counts if sample_weight is None else torch.where(counts, sample_weight, 0)
    if numbers[0]:
        of_rows = None, sample_weight, None, log_prior, None, None, None
        args = logits, target, of_rows, [0.0, 0.0], ignore_index, REDUCTIONS["sum"], "focal", False
        loss, stats = softmax_rows.softmax_rows(*args)
        stats = stats[:, :-1].contiguous()
    else:
        rows.check_dtype(logits)
        loss = logits.new_zeros((), dtype=torch.float32)
        stats = logits.new_zeros((NUM_ROW_STATS, target.numel()), dtype=torch.float32)
    totals = torch.stack([loss.double(), weights.sum(dtype=torch.float64)])

    x, target = rows.as_rows(logits), target.contiguous()
    num_classes = x.shape[1]
    programs = _plan([x])[2].programs if x.numel() else 0
    sums = logits.new_empty((NUM_COLUMN_STATS, programs, num_classes), dtype=torch.float32)
    _run(class_columns_kernel, [x], (x, target, sums, importance), (sums.stride(0),), ignore_index)
    tops, totals_below, own, count = sums
    top = tops.amax(0) if len(tops) else tops.new_full((num_classes,), LOWEST.value)
    below = totals_below * (tops - top).exp()
    columns = [part.double().sum(0) for part in (below, own, count)]
    top = torch.where(top == LOWEST.value, -torch.inf, top).double()
    return stats, torch.stack([top, *columns]), totals


def _plan(tensors: list[torch.Tensor]) -> tuple[launch.Shape, tuple[launch.Strides, ...], launch.Columns]:
    shape, strides = launch.merged(rows.geometry(tensors[0])[0], tuple(rows.geometry(tensor)[1] for tensor in tensors))
    aligned = all(tensor.data_ptr() % launch.VECTOR == 0 for tensor in tensors)
    layout = launch.layout(shape, strides, tuple(tensor.element_size() for tensor in tensors), aligned)
    return shape, strides, launch.columns(layout, launch.processors(tensors[0].device))


def class_columns(logits, target, operands, numbers, ignore_index, reduction, estimator, keep_grad):
    of_rows, columns, totals = class_columns_statistics(logits, target, operands, numbers, ignore_index, estimator)
    loss, factors = reference.finish_columns(columns, totals, operands, numbers, reduction, estimator)
    loss, kept = loss.float(), torch.cat([of_rows.flatten(), factors.float()])
    if not keep_grad:
        return loss, kept
    args = logits, target, kept, operands, numbers, ignore_index, estimator
    return loss, class_columns_backward(torch.ones_like(loss), *args)


def class_columns_backward(grad_output, logits, target, kept, operands, numbers, ignore_index, estimator):
    x, grad = rows.as_rows(logits), torch.empty_like(logits)
    grad_rows = rows.as_rows(grad)
    num_rows, num_classes = target.numel(), x.shape[1]
    stats, factors = kept.split([NUM_ROW_STATS * num_rows, NUM_COLUMN_FACTORS * num_classes + 1])
    pre = x, target.contiguous(), stats, factors, grad_output.float(), grad_rows, *_constants(operands[0], estimator)
    _run(class_columns_backward_kernel, [x, grad_rows], pre, (), ignore_index, PRIOR_CE=bool(numbers[0]))
    return rows.filled(grad, grad_rows)
