"""Samplers for DataLoader: classes as frequent as asked, batches of a few classes, items by weight."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbloss.data.arguments import checked_strategy, checked_weights, members_of
from imbloss.data.draws import AliasTable, key_of, shuffled, unit, words
from imbloss.data.members import FEW, Members
from imbloss.data.streams import CHUNK, Draw, Stream
from imbloss.priors import check_number, class_balanced_weights

CLASS, HEIGHT, MEMBER, ORDER = range(4)  # purposes of random words


class ImbalancedDatasetSampler(Stream[int]):
    r"""Draws a class, then one of its members: classes are as frequent as asked, whatever their size.

    A `sampler` of DataLoader, with the arguments of the package of that name and the same draws on every process.

    Args:
        dataset: see :func:`labels_of`; used for its labels alone.
        labels: of each item of `dataset`, or of each of `indices`, as :func:`labels_of` takes them.
        indices: items to draw from, any integers; all of them by default.
        num_samples: draws in an epoch, of all processes together; as many as there are items by default.
        callback_get_label: ``callback(dataset)`` returns the labels, or ``callback(dataset, index)`` one label.
        strategy: the share of class c, which has n_c members, in the draws. "balanced": 1/C; "sqrt": as
            :math:`\sqrt{n_c}`; "effective": as :math:`n_c / (1 - \beta^{n_c})`, each sample weighed by Cui et al.'s
            effective number; "progressive": :math:`(1 - t) n_c / n + t / C` with t = epoch / `epochs`, at most 1.
            Or shares, shape (C,), >= 0, of any sum: of class numbers 0, 1, ...; where labels are negative or far
            apart, of the distinct labels in ascending order. Classes without members are not drawn.
        beta: of "effective", in [0, 1).
        epochs: of "progressive", > 0.
        replacement: False: each class is dealt like a deck of cards, shuffled anew once it is used up.
        seed: in [0, 2^64): alike on all processes.
        num_replicas, rank: of the processes that share the draws; those of `group`, or of torch.distributed's default
            group, where it is initialised. Process r gets draws r, r + num_replicas, ... of the one stream.

    Raises:
        TypeError, ValueError: an argument is not as above, there are no items, or a class without members has a share.

    Each iteration draws a new epoch: see :meth:`set_epoch`, :meth:`state_dict`, :meth:`load_state_dict`, and
    :meth:`stream` for tensors. A loss that corrects the prior must be told :meth:`prior`, not the data's.

    Source: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR 2020, eq. 1 and 2;
    Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019.

    >>> sampler = ImbalancedDatasetSampler([0] * 980 + [1] * 20)
    >>> (sum(index >= 980 for index in sampler) - 500) ** 2 < 100**2
    True
    """

    def __init__(
        self,
        dataset: Any,
        labels: Any = None,
        indices: Any = None,
        num_samples: int | None = None,
        callback_get_label: Callable | None = None,
        *,
        strategy: str | Sequence[float] | np.ndarray | Tensor = "balanced",
        beta: float = 0.9999,
        epochs: float | None = None,
        replacement: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        group: Any = None,
    ) -> None:
        self._members = members_of(dataset, labels, indices, callback_get_label)
        self._strategy = checked_strategy(strategy, self._members.counts, beta, epochs)
        self._beta, self._epochs = beta, epochs
        self.replacement = replacement
        length = len(self._members.order) if num_samples is None else num_samples
        check_number(length, "num_samples", least=1, whole=True)
        super().__init__(length, seed, num_replicas, rank, group)

    @property
    def num_samples(self) -> int:
        """Draws in an epoch, of all processes together."""
        return self.length

    def prior(self, epoch: int | None = None) -> Tensor:
        """Shares of the classes in the draws of an epoch, by default the current one's: float64, shape (C,)."""
        return torch.from_numpy(self._shares(self.epoch if epoch is None else epoch))

    def _shares(self, epoch: int) -> np.ndarray:
        counts = self._members.counts
        there = counts > 0
        if not isinstance(self._strategy, str):
            shares = self._strategy
        elif self._strategy == "balanced":
            shares = there.astype(np.float64)
        elif self._strategy == "sqrt":
            shares = np.sqrt(counts)
        elif self._strategy == "effective":
            shares = counts.astype(np.float64)
            shares[there] *= class_balanced_weights(torch.from_numpy(shares[there]), self._beta).numpy()
        else:
            t = min(epoch / (self._epochs or 1), 1.0)
            shares = (1 - t) * counts / counts.sum() + t * there / there.sum()
        return shares / shares.sum()

    def _draw(self, epoch: int) -> Draw:
        table = AliasTable(self._shares(epoch))
        key = [key_of(self.seed, epoch, purpose) for purpose in (CLASS, HEIGHT, MEMBER, ORDER)]
        members = self._members

        def classes(k: np.ndarray) -> np.ndarray:
            return table.draw(unit(key[CLASS], k), unit(key[HEIGHT], k))

        def draw(k: np.ndarray) -> np.ndarray:
            c = classes(k)
            return members.at(c, (unit(key[MEMBER], k) * members.counts[c]).astype(np.int64))

        return draw if self.replacement else _Decks(classes, members, key[ORDER])


