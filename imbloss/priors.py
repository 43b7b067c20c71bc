"""Class counts, priors and the weights and corrections made of them."""

import math
import os
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeAlias, Union

import torch
from torch import Tensor, nn

Prior: TypeAlias = Union[Tensor, "PriorTracker"]


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
    check_labels(labels)
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


class PriorTracker(nn.Module):
    """Learns the class prior from the labels that training sees, for when nobody counted them.

    Call it with each batch's labels; pass it as ``prior`` to any loss, function or module, which reads what it then is.

    Args:
        num_classes: number of classes C, at least 1.
        momentum: None counts every label ever seen. A number in [0, 1) forgets: each batch with labels multiplies
            the counts before it by this.
        smoothing: added to each class's count, > 0, so that the prior of a class not yet seen is not 0.
        ignore_index: label that does not count.
        group: a process group whose labels count as one stream; every process must call, be its batch empty.

    Its state, ``counts``, is saved with the module. Call it in training only.

    >>> tracker = PriorTracker(3)
    >>> tracker(torch.tensor([0, 0, 0, 1, 1, 0]))
    tensor([0.5556, 0.3333, 0.1111], dtype=torch.float64)
    >>> logit_adjusted_loss(torch.zeros(1, 3), torch.tensor([2]), prior=tracker)
    tensor(2.1972)
    """

    counts: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        momentum: float | None = None,
        smoothing: float = 1.0,
        ignore_index: int = -100,
        group: Any = None,
    ) -> None:
        super().__init__()
        check_number(num_classes, "num_classes", least=1, whole=True)
        check_number(smoothing, "smoothing", above=0)
        check_number(ignore_index, "ignore_index", whole=True)
        if momentum is not None:
            check_number(momentum, "momentum", finite=False)
            if not 0 <= momentum < 1:
                raise ValueError(f"expected momentum in [0, 1), but got {momentum}")
        self.momentum = momentum
        self.smoothing = smoothing
        self.ignore_index = ignore_index
        self.group = group
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))

    @property
    def prior(self) -> Tensor:
        """The class probabilities learnt so far, shape (C,); uniform before any label."""
        counts = self.counts + self.smoothing
        return counts / counts.sum()

    @torch.no_grad()
    def forward(self, labels: Tensor) -> Tensor:
        """Takes in class indices of any integer dtype and shape; returns the prior.

        Raises:
            IndexError: a label outside [0, C) that is not ``ignore_index`` (on CPU; elsewhere it does not count).
        """
        classes = len(self.counts)
        check_labels(labels)
        labels = labels.reshape(-1).long()
        counted = labels != self.ignore_index
        valid = counted & (labels >= 0) & (labels < classes)
        if can_look(labels) and not torch.equal(valid, counted):
            bad = int((counted & ~valid).nonzero()[0])
            raise IndexError(
                f"expected labels in [0, {classes}) or ignore_index={self.ignore_index}, "
                f"but got {int(labels[bad])} at index {bad}"
            )
        seen = torch.zeros(classes, dtype=torch.int64, device=labels.device)
        seen.scatter_add_(0, torch.where(valid, labels, 0), valid.long())
        if self.group is not None:
            torch.distributed.all_reduce(seen, group=self.group)
        kept = 1.0 if self.momentum is None else torch.where(seen.sum() > 0, self.momentum, 1.0)
        self.counts.mul_(kept).add_(seen)
        return self.prior

    def _apply(self, fn, recurse=True):
        """Counts follow the module to a device, but keep their dtype: they do not fit into float16."""
        before = self.counts
        super()._apply(fn, recurse)
        if self.counts.dtype != before.dtype:
            self.counts = before.to(self.counts.device)
        return self

    def extra_repr(self) -> str:
        return f"num_classes={len(self.counts)}, momentum={self.momentum}, smoothing={self.smoothing}"


class PriorEstimate(NamedTuple):
    """What :func:`estimate_prior` found, and how the search ended."""

    prior: Tensor  # (C,), float64
    converged: bool
    iterations: int
    change: float  # of the prior in the last iteration, sum of absolute differences


