"""SMOTE and its relatives: new rows on the line between a row of a class and one of its neighbours."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbloss.sampling import base, ring
from imbloss.sampling.base import Recipe, Rows, SampleInfo, Sampler
from imbloss.sampling.draws import Draws
from imbloss.sampling.stream import Data, Lines, Streaming

KINDS = ("borderline-1", "borderline-2")


class Interpolating(Streaming):
    """Over-samplers whose new rows are interpolated."""

    sample_info_: SampleInfo
    group: Any = None

    def fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:  # noqa: N803
        return super().fit_resample(X, y) if self.group is None else ring.fit_resample(self, X, y)

    fit_resample.__doc__ = Sampler.fit_resample.__doc__

    def _make(self, part: ring.Part, code: int, count: int, draws: Draws) -> ring.Made | None:
        """The new rows of a class that this process of ``group`` makes."""
        raise NotImplementedError

    def _resample(self, rows: Rows, plan: dict[int, int], draws: Draws) -> tuple[Tensor, Tensor, None]:
        self._check_parameters()
        recipes = [self._recipe(rows, code, count, draws) for code, count in plan.items() if count]
        x, codes, self.sample_info_ = base.with_new_rows(rows, (recipe for recipe in recipes if recipe is not None))
        return x, codes, None

    def _check_parameters(self) -> None:
        raise NotImplementedError

    def _recipe(self, rows: Rows, code: int, count: int, draws: Draws) -> Recipe | None:
        raise NotImplementedError


def check_size(rows: Rows, members: Tensor, code: int, neighbors: Any, name: str) -> int:
    return check_count(len(members), rows.classes[code], neighbors, name)


def check_count(count: int, label: Any, neighbors: Any, name: str) -> int:
    k = base.count_of(neighbors)
    if count <= k:
        raise ValueError(
            f"expected more than {name}={k} rows in a class to over-sample, but got {count} in class {label!r}"
        )
    return k


def check_all(count: int, neighbors: Any, name: str) -> int:
    k = base.count_of(neighbors)
    if count <= k:
        raise ValueError(f"expected more than {name}={k} rows in X, but got {count}")
    return k


def in_danger(foreign: Any, m: int) -> Any:
    """Whether of m neighbours at least half, but not all, are of other classes."""
    return (2 * foreign >= m) & (foreign < m)


def shares_of(foreign: Tensor, k: int, count: int, label: Any) -> Tensor:
    """ADASYN's numbers of new rows, before they are rounded, from the foreign ones of k neighbours."""
    share = foreign.to(torch.float32 if foreign.device.type == "mps" else torch.float64) / k
    if not bool(share.sum() > 0):
        raise RuntimeError(f"expected neighbours of other classes for ADASYN, but class {label!r} has none: use SMOTE")
    return share / share.sum() * count


def shared_out(foreign: Tensor, k: int, count: int, label: Any) -> Tensor:
    """ADASYN's parents of new rows, in order."""
    row = torch.repeat_interleave(shares_of(foreign, k, count, label).round().long())
    if not len(row):
        raise ValueError(
            f"expected enough new rows to share out, but got {count} for class {label!r}, which "
            "round to 0 for every row"
        )
    return row


def foreign_of(data: Data, code: int, codes: np.ndarray, neighbors: Any) -> np.ndarray:
    """How many neighbours of each row of a class, among all rows, are of other classes."""
    found = data.neighbours(None, data.of_class(code), neighbors)
    return (codes[found] != code).sum(1)


