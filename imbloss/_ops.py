"""Schemas, shapes, gradients and the choice of backend, per traversal. Arguments are checked in functional.py."""

import os

import torch
from torch import Tensor

from imbloss import _C, reference

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # as in csrc/ops.cpp
NUM_ROW_STATS = 3  # as in csrc/softmax_rows.h
BACKENDS = ("auto", "cpp", "reference")

_library = torch.library.Library("imbloss", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_library.define(
    "softmax_rows(Tensor logits, Tensor target, Tensor? weight, Tensor? sample_weight, Tensor? scale, Tensor? bias, "
    "Tensor? margin, Tensor? gammas, Tensor? normalizer, float gamma, float? divisor, int ignore_index, int reduction, "
    "str policy, float[] params, ScalarType? loss_dtype, bool keep_grad) -> (Tensor loss, Tensor kept)",
    tags=_TAGS,
)
_library.define(
    "softmax_rows_backward(Tensor grad_output, Tensor logits, Tensor target, Tensor stats, Tensor? scale, "
    "Tensor? bias, int ignore_index) -> Tensor",
    tags=_TAGS,
)


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.register_fake("imbloss::softmax_rows", lib=_library)
def _(logits, target, *args):
    reduction, loss_dtype, keep_grad = args[10], args[13], args[14]
    shape = target.shape if reduction == REDUCTIONS["none"] else ()
    loss = logits.new_empty(shape, dtype=loss_dtype or logits.dtype)
    stats_shape = (NUM_ROW_STATS, target.numel())
    kept = (
        torch.empty_like(logits)
        if keep_grad
        else logits.new_empty(stats_shape, dtype=_accumulation_dtype(logits.dtype))
    )
    return loss, kept


@torch.library.register_fake("imbloss::softmax_rows_backward", lib=_library)
def _(grad_output, logits, *args):
    return torch.empty_like(logits)


_softmax_rows = torch.ops.imbloss.softmax_rows.default
_softmax_rows_backward = torch.ops.imbloss.softmax_rows_backward.default
_NUM_TENSORS = 9  # the tensors lead the arguments


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
def softmax_rows(logits: Tensor, *rest) -> Tensor:
    """The loss of :func:`imbloss.reference.softmax_rows`, whose arguments these are, by kernel where there is one."""
    if not _kernels.get(logits.device.type, False):
        return reference.softmax_rows(logits, *rest)
    for tensor in rest[1:8]:
        if tensor is not None and tensor.requires_grad:  # their gradients are the composition's business
            return reference.softmax_rows(logits, *rest)
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
        return SoftmaxRows.apply(logits, *rest)[0]
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return _softmax_rows(logits, *rest, False)[0]
    if rest[11] == REDUCTIONS["none"]:
        return SoftmaxRows.apply(logits, *rest)[0]
    return SoftmaxRowsWithGrad.apply(logits, rest)


class SoftmaxRowsWithGrad(torch.autograd.Function):
    """Eager, with a reduction: the forward makes the gradient while a row is at hand, the backward hands it over.

    It hands over its only reference, so that autograd need not copy; a second backward computes anew. `rest` travels
    as one argument, and without setup_context, because autograd takes half a microsecond for each and 12 for that.
    """

    @staticmethod
    def forward(ctx, logits, rest):
        loss, ctx.gradient = _softmax_rows(logits, *rest, True)
        ctx.save_for_backward(logits, rest[0])
        ctx.rest = rest
        return loss

    @staticmethod
    def backward(ctx, grad_output):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, ctx.gradient = ctx.gradient, None
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return _reference_backward(grad_output, ctx.saved_tensors[0], *ctx.rest), None
        if grad_output.item() == 1:
            if gradient is None:
                gradient = _softmax_rows(ctx.saved_tensors[0], *ctx.rest, True)[1]
        elif gradient is not None and gradient.dtype in (torch.float32, torch.float64):
            gradient.mul_(grad_output)
        else:  # rounded to half precision and then scaled, a gradient would be rounded twice or underflow
            args = ctx.saved_tensors[0], *ctx.rest
            gradient = _backward_from_stats(grad_output, _softmax_rows(*args, False)[1], *args)
        return gradient, None


class SoftmaxRows(torch.autograd.Function):
    """The forward keeps three numbers a row, the backward reads the logits again: for upstream gradients a row,
    torch.compile and torch.func."""

    @staticmethod
    def forward(*args):
        return _softmax_rows(*args, False)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:_NUM_TENSORS], output[1])
        ctx.options = inputs[_NUM_TENSORS:]

    @staticmethod
    def backward(ctx, grad_output, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        *tensors, stats = ctx.saved_tensors
        args = (*tensors, *ctx.options)
        if grad_output is None:
            gradient = None
        elif torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradient = _reference_backward(grad_output, *args)
        else:
            gradient = _backward_from_stats(grad_output, stats, *args)
        return gradient, *[None] * (len(args) - 1)


def _backward_from_stats(grad_output: Tensor, stats: Tensor, *args) -> Tensor:
    logits, target, scale, bias, ignore_index = args[0], args[1], args[4], args[5], args[11]
    return _softmax_rows_backward(grad_output, logits, target, stats, scale, bias, ignore_index)


def _reference_backward(grad_output: Tensor, logits: Tensor, *rest) -> Tensor:
    """The gradient as a differentiable composition, for double backward."""
    with torch.enable_grad():
        loss = reference.softmax_rows(logits, *rest)
    return torch.autograd.grad(loss, logits, grad_output, create_graph=True)[0]
