"""SMOTE-NC: over-sampling of rows of numbers and categories. A category is known by a row that has it, so that new rows
get its value as it is in X, whatever that is."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbloss.priors import describe
from imbloss.sampling import _kinds, base
from imbloss.sampling.base import Recipe, Rows, SampleInfo, Sampler
from imbloss.sampling.bootstrap import spread
from imbloss.sampling.draws import Draws
from imbloss.sampling.neighbors import chunks, first_of, in_order, widest
from imbloss.sampling.smote import check_size

WIDEST = 768  # one-hot columns up to which searching them is quicker than counting mismatches
TILE = 4  # tiles of mismatches are this much smaller than others: there are several of them


@dataclass(kw_only=True)
class MixedRows(Rows):
    """Rows of which ``x`` has the numeric columns alone."""

    numeric: list[int]  # their indices among all
    nominal: list[int]  # those of the others
    values: (
        Tensor  # (n, c), int64: the categories of each row, 0 ... V - 1 of each column, in order where they have one
    )


class SMOTENC(Sampler):
    r"""SMOTE for numbers and categories: numbers are interpolated, categories are the neighbours' most frequent.

    .. math:: d(a, b)^2 = \sum_{\text{numeric } j} (a_j - b_j)^2 + s^2 \, |\{\text{categorical } j: a_j \ne b_j\}|

    with s the median, over the numeric columns, of the standard deviations in the class to over-sample. Among equally
    frequent categories one is drawn uniformly.

    Args:
        categorical_features: the categorical columns: indices (of flattened rows), a mask of booleans, or names of a
            frame's columns; "auto": those of a frame whose dtype is category, object, string or bool.
        sampling_strategy, random_state: see :class:`SMOTE`.
        k_neighbors: how many, among which categories are counted, too; or an object, as :class:`SMOTE` takes one, which
            gets one-hot rows.

    Attributes:
        sample_info_: for each new row ``parent``, ``neighbour`` (indices of X) and ``gap``, of its numeric columns.
        sampling_strategy_: class -> how many new rows.
        median_std_: class that got new rows -> s.

    Raises (``fit_resample``):
        TypeError: ``categorical_features`` that are neither; a numeric column of a frame that does not hold numbers.
        ValueError: as :class:`SMOTE`; a column that is not there, or twice; no categorical or no numeric column; a
            missing value, among categories, too: make it a category.

    X: a tensor, a numpy array (of numbers, or of objects) or a frame; columns keep their dtypes, old rows come first,
    unchanged. A class without spread (s = 0) is searched by its numbers alone. Memory is needed for the class's rows in
    one-hot columns where these are no more than 768, else for tiles; never for a neighbourhood of every new row.
    Source: Chawla et al., SMOTE: Synthetic Minority Over-sampling Technique, JAIR 16, 2002, section 6.1.

    >>> X = torch.tensor([[0.0, 7], [1, 7], [2, 8], [3, 8], [4, 7], [5, 7], [6, 7]])
    >>> sampler = SMOTENC(categorical_features=[1], k_neighbors=2, random_state=0)
    >>> X_new, y_new = sampler.fit_resample(X, torch.tensor([0, 0, 0, 0, 1, 1, 1]))
    >>> X_new[-1, 1], y_new.bincount()
    (tensor(7.), tensor([4, 4]))
    """

    sample_info_: SampleInfo
    median_std_: dict[Any, float]

    def __init__(
        self,
        categorical_features: Any,
        *,
        sampling_strategy: Any = "auto",
        random_state: Any = None,
        k_neighbors: Any = 5,
    ):
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.k_neighbors = k_neighbors
        self.categorical_features = categorical_features

    # ---- columns -------------------------------------------------------------------------------------------------
    def _as_rows(self, X: Any, y: Any) -> tuple[Rows, Any]:  # noqa: N803
        if _of_objects(X):
            numeric, nominal = split(self.categorical_features, X)
            rows, classes = super()._as_rows(_numbers(X, numeric), y)
            x, values = rows.x, torch.from_numpy(np.stack([coded(X, j) for j in nominal], axis=1)).to(rows.x.device)
            shape = (len(numeric) + len(nominal),)
        else:
            rows, classes = super()._as_rows(X, y)
            given = _kinds.to_tensor(X, "X").detach().flatten(1)
            numeric, nominal = split(self.categorical_features, given)
            x = rows.x[:, numeric]
            values = torch.stack([given[:, j].unique(return_inverse=True)[1] for j in nominal], dim=1)
            shape = rows.shape
        rows = MixedRows(x, rows.codes, rows.classes, shape, numeric=numeric, nominal=nominal, values=values)
        return rows, classes

    def _x_as_given(self, X: Any, rows: Rows, x: Tensor, chosen: Tensor | None) -> Any:  # noqa: N803
        assert isinstance(rows, MixedRows)
        old = len(rows.codes)
        new, sources = x[old:], representatives(rows.values, old)
        if _kinds.kind_of(X) == _kinds.FRAME:
            return _longer_frame(X, rows, new.cpu().numpy(), sources.cpu().numpy())
        if _of_objects(X):
            out = np.concatenate([X, np.empty((len(new), X.shape[1]), dtype=object)])
            out[old:, rows.numeric] = new.numpy()
            for place, j in enumerate(rows.nominal):
                out[old:, j] = X[sources[:, place].numpy(), j]
            return out
        given = _kinds.to_tensor(X, "X").detach().flatten(1)
        out = given.new_empty((len(x), given.shape[1]))
        out[:old], out[old:, rows.numeric] = given, base.as_dtype(new, given.dtype)
        for place, j in enumerate(rows.nominal):
            out[old:, j] = given[sources[:, place], j]
        return _kinds.rebuilt(X, out.reshape(len(x), *rows.shape), chosen)

    # ---- new rows ------------------------------------------------------------------------------------------------
    def _resample(self, rows: Rows, plan: dict[int, int], draws: Draws) -> tuple[Tensor, Tensor, None]:
        assert isinstance(rows, MixedRows)
        base.check_neighbors(self.k_neighbors, "k_neighbors")
        self.median_std_ = {}
        made = [self._mixed(rows, code, count, draws) for code, count in plan.items() if count]
        x, codes, self.sample_info_ = base.with_new_rows(rows, (recipe for recipe, _ in made))
        rows.values = torch.cat([rows.values, *(values for _, values in made)])
        return x, codes, None

    def _mixed(self, rows: MixedRows, code: int, count: int, draws: Draws) -> tuple[Recipe, Tensor]:
        members = rows.members(code)
        k = check_size(rows, members, code, self.k_neighbors, "k_neighbors")
        median = torch.quantile(spread(rows.x, members, 0).to(widest(rows.x)), 0.5)
        self.median_std_[rows.classes[code]] = float(median)
        drawn = draws.integers(len(members) * k, count)
        gap = base.draw_gap(draws, rows.x, count)
        which, place = (drawn // k).unique(return_inverse=True)
        values = rows.values[members]
        found = mixed_neighbours(rows.x[members], values, float(median), which, self.k_neighbors)
        new = values.new_empty((count, values.shape[1]))
        for column, of_column in enumerate(values.T):
            ties, modes = most_frequent(of_column[found])
            new[:, column] = modes[place, draws.below(ties[place])]
        neighbour = members[found[place, drawn % k]]
        return Recipe(code, members[drawn // k], neighbour, gap), new


# ---- which columns -----------------------------------------------------------------------------------------------
def _of_objects(X: Any) -> bool:  # noqa: N803
    """Whether X is of more than numbers."""
    kind = _kinds.kind_of(X)
    return kind == _kinds.FRAME or (isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 2)


def split(features: Any, X: Any) -> tuple[list[int], list[int]]:  # noqa: N803
    """The numeric and the categorical columns, both in order."""
    count = X.shape[1]
    names = list(X.columns) if _kinds.kind_of(X) == _kinds.FRAME else None
    if isinstance(features, str):
        if features != "auto":
            raise ValueError(
                f'expected categorical_features to be "auto" or a list of indices, names or booleans, but got '
                f"{features!r}"
            )
        if names is None:
            raise ValueError('expected X to be a pandas frame for categorical_features="auto", but got ' + describe(X))
        nominal = [j for j, dtype in enumerate(X.dtypes) if _is_nominal(dtype)]
    else:
        nominal = sorted(_listed(features, count, names))
    if not nominal:
        raise ValueError(
            f"expected categorical_features of at least one column, but got {_given(features)}: use SMOTE for numbers"
        )
    if len(nominal) == count:
        raise ValueError(
            f"expected categorical_features to leave a numeric column, but got all {count}: use RandomOverSampler, or "
            "imbalanced-learn's SMOTEN"
        )
    there = set(nominal)
    return [j for j in range(count) if j not in there], nominal


def _is_nominal(dtype: Any) -> bool:
    """By the names of pandas' dtypes, and of what they hold."""
    return getattr(dtype, "name", "") in ("category", "object", "bool", "boolean") or "str" in str(dtype)


