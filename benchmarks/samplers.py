"""Samplers at 20,000,000 labels beside torch's WeightedRandomSampler: seconds and peak memory. For docs/data.md.

    python -m benchmarks samplers [labels] [draws]

Each cell is a process of its own; cells take turns, and the least of three rounds is shown.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import WeightedRandomSampler

import imbloss
from benchmarks.measure import in_own_process, peak_of_call

LABELS, DRAWS, CLASSES = 20_000_000, 10_000_000, 100


def long_tailed(count: int) -> torch.Tensor:
    shares = 100.0 ** (-torch.arange(CLASSES) / (CLASSES - 1))
    return torch.searchsorted(shares.cumsum(0) / shares.sum(), torch.rand(count)).clamp(max=CLASSES - 1)


def by_hand(labels: torch.Tensor, draws: int) -> WeightedRandomSampler:
    weights = 1.0 / torch.bincount(labels).double()
    return WeightedRandomSampler(weights[labels], draws)  # pyright: ignore[reportArgumentType]


# name -> the sampler of labels and a number of draws, how it is read
SAMPLERS: dict[str, tuple[Callable, Callable]] = {
    "`ImbalancedDatasetSampler`, tensors": (
        lambda y, n: imbloss.ImbalancedDatasetSampler(y, num_samples=n),
        lambda sampler: sampler.stream(),
    ),
    "the same, as integers one by one": (lambda y, n: imbloss.ImbalancedDatasetSampler(y, num_samples=n), iter),
    "the same without replacement, tensors": (
        lambda y, n: imbloss.ImbalancedDatasetSampler(y, num_samples=n, replacement=False),
        lambda sampler: sampler.stream(),
    ),
    "`WeightedSampler`, tensors": (
        lambda y, n: imbloss.WeightedSampler((1 / torch.bincount(y).double())[y], n),
        lambda sampler: sampler.stream(),
    ),
    "`WeightedRandomSampler` of torch": (by_hand, iter),
}


def measured(name: str, count: int, draws: int) -> dict[str, float | str]:
    make, read = SAMPLERS[name]
    torch.manual_seed(0)
    labels = long_tailed(count)
    made = []
    found: dict[str, float | str] = {}
    start = time.perf_counter()
    found["memory"] = peak_of_call(lambda: made.append(make(labels, draws))) / count
    found["construction"] = time.perf_counter() - start
    start = time.perf_counter()
    try:
        exhaust(read(made[0]))
        found["draws"] = time.perf_counter() - start
    except RuntimeError as error:
        found["draws"] = str(error).splitlines()[0]
    return found


def exhaust(items: Iterator) -> None:
    for _ in items:
        pass


def table(count: int, draws: int) -> str:
    rounds: dict[str, list[dict]] = {name: [] for name in SAMPLERS}
    for _ in range(3):
        for name, found in rounds.items():
            found.append(in_own_process("benchmarks.samplers", name, str(count), str(draws)))
    lines = [
        f"| {count:,} labels of {CLASSES} classes | construction | {draws:,} draws | peak, bytes a label |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, found in rounds.items():
        drawn = [f["draws"] for f in found]
        cell = drawn[0] if isinstance(drawn[0], str) else f"{min(drawn):.2f} s"
        memory = min(f["memory"] for f in found)
        lines.append(f"| {name} | {min(f['construction'] for f in found):.2f} s | {cell} | {memory:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
