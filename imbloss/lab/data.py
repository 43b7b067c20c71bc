"""Data for the loss test: scikit-learn's digits or the arrays of an .npz file, split into an imbalanced training set
and a test set that is balanced where the imbalance was made here."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TEST_SHARE = 0.3


class DataError(ValueError):
    """Data that cannot be used, with the reason in one line."""


@dataclass(frozen=True)
class Data:
    """Features as float32, (n, features) or (n, channels, height, width), and class indices."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int

    @property
    def train_counts(self) -> Tensor:
        return torch.bincount(self.y_train, minlength=self.num_classes)

    @property
    def test_counts(self) -> Tensor:
        return torch.bincount(self.y_test, minlength=self.num_classes)


def long_tailed_counts(num_classes: int, largest: int, imbalance_ratio: float) -> list[int]:
    """Exponential profile: n_i = largest * imbalance_ratio^(-i / (C - 1)), at least 1.

    >>> long_tailed_counts(5, 100, 100)
    [100, 31, 10, 3, 1]
    """
    # rounded first, so that 10.0 is not 9.999...
    shares = [imbalance_ratio ** (-i / max(num_classes - 1, 1)) for i in range(num_classes)]
    return [max(1, int(round(largest * share, 9))) for share in shares]


def load(source: str, *, imbalance_ratio: float | None = None, seed: int = 0) -> Data:
    """Reads and splits a data set.

    Args:
        source: "digits" or the path of an .npz file with X, numbers of shape (n, features) or (n, channels, height,
            width), and y, integers of shape (n,) from 0 to C - 1, each class at least twice.
        imbalance_ratio: largest over smallest class of the training set, >= 1: a balanced test set is set aside (30 %
            of the smallest class from each) and the training set thinned to an exponential profile, class 0 the
            largest. None leaves the classes as they are, and sets aside 30 % of each (at least one sample).
        seed: which samples go where.

    Raises:
        DataError: what is wrong with the data, in one line.
    """
    if imbalance_ratio is not None and not 1 <= imbalance_ratio < float("inf"):
        raise DataError(f"expected imbalance_ratio >= 1 and finite, but got {imbalance_ratio}")
    x, y = _digits() if source == "digits" else _npz(Path(source))
    name = source if source == "digits" else Path(source).name
    num_classes = int(y.max()) + 1
    generator = np.random.default_rng(seed)
    members = [generator.permutation(np.flatnonzero(y == c)) for c in range(num_classes)]
    smallest = min(len(m) for m in members)
    if imbalance_ratio is None:
        test = [m[: max(1, round(TEST_SHARE * len(m)))] for m in members]
        train = [m[len(t) :] for m, t in zip(members, test, strict=True)]
    else:
        held_out = max(1, int(TEST_SHARE * smallest))
        test = [m[:held_out] for m in members]
        counts = long_tailed_counts(num_classes, smallest - held_out, imbalance_ratio)
        train = [m[held_out : held_out + n] for m, n in zip(members, counts, strict=True)]
    train, test = np.concatenate(train), np.concatenate(test)

    if x.ndim == 2:  # a table: each feature to mean 0 and variance 1
        mean, std = x[train].mean(0), x[train].std(0)
        x = (x - mean) / np.where(std > 0, std, 1)
    else:  # images: the brightest pixel to 1
        x = x / max(np.abs(x[train]).max(), 1e-12)
    x, y = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)
    return Data(name, x[train], y[train], x[test], y[test], num_classes)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = map(np.asarray, load_digits(return_X_y=True))
    return x.reshape(-1, 1, 8, 8).astype(np.float64), y.astype(np.int64)


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise DataError(f"expected data to be 'digits' or an .npz file, but there is no file {str(path)!r}")
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError(f"expected {path} to be an .npz file of arrays X and y, but it holds a single array")
        with arrays:
            missing = {"X", "y"} - set(arrays.files)
            if missing:
                raise DataError(f"expected arrays X and y in {path}, but got {', '.join(arrays.files) or 'none'}")
            x, y = arrays["X"], arrays["y"]
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"expected {path} to be an .npz file of plain arrays, but reading it failed: {error}"
        ) from error
    if x.ndim not in (2, 4) or 0 in x.shape[1:] or not np.issubdtype(x.dtype, np.number) or np.iscomplexobj(x):
        raise DataError(
            f"expected X of numbers, of shape (n, features) or (n, channels, height, width), "
            f"but got {x.dtype} of shape {x.shape}"
        )
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"expected y of integers, of shape (n,), but got {y.dtype} of shape {y.shape}")
    if len(x) != len(y) or len(x) == 0:
        raise DataError(f"expected as many rows of X as of y, and more than none, but got {len(x)} and {len(y)}")
    if y.min() < 0 or y.max() >= len(y):
        raise DataError(f"expected y from 0 to C - 1, but got {y.min() if y.min() < 0 else y.max()}")
    x, y = x.astype(np.float64), y.astype(np.int64)
    unusable = ~(np.abs(x) < 1e30)  # beyond float32 once they are squared and summed
    if unusable.any():
        row = int(np.argwhere(unusable)[0][0])
        raise DataError(f"expected X to be finite and below 1e30, but row {row} is not")
    counts = np.bincount(y)
    if len(counts) < 2:
        raise DataError("expected at least two classes in y, but got one")
    if counts.min() < 2:
        c = int(counts.argmin())
        raise DataError(f"expected each class of y at least twice, but class {c} is there {counts[c]} times")
    return x, y
