"""Trains one model per method and seed and collects what each buys."""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import imbloss
from imbloss import _C
from imbloss.lab.data import Data, load, long_tailed_counts
from imbloss.lab.methods import METHODS, Method, for_test_prior
from imbloss.lab.models import MODELS
from imbloss.lab.scores import evaluate


def train(
    data: Data, loss: nn.Module, *, model: str, epochs: int, batch_size: int, learning_rate: float, seed: int
) -> nn.Module:
    """A fresh model, trained with Adam. The seed alone decides its initial weights and its batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MODELS[model](tuple(data.x_train.shape[1:]), data.num_classes)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.y_train), generator=generator).split(batch_size):
            optimizer.zero_grad()
            loss(network(data.x_train[batch]), data.y_train[batch]).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def predict(network: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([network(part) for part in x.split(4096)])


# Name -> ratio of the training set's most to its least frequent class in the test set: forward, uniform, backward.
SHIFTS = {"50:1": 50, "10:1": 10, "1:1": 1, "1:10": 1 / 10, "1:50": 1 / 50}
CORRECTIONS = ("none", "known", "estimated")


def shifted_accuracy(method: Method, predicted: Tensor, data: Data, counts: Tensor) -> dict[str, dict[str, float]]:
    """Accuracy on long-tailed parts of the test set, the classes in the training set's order: shift -> correction ->
    accuracy, where the scores are left as they are, corrected to the test set's prior, or to their own estimate of it.

    As table 2 of Hong et al. 2021 has it.
    """
    order = counts.argsort(descending=True, stable=True).tolist()
    accuracy = {}
    for name, ratio in SHIFTS.items():
        wanted = long_tailed_counts(len(order), int(data.test_counts.min()), max(ratio, 1 / ratio))
        wanted = wanted if ratio >= 1 else wanted[::-1]
        rows = torch.cat([(data.y_test == c).nonzero()[:n, 0] for c, n in zip(order, wanted, strict=True)])
        part, y = predicted[rows], data.y_test[rows]
        prior = torch.bincount(y, minlength=len(order)).double() / len(y)
        corrected = {
            "none": part,
            "known": for_test_prior(part, method, counts, prior),
            "estimated": for_test_prior(part, method, counts, None),
        }
        accuracy[name] = {c: float((corrected[c].argmax(1) == y).double().mean()) for c in CORRECTIONS}
    return accuracy


def compare(
    source: str = "digits",
    *,
    methods: Sequence[str] = tuple(METHODS),
    imbalance_ratio: float | None = 100.0,
    model: str = "mlp",
    seeds: int = 5,
    epochs: int = 60,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    shift: bool = False,
    progress: Callable[[str, int], None] = lambda method, seed: None,
) -> dict:
    """The loss test.

    For each seed: a split of the data, initial weights and batches, the same for every method.

    Args:
        source: see :func:`imbloss.lab.load`; ``imbalance_ratio`` likewise.
        methods: names from ``imbloss.lab.methods.METHODS``.
        model: "mlp" or "cnn".
        seeds: number of repetitions, seeded 0, 1, ...
        shift: also test on long-tailed parts of the test set, for SHIFTS.
        progress: called before each run.

    Returns:
        {"settings", "versions", "data", "runs"}, ready for JSON: a run has method, seed, scores, confusion matrix and
        bins of calibration; with `shift` also the accuracy for each test set and correction.

    Raises:
        DataError: the data cannot be used.
        ValueError: an unknown method or model, a number that is not positive, or a training that diverged.
    """
    if len(set(methods)) < len(methods) or not methods:
        raise ValueError(f"expected methods once each, but got {', '.join(methods) or 'none'}")
    for name in methods:
        if name not in METHODS:
            raise ValueError(f"expected methods among {', '.join(METHODS)}, but got {name!r}")
    if model not in MODELS:
        raise ValueError(f"expected model among {', '.join(MODELS)}, but got {model!r}")
    numbers = {"seeds": seeds, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"expected {name} > 0 and finite, but got {value}")
    options = {"model": model, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    data = load(source, imbalance_ratio=imbalance_ratio, seed=0)
    counts, test_counts = data.train_counts, data.test_counts  # the same for every seed
    runs = []
    for seed in range(seeds):
        data = load(source, imbalance_ratio=imbalance_ratio, seed=seed)
        trained = {}  # method -> logits of the test set
        for name in methods:
            progress(name, seed)
            method = METHODS[name]
            key = method.trained_as or name
            started = time.perf_counter()
            if key not in trained:
                trained[key] = predict(train(data, method.loss(counts), seed=seed, **options), data.x_test)
                if not trained[key].isfinite().all():
                    raise ValueError(f"training with {name} diverged (seed {seed}): the model's outputs are not finite")
            predicted = method.scores(trained[key], counts)
            run = {
                "method": name,
                "seed": seed,
                "seconds": round(time.perf_counter() - started, 3),
                **evaluate(predicted, data.y_test),
            }
            if shift:
                run["shift"] = shifted_accuracy(method, predicted, data, counts)
            runs.append(run)
    return {
        "settings": {
            "source": data.name,
            "methods": list(methods),
            "imbalance_ratio": imbalance_ratio,
            "seeds": seeds,
            **options,
        },
        "versions": {
            "imbloss": imbloss.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "isa": _C.isa(),
        },
        "data": {"train_counts": counts.tolist(), "test_counts": test_counts.tolist()},
        "runs": runs,
    }


def summary(results: dict) -> dict[str, dict[str, tuple[float, float]]]:
    """Method -> score -> mean and standard deviation (n - 1) over seeds; the deviation of one seed is NaN."""
    table = {}
    for name in results["settings"]["methods"]:
        runs = [run["scores"] for run in results["runs"] if run["method"] == name]
        table[name] = {score: _mean_and_deviation([run[score] for run in runs]) for score in runs[0]}
    return table


def shift_summary(results: dict) -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """(method, correction) -> shift -> mean and standard deviation (n - 1) of the accuracy over seeds."""
    table = {}
    for name in results["settings"]["methods"]:
        runs = [run["shift"] for run in results["runs"] if run["method"] == name]
        for correction in CORRECTIONS:
            values = {shift: [run[shift][correction] for run in runs] for shift in SHIFTS}
            table[name, correction] = {shift: _mean_and_deviation(v) for shift, v in values.items()}
    return table


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)
