"""Random numbers that are repeatable, and differ from one DataLoader worker to the next."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import get_worker_info

from imbloss.priors import check_number


def check_seed(seed: int | None) -> None:
    if seed is not None:
        check_number(seed, "seed", least=0, whole=True)


class Randomness:
    """Generators made of a seed; of torch's global one where there is no seed.

    In a DataLoader worker they also depend on the worker's seed, which torch draws anew for each epoch from the
    loader's ``generator`` (torch's global one by default): workers never repeat each other, nor an epoch the last.
    """

    def __init__(self, seed: int | None) -> None:
        check_seed(seed)
        self.seed = seed
        self._numbers: np.random.Generator | None = None
        self._worker_seed: int | None = None
        self._generators: dict[torch.device, torch.Generator] = {}

    @property
    def numbers(self) -> np.random.Generator:
        """For single numbers, on the host."""
        worker = get_worker_info()
        worker_seed = None if worker is None else worker.seed
        if self._numbers is None or worker_seed != self._worker_seed:
            seed = int(torch.randint(2**62, ())) if self.seed is None else self.seed
            self._numbers = np.random.default_rng([seed] if worker_seed is None else [seed, worker_seed])
            self._worker_seed = worker_seed
            self._generators = {}
        return self._numbers

    def on(self, device: torch.device) -> torch.Generator:
        """For tensors, on their device."""
        numbers = self.numbers  # which forgets the generators of another process
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(int(numbers.integers(2**62)))
        return self._generators[device]

    def __getstate__(self) -> dict:
        # a copy goes on where this one is; torch.Generator cannot be copied, and is made anew from the numbers
        return self.__dict__ | {"_generators": {}}


@contextlib.contextmanager
def global_seeds(*key: int) -> Iterator[None]:
    """The global generators of torch (CPU), numpy and Python seeded from a key, and put back afterwards."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002, transforms use it
    torch.default_generator.manual_seed(seed >> 1)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
