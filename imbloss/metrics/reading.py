"""How a report reads its input: what of a batch is an answer, a probability, a rank, for each task."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imbloss.metrics import functional, inputs, tallies

TASKS = ("multiclass", "binary", "multilabel")
ROWS = 2**22  # scores that are looked at at a time
Tables = dict[str, Tensor]


def _sigmoid(odds: Tensor) -> Tensor:
    """In float64 and rounded: the last digit of a float32 sigmoid depends on where in the batch it is computed."""
    return odds.double().sigmoid().float()


@dataclass(frozen=True)
class Reader:
    """Rows are scores (n, C), of "binary" (n, 1); targets (n,), or labels (n, C), -1 where they do not count; weights
    (n,)."""

    task: str
    num_classes: int
    threshold: float
    ignore_index: int | None

    @property
    def labels(self) -> bool:
        return self.task == "multilabel"

    @property
    def columns(self) -> int:
        return 1 if self.task == "binary" else self.num_classes

    @property
    def step(self) -> int:
        return max(1, ROWS // self.num_classes)

    # ---- what callers hand in ------------------------------------------------------------------------------------
    def targets(self, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        read = inputs.rows_of_labels if self.labels else inputs.rows_of_classes
        rows = read(target, self.num_classes, self.ignore_index)
        return rows, inputs.rows_of_weights(weight, target, labels=self.labels)

    def scores(self, preds: Tensor, target: Tensor) -> Tensor:
        inputs.check_scores(preds)
        if self.task == "multiclass":
            if preds.shape == target.shape and self.num_classes == 2:
                raise ValueError(
                    f"expected preds of shape (N, 2, ...), or task='binary', but got {tuple(preds.shape)} beside a "
                    f"target of the same shape"
                )
            return inputs.rows_of_scores(preds, target, self.num_classes)
        if preds.shape != target.shape:
            raise ValueError(f"expected preds of shape {tuple(target.shape)}, but got {tuple(preds.shape)}")
        return preds.movedim(1, -1).reshape(-1, self.columns) if self.labels else preds.reshape(-1, 1)

    def given_answers(self, preds: Tensor, target: Tensor) -> Tensor:
        """Of predictions that are classes, or labels, already."""
        if not self.labels:
            return inputs.rows_of_answers(preds, target, self.num_classes)
        if preds.shape != target.shape:
            raise ValueError(f"expected preds of shape {tuple(target.shape)}, but got {tuple(preds.shape)}")
        return inputs.rows_of_labels(preds, self.num_classes, None, name="preds")

    # ---- what they mean ------------------------------------------------------------------------------------------
    def are_probabilities(self, scores: Tensor, rows: Tensor) -> bool:
        parts = zip(scores.split(self.step), rows.split(self.step), strict=True)
        sum_to_one = self.task == "multiclass"
        return all(inputs.are_probabilities(s, r >= 0, sum_to_one=sum_to_one) for s, r in parts)

    def answers(self, scores: Tensor, rows: Tensor, probabilities: bool) -> Tensor:
        """Classes, C where there is none; or labels, the wrong one where the score is NaN."""
        if self.task == "multiclass":
            return inputs.answers(scores)
        limit = functional.limit(self.threshold, probabilities)
        if self.task == "binary":
            return inputs.binary_answers(scores, limit)
        return torch.where(scores.isnan(), 1 - rows, (scores > limit).to(rows.dtype))

    def odds(self, scores: Tensor, probabilities: bool) -> Tensor:
        """Log odds, of each class or of class 1."""
        if probabilities:
            return scores.double().logit().float()
        return tallies.log_odds(scores) if self.task == "multiclass" else scores

    def probabilities(self, scores: Tensor, probabilities: bool) -> Tensor:
        return scores if probabilities else _sigmoid(self.odds(scores, False))

    def ranks(self, scores: Tensor, probabilities: bool) -> Tensor:
        """Scores (n, C), one against the rest for each class."""
        if self.task == "binary":
            return torch.cat([-scores, scores], 1)
        if self.labels or probabilities:
            return scores
        return torch.cat([tallies.log_odds(part) for part in scores.split(self.step)])

    # ---- sums ----------------------------------------------------------------------------------------------------
    def tables(self, calibration_bins: int, bins: int) -> Tables:
        """Zeros that :meth:`add` fills; without calibration or histogram where they have no bins."""
        classes = self.num_classes
        shapes: dict[str, tuple[int, ...]] = {"confusion": (4, classes) if self.labels else (classes, classes + 1)}
        if calibration_bins:
            shapes["calibration"] = (classes if self.labels else 1, calibration_bins, 3)
            shapes["brier"] = (2,)
            shapes["broken"] = (classes,)  # samples that count and whose probability is NaN
        if bins:
            shapes["histogram"] = (classes, bins, 2)
        return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def add(self, tables: Tables, scores: Tensor, rows: Tensor, weight: Tensor | None, probabilities: bool) -> None:
        """Adds rows to the tables, in place."""
        self.add_answers(tables, self.answers(scores, rows, probabilities), rows, weight)
        if "calibration" not in tables:
            return
        histogram = tables.get("histogram")
        odds = None if probabilities and histogram is None else self.odds(scores, probabilities)
        p = scores if probabilities or odds is None else _sigmoid(odds)
        counted = rows >= 0
        tables["broken"] += (p.isnan() & (counted if self.labels else counted.unsqueeze(1))).sum(0)
        if self.labels:
            w = counted.double() if weight is None else counted * weight.unsqueeze(1)
            confidence, hit, loss = p, rows == 1, (p - (rows == 1).to(p.dtype)) ** 2
        else:
            w = counted.double() if weight is None else counted * weight
            (confidence, hit), loss = functional.confidences(p, rows), functional.squared_errors(p, rows)
        tallies.add_calibration(tables["calibration"], confidence, hit, w, self.labels)
        tallies.add_brier(tables["brier"], loss, w)
        if odds is not None and histogram is not None:
            odds = torch.cat([-odds, odds], 1) if self.task == "binary" else odds
            tallies.add_histogram(histogram, odds, rows, weight)

    def add_answers(self, tables: Tables, answer: Tensor, rows: Tensor, weight: Tensor | None) -> None:
        add = tallies.add_labels if self.labels else tallies.add_confusion
        add(tables["confusion"], answer, rows, weight)
