"""What all samplers share: X and y as rows and codes, new rows behind the old ones, everything back as it came."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from imbloss import _ops
from imbloss.priors import describe
from imbloss.sampling import _kinds, strategy
from imbloss.sampling.draws import Draws, draws_from
from imbloss.sampling.neighbors import CHUNK_ELEMENTS, FLOATING, check_finite, nearest

MOST_LABELS_PER_ROW = 4  # how far apart integer labels may be to be counted instead of sorted


@dataclass
class Rows:
    """Data to resample: flat rows and class codes, which number the classes in their order."""

    x: Tensor  # (n, d), of a floating dtype where a sampler computes
    codes: Tensor  # (n,), int64
    classes: list[Any]  # of the codes, as Python values
    shape: tuple[int, ...] = ()  # of one row, as given

    def members(self, code: int) -> Tensor:
        return (self.codes == code).nonzero().squeeze(1)


class SampleInfo(NamedTuple):
    """Where new rows come from, one entry a row: x[parent] + gap (x[neighbour] - x[parent])."""

    parent: Any  # indices of rows of X
    neighbour: Any  # the same; -1 where there is none
    gap: Any  # in [0, 1); 0 where there is none


@dataclass
class Recipe:
    """New rows of one class, before they are made."""

    code: int
    parent: Tensor
    neighbour: Tensor | None = None
    gap: Tensor | None = None


class Sampler:
    """The parameters of a sampler are its attributes of the same names."""

    _kind = strategy.OVER
    _computes = True  # with the values of X, rather than only with its rows
    sampling_strategy: Any
    random_state: Any = None

    def fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:  # noqa: N803
        """Resample.

        Args:
            X: rows, of shape (n, ...): a tensor on any device, a numpy array or a pandas frame.
            y: labels, shape (n,): a tensor on X's device, an array or a series.

        Returns:
            X and y resampled, of the kinds, dtypes and device that came in.

        Raises:
            TypeError, ValueError: a parameter or data that cannot be resampled so; the message names it.
        """
        rows, classes = self._as_rows(X, y)
        counts = torch.bincount(rows.codes, minlength=len(rows.classes)).tolist()
        of_class = dict(zip(rows.classes, counts, strict=True))
        source = self._source()
        self.sampling_strategy_ = strategy.resolve(source.sampling_strategy, of_class, self._kind, y)
        numbers = {label: code for code, label in enumerate(rows.classes)}
        plan = {numbers[label]: count for label, count in self.sampling_strategy_.items()}
        x, codes, chosen = self._resample(rows, plan, draws_from(source.random_state, rows.x.device))
        return self._as_given(X, y, rows, classes, x, codes, chosen)

    def _as_given(
        self,
        X: Any,  # noqa: N803
        y: Any,
        rows: Rows,
        classes: Any,
        x: Tensor,
        codes: Tensor,
        chosen: Tensor | None,
    ) -> tuple[Any, Any]:
        """A result as the kinds of X and y."""
        kind = _kinds.kind_of(X)
        for name in ("sample_info_", "sample_indices_"):
            if kind != _kinds.TENSOR and hasattr(self, name):
                setattr(self, name, _as_arrays(getattr(self, name)))
        return self._x_as_given(X, rows, x, chosen), _labels(y, classes, codes, chosen)

    def _x_as_given(self, X: Any, rows: Rows, x: Tensor, chosen: Tensor | None) -> Any:  # noqa: N803
        """Resampled rows as X came."""
        x = as_dtype(x.reshape(len(x), *rows.shape), _kinds.to_tensor(X, "X").dtype)
        return _kinds.rebuilt(X, x, chosen)

    def _source(self) -> "Sampler":
        """Whose strategy and random numbers they are."""
        return self

    def _resample(self, rows: Rows, plan: dict[int, int], draws: Draws) -> tuple[Tensor, Tensor, Tensor | None]:
        """New x, their codes, and the indices of the rows they are, if they are no others."""
        raise NotImplementedError

    def _as_rows(self, X: Any, y: Any) -> tuple[Rows, Any]:  # noqa: N803
        x = _kinds.to_tensor(X, "X")
        if x.dim() < 2:
            raise ValueError(f"expected X of shape (n, d) or (n, ...), but got {tuple(x.shape)}")
        if x.is_complex():
            raise TypeError(f"expected X of real numbers, but got {describe(x)}")
        codes, classes = encode(y)
        if len(codes) != len(x):
            raise ValueError(f"expected y of {len(x)} labels, one a row of X, but got {len(codes)}")
        if codes.device != x.device and isinstance(y, Tensor):
            raise ValueError(f"expected y on {x.device}, as X, but got {codes.device}")
        flat = x.detach().flatten(1)
        if self._computes:
            if flat.shape[1] == 0:
                raise ValueError(f"expected X of at least one column, but got shape {tuple(x.shape)}")
            if flat.dtype not in FLOATING:
                flat = flat.to(torch.float64 if flat.element_size() > 2 and x.device.type != "mps" else torch.float32)
            check_finite(flat, "X")
        return Rows(flat, codes.to(x.device), classes.tolist(), x.shape[1:]), classes

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.endswith("_"))
        return f"{type(self).__name__}({given})"


def _as_arrays(found: Any) -> Any:
    if isinstance(found, SampleInfo):
        return SampleInfo(*(part.cpu().numpy() for part in found))
    return found.cpu().numpy()


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Whole numbers to nearest, where X came as such."""
    if x.dtype == dtype:
        return x
    return (x if dtype.is_floating_point or not x.is_floating_point() else x.round()).to(dtype)


