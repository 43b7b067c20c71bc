"""A stream of draws for each epoch, shared by ranks and resumed anywhere. What a draw is, the samplers say."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from imbloss.priors import check_number

CHUNK = 2**16  # draws made at once: their arrays fit the second-level cache
Item = TypeVar("Item")

# positions in the stream, ascending -> draws, in axis 0
Draw = Callable[[np.ndarray], np.ndarray]


def replica(num_replicas: int | None, rank: int | None, group: Any) -> tuple[int, int]:
    """Checked, by default from torch.distributed where it is initialised."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if num_replicas is None:
        num_replicas = torch.distributed.get_world_size(group) if distributed else 1
    if rank is None:
        rank = torch.distributed.get_rank(group) if distributed else 0
    check_number(num_replicas, "num_replicas", least=1, whole=True)
    check_number(rank, "rank", whole=True)
    if not 0 <= rank < num_replicas:
        raise ValueError(f"expected rank in [0, {num_replicas}), but got {rank}")
    return int(num_replicas), int(rank)


class Stream(DistributedSampler, Generic[Item]):
    """Draw k of an epoch is a function of seed, epoch and k. Rank r of R takes the draws r, r + R, r + 2 R, ...

    A DistributedSampler in name, so that Lightning, ignite and others see that it is sharded already.
    """

    _chunk = CHUNK

    def __init__(self, length: int, seed: int, num_replicas: int | None, rank: int | None, group: Any) -> None:
        check_number(seed, "seed", least=0, whole=True)
        if seed >= 2**64:
            raise ValueError(f"expected seed < 2^64, but got {seed}")
        self.num_replicas, self.rank = replica(num_replicas, rank, group)
        self.seed = int(seed)
        self.length = length  # draws of an epoch, all ranks together
        self.epoch = 0  # the one that is being drawn or, where none is, the next
        self._iterations = 0
        self._begun = False
        self._skipped = 0  # draws of the epoch, of all ranks, before this iteration
        self._taken = 0  # draws of this rank in it

    def _draw(self, epoch: int) -> Draw:
        """The draws of an epoch."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Draws of this rank in an epoch: alike on all ranks."""
        return -(-self.length // self.num_replicas)

    def __iter__(self) -> Iterator[Item]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for draws in self._chunks(self._chunk):
            for draw in draws.tolist():
                self._taken += 1
                yield draw

    def stream(self, chunk: int | None = None) -> Iterator[Tensor]:
        """What iterating gives, as int64 tensors of up to `chunk` draws: ten times as fast."""
        chunk = self._chunk if chunk is None else chunk
        check_number(chunk, "chunk", least=1, whole=True)
        for draws in self._chunks(chunk):
            self._taken += len(draws)
            yield torch.from_numpy(draws)

    def _chunks(self, chunk: int) -> Iterator[np.ndarray]:
        if self._begun:  # and not ended
            self.set_epoch(self.epoch + 1)
        self._begun = True
        self._iterations += 1
        own = self._iterations
        draw, first, ranks = self._draw(self.epoch), self._skipped + self.rank, self.num_replicas
        left = -(-(self.length - self._skipped) // ranks)  # alike on all ranks, also after a change of their number
        for start in range(0, left, chunk):
            yield draw(first + ranks * np.arange(start, min(start + chunk, left)))
        if own == self._iterations:
            self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration draws this epoch: from its start or, where a state of it was loaded, from there.

        Without it, each iteration draws the epoch after the last one's.
        """
        check_number(epoch, "epoch", least=0, whole=True)
        if epoch != self.epoch or self._begun:
            self._stand(epoch, 0)

    def _stand(self, epoch: int, position: int) -> None:
        self.epoch, self._skipped = int(epoch), int(position)
        self._begun, self._taken = False, 0

    def state_dict(self, *, epoch: int | None = None, position: int | None = None) -> dict[str, int]:
        """Where the stream stands, for :meth:`load_state_dict` of any rank and any number of ranks.

        It counts what was handed out, also what the workers of a plain DataLoader have fetched ahead of the training.
        For these say where the training is; torchdata's StatefulDataLoader does by itself.

        Args:
            epoch: of the training.
            position: samples of this epoch, of all ranks together, that it has used.
        """
        if (epoch is None) != (position is None):
            raise ValueError(f"expected epoch and position together, but got {epoch} and {position}")
        if epoch is None or position is None:
            epoch, position = self.epoch, self._skipped + self._taken * self.num_replicas
        check_number(epoch, "epoch", least=0, whole=True)
        check_number(position, "position", least=0, whole=True)
        return {"seed": self.seed, "epoch": int(epoch), "position": int(position), "length": self.length}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The next iteration goes on where the state was taken, with the seed it had.

        Raises:
            ValueError: the state is not one of a sampler with as many draws an epoch.
        """
        if set(state_dict) != {"seed", "epoch", "position", "length"}:
            raise ValueError(
                f"expected state_dict of a sampler of imbloss, but got keys {', '.join(map(str, state_dict))}"
            )
        if state_dict["length"] != self.length:
            raise ValueError(
                f"expected state_dict of a sampler with {self.length} draws an epoch, but got {state_dict['length']}"
            )
        self.seed = state_dict["seed"]
        self._stand(state_dict["epoch"], state_dict["position"])
