"""The losses as functions: arguments checked, scale, bias, margin, weight and gamma filled in, one traversal called."""

import math
from typing import Any

import torch
from torch import Tensor

from imbloss import _ops, distributed, reference
from imbloss.priors import (
    Prior,
    as_prior,
    check_counts,
    check_number,
    check_positive,
    check_prior,
    check_shares,
    check_vector,
    describe,
    precise,
    smoothed_prior,
)

_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})
MOST_GAMMA = 1e6  # far beyond use; q^gamma is 0 or 1
_LOGITS = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
_WIDE = frozenset({torch.float32, torch.float64})


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    prior: Prior | None = None,
    tau: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Softmax cross entropy, fused forward and backward.

    .. math:: \ell_i = -w_{y_i} \log p_{y_i}, \qquad p = \operatorname{softmax}(z_i + \tau \log \pi)

    Equals :func:`torch.nn.functional.cross_entropy`, and takes a training prior beside it. With soft targets t
    (probabilities, or class indices with label smoothing) :math:`\ell_i = -\sum_c w_c t_{ic} \log p_{ic}`.

    Args:
        logits: scores z of shape (N, C), (N, C, d1, ...) or (C,); float32, float64, bfloat16 or float16,
            accumulated in float32 (float64 for float64).
        target: class indices of shape (N, d1, ...) or (), each in [0, C) or ``ignore_index``, of any integer dtype;
            or probabilities of the logits' shape, of any floating dtype.
        weight: factor per class, shape (C,).
        prior: class probabilities of the training data, shape (C,), > 0, sum 1; None adds nothing to the logits.
        tau: factor of the log prior.
        label_smoothing: share of the target's probability, in [0, 1], that is spread evenly over all classes.
        ignore_index: target value of rows that do not count.
        reduction: "none" (shape (N, d1, ...)), "mean" (divided by the sum of ``weight[target] * sample_weight``
            over the rows that count; for target probabilities by the sum of ``sample_weight``) or "sum".
        sample_weight: factor per row, of shape (N, d1, ...).
        normalizer: replaces the divisor of "mean", used as given: a number or a tensor of one element.

    Returns:
        The loss in the logits' dtype (float32 for half-precision logits under autocast).

    Raises:
        IndexError: a target outside [0, C) that is not ``ignore_index`` (on CPU; elsewhere its row gives NaN).
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    No rows, or only ignored ones: "mean" is NaN, "sum" 0, and the gradient 0.

    >>> cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tensor(0.1269)
    """
    bias = None if prior is None else _log_prior(logits, prior, tau)
    return softmax_rows(
        logits, target, weight=weight, bias=bias, label_smoothing=label_smoothing,
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float | Tensor = 2.0,
    weight: Tensor | None = None,
    prior: Prior | None = None,
    tau: float = 1.0,
    label_smoothing: float = 0.0,
    detach_factor: bool = False,
    inplace: bool = False,
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Softmax focal loss, fused forward and backward.

    .. math:: \ell_i = -w_{y_i} (1 - p_{y_i})^\gamma \log p_{y_i}, \quad p = \operatorname{softmax}(z_i + \tau \log \pi)

    With soft targets t (probabilities, or class indices with label smoothing)
    :math:`\ell_i = -\sum_c w_c t_{ic} (1 - p_{ic})^{\gamma_c} \log p_{ic}`.

    Args:
        logits: scores z of shape (N, C), (N, C, d1, ...) or (C,); float32, float64, bfloat16 or float16,
            accumulated in float32 (float64 for float64).
        target: class indices of shape (N, d1, ...) or (), each in [0, C) or ``ignore_index``, of any integer dtype;
            or probabilities of the logits' shape, of any floating dtype.
        gamma: focusing exponent >= 0, or one per class, shape (C,); 0 gives cross entropy.
        weight: factor per class, shape (C,); the paper's alpha.
        prior: class probabilities of the training data, shape (C,), > 0, sum 1; None adds nothing to the logits.
        tau: factor of the log prior.
        label_smoothing: share of the target's probability, in [0, 1], that is spread evenly over all classes.
        detach_factor: treat ``(1 - p)^gamma`` as a constant in the gradient, as a number of popular
            implementations do; not the paper's gradient.
        inplace: write the gradient over the logits instead of into new memory: for logits that fill the memory and
            that nobody needs any more. In half precision an upstream gradient other than 1 then rounds once more.
        ignore_index: target value of rows that do not count.
        reduction: "none" (shape (N, d1, ...)), "mean" (divided by the sum of ``weight[target] * sample_weight``
            over the rows that count; for target probabilities by the sum of ``sample_weight``; as
            :func:`torch.nn.functional.cross_entropy` does) or "sum".
        sample_weight: factor per row, of shape (N, d1, ...).
        normalizer: replaces the divisor of "mean", used as given: a number or a tensor of one element.

    Returns:
        The loss in the logits' dtype (float32 for half-precision logits under autocast).

    Raises:
        IndexError: a target outside [0, C) that is not ``ignore_index`` (on CPU; elsewhere its row gives NaN).
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.
        RuntimeError: ``inplace=True`` where the logits are a leaf that requires grad or overlap themselves, under
            torch.compile, torch.func or forward mode, or where another tensor requires grad; and in the backward, a
            second one, one of a gradient, or one through whatever else needed the logits.

    float16 logits need a GradScaler, as with every loss: small gradients underflow in float16.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, eq. 5.

    >>> focal_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tensor(0.0018)
    >>> focal_loss(torch.zeros(1, 4), torch.tensor([0]), gamma=0.0)
    tensor(1.3863)
    """
    bias = None if prior is None else _log_prior(logits, prior, tau)
    if isinstance(gamma, Tensor):
        check_vector(gamma, num_classes(logits), "gamma")
        check_positive(gamma, "gamma", zero=True)
    return softmax_rows(
        logits, target, gamma=gamma, weight=weight, bias=bias, params=FOCAL_PARAMS[bool(detach_factor)],
        label_smoothing=label_smoothing, inplace=inplace,
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def poly_loss(
    logits: Tensor,
    target: Tensor,
    *,
    epsilon: float = 1.0,
    gamma: float = 0.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Poly-1 loss: cross entropy or focal loss with another coefficient of the first term of its series in 1 - p.

    .. math:: \ell_i = w_{y_i} \left(-(1 - p_{y_i})^\gamma \log p_{y_i} + \epsilon (1 - p_{y_i})^{\gamma + 1}\right)

    Target probabilities are summed over classes as in :func:`focal_loss`.

    Args:
        epsilon: coefficient of the added term, >= -1; 0 gives :func:`focal_loss`. To be tuned: the paper's best
            is positive on ImageNet, negative in object detection.
        gamma: focusing exponent >= 0; 0 adds to cross entropy.
        weight: factor per class, shape (C,).
        logits, target, ignore_index, reduction, sample_weight, normalizer: see :func:`focal_loss`.

    Raises:
        IndexError: a target outside [0, C) that is not ``ignore_index`` (on CPU; elsewhere its row gives NaN).
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    Source: Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, ICLR 2022.

    >>> poly_loss(torch.zeros(1, 4), torch.tensor([0]))
    tensor(2.1363)
    """
    return softmax_rows(
        logits, target, gamma=gamma, weight=weight, policy="poly", params=poly_params(epsilon),
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

    The logits learn scores for balanced classes: predict with ``argmax z``, without correction. Target probabilities
    take the place of :math:`y_i` as in :func:`cross_entropy`.

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
    check_counts(counts, num_classes(logits))
    return softmax_rows(
        logits, target, bias=log_shares(counts),
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def logit_adjusted_loss(
    logits: Tensor,
    target: Tensor,
    *,
    prior: Prior,
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
        raise TypeError("expected prior to be a tensor of a floating dtype, but got None")
    return cross_entropy(
        logits, target, prior=prior, tau=tau, ignore_index=ignore_index, reduction=reduction,
        sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def ldam_loss(
    logits: Tensor,
    target: Tensor,
    *,
    counts: Tensor,
    max_margin: float = 0.5,
    scale: float = 30.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Label-distribution-aware margin loss: the rarer the class, the larger the margin its score must keep.

    .. math:: \ell_i = -w_{y_i} \log \frac{e^{s (z_{y_i} - m_{y_i})}}{e^{s (z_{y_i} - m_{y_i})} +
        \sum_{c \ne y_i} e^{s z_c}}, \qquad m_c = m_{max} \left(\frac{n_c}{\min_k n_k}\right)^{-1/4}

    Made for logits that are cosines: a last layer of normalised features and normalised weights, without bias. Deferred
    re-weighting (DRW) goes into ``weight``: :func:`drw_weights`.

    Args:
        counts: training samples per class, shape (C,), all > 0; integer or floating.
        max_margin: margin of the rarest class, >= 0.
        scale: the factor s of all logits, > 0.
        weight: factor per class, shape (C,).
        logits, target, ignore_index, reduction, sample_weight, normalizer: see :func:`cross_entropy`; target: class
            indices.

    Raises:
        IndexError: a target outside [0, C) that is not ``ignore_index`` (on CPU).
        ValueError: counts not > 0 (on CPU), an argument of the wrong shape or range.

    Source: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019, eq. 13.

    >>> ldam_loss(torch.zeros(1, 2), torch.tensor([1]), counts=torch.tensor([16, 1]), scale=1.0)
    tensor(0.9741)
    """
    check_counts(counts, num_classes(logits))
    return softmax_rows(
        logits, target, weight=weight, **ldam_constants(counts, max_margin, scale),
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def vs_loss(
    logits: Tensor,
    target: Tensor,
    *,
    counts: Tensor,
    gamma_scale: float = 0.15,
    tau: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Vector-scaling loss: a factor and an offset for each class's logit, from the training counts.

    .. math:: \ell_i = -\log \frac{e^{\Delta_{y_i} z_{y_i} + \iota_{y_i}}}{\sum_c e^{\Delta_c z_c + \iota_c}}, \qquad
        \Delta_c = \left(\frac{n_c}{\max_k n_k}\right)^\gamma, \quad \iota_c = \tau \log \frac{n_c}{\sum_k n_k}

    Predict with ``argmax z``. gamma_scale = 0 is :func:`logit_adjusted_loss`.

    Args:
        counts: training samples per class, shape (C,), all > 0; integer or floating.
        gamma_scale: exponent of the factors, >= 0.
        tau: strength of the offsets.
        logits, target, ignore_index, reduction, sample_weight, normalizer: see :func:`cross_entropy`.

    Raises:
        IndexError: a target outside [0, C) that is not ``ignore_index`` (on CPU).
        ValueError: counts not > 0 (on CPU), an argument of the wrong shape or range.

    Source: Kini et al., Label-Imbalanced and Group-Sensitive Classification under Overparameterization, NeurIPS 2021,
    eq. 3.

    >>> vs_loss(torch.zeros(1, 2), torch.tensor([1]), counts=torch.tensor([99, 1]))
    tensor(4.6052)
    """
    check_counts(counts, num_classes(logits))
    return softmax_rows(
        logits, target, **vs_constants(counts, gamma_scale, tau),
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def lade_loss(
    logits: Tensor,
    target: Tensor,
    *,
    prior: Prior | None = None,
    counts: Tensor | None = None,
    smoothing: float = 0.0,
    alpha: float = 0.1,
    lam: float = 0.1,
    estimator: str = "official",
    group: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""LADE: cross entropy under the training prior, and a regulariser that estimates each class's density.

    .. math:: \text{PriorCE} + \alpha \, \text{LADER}, \qquad
        \text{PriorCE} = -\tfrac1N \sum_i \log \frac{\pi_{y_i} e^{z_{iy_i}}}{\sum_c \pi_c e^{z_{ic}}}

    LADER is :func:`lader`; PriorCE equals :func:`logit_adjusted_loss` and is most of the gain. The logits learn scores
    for balanced classes: predict with ``argmax z``, for a test prior rho with ``argmax (z + log rho)``.

    Args:
        logits: scores z of shape (N, C), (N, C, d1, ...) or (C,); float32, float64, bfloat16 or float16,
            accumulated in float32 (float64 for float64).
        target: class indices of shape (N, d1, ...) or (), each in [0, C) or ``ignore_index``, of any integer dtype.
        prior: class probabilities of the training data, shape (C,), > 0, sum 1; or a :class:`PriorTracker`.
        counts: training samples per class instead, shape (C,), all > 0; integer or floating.
        smoothing: added to each of ``counts``, >= 0; where it is > 0, classes without samples may be there.
        alpha: factor of LADER, >= 0. The paper's code has 0.1 for CIFAR-100-LT, 0.05 for ImageNet-LT and
            iNaturalist 2018, 0.005 for Places-LT.
        lam: see :func:`lader`.
        estimator: see :func:`lader`.
        group: a process group (``torch.distributed.group.WORLD``) whose batches count as one; see :func:`lader`.
        ignore_index: target value of rows that do not count.
        reduction: "mean" or "sum", of PriorCE; LADER is one number for the whole batch, "none" is impossible.
        sample_weight: factor of a row's PriorCE, of shape (N, d1, ...).
        normalizer: replaces the divisor of PriorCE's mean, used as given.

    Returns:
        The loss in the logits' dtype (float32 for half-precision logits under autocast).

    Raises:
        IndexError: a target outside [0, C) that is not ``ignore_index`` (on CPU; elsewhere the loss is NaN).
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    No rows, or only ignored ones: "mean" is NaN, "sum" 0, and the gradient 0.

    Source: Hong et al., Disentangling Label Distribution for Long-tailed Visual Recognition, CVPR 2021, eq. 10.

    >>> lade_loss(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]), prior=torch.tensor([0.9, 0.1]))
    tensor(0.3280)
    """
    prior = _lade_prior(logits, prior, counts, smoothing)
    return class_columns(
        logits, target, prior, prior_ce=1.0, alpha=alpha, lam=lam, estimator=estimator, group=group,
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def lader(
    logits: Tensor,
    target: Tensor,
    *,
    prior: Prior | None = None,
    counts: Tensor | None = None,
    smoothing: float = 0.0,
    lam: float = 0.1,
    estimator: str = "official",
    group: Any = None,
    ignore_index: int = -100,
) -> Tensor:
    r"""LADE's regulariser alone: a Donsker-Varadhan bound of each class's log density ratio, regularised by its square.

    .. math:: -\sum_c \pi_c \left(F_c - A_c - \lambda A_c^2\right), \qquad
        F_c = \operatorname{mean}_{i: y_i = c} z_{ic}, \quad A_c = \log \tfrac1N \sum_i v_{ic} e^{z_{ic}}

    "paper" has :math:`v_{ic} = \tfrac{1}{C} / \pi_{y_i}`, the uniform prior over the training prior, and sums over the
    classes of the batch. "official" is what the published code computes: :math:`v_{ic} = \tfrac{1}{C} / \pi_c`, all
    classes, and F = 0 for those without a sample in the batch. It is no loss to train with by itself: it takes no
    account of what competes with a class (docs/lade.md).

    Args:
        lam: factor of the squared term, >= 0. The paper's code has 0.01 for CIFAR-100-LT of imbalance ratio 100, 0.5
            for ImageNet-LT, 0.1 for Places-LT and iNaturalist 2018.
        estimator: "official" or "paper".
        group: a process group. Sums over rows are then those of all its processes' batches, which may differ in size
            and be empty; every process must call, and gets the same value. The gradient is that of one process with the
            whole batch, times the number of processes, which DistributedDataParallel's average takes out again.
        logits, target, prior, counts, smoothing, ignore_index: see :func:`lade_loss`.

    Raises:
        IndexError: a target outside [0, C) that is not ``ignore_index`` (on CPU; elsewhere the loss is NaN).
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    No rows, or only ignored ones: 0.

    Source: Hong et al., Disentangling Label Distribution for Long-tailed Visual Recognition, CVPR 2021, eq. 9, and its
    code, github.com/hyperconnect/LADE.

    >>> lader(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]), prior=torch.tensor([0.9, 0.1]))
    tensor(-0.7773)
    """
    prior = _lade_prior(logits, prior, counts, smoothing)
    return class_columns(
        logits, target, prior, prior_ce=0.0, alpha=1.0, lam=lam, estimator=estimator, group=group,
        ignore_index=ignore_index, reduction="sum",
    )  # fmt: skip


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = 0.25,
    gamma: float | Tensor = 2,
    reduction: str = "none",
    *,
    weight: Tensor | None = None,
    pos_weight: float | Tensor | None = None,
    normalizer: float | Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    r"""Sigmoid focal loss of detection and multi-label models, fused forward and backward.

    .. math:: \ell = -\alpha_t (1 - p_t)^\gamma \log p_t, \qquad p = \sigma(x), \quad p_t = p t + (1 - p)(1 - t),
        \quad \alpha_t = \alpha t + (1 - \alpha)(1 - t)

    Signature, defaults and values are those of ``torchvision.ops.sigmoid_focal_loss``, soft targets included, whose
    :math:`\log p_t` is minus the binary cross entropy; keywords beyond it follow.

    Args:
        inputs: logits x of any shape; float32, float64, bfloat16 or float16, accumulated in float32 (float64 for
            float64). Their class dimension, where one is needed, is dimension 1 (0 of one-dimensional inputs).
        targets: of the inputs' shape: bool or integers 0 and 1, or any floating dtype, t in [0, 1]. Or class indices,
            of any integer dtype and the inputs' shape without the class dimension: the class that is 1 in each row;
            -1 or C is background, where none is. No one-hot tensor is made.
        alpha: factor of positives, 1 - alpha that of negatives, in [0, 1]; or one per class, shape (C,); None or
            negative: neither.
        gamma: focusing exponent >= 0, or one per class, shape (C,).
        reduction: "none" (the inputs' shape), "mean" (over all elements that count) or "sum".
        weight: factor per class, shape (C,), or per element, the inputs' shape; expanded tensors are not copied:
            ``per_row[:, None].expand_as(inputs)``. It does not count in the divisor.
        pos_weight: factor of the positive term, a number or per class, shape (C,); as in
            :func:`torch.nn.functional.binary_cross_entropy_with_logits`.
        normalizer: replaces the divisor of "mean", used as given: the number of positives, for instance.
        ignore_index: target value of elements, or class index of rows, that do not count.

    Returns:
        The loss in the inputs' dtype (float32 for half-precision inputs under autocast).

    Raises:
        IndexError: an integer target that is none (on CPU; elsewhere its element gives NaN).
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, eq. 5.

    >>> sigmoid_focal_loss(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]))
    tensor([0.0005, 0.0170])
    >>> sigmoid_focal_loss(torch.zeros(2, 3), torch.tensor([1, 3]), reduction="sum", alpha=None)  # 3: background
    tensor(1.0397)
    """
    return sigmoid_elements(
        inputs, targets, alpha=alpha, gamma=gamma, weight=weight, pos_weight=pos_weight, normalizer=normalizer,
        ignore_index=ignore_index, reduction=reduction, policy="sigmoid_focal",
    )  # fmt: skip


def asymmetric_loss(
    inputs: Tensor,
    targets: Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    detach_factor: bool = False,
    reduction: str = "mean",
    weight: Tensor | None = None,
    pos_weight: float | Tensor | None = None,
    normalizer: float | Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    r"""Asymmetric loss for multi-label classification: negatives focused harder, and the easiest of them dropped.

    .. math:: \ell = -t (1 - p)^{\gamma_+} \log p - (1 - t)\, p_m^{\gamma_-} \log(1 - p_m), \qquad
        p = \sigma(x), \quad p_m = \max(p - m, 0)

    gamma_neg = gamma_pos with clip = 0 is :func:`sigmoid_focal_loss` without alpha, for targets of 0 and 1.

    Args:
        gamma_neg, gamma_pos: focusing exponents >= 0 of negatives and positives.
        clip: the margin m in [0, 1) by which probabilities of negatives are shifted.
        detach_factor: treat :math:`(1 - p)^{\gamma_+}` and :math:`p_m^{\gamma_-}` as constants in the gradient, as
            the paper's code does.
        inputs, targets, reduction, weight, pos_weight, normalizer, ignore_index: see :func:`sigmoid_focal_loss`.

    Raises:
        IndexError: an integer target that is none (on CPU; elsewhere its element gives NaN).
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    Source: Ridnik et al., Asymmetric Loss For Multi-Label Classification, ICCV 2021, eq. 4 to 7.

    >>> asymmetric_loss(torch.zeros(1, 2), torch.tensor([[1, 0]]))
    tensor(0.1855)
    """
    params = asymmetric_params(gamma_neg, gamma_pos, clip, detach_factor)
    return sigmoid_elements(
        inputs, targets, gamma=gamma_pos, params=params, weight=weight, pos_weight=pos_weight, normalizer=normalizer,
        ignore_index=ignore_index, reduction=reduction, policy="asymmetric",
    )  # fmt: skip


def quality_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    *,
    beta: float = 2.0,
    reduction: str = "mean",
    weight: Tensor | None = None,
    pos_weight: float | Tensor | None = None,
    normalizer: float | Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    r"""Quality focal loss: binary cross entropy against a quality in [0, 1], focused on where that is missed.

    .. math:: \ell = -|t - p|^\beta \left(t \log p + (1 - t) \log(1 - p)\right), \qquad p = \sigma(x)

    Args:
        beta: focusing exponent >= 0.
        inputs, targets, reduction, weight, pos_weight, normalizer, ignore_index: see :func:`sigmoid_focal_loss`;
            targets: the quality (the overlap with the true box, in detection) for the true class, else 0.

    Raises:
        IndexError: an integer target that is none (on CPU; elsewhere its element gives NaN).
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.

    Source: Li et al., Generalized Focal Loss, NeurIPS 2020, eq. 3.

    >>> quality_focal_loss(torch.tensor([0.0, 1.0]), torch.tensor([0.8, 0.0]))
    tensor(0.3821)
    """
    return sigmoid_elements(
        inputs, targets, gamma=beta, gamma_name="beta", weight=weight, pos_weight=pos_weight, normalizer=normalizer,
        ignore_index=ignore_index, reduction=reduction, policy="quality_focal",
    )  # fmt: skip


# ---- arguments ---------------------------------------------------------------------------------------------------
def num_classes(logits: Tensor) -> int:
    if not isinstance(logits, Tensor):
        raise TypeError(f"expected logits to be a tensor, but got {describe(logits)}")
    if logits.dim() == 0:
        raise ValueError("expected logits of shape (N, C), (N, C, d1, ...) or (C,), but got ()")
    classes = logits.shape[0 if logits.dim() == 1 else 1]
    if classes == 0:
        raise ValueError(f"expected logits of at least one class, but got shape {tuple(logits.shape)}")
    return classes


def _log_prior(logits: Tensor, prior: Prior, tau: float) -> Tensor:
    prior = as_prior(prior)
    check_prior(prior, num_classes(logits))
    check_number(tau, "tau")
    return tau * precise(prior).log()


def log_shares(counts: Tensor) -> Tensor:
    """log(n_c / n)."""
    counts = precise(counts)
    return (counts / counts.sum()).log()


def _lade_prior(logits: Tensor, prior: Prior | None, counts: Tensor | None, smoothing: float) -> Tensor:
    """The prior, not yet looked at if it was given as one."""
    if (
        type(prior) is Tensor and counts is None and smoothing == 0 and type(logits) is Tensor and prior.dtype in _WIDE
        and prior.dim() == 1 and logits.dim() > 1 and len(prior) == logits.shape[1] > 0
    ):  # fmt: skip
        return prior  # told at a glance; everything else in words
    classes = num_classes(logits)
    if counts is not None or prior is None or smoothing != 0:
        check_either(prior, counts, smoothing)
    if prior is None:
        assert counts is not None
        return smoothed_prior(counts, smoothing, classes)
    prior = as_prior(prior)
    check_vector(prior, classes, "prior")
    return prior


def check_either(prior: Prior | None, counts: Tensor | None, smoothing: float) -> None:
    if (prior is None) == (counts is None):
        raise ValueError(f"expected either prior or counts, but got {'neither' if prior is None else 'both'}")
    if prior is not None and smoothing != 0:
        raise ValueError(f"expected smoothing only beside counts, but got smoothing={smoothing}")


def ldam_constants(counts: Tensor, max_margin: float, scale: float) -> dict[str, Any]:
    check_number(max_margin, "max_margin", least=0)
    check_number(scale, "scale", above=0)
    counts = precise(counts)
    return {
        "scale": torch.full_like(counts, scale),
        "margin": scale * max_margin * (counts / counts.min()) ** -0.25,
    }


def vs_constants(counts: Tensor, gamma_scale: float, tau: float) -> dict[str, Any]:
    check_number(gamma_scale, "gamma_scale", least=0)
    check_number(tau, "tau")
    counts = precise(counts)
    return {"scale": (counts / counts.max()) ** gamma_scale, "bias": tau * log_shares(counts)}


def lade_factor(value: float, name: str) -> float:
    if not (type(value) is float and 0 <= value < math.inf):
        check_number(value, name, least=0)
    return float(value)


def check_estimator(estimator: str) -> None:
    if estimator not in reference.ESTIMATORS:
        raise ValueError(f'expected estimator to be "official" or "paper", but got {estimator!r}')


def poly_params(epsilon: float) -> list[float]:
    check_number(epsilon, "epsilon", least=-1)
    return [float(epsilon)]


def asymmetric_params(gamma_neg: float, gamma_pos: float, clip: float, detach_factor: bool) -> list[float]:
    check_number(gamma_neg, "gamma_neg", least=0, most=MOST_GAMMA)
    check_number(gamma_pos, "gamma_pos", least=0, most=MOST_GAMMA)
    check_number(clip, "clip", least=0, most=1)
    return [float(gamma_neg), float(clip), float(bool(detach_factor))]


# ---- the traversals ----------------------------------------------------------------------------------------------
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
    label_smoothing: float = 0.0,
    policy: str = "focal",
    params: list[float] = FOCAL_PARAMS[0],
    inplace: bool = False,
    ignore_index: int = -100,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Checks the arguments that all softmax losses share and calls the traversal for their target: one class a row, or
    a distribution."""
    if not _are_usual(logits, target, ignore_index):
        target, ignore_index = _checked_inputs(logits, target, ignore_index)
    reduced = _reduction(reduction)
    if not isinstance(gamma, Tensor):
        gamma = checked_gamma(gamma)
    # not `in` nor count: they ask tensors whether they equal None, which takes them longer than the loss
    if weight is sample_weight is scale is bias is margin is normalizer is None and type(gamma) is float:
        operands = ()
    else:
        if normalizer is not None and reduction != "mean":
            raise ValueError(f'expected normalizer only with reduction="mean", but got reduction={reduction!r}')
        operands = _operands(logits, weight, sample_weight, scale, bias, margin, gamma, normalizer)
        gamma = 0.0 if isinstance(gamma, Tensor) else gamma

    if label_smoothing != 0 or target.is_floating_point():
        check_number(label_smoothing, "label_smoothing", least=0, most=1)
        if margin is not None:
            raise TypeError(f"expected target to be class indices, but got {describe(target)}")
        options = [gamma, *params], float(label_smoothing), ignore_index, reduced, policy
        loss = _ops.softmax_soft_rows(logits, target, operands, options, reduced != 0, inplace)
    else:
        options = [gamma, *params], ignore_index, reduced, policy
        loss = _ops.softmax_rows(logits, target, operands, options, reduced != 0, inplace)
    return _in_dtype_of(logits, loss)


def _reduction(reduction: str) -> int:
    reduced = _ops.REDUCTIONS.get(reduction)
    if reduced is None:
        raise ValueError(f'expected reduction to be "none", "mean" or "sum", but got {reduction!r}')
    return reduced


def _in_dtype_of(logits: Tensor, loss: Tensor) -> Tensor:
    if logits.dtype is loss.dtype or (not logits.is_meta and torch.is_autocast_enabled(logits.device.type)):
        return loss
    return loss.to(logits.dtype)


def _are_usual(logits: Tensor, target: Tensor, ignore_index: int) -> bool:
    """Told at a glance; everything else in words."""
    return (
        isinstance(logits, Tensor)
        and isinstance(target, Tensor)
        and target.dtype is torch.int64
        and logits.dtype in _LOGITS
        and len(shape := logits.shape) == 2
        and len(rows := target.shape) == 1
        and rows[0] == shape[0]
        and shape[1] > 0
        and logits.is_cpu
        and target.is_cpu
        and type(ignore_index) is int
    )


def _checked_inputs(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, int]:
    """Target and ignored index as the traversals want them."""
    num_classes(logits)
    dtype, device, shape = logits.dtype, logits.device, logits.shape
    if dtype not in _LOGITS:
        raise TypeError(f"expected logits of dtype float32, float64, bfloat16 or float16, but got {dtype}")
    check_number(ignore_index, "ignore_index", whole=True)
    probabilities = isinstance(target, Tensor) and target.is_floating_point()
    if probabilities and ignore_index >= 0:
        raise ValueError(f"expected no ignore_index beside target probabilities, but got {ignore_index}")
    if not probabilities and not (isinstance(target, Tensor) and target.dtype in _INTEGERS):
        raise TypeError(
            f"expected target to be a tensor of an integer dtype (class indices) or a floating one (probabilities), "
            f"but got {describe(target)}"
        )
    want = shape if probabilities else row_shape(logits)
    if target.shape != want:
        kind = "probabilities" if probabilities else "class indices"
        raise ValueError(
            f"expected target of shape {tuple(want)}, as {kind} for logits of shape {tuple(shape)}, "
            f"but got {tuple(target.shape)}"
        )
    if target.device != device:
        raise ValueError(f"expected target on {device}, where the logits are, but got {target.device}")
    if not probabilities:
        target = target.long()
    elif target.dtype is not dtype:
        target = target.to(_accumulation_dtype(dtype))
    return target, int(ignore_index)


def row_shape(logits: Tensor) -> tuple[int, ...]:
    """Of a loss per row: (N, d1, ...)."""
    return logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else logits.shape[:0]


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def _operands(
    logits: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    margin: Tensor | None,
    gamma: float | Tensor,
    normalizer: float | Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The optional operands as the traversals want them, in the order of ``_ops.OPERANDS``."""
    device, wide = logits.device, _accumulation_dtype(logits.dtype)
    per_class, per_row = (num_classes(logits),), row_shape(logits)

    def checked(values, name, shape=per_class, dtype=wide):
        return None if values is None else _operand(values, name, shape, device, dtype)

    gammas = None
    if isinstance(gamma, Tensor):
        gammas = checked(gamma, "gamma", dtype=torch.promote_types(gamma.dtype, torch.float32))
    return (
        checked(weight, "weight"),
        checked(sample_weight, "sample_weight", per_row),
        checked(scale, "scale"),
        checked(bias, "bias"),
        checked(margin, "margin"),
        gammas,
        None if normalizer is None else _normalizer(normalizer, device),
    )


def _normalizer(normalizer: float | Tensor, device: torch.device) -> Tensor:
    if not isinstance(normalizer, Tensor):
        check_number(normalizer, "normalizer", finite=False)
        wide = torch.float64 if device.type == "cpu" else torch.float32
        return torch.full((), normalizer, dtype=wide, device=device)
    if normalizer.numel() != 1 or normalizer.device != device or normalizer.is_complex():
        raise ValueError(
            f"expected normalizer to be a number or a real tensor of one element on {device}, "
            f"but got {describe(normalizer)} on {normalizer.device}"
        )
    normalizer = normalizer.reshape(()).resolve_neg()
    return normalizer if normalizer.dtype in (torch.float64, torch.float32, torch.int64) else precise(normalizer)


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
    return values.contiguous().resolve_neg()  # the dispatcher does not resolve tensors in a list


def class_columns(
    logits: Tensor,
    target: Tensor,
    prior: Tensor,
    *,
    prior_ce: float,
    alpha: float,
    lam: float,
    estimator: str,
    group: Any,
    ignore_index: int,
    reduction: str,
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Checks the other arguments of LADE's losses and calls the traversal. What remains to be checked of the prior are
    its values: the operators look at them."""
    if not _are_usual(logits, target, ignore_index):
        target, ignore_index = _checked_inputs(logits, target, ignore_index)
        if target.is_floating_point():
            raise TypeError(f"expected target to be class indices, but got {describe(target)}")
    reduced = _ops.REDUCTIONS.get(reduction)
    if not reduced:
        raise ValueError(f'expected reduction to be "mean" or "sum", but got {reduction!r}')
    check_estimator(estimator)
    numbers = [prior_ce, lade_factor(alpha, "alpha"), lade_factor(lam, "lam")]
    if normalizer is not None:
        if reduction != "mean":
            raise ValueError(f'expected normalizer only with reduction="mean", but got reduction={reduction!r}')
        normalizer = _normalizer(normalizer, logits.device)
    if sample_weight is not None:
        dtype = _accumulation_dtype(logits.dtype)
        sample_weight = _operand(sample_weight, "sample_weight", row_shape(logits), logits.device, dtype)
    plain = prior.is_cpu and logits.is_cpu and prior.is_contiguous()
    if torch.compiler.is_compiling() or not plain or prior.is_neg() or prior.dtype not in _WIDE:
        dtype = prior.dtype if prior.dtype in _WIDE else torch.float32
        prior = _operand(prior, "prior", prior.shape, logits.device, dtype)
    operands = prior, sample_weight, normalizer
    options = numbers, ignore_index, reduced, estimator
    if group is None:
        loss = _ops.class_columns(logits, target, operands, options, True)
    else:
        loss = distributed.class_columns(logits, target, operands, options, group)
    if logits.dtype is loss.dtype or (not logits.is_meta and torch.is_autocast_enabled(logits.device.type)):
        return loss
    return loss.to(logits.dtype)


# ---- elements ----------------------------------------------------------------------------------------------------
_TARGETS = _INTEGERS | {torch.bool}


def sigmoid_elements(
    inputs: Tensor,
    targets: Tensor,
    *,
    alpha: float | Tensor | None = None,
    gamma: float | Tensor,
    gamma_name: str = "gamma",
    policy: str,
    params: list[float] | tuple[()] = (),
    weight: Tensor | None,
    pos_weight: float | Tensor | None,
    normalizer: float | Tensor | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """Checks the arguments that the losses of elements share and calls their traversal."""
    usual = (  # told at a glance; everything else in words
        isinstance(inputs, Tensor)
        and isinstance(targets, Tensor)
        and targets.shape == inputs.shape
        and inputs.dtype in _LOGITS
        and (targets.dtype is inputs.dtype or targets.dtype in _TARGETS)
        and inputs.is_cpu
        and targets.is_cpu
        and type(ignore_index) is int
    )
    if not usual:
        targets, ignore_index = _checked_elements(inputs, targets, ignore_index)
    reduced = _reduction(reduction)
    if normalizer is not None and reduction != "mean":
        raise ValueError(f'expected normalizer only with reduction="mean", but got reduction={reduction!r}')
    numbers = [
        0.0 if isinstance(gamma, Tensor) else checked_gamma(gamma, gamma_name),
        -1.0 if alpha is None or isinstance(alpha, Tensor) else checked_alpha(alpha),
        1.0 if pos_weight is None or isinstance(pos_weight, Tensor) else checked_pos_weight(pos_weight),
        *params,
    ]
    numeric = not (isinstance(pos_weight, Tensor) or isinstance(alpha, Tensor) or isinstance(gamma, Tensor))
    operands = ()
    if weight is not None or normalizer is not None or not numeric:
        operands = _element_operands(inputs, weight, pos_weight, alpha, gamma, normalizer)
    loss = _ops.sigmoid_elements(inputs, targets, operands, (numbers, ignore_index, reduced, policy), reduced != 0)
    return _in_dtype_of(inputs, loss)


def checked_gamma(gamma: float, name: str = "gamma") -> float:
    if not (type(gamma) in (float, int) and 0 <= gamma < MOST_GAMMA):  # torchvision's default is the int 2
        check_number(gamma, name, least=0, most=MOST_GAMMA)
    return float(gamma)


def checked_alpha(alpha: float) -> float:
    """Any negative number is none."""
    if not (type(alpha) is float and alpha <= 1):
        check_number(alpha, "alpha", most=1)
    return float(alpha)


def checked_pos_weight(pos_weight: float) -> float:
    check_number(pos_weight, "pos_weight", least=0)
    return float(pos_weight)


def _checked_elements(inputs: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, int]:
    """Targets and ignored index as the traversal wants them."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"expected inputs to be a tensor, but got {describe(inputs)}")
    if inputs.dtype not in _LOGITS:
        raise TypeError(f"expected inputs of dtype float32, float64, bfloat16 or float16, but got {inputs.dtype}")
    check_number(ignore_index, "ignore_index", whole=True)
    if not isinstance(targets, Tensor) or not (targets.is_floating_point() or targets.dtype in _TARGETS):
        raise TypeError(
            f"expected targets to be a tensor of a floating, integer or bool dtype, but got {describe(targets)}"
        )
    shape = inputs.shape
    if targets.shape != shape:
        rows = row_shape(inputs) if inputs.dim() else None
        if targets.dtype not in _INTEGERS or targets.shape != rows:
            indices = "" if rows is None else f" or, as class indices, {tuple(rows)}"
            raise ValueError(
                f"expected targets of shape {tuple(shape)}{indices}, but got {tuple(targets.shape)} "
                f"of dtype {targets.dtype}"
            )
    if targets.device != inputs.device:
        raise ValueError(f"expected targets on {inputs.device}, where the inputs are, but got {targets.device}")
    if targets.is_floating_point() and targets.dtype is not inputs.dtype:
        targets = targets.to(_accumulation_dtype(inputs.dtype))
    return targets, int(ignore_index)


def _element_operands(
    inputs: Tensor,
    weight: Tensor | None,
    pos_weight: float | Tensor | None,
    alpha: float | Tensor | None,
    gamma: float | Tensor,
    normalizer: float | Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The optional operands as the traversal wants them, in the order of ``_ops.ELEMENT_OPERANDS``."""
    device, wide, shape = inputs.device, _accumulation_dtype(inputs.dtype), inputs.shape
    classes = shape[1 if len(shape) > 1 else 0] if shape else 1

    def per_class(values, name):
        return _operand(values, name, (classes,), device, wide) if isinstance(values, Tensor) else None

    if isinstance(alpha, Tensor):
        check_vector(alpha, classes, "alpha")
        check_shares(alpha, "alpha")
    if isinstance(gamma, Tensor):
        check_vector(gamma, classes, "gamma")
        check_positive(gamma, "gamma", zero=True)
    if isinstance(pos_weight, Tensor) and pos_weight.dim() == 0:
        pos_weight = pos_weight.expand(classes)
    if isinstance(weight, Tensor) and weight.dim() == 1 and len(shape) != 1:
        weight = per_class(weight, "weight")
    elif weight is not None:
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise TypeError(f"expected weight to be a tensor of a floating dtype, but got {describe(weight)}")
        if weight.shape != shape:
            raise ValueError(f"expected weight of shape {(classes,)} or {tuple(shape)}, but got {tuple(weight.shape)}")
        if weight.device != device:
            raise ValueError(f"expected weight on {device}, where the inputs are, but got {weight.device}")
        weight = weight.to(wide).resolve_neg()  # the dispatcher does not resolve tensors in a list
    return (
        weight,
        per_class(pos_weight, "pos_weight"),
        per_class(alpha, "alpha"),
        per_class(gamma, "gamma"),
        None if normalizer is None else _normalizer(normalizer, device),
    )