class _Decks:
    """Draws without replacement: which of its class's cards a draw gets depends on how many were dealt before."""

    def __init__(self, classes: Draw, members: Members, key: int) -> None:
        self.classes, self.members, self.key = classes, members, key
        self.dealt = np.zeros_like(members.counts)
        self.at = 0  # the first draw of the stream that is not dealt

    def __call__(self, k: np.ndarray) -> np.ndarray:
        drawn = []
        while self.at <= k[-1]:
            block = np.arange(self.at, min(self.at + CHUNK, k[-1] + 1))
            c = self.classes(block)
            number = self._number(c)
            own = k[np.searchsorted(k, self.at) : np.searchsorted(k, self.at + len(block))] - self.at
            drawn.append(self._card(c[own], number[own]))
            self.at += len(block)
        return np.concatenate(drawn)

    def _number(self, c: np.ndarray) -> np.ndarray:
        """How many of its class were dealt before each draw."""
        order = np.argsort(c.astype(np.uint16) if len(self.dealt) <= FEW else c, kind="stable")
        ascending = c[order]
        first = np.flatnonzero(np.diff(ascending, prepend=-1))
        length = np.diff(first, append=len(c))
        number = np.empty_like(c)
        number[order] = np.arange(len(c)) - np.repeat(first - self.dealt[ascending[first]], length)
        self.dealt[ascending[first]] += length
        return number

    def _card(self, c: np.ndarray, number: np.ndarray) -> np.ndarray:
        deck, position = np.divmod(number, self.members.counts[c])
        keys = words(words(self.key, c), deck)
        return self.members.at(c, shuffled(position, self.members.counts[c], keys))


