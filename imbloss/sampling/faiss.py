"""faiss behind scikit-learn's two methods, for the samplers' ``k_neighbors``. Needs the extra ``faiss``."""

import contextlib
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from imbloss.priors import describe
from imbloss.sampling import _kinds
from imbloss.sampling.neighbors import METRICS, check_finite, check_points, nearest, unit_rows

LINKS = 32  # of a node of an HNSW graph


class Recall(NamedTuple):
    """How an index does, over a sample of the points."""

    recall: float  # share of the k nearest that it finds
    excess: float  # mean of what its k-th is farther away than the right one, as a share of that


class FaissNeighbors:
    """Neighbours by a faiss index, exact or approximate, wherever ``k_neighbors`` is an argument.

    Args:
        n_neighbors: how many ``kneighbors`` finds, the row itself among them: SMOTE with 5 neighbours wants 6.
        index: "flat": exact, by brute force; "hnsw": a graph, approximate, whose search takes about log n; or a string
            for faiss's index_factory, "IVF4096,PQ32" for instance, which is trained on the points.
        metric: "l2", or "cosine", for which rows are made to length 1.
        ef_search, ef_construction: how many candidates an HNSW graph keeps in mind while it is asked and while it is
            built: the more, the better and the slower.
        nprobe: how many lists of an IVF index are looked through.

    Attributes:
        index_: the faiss index that is asked.

    Raises:
        ImportError: on ``fit``, without faiss.
        TypeError, ValueError: a parameter that does not fit, or a NaN; the message names it.

    faiss computes in float32, here on rows less their mean. Tensors, arrays and frames may be given; arrays come back.
    An approximate index may leave a row itself out of its neighbours; where it finds fewer than it should, the last
    stands in for the rest. Ask ``recall`` before trusting an index. A deep copy, which is what samplers fit, leaves the
    index out.
    Source: Douze et al., The Faiss library, 2024; Malkov and Yashunin, HNSW, TPAMI 42, 2020.

    >>> points = torch.randn(500, 8)
    >>> neighbours = FaissNeighbors(6, index="hnsw").fit(points)
    >>> distances, indices = neighbours.kneighbors(points[:10])
    >>> indices.shape, neighbours.recall(points, 5).recall > 0.9
    ((10, 6), True)
    >>> X_new, y_new = SMOTE(k_neighbors=neighbours, random_state=0).fit_resample(points, torch.arange(500) // 400)
    """

    def __init__(
        self,
        n_neighbors: int,
        *,
        index: str = "flat",
        metric: str = "l2",
        ef_search: int = 64,
        ef_construction: int = 100,
        nprobe: int = 16,
    ):
        self.n_neighbors = n_neighbors
        self.index = index
        self.metric = metric
        self.ef_search = ef_search
        self.ef_construction = ef_construction
        self.nprobe = nprobe

    def fit(self, X: Any, y: Any = None) -> "FaissNeighbors":  # noqa: N803
        """Builds the index of rows of the shape (n, d)."""
        self._check()
        rows = check_points(_floating(X, "X"), "X")
        if not len(rows):
            raise ValueError("expected X of at least one row, but got none")
        check_finite(rows, "X")
        self._centre = rows.mean(0, dtype=torch.float64) if self.metric == "l2" else 0.0
        self.index_ = self._built(self._prepared(rows))
        return self

    def kneighbors(
        self,
        X: Any,  # noqa: N803
        n_neighbors: int | None = None,
        return_distance: bool = True,
    ) -> Any:
        """Distances, float32 (m, k), ascending, and indices, int64, of the rows that were fitted nearest to each of X;
        with ``return_distance=False`` indices alone.

        Raises:
            RuntimeError: before ``fit``; an index that finds nothing at all for a row.
        """
        index = self._fitted("kneighbors")
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        _check_whole(k, "n_neighbors", index.ntotal, "the rows fitted")
        rows = check_points(_floating(X, "X"), "X")
        if rows.shape[1] != index.d:
            raise ValueError(f"expected X of {index.d} columns, as fitted, but got {rows.shape[1]}")
        check_finite(rows, "X")
        self._tune(index)
        squares, found = index.search(self._prepared(rows), k)
        missing = found < 0
        if missing.any():
            if missing[:, 0].any():
                raise RuntimeError(
                    f"expected index {self.index!r} to find neighbours of every row, but it found none of row "
                    f"{int(missing[:, 0].argmax())}: raise nprobe or ef_search"
                )
            last = (~missing).sum(1, keepdims=True) - 1
            place = np.minimum(np.arange(k), last)
            squares, found = (np.take_along_axis(part, place, 1) for part in (squares, found))
        if not return_distance:
            return found
        return squares / 2 if self.metric == "cosine" else np.sqrt(np.maximum(squares, 0)), found

    def kneighbors_graph(self, X: Any, n_neighbors: int | None = None) -> Any:  # noqa: N803
        """The neighbours as a scipy CSR matrix of ones; imbalanced-learn wants the method to be there."""
        from scipy.sparse import csr_matrix

        found = self.kneighbors(X, n_neighbors, return_distance=False)
        ends = np.arange(0, found.size + 1, found.shape[1])
        return csr_matrix((np.ones(found.size), found.ravel(), ends), shape=(len(found), self.index_.ntotal))

    def recall(self, points: Any, k: int, *, sample: int = 1000, seed: int = 0) -> Recall:
        """How well a fitted index finds the ``k`` nearest, beside :func:`imbloss.knn`, of rows drawn from ``points``.

        Args:
            points: the rows that were fitted, in their order.
            k: how many neighbours; the row itself does not count.
            sample: how many rows are asked, without repeats; the exact search takes O(sample n d).
            seed: of the draw.
        """
        index = self._fitted("recall")
        rows = check_points(_floating(points, "points"), "points")
        if len(rows) != index.ntotal:
            raise ValueError(f"expected points of the {index.ntotal} rows fitted, but got {len(rows)}")
        _check_whole(k, "k", len(rows) - 1, "the other rows")
        _check_whole(sample, "sample")
        asked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:sample]
        prepared = torch.from_numpy(self._prepared(rows))
        distances, indices = nearest(prepared, k, prepared[asked], asked)
        if self.metric == "cosine":
            distances = distances.square() / 2
        reached, found = (torch.from_numpy(part) for part in self.kneighbors(rows[asked], k + 1))
        others = found != asked.unsqueeze(1)
        others[others.all(1), -1] = False  # who does not find itself has one neighbour too many
        order = others.logical_not().to(torch.uint8).sort(dim=1, stable=True)[1][:, :k]
        found, reached = found.gather(1, order), reached.gather(1, order)
        hits = (found.unsqueeze(1) == indices.unsqueeze(2)).any(2)
        right, least = distances[:, -1].double(), torch.finfo(torch.float32).tiny
        farther = (reached[:, -1].double() - right).clamp(min=0) / right.clamp(min=least)
        return Recall(float(hits.double().mean()), float(farther.mean()))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """As scikit-learn's estimators have it, for its ``clone``."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def set_params(self, **parameters: Any) -> "FaissNeighbors":
        for name, value in parameters.items():
            if name not in PARAMETERS:
                raise ValueError(f"expected parameters among {PARAMETERS}, but got {name!r}")
            setattr(self, name, value)
        return self

    def __deepcopy__(self, memo: dict) -> "FaissNeighbors":
        return FaissNeighbors(**self.get_params())

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"FaissNeighbors({given})"

    # ---- faiss ---------------------------------------------------------------------------------------------------
    def _check(self) -> None:
        for name in ("n_neighbors", "ef_search", "ef_construction", "nprobe"):
            _check_whole(getattr(self, name), name)
        if not isinstance(self.index, str):
            raise TypeError(f'expected index to be "flat", "hnsw" or a factory string, but got {describe(self.index)}')
        if self.metric not in METRICS:
            raise ValueError(f"expected metric in {METRICS}, but got {self.metric!r}")

    def _fitted(self, caller: str) -> Any:
        if not hasattr(self, "index_"):
            raise RuntimeError(f"expected fit before {caller}")
        self._check()
        return self.index_

    def _built(self, rows: np.ndarray) -> Any:
        faiss = _faiss()
        columns = rows.shape[1]
        if self.index == "flat":
            index = faiss.IndexFlatL2(columns)
        elif self.index == "hnsw":
            index = faiss.IndexHNSWFlat(columns, LINKS)
        else:
            try:
                index = faiss.index_factory(columns, self.index)
            except RuntimeError as error:
                raise ValueError(
                    f'expected index to be "flat", "hnsw" or a string for faiss.index_factory at {columns} columns, '
                    f"but got {self.index!r}: {_reason(error)}"
                ) from error
        if hasattr(index, "hnsw"):
            index.hnsw.efConstruction = self.ef_construction
        try:
            index.train(rows)
            index.add(rows)
        except RuntimeError as error:
            raise ValueError(
                f"expected X that index {self.index!r} can be made of, but got {len(rows)} rows: {_reason(error)}"
            ) from error
        return index

    def _tune(self, index: Any) -> None:
        space = _faiss().ParameterSpace()
        for name, value in (("efSearch", self.ef_search), ("nprobe", self.nprobe)):
            with contextlib.suppress(RuntimeError):  # an index that has no such parameter
                space.set_index_parameter(index, name, value)

    def _prepared(self, rows: Tensor) -> np.ndarray:
        """float32 rows for faiss: less their mean, whose square would hide distances, or of length 1."""
        rows = unit_rows(rows, "X") if self.metric == "cosine" else rows - self._centre
        return np.ascontiguousarray(rows.to(torch.float32).numpy())


PARAMETERS = ("n_neighbors", "index", "metric", "ef_search", "ef_construction", "nprobe")


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError('FaissNeighbors needs faiss: pip install "imbloss[faiss]"') from error
    return faiss


def _reason(error: RuntimeError) -> str:
    """What faiss says, without the places in its source."""
    return str(error).strip().splitlines()[-1].split(".cpp:")[-1].split(": ", 1)[-1]


def _floating(X: Any, name: str) -> Tensor:  # noqa: N803
    x = _kinds.to_tensor(X, name).detach().cpu()
    return x if x.is_floating_point() or x.is_complex() else x.double()


def _check_whole(value: Any, name: str, most: int | None = None, among: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"expected {name} to be an int, but got {describe(value)}")
    if int(value) < 1 or (most is not None and int(value) > most):
        bounds = ">= 1" if most is None else f"in [1, {most}], {among}"
        raise ValueError(f"expected {name} {bounds}, but got {value}")