def _given(features: Any) -> str:
    return repr(features) if isinstance(features, str) else str(list(features))


def _listed(features: Any, count: int, names: list[Any] | None) -> list[int]:
    if isinstance(features, Tensor) or hasattr(features, "tolist"):
        features = features.tolist()
    if not isinstance(features, Sequence):
        raise TypeError(
            f'expected categorical_features to be "auto" or a list of indices, names or booleans, but got '
            f"{describe(features)}"
        )
    if features and all(isinstance(f, (bool, np.bool_)) for f in features):
        if len(features) != count:
            raise ValueError(
                f"expected categorical_features of {count} booleans, one a column of X, but got {len(features)}"
            )
        return [j for j, chosen in enumerate(features) if chosen]
    found: dict[int, Any] = {}
    for feature in features:
        index = _index(feature, count, names)
        if index in found:
            raise ValueError(f"expected categorical_features without repeats, but got {feature!r} twice")
        found[index] = feature
    return list(found)


def _index(feature: Any, count: int, names: list[Any] | None) -> int:
    if isinstance(feature, str):
        if names is None:
            raise ValueError(
                f"expected categorical_features of indices or booleans, for X without column names, but got {feature!r}"
            )
        if names.count(feature) != 1:
            raise ValueError(
                f"expected categorical_features of columns that X has once, but got {feature!r}, which it has "
                f"{names.count(feature)} times"
            )
        return names.index(feature)
    if isinstance(feature, bool) or not isinstance(feature, Integral):
        raise TypeError(
            f"expected categorical_features of indices, or names, or booleans alone, but got {describe(feature)} among "
            "them"
        )
    index = int(feature)
    if not -count <= index < count:
        raise ValueError(f"expected categorical_features in [0, {count}), the columns of X, but got {index}")
    return index % count


