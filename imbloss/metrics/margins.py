"""Everything that a confusion matrix says, from its margins alone. Leading dimensions are replicates of a bootstrap.

Float64 throughout: counts are exact, whatever order or process they were added in.
"""

from typing import NamedTuple

import torch
from torch import Tensor

RATES = ("precision", "recall", "specificity", "f1", "g_mean", "iba")
AVERAGES = ("macro", "micro", "weighted")


class Counts(NamedTuple):
    """Margins of a confusion matrix: for each class its hits, its samples and its predictions, shape (..., C), and the
    number of all samples, (..., 1) or, where labels have their own, (..., C)."""

    hit: Tensor
    support: Tensor
    predicted: Tensor
    total: Tensor

    def of(self, classes: list[int] | Tensor) -> "Counts":
        """Those of some classes; the samples of all others stay in the total."""
        total = self.total if self.total.shape[-1] == 1 else self.total[..., classes]
        return Counts(self.hit[..., classes], self.support[..., classes], self.predicted[..., classes], total)

    def pooled(self) -> "Counts":
        """All classes' one-vs-rest questions as one: the micro average."""
        total = self.total.expand_as(self.hit)
        return Counts(*(t.sum(-1, keepdim=True) for t in (self.hit, self.support, self.predicted, total)))


def of_confusion(confusion: Tensor) -> Counts:
    """Of matrices (..., C, C + 1), rows the truth, the last column samples without an answer; (..., C, C) has none."""
    confusion = confusion.double()
    classes = confusion.shape[-2]
    hit = confusion[..., :classes].diagonal(dim1=-2, dim2=-1)
    return Counts(hit, confusion.sum(-1), confusion.sum(-2)[..., :classes], confusion.sum((-2, -1)).unsqueeze(-1))


def two_sided(counts: Counts) -> Counts:
    """Each class's own question as a problem of two classes, (..., C, 2)."""
    hit, support, predicted, total = counts
    total = total.expand_as(hit)
    other_hit = total - support - predicted + hit

    def both(one: Tensor, other: Tensor) -> Tensor:
        return torch.stack([other, one], -1)

    return Counts(
        both(hit, other_hit), both(support, total - support), both(predicted, total - predicted), total.unsqueeze(-1)
    )


def ratio(numerator: Tensor, denominator: Tensor, undefined: float) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, undefined)


def index_balanced(score: Tensor, recall: Tensor, specificity: Tensor, alpha: float = 0.1, squared: bool = True):
    """(1 + alpha (recall - specificity)) score, of the score's square by default."""
    return (1 + alpha * (recall - specificity)) * (score**2 if squared else score)


def rates(counts: Counts, undefined: float = 0.0, alpha: float = 0.1) -> dict[str, Tensor]:
    """The RATES of each class, (..., C); a rate whose denominator is empty is `undefined`."""
    hit, support, predicted, total = counts
    recall = ratio(hit, support, undefined)
    specificity = ratio(total - support - predicted + hit, total - support, undefined)
    g_mean = (recall * specificity).sqrt()
    return {
        "precision": ratio(hit, predicted, undefined),
        "recall": recall,
        "specificity": specificity,
        "f1": ratio(2 * hit, support + predicted, undefined),
        "g_mean": g_mean,
        "iba": index_balanced(g_mean, recall, specificity, alpha),
    }


def mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Over classes, those with NaN left out; NaN if none is left."""
    there = ~values.isnan()
    weight = there.to(values.dtype) if weight is None else torch.where(there, weight, 0)
    return ratio((torch.where(there, values, 0) * weight).sum(-1), weight.sum(-1), torch.nan)


def geometric_mean(values: Tensor, correction: float = 0.0) -> Tensor:
    """Over classes, those with NaN left out, zeros replaced by the correction."""
    return mean(torch.where(values == 0, correction, values).log()).exp()


def averages(counts: Counts, of: dict[str, Tensor], undefined: float = 0.0) -> dict[str, dict[str, Tensor]]:
    """Macro, micro and support-weighted means of :func:`rates`."""
    micro = rates(counts.pooled(), undefined)
    return {
        "macro": {name: mean(values) for name, values in of.items()},
        "micro": {name: values.squeeze(-1) for name, values in micro.items()},
        "weighted": {name: mean(values, counts.support) for name, values in of.items()},
    }


def accuracy(counts: Counts) -> Tensor:
    """The share of samples that are hits."""
    return ratio(counts.hit.sum(-1), counts.total[..., 0], torch.nan)


def mcc(counts: Counts) -> Tensor:
    """Matthews' correlation coefficient of several classes (Gorodkin 2004); 0 where one side is constant."""
    hit, support, predicted, total = counts
    total = total[..., 0]
    unanswered = total - predicted.sum(-1)
    covariance = hit.sum(-1) * total - (support * predicted).sum(-1)
    truth = total**2 - (support**2).sum(-1)
    answers = total**2 - (predicted**2).sum(-1) - unanswered**2
    value = ratio(covariance, truth.sqrt() * answers.sqrt(), 0.0)
    return torch.where(total > 0, value, torch.nan)


def kappa(counts: Counts) -> Tensor:
    """Cohen's kappa; NaN where chance alone agrees always."""
    hit, support, predicted, total = counts
    total = total[..., 0]
    by_chance = (support * predicted).sum(-1)
    return ratio(hit.sum(-1) * total - by_chance, total**2 - by_chance, torch.nan)


def shots(recall: Tensor, train_counts: Tensor, many: float = 100, few: float = 20) -> dict[str, Tensor]:
    """Mean recall of the classes with > many, with few..many, and with < few training samples."""
    train_counts = train_counts.to(recall.device)
    groups = {
        "many": train_counts > many,
        "medium": (train_counts >= few) & (train_counts <= many),
        "few": train_counts < few,
    }
    return {name: mean(torch.where(group, recall, torch.nan)) for name, group in groups.items()}


def summary(
    counts: Counts, *, labels: bool = False, train_counts: Tensor | None = None, many: float = 100, few: float = 20
) -> dict[str, dict]:
    """What a report says: "single" numbers, "averages" and the rates of "classes".

    Classes without a sample have NaN and are left out of averages. `labels`: each class is a question of its own.
    """
    present = counts.support > 0
    classes = {name: torch.where(present, values, torch.nan) for name, values in rates(counts).items()}
    recall = classes["recall"]
    if labels:
        own = two_sided(counts)
        single = {
            "accuracy": ratio(own.hit.sum((-2, -1)), own.total.sum((-2, -1)), torch.nan),
            "balanced_accuracy": mean((recall + classes["specificity"]) / 2),
            "g_mean": mean(classes["g_mean"]),
            "mcc": mean(mcc(own)),
            "kappa": mean(kappa(own)),
        }
    else:
        single = {
            "accuracy": accuracy(counts),
            "balanced_accuracy": mean(recall),
            "g_mean": geometric_mean(recall),
            "mcc": mcc(counts),
            "kappa": kappa(counts),
        }
    worst = torch.where(present, recall, torch.inf).amin(-1)
    single["worst_recall"] = torch.where(present.any(-1), worst, torch.nan)
    if train_counts is not None:
        of_shots = shots(recall, train_counts, many, few)
        single |= {f"{name}_shot_accuracy": value for name, value in of_shots.items()}
    return {"single": single, "averages": averages(counts, classes), "classes": classes}
