"""Metrics of whole predictions, as functions."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from imbloss.metrics import inputs, margins, ranking, tallies
from imbloss.metrics.margins import Counts
from imbloss.priors import check_labels, check_number, check_positive, check_vector, describe

GEOMETRIC_AVERAGES = ("multiclass", *margins.AVERAGES, "binary", None)


def counts(
    preds: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    *,
    threshold: float = 0.5,
    sample_weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Counts:
    """The margins of a confusion matrix, float64, of which every rate is made.

    Args:
        preds: classes of the target's shape, integer; or scores of shape (N, C, d1, ...), floating; or floating of the
            target's shape: scores of class 1 of two, probabilities where all are in [0, 1] and else logits. A sample
            with a NaN among its scores has no answer: it is missed, and no class is predicted.
        target: class indices of shape (N, d1, ...), or ``ignore_index``.
        num_classes: C; by default that of the scores, 2 for one score a target, or one more than the largest class.
        threshold: probability of class 1 above which it is the answer, of one score a target.
        sample_weight: of the target's shape, or (N,), >= 0.

    Raises:
        IndexError: a class outside [0, C) (CPU).

    >>> counts(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])).hit
    tensor([1., 1.], dtype=torch.float64)
    """
    check_labels(target)
    if not isinstance(preds, Tensor):
        raise TypeError(f"expected preds to be a tensor, but got {describe(preds)}")
    one_score = preds.is_floating_point() and preds.shape == target.shape
    if num_classes is None:
        if one_score:
            num_classes = 2
        elif preds.is_floating_point() and preds.dim() > 1:
            num_classes = preds.shape[1]
        else:
            valid = target[target != ignore_index] if ignore_index is not None else target
            num_classes = 1 + max((int(t.max()) for t in (preds, valid) if t.numel()), default=0)
    check_number(num_classes, "num_classes", least=1, whole=True)
    rows = inputs.rows_of_classes(target, num_classes, ignore_index)
    if one_score:
        if num_classes != 2:
            raise ValueError(f"expected num_classes=2 beside one score a target, but got {num_classes}")
        scores = preds.detach().reshape(-1, 1)
        probabilities = inputs.are_probabilities(scores, rows >= 0, sum_to_one=False)
        answer = inputs.binary_answers(scores, limit(threshold, probabilities))
    elif preds.is_floating_point():
        answer = inputs.answers(inputs.rows_of_scores(preds.detach(), target, num_classes))
    else:
        answer = inputs.rows_of_answers(preds, target, num_classes)
    confusion = torch.zeros(num_classes, num_classes + 1, dtype=torch.float64, device=target.device)
    tallies.add_confusion(confusion, answer, rows, inputs.rows_of_weights(sample_weight, target))
    return margins.of_confusion(confusion)


def limit(threshold: float, probabilities: bool) -> float:
    """The score above which the answer is class 1."""
    check_number(threshold, "threshold", least=0, most=1)
    return threshold if probabilities else float(torch.tensor(threshold, dtype=torch.float64).logit())


# ---- of confusion matrices ---------------------------------------------------------------------------------------
def geometric_mean(
    preds: Tensor, target: Tensor, *, average: str | None = "multiclass", correction: float = 0.0, **keywords
) -> Tensor:
    r"""The geometric mean of the classes' recalls: 0 where one class is never found.

    .. math:: \Big(\prod_c r_c\Big)^{1/C}

    Args:
        preds, target: see :func:`imbloss.metrics.counts`, and its keywords likewise.
        average: "multiclass" is the above, over classes with samples. Others are of each class's
            sqrt(recall specificity): None, (C,); "binary", that of class 1; "macro", "micro", "weighted", the root of
            the averaged recall and specificity, as imbalanced-learn has it.
        correction: in place of a recall that is 0, of "multiclass".

    Source: Kubat and Matwin, Addressing the Curse of Imbalanced Training Sets, ICML 1997.

    >>> geometric_mean(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
    tensor(0.8165)
    """
    return geometric_mean_of(counts(preds, target, **keywords), average, correction).float()


def geometric_mean_of(of: Counts, average: str | None = "multiclass", correction: float = 0.0) -> Tensor:
    """See :func:`geometric_mean`."""
    if average not in GEOMETRIC_AVERAGES:
        raise ValueError(f"expected average among {GEOMETRIC_AVERAGES}, but got {average!r}")
    if average == "multiclass":
        recall = margins.ratio(of.hit, of.support, torch.nan)
        return margins.geometric_mean(recall, correction)
    rates = margins.rates(of)
    if average is None:
        return rates["g_mean"]
    if average == "binary":
        return positive_class(rates["g_mean"])
    mean = margins.averages(of, rates)[average]
    return (mean["recall"] * mean["specificity"]).sqrt()


def positive_class(values: Tensor) -> Tensor:
    if values.shape[-1] != 2:
        raise ValueError(f"expected two classes for average='binary', but got {values.shape[-1]}")
    return values[..., 1]


def balanced_accuracy(preds: Tensor, target: Tensor, *, adjusted: bool = False, **keywords) -> Tensor:
    """The mean recall of the classes with samples: accuracy as if they were equally frequent.

    Args:
        preds, target: see :func:`imbloss.metrics.counts`, and its keywords likewise.
        adjusted: 0 is chance and 1 perfect.

    >>> balanced_accuracy(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))
    tensor(0.5000)
    """
    return balanced_accuracy_of(counts(preds, target, **keywords), adjusted).float()


def balanced_accuracy_of(of: Counts, adjusted: bool = False) -> Tensor:
    """See :func:`balanced_accuracy`."""
    value = margins.mean(margins.ratio(of.hit, of.support, torch.nan))
    if not adjusted:
        return value
    chance = 1 / (of.support > 0).sum(-1)
    return (value - chance) / (1 - chance)


def index_balanced_accuracy(
    preds: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.1,
    squared: bool = True,
    average: str | None = "macro",
    score: Callable[[dict[str, Tensor]], Tensor] | None = None,
    **keywords,
) -> Tensor:
    r"""A score that is corrected for how much better one class is found than the rest.

    .. math:: (1 + \alpha (\text{recall} - \text{specificity})) M^2

    Args:
        preds, target: see :func:`imbloss.metrics.counts`, and its keywords likewise.
        alpha: strength of the correction.
        squared: M squared, or M itself.
        average: None, (C,); "macro", "weighted", means over classes; "binary", class 1.
        score: makes M, (C,), of the classes' precision, recall, specificity, f1 and g_mean; the last by default.

    Source: Garcia et al., Index of Balanced Accuracy, IbPRIA 2009.

    >>> index_balanced_accuracy(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
    tensor(0.6667)
    """
    return index_balanced_accuracy_of(counts(preds, target, **keywords), alpha, squared, average, score).float()


def index_balanced_accuracy_of(
    of: Counts,
    alpha: float = 0.1,
    squared: bool = True,
    average: str | None = "macro",
    score: Callable[[dict[str, Tensor]], Tensor] | None = None,
) -> Tensor:
    """See :func:`index_balanced_accuracy`."""
    if average not in ("macro", "weighted", "binary", None):
        raise ValueError(f"expected average among ('macro', 'weighted', 'binary', None), but got {average!r}")
    rates = margins.rates(of)
    values = rates["g_mean"] if score is None else score(rates)
    values = margins.index_balanced(values, rates["recall"], rates["specificity"], alpha, squared)
    if average is None:
        return values
    if average == "binary":
        return positive_class(values)
    values = torch.where(of.support > 0, values, torch.nan)
    return margins.mean(values, of.support if average == "weighted" else None)


def shot_accuracy(
    preds: Tensor, target: Tensor, *, train_counts: Tensor, many: float = 100, few: float = 20, **keywords
) -> dict[str, Tensor]:
    """Mean recall of the classes with many, a medium number of and few training samples.

    Args:
        preds, target: see :func:`imbloss.metrics.counts`, and its keywords likewise, but ``num_classes``.
        train_counts: training samples per class, shape (C,).
        many: more than these are many.
        few: less than these are few.

    Returns:
        "many", "medium" and "few"; NaN without such a class.

    Source: Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019.

    >>> shot_accuracy(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2]), train_counts=torch.tensor([500, 50, 5]))
    {'many': tensor(1.), 'medium': tensor(0.), 'few': tensor(1.)}
    """
    check_shots(train_counts, None, many, few)
    of = counts(preds, target, len(train_counts), **keywords)
    recall = margins.ratio(of.hit, of.support, torch.nan)
    return {name: value.float() for name, value in margins.shots(recall, train_counts, many, few).items()}


def check_shots(train_counts: Tensor, classes: int | None, many: float, few: float) -> None:
    check_vector(train_counts, classes, "train_counts", floating=False)
    check_positive(train_counts, "train_counts", zero=True)
    check_number(many, "many", least=0)
    check_number(few, "few", least=0, most=many)


# ---- of scores ---------------------------------------------------------------------------------------------------
def auroc(
    scores: Tensor,
    target: Tensor,
    *,
    average: str | None = "macro",
    sample_weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """The probability that a sample of a class scores above one of the others, plus half that of a tie; exact.

    Args:
        scores: (N, C), one against the rest for each class as they are, so of a softmax hand in probabilities; or
            (N,), of class 1.
        target: (N,), class indices; or labels (N, C), 0 and 1.
        average: "macro", the mean over classes that have samples and others have, too, with a warning if some have
            not; "weighted", by their samples; None, (C,).
        sample_weight: (N,), >= 0.
        ignore_index: target of a sample, or label, that does not count.

    >>> auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    tensor(0.7500, dtype=torch.float64)
    """
    return _ranking(scores, target, sample_weight, ignore_index, average, 0)


def average_precision(
    scores: Tensor,
    target: Tensor,
    *,
    average: str | None = "macro",
    sample_weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """Precision at the score of each positive, averaged: the area below the steps of the precision-recall curve; exact.

    The arguments are those of :func:`imbloss.metrics.auroc`.

    >>> average_precision(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    tensor(0.8333, dtype=torch.float64)
    """
    return _ranking(scores, target, sample_weight, ignore_index, average, 1)


def auroc_and_average_precision(
    scores: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, ignore_index: int | None = -100
) -> tuple[Tensor, Tensor]:
    """Both, of each class (C,), by one sort. NaN of a class without a positive, or (AUROC) without a negative.

    The arguments are those of :func:`imbloss.metrics.auroc`; scores (N,) are one class.

    >>> auroc_and_average_precision(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    (tensor([0.7500], dtype=torch.float64), tensor([0.8333], dtype=torch.float64))
    """
    scores, positive, weight = _ranked_rows(scores, target, sample_weight, ignore_index)
    return ranking.auroc_and_average_precision(scores, positive, weight)


def _ranked_rows(scores, target, sample_weight, ignore_index):
    inputs.check_scores(scores, "scores")
    if not isinstance(target, Tensor):
        raise TypeError(f"expected target to be a tensor, but got {describe(target)}")
    if scores.dim() == 1:
        scores, target = scores.unsqueeze(1), target.unsqueeze(1)
    if scores.dim() != 2 or len(scores) != len(target):
        raise ValueError(
            f"expected scores of shape (N,) or (N, C) beside N targets, "
            f"but got {tuple(scores.shape)} and {tuple(target.shape)}"
        )
    weight = inputs.rows_of_weights(sample_weight, target[:, 0] if target.dim() == 2 else target)
    if target.dim() == 2:
        rows = inputs.rows_of_labels(target, scores.shape[1], ignore_index)
        return scores, *of_labels(rows, weight)
    rows = inputs.rows_of_classes(target, scores.shape[1], ignore_index)
    return of_counted(scores, rows, weight)


def of_counted(scores: Tensor, rows: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Without the rows that do not count."""
    counted = rows >= 0
    if bool(counted.all()):
        return scores, rows, weight
    return scores[counted], rows[counted], None if weight is None else weight[counted]


def of_labels(rows: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Positives and weights; labels that do not count weigh 0."""
    ignored = rows < 0
    if bool(ignored.any()):
        weight = (torch.ones(len(rows), device=rows.device) if weight is None else weight).double().unsqueeze(1)
        return rows == 1, torch.where(ignored, 0, weight)
    return rows == 1, weight


def _ranking(scores, target, sample_weight, ignore_index, average, which) -> Tensor:
    if average not in ("macro", "weighted", None):
        raise ValueError(f"expected average among ('macro', 'weighted', None), but got {average!r}")
    scores, positive, weight = _ranked_rows(scores, target, sample_weight, ignore_index)
    values = ranking.auroc_and_average_precision(scores, positive, weight)[which]
    if average is None:
        return values
    if bool(values.isnan().any()) and not bool(scores.isnan().any()):
        classes = ", ".join(map(str, values.isnan().nonzero().flatten().tolist()[:10]))
        warnings.warn(f"the average leaves out classes without positives or negatives: {classes}", stacklevel=3)
    elif bool(scores.isnan().any()):
        return torch.full((), torch.nan, dtype=values.dtype, device=values.device)
    return margins.mean(values, _supports(positive, weight, len(values)) if average == "weighted" else None)


def _supports(positive: Tensor, weight: Tensor | None, classes: int) -> Tensor:
    if positive.dim() == 1:
        return torch.bincount(positive, weight, minlength=classes)
    if weight is None:
        return positive.double().sum(0)
    return (positive * (weight if weight.dim() == 2 else weight.unsqueeze(1))).sum(0)


def calibration_error(
    probabilities: Tensor,
    target: Tensor,
    *,
    bins: int = 15,
    sample_weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """Expected calibration error: how far confidence is from the share of hits, on average over bins of confidence.

    Args:
        probabilities: (N, C), whose highest is the answer and the confidence; or (N,), of class 1.
        target: (N,), class indices.
        bins: of equal width.

    NaN if one of the probabilities is, or no sample counts.
    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.

    >>> calibration_error(torch.tensor([[0.9, 0.1], [0.7, 0.3]]), torch.tensor([0, 1]))
    tensor(0.4000, dtype=torch.float64)
    """
    check_number(bins, "bins", least=1, whole=True)
    p, rows, weight = _probabilities(probabilities, target, sample_weight, ignore_index)
    confidence, hit = confidences(p, rows)
    table = torch.zeros(1, bins, 3, dtype=torch.float64, device=p.device)
    tallies.add_calibration(table, confidence, hit, weight, labels=False)
    error = tallies.calibration_error(table)
    return torch.where(p.isnan().any(), torch.nan, error)


def confidences(p: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row: the probability of the answer and whether it is right; of one column, that of class 1."""
    if p.shape[1] == 1:
        return p.squeeze(1), rows == 1
    confidence, answer = p.max(1)
    return confidence, answer == rows


def brier_score(
    probabilities: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, ignore_index: int | None = -100
) -> Tensor:
    r"""Mean squared error of probabilities, summed over classes: in [0, 2], and of one probability in [0, 1].

    The arguments are those of :func:`imbloss.metrics.calibration_error`.

    >>> brier_score(torch.tensor([[0.9, 0.1], [0.7, 0.3]]), torch.tensor([0, 1]))
    tensor(0.5000, dtype=torch.float64)
    """
    p, rows, weight = _probabilities(probabilities, target, sample_weight, ignore_index)
    loss = squared_errors(p, rows)
    return (loss * weight).sum() / weight.sum()


def squared_errors(p: Tensor, rows: Tensor) -> Tensor:
    """Of each row, float64, summed over classes; of one column, that of class 1. Rows that do not count have any."""
    p = p.double()
    if p.shape[1] == 1:
        return (p.squeeze(1) - (rows == 1).double()) ** 2
    own = p.gather(1, rows.clamp(min=0).unsqueeze(1)).squeeze(1)
    return (p * p).sum(1) - 2 * own + 1


def _probabilities(p, target, sample_weight, ignore_index) -> tuple[Tensor, Tensor, Tensor]:
    inputs.check_scores(p, "probabilities")
    check_labels(target)
    p = p.detach()
    classes = 2 if p.dim() == 1 else p.shape[-1]
    if p.dim() not in (1, 2) or target.dim() != 1 or len(p) != len(target):
        raise ValueError(
            f"expected probabilities of shape (N,) or (N, C) beside N targets, "
            f"but got {tuple(p.shape)} and {tuple(target.shape)}"
        )
    rows = inputs.rows_of_classes(target, classes, ignore_index)
    p = p.unsqueeze(1) if p.dim() == 1 else p
    weight = inputs.rows_of_weights(sample_weight, target)
    p, rows, weight = of_counted(p, rows, weight)
    if not inputs.are_probabilities(p, rows >= 0, sum_to_one=p.shape[1] > 1):
        raise ValueError("expected probabilities in [0, 1] that sum to 1, but got others")
    return p, rows, torch.ones(len(rows), dtype=torch.float64, device=p.device) if weight is None else weight
