"""A report in pictures. Needs matplotlib."""

from typing import Any

import numpy as np
from torch import Tensor

MOST = 40  # classes whose names are shown, and curves that are named


def plot(
    found: dict[str, Any], class_names: list[str], order: Tensor, curves: list[tuple[Tensor, Tensor]], *, labels: bool
) -> Any:
    """A figure and its axes, (2, 2): bars, confusion, precision-recall, ROC; the most frequent class first."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need the extra: pip install 'imbloss[metrics]'") from error

    counts = order.cpu().numpy()
    ordered = np.argsort(-counts, kind="stable")
    names = [class_names[c] for c in ordered]
    figure = Figure(figsize=(13, 10), layout="constrained")
    axes = figure.subplots(2, 2)
    _bars(axes[0, 0], found, ordered, names, counts)
    if labels:
        axes[0, 1].set_axis_off()
    else:
        _confusion(axes[0, 1], found["confusion"].cpu().numpy()[:, : len(names)], ordered, names)
    _curves(axes[1], curves, ordered, names, found)
    return figure, axes


def _bars(axes: Any, found: dict[str, Any], ordered: np.ndarray, names: list[str], counts: np.ndarray) -> None:
    rates = ("precision", "recall", "f1")
    at = np.arange(len(names))
    for i, rate in enumerate(rates):
        values = found["classes"][rate].cpu().numpy()[ordered]
        axes.bar(at + (i - 1) * 0.27, np.nan_to_num(values), 0.27, label=rate)
    if len(names) <= MOST:
        axes.set_xticks(at, [f"{name}\nn = {counts[c]:g}" for name, c in zip(names, ordered, strict=True)])
    axes.set(ylim=(0, 1.02), xlabel="class, the most frequent first", title="Each class")
    axes.legend(loc="lower left")
    axes.grid(axis="y", alpha=0.3)


def _confusion(axes: Any, confusion: np.ndarray, ordered: np.ndarray, names: list[str]) -> None:
    confusion = confusion[np.ix_(ordered, ordered)]
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1e-300)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(names) <= MOST:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="truth", title="Confusion, shares of the true class")
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def _curves(axes: Any, curves: list[tuple[Tensor, Tensor]], ordered: np.ndarray, names: list[str], found: dict) -> None:
    areas = [found["classes"].get(name) for name in ("average_precision", "auroc")]
    for name, c in zip(names, ordered, strict=True):
        if not curves or len(curves[c][0]) == 0:
            continue
        tp, fp = (np.concatenate([[0.0], t.cpu().numpy()]) for t in curves[c])
        if tp[-1] <= 0 or fp[-1] <= 0:
            continue
        tp, fp = tp[np.r_[True, np.diff(tp + fp) > 0]], fp[np.r_[True, np.diff(tp + fp) > 0]]
        texts = [f"{name}, {float(values[c]):.3f}" if len(names) <= 12 else None for values in areas]
        recall, precision = tp / tp[-1], tp[1:] / (tp + fp)[1:]
        axes[0].step(recall[1:], precision, where="pre", label=texts[0], linewidth=1)
        axes[1].plot(fp / fp[-1], recall, label=texts[1], linewidth=1)
    axes[1].plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes[0].set(xlabel="recall", ylabel="precision", title="Precision and recall, average precision")
    axes[1].set(xlabel="false positive rate", ylabel="recall", title="ROC, area below")
    for axis in axes:
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")