# ---- values of X -------------------------------------------------------------------------------------------------
def _column(X: Any, j: int) -> tuple[np.ndarray, Any]:  # noqa: N803
    """Values and name."""
    if isinstance(X, np.ndarray):
        return X[:, j], j
    return X.iloc[:, j].to_numpy(), X.columns[j]


def _numbers(X: Any, numeric: list[int]) -> np.ndarray:  # noqa: N803
    columns = []
    for j in numeric:
        values, name = _column(X, j)
        if values.dtype.kind in "OUS":
            try:
                values = values.astype(np.float64)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"expected column {name!r} of X to be of numbers or in categorical_features, but got {error}"
                ) from error
        if values.dtype.kind not in "fiub":
            raise TypeError(
                f"expected column {name!r} of X to be of numbers or in categorical_features, but got {values.dtype}"
            )
        columns.append(values)
    dtype = np.result_type(*columns)
    return np.stack(columns, axis=1).astype(dtype if dtype.kind == "f" else np.float64, copy=False)


def coded(X: Any, j: int) -> np.ndarray:  # noqa: N803
    """Categories of a column as 0 ... V - 1, sorted where they can be, else as they come; shape (n,)."""
    values, name = _column(X, j)
    missing = values == None if values.dtype == object else np.zeros(len(values), dtype=bool)  # noqa: E711
    if hasattr(X, "iloc"):
        missing = X.iloc[:, j].isna().to_numpy()
    elif values.dtype == object:
        missing = missing | (values != values)  # NaN
    if missing.any():
        row = int(missing.argmax())
        raise ValueError(
            f"expected column {name!r} of X without missing values, but got {values[row]} in row {row}: make it a "
            "category of its own"
        )
    if values.dtype != object:
        return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64, copy=False)
    try:
        categories = list(dict.fromkeys(values))
    except TypeError as error:
        raise TypeError(f"expected column {name!r} of X of hashable values, but got: {error}") from error
    with contextlib.suppress(TypeError):
        categories.sort()
    number = {value: code for code, value in enumerate(categories)}
    return np.fromiter((number[value] for value in values), dtype=np.int64, count=len(values))


