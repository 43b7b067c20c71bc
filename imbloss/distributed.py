"""What several processes compute together: LADE's statistics and the divisors of means. Collectives move O(C) numbers,
in the forward alone."""

from typing import Any

import torch
from torch import Tensor

from imbloss import _ops, reference
from imbloss.priors import check_labels, check_vector, describe


def positive_count(targets: Tensor, group: Any = None) -> Tensor:
    """The number of elements > 0, as a ``normalizer``: positives of 0/1 or soft targets, foreground of class indices
    whose background is 0.

    Args:
        targets: any shape, integer, bool or floating.
        group: a process group: the number of all processes together, divided by the number of processes. A loss
            divided by it has, averaged as DistributedDataParallel does, the gradient of one process with all batches.

    Returns:
        A 0-dim float64 tensor on the targets' device, which nobody waited for.

    >>> targets = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    >>> positive_count(targets)
    tensor(3., dtype=torch.float64)
    """
    if not isinstance(targets, Tensor) or targets.is_complex():
        raise TypeError(f"expected targets to be a tensor of a real dtype, but got {describe(targets)}")
    return _per_process((targets > 0).sum(), group)


def valid_count(target: Tensor, ignore_index: int = -100, weight: Tensor | None = None, group: Any = None) -> Tensor:
    """The number of rows that count, as a ``normalizer``: what "mean" divides by, over all processes.

    Args:
        target: class indices, any integer dtype and shape.
        ignore_index: target value of rows that do not count.
        weight: factor per class, shape (C,): the sum of ``weight[target]`` instead.
        group: see :func:`positive_count`.

    Returns:
        A 0-dim float64 tensor on the target's device, which nobody waited for.

    >>> valid_count(torch.tensor([0, 2, -100, 1]))
    tensor(3., dtype=torch.float64)
    """
    check_labels(target)
    counts = target != ignore_index
    if weight is None:
        return _per_process(counts.sum(), group)
    check_vector(weight, None, "weight")
    weights = weight.detach().to(_wide(target))[torch.where(counts, target, 0).long()]
    return _per_process(torch.where(counts, weights, 0).sum(), group)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _per_process(count: Tensor, group: Any) -> Tensor:
    count = count.to(_wide(count))
    if group is None:
        return count
    torch.distributed.all_reduce(count, group=group)
    return count / torch.distributed.get_world_size(group)


# ---- LADE --------------------------------------------------------------------------------------------------------
def class_columns(logits: Tensor, target: Tensor, operands: tuple, options: tuple, group: Any) -> Tensor:
    """``_ops.class_columns`` of all processes' rows."""
    for name, operand in zip(("prior", "sample_weight", "normalizer"), operands, strict=True):
        if operand is not None and operand.requires_grad:
            raise ValueError(f"expected no gradient of {name} beside group: processes share sums, not their graphs")
    return ClassColumns.apply(logits, target, operands, options, group)


class ClassColumns(torch.autograd.Function):
    """The loss of the whole batch on every process, with the gradient of its own rows times the number of processes."""

    @staticmethod
    def forward(ctx, logits, target, operands, options, group):
        numbers, ignore_index, reduction, estimator = options
        kernels = _ops.has_kernels(logits)
        statistics = torch.ops.imbloss.class_columns_statistics if kernels else reference.class_columns_statistics
        rows, columns, totals = statistics(logits, target, operands, numbers, ignore_index, estimator)
        all_reduce_columns(columns, totals, group)
        loss, factors = reference.finish_columns(columns, totals, operands, numbers, reduction, estimator)
        kept = torch.cat([rows.flatten(), factors.to(rows.dtype)])
        ctx.save_for_backward(logits, target, kept, *operands)
        ctx.options = numbers, ignore_index, estimator
        ctx.kernels, ctx.processes = kernels, torch.distributed.get_world_size(group)
        return loss.to(rows.dtype)

    @staticmethod
    def backward(ctx, grad_output):  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError("expected no gradient of a gradient beside group: it would need collectives in backward")
        logits, target, kept, *operands = ctx.saved_tensors
        backward = torch.ops.imbloss.class_columns_backward if ctx.kernels else reference.class_columns_backward
        grad = backward(grad_output * ctx.processes, logits, target, kept, operands, *ctx.options)
        return grad, None, None, None, None


def all_reduce_columns(columns: Tensor, totals: Tensor, group: Any) -> None:
    """Merges the processes' statistics in place: a maximum, then one sum of everything else, in float64."""
    top, total, own, count = columns
    largest = top.clone()
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
    # a class that is -inf in every row here, or everywhere, has no sum to rescale
    total.mul_(torch.where(top == -torch.inf, 1, (top - largest).exp()))
    top.copy_(largest)
    sums = torch.cat([total, own, count, totals])
    torch.distributed.all_reduce(sums, group=group)
    classes = len(top)
    columns[1:] = sums[: 3 * classes].view(3, classes)
    totals.copy_(sums[3 * classes :])
