"""Class counts, priors and the weights and corrections made of them."""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Number of samples of each class.

    Args:
        labels: class indices in [0, num_classes), any integer dtype and shape.
        num_classes: number of classes C, at least 1.

    Returns:
        int64 tensor of shape (C,), on the labels' device.

    Raises:
        TypeError: labels are not of an integer dtype.
        ValueError: a label is outside [0, num_classes).

    >>> class_counts(torch.tensor([0, 2, 2, 1, 2]), num_classes=4)
    tensor([1, 1, 3, 0])
    """
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        raise TypeError(f"expected labels to be a tensor of an integer dtype, but got {describe(labels)}")
    check_number(num_classes, "num_classes", least=1, whole=True)
    flat = labels.reshape(-1).long()
    if flat.numel() and not (int(flat.min()) >= 0 and int(flat.max()) < num_classes):
        bad = int(flat.min()) if flat.min() < 0 else int(flat.max())
        raise ValueError(f"expected labels in [0, {num_classes}), but got {bad}")
    return torch.bincount(flat, minlength=num_classes)


def class_balanced_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    r"""Class weights by the effective number of samples.

    .. math:: w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}, \qquad \tfrac1C \sum_c w_c = 1

    Pass them as ``weight`` to any loss.

    Args:
        counts: training samples per class, shape (C,), all > 0; integer or floating.
        beta: in [0, 1); 0 weighs all classes alike, towards 1 the weights become 1 / n_c.

    Returns:
        float32 tensor of shape (C,) with mean 1 (float64 for float64 counts).

    Raises:
        ValueError: a count is not > 0, or beta is outside [0, 1).

    Source: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019, eq. 10.

    >>> class_balanced_weights(torch.tensor([1000, 100, 10]), beta=0.999)
    tensor([0.0422, 0.2800, 2.6778])
    """
    check_counts(counts)
    check_number(beta, "beta", finite=False)
    if not 0 <= beta < 1:
        raise ValueError(f"expected beta in [0, 1), but got {beta}")
    # 1 - beta^n without cancellation: n log beta is tiny for the rare classes, which matter most
    wide = precise(counts)
    effective = -torch.expm1(wide * math.log(beta)) if beta > 0 else torch.ones_like(wide)
    weights = 1 / effective
    weights = weights / weights.mean()
    return weights.to(counts.dtype if counts.dtype == torch.float64 else torch.float32)


def drw_weights(counts: Tensor, epoch: int, start: int, beta: float = 0.9999) -> Tensor:
    """Deferred re-weighting: no weights until epoch `start`, class-balanced ones from then on.

    Made for LDAM: learn features from all data first, then move the boundaries. Set ``loss.weight`` at each epoch.

    Args:
        counts: training samples per class, shape (C,), all > 0; integer or floating.
        epoch: the current one, counted as `start` is.
        start: first epoch with weights; the paper's is 160 of 200, as the learning rate falls.
        beta: see :func:`class_balanced_weights`.

    Returns:
        float32 tensor of shape (C,) with mean 1 (float64 for float64 counts).

    Raises:
        ValueError: a count is not > 0, or beta is outside [0, 1).

    Source: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019, sec. 3.3.

    >>> drw_weights(torch.tensor([1000, 10]), epoch=0, start=160), drw_weights(torch.tensor([1000, 10]), 160, 160)
    (tensor([1., 1.]), tensor([0.0208, 1.9792]))
    """
    weights = class_balanced_weights(counts, beta)
    return weights if epoch >= start else torch.ones_like(weights)


def adjust_logits(logits: Tensor, train_prior: Tensor, test_prior: Tensor | None = None) -> Tensor:
    r"""Logits of a model trained under one class prior, for prediction under another.

    .. math:: z_c = x_c - \log \pi^{train}_c + \log \pi^{test}_c

    For models trained with plain cross entropy, without weights. A model trained with :func:`balanced_softmax_loss` or
    :func:`logit_adjusted_loss` has the training prior out of its logits already.

    Args:
        logits: shape (N, C), (N, C, d1, ...) or (C,).
        train_prior: class probabilities of the training data, shape (C,), > 0, sum 1.
        test_prior: those expected in use, likewise; None is the uniform one.

    Returns:
        Adjusted logits, shape and dtype of ``logits``.

    Raises:
        ValueError: a prior of the wrong shape or, on CPU, not > 0 or not summing to 1.

    Source: Menon et al., Long-tail learning via logit adjustment, ICLR 2021, section 4 (post-hoc adjustment).

    >>> adjust_logits(torch.zeros(1, 2), torch.tensor([0.9, 0.1])).softmax(1)
    tensor([[0.1000, 0.9000]])
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"expected logits to be a tensor of a floating dtype, but got {describe(logits)}")
    if logits.dim() == 0:
        raise ValueError("expected logits of shape (N, C), (N, C, d1, ...) or (C,), but got ()")
    classes = logits.shape[0 if logits.dim() == 1 else 1]
    check_prior(train_prior, classes, "train_prior")
    shift = -precise(train_prior).log()
    if test_prior is not None:
        check_prior(test_prior, classes, "test_prior")
        shift = shift + precise(test_prior).log()
    else:
        shift = shift - math.log(classes)
    shape = (-1,) if logits.dim() == 1 else (-1, *[1] * (logits.dim() - 2))
    wide = torch.promote_types(logits.dtype, torch.float32)
    return (logits.to(wide) + shift.to(wide).view(shape)).to(logits.dtype)


