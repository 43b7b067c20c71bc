"""Neighbours and new rows where each process of a group holds some of the rows. Blocks of rows go round the ring of
processes, each of which looks for the neighbours of its own; no process ever holds all of them.

Rows are numbered as if those of process 0 were followed by those of process 1, and so on.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from imbloss.priors import describe
from imbloss.sampling import _kinds, base, strategy
from imbloss.sampling.base import Rows, SampleInfo
from imbloss.sampling.blocks import Nearest
from imbloss.sampling.draws import Draws, draws_from
from imbloss.sampling.neighbors import check_finite, check_k, checked, cosine_of, unit_rows

BLOCK = 1 << 16  # new rows at a time


class Ring:
    """What processes tell each other.

    Raises:
        RuntimeError: a process ended, or sent nothing within the group's time-out.
    """

    def __init__(self, group: Any) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("expected torch.distributed to be initialised for group, but it is not")
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"expected group to be a process group or None, but got {describe(group)}")
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("expected group to be one that this process belongs to, but it does not")

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch's, of any backend
            raise RuntimeError(
                f"expected all {self.size} processes of the group to take part, but one ended, failed or sent nothing "
                f"within the group's time-out{self._time_out()}; seen by process {self.rank}: {error}"
            ) from error

    def _time_out(self) -> str:
        for device in ("cpu", "cuda"):
            with contextlib.suppress(Exception):  # torch has no public way to ask
                return f" of {self.group._get_backend(torch.device(device)).options._timeout.total_seconds():g} s"
        return ""

    def gathered(self, value: Any) -> list[Any]:
        """Every process's, in order."""
        values: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def agreed(self, prepare: Callable[[], tuple[dict[str, Any], Any]]) -> tuple[list[Any], Any]:
        """Calls ``prepare``, which returns what has to be alike on all processes, by name, and anything else.

        An error of one process becomes an error of all, so that none waits for it.

        Returns:
            Every process's dict, and this one's anything.
        """
        own: Exception | None = None
        facts, rest = {}, None
        try:
            facts, rest = prepare()
        except (TypeError, ValueError) as error:
            own = error
        told = self.gathered((facts, None if own is None else str(own)))
        if own is not None:
            raise own
        for rank, (_, error) in enumerate(told):
            if error is not None:
                raise ValueError(f"expected arguments that are right on all processes, but process {rank}: {error}")
        all_facts = [facts for facts, _ in told]
        for name, value in all_facts[0].items():
            for rank, other in enumerate(all_facts):
                if not name.startswith("own ") and other[name] != value:
                    raise ValueError(
                        f"expected {name} to be alike on all processes, but got {value} on process 0 and {other[name]} "
                        f"on process {rank}"
                    )
        return all_facts, rest

    def passed_on(self, block: Tensor, sizes: list[int]) -> Iterator[tuple[int, Tensor]]:
        """Every process's block of rows, from this one's on backwards, and whose it is. The next one is under way while
        the caller has one."""
        holder = self.rank
        for step in range(self.size):
            following, works = block, []
            before = (holder - 1) % self.size
            if step < self.size - 1:
                following = block.new_empty((sizes[before], *block.shape[1:]))
                ops = []
                if sizes[holder]:
                    ops.append(dist.P2POp(dist.isend, _bytes(block), group=self.group, group_peer=self._to(1)))
                if sizes[before]:
                    ops.append(dist.P2POp(dist.irecv, _bytes(following), group=self.group, group_peer=self._to(-1)))
                with self._together():
                    works = dist.batch_isend_irecv(ops) if ops else []
            yield holder, block
            with self._together():
                for work in works:
                    work.wait()
            block, holder = following, before

    def _to(self, step: int) -> int:
        return (self.rank + step) % self.size

    def fetched(self, numbers: Tensor, sizes: list[int], *held: Tensor) -> list[Tensor]:
        """Rows of other processes.

        Args:
            numbers: of rows, ascending, (u,); process r holds those after the ``sizes`` of the ones before it.
            held: tensors whose rows this process holds.

        Returns:
            For each of ``held``, its rows of these numbers, (u, ...).
        """
        first = torch.tensor([0, *accumulate(sizes)], device=numbers.device)
        wanted = torch.searchsorted(numbers, first).diff()
        given = torch.empty_like(wanted)
        with self._together():
            dist.all_to_all_single(given, wanted, group=self.group)
        ask, answer = wanted.tolist(), given.tolist()
        local = numbers - torch.repeat_interleave(first[:-1], wanted, output_size=len(numbers))
        asked = numbers.new_empty(sum(answer))
        with self._together():
            dist.all_to_all_single(asked, local, answer, ask, group=self.group)
        results = []
        for rows in held:
            result = rows.new_empty((len(numbers), *rows.shape[1:]))
            with self._together():
                dist.all_to_all_single(_bytes(result), _bytes(rows[asked]), ask, answer, group=self.group)
            results.append(result)
        return results


