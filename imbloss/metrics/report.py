"""ImbalanceReport: what a classifier does for each class, from one pass over its scores."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from imbloss.metrics import bootstrap, functional, margins, ranking, tallies
from imbloss.metrics.blocks import Blocks
from imbloss.metrics.margins import RATES, Counts
from imbloss.metrics.reading import TASKS, Reader, Tables
from imbloss.priors import check_number, describe

SCALES = ("auto", "logits", "probabilities")
CURVES = ("exact", "histogram", "none")


class Kept(NamedTuple):
    """All rows that count, see :class:`Reader`; the weight is None if all are 1."""

    scores: Tensor
    target: Tensor
    weight: Tensor | None
    probabilities: bool


class ImbalanceReport(Metric):
    """Every number that imbalance asks for, of each class and on average, as a torchmetrics ``Metric``.

    Feed it with ``update(preds, target, sample_weight=None)``; ``compute()`` returns the single numbers, ready for
    ``log_dict``, ``report()`` a text like scikit-learn's, ``to_dict()`` everything, ``plot()`` pictures,
    ``bootstrap()`` intervals. On several processes each of these is called by all.

    Args:
        num_classes: C; 2 for "binary".
        class_names: of the classes, in their order.
        train_counts: training samples per class, shape (C,): many, medium and few-shot accuracy, and plots' order.
        task: "multiclass": preds (N, C, d1, ...), targets class indices (N, d1, ...). "binary": preds (N, d1, ...),
            the score of class 1. "multilabel": preds and targets 0 or 1 (N, C, d1, ...), each class its own question.
        scores: "logits", "probabilities" or "auto": probabilities if all that was seen can be (of "multiclass", if
            they sum to 1, too), which is decided when everything is there.
        curves: "exact" keeps all scores in float32 for exact AUROC and average precision. "histogram" keeps `bins`
            counts per class; the report states a bound of the error. "none" keeps the confusion matrix alone, and
            takes predicted classes, too. The latter two must be told `scores` where they look at their values.
        bins: of "histogram", equally wide in log odds between -20 and 20.
        threshold: probability above which the answer is 1, of "binary" and "multilabel".
        calibration_bins: of the expected calibration error.
        ignore_index: target that does not count.
        many, few: more than `many` training samples are many, less than `few` are few.

    A class without samples has NaN and is left out of averages; what is undefined else is 0, such as the precision of a
    class that is never predicted. A sample with a NaN among its scores is missed: it is nobody's prediction (a label's
    is taken as wrong), and AUROC, average precision and calibration that would need it are NaN.

    Raises:
        TypeError, ValueError, IndexError: arguments, shapes and dtypes, and on CPU classes that are not as expected.

    >>> report = ImbalanceReport(3, class_names=["cat", "dog", "owl"])
    >>> logits = torch.tensor([[2.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 2]])
    >>> report.update(logits, torch.tensor([0, 0, 0, 1, 2]))
    >>> report.compute()["balanced_accuracy"]
    tensor(0.5556)
    >>> print(report.report(digits=2))
                pre    rec    spe     f1    geo    iba  auroc     ap    sup
    <BLANKLINE>
    cat        0.67   0.67   0.50   0.67   0.58   0.34   0.75   0.81      3
    dog        0.00   0.00   0.75   0.00   0.00   0.00   0.38   0.25      1
    owl        1.00   1.00   1.00   1.00   1.00   1.00   1.00   1.00      1
    <BLANKLINE>
    macro      0.56   0.56   0.75   0.56   0.53   0.45   0.71   0.69      5
    micro      0.60   0.60   0.80   0.60   0.69   0.47      -      -      5
    weighted   0.60   0.60   0.65   0.60   0.55   0.40   0.72   0.73      5
    <BLANKLINE>
    accuracy                    0.60
    balanced accuracy           0.56
    geometric mean of recalls   0.00
    Matthews' correlation       0.29
    Cohen's kappa               0.29
    worst recall                0.00  dog
    expected calibration error  0.26
    Brier score                 0.50
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    confusion: Tensor
    calibration: Tensor
    brier: Tensor
    broken: Tensor
    histogram: Tensor
    preds: list[Tensor]
    target: list[Tensor]
    weight: list[Tensor]
    train_counts: Tensor | None

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        train_counts: Tensor | None = None,
        *,
        task: str = "multiclass",
        scores: str = "auto",
        curves: str = "exact",
        bins: int = 2048,
        threshold: float = 0.5,
        calibration_bins: int = 15,
        ignore_index: int | None = -100,
        many: float = 100,
        few: float = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value, allowed in (("task", task, TASKS), ("scores", scores, SCALES), ("curves", curves, CURVES)):
            if value not in allowed:
                raise ValueError(f"expected {name} among {', '.join(allowed)}, but got {value!r}")
        check_number(num_classes, "num_classes", least=1 if task == "multilabel" else 2, whole=True)
        if task == "binary" and num_classes != 2:
            raise ValueError(f"expected num_classes=2 for task='binary', but got {num_classes}")
        if curves == "histogram" and scores == "auto":
            raise ValueError("expected scores among logits, probabilities beside curves='histogram', but got 'auto'")
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"expected {num_classes} class_names, but got {len(class_names)}")
        check_number(bins, "bins", least=2, whole=True)
        check_number(calibration_bins, "calibration_bins", least=1, whole=True)
        check_number(threshold, "threshold", least=0, most=1)
        if train_counts is not None:
            functional.check_shots(train_counts, num_classes, many, few)
            train_counts = train_counts.detach().clone()
        self.register_buffer("train_counts", train_counts, persistent=False)
        self.reader = Reader(task, num_classes, threshold, ignore_index)
        self.class_names = list(map(str, range(num_classes) if class_names is None else class_names))
        self.scores, self.curves, self.many, self.few = scores, curves, many, few
        self.calibration_bins, self.bins = calibration_bins, bins
        if curves == "exact":
            for name in ("preds", "target", "weight"):
                self.add_state(name, [], dist_reduce_fx="cat")
        else:
            for name, zeros in self._tables().items():
                self.add_state(name, zeros, dist_reduce_fx="sum")
        self._found: dict[str, Any] = {}
        self._blocks = Blocks()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        for name in ("preds", "target", "weight"):
            if isinstance(state.get(name), list) and state[name]:
                state[name] = [torch.cat(state[name])]  # a part of a block would be written with all of it
        return state

    def _tables(self) -> Tables:
        calibration_bins = 0 if self.curves == "none" else self.calibration_bins
        return self.reader.tables(calibration_bins, self.bins if self.curves == "histogram" else 0)

    def update(self, preds: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> None:
        """Adds a batch; see the class."""
        for name, value in (("preds", preds), ("target", target)):
            if not isinstance(value, Tensor):
                raise TypeError(f"expected {name} to be a tensor, but got {describe(value)}")
        rows, weight = self.reader.targets(target, sample_weight)
        if self.curves == "none" and not preds.is_floating_point():
            answer = self.reader.given_answers(preds, target)
            self.reader.add_answers({"confusion": self.confusion}, answer, rows, weight)
            return
        scores = self.reader.scores(preds.detach(), target)
        if self.curves == "exact":
            self.preds.append(self._blocks.keep(scores))
            self.target.append(rows.clone())
            ones = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
            self.weight.append(ones if weight is None else weight.clone())
            return
        if self.scores == "auto" and self.reader.task != "multiclass":
            raise ValueError("expected scores among logits, probabilities beside a threshold, but got 'auto'")
        tables = {name: getattr(self, name) for name in self._defaults}
        self.reader.add(tables, scores, rows, weight, self.scores == "probabilities")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        if self.curves == "exact" and not self.preds:  # a process without data takes part in the gathering
            of_labels = (0, self.reader.columns), torch.int8
            shape, dtype = of_labels if self.reader.labels else ((0,), torch.int64)
            self.preds.append(torch.empty(0, self.reader.columns, device=self.device))
            self.target.append(torch.empty(shape, dtype=dtype, device=self.device))
            self.weight.append(torch.empty(0, dtype=torch.float64, device=self.device))
        super().sync(*args, **kwargs)

    def _kept(self) -> Kept:
        if len(self.preds) == 0:
            shape = (0, self.reader.columns)
            target = torch.empty(shape if self.reader.labels else shape[:1], dtype=torch.int64, device=self.device)
            return Kept(torch.empty(shape, device=self.device), target, None, True)
        scores, target, weight = (dim_zero_cat(state) for state in (self.preds, self.target, self.weight))
        weight = None if bool((weight == 1).all()) else weight
        if not self.reader.labels:
            scores, target, weight = functional.of_counted(scores, target, weight)
        probabilities = self.scores == "probabilities"
        if self.scores == "auto":
            probabilities = self.reader.are_probabilities(scores, target)
        return Kept(scores, target, weight, probabilities)

    def _positives(self, kept: Kept) -> tuple[Tensor, Tensor | None]:
        if self.reader.labels:
            return functional.of_labels(kept.target, kept.weight)
        return kept.target, kept.weight

    # ---- out -----------------------------------------------------------------------------------------------------
    def compute(self) -> dict[str, Tensor]:
        """The single numbers, 0-dim and float32: accuracy, balanced_accuracy, g_mean, mcc, kappa, worst_recall, those
        of shots, auroc, average_precision, ece, brier, and the rates' macro means."""
        if self.curves == "exact":
            kept = self._kept()
            tables = {name: zeros.to(self.device) for name, zeros in self._tables().items()}
            for start in range(0, len(kept.scores), self.reader.step):
                part = slice(start, start + self.reader.step)
                weight = None if kept.weight is None else kept.weight[part]
                self.reader.add(tables, kept.scores[part], kept.target[part], weight, kept.probabilities)
            found = self._of_tables(tables)
            ranks = self.reader.ranks(kept.scores, kept.probabilities)
            self._add_areas(found, *ranking.auroc_and_average_precision(ranks, *self._positives(kept)))
        else:
            found = self._of_tables({name: getattr(self, name) for name in self._defaults})
            if self.curves == "histogram":
                auroc, average_precision, *bounds = tallies.histogram_areas(self.histogram)
                nan = self.broken > 0
                self._add_areas(found, auroc.masked_fill(nan, torch.nan), average_precision.masked_fill(nan, torch.nan))
                found["error_bounds"] = dict(zip(("auroc", "average_precision"), bounds, strict=True))
        self._found = found
        return {name: value.float() for name, value in _flat(found).items()}

    def _summary(self, counts: Counts) -> dict[str, Any]:
        train_counts = self.train_counts
        labels = self.reader.labels
        return margins.summary(counts, labels=labels, train_counts=train_counts, many=self.many, few=self.few)

    def _of_tables(self, tables: Tables) -> dict[str, Any]:
        confusion = tables["confusion"]
        counts = Counts(*confusion) if self.reader.labels else margins.of_confusion(confusion)
        found = {"counts": counts, "confusion": confusion.clone(), **self._summary(counts)}
        if self.curves != "none":
            found |= {name: tables[name].clone() for name in ("broken", "calibration")}
            nan = (tables["broken"] > 0).any()
            squares, weight = tables["brier"]
            ece = tallies.calibration_error(tables["calibration"])
            found["single"]["ece"] = torch.where(nan, torch.nan, ece)
            found["single"]["brier"] = torch.where(nan, torch.nan, squares / weight)
        return found

    def _add_areas(self, found: dict[str, Any], auroc: Tensor, average_precision: Tensor) -> None:
        support, nan = found["counts"].support, (found["broken"] > 0).any()
        for name, values in (("auroc", auroc), ("average_precision", average_precision)):
            values = torch.where(support > 0, values, torch.nan)
            found["classes"][name] = values
            for kind, weight in (("macro", None), ("weighted", support)):
                found["averages"][kind][name] = torch.where(nan, torch.nan, margins.mean(values, weight))
            found["single"][name] = found["averages"]["macro"][name]

    def findings(self) -> dict[str, Any]:
        """What :meth:`compute` found, float64 tensors: "single", "averages", "classes", "confusion", "counts",
        "calibration" and, of histograms, "error_bounds"."""
        self.compute()
        return self._found

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, lists and dictionaries: the single numbers, "averages", "classes" by name,
        "worst_class" and "confusion", whose last column are samples without an answer (of labels, (4, C): hits,
        positives, predictions and elements)."""
        found = self.findings()
        support = found["counts"].support
        result: dict[str, Any] = {name: float(value) for name, value in found["single"].items()}
        result["worst_class"] = self._worst_class(found)
        result["averages"] = {
            kind: {name: float(value) for name, value in means.items()} for kind, means in found["averages"].items()
        }
        result["classes"] = {
            name: {rate: float(values[c]) for rate, values in found["classes"].items()} | {"support": float(support[c])}
            for c, name in enumerate(self.class_names)
        }
        result["confusion"] = found["confusion"].tolist()
        if "error_bounds" in found:
            result["error_bounds"] = {name: float(b.nan_to_num().max()) for name, b in found["error_bounds"].items()}
        return result

    def _worst_class(self, found: dict[str, Any]) -> str | None:
        present = found["counts"].support > 0
        worst = int(torch.where(present, found["classes"]["recall"], torch.inf).argmin())
        return self.class_names[worst] if bool(present[worst]) else None

    def report(self, digits: int = 3) -> str:
        """A table of the classes and their averages, a line for each single number, and what to know of them."""
        from imbloss.metrics.text import report

        found = self.findings()
        return report(found, self.class_names, self._worst_class(found), digits)

    def plot(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Precision, recall and F1 per class ordered by training frequency, the confusion matrix, and precision-recall
        and ROC curves: a matplotlib figure and its axes, (2, 2)."""
        from imbloss.metrics.plots import plot

        found = self.findings()
        order = found["counts"].support if self.train_counts is None else self.train_counts
        return plot(found, self.class_names, order, self._curves(), labels=self.reader.labels)

    def _curves(self) -> list[tuple[Tensor, Tensor]]:
        """Of each class, true and false positives from the highest score down."""
        if self.curves == "none":
            return []
        with self.sync_context():
            if self.curves == "histogram":
                negative, positive = self.histogram.flip(1).cumsum(1).unbind(-1)
                return list(zip(positive, negative, strict=True))
            kept = self._kept()
            return list(ranking.curves(self.reader.ranks(kept.scores, kept.probabilities), *self._positives(kept)))

    # ---- how sure ------------------------------------------------------------------------------------------------
    def bootstrap(
        self, n: int = 1000, *, confidence: float = 0.95, seed: int = 0, areas: bool = False
    ) -> dict[str, Tensor]:
        """Percentile intervals from resampled samples.

        Args:
            n: replicates.
            confidence: of the intervals, in (0, 1).
            seed: of the draws.
            areas: of AUROC, average precision, ECE and Brier score, too, which takes n C N steps of arithmetic.

        Returns:
            Of each single number of :meth:`compute`, (low, high), shape (2,); of precision, recall, f1 (and with
            `areas` of auroc and average_precision) of each class, as "recall_per_class" and so on, shape (C, 2). A
            replicate where a number is undefined is left out of its interval.

        Raises:
            ValueError: something is needed that only curves="exact" keeps: for `areas`, labels and sample_weight.
        """
        check_number(n, "n", least=1, whole=True)
        check_number(confidence, "confidence", above=0)
        if confidence >= 1:
            raise ValueError(f"expected confidence in (0, 1), but got {confidence}")
        if self.curves != "exact" and (areas or self.reader.labels):
            raise ValueError(f"expected curves='exact' to resample areas or labels, but got {self.curves!r}")
        with self.sync_context():
            parts = list(self._replicates(n, seed, areas))
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: bootstrap.interval(values, confidence).float() for name, values in joined.items()}

    def _replicates(self, n: int, seed: int, areas: bool):
        """Of some replicates after the other: name -> (replicates,) or (replicates, C)."""
        if self.curves == "exact":
            kept = self._kept()
            answer = self.reader.answers(kept.scores, kept.target, kept.probabilities)
            if areas or kept.weight is not None or self.reader.labels:
                samples = bootstrap.Samples(
                    self.reader, kept.scores, kept.target, answer, kept.probabilities, self.calibration_bins
                )
                ones = torch.ones(len(answer), dtype=torch.int64, device=answer.device)
                for times in bootstrap.draws(ones, n, seed):
                    times = times if kept.weight is None else times * kept.weight
                    yield _per_class(self._summary(samples.counts(times))) | (samples.areas(times) if areas else {})
                return
            confusion = self.reader.tables(0, 0)["confusion"].to(self.device)
            self.reader.add_answers({"confusion": confusion}, answer, kept.target, None)
        else:
            confusion = self.confusion
            if bool((confusion != confusion.round()).any()):
                raise ValueError(f"expected curves='exact' to resample weighted samples, but got {self.curves!r}")
        target, answer = confusion.nonzero().unbind(1)
        for times in bootstrap.draws(confusion[target, answer].long(), n, seed):
            counts = bootstrap.counts_of_cells(times, target, answer, self.reader.num_classes)
            yield _per_class(self._summary(counts))


def _flat(found: dict[str, Any]) -> dict[str, Tensor]:
    macro = found["averages"]["macro"]
    return found["single"] | {f"macro_{name}": macro[name] for name in RATES if name != "g_mean"}


def _per_class(found: dict[str, Any]) -> dict[str, Tensor]:
    return _flat(found) | {f"{name}_per_class": found["classes"][name] for name in ("precision", "recall", "f1")}
