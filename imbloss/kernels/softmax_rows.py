"""Softmax losses of one class a row (docs/math.md, section 1) in Triton: the walk over rows that a program holds, for
any strides and alignment. Rows of many classes are in long_rows.py. What a value and a slope are is the
policy's business.

The functions at the end are operators of imbloss/_ops.py.
"""

import torch
import triton
import triton.language as tl

from imbloss._ops import NUM_ROW_STATS, REDUCTIONS
from imbloss.kernels import launch, long_rows, rows
from imbloss.kernels.policies import POLICIES
from imbloss.kernels.rows import (
    LOWEST,
    classes_of_block,
    exp,
    finish_rows,
    higher,
    load_logits,
    load_target,
    per_class,
    row_factors,
    rows_at,
    rows_of_program,
    target_logit,
)
from imbloss.priors import check_target, is_debug


@triton.jit
def _other_classes(
    x_ptr, y, counts, scale_ptr, bias_ptr, num_classes, stride_class,
    BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Of each row without its target: the maximum times LOG2E, and the sum of the exponentials relative to it."""
    if BLOCKS > 0:
        tiles = ()
        for i in tl.static_range(BLOCKS):
            cols, mask = classes_of_block(i, counts, num_classes, BLOCKS, COLUMNS, VEC)
            z = load_logits(x_ptr, cols, stride_class, scale_ptr, bias_ptr, num_classes, mask, VEC)
            if i == BLOCKS - 1:
                z = tl.where((cols != y[:, None]) & (cols < num_classes), z, float("-inf"))
            else:
                z = tl.where(cols != y[:, None], z, float("-inf"))
            tiles = tiles + (z,)
        top = tiles[0]
        for i in tl.static_range(1, BLOCKS):
            top = tl.maximum(top, tiles[i])
        top2 = higher(LOWEST, tl.max(top, 1))
        e = exp(tiles[0], top2[:, None])
        for i in tl.static_range(1, BLOCKS):
            e += exp(tiles[i], top2[:, None])
        others = tl.sum(e, 1)
    else:
        top2 = tl.zeros_like(y).to(tl.float32) + LOWEST
        others = tl.zeros_like(top2)
        for i in range(0, tl.cdiv(num_classes, COLUMNS)):
            cols, mask = classes_of_block(i, counts, num_classes, BLOCKS, COLUMNS, VEC)
            z = load_logits(x_ptr, cols, stride_class, scale_ptr, bias_ptr, num_classes, mask, VEC)
            z = tl.where((cols != y[:, None]) & (cols < num_classes), z, float("-inf"))
            new_top2 = higher(top2, tl.max(z, 1))
            others = others * tl.exp2(top2 - new_top2) + tl.sum(exp(z, new_top2[:, None]), 1)
            top2 = new_top2
    return top2, others


@triton.jit
def softmax_rows_kernel(
    logits_ptr, target_ptr, loss_ptr, stats_ptr,
    # operands, or None
    weight_ptr, sample_weight_ptr, scale_ptr, bias_ptr, margin_ptr, gammas_ptr,
    # shapes
    num_classes, inner, stats_step,
    # strides
    stride_outer, stride_class, stride_inner,
    gamma, policy_args, ignore_index,
    POLICY: tl.constexpr, WHOLE: tl.constexpr, REDUCED: tl.constexpr, SPREAD: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    outer, i, here, row = rows_of_program(inner, ROWS)
    y, counts, in_range = load_target(target_ptr, row, here, num_classes, ignore_index)
    x_ptr = rows_at(logits_ptr, outer, i, stride_outer, stride_inner, VEC)
    top2, others = _other_classes(
        x_ptr, y, counts, scale_ptr, bias_ptr, num_classes, stride_class, BLOCKS, COLUMNS, VEC
    )
    x_y = tl.load(
        logits_ptr + outer * stride_outer + i * stride_inner + y.to(tl.int64) * stride_class, mask=counts, other=0.0
    ).to(tl.float32)
    if SPREAD:
        # all threads of a row have its results: through memory they get to one of them, or a few
        stats_of_row = stats_ptr + row
        tl.store(stats_of_row, top2, mask=here)
        tl.store(stats_of_row + stats_step, others, mask=here)
        tl.store(stats_of_row + 2 * stats_step, x_y, mask=here)
        tl.debug_barrier()
        top2 = tl.load(stats_of_row, mask=here, other=0.0)
        others = tl.load(stats_of_row + stats_step, mask=here, other=0.0)
        x_y = tl.load(stats_of_row + 2 * stats_step, mask=here, other=0.0)
        y, counts, in_range = load_target(target_ptr, row, here, num_classes, ignore_index)
        tl.debug_barrier()
    z_y = target_logit(x_y, y, scale_ptr, bias_ptr, margin_ptr)
    finish_rows(
        loss_ptr, stats_ptr, stats_step, tl.num_programs(0),
        weight_ptr, sample_weight_ptr, gammas_ptr,
        y, row, here, counts, in_range, z_y, top2, others, gamma, policy_args, POLICY, WHOLE, REDUCED,
    )  # fmt: skip


@triton.jit
def _store_gradient(
    b, x_ptr, g_ptr, y, here, counts, top2, other, target, scale_ptr, bias_ptr, num_classes,
    stride_class, grad_stride_class, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    cols, mask = classes_of_block(b, here, num_classes, BLOCKS, COLUMNS, VEC)
    some = mask & counts[:, None]
    z = load_logits(x_ptr, cols, stride_class, scale_ptr, bias_ptr, num_classes, some, VEC)
    g = tl.where(cols == y, target, exp(z, top2) * other)
    if scale_ptr is not None:
        if VEC > 1:
            num_classes = num_classes // VEC * VEC
        g = g * per_class(scale_ptr, cols, num_classes)
    tl.store(g_ptr + cols.to(tl.int64) * grad_stride_class, g.to(g_ptr.dtype.element_ty), mask=mask)


@triton.jit
def softmax_rows_backward_kernel(
    logits_ptr, target_ptr, stats_ptr, upstream_ptr, grad_ptr,
    # operands, or None
    scale_ptr, bias_ptr,
    # shapes
    num_classes, inner, stats_step,
    # strides
    stride_outer, stride_class, stride_inner,
    grad_stride_outer, grad_stride_class, grad_stride_inner, upstream_stride,
    ignore_index,
    REDUCED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Rows that do not count have stats of 0, and a gradient of 0 whatever their logits are: these are not read."""
    outer, i, here, row = rows_of_program(inner, ROWS)
    y, counts, _ = load_target(target_ptr, row, here, num_classes, ignore_index)
    x_ptr = rows_at(logits_ptr, outer, i, stride_outer, stride_inner, VEC)
    g_ptr = rows_at(grad_ptr, outer, i, grad_stride_outer, grad_stride_inner, VEC)
    top2, other, target = row_factors(stats_ptr, stats_step, upstream_ptr, upstream_stride, row, counts, REDUCED)
    y, top2, other, target = y[:, None], top2[:, None], other[:, None], target[:, None]
    if BLOCKS > 0:
        for b in tl.static_range(BLOCKS):
            _store_gradient(
                b, x_ptr, g_ptr, y, here, counts, top2, other, target, scale_ptr, bias_ptr, num_classes,
                stride_class, grad_stride_class, BLOCKS, COLUMNS, VEC,
            )  # fmt: skip
    else:
        for b in range(0, tl.cdiv(num_classes, COLUMNS)):
            _store_gradient(
                b, x_ptr, g_ptr, y, here, counts, top2, other, target, scale_ptr, bias_ptr, num_classes,
                stride_class, grad_stride_class, BLOCKS, COLUMNS, VEC,
            )  # fmt: skip


# ---- the operators ---------------
def softmax_rows(logits, target, operands, numbers, ignore_index, reduction, policy, keep_grad):
    rows.check_dtype(logits)
    if is_debug():
        check_target(target, logits.shape[1] if logits.dim() > 1 else len(logits), ignore_index)
    weight, sample_weight, scale, bias, margin, gammas, normalizer = operands or rows.NO_OPERANDS
    x = rows.as_rows(logits)
    walk = rows.Walk(x, stores=False)
    reduced = reduction != REDUCTIONS["none"] or target.dim() == 0
    programs = walk.num_rows if walk.is_long else walk.tile.programs
    losses = logits.new_empty((2, programs) if reduced else target.shape, dtype=torch.float32)
    stats = logits.new_empty((NUM_ROW_STATS, walk.num_rows + 1), dtype=torch.float32)
    stats_step = walk.num_rows + 1
    stride_outer, _, stride_inner = walk.strides[0]
    constants = {"POLICY": POLICIES[policy], "WHOLE": rows.whole(numbers[0], gammas), "REDUCED": reduced}
    numbers = numbers[0], tuple(numbers[1:]), ignore_index
    gammas = None if gammas is None else gammas.float()
    per_class = weight, sample_weight, scale, bias, margin, gammas
    target, shapes = target.contiguous(), (walk.num_classes, walk.inner, stats_step)
    if walk.is_long:
        partials = None
        if walk.long.splits > 1:
            partials = logits.new_empty((2, walk.num_rows, walk.long.splits), dtype=torch.float32)
        args = x, target, losses, stats, partials, *per_class, *shapes, stride_outer, stride_inner, *numbers
        walk.run_long(long_rows.softmax_long_rows_kernel, *args, **constants)
        if walk.long.splits > 1 and walk.num_rows:
            kernel, grid = long_rows.softmax_long_rows_merge_kernel, (walk.num_rows,)
            rows.run(kernel, grid, walk.device, *args, SPLITS=walk.long.splits, num_warps=1, **constants)
    else:
        args = x, target, losses, stats, *per_class, *shapes, *walk.strides[0], *numbers
        walk.run_tiles(softmax_rows_kernel, *args, SPREAD=launch.spread(walk.tile), **constants)
    loss = losses
    if reduced:
        loss = logits.new_empty((), dtype=torch.float32)
        mean = reduction == REDUCTIONS["mean"]
        args = losses, programs, normalizer if mean else None, loss, stats, walk.num_rows
        rows.run(rows.reduce_kernel, (1,), walk.device, *args, MEAN=mean, BLOCK=launch.reduction_block(programs))
    if not keep_grad:
        return loss, stats
    return loss, softmax_rows_backward(torch.ones_like(loss), logits, target, stats, operands, ignore_index)


def softmax_rows_value(*args):
    return softmax_rows(*args, False)[0]


def softmax_rows_backward(grad_output, logits, target, stats, operands, ignore_index):
    grad = torch.empty_like(logits)
    return _rows_backward(grad, grad_output, logits, target, stats, operands, ignore_index)


def softmax_rows_(logits, target, operands, numbers, ignore_index, reduction, policy):
    loss, stats = softmax_rows(logits, target, operands, numbers, ignore_index, reduction, policy, False)
    _rows_backward(logits, torch.ones_like(loss), logits, target, stats, operands, ignore_index)
    return loss


def _rows_backward(grad, grad_output, logits, target, stats, operands, ignore_index):
    """Fills `grad`, which may be the logits."""
    _, _, scale, bias, *_ = operands or rows.NO_OPERANDS
    x, grad_rows = rows.as_rows(logits), rows.as_rows(grad)
    walk = rows.Walk(x, grad_rows, stores=True)
    upstream, upstream_stride = rows.upstream_of(grad_output)
    reduced = upstream_stride == 0
    args = x, target.contiguous(), stats, upstream, grad_rows, scale, bias
    args += walk.num_classes, walk.inner, walk.num_rows + 1
    (outer, of_class, inner), (grad_outer, grad_of_class, grad_inner) = walk.strides
    if walk.is_long:
        vector, size = walk.long.vector, x.element_size()
        shift = (grad_rows.data_ptr() - x.data_ptr()) // size
        same = all(distance % vector == 0 for distance in (shift, grad_outer - outer, grad_inner - inner))
        args += outer, inner, grad_outer, grad_inner, upstream_stride, ignore_index
        walk.run_long(long_rows.softmax_long_rows_backward_kernel, *args, REDUCED=reduced, SAME=same)
    else:
        args += outer, of_class, inner, grad_outer, grad_of_class, grad_inner, upstream_stride, ignore_index
        walk.run_tiles(softmax_rows_backward_kernel, *args, REDUCED=reduced)
    return rows.filled(grad, grad_rows)
