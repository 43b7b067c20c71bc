"""Under-samplers and cleaners: rows are chosen, none is made."""

import warnings
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from imbloss.sampling import base, strategy
from imbloss.sampling.base import Rows, Sampler
from imbloss.sampling.draws import Draws
from imbloss.sampling.neighbors import chunks, nearest, widest

SELECTIONS = ("all", "mode")


class Choosing(Sampler):
    """Samplers whose result is rows of X."""

    _kind = strategy.UNDER
    sample_indices_: Any

    def _resample(self, rows: Rows, plan: dict[int, int], draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        chosen = self.sample_indices_ = self._chosen(rows, plan, draws)
        return rows.x[chosen], rows.codes[chosen], chosen

    def _chosen(self, rows: Rows, plan: dict[int, int], draws: Draws) -> Tensor:
        """Class after class, in the classes' order; those that are not in the plan whole."""
        kept = []
        for code in range(len(rows.classes)):
            members = rows.members(code)
            kept.append(members[self._of_class(rows, code, members, plan[code], draws)] if code in plan else members)
        return torch.cat(kept)

    def _of_class(self, rows: Rows, code: int, members: Tensor, count: int, draws: Draws) -> Tensor:
        """Which of the members stay, as indices among them or a mask."""
        raise NotImplementedError


class RandomUnderSampler(Choosing):
    """Rows of the larger classes left out at random.

    Args:
        sampling_strategy: see docs/sampling.md; "auto" leaves every class as many rows as the smallest has.
        random_state: see :class:`imbloss.SMOTE`.
        replacement: whether a row may be drawn more than once.

    Attributes:
        sample_indices_: the rows of X that stay, class after class.
        sampling_strategy_: class -> how many rows stay.

    >>> X, y = torch.arange(20.0).view(10, 2), torch.tensor([0] * 7 + [1] * 3)
    >>> RandomUnderSampler(random_state=0).fit_resample(X, y)[1].bincount()
    tensor([3, 3])
    """

    _computes = False

    def __init__(self, *, sampling_strategy: Any = "auto", random_state: Any = None, replacement: bool = False):
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.replacement = replacement

    def _of_class(self, rows: Rows, code: int, members: Tensor, count: int, draws: Draws) -> Tensor:
        return draws.choice(len(members), count, self.replacement)


class TomekLinks(Choosing):
    """Leaves out rows of the larger classes that are in a Tomek link: two rows of different classes, each the other's
    nearest neighbour.

    Args:
        sampling_strategy: which classes are cleaned: "auto" (all but the smallest), another name, or a list of them.

    Attributes:
        sample_indices_: the rows of X that stay, in order.

    Source: Tomek, Two modifications of CNN, IEEE Transactions on Systems, Man, and Cybernetics 6, 1976.

    >>> X, y = torch.tensor([[0.0], [1.0], [2.9], [3.0], [4.0]]), torch.tensor([0, 0, 0, 1, 1])
    >>> TomekLinks().fit_resample(X, y)[1]
    tensor([0, 0, 1, 1])
    """

    _kind = strategy.CLEAN

    def __init__(self, *, sampling_strategy: Any = "auto"):
        self.sampling_strategy = sampling_strategy

    def _chosen(self, rows: Rows, plan: dict[int, int], draws: Draws) -> Tensor:
        first = nearest(rows.x, 1)[1].squeeze(1)
        link = (first[first] == torch.arange(len(first), device=first.device)) & (rows.codes != rows.codes[first])
        link &= torch.isin(rows.codes, torch.tensor(list(plan), device=link.device))
        return (~link).nonzero().squeeze(1)


class EditedNearestNeighbours(Choosing):
    """Leaves out rows that their neighbours contradict.

    Args:
        sampling_strategy: as :class:`TomekLinks`.
        n_neighbors: how many, among all rows; or an object, as :class:`imbloss.SMOTE` takes one.
        kind_sel: "all" keeps a row whose neighbours are all of its class, "mode" one whose class is the commonest
            among them (of equally common ones, the first).

    Attributes:
        sample_indices_: the rows of X that stay, class after class.

    Source: Wilson, Asymptotic properties of nearest neighbor rules using edited data, IEEE Transactions on Systems,
    Man, and Cybernetics 2, 1972.

    >>> X, y = torch.tensor([[0.0], [1.0], [2.0], [9.0], [9.5], [9.8]]), torch.tensor([0, 0, 0, 0, 1, 1])
    >>> EditedNearestNeighbours(n_neighbors=2).fit_resample(X, y)[0].flatten()
    tensor([0.0000, 1.0000, 2.0000, 9.5000, 9.8000])
    """

    _kind = strategy.CLEAN

    def __init__(self, *, sampling_strategy: Any = "auto", n_neighbors: Any = 3, kind_sel: str = "all"):
        self.sampling_strategy = sampling_strategy
        self.n_neighbors = n_neighbors
        self.kind_sel = kind_sel

    def _chosen(self, rows: Rows, plan: dict[int, int], draws: Draws) -> Tensor:
        base.check_neighbors(self.n_neighbors, "n_neighbors")
        if self.kind_sel not in SELECTIONS:
            raise ValueError(f"expected kind_sel in {SELECTIONS}, but got {self.kind_sel!r}")
        k = base.count_of(self.n_neighbors)
        if len(rows.x) <= k:
            raise ValueError(f"expected more than n_neighbors={k} rows in X, but got {len(rows.x)}")
        return super()._chosen(rows, plan, draws)

    def _of_class(self, rows: Rows, code: int, members: Tensor, count: int, draws: Draws) -> Tensor:
        labels = rows.codes[base.neighbours_of(rows.x, members, self.n_neighbors)]
        if self.kind_sel == "all":
            return (labels == code).all(1)
        votes = torch.stack([(labels == labels[:, i : i + 1]).sum(1) for i in range(labels.shape[1])], 1)
        winner = (votes * len(rows.classes) - labels).argmax(1, keepdim=True)
        return labels.gather(1, winner).squeeze(1) == code


class NearMiss(Choosing):
    """Keeps the rows of the larger classes that are near the smallest class.

    Args:
        sampling_strategy: see :class:`RandomUnderSampler`.
        version: 1 keeps the rows with the least mean distance to their nearest rows of the smallest class; 2, to their
            farthest ones; 3, among the nearest neighbours of the smallest class, those with the largest mean distance
            to it.
        n_neighbors: how many rows the mean is over; or an object, as :class:`imbloss.SMOTE` takes one, asked for the
            ``n_neighbors`` it has (version 2 takes the number alone: no object searches for the farthest).
        n_neighbors_ver3: how many neighbours of each row of the smallest class version 3 begins with.

    Attributes:
        sample_indices_: the rows of X that stay, class after class, the best first.
        sampling_strategy_: class -> how many rows stay. Version 3 may find fewer, and warns.

    Source: Mani and Zhang, kNN approach to unbalanced data distributions, ICML workshop on imbalanced data, 2003.

    >>> X, y = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]), torch.tensor([0, 0, 0, 0, 1, 1])
    >>> NearMiss(n_neighbors=1).fit_resample(X, y)[0].flatten()
    tensor([3., 2., 4., 5.])
    """

    def __init__(
        self,
        *,
        sampling_strategy: Any = "auto",
        version: int = 1,
        n_neighbors: Any = 3,
        n_neighbors_ver3: Any = 3,
    ):
        self.sampling_strategy = sampling_strategy
        self.version = version
        self.n_neighbors = n_neighbors
        self.n_neighbors_ver3 = n_neighbors_ver3

    def _chosen(self, rows: Rows, plan: dict[int, int], draws: Draws) -> Tensor:
        if self.version not in (1, 2, 3):
            raise ValueError(f"expected version in (1, 2, 3), but got {self.version!r}")
        for name in ("n_neighbors", "n_neighbors_ver3"):
            base.check_neighbors(getattr(self, name), name)
        counts = torch.bincount(rows.codes).tolist()
        self._smallest = rows.x[rows.members(counts.index(min(counts)))]
        wanted = self._count()
        if wanted > len(self._smallest):
            raise ValueError(
                f"expected n_neighbors <= the {len(self._smallest)} rows of the smallest class, but got {wanted}"
            )
        chosen = super()._chosen(rows, plan, draws)
        del self._smallest
        return chosen

    def _count(self) -> int:
        given = self.n_neighbors
        return int(given) if isinstance(given, Integral) else int(given.n_neighbors)

    def _of_class(self, rows: Rows, code: int, members: Tensor, count: int, draws: Draws) -> Tensor:
        own = rows.x[members]
        if self.version == 2:
            return _farthest(own, self._smallest, self._count()).sum(1).sort(stable=True)[1][:count]
        if self.version == 1:
            distances, _ = neighbours_among(self._smallest, own, self.n_neighbors)
            return distances.to(widest(own)).sum(1).sort(stable=True)[1][:count]
        found = neighbours_among(own, self._smallest, self.n_neighbors_ver3)[1].unique()
        distances, _ = neighbours_among(self._smallest, own[found], self.n_neighbors)
        if len(found) < count:
            warnings.warn(
                f"imbloss.NearMiss found {len(found)} rows of class {rows.classes[code]!r} near the smallest class, "
                f"and keeps them all: {count} were asked for",
                stacklevel=5,
            )
        order = distances.to(widest(own)).sum(1).sort(descending=True, stable=True)[1]
        return found[order][:count]


def neighbours_among(points: Tensor, queries: Tensor, neighbors: Any) -> tuple[Tensor, Tensor]:
    """Distances and indices of the points nearest to queries that are none of them."""
    if isinstance(neighbors, Integral):
        return nearest(points, int(neighbors), queries)
    return base.asked_object(points, queries, neighbors)


def _farthest(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Distances to the k farthest points, (m, k)."""
    wide = points.to(widest(points))
    tiles = (
        torch.cdist(queries[rows].to(wide.dtype), wide, compute_mode="donot_use_mm_for_euclid_dist").topk(k).values
        for rows in chunks(len(queries), len(points))
    )
    return torch.cat(list(tiles))