class ClassBalancedBatchSampler(Stream[list[int]]):
    """Batches of a few classes with equally many samples of each, for metric learning and for losses that need a
    class's samples side by side. A `batch_sampler` of DataLoader.

    The classes of a batch are distinct, any as likely as any other; so are a class's samples, unless it has fewer
    members than a batch wants: then each comes equally often, give or take one.

    Args:
        dataset, labels, indices, callback_get_label: see :class:`ImbalancedDatasetSampler`.
        classes_per_batch: at most the number of classes that have members.
        samples_per_class: of each class in a batch.
        num_batches: in an epoch, of all processes together; by default as many as it takes to draw as often as there
            are items.
        seed, num_replicas, rank, group: see :class:`ImbalancedDatasetSampler`. Process r gets batches r, r +
            num_replicas, ...

    Raises:
        TypeError, ValueError: an argument is not as above, or there are no items.

    >>> batches = ClassBalancedBatchSampler([0] * 90 + [1] * 9 + [2], classes_per_batch=2, samples_per_class=3)
    >>> len(batches), {len(batch) for batch in batches}
    (17, {6})
    """

    def __init__(
        self,
        dataset: Any,
        classes_per_batch: int,
        samples_per_class: int,
        *,
        labels: Any = None,
        indices: Any = None,
        num_batches: int | None = None,
        callback_get_label: Callable | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        group: Any = None,
    ) -> None:
        check_number(classes_per_batch, "classes_per_batch", least=1, whole=True)
        check_number(samples_per_class, "samples_per_class", least=1, whole=True)
        self._members = members_of(dataset, labels, indices, callback_get_label)
        self._there = np.flatnonzero(self._members.counts)
        if classes_per_batch > len(self._there):
            raise ValueError(f"expected classes_per_batch <= {len(self._there)} classes, but got {classes_per_batch}")
        self.classes_per_batch, self.samples_per_class = int(classes_per_batch), int(samples_per_class)
        if num_batches is None:
            num_batches = -(-len(self._members.order) // self.batch_size)
        check_number(num_batches, "num_batches", least=1, whole=True)
        self._chunk = max(1, CHUNK // self.batch_size)
        super().__init__(num_batches, seed, num_replicas, rank, group)

    @property
    def batch_size(self) -> int:
        return self.classes_per_batch * self.samples_per_class

    def _draw(self, epoch: int) -> Draw:
        of_class, of_member = (key_of(self.seed, epoch, purpose) for purpose in (CLASS, MEMBER))

        def draw(k: np.ndarray) -> np.ndarray:
            batch = np.repeat(k, self.classes_per_batch)
            place = np.tile(np.arange(self.classes_per_batch), len(k))
            c = self._there[shuffled(place, np.full_like(place, len(self._there)), words(of_class, batch))]
            keys = words(words(of_member, batch), c)
            c, keys = (np.repeat(of, self.samples_per_class) for of in (c, keys))
            sizes = self._members.counts[c]
            again, position = np.divmod(np.tile(np.arange(self.samples_per_class), len(batch)), sizes)
            rows = self._members.at(c, shuffled(position, sizes, words(keys, again)))
            return rows.reshape(len(k), -1)

        return draw


class WeightedSampler(Stream[int]):
    """torch's WeightedRandomSampler without its limit of 2^24 weights, in constant time a draw, and distributed.

    Args:
        weights: of each item, >= 0 and finite, of any sum > 0; shape (N,).
        num_samples: draws in an epoch, of all processes together; as many as there are weights by default.
        replacement: False: no item twice in an epoch. Draw by draw, items that are left are drawn by their weights.
        seed, num_replicas, rank, group: see :class:`ImbalancedDatasetSampler`.

    Raises:
        TypeError, ValueError: an argument is not as above, or fewer weights are > 0 than draws without replacement.

    Without replacement an epoch begins with sorting N random numbers; an epoch that does not divide by the number of
    processes then ends with the items it began with.

    Source: :class:`AliasTable`; Efraimidis and Spirakis, Weighted Random Sampling with a Reservoir, 2006.

    >>> draws = torch.cat(list(WeightedSampler([0.0, 3.0, 1.0], num_samples=10_000).stream()))
    >>> torch.bincount(draws).div(1000).round()
    tensor([0., 8., 2.])
    """

    def __init__(
        self,
        weights: Sequence[float] | np.ndarray | Tensor,
        num_samples: int | None = None,
        replacement: bool = True,
        *,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        group: Any = None,
    ) -> None:
        shares = checked_weights(weights, "weights")
        length = len(shares) if num_samples is None else num_samples
        check_number(length, "num_samples", least=1, whole=True)
        drawable = int(np.count_nonzero(shares))
        if not replacement and length > drawable:
            raise ValueError(f"expected num_samples <= {drawable} weights > 0 without replacement, but got {length}")
        self.replacement = replacement
        self._of = AliasTable(shares) if replacement else shares
        super().__init__(length, seed, num_replicas, rank, group)

    @property
    def num_samples(self) -> int:
        """Draws in an epoch, of all processes together."""
        return self.length

    def _draw(self, epoch: int) -> Draw:
        key = [key_of(self.seed, epoch, purpose) for purpose in (CLASS, HEIGHT, ORDER)]
        if isinstance(self._of, AliasTable):
            table = self._of
            return lambda k: table.draw(unit(key[0], k), unit(key[1], k))
        items = np.flatnonzero(self._of)
        arrival = -np.log1p(-unit(key[2], items)) / self._of[items]
        order = items[np.argsort(arrival, kind="stable")[: self.length]]
        return lambda k: order[k % len(order)]