def _bytes(rows: Tensor) -> Tensor:
    """The same memory, (n, bytes of a row), which every backend sends, whatever the dtype."""
    flat = rows.view(len(rows), -1) if rows.numel() else rows.reshape(len(rows), rows[:1].numel() or 1)
    return flat.view(torch.uint8)


def nearest(
    ring: Ring, points: Tensor, k: int, queries: Tensor, own: Tensor | None, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """Distances and numbers of the nearest of all processes' points, ``sizes`` many each; see :class:`Nearest`."""
    best = Nearest(queries, k, own)
    first = [0, *accumulate(sizes)]
    for holder, block in ring.passed_on(points.contiguous(), sizes):
        best.add(block, first[holder])
    return best.result()


def knn(points: Any, k: int, queries: Any, metric: str, progress: bool | None, group: Any) -> tuple[Any, Any]:
    """:func:`neighbors.knn` beside ``group``."""
    ring = Ring(group)

    def prepare() -> tuple[dict[str, Any], Any]:
        kind, rows, asked = checked(points, queries, metric, progress)
        if isinstance(k, bool) or not isinstance(k, int):
            check_k(k, 0, False)
        check_finite(rows, "points")
        if asked is not None:
            check_finite(asked, "queries")
        facts = {
            "k": k,
            "metric": metric,
            "queries is None": asked is None,
            "the dtype of points": rows.dtype,
            "the columns of points": rows.shape[1],
            "the kind of device": rows.device.type,
            "own count": len(rows),
        }
        if metric == "cosine":
            units = None if asked is None else unit_rows(asked, "queries")
            return facts, (kind, rows.dtype, unit_rows(rows, "points"), units)
        return facts, (kind, rows.dtype, rows, asked)

    facts, (kind, dtype, rows, asked) = ring.agreed(prepare)
    sizes = [fact["own count"] for fact in facts]
    check_k(k, sum(sizes), asked is None)
    own = None
    if asked is None:
        own = torch.arange(len(rows), device=rows.device) + sum(sizes[: ring.rank])
    distances, numbers = nearest(ring, rows, k, rows if asked is None else asked, own, sizes)
    if metric == "cosine":
        distances = cosine_of(distances, dtype)
    return _kinds.like(kind, distances), _kinds.like(kind, numbers)


# ---- new rows ----------------------------------------------------------------------------------------------------
@dataclass
class Part:
    """The rows that this process holds, and how many the others do."""

    ring: Ring
    rows: Rows  # codes number the classes of all processes
    counts: list[list[int]]  # of each process, by code

    def __post_init__(self) -> None:
        self.totals = [sum(counts) for counts in self.counts]
        self.offset = sum(self.totals[: self.ring.rank])  # the number of the first row here

    def sizes(self, code: int) -> list[int]:
        return [counts[code] for counts in self.counts]

    def neighbours(self, members: Tensor, which: Tensor, k: int, code: int | None) -> Tensor:
        """Numbers of the nearest rows of a class, or of all, to this process's ``members[which]``; (len(which), k).

        Rows of a class are numbered among its rows.
        """
        x = self.rows.x
        if code is None:
            own, points, sizes = self.offset + members[which], x, self.totals
        else:
            sizes = self.sizes(code)
            own, points = sum(sizes[: self.ring.rank]) + which, x[members]
        return nearest(self.ring, points, k, x[members[which]], own, sizes)[1]

    def codes_of(self, numbers: Tensor) -> Tensor:
        """Codes of rows of any process."""
        wanted, place = numbers.unique(return_inverse=True)
        (codes,) = self.ring.fetched(wanted, self.totals, self.rows.codes)
        return codes[place]

    def foreign(self, code: int, k: int) -> Tensor:
        """How many of the k neighbours of each row of a class here are of other classes."""
        members = self.rows.members(code)
        every = torch.arange(len(members), device=members.device)
        return (self.codes_of(self.neighbours(members, every, k, None)) != code).sum(1)


@dataclass
class Drawn:
    """What one process draws for a class, by the same random numbers as all others."""

    bases: Tensor  # of this process, as numbers among the class's rows here
    first: int  # how many bases the processes before it have
    row: Tensor  # among all processes' bases, one for each new row
    column: Tensor  # of the neighbours
    gap: Tensor


@dataclass
class Made:
    x: Tensor
    parent: Tensor
    neighbour: Tensor
    gap: Tensor


def make(part: Part, code: int, k: int, drawn: Drawn, of_class: bool, halve: Callable | None = None) -> Made:
    """The new rows whose base this process holds.

    Args:
        of_class: whether neighbours are of the class, or of any.
        halve: ``halve(gap, which)`` shortens the gaps towards rows of other classes, which it gets as places in all
            processes' draws.
    """
    ring, x, members = part.ring, part.rows.x, part.rows.members(code)
    here = (drawn.row >= drawn.first) & (drawn.row < drawn.first + len(drawn.bases))
    mine = here.nonzero().squeeze(1)
    base_of, column, gap = drawn.bases[drawn.row[mine] - drawn.first], drawn.column[mine], drawn.gap
    which, place = base_of.unique(return_inverse=True)
    found = part.neighbours(members, which, k, code if of_class else None)[place, column]
    wanted, towards = found.unique(return_inverse=True)
    if of_class:
        numbers = part.offset + members
        rows, neighbour = ring.fetched(wanted, part.sizes(code), x[members], numbers)
    else:
        rows, codes = ring.fetched(wanted, part.totals, x, part.rows.codes)
        neighbour = wanted
        if halve is not None:
            foreign = torch.zeros(len(drawn.row), dtype=torch.int32, device=x.device)
            foreign[mine] = (codes[towards] != code).int()
            with ring._together():
                dist.all_reduce(foreign, group=ring.group)
            gap = halve(gap, foreign.nonzero().squeeze(1))
    parent, gap = members[base_of], gap[mine]
    return Made(_between(x, parent, rows, towards, gap), part.offset + parent, neighbour[towards], gap)


def _between(x: Tensor, parent: Tensor, others: Tensor, towards: Tensor, gap: Tensor) -> Tensor:
    out = x.new_empty((len(parent), x.shape[1]))
    for start in range(0, len(parent), BLOCK):
        block = slice(start, start + BLOCK)
        ends = Rows(torch.cat([x[parent[block]], others[towards[block]]]), parent[:0], [])
        ends.codes = parent.new_zeros(len(ends.x))
        number = torch.arange(len(ends.x) // 2, device=x.device)
        new = base.with_new_rows(ends, [base.Recipe(0, number, len(number) + number, gap[block])])[0]
        out[block] = new[len(ends.x) :]
    return out


def fit_resample(sampler: Any, X: Any, y: Any) -> tuple[Any, Any]:  # noqa: N803
    """Of a sampler with a group: this process's rows, and behind them the new ones that it makes."""
    ring = Ring(sampler.group)

    def prepare() -> tuple[dict[str, Any], Any]:
        sampler._check_parameters()
        for name in ("k_neighbors", "m_neighbors", "n_neighbors"):
            if hasattr(sampler, name) and not isinstance(getattr(sampler, name), Integral):
                raise TypeError(
                    f"expected {name} to be an int beside group, but got {describe(getattr(sampler, name))}"
                )
        if callable(sampler.sampling_strategy):
            raise TypeError("expected sampling_strategy to be no function beside group: it would see one process's y")
        state = sampler.random_state
        if isinstance(state, np.random.RandomState):
            raise TypeError("expected random_state to be None, an int or a torch.Generator beside group")
        draws_from(state, _kinds.to_tensor(X, "X").device)  # which checks it
        seed = _seed(state) if state is None or isinstance(state, torch.Generator) else int(state)
        rows, classes = sampler._as_rows(X, y)
        given = {name: value for name, value in vars(sampler).items() if name not in ("group", "random_state")}
        given = {name: value for name, value in given.items() if name[-1] != "_" and name != "in_danger_indices"}
        facts = {
            "the sampler": f"{type(sampler).__name__} {given}",
            "random_state": "none"
            if state is None
            else describe(state)
            if isinstance(state, torch.Generator)
            else seed,
            "the dtype of X": str(_kinds.to_tensor(X, "X").dtype),
            "the shape of rows of X": tuple(rows.shape),
            "the kind of device": rows.x.device.type,
            "the dtype of y": str(y.dtype) if isinstance(y, Tensor) else np.asarray(classes).dtype.kind,
            "own counts": dict(
                zip(rows.classes, torch.bincount(rows.codes, minlength=len(rows.classes)).tolist(), strict=True)
            ),
            "own seed": seed,
        }
        return facts, (rows, classes)

    facts, (rows, classes) = ring.agreed(prepare)
    labels = sorted(set().union(*(fact["own counts"] for fact in facts)))
    counts = [[fact["own counts"].get(label, 0) for label in labels] for fact in facts]
    of_class = {label: sum(column) for label, column in zip(labels, zip(*counts, strict=True), strict=True)}
    wanted = strategy.resolve(sampler.sampling_strategy, of_class, strategy.OVER, y)
    code = torch.tensor([labels.index(label) for label in rows.classes], dtype=torch.int64, device=rows.x.device)
    part = Part(ring, Rows(rows.x, code[rows.codes], labels, rows.shape), counts)
    draws = draws_from(facts[0]["own seed"], rows.x.device)
    made, codes = [], [part.rows.codes]
    for number, label in enumerate(labels):
        if wanted.get(label, 0):
            new: Made | None = sampler._make(part, number, wanted[label], draws)
            if new is not None:
                made.append(new)
                codes.append(torch.full_like(new.parent, number))
    sampler.sampling_strategy_ = wanted
    nothing = part.rows.codes[:0]
    sampler.sample_info_ = SampleInfo(
        torch.cat([nothing, *(new.parent for new in made)]),
        torch.cat([nothing, *(new.neighbour for new in made)]),
        torch.cat([nothing.to(base._gap_dtype(rows.x)), *(new.gap for new in made)]),
    )
    x = torch.cat([rows.x, *(new.x for new in made)])
    if isinstance(y, Tensor):
        classes = torch.tensor(labels, dtype=y.dtype, device=y.device)
    else:
        classes = np.array(labels, dtype=None if classes.dtype.kind == "U" else classes.dtype)
    return sampler._as_given(X, y, rows, classes, x, torch.cat(codes), None)


def _seed(state: torch.Generator | None) -> int:
    device = "cpu" if state is None else state.device
    return int(torch.randint(2**62, (), generator=state, device=device))


def draw(part: Part, bases: Tensor, k: int, count: int, draws: Draws) -> Drawn | None:
    """Bases drawn uniformly, as :class:`SMOTE` draws rows; None where no process has any."""
    sizes = part.ring.gathered(len(bases))
    if not sum(sizes):
        return None
    drawn = draws.integers(sum(sizes) * k, count)
    gap = base.draw_gap(draws, part.rows.x, count)
    return Drawn(bases, sum(sizes[: part.ring.rank]), drawn // k, drawn % k, gap)