# ---- labels ------------------------------------------------------------------------------------------------------
def encode(y: Any) -> tuple[Tensor, Any]:
    """Codes 0 ... C - 1 of the labels, and the C labels in order, a tensor or an array."""
    if not isinstance(y, Tensor):
        labels = y.to_numpy() if hasattr(y, "to_numpy") else np.asarray(y)
        _check_labels(labels.ndim, tuple(labels.shape))
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise ValueError("expected y to be finite, but got NaN or inf")
        classes, codes = np.unique(labels, return_inverse=True)
        return torch.from_numpy(codes.reshape(-1).astype(np.int64, copy=False)), classes
    _check_labels(y.dim(), tuple(y.shape))
    if y.is_complex():
        raise TypeError(f"expected y of a real dtype, but got {describe(y)}")
    if y.is_floating_point() and not bool(y.isfinite().all()):
        raise ValueError("expected y to be finite, but got NaN or inf")
    if y.is_floating_point() or not len(y):
        classes, codes = y.unique(return_inverse=True)
        return codes, classes
    labels = y.long()
    low, high = (int(bound) for bound in labels.aminmax())
    if high - low > MOST_LABELS_PER_ROW * len(y):
        classes, codes = y.unique(return_inverse=True)
        return codes, classes
    labels = labels - low if low else labels
    there = (torch.bincount(labels) > 0).nonzero().squeeze(1)
    if len(there) == high - low + 1:
        return labels, (there + low).to(y.dtype)
    number = torch.zeros(high - low + 1, dtype=torch.int64, device=y.device)
    number[there] = torch.arange(len(there), device=y.device)
    return number[labels], (there + low).to(y.dtype)


def _check_labels(dimensions: int, shape: tuple[int, ...]) -> None:
    if dimensions != 1:
        raise ValueError(f"expected y of shape (n,), but got {shape}")


def _labels(y: Any, classes: Any, codes: Tensor, chosen: Tensor | None) -> Any:
    """Labels of the resampled rows, of the kind of y."""
    if isinstance(y, Tensor):
        return classes.index_select(0, codes)
    if chosen is not None and hasattr(y, "iloc"):
        return y.iloc[chosen.cpu().numpy()]
    values = classes[codes.cpu().numpy()]
    if hasattr(y, "iloc"):
        return type(y)(values, name=y.name).astype(y.dtype)
    return values


# ---- new rows ----------------------------------------------------------------------------------------------------
def with_new_rows(rows: Rows, recipes: Iterable[Recipe]) -> tuple[Tensor, Tensor, SampleInfo]:
    """X and its codes with interpolated rows behind them."""
    recipes = list(recipes)
    info = info_of(rows, recipes)
    new = [torch.full_like(recipe.parent, recipe.code) for recipe in recipes]
    if rows.x.is_cpu and _ops.has_kernels(rows.x) and _ops._kernels["cpu"] == "cpp":
        x = torch.ops.imbloss.interpolated_rows.default(rows.x.contiguous(), *info)
    else:
        x = interpolated(rows.x, info)
    return x, torch.cat([rows.codes, *new]), info


