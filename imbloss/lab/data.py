"""Data for the loss test: a source split into an imbalanced training set and a test set that is balanced where the
imbalance was made here."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from imbloss.lab.sources import DataError, Source, read, words_of

TEST_SHARE = 0.3
PROFILES = ("exp", "step", "notebook")
MOST_WORDS = 200  # of a text, for a model
NOTEBOOK_COUNTS = (223, 399, 571, 815, 954, 1132, 1258, 1428, 1533, 1687)


@dataclass(frozen=True)
class Vocabulary:
    """The words of the training texts that are there twice; 0 fills up a row, 1 is any other word."""

    index: dict[str, int]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Vocabulary":
        seen = Counter(word for text in texts for word in words_of(text))
        return cls({word: i for i, word in enumerate((w for w in sorted(seen) if seen[w] > 1), start=2)})

    def __len__(self) -> int:
        return len(self.index) + 2

    def encode(self, texts: Sequence[str | list[str]]) -> Tensor:
        """Texts, or lists of their words, as rows of word numbers: int64, (n, words of the longest)."""
        rows = []
        for text in texts:
            words = words_of(text) if isinstance(text, str) else text
            rows.append([self.index.get(word, 1) for word in words[:MOST_WORDS]] or [1])
        length = max(map(len, rows), default=1)
        return torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(-1, length)


@dataclass(frozen=True)
class Data:
    """Features as float32, (n, features) or (n, channels, height, width), or numbers of words, (n, words); class
    indices, (n,)."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    classes: tuple[str, ...] = ()  # names, where there are any
    texts: list[list[str]] = field(default_factory=list, repr=False)  # the words of the training set
    vocabulary: Vocabulary | None = field(default=None, repr=False)

    @property
    def train_counts(self) -> Tensor:
        return torch.bincount(self.y_train, minlength=self.num_classes)

    @property
    def test_counts(self) -> Tensor:
        return torch.bincount(self.y_test, minlength=self.num_classes)

    @property
    def kind(self) -> str:
        """ "text", "image" or "table"."""
        return "text" if self.vocabulary else "image" if self.x_train.dim() == 4 else "table"


def long_tailed_counts(num_classes: int, largest: int, imbalance_ratio: float) -> list[int]:
    """Exponential profile: n_i = largest * imbalance_ratio^(-i / (C - 1)), at least 1.

    >>> long_tailed_counts(5, 100, 100)
    [100, 31, 10, 3, 1]
    """
    # rounded first, so that 10.0 is not 9.999...
    shares = [imbalance_ratio ** (-i / max(num_classes - 1, 1)) for i in range(num_classes)]
    return [max(1, int(round(largest * share, 9))) for share in shares]


def step_counts(num_classes: int, largest: int, imbalance_ratio: float) -> list[int]:
    """Step profile: the first half of the classes (rounded up) has the most, the others 1 / imbalance_ratio of it.

    >>> step_counts(5, 100, 20)
    [100, 100, 100, 5, 5]
    """
    few = max(1, int(round(largest / imbalance_ratio, 9)))
    return [largest if i < (num_classes + 1) // 2 else few for i in range(num_classes)]


def _profile(name: str, num_classes: int, largest: int, imbalance_ratio: float | None) -> list[int] | None:
    """Training samples per class; None leaves them as they are."""
    if name == "notebook":
        if num_classes != len(NOTEBOOK_COUNTS) or largest < max(NOTEBOOK_COUNTS):
            raise DataError(
                f"expected {len(NOTEBOOK_COUNTS)} classes of at least {max(NOTEBOOK_COUNTS)} training samples for "
                f"profile notebook, but got {num_classes} classes of at least {largest}"
            )
        return list(NOTEBOOK_COUNTS)
    if imbalance_ratio is None:
        return None
    counts = step_counts if name == "step" else long_tailed_counts
    return counts(num_classes, largest, imbalance_ratio)


@functools.lru_cache(maxsize=1)
def _read(source: str, target: str | None) -> Source:
    return read(source, target=target)


def load(
    source: str,
    *,
    imbalance_ratio: float | None = None,
    profile: str = "exp",
    target: str | None = None,
    seed: int = 0,
) -> Data:
    """Reads and splits a data set.

    Args:
        source: a data set by name or a file by its path, see :func:`imbloss.lab.sources.read`; ``target`` likewise.
            Data with a test set of their own keep it.
        imbalance_ratio: largest over smallest class of the training set, >= 1: a balanced test set is set aside (30 %
            of the smallest class from each) and the training set thinned to the profile, class 0 the largest. None
            leaves the classes as they are, and sets aside 30 % of each (at least one sample).
        profile: "exp", :func:`long_tailed_counts`; "step", :func:`step_counts`; or "notebook", 223 to 1687 samples of
            ten classes, class 9 the largest, whatever the imbalance_ratio.
        seed: which samples go where.

    Raises:
        DataError: what is wrong with the data, in one line.
    """
    if imbalance_ratio is not None and not 1 <= imbalance_ratio < float("inf"):
        raise DataError(f"expected imbalance_ratio >= 1 and finite, but got {imbalance_ratio}")
    if profile not in PROFILES:
        raise DataError(f"expected profile among {', '.join(PROFILES)}, but got {profile!r}")
    found = _read(source, target)
    y, num_classes = found.y, int(found.y.max()) + 1
    generator = np.random.default_rng(seed)
    members = [generator.permutation(np.flatnonzero(y == c)) for c in range(num_classes)]
    smallest = min(len(m) for m in members)
    thinned = imbalance_ratio is not None or profile == "notebook"
    if found.y_test is not None:
        held_out = [0] * num_classes
    elif thinned:
        held_out = [max(1, int(TEST_SHARE * smallest))] * num_classes
    else:
        held_out = [max(1, round(TEST_SHARE * len(m))) for m in members]
    test = [m[:n] for m, n in zip(members, held_out, strict=True)]
    train = [m[n:] for m, n in zip(members, held_out, strict=True)]
    counts = _profile(profile, num_classes, min(map(len, train)), imbalance_ratio)
    if counts is not None:
        train = [m[:n] for m, n in zip(train, counts, strict=True)]
    train, test = np.concatenate(train), np.concatenate(test)
    own_test = found.y_test is not None
    y_train = torch.from_numpy(y[train])
    y_test = torch.from_numpy(found.y_test if found.y_test is not None else y[test])

    if found.is_text:
        texts = [words_of(found.x[i]) for i in train]
        test_texts = found.x_test if own_test else [found.x[i] for i in test]
        vocabulary = Vocabulary.of([found.x[i] for i in train])
        x_train, x_test = vocabulary.encode(texts), vocabulary.encode(test_texts)
        return Data(found.name, x_train, y_train, x_test, y_test, num_classes, found.classes, texts, vocabulary)

    x_train, x_test = _scaled(found.x[train], found.x_test if own_test else found.x[test])
    return Data(found.name, x_train, y_train, x_test, y_test, num_classes, found.classes)


def _scaled(train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
    """Each feature of a table to mean 0 and variance 1; of images the brightest pixel to 1."""
    if train.ndim == 2:
        mean, std = train.mean(0), train.std(0)
        std = np.where(std > 0, std, 1)
        train, test = (train - mean) / std, (test - mean) / std
    else:
        brightest = max(abs(float(train.max())), abs(float(train.min())), 1e-12)
        train, test = train / np.float64(brightest), test / np.float64(brightest)
    return torch.from_numpy(train.astype(np.float32)), torch.from_numpy(test.astype(np.float32))
