"""Where data sets keep their labels. Neither torchvision nor Hugging Face's datasets is imported: their data sets are
known by their attributes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

ATTRIBUTES = ("targets", "labels", "_labels", "y")  # torchvision's data sets
PAIRS = ("samples", "_samples", "imgs")  # lists of (file, label): DatasetFolder and the like
COLUMNS = ("label", "labels")  # Hugging Face
HELP = "pass labels=, or callback_get_label="


def labels_of(dataset: Any) -> Tensor:
    """The label of each item of a data set, without loading the items.

    Args:
        dataset: a TensorDataset of inputs and labels; a data set of torchvision (with its ``target_transform``), a
            DatasetFolder or anything else with ``targets``, ``labels`` or ``get_labels()``; a data set of Hugging Face
            with a column "label" or "labels", or one column of ClassLabel; Subset, random_split and ConcatDataset of
            these, nested as you like; or the labels themselves: list, tensor, array, Series.
            Labels are whole numbers of any dtype or strings, of shape (N,) or (N, 1), or, of shape (N, L), 0 and 1 for
            each of L labels: then a row's label is the rarest of its labels in the whole of `dataset` (of equally rare
            ones the first), and L for a row without any.

    Returns:
        int64 tensor of shape (N,): the numbers as they are; strings are numbered in sorted order.

    Raises:
        TypeError: no labels are found, or they are not of a dtype or shape above.
        ValueError: a label is NaN, infinite or not whole, or of (N, L) not 0 or 1.

    >>> data = torch.utils.data.TensorDataset(torch.zeros(4, 2), torch.tensor([5, 0, 0, 2]))
    >>> labels_of(torch.utils.data.Subset(data, [3, 0]))
    tensor([2, 5])
    >>> labels_of([[1, 0], [1, 1], [0, 0]])  # multi-label
    tensor([0, 1, 2])
    """
    return torch.from_numpy(as_classes(found(dataset)))


def as_classes(labels: np.ndarray) -> np.ndarray:
    """Checked labels, as `labels_of` returns them; int64 of shape (N,) are not copied, if they can be written."""
    if labels.ndim == 2:
        return _rarest(labels)
    if labels.dtype.kind == "U":
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return np.require(labels.astype(np.int64, copy=False), requirements=["C", "W"])  # as torch takes it


def as_labels(values: Any, what: str = "labels") -> np.ndarray:
    """Values as an array of shape (N,), integers or strings, or of shape (N, L), bool."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        array = (values.double() if values.is_floating_point() else values).numpy()
    else:
        try:
            array = values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)
        except (ValueError, TypeError, RuntimeError) as error:  # ragged, or tensors of several elements
            raise TypeError(
                f"expected {what} of shape (N,) or (N, L), but got rows of several shapes: {HELP}"
            ) from error
    if array.dtype.kind == "O":  # strings or numbers of pandas, or what is no label
        array = np.asarray(array.tolist())
    if array.dtype.kind == "T":
        array = array.astype(str)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2) or array.dtype.kind not in "biufU" or (array.ndim == 2 and array.dtype.kind == "U"):
        raise TypeError(
            f"expected {what} to be whole numbers or strings of shape (N,), or 0 and 1 of shape (N, L), "
            f"but got {array.dtype} of shape {array.shape}: {HELP}"
        )
    if array.ndim == 2:
        bad, want = ~((array == 0) | (array == 1)), "0 or 1"
    elif array.dtype.kind == "f":
        bad, want = ~(np.abs(array) < 2**53) | (array != np.floor(array)), "whole and finite"
    else:
        return array
    if bad.any():
        row = int(bad.reshape(len(array), -1).any(1).argmax())
        raise ValueError(f"expected {what} {want}, but got {array[row].tolist()} at index {row}")
    return array.astype(bool if array.ndim == 2 else np.int64)


def _rarest(hot: np.ndarray) -> np.ndarray:
    classes = np.full(len(hot), hot.shape[1], np.int64)
    for label in np.argsort(hot.sum(0), kind="stable")[::-1]:  # the rarest has the last word
        classes[hot[:, label]] = label
    return classes


def found(dataset: Any) -> np.ndarray:
    """Checked labels that a data set keeps, multi-label ones as they are."""
    if isinstance(dataset, Tensor | np.ndarray | list | tuple) or hasattr(dataset, "to_numpy"):
        return as_labels(dataset)
    if isinstance(dataset, Subset):
        return found(dataset.dataset)[np.asarray(dataset.indices, np.int64)]
    if isinstance(dataset, ConcatDataset):
        return _joined([found(part) for part in dataset.datasets])
    labels = _kept(dataset)
    if len(labels) != len(dataset):
        raise TypeError(
            f"expected a label for each of the {len(dataset)} items of {_name(dataset)}, but got {len(labels)}: {HELP}"
        )
    return labels


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    kinds = {(part.shape[1:], part.dtype.kind == "U") for part in parts}
    if len(kinds) > 1:
        raise TypeError(f"expected labels of one kind in a ConcatDataset, but got several: {HELP}")
    return np.concatenate(parts)


def _kept(dataset: Any) -> np.ndarray:
    """What a data set that is not made of others has."""
    if isinstance(dataset, TensorDataset):
        if len(dataset.tensors) != 2:
            raise TypeError(
                f"expected a TensorDataset of inputs and labels, but got {len(dataset.tensors)} tensors: {HELP}"
            )
        return as_labels(dataset.tensors[1])
    if callable(getattr(dataset, "get_labels", None)):
        return as_labels(dataset.get_labels())
    if hasattr(dataset, "__len__") and hasattr(dataset, "with_format"):
        return _column(dataset)
    for name in ATTRIBUTES:
        values = getattr(dataset, name, None)
        if values is not None and not callable(values):
            return _transformed(as_labels(values, name), dataset)
    for name in PAIRS:
        values = getattr(dataset, name, None)
        if isinstance(values, list) and all(isinstance(v, tuple | list) and len(v) == 2 for v in values):
            return _transformed(as_labels([label for _, label in values], name), dataset)
    raise TypeError(f"expected a data set that shows its labels, but got {_name(dataset)}, which does not: {HELP}")


def _column(dataset: Any) -> np.ndarray:
    features = getattr(dataset, "features", None) or {}
    names = [name for name in COLUMNS if name in features]
    names = names or [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if not names or (len(names) > 1 and names[0] not in COLUMNS):
        raise TypeError(f"expected a column 'label' or 'labels', but got {', '.join(features) or 'none'}: {HELP}")
    return as_labels(dataset.with_format("numpy", columns=names[:1])[:][names[0]], f"column {names[0]!r}")


def _transformed(labels: np.ndarray, dataset: Any) -> np.ndarray:
    """What `target_transform` makes of them; it is asked once for each distinct label."""
    transform: Callable | None = getattr(dataset, "target_transform", None)
    if transform is None or labels.ndim == 2 or len(labels) == 0:
        return labels
    distinct, number = np.unique(labels, return_inverse=True)
    return as_labels([_plain(transform(label)) for label in distinct.tolist()], "target_transform's labels")[number]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor | np.ndarray) else value


def _name(dataset: Any) -> str:
    return type(dataset).__name__