@torch.no_grad()
def estimate_prior(
    logits: Tensor, train_prior: Prior, *, tolerance: float = 1e-8, max_iterations: int = 10000
) -> PriorEstimate:
    r"""The class prior of unlabelled data, by expectation maximisation on a trained model's posteriors.

    .. math:: \rho_c \leftarrow \frac1N \sum_i \frac{p_{ic} \, \rho_c / \pi_c}{\sum_k p_{ik} \, \rho_k / \pi_k},
        \qquad p_i = \operatorname{softmax}(z_i)

    The maximum of the likelihood where only the prior has changed since training, and as good as the model is
    calibrated. Logits of a model trained with :func:`balanced_softmax_loss`, :func:`logit_adjusted_loss` or
    :func:`lade_loss` are those of a uniform training prior: pass that.

    Args:
        logits: of shape (N, C) or (N, C, d1, ...), from a model that learnt posteriors under ``train_prior``.
        train_prior: class probabilities of its training data, shape (C,), > 0, sum 1.
        tolerance: the search has converged when an iteration moves the prior by less, in sum of absolute differences.
        max_iterations: where the search ends in any case.

    Returns:
        :class:`PriorEstimate`: (prior, converged, iterations, change). Pass ``prior`` to :func:`adjust_logits`.

    Raises:
        ValueError: no rows, a logit that is not finite, or a prior that is none.

    Source: Saerens et al., Adjusting the Outputs of a Classifier to New a Priori Probabilities: A Simple Procedure,
    Neural Computation 14 (2002).

    >>> logits = torch.tensor([[2.0, -2.0]] * 30 + [[-2.0, 2.0]] * 70)
    >>> estimate = estimate_prior(logits, torch.tensor([0.5, 0.5]))
    >>> estimate.prior, estimate.converged
    (tensor([0.2925, 0.7075], dtype=torch.float64), True)
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"expected logits to be a tensor of a floating dtype, but got {describe(logits)}")
    if logits.dim() < 2 or logits.numel() == 0:
        raise ValueError(f"expected logits of shape (N, C) or (N, C, d1, ...), N > 0, but got {tuple(logits.shape)}")
    check_number(tolerance, "tolerance", above=0)
    check_number(max_iterations, "max_iterations", least=1, whole=True)
    train_prior = as_prior(train_prior)
    check_prior(train_prior, logits.shape[1], "train_prior")
    log_train = precise(train_prior).log()
    z = precise(logits).movedim(1, -1).reshape(-1, logits.shape[1])
    if not z.isfinite().all():
        raise ValueError("expected logits to be finite")
    log_likelihood = z.log_softmax(1) - log_train
    prior, change, iterations = log_train.exp(), math.inf, 0
    while change >= tolerance and iterations < max_iterations:
        new = (log_likelihood + prior.log()).softmax(1).mean(0)
        change = float((new - prior).abs().sum())
        prior, iterations = new, iterations + 1
    return PriorEstimate(prior, change < tolerance, iterations, change)


def adjust_logits(logits: Tensor, train_prior: Prior, test_prior: Prior | None = None) -> Tensor:
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
    train_prior = as_prior(train_prior)
    check_prior(train_prior, classes, "train_prior")
    shift = -precise(train_prior).log()
    if test_prior is not None:
        test_prior = as_prior(test_prior)
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


_debug = os.environ.get("IMBLOSS_DEBUG", "0") not in ("", "0")


def set_debug(enabled: bool) -> None:
    """Check the values of tensors on every device, not on the CPU alone.

    A GPU's kernels stay in bounds and give NaN where a target is out of range, and nobody looks at the values of
    priors, counts and gammas there, since that waits for the device. With debug on, each call looks, and raises what
    it raises on the CPU. Compiled code is checked for targets only; a CUDA graph cannot be captured.

    Args:
        enabled: whether to check from now on. IMBLOSS_DEBUG=1 in the environment does so from the start.

    >>> set_debug(True)
    >>> imbloss.focal_loss(torch.zeros(1, 4), torch.tensor([4]))
    Traceback (most recent call last):
    IndexError: expected target in [0, 4) or ignore_index=-100, but got 4 at index 0
    >>> set_debug(False)
    """
    global _debug
    if not isinstance(enabled, bool):
        raise TypeError(f"expected enabled to be a bool, but got {describe(enabled)}")
    _debug = enabled


def is_debug() -> bool:
    return _debug


def can_look(tensor: Tensor) -> bool:
    """Whether a look at a tensor's values is free: no wait for a device, no graph break, no value that is not there.

    With :func:`set_debug` it may wait for a device.
    """
    return (
        (tensor.device.type == "cpu" or (_debug and tensor.device.type != "meta"))
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


def as_prior(prior: Prior) -> Tensor:
    """The probabilities themselves."""
    return prior.prior if isinstance(prior, PriorTracker) else prior


def smoothed_prior(counts: Tensor, smoothing: float, classes: int | None = None) -> Tensor:
    """(n_c + smoothing) / sum of the same, checked."""
    check_number(smoothing, "smoothing", least=0)
    check_vector(counts, classes, "counts", floating=False)
    check_positive(counts, "counts", zero=smoothing > 0)
    smoothed = precise(counts) + smoothing
    return smoothed / smoothed.sum()


def check_labels(labels: Tensor) -> None:
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        raise TypeError(f"expected labels to be a tensor of an integer dtype, but got {describe(labels)}")


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


def check_target(target: Tensor, classes: int, ignore_index: int) -> None:
    """Class indices in range: the compiled core's error."""
    if not can_look(target):
        return
    bad = (target != ignore_index) & ((target < 0) | (target >= classes))
    if bad.any():
        index = int(bad.flatten().nonzero()[0])
        raise IndexError(
            f"expected target in [0, {classes}) or ignore_index={ignore_index}, "
            f"but got {int(target.flatten()[index])} at index {index}"
        )
