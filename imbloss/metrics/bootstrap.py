"""Confidence intervals by drawing the samples again, with replacement: replicates are a dimension of every sum.

Samples that a sum cannot tell apart are drawn together: of a confusion matrix the replicates are draws of its cells.
"""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from imbloss.metrics import functional, margins, ranking, tallies
from imbloss.metrics.margins import Counts
from imbloss.metrics.reading import Reader

CHUNK = 2**22  # numbers that are drawn at a time


def draws(size: Tensor, n: int, seed: int) -> Iterator[Tensor]:
    """How often each group of samples is drawn, (replicates, groups), float64; `size`: samples in each, (groups,)."""
    generator = np.random.default_rng(seed)
    groups, total = len(size), int(size.sum())
    step = max(1, CHUNK // max(groups, 1))
    alike = groups == total  # a group is a sample
    shares = (size.double() / max(total, 1)).cpu().numpy()
    for start in range(0, n, step):
        replicates = min(step, n - start)
        if alike:
            drawn = generator.integers(0, groups, (replicates, groups), dtype=np.int32)
            drawn += np.arange(replicates, dtype=np.int32)[:, None] * np.int32(groups)
            counts = np.bincount(drawn.ravel(), minlength=replicates * groups).reshape(replicates, groups)
        else:
            counts = generator.multinomial(total, shares, replicates)
        yield torch.from_numpy(counts).to(size.device, torch.float64)


def counts_of_cells(times: Tensor, target: Tensor, answer: Tensor, classes: int) -> Counts:
    """Margins of replicates: (target, answer) of each group, an answer C is none; `times`: (replicates, groups)."""

    def sums(where: Tensor, columns: int, values: Tensor) -> Tensor:
        return torch.zeros(len(times), columns, dtype=times.dtype, device=times.device).index_add_(1, where, values)

    hit = sums(target, classes, times * (target == answer))
    support = sums(target, classes, times)
    predicted = sums(answer, classes + 1, times)[:, :classes]
    return Counts(hit, support, predicted, support.sum(1, keepdim=True))


def counts_of_labels(times: Tensor, target: Tensor, answer: Tensor) -> Counts:
    """Margins of replicates of labels (n, C); those that do not count are -1."""
    counted, positive, predicted = target >= 0, target == 1, (answer == 1) & (target >= 0)
    return Counts(*(times @ t.double() for t in (positive & predicted, positive, predicted, counted)))


def areas(times: Tensor, scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """AUROC and average precision of one class's scores (n,), for weights (replicates, n): (replicates,) each."""
    order = scores.argsort(descending=True)
    value, positive, times = scores[order], positive[order], times[:, order]
    end = torch.ones_like(value, dtype=torch.bool)
    torch.ne(value[1:], value[:-1], out=end[:-1])
    tp, fp = (times * positive).cumsum(1)[:, end], (times * ~positive).cumsum(1)[:, end]
    row, column = torch.ones_like(tp, dtype=torch.bool).nonzero().unbind(1)
    return ranking.areas(tp, fp, row, column)


def interval(values: Tensor, confidence: float) -> Tensor:
    """(low, high) in the last dimension, of replicates in the first; those without the number, NaN, are left out."""
    tail = (1 - confidence) / 2
    limits = torch.tensor([tail, 1 - tail], dtype=values.dtype, device=values.device)
    return values.nanquantile(limits, dim=0).movedim(0, -1)


class Samples:
    """Samples that are drawn one by one: what replicates of weights (replicates, n) make of them."""

    def __init__(
        self, reader: Reader, scores: Tensor, target: Tensor, answer: Tensor, probabilities: bool, bins: int
    ) -> None:
        self.reader, self.scores, self.target, self.answer = reader, scores, target, answer
        self.probabilities, self.bins = probabilities, bins

    def counts(self, times: Tensor) -> Counts:
        if self.reader.labels:
            return counts_of_labels(times, self.target, self.answer)
        return counts_of_cells(times, self.target, self.answer, self.reader.num_classes)

    @cached_property
    def _ranks(self) -> Tensor:
        return self.reader.ranks(self.scores, self.probabilities)

    @cached_property
    def _p(self) -> Tensor:
        return self.reader.probabilities(self.scores, self.probabilities)

    def areas(self, times: Tensor) -> dict[str, Tensor]:
        """AUROC and average precision, each class's and their mean, ECE and Brier score."""
        found = {}
        per_class = [self._areas(times, c) for c in range(self.reader.num_classes)]
        for name, values in zip(("auroc", "average_precision"), zip(*per_class, strict=True), strict=True):
            values = torch.stack(values, 1)
            found |= {name: margins.mean(values), f"{name}_per_class": values}
        return found | self._calibration(times)

    def _areas(self, times: Tensor, c: int) -> tuple[Tensor, Tensor]:
        ranks, target = self._ranks[:, c], self.target
        if self.reader.labels:
            counted = target[:, c] >= 0
            ranks, target, times = ranks[counted], target[counted, c] == 1, times[:, counted]
        else:
            target = target == c
        if bool(ranks.isnan().any()):
            nan = torch.full_like(times[:, 0], torch.nan)
            return nan, nan
        return areas(times, ranks, target)

    def _calibration(self, times: Tensor) -> dict[str, Tensor]:
        p, target, bins = self._p, self.target, self.bins
        if not self.reader.labels:
            error = tallies.calibration_errors(*functional.confidences(p, target), times, bins)
            brier = times @ functional.squared_errors(p, target).double() / times.sum(1)
            return {"ece": torch.where(p.isnan().any(), torch.nan, error), "brier": brier}
        counted, hit = target >= 0, target == 1
        errors = [
            tallies.calibration_errors(p[:, c], hit[:, c], times * counted[:, c], bins)
            for c in range(self.reader.num_classes)
        ]
        loss = torch.where(counted, (p - hit.to(p.dtype)) ** 2, 0).double().sum(1)
        nan = (p.isnan() & counted).any()
        return {
            "ece": torch.where(nan, torch.nan, margins.mean(torch.stack(errors, 1))),
            "brier": times @ loss / (times @ counted.double()).sum(1),
        }
