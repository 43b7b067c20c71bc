"""`python -m benchmarks host`: microseconds of Python around the Triton kernels, whose launches do nothing.

On CPU tensors, dispatched as on a GPU. "stubbed": without Triton's own launcher, too.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from triton.runtime import driver

import imbloss
from benchmarks.aot import TARGETS, CompileOnly
from imbloss import _ops
from imbloss.kernels import rows, softmax_rows


def microseconds(call: Callable[[], object], rounds: int = 60, calls: int = 40) -> float:
    """The median over rounds of few calls, after as many to warm up."""
    times = []
    for _ in range(2 * rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(times[rounds:])


def step(loss, x, y):
    def run():
        x.grad = None
        loss(x, y).backward()

    return run


def measured() -> dict[str, float]:
    library, kernels, launched = torch.library.Library("imbloss", "IMPL"), _ops._kernels, rows.run
    driver.set_active(CompileOnly(TARGETS["sm_90"]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # nothing here is worth a second
    x, y = torch.randn(32, 10, requires_grad=True), torch.randint(0, 10, (32,))
    operator = lambda: softmax_rows.softmax_rows(x.detach(), y, (), [2.0, 0.0], -100, 1, "focal", False)  # noqa: E731
    try:
        _ops._kernels = {"cpu": "triton"}
        _ops._register_triton(library, "CPU", allow_override=True)
        found = {"forward and backward": microseconds(step(imbloss.focal_loss, x, y))}
        rows.run = lambda *args, **constants: None
        found["forward and backward, stubbed"] = microseconds(step(imbloss.focal_loss, x, y))
        found["forward without gradient, stubbed"] = microseconds(lambda: imbloss.focal_loss(x.detach(), y))
        loss, stats = operator()
        found["operator forward, stubbed"] = microseconds(operator)
        found["operator backward, stubbed"] = microseconds(
            lambda: softmax_rows.softmax_rows_backward(loss, x.detach(), y, stats, (), -100)
        )
    finally:
        rows.run, _ops._kernels = launched, kernels
        library._destroy()
        driver.set_active(None)
    found["F.cross_entropy on CPU, forward and backward"] = microseconds(step(F.cross_entropy, x, y))
    torch.set_num_threads(threads)
    return found


def table() -> None:
    for name, value in measured().items():
        print(f"{name:46} {value:6.1f} us")