class SMOTE(Interpolating):
    r"""Synthetic minority over-sampling: new rows between a row and one of its k nearest neighbours in its class.

    .. math:: \tilde{x} = x_i + u \, (x_j - x_i), \qquad u \sim U[0, 1), \; j \text{ a neighbour of } i

    Row i and neighbour j are drawn uniformly, class by class; only rows that were drawn are searched for neighbours.

    Args:
        sampling_strategy: see docs/sampling.md; "auto" gives every class as many rows as the largest has.
        random_state: None (torch's own generator), an int or a torch.Generator; a numpy RandomState gives the draws
            that imbalanced-learn makes from it.
        k_neighbors: how many; or an object with scikit-learn's ``fit`` and ``kneighbors``, whose first column (the row
            itself) is left out.
        group: a process group, each process of which calls ``fit_resample`` with rows of its own, of any number: a new
            row is made by the process that holds its parent, as if one process had all rows. See docs/sampling.md.

    Attributes:
        sample_info_: for each new row ``parent``, ``neighbour`` (indices of X; with ``group`` of all processes' rows,
            process after process) and ``gap`` (u).
        sampling_strategy_: class -> how many new rows, of all processes together.

    Raises (``fit_resample``):
        ValueError: a class to over-sample with no more than ``k_neighbors`` rows, one class alone, a NaN in X;
            arguments that are not alike on all processes.
        RuntimeError: a process of ``group`` ended, or sent nothing within the group's time-out.

    X and y come back unchanged and in order, the new rows behind them, class by class.
    Source: Chawla et al., SMOTE: Synthetic Minority Over-sampling Technique, JAIR 16, 2002.

    >>> X, y = torch.arange(20.0).view(10, 2), torch.tensor([0] * 7 + [1] * 3)
    >>> X_new, y_new = SMOTE(k_neighbors=2, random_state=0).fit_resample(X, y)
    >>> X_new.shape, y_new.bincount()
    (torch.Size([14, 2]), tensor([7, 7]))
    """

    def __init__(
        self, *, sampling_strategy: Any = "auto", random_state: Any = None, k_neighbors: Any = 5, group: Any = None
    ):
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.k_neighbors = k_neighbors
        self.group = group

    def _check_parameters(self) -> None:
        base.check_neighbors(self.k_neighbors, "k_neighbors")

    def _recipe(self, rows: Rows, code: int, count: int, draws: Draws) -> Recipe | None:
        members = rows.members(code)
        k = check_size(rows, members, code, self.k_neighbors, "k_neighbors")
        drawn = draws.integers(len(members) * k, count)
        gap = base.draw_gap(draws, rows.x, count)
        row, column = drawn // k, drawn % k
        neighbour = base.drawn_neighbours(rows.x[members], row, column, self.k_neighbors)
        return Recipe(code, members[row], members[neighbour], gap)

    def _maker(self, data: Data, plan: dict[int, int]) -> tuple[Lines, bool]:
        self._check_parameters()
        for code in plan:
            check_count(len(data.of_class(code)), data.classes[code], self.k_neighbors, "k_neighbors")
        return Lines(data, dict.fromkeys(plan), self.k_neighbors), False

    def _make(self, part: ring.Part, code: int, count: int, draws: Draws) -> ring.Made | None:
        k = check_count(sum(part.sizes(code)), part.rows.classes[code], self.k_neighbors, "k_neighbors")
        members = part.rows.members(code)
        drawn = ring.draw(part, torch.arange(len(members), device=members.device), k, count, draws)
        return drawn and ring.make(part, code, k, drawn, of_class=True)


