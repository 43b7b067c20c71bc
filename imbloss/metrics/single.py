"""Single metrics that torchmetrics lacks, in its manner: their state is a confusion matrix."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from imbloss.metrics import functional, inputs, margins, tallies
from imbloss.metrics.margins import Counts
from imbloss.priors import check_labels, check_number, describe

SCALES = ("probabilities", "logits")


class ConfusionMetric(Metric):
    """What is computed from a confusion matrix. `update(preds, target, sample_weight=None)` takes what
    :func:`imbloss.metrics.counts` takes."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    confusion: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        scores: str | None = None,
        threshold: float = 0.5,
        ignore_index: int | None = -100,
        **kwargs: Any,
    ) -> None:
        """``scores``: "probabilities" or "logits", which one score a target is; scores for each class need not say."""
        super().__init__(**kwargs)
        check_number(num_classes, "num_classes", least=1, whole=True)
        if scores not in (None, *SCALES):
            raise ValueError(f"expected scores among {SCALES}, but got {scores!r}")
        self.num_classes, self.scores, self.ignore_index = num_classes, scores, ignore_index
        self.limit = functional.limit(threshold, scores == "probabilities")
        zeros = torch.zeros(num_classes, num_classes + 1, dtype=torch.float64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> None:
        check_labels(target)
        if not isinstance(preds, Tensor):
            raise TypeError(f"expected preds to be a tensor, but got {describe(preds)}")
        rows = inputs.rows_of_classes(target, self.num_classes, self.ignore_index)
        if not preds.is_floating_point():
            answer = inputs.rows_of_answers(preds, target, self.num_classes)
        elif preds.shape == target.shape and self.num_classes == 2:
            if self.scores is None:
                raise ValueError(f"expected scores among {SCALES} for one score a target, but got None")
            answer = inputs.binary_answers(preds.reshape(-1, 1), self.limit)
        else:
            answer = inputs.answers(inputs.rows_of_scores(preds, target, self.num_classes))
        tallies.add_confusion(self.confusion, answer, rows, inputs.rows_of_weights(sample_weight, target))

    def compute(self) -> Any:
        return self.of(margins.of_confusion(self.confusion))

    def of(self, counts: Counts) -> Any:
        raise NotImplementedError

    def plot(self, val: Any = None, ax: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A value, or values over steps, as torchmetrics' metrics plot them."""
        return self._plot(val, ax)


class GeometricMean(ConfusionMetric):
    """See :func:`imbloss.metrics.geometric_mean`.

    >>> metric = GeometricMean(2)
    >>> metric.update(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]))
    >>> metric.update(torch.tensor([[0.2, 0.8]]), torch.tensor([1]))
    >>> metric.compute()
    tensor(0.8165)
    """

    def __init__(
        self, num_classes: int, *, average: str | None = "multiclass", correction: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, **kwargs)
        self.average, self.correction = average, correction
        self.of(margins.of_confusion(self.confusion))  # what is wrong with the arguments

    def of(self, counts: Counts) -> Tensor:
        return functional.geometric_mean_of(counts, self.average, self.correction).float()


class BalancedAccuracy(ConfusionMetric):
    """See :func:`imbloss.metrics.balanced_accuracy`.

    >>> BalancedAccuracy(2)(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))
    tensor(0.5000)
    """

    def __init__(self, num_classes: int, *, adjusted: bool = False, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.adjusted = adjusted

    def of(self, counts: Counts) -> Tensor:
        return functional.balanced_accuracy_of(counts, self.adjusted).float()


class IndexBalancedAccuracy(ConfusionMetric):
    """See :func:`imbloss.metrics.index_balanced_accuracy`.

    >>> IndexBalancedAccuracy(2)(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
    tensor(0.6667)
    """

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float = 0.1,
        squared: bool = True,
        average: str | None = "macro",
        score: Callable[[dict[str, Tensor]], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        self.alpha, self.squared, self.average, self.score = alpha, squared, average, score
        self.of(margins.of_confusion(self.confusion))

    def of(self, counts: Counts) -> Tensor:
        values = functional.index_balanced_accuracy_of(counts, self.alpha, self.squared, self.average, self.score)
        return values.float()


class ShotAccuracy(ConfusionMetric):
    """See :func:`imbloss.metrics.shot_accuracy`.

    >>> ShotAccuracy(3, torch.tensor([500, 50, 5]))(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2]))
    {'many': tensor(1.), 'medium': tensor(0.), 'few': tensor(1.)}
    """

    train_counts: Tensor

    def __init__(
        self, num_classes: int, train_counts: Tensor, *, many: float = 100, few: float = 20, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, **kwargs)
        functional.check_shots(train_counts, num_classes, many, few)
        self.register_buffer("train_counts", train_counts.detach().clone(), persistent=False)
        self.many, self.few = many, few

    def of(self, counts: Counts) -> dict[str, Tensor]:
        recall = margins.ratio(counts.hit, counts.support, torch.nan)
        of_shots = margins.shots(recall, self.train_counts, self.many, self.few)
        return {name: value.float() for name, value in of_shots.items()}
