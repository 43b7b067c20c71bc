"""What users pass to the samplers, checked."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbloss.data.labels import as_classes, as_labels, found
from imbloss.data.members import FEW, Members
from imbloss.priors import check_number, class_balanced_weights, describe

STRATEGIES = ("balanced", "sqrt", "effective", "progressive")


def members_of(dataset: Any, labels: Any, indices: Any, callback: Callable | None) -> Members:
    """The items to draw from, class by class."""
    if labels is not None and callback is not None:
        raise ValueError("expected labels or callback_get_label, but got both")
    rows = None if indices is None else _checked_indices(indices)
    aligned = False  # whether labels are of the indices, not of the data set's items
    if callback is not None:
        aligned = _takes_index(callback)
        if aligned:
            labels = [callback(dataset, index) for index in (range(len(dataset)) if rows is None else rows.tolist())]
        else:
            labels = callback(dataset)
    labels = found(dataset) if labels is None else as_labels(labels)
    if rows is None:
        if hasattr(dataset, "__len__") and len(dataset) != len(labels):
            raise ValueError(f"expected a label for each of the {len(dataset)} items, but got {len(labels)}")
    elif not aligned and (len(labels) != len(rows) or (hasattr(dataset, "__len__") and len(dataset) == len(labels))):
        outside = (rows < 0) | (rows >= len(labels))
        if outside.any():
            raise ValueError(f"expected indices in [0, {len(labels)}), but got {rows[outside][0]}")
        labels = labels[rows]
    if len(labels) == 0:
        raise ValueError("expected items to draw from, but got none")
    classes = as_classes(labels)
    if classes.min() < 0 or classes.max() >= max(FEW, 4 * len(classes)):
        classes = np.unique(classes, return_inverse=True)[1]
    return Members(classes, rows)


def _takes_index(callback: Callable) -> bool:
    """Whether it is to be called with an index, too: torchsampler's was until 0.1.1."""
    try:
        inspect.signature(callback).bind(None)
    except TypeError:
        return True
    return False


def _checked_indices(indices: Any) -> np.ndarray:
    array = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and len(array)):
        raise TypeError(f"expected indices to be integers of shape (n,), but got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64, copy=False)


def checked_weights(weights: Any, name: str) -> np.ndarray:
    """As float64 with a sum that does not overflow."""
    tensor = weights.detach().cpu() if isinstance(weights, Tensor) else torch.as_tensor(np.asarray(weights))
    if tensor.is_complex() or tensor.dtype == torch.bool or tensor.dim() != 1:
        raise TypeError(f"expected {name} to be numbers of shape (N,), but got {describe(tensor)}")
    array = tensor.double().numpy()
    bad = ~((array >= 0) & (array < np.inf))
    if bad.any():
        index = int(bad.argmax())
        raise ValueError(f"expected {name} >= 0 and finite, but got {array[index]} at index {index}")
    largest = array.max(initial=0.0)
    if largest == 0:
        raise ValueError(f"expected a weight > 0 among {name}, but got none")
    return array / largest


def checked_strategy(strategy: Any, counts: np.ndarray, beta: float, epochs: float | None) -> str | np.ndarray:
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise ValueError(f"expected strategy among {', '.join(STRATEGIES)} or shares, but got {strategy!r}")
        if strategy == "effective":
            class_balanced_weights(torch.ones(1), beta)  # checks beta
        if strategy == "progressive":
            if epochs is None:
                raise ValueError('expected epochs with strategy "progressive", but got None')
            check_number(epochs, "epochs", above=0)
        return strategy
    shares = checked_weights(strategy, "strategy")
    if len(shares) < len(counts):
        raise ValueError(f"expected strategy with a share for each of {len(counts)} classes, but got {len(shares)}")
    absent = shares > 0
    absent[: len(counts)] &= counts == 0
    if absent.any():
        c = int(absent.argmax())
        raise ValueError(
            f"expected a share of 0 for class {c}, which has no members, but got {shares[c]:g} of the largest"
        )
    return shares[: len(counts)]
