"""What the Triton kernels of rows share: where rows and classes lie in memory, what is loaded of them, and launching.

LOG2E times a maximum, which is written top2, stands for the maximum, so that exponentials are powers of 2.
"""

import contextlib
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from imbloss._ops import OPERANDS
from imbloss.kernels import launch
from imbloss.kernels.policies import LN2, LOG2E, log, log1p_tail

NO_OPERANDS = (None,) * len(OPERANDS)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # in the place of -inf where differences are taken


# ---- in the kernels -------------------------------------------------------------------------------------------------
@triton.jit
def exp(z, top2):
    """exp(z - top), with top2 = top * LOG2E rounded: an error that all classes of a row share, and that cancels."""
    return tl.exp2(tl.fma(z, LOG2E, -top2))


@triton.jit
def higher(top2, top):
    """The larger of a scaled maximum and one that is not; finite, so that differences are numbers."""
    return tl.maximum(top2, top * LOG2E)


@triton.jit
def per_class(ptr, cols, num_classes):
    return tl.load(ptr + cols, mask=cols < num_classes, other=0.0)


@triton.jit
def rows_of_program(inner, ROWS: tl.constexpr):
    """Of the rows (outer, inner): the outer index, the inner ones, which of these there are, and their numbers."""
    programs = tl.cdiv(inner, ROWS)
    outer = (tl.program_id(0) // programs).to(tl.int64)
    i = (tl.program_id(0) % programs).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return outer, i, i < inner, outer * inner + i


@triton.jit
def rows_at(ptr, outer, i, stride_outer, stride_inner, VEC: tl.constexpr):
    """Pointers to rows, whose distance is a multiple of VEC."""
    if VEC > 1:
        stride_outer, stride_inner = stride_outer // VEC * VEC, stride_inner // VEC * VEC
    return (ptr + outer * stride_outer + i * stride_inner)[:, None]


@triton.jit
def classes_of_block(i, here, num_classes, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, VEC: tl.constexpr):
    """Of a block, and which of its elements there are. Only the last of a held row has a mask of classes."""
    cols = i * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = here[:, None]
    if BLOCKS == 0 or i == BLOCKS - 1:
        if VEC > 1:
            num_classes = num_classes // VEC * VEC
        mask = mask & (cols < num_classes)
    return cols, mask


@triton.jit
def load_logits(ptr, cols, stride_class, scale_ptr, bias_ptr, num_classes, mask, VEC: tl.constexpr):
    """z = scale x + bias of a tile."""
    if VEC > 1:
        num_classes = num_classes // VEC * VEC
    z = tl.load(ptr + cols.to(tl.int64) * stride_class, mask=mask, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        z = z * per_class(scale_ptr, cols, num_classes)
    if bias_ptr is not None:
        z = z + per_class(bias_ptr, cols, num_classes)
    return z


@triton.jit
def load_target(target_ptr, row, here, num_classes, ignore_index):
    """The class of each row, made safe to index with; which rows count; which of them are in range."""
    label = tl.load(target_ptr + row, mask=here, other=ignore_index)
    counts = (label != ignore_index) & here
    in_range = (label >= 0) & (label < num_classes)
    return tl.where(counts & in_range, label, 0).to(tl.int32), counts, in_range


@triton.jit
def row_weight(sample_weight_ptr, row, here):
    weight = tl.zeros_like(row).to(tl.float32) + 1.0
    if sample_weight_ptr is not None:
        weight = tl.load(sample_weight_ptr + row, mask=here, other=0.0)
    return weight


@triton.jit
def inverse_divisor(divisor_ptr):
    inverse = 1.0
    if divisor_ptr is not None:
        inverse = tl.div_rn(1.0, tl.load(divisor_ptr).to(tl.float32))
    return inverse


@triton.jit
def target_logit(x_y, y, scale_ptr, bias_ptr, margin_ptr):
    """z of the target's x."""
    z_y = x_y
    if scale_ptr is not None:
        z_y = z_y * tl.load(scale_ptr + y)
    if bias_ptr is not None:
        z_y = z_y + tl.load(bias_ptr + y)
    if margin_ptr is not None:
        z_y = z_y - tl.load(margin_ptr + y)
    return z_y


@triton.jit
def finish_rows(
    loss_ptr, stats_ptr, stats_step, programs,
    weight_ptr, sample_weight_ptr, gammas_ptr,
    y, row, here, counts, in_range, z_y, top2, others, gamma, policy_args,
    POLICY: tl.constexpr, WHOLE: tl.constexpr, REDUCED: tl.constexpr,
):  # fmt: skip
    """Losses of rows, or the sums of theirs and of their weights, and what the backward needs of them."""
    z2 = z_y * LOG2E
    new_top2 = tl.maximum(top2, z2)
    e_others = others * tl.exp2(top2 - new_top2)
    e_target = exp(z_y, new_top2)
    total = e_target + e_others
    inverse_total = tl.div_rn(1.0, total)
    q = e_others * inverse_total
    # one logarithm: of 1 + others / target where the target leads, else of the total
    leads = z2 >= top2
    ratio = e_others / e_target
    log_total = log(tl.where(leads, 1.0 + ratio, total)) + tl.where(leads, log1p_tail(ratio), 0.0)
    log_p = tl.where(leads, 0.0, tl.fma(z_y, LOG2E, -new_top2) * LN2) - log_total
    log_p = tl.where(total == 0.0, float("nan"), log_p)  # of a row that is -inf throughout
    if gammas_ptr is not None:
        gamma = tl.load(gammas_ptr + y)
    value, slope = POLICY(log_p, e_target * inverse_total, q, gamma, policy_args, WHOLE)

    weight = row_weight(sample_weight_ptr, row, here)
    if weight_ptr is not None:
        weight = weight * tl.load(weight_ptr + y)
    weight = tl.where(counts, weight, 0.0)
    bad = counts & (in_range == 0)
    value = tl.where(bad, float("nan"), tl.where(counts, weight * value, 0.0))
    if REDUCED:
        tl.store(loss_ptr + tl.program_id(0), tl.sum(value, 0))
        tl.store(loss_ptr + programs + tl.program_id(0), tl.sum(weight, 0))
    else:
        tl.store(loss_ptr + row, value, mask=here)
    slope = tl.where(bad, float("nan"), tl.where(counts, slope * weight, 0.0))
    stats_ptr += row
    tl.store(stats_ptr, tl.where(counts, new_top2, 0.0), mask=here)
    tl.store(stats_ptr + stats_step, tl.where(counts, tl.div_rn(-slope, total), 0.0), mask=here)
    tl.store(stats_ptr + 2 * stats_step, tl.where(counts, slope * q, 0.0), mask=here)


@triton.jit
def row_factors(stats_ptr, stats_step, upstream_ptr, upstream_stride, row, counts, REDUCED: tl.constexpr):
    """Of each row: the scaled maximum, the factor of the exponentials, and the gradient of the target; 0 if it does not
    count, whatever the loss was divided by."""
    upstream = tl.load(upstream_ptr + row * upstream_stride, mask=counts, other=0.0)
    if REDUCED:
        upstream = tl.where(counts, upstream * tl.load(stats_ptr + stats_step - 1), 0.0)
    stats_ptr += row
    top2 = tl.load(stats_ptr, mask=counts, other=0.0)
    other = upstream * tl.load(stats_ptr + stats_step, mask=counts, other=0.0)
    target = upstream * tl.load(stats_ptr + 2 * stats_step, mask=counts, other=0.0)
    return top2, other, target


@triton.jit
def reduce_kernel(
    partials_ptr, programs, normalizer_ptr, loss_ptr, stats_ptr, num_rows, MEAN: tl.constexpr, BLOCK: tl.constexpr
):
    """The sum of all programs' losses, over that of their weights or the normalizer for the mean; always in one order.

    What the loss was multiplied with is kept behind the first statistics of the rows.
    """
    lanes = tl.arange(0, BLOCK)
    loss = tl.zeros((BLOCK,), tl.float32)
    weight = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, programs, BLOCK):
        mask = start + lanes < programs
        loss += tl.load(partials_ptr + start + lanes, mask=mask, other=0.0)
        if MEAN and normalizer_ptr is None:
            weight += tl.load(partials_ptr + programs + start + lanes, mask=mask, other=0.0)
    total = tl.sum(loss, 0)
    factor = 1.0
    if MEAN:
        divisor = tl.sum(weight, 0) if normalizer_ptr is None else tl.load(normalizer_ptr).to(tl.float32)
        total = tl.div_rn(total, divisor)
        factor = tl.div_rn(1.0, divisor)
    tl.store(loss_ptr, total)
    tl.store(stats_ptr + num_rows, factor)


# ---- their launches ------------------------------------------------------------------------------------------------
def as_rows(tensor: Tensor) -> Tensor:
    """(N, C) as it is, or (N, C, inner): element (i, c, j) is class c of row i * inner + j. A view if possible."""
    shape = tensor.shape
    if len(shape) == 2:
        return tensor
    return tensor.reshape(*shape[:2], math.prod(shape[2:])) if len(shape) > 1 else tensor.view(1, -1)


def geometry(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape (N, C, inner) and strides of what `as_rows` returns."""
    return (*tensor.shape, 1)[:3], (*tensor.stride(), 0)[:3]


def filled(grad: Tensor, rows: Tensor) -> Tensor:
    """The gradient whose rows were written, be they a view of it or not."""
    return grad if rows.data_ptr() == grad.data_ptr() else grad.copy_(rows.view(grad.shape))


def run(kernel, grid: tuple[int, ...], device: torch.device, *args, **constants) -> None:
    """A launch. What a test may watch."""
    with on(device):
        kernel[grid](*args, **constants)


def on(device: torch.device):
    return contextlib.nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def check_dtype(logits: Tensor) -> None:
    if logits.dtype == torch.float64:
        raise TypeError("expected logits of dtype float32, bfloat16 or float16 in a Triton kernel, but got float64")


class Walk:
    """Rows that are walked together, of logits and perhaps a gradient or probabilities, and how."""

    def __init__(self, *tensors: Tensor, stores: bool) -> None:
        self.device = tensors[0].device
        shape, _ = geometry(tensors[0])
        strides = tuple(geometry(tensor)[1] for tensor in tensors)
        sizes = tuple(tensor.element_size() for tensor in tensors)
        aligned = all(tensor.data_ptr() % launch.VECTOR == 0 for tensor in tensors)
        plan = launch.plan(shape, strides, sizes, aligned, stores, launch.processors(self.device))
        self.shape, self.strides, self.is_long, self.long, self.tile = plan
        _, self.num_classes, self.inner = self.shape
        self.num_rows = self.shape[0] * self.inner

    def run_tiles(self, kernel, *args, **constants) -> None:
        rows, columns, blocks, vector, warps, programs = self.tile
        constants |= {"ROWS": rows, "COLUMNS": columns, "BLOCKS": blocks, "VEC": vector, "num_warps": warps}
        if self.num_rows:
            run(kernel, (programs,), self.device, *args, **constants)

    def run_long(self, kernel, *args, **constants) -> None:
        block, vector, splits, warps = self.long
        constants |= {"BLOCK": block, "VEC": vector, "SPLITS": splits, "num_warps": warps}
        if self.num_rows:
            run(kernel, (self.num_rows, splits), self.device, *args, **constants)


def whole(gamma: float, gammas: Tensor | None) -> int:
    """The exponent, if it is a constant that needs no power; else -1."""
    return int(gamma) if gammas is None and gamma in (0, 1, 2, 3) else -1


def upstream_of(grad_output: Tensor) -> tuple[Tensor, int]:
    """One number, or one a row, and the step from row to row."""
    if grad_output.dim() == 0:
        return grad_output if grad_output.dtype == torch.float32 else grad_output.float(), 0
    return grad_output.float().contiguous(), 1
