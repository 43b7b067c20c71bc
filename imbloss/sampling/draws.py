"""Random numbers for samplers: torch's generators, or numpy's RandomState, called as imbalanced-learn calls it."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from imbloss.priors import describe


class Draws(Protocol):
    """All on one device."""

    def integers(self, high: int, count: int) -> Tensor: ...
    def uniform(self, count: int, dtype: torch.dtype) -> Tensor: ...
    def normal_(self, out: Tensor) -> Tensor: ...
    def choice(self, high: int, count: int, replace: bool) -> Tensor: ...
    def below(self, counts: Tensor) -> Tensor:
        """A number in [0, count) for each of the counts."""
        ...


class TorchDraws:
    def __init__(self, generator: torch.Generator | None, device: torch.device):
        self.options: dict[str, Any] = {"generator": generator, "device": device}

    def integers(self, high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), **self.options)

    def uniform(self, count: int, dtype: torch.dtype) -> Tensor:
        return torch.rand(count, dtype=dtype, **self.options)

    def normal_(self, out: Tensor) -> Tensor:
        return out.normal_(generator=self.options["generator"])

    def choice(self, high: int, count: int, replace: bool) -> Tensor:
        return self.integers(high, count) if replace else torch.randperm(high, **self.options)[:count]

    def below(self, counts: Tensor) -> Tensor:
        drawn = self.uniform(len(counts), torch.float32)
        return torch.minimum((drawn * counts).long(), counts - 1)  # the product may be rounded up


class NumpyDraws:
    def __init__(self, state: np.random.RandomState, device: torch.device):
        self.state, self.device = state, device

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def integers(self, high: int, count: int) -> Tensor:
        return self._tensor(self.state.randint(0, high, size=count, dtype=np.int64))

    def uniform(self, count: int, dtype: torch.dtype) -> Tensor:
        return self._tensor(self.state.uniform(size=count)).to(dtype)

    def normal_(self, out: Tensor) -> Tensor:
        return out.copy_(self._tensor(self.state.randn(*out.shape)))

    def choice(self, high: int, count: int, replace: bool) -> Tensor:
        return self._tensor(self.state.choice(high, size=count, replace=replace))

    def below(self, counts: Tensor) -> Tensor:
        """Which of a row's entries is the first in a permutation of all rows' entries."""
        row = torch.repeat_interleave(counts)
        order = self._tensor(self.state.permutation(len(row)))
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(row), device=self.device))
        first = torch.empty_like(counts).scatter_reduce_(0, row, place, "amin", include_self=False)
        return order[first] - (counts.cumsum(0) - counts)


def draws_from(random_state: Any, device: torch.device) -> Draws:
    """From None (torch's own generator), an int, a torch.Generator of the device or a numpy RandomState."""
    if random_state is None:
        return TorchDraws(None, device)
    if isinstance(random_state, np.random.RandomState):
        return NumpyDraws(random_state, device)
    if isinstance(random_state, torch.Generator):
        if random_state.device.type != device.type:
            raise ValueError(
                f"expected random_state to be a generator on {device}, as X, but got one on {random_state.device}"
            )
        return TorchDraws(random_state, device)
    if isinstance(random_state, (int, np.integer)) and not isinstance(random_state, bool):
        return TorchDraws(torch.Generator(device).manual_seed(int(random_state)), device)
    raise TypeError(
        "expected random_state to be None, an int, a torch.Generator or a numpy RandomState, but got "
        f"{describe(random_state)}"
    )
