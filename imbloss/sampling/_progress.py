"""A bar for a search of more than a few seconds. The kernel counts what is done, a thread looks now and then."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

import torch
from torch import Tensor

LONG = 1e12  # multiplications that take a processor more than a few seconds
EVERY, WIDTH = 0.5, 30  # seconds; characters


@contextlib.contextmanager
def watched(points: Tensor, work: float, progress: bool | None) -> Iterator[Tensor | None]:
    """A counter for an operator: thousandths of its work. None where nobody looks."""
    if progress is None:
        progress = work > LONG and sys.stderr.isatty()
    if not progress or not points.is_cpu or torch.compiler.is_compiling():
        yield None
        return
    counter, done = torch.zeros(1, dtype=torch.int64), threading.Event()
    watcher = threading.Thread(target=_watch, args=(counter.numpy(), done), daemon=True)
    watcher.start()
    try:
        yield counter
    finally:
        done.set()
        watcher.join()


def _watch(counter, done: threading.Event) -> None:
    start = time.monotonic()
    while not done.wait(EVERY):
        _show(min(counter[0] / 1000, 1.0), time.monotonic() - start)
    _show(1.0, time.monotonic() - start)
    sys.stderr.write("\n")


def _show(share: float, seconds: float) -> None:
    bar = ("#" * round(WIDTH * share)).ljust(WIDTH, ".")
    left = f", {seconds * (1 / share - 1):.0f} s left" if 0 < share < 1 else ""
    sys.stderr.write(f"\rneighbours [{bar}] {100 * share:3.0f} % in {seconds:.0f} s{left}  ")
    sys.stderr.flush()
