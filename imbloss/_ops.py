"""Schemas, shapes, gradients and the choice of backend, per traversal. Arguments are checked in functional.py."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from imbloss import _C, reference

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # as in csrc/ops.cpp
NUM_ROW_STATS = 3  # as in csrc/softmax_rows.h
BACKENDS = ("auto", "cpp", "reference")
Operands = Sequence[Tensor | None]

_library = torch.library.Library("imbloss", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_library.define(
    "softmax_rows(Tensor logits, Tensor target, Tensor?[] operands, float[] numbers, int ignore_index, int reduction, "
    "str policy, bool keep_grad) -> (Tensor loss, Tensor kept)",
    tags=_TAGS,
)
_library.define(
    "softmax_rows_backward(Tensor grad_output, Tensor logits, Tensor target, Tensor stats, Tensor?[] operands, "
    "int ignore_index) -> Tensor",
    tags=_TAGS,
)


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.register_fake("imbloss::softmax_rows", lib=_library)
def _(logits, target, operands, numbers, ignore_index, reduction, policy, keep_grad):
    wide = _accumulation_dtype(logits.dtype)
    loss = logits.new_empty(target.shape if reduction == REDUCTIONS["none"] else (), dtype=wide)
    stats_shape = (NUM_ROW_STATS, target.numel())
    return loss, torch.empty_like(logits) if keep_grad else logits.new_empty(stats_shape, dtype=wide)


@torch.library.register_fake("imbloss::softmax_rows_backward", lib=_library)
def _(grad_output, logits, target, stats, operands, ignore_index):
    return torch.empty_like(logits)


_softmax_rows = torch.ops.imbloss.softmax_rows.default
_softmax_rows_backward = torch.ops.imbloss.softmax_rows_backward.default


# ---- backends ----------------------------------------------------------------------------------------------------
def _has_kernel(backend: str) -> dict[str, bool]:
    return {"cpu": backend in ("auto", "cpp") and _C.loaded()}


def set_backend(backend: str) -> str:
    """Choose what computes from now on; returns what did before."""
    global _backend, _kernels
    if backend not in BACKENDS:
        raise ValueError(f"expected backend in {BACKENDS}, but got {backend!r}")
    if backend == "cpp" and not _C.loaded():
        raise RuntimeError("expected a compiled core for backend='cpp', but none is installed")
    before, _backend, _kernels = _backend, backend, _has_kernel(backend)
    return before


_backend = "auto"
_kernels = _has_kernel("auto")
set_backend(os.environ.get("IMBLOSS_BACKEND", "auto"))


# ---- softmax rows ------------------------------------------------------------------------------------------------
# The order of `operands`, which may be empty instead; as in csrc/ops.cpp.
OPERANDS = ("weight", "sample_weight", "scale", "bias", "margin", "gammas", "normalizer")


def softmax_rows(
    logits: Tensor,
    target: Tensor,
    operands: Operands,
    numbers: list[float],
    ignore_index: int,
    reduction: int,
    policy: str,
) -> Tensor:
    """The loss of :func:`imbloss.reference.softmax_rows`, whose arguments these are, by kernel where there is one."""
    args = target, operands, numbers, ignore_index, reduction, policy
    if not _kernels.get(logits.device.type, False):
        return reference.softmax_rows(logits, *args)
    for tensor in operands:
        if tensor is not None and tensor.requires_grad:  # their gradients are the composition's business
            return reference.softmax_rows(logits, *args)
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
        return SoftmaxRows.apply(logits, target, *args[2:], *operands)[0]
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return _softmax_rows(logits, *args, False)[0]
    if reduction == REDUCTIONS["none"]:
        return SoftmaxRows.apply(logits, target, *args[2:], *operands)[0]
    return SoftmaxRowsWithGrad.apply(logits, args)


class SoftmaxRowsWithGrad(torch.autograd.Function):
    """Eager, with a reduction: the forward makes the gradient while a row is at hand, the backward hands it over.

    It hands over its only reference, so that autograd need not copy; a second backward computes anew. `args` travel
    as one argument, and without setup_context, because autograd takes half a microsecond for each and 12 for that.
    """

    @staticmethod
    def forward(ctx, logits, args):
        loss, ctx.gradient = _softmax_rows(logits, *args, True)
        ctx.save_for_backward(logits, args[0])
        ctx.args = args
        return loss

    @staticmethod
    def backward(ctx, grad_output):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, ctx.gradient = ctx.gradient, None
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return _reference_backward(grad_output, ctx.saved_tensors[0], *ctx.args), None
        if grad_output.item() == 1:
            if gradient is None:
                gradient = _softmax_rows(ctx.saved_tensors[0], *ctx.args, True)[1]
        elif gradient is not None and gradient.dtype in (torch.float32, torch.float64):
            gradient.mul_(grad_output)
        else:  # rounded to half precision and then scaled, a gradient would be rounded twice or underflow
            logits = ctx.saved_tensors[0]
            target, operands, _, ignore_index, *_ = ctx.args
            stats = _softmax_rows(logits, *ctx.args, False)[1]
            gradient = _softmax_rows_backward(grad_output, logits, target, stats, operands, ignore_index)
        return gradient, None


class SoftmaxRows(torch.autograd.Function):
    """The forward keeps three numbers a row, the backward reads the logits again: for upstream gradients a row,
    torch.compile and torch.func."""

    @staticmethod
    def forward(logits, target, numbers, ignore_index, reduction, policy, *operands):
        return _softmax_rows(logits, target, operands, numbers, ignore_index, reduction, policy, False)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, target, *options = inputs[:6]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, output[1], *inputs[6:])
        ctx.options = options

    @staticmethod
    def backward(ctx, grad_output, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, target, stats, *operands = ctx.saved_tensors
        if grad_output is None:
            gradient = None
        elif torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradient = _reference_backward(grad_output, logits, target, operands, *ctx.options)
        else:
            gradient = _softmax_rows_backward(grad_output, logits, target, stats, operands, ctx.options[1])
        return gradient, *[None] * (5 + len(operands))


def _reference_backward(grad_output: Tensor, logits: Tensor, *args) -> Tensor:
    """The gradient as a differentiable composition, for double backward."""
    with torch.enable_grad():
        loss = reference.softmax_rows(logits, *args)
    return torch.autograd.grad(loss, logits, grad_output, create_graph=True)[0]
