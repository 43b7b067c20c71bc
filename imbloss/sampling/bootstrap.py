"""Over-samplers without neighbours: rows drawn again, as they are or with noise around them."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from imbloss.sampling import base
from imbloss.sampling.base import Recipe, Rows, SampleInfo
from imbloss.sampling.draws import Draws
from imbloss.sampling.stream import Clouds, Data, Streaming

BANDWIDTHS = ("class", "dataset")
CHUNK = 1 << 18  # elements of a block of noise


class Smoothed(Streaming):
    """A bootstrap with noise of a standard deviation per class and column."""

    sample_info_: SampleInfo

    def _bootstrap(self, rows: Rows, plan: dict[int, int], draws: Draws, keep: bool, smooth) -> tuple[Tensor, Tensor]:
        """``smooth(code, members)`` is the noise's standard deviation, (d,), or None."""
        count = len(rows.x) if keep else 0
        total = count + sum(plan.values())
        x, codes = rows.x.new_empty((total, rows.x.shape[1])), rows.codes.new_empty(total)
        x[:count], codes[:count] = rows.x[:count], rows.codes[:count]
        recipes, start = [], count
        for code, wanted in plan.items():
            members = rows.members(code)
            parent = members[draws.choice(len(members), wanted, True)]
            out = x[start : start + wanted]
            scale = smooth(code, members)
            if scale is None:
                torch.index_select(rows.x, 0, parent, out=out)
            else:
                _with_noise(rows.x, parent, scale, draws, out)
            codes[start : start + wanted] = code
            recipes.append(Recipe(code, parent))
            start += wanted
        self.sample_info_ = base.info_of(rows, recipes)
        return x, codes


