"""SMOTE, and then a cleaner on what came of it."""

import copy
from typing import Any

import torch
from torch import Tensor

from imbloss.priors import describe
from imbloss.sampling import strategy
from imbloss.sampling.base import Rows, SampleInfo, Sampler
from imbloss.sampling.draws import Draws
from imbloss.sampling.smote import SMOTE
from imbloss.sampling.under import Choosing, EditedNearestNeighbours, TomekLinks


class Combined(Sampler):
    sample_info_: SampleInfo
    sample_indices_: Any
    smote: SMOTE | None

    def _source(self) -> Sampler:
        if self.smote is not None and not isinstance(self.smote, SMOTE):
            raise TypeError(f"expected smote to be an imbloss.SMOTE or None, but got {describe(self.smote)}")
        if self.smote is not None and self.smote.group is not None:
            raise ValueError("expected smote without group: a cleaner would see one process's rows")
        return self if self.smote is None else self.smote

    def _clean(self) -> Choosing:
        """The cleaner to use, a copy."""
        raise NotImplementedError

    def _resample(self, rows: Rows, plan: dict[int, int], draws: Draws) -> tuple[Tensor, Tensor, None]:
        over, cleaner = copy.copy(self.smote or SMOTE()), self._clean()
        x, codes, _ = over._resample(rows, plan, draws)
        grown = Rows(x, codes, rows.classes)
        counts = dict(zip(rows.classes, torch.bincount(codes, minlength=len(rows.classes)).tolist(), strict=True))
        labels = [rows.classes[code] for code in codes.tolist()] if callable(cleaner.sampling_strategy) else None
        cleaned = strategy.resolve(cleaner.sampling_strategy, counts, strategy.CLEAN, labels)
        x, codes, chosen = cleaner._resample(grown, {rows.classes.index(label): 0 for label in cleaned}, draws)
        new = chosen[chosen >= len(rows.x)] - len(rows.x)
        self.sample_indices_ = chosen
        self.sample_info_ = SampleInfo(*(part[new] for part in over.sample_info_))
        return x, codes, None

    def _given(self, name: str, kind: type[Choosing], default: Choosing) -> Choosing:
        cleaner = getattr(self, name)
        if cleaner is not None and not isinstance(cleaner, kind):
            raise TypeError(f"expected {name} to be an imbloss.{kind.__name__} or None, but got {describe(cleaner)}")
        return default if cleaner is None else copy.copy(cleaner)


class SMOTEENN(Combined):
    """SMOTE, then edited nearest neighbours on all classes.

    Args:
        sampling_strategy, random_state: of SMOTE, see :class:`imbloss.SMOTE`.
        smote: a :class:`imbloss.SMOTE` to use instead, with its own strategy and random state.
        enn: an :class:`imbloss.EditedNearestNeighbours` to use instead of the default with "all".

    Attributes:
        sample_indices_: rows that stay of X with the new rows behind it.
        sample_info_: of the new rows that stay, see :class:`imbloss.SMOTE`.

    Source: Batista et al., A study of the behavior of several methods for balancing machine learning training data,
    SIGKDD Explorations 6, 2004.

    >>> X, y = torch.arange(20.0).view(10, 2), torch.tensor([0] * 6 + [1] * 4)
    >>> sampler = SMOTEENN(smote=SMOTE(k_neighbors=2, random_state=0))
    >>> sampler.fit_resample(X, y)[1].bincount()
    tensor([5, 5])
    """

    def __init__(
        self,
        *,
        sampling_strategy: Any = "auto",
        random_state: Any = None,
        smote: SMOTE | None = None,
        enn: EditedNearestNeighbours | None = None,
    ):
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.smote = smote
        self.enn = enn

    def _clean(self) -> Choosing:
        return self._given("enn", EditedNearestNeighbours, EditedNearestNeighbours(sampling_strategy="all"))


class SMOTETomek(Combined):
    """SMOTE, then both ends of every Tomek link left out.

    Args:
        sampling_strategy, random_state, smote: see :class:`imbloss.SMOTEENN`.
        tomek: an :class:`imbloss.TomekLinks` to use instead of the default with "all".

    Attributes:
        sample_indices_, sample_info_: see :class:`imbloss.SMOTEENN`.

    Source: Batista et al., Balancing training data for automated annotation of keywords, WOB 2003.

    >>> X, y = torch.arange(20.0).view(10, 2), torch.tensor([0] * 6 + [1] * 4)
    >>> sampler = SMOTETomek(smote=SMOTE(k_neighbors=2, random_state=0))
    >>> sampler.fit_resample(X, y)[1].bincount()
    tensor([6, 6])
    """

    def __init__(
        self,
        *,
        sampling_strategy: Any = "auto",
        random_state: Any = None,
        smote: SMOTE | None = None,
        tomek: TomekLinks | None = None,
    ):
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.smote = smote
        self.tomek = tomek

    def _clean(self) -> Choosing:
        return self._given("tomek", TomekLinks, TomekLinks(sampling_strategy="all"))