def representatives(values: Tensor, old: int) -> Tensor:
    """Of each new row's categories, the first of the old rows that has them; (n_new, c)."""
    out = values.new_empty((len(values) - old, values.shape[1]))
    rows = torch.arange(old, device=values.device)
    for column, codes in enumerate(values.T):
        first = rows.new_full((int(codes.max()) + 1,), old).scatter_reduce_(0, codes[:old], rows, "amin")
        out[:, column] = first[codes[old:]]
    return out


def _longer_frame(X: Any, rows: MixedRows, new: np.ndarray, sources: np.ndarray) -> Any:  # noqa: N803
    import pandas

    columns: dict[int, Any] = {}
    for place, j in enumerate(rows.nominal):
        columns[j] = X.iloc[:, j].take(sources[:, place]).reset_index(drop=True)
    for place, j in enumerate(rows.numeric):
        dtype = X.dtypes.iloc[j]
        whole = getattr(dtype, "kind", "O") in "iub"
        columns[j] = pandas.Series(new[:, place].round() if whole else new[:, place]).astype(dtype)
    frame = pandas.concat([columns[j] for j in range(X.shape[1])], axis=1)
    frame.columns = X.columns
    return pandas.concat([X, frame], ignore_index=True)


# ---- neighbours --------------------------------------------------------------------------------------------------
def mixed_neighbours(x: Tensor, values: Tensor, weight: float, which: Tensor, neighbors: Any) -> Tensor:
    """Indices of the nearest rows of a class to its rows ``which``, themselves left out; shape (m, k).

    Args:
        x: numeric columns, (n, d).
        values: codes of categorical columns, (n, c).
        weight: what a mismatch costs in distance.
    """
    if weight == 0 and isinstance(neighbors, Integral):
        return base.neighbours_of(x, which, neighbors)
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    own = [column.unique(return_inverse=True)[1] for column in values.T]
    own = [column for column in own if int(column.max())]  # one value for all makes no difference
    unit = torch.tensor(weight / math.sqrt(2), dtype=x.dtype)  # two ones are in the wrong place
    width = x.shape[1] + sum(int(column.max()) + 1 for column in own)
    if width > WIDEST and isinstance(neighbors, Integral):
        return by_mismatches(x, own, 2 * float(unit) ** 2, which, int(neighbors))
    encoded = x.new_zeros((len(x), width))
    encoded[:, : x.shape[1]] = x
    start = x.shape[1]
    for column in own:
        encoded.scatter_(1, (column + start).unsqueeze(1), float(unit))
        start += int(column.max()) + 1
    return base.neighbours_of(encoded, which, neighbors)


def by_mismatches(x: Tensor, columns: list[Tensor], cost: float, which: Tensor, k: int) -> Tensor:
    """The same, without one-hot columns: tiles of squared distances to which ``cost`` is added for every mismatch."""
    wide, found = x.to(widest(x)), []
    narrow = torch.int16 if len(x) < 1 << 15 else torch.int32
    columns = [column.to(narrow) for column in columns]
    for rows in chunks(len(which), TILE * len(x)):
        asked = which[rows]
        tile = torch.cdist(wide[asked], wide, compute_mode="donot_use_mm_for_euclid_dist").square_()
        for column in columns:
            tile.add_(column[asked].unsqueeze(1) != column, alpha=cost)
        tile.scatter_(1, asked.unsqueeze(1), math.inf)
        nearest = first_of(tile, k)
        found.append(in_order(tile.gather(1, nearest), nearest)[1])
    return torch.cat(found)


def most_frequent(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of codes, (m, k), how many are the most frequent, (m,), and these first, in order, (m, k)."""
    ordered = values.sort(1)[0].contiguous()
    start = torch.searchsorted(ordered, ordered)
    frequency = torch.searchsorted(ordered, ordered, right=True) - start
    first = start == torch.arange(ordered.shape[1], device=ordered.device)
    modes = first & (frequency == frequency.amax(1, keepdim=True))
    order = modes.logical_not().to(torch.uint8).sort(dim=1, stable=True)[1]
    return modes.sum(1), ordered.gather(1, order)
