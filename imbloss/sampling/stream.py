"""Endless balanced batches: rows of X and new ones made for each batch. Of X only the rows are read that a batch or a
search needs, from memory or from the file of a memmap; batch b is a function of the seed and of b."""

import mmap
import os
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from imbloss.data.draws import AliasTable, key_of
from imbloss.data.members import Members
from imbloss.data.streams import replica
from imbloss.priors import check_number, describe
from imbloss.sampling import _kinds, base, strategy
from imbloss.sampling.blocks import Nearest
from imbloss.sampling.neighbors import FLOATING, check_finite

MEMORY = 2**25  # bytes of rows at a time, in a search
AT_ONCE = 1e11  # multiplications up to which neighbours are found when the stream is made: a second
MOST_AHEAD = 64  # batches whose rows are searched for together


# ---- where rows are ----------------------------------------------------------------------------------------------
class Source(Protocol):
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def read(self, rows: np.ndarray) -> Tensor:
        """These rows, ascending: a new tensor of the shape (len(rows), *shape[1:])."""
        ...


class _Tensor:
    def __init__(self, x: Tensor) -> None:
        self.x = x.detach()
        self.shape, self.dtype, self.device = tuple(x.shape), x.dtype, x.device

    def read(self, rows: np.ndarray) -> Tensor:
        return self.x.index_select(0, torch.from_numpy(rows).to(self.device))


class _Array:
    def __init__(self, x: np.ndarray) -> None:
        self.x, self.shape, self.device = x, x.shape, torch.device("cpu")
        self.dtype = _native(np.empty(0, x.dtype)).dtype

    def read(self, rows: np.ndarray) -> Tensor:
        return _native(self.x.take(rows, 0))


class _File:
    """Rows of a file that numpy maps. Read, not mapped: pages that are mapped count as this process's memory."""

    def __init__(self, x: np.ndarray, path: str, offset: int) -> None:
        self.path, self.offset, self.step = path, offset, x.strides[0]
        self.width = x.dtype.itemsize * int(np.prod(x.shape[1:]))
        self.numpy_dtype, self.shape, self.device = x.dtype, x.shape, torch.device("cpu")
        self.dtype = _native(np.empty(0, x.dtype)).dtype
        self._file: Any = None

    def read(self, rows: np.ndarray) -> Tensor:
        if self._file is None:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115, for as long as the stream is
        out = np.empty((len(rows), *self.shape[1:]), self.numpy_dtype)
        into = out.reshape(-1).view(np.uint8).data
        joined = np.diff(rows) == 1 if self.step == self.width else np.zeros(max(len(rows) - 1, 0), bool)
        ends = [*(np.flatnonzero(~joined) + 1).tolist(), len(rows)] if len(rows) else []
        begin = 0
        if hasattr(os, "posix_fadvise"):  # all at once: a disk is slow, one after the other
            for end in ends:
                place = self.offset + int(rows[begin]) * self.step, (end - begin) * self.width
                os.posix_fadvise(self._file.fileno(), *place, os.POSIX_FADV_WILLNEED)
                begin = end
            begin = 0
        for end in ends:
            self._fill(into[begin * self.width : end * self.width], self.offset + int(rows[begin]) * self.step)
            begin = end
        return _native(out)

    def _fill(self, into: memoryview, offset: int) -> None:
        while into:
            got = os.preadv(self._file.fileno(), [into], offset)
            if not got:
                raise ValueError(f"expected X's file as long as it was, but {self.path} ends at byte {offset}")
            into, offset = into[got:], offset + got

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None}