def info_of(rows: Rows, recipes: list[Recipe]) -> SampleInfo:
    def joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        if len(parts) == 1:
            return parts[0].contiguous()
        return torch.cat(parts) if parts else rows.codes.new_empty(0, dtype=dtype)

    none = [torch.full_like(r.parent, -1) if r.neighbour is None else r.neighbour for r in recipes]
    zeros = [rows.x.new_zeros(len(r.parent), dtype=_gap_dtype(rows.x)) if r.gap is None else r.gap for r in recipes]
    parents = [recipe.parent for recipe in recipes]
    return SampleInfo(joined(parents, torch.int64), joined(none, torch.int64), joined(zeros, _gap_dtype(rows.x)))


def _gap_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def interpolated(x: Tensor, info: SampleInfo) -> Tensor:
    """x, and behind it x[parent] + gap (x[neighbour] - x[parent]): by blocks; half precision is rounded once."""
    out = x.new_empty((len(x) + len(info.gap), x.shape[1]))
    out[: len(x)] = x
    step = max(1, CHUNK_ELEMENTS // 16 // x.shape[1])
    for start in range(0, len(info.gap), step):
        block = slice(start, start + step)
        base, towards = (x.index_select(0, rows[block]).to(info.gap.dtype) for rows in info[:2])
        out[len(x) :][block] = base.addcmul_(towards.sub_(base), info.gap[block].unsqueeze(1))
    return out


def draw_gap(draws: Draws, x: Tensor, count: int) -> Tensor:
    return draws.uniform(count, _gap_dtype(x))


# ---- neighbours --------------------------------------------------------------------------------------------------
def check_neighbors(value: Any, name: str) -> None:
    """An int >= 1, or an object with scikit-learn's fit and kneighbors."""
    if hasattr(value, "fit") and hasattr(value, "kneighbors"):
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"expected {name} to be an int or to have fit and kneighbors, but got {describe(value)}")
    if value < 1:
        raise ValueError(f"expected {name} >= 1, but got {value}")


def count_of(neighbors: Any) -> int:
    """How many neighbours a row gets; an object counts the row itself, as imbalanced-learn has it."""
    return int(neighbors) if isinstance(neighbors, Integral) else int(neighbors.n_neighbors) - 1


def neighbours_of(x: Tensor, which: Tensor | None, neighbors: Any) -> Tensor:
    """Indices of the nearest rows of x to its rows ``which`` (None: all), themselves left out; shape (m, k)."""
    if not isinstance(neighbors, Integral):
        return asked_object(x, x if which is None else x[which], neighbors)[1][:, 1:]
    k = int(neighbors)
    # each pair once, where all are searched: half the work
    if which is None or 2 * len(which) > len(x):
        found = nearest(x, k)[1]
        return found if which is None else found[which]
    return nearest(x, k, x[which], which)[1]


def asked_object(points: Tensor, queries: Tensor, neighbors: Any) -> tuple[Tensor, Tensor]:
    """Distances and indices by a scikit-learn style object, of which a copy is fitted."""
    searcher = copy.deepcopy(neighbors).fit(_as_array(points))
    distances, found = searcher.kneighbors(_as_array(queries))
    to_tensor = lambda values, dtype: torch.as_tensor(np.asarray(values), dtype=dtype, device=points.device)  # noqa: E731
    return to_tensor(distances, _gap_dtype(points)), to_tensor(found, torch.int64)


def _as_array(x: Tensor) -> np.ndarray:
    return x.to(_gap_dtype(x)).cpu().numpy()


def drawn_neighbours(x: Tensor, row: Tensor, column: Tensor, neighbors: Any) -> Tensor:
    """The column-th neighbour of each row that was drawn, and no search for others."""
    seen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    seen[row] = True
    which = seen.nonzero().squeeze(1)
    position = seen.cumsum(0) - 1
    found = neighbours_of(x, which, neighbors)
    return found[position[row], column]