def _with_noise(x: Tensor, parent: Tensor, scale: Tensor, draws: Draws, out: Tensor) -> None:
    step = max(1, CHUNK // x.shape[1])
    for start in range(0, len(parent), step):
        block = slice(start, start + step)
        noise = draws.normal_(torch.empty(out[block].shape, dtype=scale.dtype, device=x.device))
        out[block] = noise.mul_(scale).add_(x[parent[block]])


def spread(x: Tensor, members: Tensor, correction: int) -> Tensor:
    """Standard deviation of each column, (d,), from float64 sums."""
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    deviation = x[members].to(wide).std(0, correction=correction)
    return deviation.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def silverman(columns: int, rows: int) -> float:
    """The bandwidth that is best for normal data: (4 / ((d + 2) n))^(1 / (d + 4))."""
    return (4 / ((columns + 2) * rows)) ** (1 / (columns + 4))


def factors(value: Any, name: str, plan: dict[int, int], classes: list[Any]) -> dict[int, float]:
    """A number, or one per class, checked; by code."""
    given = value if isinstance(value, Mapping) else {classes[code]: value for code in plan}
    missing = [classes[code] for code in plan if classes[code] not in given]
    if missing:
        raise ValueError(f"expected {name} for every class that is resampled, but got none for {missing}")
    for label, factor in given.items():
        if isinstance(factor, bool) or not isinstance(factor, Real):
            raise TypeError(f"expected {name} to be a number or a dict of them, but got {factor!r}")
        if not 0 <= float(factor) < float("inf"):
            raise ValueError(f"expected {name} >= 0, but got {factor} for class {label!r}")
    return {code: float(given[classes[code]]) for code in plan}


class RandomOverSampler(Smoothed):
    """Rows drawn again with replacement, as they are or, with ``shrinkage``, with normal noise around them.

    Args:
        sampling_strategy, random_state: see :class:`imbloss.SMOTE`.
        shrinkage: None repeats rows as they are, of any dtype, NaN included; a number (or a dict, one per class) is
            the factor of the noise's standard deviation, the bandwidth h of all rows times the class's own deviation
            (ddof 0), as in imbalanced-learn. :class:`imbloss.ROSE` is the paper's.

    Attributes:
        sample_indices_: for each row of the result, the row of X that it is or comes from.
        sample_info_: the same for the new rows: ``parent``.
        sampling_strategy_: class -> how many new rows.

    >>> X, y = torch.arange(20.0).view(10, 2), torch.tensor([0] * 7 + [1] * 3)
    >>> sampler = RandomOverSampler(random_state=0)
    >>> X_new, y_new = sampler.fit_resample(X, y)
    >>> y_new.bincount(), torch.equal(X_new, X[sampler.sample_indices_])
    (tensor([7, 7]), True)
    """

    sample_indices_: Any

    def __init__(self, *, sampling_strategy: Any = "auto", random_state: Any = None, shrinkage: Any = None):
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.shrinkage = shrinkage

    @property
    def _computes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.shrinkage is not None

    def _resample(self, rows: Rows, plan: dict[int, int], draws: Draws) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.shrinkage is None:
            smooth = lambda code, members: None  # noqa: E731
        else:
            factor = factors(self.shrinkage, "shrinkage", plan, rows.classes)
            width = silverman(rows.x.shape[1], len(rows.x))
            smooth = lambda code, members: factor[code] * width * spread(rows.x, members, 0)  # noqa: E731
        x, codes = self._bootstrap(rows, plan, draws, True, smooth)
        own = torch.arange(len(rows.x), device=rows.x.device)
        self.sample_indices_ = torch.cat([own, self.sample_info_.parent])
        return x, codes, self.sample_indices_ if self.shrinkage is None else None

    def _maker(self, data: Data, plan: dict[int, int]) -> tuple[Clouds, bool]:
        if self.shrinkage is None:  # a new row is one of the class's, as any is
            return Clouds(data, {}), False
        factor = factors(self.shrinkage, "shrinkage", plan, data.classes)
        width = silverman(data.columns, len(data))
        return Clouds(data, {c: factor[c] * width * data.spread(data.of_class(c), 0) for c in plan}), False


class ROSE(Smoothed):
    r"""Random over-sampling examples: a smoothed bootstrap, normal noise around rows drawn again.

    .. math:: \tilde{x} = x_i + \mathcal{N}(0, h_c^2 \, \operatorname{diag} \hat\sigma_c^2), \qquad
        h_c = s \left( \frac{4}{(d + 2) \, n_c} \right)^{1 / (d + 4)}

    Args:
        sampling_strategy, random_state: see :class:`imbloss.SMOTE`.
        shrink: the factor s, or a dict of one per class; 0 gives a plain bootstrap.
        keep_originals: False replaces the rows of every class, as R's package does, to the same numbers.
        bandwidth: whose rows n_c counts: "class", the class's own, as in the paper; "dataset", all, as
            imbalanced-learn does.

    Attributes:
        sample_info_: for each new row its ``parent``.
        sampling_strategy_: class -> how many rows beyond its own.

    Raises (``fit_resample``):
        ValueError: a class of one row, which has no deviation (ddof 1); a NaN in X.

    Source: Menardi and Torelli, Training and assessing classification rules with imbalanced data, DMKD 28, 2014.

    >>> X, y = torch.arange(20.0).view(10, 2), torch.tensor([0] * 7 + [1] * 3)
    >>> X_new, y_new = ROSE(random_state=0).fit_resample(X, y)
    >>> X_new.shape, y_new.bincount()
    (torch.Size([14, 2]), tensor([7, 7]))
    """

    def __init__(
        self,
        *,
        sampling_strategy: Any = "auto",
        random_state: Any = None,
        shrink: Any = 1.0,
        keep_originals: bool = True,
        bandwidth: str = "class",
    ):
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.shrink = shrink
        self.keep_originals = keep_originals
        self.bandwidth = bandwidth

    def _resample(self, rows: Rows, plan: dict[int, int], draws: Draws) -> tuple[Tensor, Tensor, None]:
        self._check_bandwidth()
        if not self.keep_originals:
            counts = torch.bincount(rows.codes).tolist()
            plan = {code: count + plan.get(code, 0) for code, count in enumerate(counts)}
        factor = factors(self.shrink, "shrink", plan, rows.classes)

        def smooth(code: int, members: Tensor) -> Tensor:
            return self._width(factor[code], rows.x.shape, len(members), rows.classes[code]) * spread(
                rows.x, members, 1
            )

        x, codes = self._bootstrap(rows, plan, draws, self.keep_originals, smooth)
        return x, codes, None

    def _check_bandwidth(self) -> None:
        if self.bandwidth not in BANDWIDTHS:
            raise ValueError(f"expected bandwidth in {BANDWIDTHS}, but got {self.bandwidth!r}")

    def _width(self, factor: float, shape: tuple[int, ...], count: int, label: Any) -> float:
        if count < 2:
            raise ValueError(f"expected at least 2 rows in a class to draw from, but got {count} in class {label!r}")
        return factor * silverman(shape[1], count if self.bandwidth == "class" else shape[0])

    def _maker(self, data: Data, plan: dict[int, int]) -> tuple[Clouds, bool]:
        self._check_bandwidth()
        codes = list(plan) if self.keep_originals else list(range(len(data.classes)))
        factor = factors(self.shrink, "shrink", dict.fromkeys(codes, 0), data.classes)
        scales = {}
        for code in codes:
            members = data.of_class(code)
            width = self._width(factor[code], (len(data), data.columns), len(members), data.classes[code])
            scales[code] = width * data.spread(members, 1)
        return Clouds(data, scales), not self.keep_originals
