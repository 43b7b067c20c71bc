"""The losses as functions: arguments checked, scale, bias, margin, weight and gamma filled in, one traversal called."""

import math

import torch
from torch import Tensor

from imbloss import _ops
from imbloss.priors import check_positive, check_prior, check_vector, describe

_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})
_LOGITS = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    prior: Tensor | None = None,
    tau: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Softmax cross entropy, fused forward and backward.

    .. math:: \ell_i = -w_{y_i} \log p_{y_i}, \qquad p = \operatorname{softmax}(z_i + \tau \log \pi)

    Equals :func:`torch.nn.functional.cross_entropy` on class indices, and takes a training prior beside it.

    Args:
        logits: scores z of shape (N, C) or (C,); float32, float64, bfloat16 or float16, accumulated in float32
            (float64 for float64).
        target: class indices of shape (N,) or (), each in [0, C) or ``ignore_index``; any integer dtype.
        weight: factor per class, shape (C,).
        prior: class probabilities of the training data, shape (C,), > 0, sum 1; None adds nothing to the logits.
        tau: factor of the log prior.
        ignore_index: target value of rows that do not count.
        reduction: "none" (the target's shape), "mean" (divided by the sum of ``weight[target] * sample_weight``
            over the rows that count) or "sum".
        sample_weight: factor per row, of the target's shape.
        normalizer: replaces the divisor of "mean", used as given: a number or a tensor of one element.

    Returns:
        The loss in the logits' dtype (float32 under autocast).

    Raises:
        IndexError: a target outside [0, C) that is not ``ignore_index`` (on CPU; elsewhere its row gives NaN).
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    No rows, or only ignored ones: "mean" is NaN, "sum" 0, and the gradient 0.

    >>> cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tensor(0.1269)
    """
    bias = None if prior is None else _log_prior(logits, prior, tau)
    return softmax_rows(
        logits, target, weight=weight, bias=bias,
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float | Tensor = 2.0,
    weight: Tensor | None = None,
    prior: Tensor | None = None,
    tau: float = 1.0,
    detach_factor: bool = False,
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Softmax focal loss, fused forward and backward.

    .. math:: \ell_i = -w_{y_i} (1 - p_{y_i})^\gamma \log p_{y_i}, \quad p = \operatorname{softmax}(z_i + \tau \log \pi)

    Args:
        logits: scores z of shape (N, C) or (C,); float32, float64, bfloat16 or float16, accumulated in float32
            (float64 for float64).
        target: class indices of shape (N,) or (), each in [0, C) or ``ignore_index``; any integer dtype.
        gamma: focusing exponent >= 0, or one per class, shape (C,); 0 gives cross entropy.
        weight: factor per class, shape (C,); the paper's alpha.
        prior: class probabilities of the training data, shape (C,), > 0, sum 1; None adds nothing to the logits.
        tau: factor of the log prior.
        detach_factor: treat ``(1 - p)^gamma`` as a constant in the gradient, as a number of popular
            implementations do; not the paper's gradient.
        ignore_index: target value of rows that do not count.
        reduction: "none" (the target's shape), "mean" (divided by the sum of ``weight[target] * sample_weight``
            over the rows that count, as :func:`torch.nn.functional.cross_entropy` does) or "sum".
        sample_weight: factor per row, of the target's shape.
        normalizer: replaces the divisor of "mean", used as given: a number or a tensor of one element.

    Returns:
        The loss in the logits' dtype (float32 under autocast).

    Raises:
        IndexError: a target outside [0, C) that is not ``ignore_index`` (on CPU; elsewhere its row gives NaN).
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    float16 logits need a GradScaler, as with every loss: small gradients underflow in float16.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, eq. 5.

    >>> focal_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tensor(0.0018)
    >>> focal_loss(torch.zeros(1, 4), torch.tensor([0]), gamma=0.0)
    tensor(1.3863)
    """
    bias = None if prior is None else _log_prior(logits, prior, tau)
    if isinstance(gamma, Tensor) and _checks_values(gamma):
        check_positive(gamma, "gamma", zero=True)
    return softmax_rows(
        logits, target, gamma=gamma, weight=weight, bias=bias, params=FOCAL_PARAMS[bool(detach_factor)],
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def balanced_softmax_loss(
    logits: Tensor,
    target: Tensor,
    *,
    counts: Tensor,
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Balanced softmax: cross entropy that accounts for the training counts.

    .. math:: \ell_i = -\log \frac{n_{y_i} e^{z_{y_i}}}{\sum_c n_c e^{z_c}}

    The logits learn scores for balanced classes: predict with ``argmax z``, without correction.

    Args:
        counts: training samples per class, shape (C,), all > 0; integer or floating.
        logits, target, ignore_index, reduction, sample_weight, normalizer: see :func:`cross_entropy`.

    Raises:
        IndexError: a target outside [0, C) that is not ``ignore_index`` (on CPU).
        ValueError: counts not > 0 (on CPU), or of the wrong shape.

    Source: Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition, NeurIPS 2020, eq. 3.

    >>> balanced_softmax_loss(torch.zeros(1, 2), torch.tensor([1]), counts=torch.tensor([99, 1]))
    tensor(4.6052)
    """
    check_vector(counts, _num_classes(logits), "counts", floating=False)
    if _checks_values(counts):
        check_positive(counts, "counts")
    return softmax_rows(
        logits, target, bias=log_shares(counts),
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def logit_adjusted_loss(
    logits: Tensor,
    target: Tensor,
    *,
    prior: Tensor,
    tau: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Logit-adjusted cross entropy.

    .. math:: \ell_i = -\log \frac{e^{z_{y_i} + \tau \log \pi_{y_i}}}{\sum_c e^{z_c + \tau \log \pi_c}}

    The logits learn scores for balanced classes: predict with ``argmax z``, without correction.

    Args:
        prior: class probabilities of the training data, shape (C,), > 0, sum 1.
        tau: strength; 1 is consistent for the balanced error, and equals :func:`balanced_softmax_loss`.
        logits, target, ignore_index, reduction, sample_weight, normalizer: see :func:`cross_entropy`.

    Raises:
        IndexError: a target outside [0, C) that is not ``ignore_index`` (on CPU).
        ValueError: a prior that is not > 0 or does not sum to 1 (on CPU), or of the wrong shape.

    Source: Menon et al., Long-tail learning via logit adjustment, ICLR 2021, eq. 10.

    >>> logit_adjusted_loss(torch.zeros(1, 2), torch.tensor([1]), prior=torch.tensor([0.99, 0.01]))
    tensor(4.6052)
    """
    if prior is None:
        raise TypeError("expected prior to be a tensor of shape (C,), but got None")
    return cross_entropy(
        logits, target, prior=prior, tau=tau, ignore_index=ignore_index, reduction=reduction,
        sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


# ---- arguments ---------------------------------------------------------------------------------------------------
def _num_classes(logits: Tensor) -> int:
    if not isinstance(logits, Tensor):
        raise TypeError(f"expected logits to be a tensor, but got {describe(logits)}")
    if logits.dim() == 0:
        raise ValueError("expected logits of shape (N, C) or (C,), but got ()")
    classes = logits.shape[0 if logits.dim() == 1 else 1]
    if classes == 0:
        raise ValueError(f"expected logits of at least one class, but got shape {tuple(logits.shape)}")
    return classes


def _checks_values(tensor: Tensor) -> bool:
    """Whether a look at a tensor's values is free of a device's wait and of a graph break."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _log_prior(logits: Tensor, prior: Tensor, tau: float) -> Tensor:
    classes = _num_classes(logits)
    if not _checks_values(prior):
        check_vector(prior, classes, "prior")
    else:
        check_prior(prior, classes)
    if not math.isfinite(tau):
        raise ValueError(f"expected tau to be finite, but got {tau}")
    return tau * prior.double().log()


def log_shares(counts: Tensor) -> Tensor:
    """log(n_c / n)."""
    counts = counts.double()
    return (counts / counts.sum()).log()


# ---- the traversal -----------------------------------------------------------------------------------------------
FOCAL_PARAMS = [0.0], [1.0]  # of policy "focal": whether the factor is detached


def softmax_rows(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float | Tensor = 0.0,
    weight: Tensor | None = None,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    margin: Tensor | None = None,
    policy: str = "focal",
    params: list[float] = FOCAL_PARAMS[0],
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Checks the arguments that all softmax losses share and calls the traversal."""
    classes = _num_classes(logits)
    dtype = logits.dtype
    if dtype not in _LOGITS:
        raise TypeError(f"expected logits of dtype float32, float64, bfloat16 or float16, but got {dtype}")
    if not isinstance(target, Tensor) or target.dtype not in _INTEGERS:
        raise TypeError(f"expected target to be a tensor of an integer dtype, but got {describe(target)}")
    shape = logits.shape
    rows = shape[:1] if len(shape) == 2 else shape[:1] + shape[2:] if len(shape) > 2 else shape[:0]
    if target.shape != rows:
        raise ValueError(
            f"expected target of shape {tuple(rows)} for logits of shape {tuple(shape)}, but got {tuple(target.shape)}"
        )
    device = logits.device
    if target.device != device:
        raise ValueError(f"expected target on {device}, where the logits are, but got {target.device}")
    reduced = _ops.REDUCTIONS.get(reduction)
    if reduced is None:
        raise ValueError(f'expected reduction to be "none", "mean" or "sum", but got {reduction!r}')
    if target.dtype is not torch.int64:
        target = target.long()

    wide = torch.float64 if dtype is torch.float64 else torch.float32
    gammas = None
    if isinstance(gamma, Tensor):
        gammas = _operand(gamma, "gamma", (classes,), device, torch.promote_types(gamma.dtype, torch.float32))
        gamma = 0.0
    elif not 0 <= gamma < math.inf:
        raise ValueError(f"expected gamma >= 0 and finite, but got {gamma}")
    if normalizer is not None:
        if reduction != "mean":
            raise ValueError(f'expected normalizer only with reduction="mean", but got reduction={reduction!r}')
        normalizer = _normalizer(normalizer, device)
    if weight is not None:
        weight = _operand(weight, "weight", (classes,), device, wide)
    if sample_weight is not None:
        sample_weight = _operand(sample_weight, "sample_weight", rows, device, wide)
    if scale is not None:
        scale = _operand(scale, "scale", (classes,), device, wide)
    if bias is not None:
        bias = _operand(bias, "bias", (classes,), device, wide)
    if margin is not None:
        margin = _operand(margin, "margin", (classes,), device, wide)
    operands = weight, sample_weight, scale, bias, margin, gammas, normalizer
    if operands.count(None) == len(operands):
        operands = ()
    loss = _ops.softmax_rows(logits, target, operands, [gamma, *params], ignore_index, reduced, policy)
    return loss if dtype is wide or torch.is_autocast_enabled(device.type) else loss.to(dtype)


def _normalizer(normalizer: float | Tensor, device: torch.device) -> Tensor:
    if not isinstance(normalizer, Tensor):
        wide = torch.float64 if device.type == "cpu" else torch.float32
        return torch.full((), normalizer, dtype=wide, device=device)
    if normalizer.numel() != 1 or normalizer.device != device:
        raise ValueError(
            f"expected normalizer to be a number or a tensor of one element on {device}, "
            f"but got {describe(normalizer)} on {normalizer.device}"
        )
    normalizer = normalizer.reshape(())
    return normalizer if normalizer.dtype in (torch.float64, torch.float32, torch.int64) else normalizer.double()


def _operand(values: Tensor, name: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A factor as the traversals want it: of this dtype and shape, contiguous, where the logits are."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise TypeError(f"expected {name} to be a tensor of a floating dtype, but got {describe(values)}")
    if values.shape != shape:
        raise ValueError(f"expected {name} of shape {tuple(shape)}, but got {tuple(values.shape)}")
    if values.device != device:
        raise ValueError(f"expected {name} on {device}, where the logits are, but got {values.device}")
    if values.dtype != dtype:
        values = values.to(dtype)
    return values if values.is_contiguous() else values.contiguous()
