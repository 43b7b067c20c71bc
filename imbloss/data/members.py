"""The members of each class, one after the other in one array: one int64 a label, and nothing else of that size."""

import numpy as np
import torch

FEW = 2**16  # classes whose numbers fit 16 bits, which numpy sorts by counting


class Members:
    """`order[start[c] : start[c] + counts[c]]` are the members of class c.

    Args:
        classes: int64 in [0, C), shape (n,).
        rows: int64, shape (n,): what the members are; 0, 1, ... by default.
    """

    def __init__(self, classes: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.counts = np.bincount(classes)
        self.start = self.counts.cumsum() - self.counts
        self.order = (_by_counting if len(self.counts) <= FEW else _by_sorting)(classes, self.counts, self.start)
        if rows is not None:
            self.order = rows[self.order]

    def at(self, classes: np.ndarray, number: np.ndarray) -> np.ndarray:
        """The `number`-th member of each class, from 0."""
        return self.order[self.start[classes] + number]


def _by_sorting(classes: np.ndarray, counts: np.ndarray, start: np.ndarray) -> np.ndarray:
    return torch.argsort(torch.from_numpy(classes), stable=True).numpy()


def _by_counting(classes: np.ndarray, counts: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Part by part, so that only a part's order is there beside the whole's: the cache likes it, too."""
    order = np.empty(len(classes), np.int64)
    following = start.tolist()
    narrow = np.uint8 if len(counts) <= 2**8 else np.uint16
    size = max(2**18, 64 * len(counts))
    for first in range(0, len(classes), size):
        part = classes[first : first + size].astype(narrow)
        rows = np.argsort(part, kind="stable") + first
        number = np.bincount(part, minlength=len(counts))
        at = 0
        for c in np.flatnonzero(number).tolist():
            n = int(number[c])
            order[following[c] : following[c] + n] = rows[at : at + n]
            following[c] += n
            at += n
    return order