# ---- checks, shared with the losses ------------------------------------------------------------------------------
def describe(value: object) -> str:
    """A value in an error message."""
    if isinstance(value, Tensor):
        return f"a tensor of dtype {value.dtype} and shape {tuple(value.shape)}"
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {tuple(shape)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def can_look(tensor: Tensor) -> bool:
    """Whether a look at a tensor's values is free: no wait for a device, no graph break, no value that is not there."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def precise(values: Tensor) -> Tensor:
    """In float64 where the device has it."""
    return values.float() if values.device.type == "mps" else values.double()


def check_number(
    value: Any,
    name: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    whole: bool = False,
    finite: bool = True,
) -> None:
    """A number in [least, most] or (above, ...)."""
    types: tuple[type, ...] = (Integral, torch.SymInt) if whole else (Real, torch.SymInt, torch.SymFloat)
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError(f"expected {name} to be {'an integer' if whole else 'a number'}, but got {describe(value)}")
    number: Any = value
    if not (
        (not finite or -math.inf < number < math.inf)
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
    ):
        if most is not None:
            want = f"in [{least:g}, {most:g}]" if least is not None else f"<= {most:g} and finite"
        elif least is not None:
            want = f">= {least:g} and finite"
        else:
            want = "to be finite" if above is None else f"> {above:g} and finite"
        raise ValueError(f"expected {name} {want}, but got {value}")


def check_vector(values: Tensor, classes: int | None, name: str, *, floating: bool = True) -> None:
    kind = "a floating" if floating else "an integer or floating"
    if (
        not isinstance(values, Tensor)
        or values.dtype == torch.bool
        or values.is_complex()
        or (floating and not values.is_floating_point())
    ):
        raise TypeError(f"expected {name} to be a tensor of {kind} dtype, but got {describe(values)}")
    if values.dim() != 1 or (classes is not None and values.shape[0] != classes):
        want = "(C,)" if classes is None else f"({classes},)"
        raise ValueError(f"expected {name} of shape {want}, but got {tuple(values.shape)}")


def check_positive(values: Tensor, name: str, *, zero: bool = False) -> None:
    if not can_look(values):
        return
    bad = ~((values >= 0) if zero else (values > 0)) | values.isinf()
    if bad.any():
        index = int(bad.nonzero()[0])
        bound = ">= 0" if zero else "> 0"
        raise ValueError(f"expected {name} {bound} and finite, but got {values[index].item()} at index {index}")


def check_shares(values: Tensor, name: str) -> None:
    if not can_look(values):
        return
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        index = int(bad.nonzero()[0])
        raise ValueError(f"expected {name} in [0, 1], but got {values[index].item()} at index {index}")


def check_counts(counts: Tensor, classes: int | None = None, name: str = "counts") -> None:
    check_vector(counts, classes, name, floating=False)
    check_positive(counts, name)


def check_prior(prior: Tensor, classes: int | None, name: str = "prior") -> None:
    check_vector(prior, classes, name)
    check_positive(prior, name)
    if can_look(prior):
        total = prior.double().sum().item()
        if abs(total - 1) > 1e-4:
            raise ValueError(f"expected {name} to sum to 1 within 1e-4, but got a sum of {total:.6g}")