def _native(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _file_of(x: np.ndarray) -> _File | None:
    """The file that holds x as it is, with every row in one piece."""
    root: Any = x
    while isinstance(root, np.ndarray) and not isinstance(root.base, mmap.mmap):
        root = root.base
    # what was written to one of mode "c" is not in its file
    if not isinstance(root, np.memmap) or root.mode == "c" or root.filename is None or not hasattr(os, "preadv"):
        return None
    if x.size == 0 or not x[:1].flags.c_contiguous:
        return None
    address = lambda array: array.__array_interface__["data"][0]  # noqa: E731
    source = _File(x, os.fspath(root.filename), root.offset + address(x) - address(root))
    ends = np.array([0, len(x) - 1])
    try:
        read = source.read(ends)
    except (OSError, ValueError):
        return None
    same = read.numpy().tobytes() == _native(x.take(ends, 0)).numpy().tobytes()  # or another file has that name now
    return source if same else None


def source_of(data: Any) -> Source:
    if isinstance(data, Tensor):
        return _Tensor(data)
    if _kinds.kind_of(data) == _kinds.FRAME:
        data = data.to_numpy()
    if not isinstance(data, np.ndarray):
        raise TypeError(f"expected X to be a tensor, a numpy array or a pandas frame, but got {describe(data)}")
    if data.dtype.kind not in "fiub":
        raise TypeError(f"expected X of numbers, but got an array of dtype {data.dtype}")
    return _file_of(data) or _Array(data)


class Data:
    """Rows by class. As memory a row costs the 8 bytes of its number, and its code while a stream is made."""

    def __init__(self, x: Any, y: Any, computes: bool, memory: int) -> None:
        self.source, self.memory = source_of(x), memory
        if len(self.source.shape) < 2:
            raise ValueError(f"expected X of shape (n, d) or (n, ...), but got {self.source.shape}")
        if self.source.dtype.is_complex:
            raise TypeError(f"expected X of real numbers, but got {self.source.dtype}")
        codes, self.labels = _encoded(y)
        if len(codes) != self.source.shape[0]:
            raise ValueError(f"expected y of {self.source.shape[0]} labels, one a row of X, but got {len(codes)}")
        if isinstance(y, Tensor) and y.device != self.source.device:
            raise ValueError(f"expected y on {self.source.device}, as X, but got {y.device}")
        self.classes: list[Any] = self.labels.tolist()
        self.members = Members(codes.cpu().numpy())
        self.columns = int(np.prod(self.source.shape[1:]))
        self.dtype = self.source.dtype
        if computes:
            if not self.columns:
                raise ValueError(f"expected X of at least one column, but got shape {self.source.shape}")
            if self.dtype not in FLOATING:
                wide = self.dtype.itemsize > 2 and self.source.device.type != "mps"
                self.dtype = torch.float64 if wide else torch.float32
        self._computes = computes

    def __len__(self) -> int:
        return self.source.shape[0]

    @property
    def per_block(self) -> int:
        """Rows that `memory` holds."""
        return max(1, self.memory // (self.columns * self.dtype.itemsize))

    def of_class(self, code: int) -> np.ndarray:
        start = self.members.start[code]
        return self.members.order[start : start + self.members.counts[code]]

    def codes(self) -> np.ndarray:
        codes = np.empty(len(self), np.min_scalar_type(len(self.classes)))
        for code in range(len(self.classes)):
            codes[self.of_class(code)] = code
        return codes

    def read(self, rows: np.ndarray) -> Tensor:
        """Flat rows, ascending, in the dtype that is computed with."""
        x = self.source.read(rows).flatten(1)
        if not self._computes:
            return x
        x = x.to(self.dtype)
        try:
            check_finite(x, "X")
        except ValueError:
            row = int((~x.isfinite()).any(1).nonzero()[0])
            bad = x[row][~x[row].isfinite()][0].item()
            raise ValueError(f"expected X to be finite, but got {bad} in row {rows[row]}") from None
        return x

    def blocks(self, rows: np.ndarray | None) -> Iterator[tuple[int, Tensor]]:
        """These rows of X, or all, by blocks: the number of the first one, and the rows."""
        count = len(self) if rows is None else len(rows)
        for start in range(0, count, self.per_block):
            end = min(start + self.per_block, count)
            yield start, self.read(np.arange(start, end) if rows is None else rows[start:end])

    def neighbours(self, among: np.ndarray | None, which: np.ndarray, neighbors: Any) -> np.ndarray:
        """As :func:`base.neighbours_of` of the rows ``among`` of X, or all; numbers in ``among``, (len(which), k)."""
        count = len(self) if among is None else len(among)
        device = self.source.device
        if count <= self.per_block or not isinstance(neighbors, Integral):
            x = self.read(np.arange(count) if among is None else among)
            every = None if len(which) == count else torch.from_numpy(which).to(device)
            return base.neighbours_of(x, every, neighbors).cpu().numpy()
        found = np.empty((len(which), int(neighbors)), np.int64)
        for start in range(0, len(which), self.per_block):
            part = which[start : start + self.per_block]
            queries = self.read(part if among is None else among[part])
            best = Nearest(queries, int(neighbors), torch.from_numpy(part).to(device))
            for first, points in self.blocks(among):
                best.add(points, first)
            found[start : start + len(part)] = best.result()[1].cpu().numpy()
        return found

    def spread(self, rows: np.ndarray, correction: int) -> Tensor:
        """Standard deviation of each column, (d,): :func:`bootstrap.spread` block by block."""
        wide = torch.float32 if self.source.device.type == "mps" else torch.float64
        mean = squares = torch.zeros((), dtype=wide, device=self.source.device)
        for seen, block in self.blocks(rows):
            block = block.to(wide)
            own, count = block.mean(0), len(block)
            apart = own - mean
            squares = squares + (block - own).square_().sum(0) + apart.square() * (seen * count / (seen + count))
            mean = mean + apart * (count / (seen + count))
        deviation = (squares / (len(rows) - correction)).sqrt()
        return deviation.to(torch.float64 if self.dtype == torch.float64 else torch.float32)


def _encoded(y: Any) -> tuple[Tensor, Any]:
    """:func:`base.encode`, which counts integers in tensors where it would sort those in arrays."""
    if isinstance(y, np.ndarray) and y.dtype.kind == "i":
        codes, classes = base.encode(_native(np.array(y)))
        return codes, classes.numpy().astype(y.dtype)
    return base.encode(y)


# ---- how new rows are made ---------------------------------------------------------------------------------------
class Drawn(NamedTuple):
    """A batch, before any row of it is read."""

    codes: np.ndarray  # (batch_size,)
    rows: np.ndarray  # of X, (batch_size,): the row itself, or a new one's parent
    new: np.ndarray  # places of new rows in the batch, ascending, (m,)
    bases: np.ndarray  # of new rows, (m,): a number of the maker's
    column: np.ndarray  # uniform in [0, 1), (m,)
    gap: np.ndarray  # the same
    half: np.ndarray  # uniform in [0, 1/2), (m,)
    generator: torch.Generator  # for noise


class Maker:
    """Makes new rows. A base is a row of X to make some from, numbered class by class.

    Args:
        bases: code -> numbers of rows in their class; None: all of them.
        weights: code -> how often each base is drawn; None: all as often.
    """

    def __init__(self, data: Data, bases: Mapping[int, np.ndarray | None], weights: Mapping[int, np.ndarray] | None):
        self.data = data
        self.first, self.count = (np.zeros(len(data.classes), np.int64) for _ in range(2))
        numbers, cumulative, at = [], [], 0
        for code, chosen in bases.items():
            chosen = np.arange(data.members.counts[code]) if chosen is None else chosen
            self.first[code], self.count[code] = at, len(chosen)
            at += len(chosen)
            numbers.append(chosen)
            if weights is not None:
                sums = weights[code].cumsum()
                cumulative.append(len(cumulative) + sums / sums[-1])  # of the i-th class in (i, i + 1]
        self.numbers = np.concatenate(numbers) if numbers else np.zeros(0, np.int64)
        self._cumulative = np.concatenate(cumulative) if cumulative else None
        self._turn = np.zeros(len(data.classes), np.int64)
        self._turn[list(bases)] = np.arange(len(bases))

    @property
    def makes(self) -> np.ndarray:
        """Whether a class gets new rows, by code."""
        return self.count > 0

    def drawn(self, codes: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bases of these classes from uniform numbers in [0, 1), and their rows of X."""
        first, count = self.first[codes], self.count[codes]
        if self._cumulative is None:
            bases = first + (unit * count).astype(np.int64)
        else:
            found = np.searchsorted(self._cumulative, self._turn[codes] + unit, side="right")
            bases = found.clip(first, first + count - 1)
        return bases, self.data.members.at(codes, self.numbers[bases])

    def knows(self, drawn: Drawn) -> bool:
        """Whether all is found that the batch needs."""
        return True

    def learn(self, batches: list[Drawn]) -> None:
        """Finds it."""

    def others(self, drawn: Drawn) -> np.ndarray:
        """Rows of X that are needed beside the parents."""
        return np.zeros(0, np.int64)

    def made(self, parents: Tensor, others: Tensor, drawn: Drawn) -> Tensor:
        raise NotImplementedError


class Lines(Maker):
    """Between a row and one of its neighbours in its class or, where ``anywhere``, in X: to one of another class then
    at most half of the way."""

    def __init__(
        self,
        data: Data,
        bases: Mapping[int, np.ndarray | None],
        neighbors: Any,
        weights: Mapping[int, np.ndarray] | None = None,
        anywhere: bool = False,
    ) -> None:
        super().__init__(data, bases, weights)
        self.neighbors, self.k, self.anywhere = neighbors, base.count_of(neighbors), anywhere
        narrow = np.int32 if len(data) < 2**31 - 1 else np.int64
        # 1 + the row of X; zeros are not known yet, and no memory either
        self._found = np.zeros((len(self.numbers), self.k), narrow)
        self._codes = data.codes() if anywhere else None
        left = 2 * AT_ONCE
        for code in sorted(bases, key=lambda code: self.count[code]):
            among, count = self._among(code), int(self.count[code])
            points = len(data) if among is None else len(among)
            left -= count * points * data.columns
            quick = points <= data.per_block and left >= 0
            if count and (quick or not isinstance(neighbors, Integral)):  # an object is asked once
                self._search(code, np.arange(self.first[code], self.first[code] + count))

    def _among(self, code: int) -> np.ndarray | None:
        return None if self.anywhere else self.data.of_class(code)

    def _search(self, code: int, bases: np.ndarray) -> None:
        numbers, among = self.numbers[bases], self._among(code)
        if among is None:
            rows = self.data.of_class(code)[numbers]
            self._found[bases] = 1 + self.data.neighbours(None, rows, self.neighbors)
        else:
            self._found[bases] = 1 + among[self.data.neighbours(among, numbers, self.neighbors)]

    def knows(self, drawn: Drawn) -> bool:
        return bool(self._found[drawn.bases, 0].all())

    def learn(self, batches: list[Drawn]) -> None:
        bases = np.unique(np.concatenate([drawn.bases for drawn in batches]))
        bases = bases[self._found[bases, 0] == 0]
        for code in np.flatnonzero(self.makes).tolist():
            low, high = np.searchsorted(bases, [self.first[code], self.first[code] + self.count[code]])
            if low < high:
                self._search(code, bases[low:high])

    def others(self, drawn: Drawn) -> np.ndarray:
        column = (drawn.column * self.k).astype(np.int64)
        return self._found[drawn.bases, column].astype(np.int64) - 1

    def made(self, parents: Tensor, others: Tensor, drawn: Drawn) -> Tensor:
        gap = drawn.gap
        if self._codes is not None:
            gap = np.where(self._codes[self.others(drawn)] == drawn.codes[drawn.new], gap, gap * drawn.half)
        steps = torch.from_numpy(gap).to(parents.device, base._gap_dtype(parents)).unsqueeze(1)
        start = parents.to(steps.dtype)
        return torch.addcmul(start, others.to(steps.dtype) - start, steps)


class Clouds(Maker):
    """Normal noise around rows, of a standard deviation of its own for each class and column: code -> (d,)."""

    def __init__(self, data: Data, scales: Mapping[int, Tensor]) -> None:
        super().__init__(data, dict.fromkeys(scales), None)
        self._scales = torch.stack(list(scales.values())) if scales else None

    def made(self, parents: Tensor, others: Tensor, drawn: Drawn) -> Tensor:
        assert self._scales is not None  # or nothing was drawn
        scales = self._scales[torch.from_numpy(self._turn[drawn.codes[drawn.new]]).to(parents.device)]
        # on the CPU, so that a batch is alike on every device
        noise = torch.randn(scales.shape, dtype=scales.dtype, generator=drawn.generator)
        return torch.addcmul(parents.to(scales.dtype), noise.to(parents.device), scales)


# ---- the stream --------------------------------------------------------------------------------------------------
class BalancedStream(IterableDataset):
    """Endless batches (x, y); what ``stream`` of an over-sampler returns, an IterableDataset for DataLoader's
    ``batch_size=None``.

    Batch b of an epoch is a function of the sampler's seed, the epoch and b. Rank r of R takes the batches r, r + R,
    ..., and worker w of W of these every W-th from the w-th: a DataLoader hands out the same batches in the same order,
    whatever the number of its workers. Iterating goes on where the last iteration stood. A DataLoader's workers are
    copies, which begin where the stream stands in the process that made them, each time one iterates over the loader:
    keep one iterator, or call :meth:`set_epoch` before each.

    Attributes:
        shares: class -> its share of the rows.
        new_shares: class -> which part of its rows is new.

    >>> X, y = torch.randn(1000, 4), (torch.arange(1000) < 50).long()
    >>> stream = SMOTE(random_state=0).stream(X, y, batch_size=64)
    >>> x, labels = next(iter(stream))
    >>> x.shape, stream.shares, stream.new_shares[0]
    (torch.Size([64, 4]), {0: 0.5, 1: 0.5}, 0.0)
    """

    def __init__(
        self, data: Data, maker: Maker, shares: np.ndarray, new: np.ndarray, batch_size: int, seed: int, kind: str,
        place: tuple[int, int],
    ) -> None:  # fmt: skip
        self._data, self._maker, self._kind = data, maker, kind
        self._table, self._new = AliasTable(shares), np.where(maker.makes, new, 0.0)
        self.shares = dict(zip(data.classes, (shares / shares.sum()).tolist(), strict=True))
        self.new_shares = dict(zip(data.classes, self._new.tolist(), strict=True))
        self.batch_size, self.seed = batch_size, seed
        self.num_replicas, self.rank = place
        self.epoch = 0
        self._before = 0  # batches of the epoch, of all ranks, before this iteration
        self._taken = 0  # batches of this process in it
        self._step = self.num_replicas  # from one of these to the next
        self._ahead = 1

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        self._before += self._taken * self._step
        self._taken, self._step = 0, self.num_replicas * workers
        while True:
            batch = self._before + self.rank + self.num_replicas * number + self._step * self._taken
            made = self._made(batch)
            self._taken += 1
            yield made

    def _made(self, number: int) -> tuple[Any, Any]:
        drawn = self._draw(number)
        if not self._maker.knows(drawn):
            later = [self._draw(number + self._step * i) for i in range(1, self._ahead)]
            self._maker.learn([drawn, *later])
            self._ahead = min(2 * self._ahead, MOST_AHEAD)
        others = self._maker.others(drawn)
        rows, place = np.unique(np.concatenate([drawn.rows, others]), return_inverse=True)
        read = self._data.read(rows)
        place = torch.from_numpy(place.reshape(-1)).to(read.device)
        x = read[place[: self.batch_size]]
        if len(drawn.new):
            new = torch.from_numpy(drawn.new).to(read.device)
            x[new] = self._maker.made(x[new], read[place[self.batch_size :]], drawn).to(x.dtype)
        source = self._data.source
        x = base.as_dtype(x, source.dtype).reshape(len(x), *source.shape[1:])
        return _kinds.like(self._kind, x), self._labels(drawn.codes)

    def _labels(self, codes: np.ndarray) -> Any:
        labels = self._data.labels
        if isinstance(labels, Tensor):
            return labels[torch.from_numpy(codes).to(labels.device)]
        return labels[codes]

    def _draw(self, number: int) -> Drawn:
        generator = torch.Generator().manual_seed(key_of(self.seed, self.epoch, number))
        unit = torch.rand(8, self.batch_size, dtype=torch.float64, generator=generator).numpy()
        codes = self._table.draw(unit[0], unit[1])
        members = self._data.members
        rows = members.at(codes, (unit[2] * members.counts[codes]).astype(np.int64))
        new = np.flatnonzero(unit[3] < self._new[codes])
        bases, rows[new] = self._maker.drawn(codes[new], unit[4, new])
        return Drawn(codes, rows, new, bases, unit[5, new], unit[6, new], unit[7, new] / 2, generator)

    def set_epoch(self, epoch: int) -> None:
        """Another stream of the same seed, from its start; the current one goes on where it stands."""
        check_number(epoch, "epoch", least=0, whole=True)
        if epoch != self.epoch:
            self.epoch, self._before, self._taken = int(epoch), 0, 0

    def state_dict(self, *, position: int | None = None) -> dict[str, int]:
        """Where the stream stands, for :meth:`load_state_dict` of any rank and any number of ranks and workers.

        In a DataLoader's worker it is the worker's own, as torchdata's StatefulDataLoader keeps and restores it. In
        front of a plain DataLoader with workers, say where the training is.

        Args:
            position: batches of the epoch, of all ranks together, that the training has used.
        """
        if position is None:
            position = self._before + self._taken * self._step
        check_number(position, "position", least=0, whole=True)
        return {"seed": self.seed, "epoch": self.epoch, "position": int(position)} | self._size()

    def _size(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "rows": len(self._data)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The next iteration goes on where the state was taken, with the seed it had: with the same batches.

        Raises:
            ValueError: the state is not one of a stream of as many rows and of this batch size.
        """
        if set(state_dict) != {"seed", "epoch", "position", "batch_size", "rows"}:
            raise ValueError(
                f"expected state_dict of a stream of imbloss, but got keys {', '.join(map(str, state_dict))}"
            )
        for name, value in self._size().items():
            if state_dict[name] != value:
                raise ValueError(f"expected state_dict of a stream with {name} {value}, but got {state_dict[name]}")
        self.seed, self.epoch = state_dict["seed"], state_dict["epoch"]
        self._before, self._taken = state_dict["position"], 0


class Streaming(base.Sampler):
    """Over-samplers that make batches as they are asked for."""

    def stream(
        self,
        X: Any,  # noqa: N803
        y: Any,
        batch_size: int,
        *,
        shares: Mapping[Any, float] | None = None,
        memory: int = MEMORY,
        num_replicas: int | None = None,
        rank: int | None = None,
        group: Any = None,
    ) -> BalancedStream:
        """Endless batches of rows drawn, with replacement, from what :meth:`fit_resample` would return, which is never
        made: every new row is made for its batch, and another one the next time.

        A row's class c is drawn first: n_c + m_c to all, as many as it has and as ``sampling_strategy`` adds, so that
        "auto" makes classes equally likely. The row is one of the n_c with probability n_c / (n_c + m_c), else new.

        Args:
            X: rows, of shape (n, ...): a tensor on any device, a numpy array or a pandas frame. Of a numpy.memmap of
                any size the rows are read from its file as they are needed.
            y: labels, shape (n,), in memory.
            batch_size: rows of a batch.
            shares: class -> its share of the rows, >= 0, of any sum, instead of the above: every class is there.
            memory: bytes of rows that a search reads at a time, and packs a copy of. The neighbours of classes that
                fit, smallest first and for about a second, are found at once; of others, when their rows are drawn.
            num_replicas, rank: of the processes that share the batches, each of which has all of X; those of `group`,
                or of torch.distributed's default group, where it is initialised. `random_state` must then be an int.

        Returns:
            A :class:`BalancedStream` of (x, y): tensors for a tensor, numpy arrays for others, of X's and y's dtypes.

        Raises:
            TypeError, ValueError: as :meth:`fit_resample`; a NaN of X once its row is read.
        """
        check_number(batch_size, "batch_size", least=1, whole=True)
        check_number(memory, "memory", least=1, whole=True)
        if getattr(self, "group", None) is not None:
            raise ValueError("expected a sampler without group for a stream, of which each process has all of X")
        data = Data(X, y, self._computes, int(memory))
        counts = dict(zip(data.classes, data.members.counts.tolist(), strict=True))
        wanted = strategy.resolve(self.sampling_strategy, counts, strategy.OVER, y)
        added = np.array([wanted.get(label, 0) for label in data.classes], np.float64)
        plan = {code: int(count) for code, count in enumerate(added) if count}
        seed = _seed_of(self.random_state)
        maker, always = self._maker(data, plan)
        new = np.ones_like(added) if always else added / (data.members.counts + added)
        mix = data.members.counts + added if shares is None else _checked_shares(shares, data.classes)
        place = replica(num_replicas, rank, group)
        return BalancedStream(data, maker, mix, new, int(batch_size), seed, _kinds.kind_of(X), place)

    def _maker(self, data: Data, plan: dict[int, int]) -> tuple[Maker, bool]:
        """What makes new rows of the classes in the plan, and whether all rows are new."""
        raise TypeError(f"expected a sampler that makes new rows one by one, but got {type(self).__name__}")


def _seed_of(random_state: Any) -> int:
    if random_state is None:
        return int(torch.randint(2**62, ()))
    if isinstance(random_state, torch.Generator):
        return int(torch.randint(2**62, (), generator=random_state, device=random_state.device))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**62, dtype=np.int64))
    if isinstance(random_state, Integral) and not isinstance(random_state, bool):
        return int(random_state) % 2**64
    raise TypeError(
        "expected random_state to be None, an int, a torch.Generator or a numpy RandomState, but got "
        f"{describe(random_state)}"
    )


def _checked_shares(shares: Any, classes: list[Any]) -> np.ndarray:
    if not isinstance(shares, Mapping):
        raise TypeError(f"expected shares to be a dict of class -> share, but got {describe(shares)}")
    if set(shares) != set(classes):
        raise ValueError(f"expected shares of the classes {classes}, but got {list(shares)}")
    for label, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, Real):
            raise TypeError(f"expected shares to be numbers, but got {share!r} for class {label!r}")
        if not 0 <= float(share) < float("inf"):
            raise ValueError(f"expected shares >= 0 and finite, but got {share} for class {label!r}")
    values = np.array([float(shares[label]) for label in classes])
    if not values.any():
        raise ValueError("expected a share > 0, but got none")
    return values / values.max()
