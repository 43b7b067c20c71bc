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
from imbloss.lab.data import Data, load
from imbloss.lab.methods import METHODS
from imbloss.lab.models import MODELS
from imbloss.lab.scores import SCORES, confusion_matrix, scores


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
    progress: Callable[[str, int], None] = lambda method, seed: None,
) -> dict:
    """The loss test.

    For each seed: a split of the data, initial weights and batches, the same for every method.

    Args:
        source: see :func:`imbloss.lab.load`; ``imbalance_ratio`` likewise.
        methods: names from ``imbloss.lab.methods.METHODS``.
        model: "mlp" or "cnn".
        seeds: number of repetitions, seeded 0, 1, ...
        progress: called before each run.

    Returns:
        {"settings", "versions", "data", "runs"}, ready for JSON: a run has method, seed, confusion matrix and scores.

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
            predicted = method.scores(trained[key], counts).argmax(1)
            confusion = confusion_matrix(data.y_test.numpy(), predicted.numpy(), data.num_classes)
            runs.append(
                {
                    "method": name,
                    "seed": seed,
                    "seconds": round(time.perf_counter() - started, 3),
                    "scores": scores(confusion),
                    "confusion": confusion.tolist(),
                }
            )
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
        values = {score: [r["scores"][score] for r in results["runs"] if r["method"] == name] for score in SCORES}
        table[name] = {
            score: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else float("nan"))
            for score, v in values.items()
        }
    return table


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)
