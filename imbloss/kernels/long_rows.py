"""Rows of many classes (docs/math.md, section 1) in Triton: what softmax_rows.py does, walked in blocks.

A row of any alignment is a few edge elements, full blocks of whole vectors and one block with a mask of vectors: the
loops have no masks, and nothing is exchanged between threads before the end. Where there are few rows, several
programs share each: the forward then has a second kernel, which brings their results together in order.
"""

import triton
import triton.language as tl

from imbloss.kernels.rows import (
    LOWEST,
    exp,
    finish_rows,
    higher,
    load_target,
    row_factors,
    rows_of_program,
    target_logit,
)


@triton.jit
def _walk(ptr, num_classes, split, BLOCK: tl.constexpr, SPLITS: tl.constexpr, VEC: tl.constexpr):
    """Where a row and the part of a program are, in elements from the vector that the row starts in.

    Returns a pointer to there; the first class's place; the whole vectors' span in all and the program's of it, which
    has full blocks as far as `full`.
    """
    size: tl.constexpr = 16 // VEC
    shift = (ptr.to(tl.int64) % 16 // size).to(tl.int32)
    first = (shift + VEC - 1) // VEC * VEC
    last = (shift + num_classes) // VEC * VEC
    span = tl.cdiv(tl.cdiv(num_classes, BLOCK), SPLITS) * BLOCK
    start = tl.minimum(first + split * span, last)
    end = tl.minimum(start + span, last)
    full = start + (end - start) // BLOCK * BLOCK
    return shift, first, last, start, full, end


@triton.jit
def _vectors(BLOCK: tl.constexpr, VEC: tl.constexpr):
    """Places in a block, a vector a thread."""
    return tl.arange(0, BLOCK // VEC)[:, None] * VEC + tl.arange(0, VEC)[None, :]


@triton.jit
def _edges(shift, first, last, num_classes, VEC: tl.constexpr):
    """Places of the elements before and behind the whole vectors, and which of them there are."""
    e = tl.arange(0, 2 * VEC)
    places = tl.where(e < VEC, e, last + e - VEC)
    return places, (places >= shift) & (places < shift + num_classes) & ((e >= VEC) | (places < first))


@triton.jit
def _class_values(ptr, cols, mask):
    return tl.load(ptr + cols) if mask is None else tl.load(ptr + cols, mask=mask, other=0.0)


@triton.jit
def _logits(x, cols, scale_ptr, bias_ptr, mask):
    z = x.to(tl.float32)
    if scale_ptr is not None:
        z = z * _class_values(scale_ptr, cols, mask)
    if bias_ptr is not None:
        z = z + _class_values(bias_ptr, cols, mask)
    return z


@triton.jit
def _accumulate(z, top2, others):
    new_top2 = higher(top2, tl.max(z, 1))
    return new_top2, others * tl.exp2(top2 - new_top2) + tl.sum(exp(z, new_top2[:, None]), 1)


@triton.jit
def softmax_long_rows_kernel(
    logits_ptr, target_ptr, loss_ptr, stats_ptr, partials_ptr,
    # operands, or None
    weight_ptr, sample_weight_ptr, scale_ptr, bias_ptr, margin_ptr, gammas_ptr,
    # shapes
    num_classes, inner, stats_step,
    # strides
    stride_outer, stride_inner,
    gamma, policy_args, ignore_index,
    POLICY: tl.constexpr, WHOLE: tl.constexpr, REDUCED: tl.constexpr,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    outer, i, here, row = rows_of_program(inner, 1)
    y, counts, in_range = load_target(target_ptr, row, here, num_classes, ignore_index)
    row_ptr = logits_ptr + outer * stride_outer + tl.sum(i, 0) * stride_inner
    shift, first, last, start, full, end = _walk(row_ptr, num_classes, tl.program_id(1), BLOCK, SPLITS, VEC)
    x_ptr = tl.multiple_of(row_ptr - shift, 16)
    y_place = tl.sum(y, 0) + shift
    some = tl.sum(counts.to(tl.int32), 0) > 0
    full = tl.where(some, full, start)  # nothing is read of a row that does not count
    lanes = _vectors(BLOCK, VEC)
    top2 = tl.full((BLOCK // VEC,), LOWEST, tl.float32)
    others = tl.zeros((BLOCK // VEC,), tl.float32)
    for at in range(start, full, BLOCK):
        at = tl.multiple_of(at, VEC)
        z = _logits(tl.load(x_ptr + at + lanes), at - shift + lanes, scale_ptr, bias_ptr, None)
        if (y_place >= at) & (y_place < at + BLOCK):
            z = tl.where(at + lanes == y_place, float("-inf"), z)
        top2, others = _accumulate(z, top2, others)
    full = tl.multiple_of(full, VEC)
    mask = ((full + tl.arange(0, BLOCK // VEC) * VEC) < end)[:, None] & some
    places = full + lanes
    z = _logits(tl.load(x_ptr + places, mask=mask, other=0.0), places - shift, scale_ptr, bias_ptr, mask)
    z = tl.where(mask & (places != y_place), z, float("-inf"))
    top2, others = _accumulate(z, top2, others)

    row_top2 = tl.max(top2, 0)
    row_others = tl.sum(others * tl.exp2(top2 - row_top2), 0)
    places, mask = _edges(shift, first, last, num_classes, VEC)
    mask = mask & some & (tl.program_id(1) == 0)
    z = _logits(tl.load(x_ptr + places, mask=mask, other=0.0), places - shift, scale_ptr, bias_ptr, mask)
    z = tl.where(mask & (places != y_place), z, float("-inf"))
    new_top2 = higher(row_top2, tl.max(z, 0))
    row_others = row_others * tl.exp2(row_top2 - new_top2) + tl.sum(exp(z, new_top2), 0)
    if SPLITS == 1:
        x_y = tl.load(row_ptr + y, mask=counts, other=0.0).to(tl.float32)
        z_y = target_logit(x_y, y, scale_ptr, bias_ptr, margin_ptr)
        finish_rows(
            loss_ptr, stats_ptr, stats_step, tl.num_programs(0),
            weight_ptr, sample_weight_ptr, gammas_ptr,
            y, row, here, counts, in_range, z_y, new_top2 + tl.zeros_like(z_y), row_others + tl.zeros_like(z_y),
            gamma, policy_args, POLICY, WHOLE, REDUCED,
        )  # fmt: skip
    else:
        out_ptr = partials_ptr + tl.program_id(0) * SPLITS + tl.program_id(1)
        tl.store(out_ptr, new_top2)
        tl.store(out_ptr + tl.num_programs(0) * SPLITS, row_others)


@triton.jit
def softmax_long_rows_merge_kernel(
    logits_ptr, target_ptr, loss_ptr, stats_ptr, partials_ptr,
    # operands, or None
    weight_ptr, sample_weight_ptr, scale_ptr, bias_ptr, margin_ptr, gammas_ptr,
    # shapes
    num_classes, inner, stats_step,
    # strides
    stride_outer, stride_inner,
    gamma, policy_args, ignore_index,
    POLICY: tl.constexpr, WHOLE: tl.constexpr, REDUCED: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """A row a program, as in the reduction that follows."""
    outer, i, here, row = rows_of_program(inner, 1)
    y, counts, in_range = load_target(target_ptr, row, here, num_classes, ignore_index)
    in_ptr = partials_ptr + (row * SPLITS)[:, None] + tl.arange(0, SPLITS)[None, :]
    top2 = tl.load(in_ptr)
    row_top2 = tl.max(top2, 1)
    parts = tl.load(in_ptr + tl.num_programs(0) * SPLITS) * tl.exp2(top2 - row_top2[:, None])
    row_ptr = logits_ptr + outer * stride_outer + i * stride_inner
    x_y = tl.load(row_ptr + y, mask=counts, other=0.0).to(tl.float32)
    z_y = target_logit(x_y, y, scale_ptr, bias_ptr, margin_ptr)
    finish_rows(
        loss_ptr, stats_ptr, stats_step, tl.num_programs(0),
        weight_ptr, sample_weight_ptr, gammas_ptr,
        y, row, here, counts, in_range, z_y, row_top2, tl.sum(parts, 1), gamma, policy_args, POLICY, WHOLE, REDUCED,
    )  # fmt: skip


@triton.jit
def _store_block(ptr, at, places, g, mask, SAME: tl.constexpr, BLOCK: tl.constexpr):
    """As vectors where the gradient lies as the logits do, else as elements."""
    g = g.to(ptr.dtype.element_ty)
    if SAME:
        tl.store(ptr + places, g, mask=mask)
    else:
        flat = at + tl.arange(0, BLOCK)
        if mask is None:
            tl.store(ptr + flat, tl.reshape(g, (BLOCK,)))
        else:
            tl.store(ptr + flat, tl.reshape(g, (BLOCK,)), mask=tl.reshape(tl.broadcast_to(mask, g.shape), (BLOCK,)))


@triton.jit
def softmax_long_rows_backward_kernel(
    logits_ptr, target_ptr, stats_ptr, upstream_ptr, grad_ptr,
    # operands, or None
    scale_ptr, bias_ptr,
    # shapes
    num_classes, inner, stats_step,
    # strides
    stride_outer, stride_inner, grad_stride_outer, grad_stride_inner, upstream_stride,
    ignore_index,
    REDUCED: tl.constexpr, SAME: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """SAME: a row of the gradient has the alignment of its logits."""
    outer, i, here, row = rows_of_program(inner, 1)
    y, counts, _ = load_target(target_ptr, row, here, num_classes, ignore_index)
    top2, other, target = row_factors(stats_ptr, stats_step, upstream_ptr, upstream_stride, row, counts, REDUCED)
    top2, other, target = tl.sum(top2, 0), tl.sum(other, 0), tl.sum(target, 0)
    x_ptr = logits_ptr + outer * stride_outer + tl.sum(i, 0) * stride_inner
    g_ptr = grad_ptr + outer * grad_stride_outer + tl.sum(i, 0) * grad_stride_inner
    split = tl.program_id(1)
    shift, first, last, start, full, end = _walk(x_ptr, num_classes, split, BLOCK, SPLITS, VEC)
    x_ptr = tl.multiple_of(x_ptr - shift, 16)
    g_ptr = g_ptr - shift
    if SAME:
        g_ptr = tl.multiple_of(g_ptr, 16)
    y_place = tl.sum(y, 0) + shift
    some = tl.sum(counts.to(tl.int32), 0) > 0
    lanes = _vectors(BLOCK, VEC)

    # the edges are read before anything is written: the gradient may be the logits
    edge, edge_mask = _edges(shift, first, last, num_classes, VEC)
    edge_mask = edge_mask & (split == 0)
    edge_z = tl.load(x_ptr + edge, mask=edge_mask & some, other=0.0)
    edge_z = _logits(edge_z, edge - shift, scale_ptr, bias_ptr, edge_mask)
    edge_g = tl.where(edge == y_place, target, exp(edge_z, top2) * other)
    if scale_ptr is not None:
        edge_g = edge_g * _class_values(scale_ptr, edge - shift, edge_mask)

    if some:
        for at in range(start, full, BLOCK):
            at = tl.multiple_of(at, VEC)
            cols = at - shift + lanes
            z = _logits(tl.load(x_ptr + at + lanes), cols, scale_ptr, bias_ptr, None)
            g = exp(z, top2) * other
            if scale_ptr is not None:
                g = g * _class_values(scale_ptr, cols, None)
            _store_block(g_ptr, at, at + lanes, g, None, SAME, BLOCK)
    else:
        for at in range(start, full, BLOCK):
            at = tl.multiple_of(at, VEC)
            _store_block(g_ptr, at, at + lanes, tl.zeros((BLOCK // VEC, VEC), tl.float32), None, SAME, BLOCK)
    full = tl.multiple_of(full, VEC)
    mask = ((full + tl.arange(0, BLOCK // VEC) * VEC) < end)[:, None]
    places = full + lanes
    z = _logits(tl.load(x_ptr + places, mask=mask & some, other=0.0), places - shift, scale_ptr, bias_ptr, mask)
    g = exp(z, top2) * other
    if scale_ptr is not None:
        g = g * _class_values(scale_ptr, places - shift, mask)
    _store_block(g_ptr, full, places, g, mask, SAME, BLOCK)

    tl.debug_barrier()
    tl.store(g_ptr + edge, edge_g.to(grad_ptr.dtype.element_ty), mask=edge_mask)
    if scale_ptr is not None:
        target = target * tl.load(scale_ptr + y_place - shift)
    own = (y_place >= start) & (y_place < end)  # else at an edge or another program's
    tl.store(g_ptr + y_place, target.to(grad_ptr.dtype.element_ty), mask=own)