class BorderlineSMOTE(SMOTE):
    """SMOTE from the rows in danger alone: those of whose m nearest neighbours at least half, but not all, are of
    other classes.

    Args:
        sampling_strategy, random_state, k_neighbors, group: see :class:`SMOTE`.
        m_neighbors: by how many neighbours, among all rows, danger is judged; or an object, as ``k_neighbors``.
        kind: "borderline-1": neighbours of the same class; "borderline-2": of any class, and to one of another class
            at most half of the way.

    Attributes:
        sample_info_, sampling_strategy_: see :class:`SMOTE`.
        in_danger_indices: class -> indices of its rows in danger; with ``group`` of this process's.

    A class without rows in danger gets no new ones. Raises as :class:`SMOTE` does.
    Source: Han et al., Borderline-SMOTE, ICIC 2005.

    >>> X, y = torch.tensor([[0.0], [1.0], [2.0], [3.0], [3.5], [4.0], [5.0]]), torch.tensor([0, 0, 0, 0, 1, 1, 1])
    >>> sampler = BorderlineSMOTE(k_neighbors=1, m_neighbors=2, random_state=0)
    >>> sampler.fit_resample(X, y)[0].shape, sampler.in_danger_indices
    (torch.Size([8, 1]), {1: tensor([4, 5])})
    """

    def __init__(
        self,
        *,
        sampling_strategy: Any = "auto",
        random_state: Any = None,
        k_neighbors: Any = 5,
        m_neighbors: Any = 10,
        kind: str = "borderline-1",
        group: Any = None,
    ):
        super().__init__(
            sampling_strategy=sampling_strategy, random_state=random_state, k_neighbors=k_neighbors, group=group
        )
        self.m_neighbors = m_neighbors
        self.kind = kind

    def _check_parameters(self) -> None:
        super()._check_parameters()
        base.check_neighbors(self.m_neighbors, "m_neighbors")
        if self.kind not in KINDS:
            raise ValueError(f"expected kind in {KINDS}, but got {self.kind!r}")
        self.in_danger_indices: dict[Any, Any] = {}

    def _recipe(self, rows: Rows, code: int, count: int, draws: Draws) -> Recipe | None:
        members = rows.members(code)
        m = check_all(len(rows.x), self.m_neighbors, "m_neighbors")
        others = rows.codes[base.neighbours_of(rows.x, members, self.m_neighbors)] != code
        danger = in_danger(others.sum(1), m).nonzero().squeeze(1)
        if not len(danger):
            return None
        self.in_danger_indices[rows.classes[code]] = members[danger]
        of_class = self.kind == KINDS[0]
        k = (
            check_size(rows, members, code, self.k_neighbors, "k_neighbors")
            if of_class
            else check_all(len(rows.x), self.k_neighbors, "k_neighbors")
        )
        drawn = draws.integers(len(danger) * k, count)
        gap = base.draw_gap(draws, rows.x, count)
        row, column = danger[drawn // k], drawn % k
        if of_class:
            neighbour = members[base.drawn_neighbours(rows.x[members], row, column, self.k_neighbors)]
        else:
            neighbour = base.drawn_neighbours(rows.x, members[row], column, self.k_neighbors)
            foreign = (rows.codes[neighbour] != code).nonzero().squeeze(1)
            gap[foreign] *= base.draw_gap(draws, rows.x, len(foreign)) / 2
        return Recipe(code, members[row], neighbour, gap)

    def _maker(self, data: Data, plan: dict[int, int]) -> tuple[Lines, bool]:
        self._check_parameters()
        m = check_all(len(data), self.m_neighbors, "m_neighbors")
        of_class, codes, danger = self.kind == KINDS[0], data.codes(), {}
        for code in plan:
            foreign = foreign_of(data, code, codes, self.m_neighbors)
            danger[code] = np.flatnonzero(in_danger(foreign, m))
            if len(danger[code]) and of_class:
                check_count(len(foreign), data.classes[code], self.k_neighbors, "k_neighbors")
        if not of_class:
            check_all(len(data), self.k_neighbors, "k_neighbors")
        return Lines(data, danger, self.k_neighbors, anywhere=not of_class), False

    def _make(self, part: ring.Part, code: int, count: int, draws: Draws) -> ring.Made | None:
        label, of_class = part.rows.classes[code], self.kind == KINDS[0]
        m = check_all(sum(part.totals), self.m_neighbors, "m_neighbors")
        danger = in_danger(part.foreign(code, m), m).nonzero().squeeze(1)
        if not sum(part.ring.gathered(len(danger))):
            return None
        if of_class:
            k = check_count(sum(part.sizes(code)), label, self.k_neighbors, "k_neighbors")
        else:
            k = check_all(sum(part.totals), self.k_neighbors, "k_neighbors")
        if len(danger):
            self.in_danger_indices[label] = part.offset + part.rows.members(code)[danger]
        drawn = ring.draw(part, danger, k, count, draws)

        def halve(gap: Tensor, which: Tensor) -> Tensor:
            gap[which] *= base.draw_gap(draws, part.rows.x, len(which)) / 2
            return gap

        return drawn and ring.make(part, code, k, drawn, of_class, halve)


class ADASYN(Interpolating):
    """Adaptive synthetic sampling: SMOTE whose rows get new ones in proportion to the share of other classes among
    their neighbours.

    Args:
        sampling_strategy, random_state, group: see :class:`SMOTE`.
        n_neighbors: how many, in both searches: among all rows for the shares, in the class for new rows; or an
            object, as :class:`SMOTE` takes one.

    Attributes:
        sample_info_, sampling_strategy_: see :class:`SMOTE`.

    Shares are rounded row by row, so a class ends near its number, not at it.

    Raises (``fit_resample``):
        RuntimeError: a class none of whose rows has a neighbour of another class.
        ValueError: as :class:`SMOTE`; a class that would get no rows at all, by rounding.

    Source: He et al., ADASYN, IJCNN 2008.

    >>> X, y = torch.arange(20.0).view(10, 2), torch.tensor([0] * 7 + [1] * 3)
    >>> sampler = ADASYN(n_neighbors=2, random_state=0)
    >>> sampler.fit_resample(X, y)[1].bincount(), sampler.sample_info_.parent.unique()
    (tensor([7, 7]), tensor([7]))
    """

    def __init__(
        self, *, sampling_strategy: Any = "auto", random_state: Any = None, n_neighbors: Any = 5, group: Any = None
    ):
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.n_neighbors = n_neighbors
        self.group = group

    def _check_parameters(self) -> None:
        base.check_neighbors(self.n_neighbors, "n_neighbors")

    def _recipe(self, rows: Rows, code: int, count: int, draws: Draws) -> Recipe:
        members = rows.members(code)
        k = check_size(rows, members, code, self.n_neighbors, "n_neighbors")
        others = rows.codes[base.neighbours_of(rows.x, members, self.n_neighbors)] != code
        row = shared_out(others.sum(1), k, count, rows.classes[code])
        total = len(row)
        column = draws.integers(k, total)
        gap = base.draw_gap(draws, rows.x, total)
        neighbour = base.drawn_neighbours(rows.x[members], row, column, self.n_neighbors)
        return Recipe(code, members[row], members[neighbour], gap)

    def _maker(self, data: Data, plan: dict[int, int]) -> tuple[Lines, bool]:
        self._check_parameters()
        codes, bases, weights = data.codes(), {}, {}
        for code, count in plan.items():
            k = check_count(len(data.of_class(code)), data.classes[code], self.n_neighbors, "n_neighbors")
            foreign = foreign_of(data, code, codes, self.n_neighbors)
            expected = shares_of(torch.from_numpy(foreign), k, count, data.classes[code]).numpy()
            bases[code] = np.flatnonzero(expected)
            weights[code] = expected[bases[code]]
        return Lines(data, bases, self.n_neighbors, weights), False

    def _make(self, part: ring.Part, code: int, count: int, draws: Draws) -> ring.Made | None:
        label = part.rows.classes[code]
        k = check_count(sum(part.sizes(code)), label, self.n_neighbors, "n_neighbors")
        foreign = part.foreign(code, k)
        device, sizes = foreign.device, part.sizes(code)
        row = shared_out(torch.cat(part.ring.gathered(foreign.cpu())).to(device), k, count, label)
        column = draws.integers(k, len(row))
        gap = base.draw_gap(draws, part.rows.x, len(row))
        bases = torch.arange(len(foreign), device=device)
        drawn = ring.Drawn(bases, sum(sizes[: part.ring.rank]), row, column, gap)
        return ring.make(part, code, k, drawn, of_class=True)
