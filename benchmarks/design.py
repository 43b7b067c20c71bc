"""Where the gradient is made: in the forward, or by a backward that reads the logits again. For docs/kernels.md."""

import functools
import time

import torch

SHAPES = [(4096, 10), (65536, 10), (1024, 100), (4096, 1000), (4, 19, 256, 512)]
GAMMA, IGNORE, MEAN = [2.0, 0.0], -100, 1


def best(call, seconds: float = 0.6) -> float:
    """Microseconds."""
    call()
    least, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
    return 1e6 * least


def table() -> None:
    forward = torch.ops.imbloss.softmax_rows.default
    value = torch.ops.imbloss.softmax_rows_value.default
    backward = torch.ops.imbloss.softmax_rows_backward.default
    factor = torch.tensor(3.7)
    print(
        "| logits | gradient in forward | and times 3.7 | forward, then recomputed | loss only |\n|---|---|---|---|---|"
    )
    for shape in SHAPES:
        x, y = torch.randn(shape), torch.randint(0, shape[1], (shape[0], *shape[2:]))
        calls = {
            "fused": functools.partial(forward, x, y, (), GAMMA, IGNORE, MEAN, "focal", True),
            "stats": functools.partial(forward, x, y, (), GAMMA, IGNORE, MEAN, "focal", False),
            "loss": functools.partial(value, x, y, (), GAMMA, IGNORE, MEAN, "focal"),
        }
        times = [
            best(calls["fused"]),
            best(lambda fused=calls["fused"]: fused()[1].mul_(factor)),
            best(lambda x=x, y=y, stats=calls["stats"]: backward(factor, x, y, stats()[1], (), IGNORE)),
            best(calls["loss"]),
        ]
        cells = [f"{times[0]:.0f}", *(f"{t:.0f} ({t / times[0]:.1f})" for t in times[1:])]
        print(f"| {' x '.join(map(str, shape))} | {' | '.join(cells)} |")
