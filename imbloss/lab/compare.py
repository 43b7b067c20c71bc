"""Trains one model per method and seed and collects what each buys."""

import itertools
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
from imbloss.lab.methods import METHODS, Method, for_test_prior, named
from imbloss.lab.models import MODELS
from imbloss.lab.sampling import ALL, Draws, samplings
from imbloss.lab.scores import SCORES, confusion_matrix, scores


def train(
    data: Data,
    loss: nn.Module | Callable[[Tensor], nn.Module],
    *,
    model: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    draws: Draws | None = None,
) -> nn.Module:
    """A fresh model, trained with Adam. Its initial weights depend on the seed alone, its batches on seed and sampling.

    Args:
        loss: a module, or what makes one of the class counts of an epoch's draws.
        draws: None: the training set as it is.
    """
    draws = draws or ALL["none"].draws(data, epochs, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MODELS[model](tuple(data.x_train.shape[1:]), data.num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for rows, counts in zip(draws.rows(), draws.counts, strict=True):
        criterion = loss if isinstance(loss, nn.Module) else loss(counts)
        for batch in rows.split(batch_size):
            optimizer.zero_grad()
            criterion(network(draws.x[batch]), draws.y[batch]).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def predict(network: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([network(part) for part in x.split(4096)])


# Name -> ratio of the training set's most to its least frequent class in the test set: forward, uniform, backward.
SHIFTS = {"50:1": 50, "10:1": 10, "1:1": 1, "1:10": 1 / 10, "1:50": 1 / 50}
CORRECTIONS = ("none", "known", "estimated")


def shifted_accuracy(method: Method, predicted: Tensor, data: Data, seen: Tensor) -> dict[str, dict[str, float]]:
    """Accuracy on long-tailed parts of the test set, the classes in the training set's order: shift -> correction ->
    accuracy, where the scores are left as they are, corrected to the test set's prior, or to their own estimate of it.

    As table 2 of Hong et al. 2021 has it.
    """
    order = data.train_counts.argsort(descending=True, stable=True).tolist()
    accuracy = {}
    for name, ratio in SHIFTS.items():
        wanted = long_tailed_counts(len(order), int(data.test_counts.min()), max(ratio, 1 / ratio))
        wanted = wanted if ratio >= 1 else wanted[::-1]
        rows = torch.cat([(data.y_test == c).nonzero()[:n, 0] for c, n in zip(order, wanted, strict=True)])
        part, y = predicted[rows], data.y_test[rows]
        prior = torch.bincount(y, minlength=len(order)).double() / len(y)
        corrected = {
            "none": part,
            "known": for_test_prior(part, method, seen, prior),
            "estimated": for_test_prior(part, method, seen, None),
        }
        accuracy[name] = {c: float((corrected[c].argmax(1) == y).double().mean()) for c in CORRECTIONS}
    return accuracy


def compare(
    source: str = "digits",
    *,
    methods: Sequence[str] = tuple(METHODS),
    sampling: Sequence[str] = ("none",),
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
        sampling: names from ``imbloss.lab.sampling.samplings()``, each joined with each method. Losses and corrections
            that want class counts are told those of what is drawn.
        model: "mlp" or "cnn".
        seeds: number of repetitions, seeded 0, 1, ...
        shift: also test on long-tailed parts of the test set, for SHIFTS.
        progress: called before each run, with the method's name ("focal", or "focal+sqrt" with a sampling) and seed.

    Returns:
        {"settings", "versions", "data", "runs"}, ready for JSON: a run has method (and sampling, "focal+sqrt"), seed,
        confusion matrix and scores; with `shift` also the accuracy for each test set and correction.

    Raises:
        DataError: the data cannot be used.
        ValueError: an unknown method or model, a number that is not positive, or a training that diverged.
    """
    if len(set(methods)) < len(methods) or not methods:
        raise ValueError(f"expected methods once each, but got {', '.join(methods) or 'none'}")
    for name in methods:
        if name not in METHODS:
            raise ValueError(f"expected methods among {', '.join(METHODS)}, but got {name!r}")
    if len(set(sampling)) < len(sampling) or not sampling:
        raise ValueError(f"expected sampling once each, but got {', '.join(sampling) or 'none'}")
    for name in sampling:
        if name not in samplings():
            raise ValueError(f"expected sampling among {', '.join(samplings())}, but got {name!r}")
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
        drawn = {how: samplings()[how].draws(data, epochs, seed) for how in sampling}
        trained = {}  # method and sampling -> logits of the test set
        for how, kind in itertools.product(sampling, methods):
            name = named(kind, how)
            progress(name, seed)
            method, draws = METHODS[kind], drawn[how]
            key = method.trained_as or kind, how
            started = time.perf_counter()
            if key not in trained:
                trained[key] = predict(train(data, method.loss, seed=seed, draws=draws, **options), data.x_test)
                if not trained[key].isfinite().all():
                    raise ValueError(f"training with {name} diverged (seed {seed}): the model's outputs are not finite")
            predicted = method.scores(trained[key], draws.counts[-1])
            confusion = confusion_matrix(data.y_test.numpy(), predicted.argmax(1).numpy(), data.num_classes)
            run = {
                "method": name,
                "seed": seed,
                "seconds": round(time.perf_counter() - started, 3),
                "scores": scores(confusion),
                "confusion": confusion.tolist(),
            }
            if shift:
                run["shift"] = shifted_accuracy(method, predicted, data, draws.counts[-1])
            runs.append(run)
    return {
        "settings": {
            "source": data.name,
            "methods": [named(kind, how) for how, kind in itertools.product(sampling, methods)],
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
        values = {score: [r["scores"][score] for r in results["runs"] if r["method"] == name] for score in SCORES}
        table[name] = {score: _mean_and_deviation(v) for score, v in values.items()}
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
