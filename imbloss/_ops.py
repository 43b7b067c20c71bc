"""Schemas, shapes, gradients and the choice of backend, per traversal. Arguments are checked in functional.py."""

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import forward_ad

from imbloss import _C, reference

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # as in csrc/ops.cpp
NUM_ROW_STATS = 3  # as in csrc/softmax_rows.h
NUM_COLUMN_STATS, NUM_COLUMN_FACTORS, NUM_TOTALS = 4, 3, 2  # as in csrc/class_columns.h
BACKENDS = ("auto", "cpp", "triton", "reference")
Operands = Sequence[Tensor | None]

_library = torch.library.Library("imbloss", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_library.define(
    "softmax_rows(Tensor logits, Tensor target, Tensor?[] operands, float[] numbers, int ignore_index, int reduction, "
    "str policy, bool keep_grad) -> (Tensor loss, Tensor kept)",
    tags=_TAGS,
)
# The loss alone.
_library.define(
    "softmax_rows_value(Tensor logits, Tensor target, Tensor?[] operands, float[] numbers, int ignore_index, "
    "int reduction, str policy) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "softmax_rows_backward(Tensor grad_output, Tensor logits, Tensor target, Tensor stats, Tensor?[] operands, "
    "int ignore_index) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "softmax_soft_rows(Tensor logits, Tensor target, Tensor?[] operands, float[] numbers, float label_smoothing, "
    "int ignore_index, int reduction, str policy, bool keep_grad) -> (Tensor loss, Tensor grad)",
    tags=_TAGS,
)
_library.define(
    "softmax_soft_rows_backward(Tensor grad_output, Tensor logits, Tensor target, Tensor?[] operands, float[] numbers, "
    "float label_smoothing, int ignore_index, int reduction, str policy) -> Tensor",
    tags=_TAGS,
)
# The same with the gradient written over the logits.
_library.define(
    "softmax_rows_(Tensor(a!) logits, Tensor target, Tensor?[] operands, float[] numbers, int ignore_index, "
    "int reduction, str policy) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "softmax_soft_rows_(Tensor(a!) logits, Tensor target, Tensor?[] operands, float[] numbers, float label_smoothing, "
    "int ignore_index, int reduction, str policy) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "class_columns(Tensor logits, Tensor target, Tensor?[] operands, float[] numbers, int ignore_index, int reduction, "
    "str estimator, bool keep_grad) -> (Tensor loss, Tensor kept)",
    tags=_TAGS,
)
_library.define(
    "class_columns_statistics(Tensor logits, Tensor target, Tensor?[] operands, float[] numbers, int ignore_index, "
    "str estimator) -> (Tensor rows, Tensor columns, Tensor totals)",
    tags=_TAGS,
)
_library.define(
    "class_columns_backward(Tensor grad_output, Tensor logits, Tensor target, Tensor kept, Tensor?[] operands, "
    "float[] numbers, int ignore_index, str estimator) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "sigmoid_elements(Tensor logits, Tensor target, Tensor?[] operands, float[] numbers, int ignore_index, "
    "int reduction, str policy, bool keep_grad) -> (Tensor loss, Tensor grad)",
    tags=_TAGS,
)
_library.define(
    "sigmoid_elements_backward(Tensor grad_output, Tensor logits, Tensor target, Tensor?[] operands, float[] numbers, "
    "int ignore_index, int reduction, str policy) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "neighbors(Tensor points, Tensor? queries, Tensor? exclude, int k, Tensor(a!)? done) -> "
    "(Tensor distances, Tensor indices)",
    tags=_TAGS,
)
_library.define("interpolated_rows(Tensor rows, Tensor parent, Tensor neighbour, Tensor gap) -> Tensor", tags=_TAGS)
# The order of `operands`, which may be empty instead; as in csrc/ops.cpp. class_columns has (prior, sample_weight,
# normalizer), and as numbers the factors of PriorCE and of LADER, and lambda.
OPERANDS = ("weight", "sample_weight", "scale", "bias", "margin", "gammas", "normalizer")
ELEMENT_OPERANDS = ("weight", "pos_weights", "alphas", "gammas", "normalizer")


def _new_loss(logits: Tensor, reduction: int) -> Tensor:
    rows = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else ()
    return logits.new_empty(rows if reduction == REDUCTIONS["none"] else (), dtype=_accumulation_dtype(logits.dtype))


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.register_fake("imbloss::softmax_rows", lib=_library)
def _(logits, target, operands, numbers, ignore_index, reduction, policy, keep_grad):
    # Triton's kernels keep the divisor behind the statistics of the rows
    stats_shape = (NUM_ROW_STATS, target.numel() + (_kernels.get(logits.device.type) == "triton"))
    stats = logits.new_empty(stats_shape, dtype=_accumulation_dtype(logits.dtype))
    return _new_loss(logits, reduction), torch.empty_like(logits) if keep_grad else stats


@torch.library.register_fake("imbloss::softmax_rows_backward", lib=_library)
def _(grad_output, logits, target, stats, operands, ignore_index):
    return torch.empty_like(logits)


@torch.library.register_fake("imbloss::softmax_soft_rows", lib=_library)
def _(logits, target, operands, numbers, label_smoothing, ignore_index, reduction, policy, keep_grad):
    return _new_loss(logits, reduction), torch.empty_like(logits) if keep_grad else logits.new_empty(0)


@torch.library.register_fake("imbloss::softmax_soft_rows_backward", lib=_library)
def _(grad_output, logits, *args):
    return torch.empty_like(logits)


@torch.library.register_fake("imbloss::softmax_rows_value", lib=_library)
@torch.library.register_fake("imbloss::softmax_rows_", lib=_library)
@torch.library.register_fake("imbloss::softmax_soft_rows_", lib=_library)
def _(logits, target, operands, numbers, *options):
    return _new_loss(logits, options[-2])


@torch.library.register_fake("imbloss::class_columns", lib=_library)
def _(logits, target, operands, numbers, ignore_index, reduction, estimator, keep_grad):
    wide = _accumulation_dtype(logits.dtype)
    kept_size = NUM_ROW_STATS * target.numel() + NUM_COLUMN_FACTORS * operands[0].numel() + 1
    kept = torch.empty_like(logits) if keep_grad else logits.new_empty(kept_size, dtype=wide)
    return logits.new_empty((), dtype=wide), kept


@torch.library.register_fake("imbloss::class_columns_statistics", lib=_library)
def _(logits, target, operands, numbers, ignore_index, estimator):
    rows = logits.new_empty((NUM_ROW_STATS, target.numel()), dtype=_accumulation_dtype(logits.dtype))
    columns = logits.new_empty((NUM_COLUMN_STATS, operands[0].numel()), dtype=torch.float64)
    return rows, columns, logits.new_empty(NUM_TOTALS, dtype=torch.float64)


@torch.library.register_fake("imbloss::class_columns_backward", lib=_library)
def _(grad_output, logits, *args):
    return torch.empty_like(logits)


@torch.library.register_fake("imbloss::sigmoid_elements", lib=_library)
def _(logits, target, operands, numbers, ignore_index, reduction, policy, keep_grad):
    wide = _accumulation_dtype(logits.dtype)
    none = reduction == REDUCTIONS["none"]
    loss = torch.empty_like(logits, dtype=wide) if none else logits.new_empty((), dtype=wide)
    return loss, torch.empty_like(logits) if keep_grad else logits.new_empty(0)


@torch.library.register_fake("imbloss::sigmoid_elements_backward", lib=_library)
def _(grad_output, logits, *args):
    return torch.empty_like(logits)


@torch.library.register_fake("imbloss::neighbors", lib=_library)
def _(points, queries, exclude, k, done):
    shape = (len(points if queries is None else queries), k)
    return points.new_empty(shape), points.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("imbloss::interpolated_rows", lib=_library)
def _(rows, parent, neighbour, gap):
    return rows.new_empty((len(rows) + len(gap), rows.shape[1]))


# ---- backends ----------------------------------------------------------------------------------------------------
# Operators by the module of imbloss.kernels that has their launches, of the same names.
_TRITON_OPERATORS = {
    "softmax_rows": ("softmax_rows", "softmax_rows_value", "softmax_rows_backward", "softmax_rows_"),
    "soft_rows": ("softmax_soft_rows", "softmax_soft_rows_backward", "softmax_soft_rows_"),
    "class_columns": ("class_columns", "class_columns_statistics", "class_columns_backward"),
    "sigmoid_elements": ("sigmoid_elements", "sigmoid_elements_backward"),
    "neighbors": ("neighbors",),
}
_ACCELERATORS = {"cuda": "CUDA", "xpu": "XPU"}  # device types, and their keys in the dispatcher; ROCm's are CUDA's
_has_triton = importlib.util.find_spec("triton") is not None


def _register_triton(library: torch.library.Library, key: str, **options) -> None:
    """Launches of Triton kernels, which nobody imports before the first of them."""

    def launch(name: str, *args):
        return _launch(name)(*args)

    for names in _TRITON_OPERATORS.values():
        for name in names:
            library.impl(name, functools.partial(launch, name), key, **options)


@functools.cache
def _launch(name: str) -> Callable:
    """What an operator calls on a GPU."""
    module = next(module for module, names in _TRITON_OPERATORS.items() if name in names)
    return getattr(importlib.import_module(f"imbloss.kernels.{module}"), name)


if _has_triton:
    for _key in _ACCELERATORS.values():
        _register_triton(_library, _key)


def set_backend(backend: str) -> str:
    """Choose what computes from now on; returns what did before."""
    global _backend, _kernels, _interpreted
    if backend not in BACKENDS:
        raise ValueError(f"expected backend in {BACKENDS}, but got {backend!r}")
    if backend == "cpp" and not _C.loaded():
        raise RuntimeError("expected a compiled core for backend='cpp', but none is installed")
    if backend == "triton" and not _has_triton:
        raise RuntimeError("expected triton for backend='triton', but it is not installed")
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    kernels: dict[str, str | None] = {"cpu": None}
    if backend in ("auto", "cpp") and _C.loaded():
        kernels["cpu"] = "cpp"
    if backend in ("auto", "triton") and _has_triton:
        kernels |= dict.fromkeys(_ACCELERATORS, "triton")
    if interpreted:
        kernels["cpu"] = "triton"
    if _interpreted and not interpreted:
        _interpreted._destroy()
        _interpreted = None
    elif interpreted and not _interpreted:
        _interpreted = torch.library.Library("imbloss", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"(?s).*Overriding a previously registered kernel")
            _register_triton(_interpreted, "CPU", allow_override=True)
    before, _backend, _kernels = _backend, backend, kernels
    return before


_backend = "auto"
_kernels: dict[str, str | None] = {}  # device type -> whose kernels; the reference computes where there are none
_interpreted: torch.library.Library | None = None  # Triton's kernels on CPU, in place of the compiled core
set_backend(os.environ.get("IMBLOSS_BACKEND", "auto"))


def has_kernels(logits: Tensor) -> bool:
    """Whether operators, rather than the reference, serve this tensor."""
    kernels = _kernels["cpu"] if logits.is_cpu else _kernels_elsewhere(logits)
    return kernels is not None and not (kernels == "triton" and logits.dtype == torch.float64)


def _kernels_elsewhere(logits: Tensor) -> str | None:
    """Whose kernels serve a tensor that is not on the CPU."""
    kernels = _kernels.get(logits.device.type)
    wanted = _backend == "auto" and logits.device.type in _ACCELERATORS
    if kernels is None and wanted and not torch.compiler.is_compiling():
        _warn_of_missing_triton(logits.device.type)
    return kernels


@functools.cache
def _warn_of_missing_triton(device: str) -> None:
    warnings.warn(
        f"imbloss has no kernels for {device} tensors without triton and computes in plain PyTorch, which is slower. "
        "To have them, install triton.",
        RuntimeWarning,
        stacklevel=2,
    )


# ---- autograd ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Traversal:
    """A fused loss of (logits, target, operands, *options), with three ways to its gradient.

    On CPU, eager and reduced to one number: the forward makes the gradient while a row is at hand. On a GPU, for a
    gradient per row, or where something watches (torch.compile, tracing, checkpointing): the backward reads the logits
    again. torch.func, forward mode, a gradient of the gradient or with respect to another tensor: the reference.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]  # (logits, target, operands, *options, keep_grad) -> loss, kept
    backward_operator: Callable[..., Tensor]
    # its call: (operator, grad_output, kept, logits, target, operands, *options) -> gradient
    call_backward: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    keeps: bool  # whether the backward needs what the forward kept
    # (logits, target, operands, *options) -> loss, with the gradient in the logits; None where no loss offers that
    in_place: Callable[..., Tensor] | None = None
    value: Callable[..., Tensor] | None = None  # the loss alone, where the forward would keep what costs time
    eager: Callable[..., tuple[Tensor, Tensor]] = field(init=False)  # forward without torch.ops' layer in Python
    _recomputed: Callable[..., Tensor] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "eager", getattr(self.forward, "_op", self.forward))
        operator, call = self.backward_operator, self.call_backward
        function = recomputed(self.forward, lambda *args: call(operator, *args), self.reference_gradient)
        object.__setattr__(self, "_recomputed", function)

    def __call__(
        self, logits: Tensor, target: Tensor, operands: Operands, options: tuple, reduced: bool, inplace: bool = False
    ) -> Tensor:
        kernels = _kernels["cpu"] if logits.is_cpu else _kernels_elsewhere(logits)
        composed = (
            (kernels == "triton" and logits.dtype == torch.float64)
            or _is_transformed()
            or forward_ad._current_level >= 0
            or target.requires_grad
            or (len(operands) > 0 and any(tensor is not None and tensor.requires_grad for tensor in operands))
        )
        if inplace:
            _check_in_place(logits, composed)
        if kernels is None or composed:
            return self.reference(logits, target, operands, *options)
        if not (logits.requires_grad and torch.is_grad_enabled()):
            if self.value:
                return self.value(logits, target, operands, *options)
            return self.forward(logits, target, operands, *options, False)[0]
        if inplace:
            return InPlace.apply(logits, (self, target, operands, options))
        # tensors may be fake, or what autograd saves is someone's business (checkpointing, offloading)
        watched = torch.compiler.is_compiling() or _num_dispatch_modes() > 0 or _saved_tensors_hooks(False)
        if kernels == "triton" and not watched and type(logits) in _PLAIN and not logits.is_meta:
            return _with_statistics(logits, ((self, options), target, operands))
        if watched or not reduced or kernels == "triton":  # whether the upstream gradient is 1 would be waited for
            return self._recomputed(logits, target, len(operands), *operands, *options)
        with_grad = _with_grad if type(logits) in _PLAIN else WithGrad.apply
        return with_grad(logits, ((self, options), target, operands))

    @functools.cached_property
    def launch_forward(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """What the forward calls on a GPU."""
        return _launch(_name(self.forward)) if hasattr(self.forward, "_schema") else self.forward

    @functools.cached_property
    def launch_backward(self) -> Callable[..., Tensor]:
        return functools.partial(self.call_backward, _launch(_name(self.backward_operator)))

    def backward(self, *args) -> Tensor:
        return self.call_backward(self.backward_operator, *args)

    def gradient(self, grad_output: Tensor, logits: Tensor, *args) -> Tensor:
        """By the kernels, from nothing kept."""
        kept = self.forward(logits, *args, False)[1] if self.keeps else None
        return self.backward(grad_output, kept, logits, *args)

    def later(self, options: tuple, grad_output: Tensor, grad: Tensor | None, saved: Sequence[Tensor]) -> Tensor:
        """The gradient where the backward has more to do than to hand over `grad`, which may be gone."""
        logits, target, *operands = saved
        args = logits, target, operands, *options
        if _num_dispatch_modes() > 0 or torch.compiler.is_compiling():  # compiled autograd
            return self.gradient(grad_output, *args)
        if _wants_composition(grad_output):
            return self.reference_gradient(grad_output, *args)
        factor = grad_output.item()
        if factor != 1 and logits.dtype != grad_output.dtype:
            # rounded to half precision and then scaled, a gradient would be rounded twice or underflow
            return self.gradient(grad_output, *args)
        grad = self.forward(*args, True)[1] if grad is None else grad
        return grad if factor == 1 else grad.mul_(grad_output)

    def later_from_statistics(self, options: tuple, grad_output: Tensor, _: None, saved: Sequence[Tensor]) -> Tensor:
        """The gradient where the forward made statistics."""
        logits, target, kept, *operands = saved
        if _num_dispatch_modes() > 0 or torch.compiler.is_compiling():
            return self.backward(grad_output, kept, logits, target, operands, *options)
        if _wants_composition(grad_output):
            return self.reference_gradient(grad_output, logits, target, operands, *options)
        return self.launch_backward(grad_output, kept, logits, target, operands, *options)

    def reference_gradient(self, grad_output: Tensor, logits: Tensor, *args) -> Tensor:
        """As a differentiable composition."""
        with torch.enable_grad():
            loss = self.reference(logits, *args)
        return torch.autograd.grad(loss, logits, grad_output, create_graph=True)[0]


def _name(operator) -> str:
    return operator._schema.name.removeprefix("imbloss::")


_PLAIN = (Tensor, torch.nn.Parameter)  # and no subclass, which may be fake
# torch.func's transforms; tracing; checkpointing; the older vmap of is_grads_batched
_is_transformed = torch._C._are_functorch_transforms_active
_num_dispatch_modes = torch._C._len_torch_dispatch_stack
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]
_is_batch = torch._C._functorch.is_legacy_batchedtensor  # pyright: ignore[reportAttributeAccessIssue]


def _wants_composition(grad_output: Tensor) -> bool:
    """Whether a backward is to be differentiated in turn, or gets a batch of upstream gradients."""
    return torch.is_grad_enabled() or _is_transformed() or _is_batch(grad_output)


class WithGrad(torch.autograd.Function):
    """The forward makes the gradient, the backward hands it over: the only reference, so that autograd need not copy.

    A second backward computes anew. Two arguments, and no setup_context: autograd takes time for each, and 12
    microseconds for that.
    """

    @staticmethod
    def forward(ctx, logits, call):
        ctx.recipe, target, operands = call
        traversal, options = ctx.recipe
        loss, ctx.grad = traversal.eager(logits, target, operands, *options, True)
        ctx.save_for_backward(logits, target, *operands)
        return loss

    @staticmethod
    def backward(ctx, grad_output):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad, ctx.grad = ctx.grad, None
        composed = _wants_composition(grad_output) or torch.compiler.is_compiling()
        if grad is not None and not composed and grad_output.item() == 1:
            return grad, None
        traversal, options = ctx.recipe
        # reading what was saved notices that it was changed in place
        return traversal.later(options, grad_output, grad, ctx.saved_tensors), None


class WithStatistics(torch.autograd.Function):
    """What `recomputed` is for Triton, without a detour through the dispatcher, which takes longer than a launch."""

    @staticmethod
    def forward(ctx, logits, call):
        ctx.recipe, target, operands = call
        traversal, options = ctx.recipe
        loss, kept = traversal.launch_forward(logits, target, operands, *options, False)
        ctx.save_for_backward(logits, target, kept, *operands)
        return loss

    @staticmethod
    def backward(ctx, grad_output):  # pyright: ignore[reportIncompatibleMethodOverride]
        traversal, options = ctx.recipe
        return traversal.later_from_statistics(options, grad_output, None, ctx.saved_tensors), None


def _check_in_place(logits: Tensor, composed: bool) -> None:
    if torch.compiler.is_compiling():
        reason = "torch.compile"
    elif composed:
        reason = "torch.func, forward mode, float64 in Triton or a gradient with respect to another tensor"
    elif logits.is_leaf and logits.requires_grad and torch.is_grad_enabled():
        reason = "logits that are a leaf of the graph and require grad"
    elif _overlaps(logits):
        reason = "logits whose elements share memory"
    else:
        return
    raise RuntimeError(f"expected inplace=False, but got inplace=True with {reason}")


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements may be one place in memory."""
    span = 1
    for step, size in sorted(
        (step, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    ):
        if step < span:
            return tensor.numel() > 0
        span += (size - 1) * step
    return False


class InPlace(torch.autograd.Function):
    """The forward writes the gradient over the logits, the backward scales it and hands it over."""

    @staticmethod
    def forward(ctx, logits, call):
        traversal, target, operands, options = call
        loss = traversal.in_place(logits, target, operands, *options)
        torch.autograd.graph.increment_version(logits)  # whoever saved the logits finds them gone
        ctx.grad = logits.detach()
        return loss

    @staticmethod
    def backward(ctx, grad_output):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError(
                "expected one backward through a loss with inplace=True, whose logits are gone, but got a second one"
            )
        if _wants_composition(grad_output):
            raise RuntimeError(
                "expected no gradient of the gradient of a loss with inplace=True, whose logits are gone"
            )
        if grad_output.dim() > 0:
            return grad.mul_(grad_output.unsqueeze(1)), None
        return grad if grad.is_cpu and grad_output.item() == 1 else grad.mul_(grad_output), None


if _C.autograd is not None:  # the same in C++
    _with_grad, _with_statistics = _C.autograd.with_grad, _C.autograd.with_statistics
else:
    # torch.autograd.Function.apply without its layer for torch.func, which is not active here: a microsecond
    _with_grad = super(torch.autograd.Function, WithGrad).apply  # pyright: ignore[reportAttributeAccessIssue]
    _with_statistics = super(torch.autograd.Function, WithStatistics).apply  # pyright: ignore[reportAttributeAccessIssue]


def recomputed(kernel: Callable, backward_kernel: Callable, reference_gradient: Callable) -> Callable[..., Tensor]:
    """The loss as an autograd function whose backward reads the logits again; operands come one by one, counted."""

    class Recomputed(torch.autograd.Function):
        @staticmethod
        def forward(logits, target, count, *rest):
            return kernel(logits, target, rest[:count], *rest[count:], False)

        @staticmethod
        def setup_context(ctx, inputs, output):
            logits, target, count, *rest = inputs
            ctx.mark_non_differentiable(output[1])
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(logits, target, output[1], *rest[:count])
            ctx.options = rest[count:]

        @staticmethod
        def backward(ctx, grad_output, _):  # pyright: ignore[reportIncompatibleMethodOverride]
            logits, target, kept, *operands = ctx.saved_tensors
            if grad_output is None:
                grad = None
            elif not torch.compiler.is_compiling() and _wants_composition(grad_output):
                grad = reference_gradient(grad_output, logits, target, operands, *ctx.options)
            else:
                grad = backward_kernel(grad_output, kept, logits, target, operands, *ctx.options)
            return grad, *[None] * (2 + len(operands) + len(ctx.options))

    return lambda *args: Recomputed.apply(*args)[0]


# ---- the traversals ----------------------------------------------------------------------------------------------
def _of_nothing_kept(operator, grad_output, _, *args):
    return operator(grad_output, *args)


softmax_rows = Traversal(
    forward=torch.ops.imbloss.softmax_rows.default,
    backward_operator=torch.ops.imbloss.softmax_rows_backward.default,
    call_backward=lambda operator, grad_output, stats, logits, target, operands, numbers, ignore_index, *_: operator(
        grad_output, logits, target, stats, operands, ignore_index
    ),
    reference=reference.softmax_rows,
    keeps=True,
    in_place=torch.ops.imbloss.softmax_rows_.default,
    value=torch.ops.imbloss.softmax_rows_value.default,
)
softmax_soft_rows = Traversal(
    forward=torch.ops.imbloss.softmax_soft_rows.default,
    backward_operator=torch.ops.imbloss.softmax_soft_rows_backward.default,
    call_backward=_of_nothing_kept,
    reference=reference.softmax_soft_rows,
    keeps=False,
    in_place=torch.ops.imbloss.softmax_soft_rows_.default,
)
class_columns = Traversal(
    forward=torch.ops.imbloss.class_columns.default,
    backward_operator=torch.ops.imbloss.class_columns_backward.default,
    call_backward=lambda operator, grad_output, kept, logits, target, operands, numbers, ignore_index, _, estimator: (
        operator(grad_output, logits, target, kept, operands, numbers, ignore_index, estimator)
    ),
    reference=reference.class_columns,
    keeps=True,
)
sigmoid_elements = Traversal(
    forward=torch.ops.imbloss.sigmoid_elements.default,
    backward_operator=torch.ops.imbloss.sigmoid_elements_backward.default,
    call_backward=_of_nothing_kept,
    reference=reference.sigmoid_elements,
    keeps=False,
)
