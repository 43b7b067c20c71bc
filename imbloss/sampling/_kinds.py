"""Tensors, numpy arrays and pandas frames: what comes in as one of them goes out as the same. pandas is never imported
here: who passes a frame has it."""

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbloss.priors import describe

TENSOR, ARRAY, FRAME, SERIES = "tensor", "array", "frame", "series"


def kind_of(data: Any) -> str:
    pandas = sys.modules.get("pandas")
    if isinstance(data, Tensor):
        return TENSOR
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return FRAME
    if pandas is not None and isinstance(data, pandas.Series):
        return SERIES
    return ARRAY


def to_tensor(data: Any, name: str) -> Tensor:
    """Without a copy where that can be."""
    if isinstance(data, Tensor):
        return data
    if kind_of(data) in (FRAME, SERIES):
        data = data.to_numpy()
    if isinstance(data, (list, tuple)):
        data = np.asarray(data)
    if not isinstance(data, np.ndarray):
        raise TypeError(f"expected {name} to be a tensor, a numpy array or a pandas frame, but got {describe(data)}")
    if data.dtype.kind not in "fiub":
        raise TypeError(f"expected {name} of numbers, but got an array of dtype {data.dtype}")
    data = data.astype(data.dtype.newbyteorder("="), copy=False)
    if any(step < 0 for step in data.strides) or not data.flags.writeable:
        data = data.copy()  # which a tensor cannot share
    return torch.from_numpy(data)


def like(kind: str, tensor: Tensor) -> Any:
    """A result for who came with data of this kind: a tensor, or else a numpy array."""
    return tensor if kind == TENSOR else tensor.cpu().numpy()


def rebuilt(original: Any, rows: Tensor, chosen: Tensor | None) -> Any:
    """Resampled rows as the kind that X or y came as.

    Args:
        original: as the user gave it.
        rows: the result, of the shape (n_new, ...).
        chosen: where ``rows`` are rows of the original alone, their indices: a frame then keeps its index.
    """
    kind = kind_of(original)
    if kind in (TENSOR, ARRAY):
        return like(kind, rows)
    if chosen is not None:
        return original.iloc[chosen.cpu().numpy()]
    pandas = sys.modules["pandas"]
    values = rows.cpu().numpy()
    if kind == SERIES:
        return pandas.Series(values, name=original.name).astype(original.dtype)
    return pandas.DataFrame(values, columns=original.columns).astype(original.dtypes)
