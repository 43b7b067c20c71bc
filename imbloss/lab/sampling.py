"""What the loss test trains on: the training set as it is, as a sampler draws it, or resampled beforehand.

All take as many steps: an epoch is as many draws as the training set has samples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import imbloss
from imbloss.lab.data import Data


@dataclass(frozen=True)
class Draws:
    x: Tensor
    y: Tensor
    rows: Callable[[], Iterator[Tensor]]  # of each epoch, the same at every call
    counts: list[Tensor]  # of each epoch, class counts as a loss should know them: of what is drawn


@dataclass(frozen=True)
class Sampling:
    title: str
    strategy: str | None = None  # of ImbalancedDatasetSampler
    resampler: str | None = None  # a class of imbloss with fit_resample(X, y)

    def draws(self, data: Data, epochs: int, seed: int) -> Draws:
        if self.strategy:
            return _sampled(data, self.strategy, epochs, seed)
        if self.resampler:
            return _resampled(data, getattr(imbloss, self.resampler)(random_state=seed), epochs, seed)
        rows = lambda: _shuffles(len(data.y_train), len(data.y_train), epochs, seed)  # noqa: E731
        return Draws(data.x_train, data.y_train, rows, [data.train_counts] * epochs)


ALL = {
    "none": Sampling("as it is"),
    "balanced": Sampling("balanced draws", strategy="balanced"),
    "sqrt": Sampling("sqrt draws", strategy="sqrt"),
    "effective": Sampling("effective draws", strategy="effective"),
    "progressive": Sampling("progressive draws", strategy="progressive"),
    "over": Sampling("oversampled", resampler="RandomOverSampler"),
    "under": Sampling("undersampled", resampler="RandomUnderSampler"),
    "smote": Sampling("SMOTE", resampler="SMOTE"),
    "rose": Sampling("ROSE", resampler="ROSE"),
}


def samplings() -> dict[str, Sampling]:
    """Those that this imbloss has."""
    return {name: s for name, s in ALL.items() if s.resampler is None or hasattr(imbloss, s.resampler)}


def _sampled(data: Data, strategy: str, epochs: int, seed: int) -> Draws:
    def sampler() -> imbloss.ImbalancedDatasetSampler:
        return imbloss.ImbalancedDatasetSampler(data.y_train, strategy=strategy, epochs=epochs, seed=seed)

    def rows() -> Iterator[Tensor]:
        drawing = sampler()
        for _ in range(epochs):
            yield torch.cat(list(drawing.stream()))

    counts = [len(data.y_train) * sampler().prior(epoch) for epoch in range(epochs)]
    return Draws(data.x_train, data.y_train, rows, counts)


def _resampled(data: Data, resampler: Any, epochs: int, seed: int) -> Draws:
    x, y = resampler.fit_resample(data.x_train.flatten(1), data.y_train)
    counts = [torch.bincount(y, minlength=data.num_classes)] * epochs
    rows = lambda: _shuffles(len(y), len(data.y_train), epochs, seed)  # noqa: E731
    return Draws(x.unflatten(1, data.x_train.shape[1:]), y, rows, counts)


def _shuffles(size: int, draws: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """`draws` rows an epoch, of one shuffle after the other."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(0, dtype=torch.int64)
    for _ in range(epochs):
        while len(rows) < draws:
            rows = torch.cat([rows, torch.randperm(size, generator=generator)])
        yield rows[:draws]
        rows = rows[draws:]
