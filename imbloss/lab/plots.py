"""Pictures of a loss test."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from imbloss.lab.arms import title_of
from imbloss.lab.scores import recalls


def mean_confusion(results: dict, method: str) -> np.ndarray:
    return np.mean([run["confusion"] for run in results["runs"] if run["method"] == method], axis=0)


def plot_recall(results: dict, path: Path) -> None:
    """Recall per class, the most frequent class first, a line per method."""
    counts = np.array(results["data"]["train_counts"])
    order = np.argsort(-counts, kind="stable")
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for method in results["settings"]["methods"]:
        recall = np.array([recalls(np.array(r["confusion"])) for r in results["runs"] if r["method"] == method])
        line = axes.plot(recall.mean(0)[order], marker="o", label=title_of(method))[0]
        low, high = recall.min(0)[order], recall.max(0)[order]
        axes.fill_between(range(len(order)), low, high, color=line.get_color(), alpha=0.08)
    axes.set_xticks(range(len(order)), [f"{c}\nn = {counts[c]}" for c in order])
    axes.set(xlabel="class, by number of training samples", ylabel="recall on the test set", ylim=(-0.03, 1.03))
    axes.set_title("What each method recalls (mean over seeds; shaded: least to most)")
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_confusion(results: dict, path: Path) -> None:
    """Mean confusion matrix of each method, rows (truth) summing to 1."""
    methods = results["settings"]["methods"]
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 4 * rows), layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    for axis in axes.flat[len(methods) :]:
        axis.set_visible(False)
    shares = ScalarMappable(Normalize(0, 1), "Blues")
    for axis, method in zip(axes.flat, methods, strict=False):
        confusion = mean_confusion(results, method)
        axis.imshow(confusion / confusion.sum(1, keepdims=True), norm=shares.norm, cmap=shares.cmap)
        axis.set(title=title_of(method), xlabel="predicted", ylabel="truth")
    figure.colorbar(shares, ax=axes, shrink=0.7, label="share of the class")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_calibration(results: dict, path: Path) -> None:
    """How often the answer is right over how sure the model is, a line per method; bins of all seeds together."""
    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    for method in results["settings"]["methods"]:
        bins = np.sum([run["calibration"] for run in results["runs"] if run["method"] == method], axis=0)
        samples, confidence, hits = bins[bins[:, 0] > 0].T
        axes.plot(confidence / samples, hits / samples, marker="o", label=title_of(method))
    axes.set(xlabel="confidence", ylabel="share of right answers", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.set_title("How sure each method is, and how right")
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
