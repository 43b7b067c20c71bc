"""How often the loss test shows which sample: drawn by class, or resampled once before training."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import imbloss
from imbloss.lab.data import Data

ALL_KINDS = ("image", "table", "text")


@dataclass(frozen=True)
class Sampling:
    title: str
    strategy: str | None = None  # of ImbalancedDatasetSampler, anew in each epoch
    resampler: Callable[[int], Any] | None = None  # made of a seed; fit_resample, once
    kinds: tuple[str, ...] = ALL_KINDS  # of data it makes sense for


class Schedule:
    """The training set of a run, and what of it each epoch shows; the seed alone decides.

    Every epoch has as many samples as the data had before any resampling, so that no method trains longer than another.
    """

    def __init__(self, data: Data, sampling: Sampling, seed: int, epochs: int) -> None:
        self.epochs = epochs
        self.length = len(data.y_train)
        self._generator = torch.Generator().manual_seed(seed)
        self._sampler = None
        if sampling.resampler is not None:
            x, y = sampling.resampler(seed).fit_resample(data.x_train, data.y_train)
            data = dataclasses.replace(data, x_train=x, y_train=y)
        elif sampling.strategy is not None:
            self._sampler = imbloss.ImbalancedDatasetSampler(
                range(len(data.y_train)), data.y_train, strategy=sampling.strategy, seed=seed,
                epochs=max(epochs - 1, 1) if sampling.strategy == "progressive" else None,
            )  # fmt: skip
        self.data = data

    @property
    def counts(self) -> Tensor:
        """Samples per class as training sees them, but for a factor: what prior-correcting losses must be told."""
        counts = torch.bincount(self.data.y_train, minlength=self.data.num_classes)
        if self._sampler is None:
            return counts
        shares = torch.stack([self._sampler.prior(epoch) for epoch in range(self.epochs)]).mean(0)
        return shares * len(self.data.y_train)

    def __iter__(self) -> Iterator[Tensor]:
        """Indices of an epoch's samples, in order."""
        left = torch.zeros(0, dtype=torch.int64)  # of a shuffled set
        for epoch in range(self.epochs):
            if self._sampler is not None:
                self._sampler.set_epoch(epoch)
                yield torch.cat(list(self._sampler.stream()))
                continue
            while len(left) < self.length:
                left = torch.cat([left, torch.randperm(len(self.data.y_train), generator=self._generator)])
            epoch_rows, left = left.split([self.length, len(left) - self.length])
            yield epoch_rows


SAMPLINGS = {
    "none": Sampling(""),
    "balanced": Sampling("balanced draws", strategy="balanced"),
    "sqrt": Sampling("square-root draws", strategy="sqrt"),
    "effective": Sampling("draws by effective number", strategy="effective"),
    "progressive": Sampling("progressively balanced draws", strategy="progressive"),
    "over": Sampling("repeated", resampler=lambda seed: imbloss.RandomOverSampler(random_state=seed)),
    "under": Sampling("under-sampled", resampler=lambda seed: imbloss.RandomUnderSampler(random_state=seed)),
    "smote": Sampling("SMOTE", resampler=lambda seed: imbloss.SMOTE(random_state=seed), kinds=("image", "table")),
    "borderline": Sampling(
        "borderline SMOTE", resampler=lambda seed: imbloss.BorderlineSMOTE(random_state=seed), kinds=("image", "table")
    ),
    "adasyn": Sampling("ADASYN", resampler=lambda seed: imbloss.ADASYN(random_state=seed), kinds=("image", "table")),
    "rose": Sampling("ROSE", resampler=lambda seed: imbloss.ROSE(random_state=seed), kinds=("image", "table")),
}
