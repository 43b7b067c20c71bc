"""How fast are losses and neighbours here, how much memory do they take, do they repeat? For `imbloss doctor`.

Rivals compute the same: plain PyTorch, torch.compile of that and, for cross entropy, torch's own and Liger's.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import imbloss

Step = Callable[[Tensor, Tensor], Tensor]  # (logits, target) -> loss


def _focal(x: Tensor, y: Tensor) -> Tensor:
    log_p = F.log_softmax(x.float(), 1).gather(1, y.unsqueeze(1)).squeeze(1)
    return (-((1 - log_p.exp()) ** 2) * log_p).mean()


def _sigmoid_focal(x: Tensor, y: Tensor) -> Tensor:
    x, t = x.float(), y.float()
    bce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    p_t = torch.exp(-bce)
    return ((t * 0.25 + (1 - t) * 0.75) * (1 - p_t) ** 2 * bce).mean()


def _logit_adjusted(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x.float() + _prior(x).log(), y)


def _prior(x: Tensor) -> Tensor:
    counts = torch.arange(x.shape[1], 0, -1, device=x.device, dtype=torch.float32)
    return counts / counts.sum()


@dataclass(frozen=True)
class Work:
    """A loss and what else computes it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    loss: Step
    eager: Step
    builtin: Step | None = None  # torch's own of the same
    compiled: bool = False  # whether torch.compile takes part, which takes its time
    of_elements: bool = False  # targets of 0 and 1, one for each logit

    def inputs(self, device: str, rows: int | None) -> tuple[Tensor, Tensor]:
        """At most so many rows."""
        shape = (min(self.shape[0], rows or self.shape[0]), *self.shape[1:])
        generator = torch.Generator().manual_seed(0)
        x = (3 * torch.randn(shape, generator=generator)).to(device, self.dtype)
        if self.of_elements:
            return x, torch.randint(2, shape, generator=generator).to(device)
        return x, torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator).to(device)


def _cross_entropy(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x.float(), y)


def _our_logit_adjusted(x: Tensor, y: Tensor) -> Tensor:
    return imbloss.logit_adjusted_loss(x, y, prior=_prior(x))


def _our_sigmoid_focal(x: Tensor, y: Tensor) -> Tensor:
    return imbloss.sigmoid_focal_loss(x, y, reduction="mean")


NEIGHBOURS = 5
BF16, FP32 = torch.bfloat16, torch.float32
WORK = (
    Work("focal", (65536, 10), FP32, imbloss.focal_loss, _focal),
    Work("focal", (16384, 1000), BF16, imbloss.focal_loss, _focal, compiled=True),
    Work("cross entropy", (16384, 1000), BF16, imbloss.cross_entropy, _cross_entropy, F.cross_entropy),
    Work("logit-adjusted", (8192, 8142), BF16, _our_logit_adjusted, _logit_adjusted),
    Work("cross entropy", (4096, 50257), BF16, imbloss.cross_entropy, _cross_entropy, F.cross_entropy, compiled=True),
    Work("focal", (8, 19, 256, 512), BF16, imbloss.focal_loss, _focal, compiled=True),
    Work("sigmoid focal", (65536, 80), BF16, _our_sigmoid_focal, _sigmoid_focal, compiled=True, of_elements=True),
)


def race(device: str, rows: int | None = None, budget: float = 100.0) -> list[dict]:
    """Every piece of work, forward and backward, by everyone who does it, ready for JSON.

    `rows`: at most so many; `budget`: seconds after which torch.compile is left out.
    """
    start = time.perf_counter()
    found = [_raced(work, device, rows, time.perf_counter() - start < budget) for work in WORK]
    return [*found, _raced_neighbours(device, rows)]


def _raced(work: Work, device: str, rows: int | None, compiles: bool) -> dict:
    x, y = work.inputs(device, rows)
    providers: dict[str, Step] = {"imbloss": work.loss, "eager": work.eager}
    if work.builtin:
        providers["builtin"] = work.builtin
    if work.compiled and compiles:
        providers["compile"] = torch.compile(work.eager)
    if work.name == "cross entropy" and x.is_cuda and importlib.util.find_spec("liger_kernel"):
        providers["liger"] = _liger()
    found = {
        "name": work.name,
        "shape": list(x.shape),
        "dtype": str(work.dtype).removeprefix("torch."),
        "providers": {},
    }
    for name, loss in providers.items():
        found["providers"][name] = _tried(loss, x, y)
    found["repeats"] = "error" not in found["providers"]["imbloss"] and _repeats(work.loss, x, y)
    copy, _ = _measured(lambda x, y: x.clone(), x, y, backward=False)
    found["copy_seconds"] = copy
    seconds = found["providers"]["imbloss"].get("seconds")
    # the forward reads, the backward reads and writes: 3 times the logits; a copy moves them twice
    found["bandwidth_over_copy"] = float(f"{3 / seconds / (2 / copy):.3g}") if seconds else None
    found["predicted_seconds"] = _predicted(work, x, 2 * x.numel() * x.element_size() / copy)
    return found


def _raced_neighbours(device: str, rows: int | None) -> dict:
    shape = (max(min(20_000, rows or 20_000), NEIGHBOURS + 1), 64)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    found = {"name": f"{NEIGHBOURS} neighbours", "shape": list(shape), "dtype": "float32", "providers": {}}
    for name, search in {"imbloss": lambda x, y: imbloss.knn(x, NEIGHBOURS)[0], "eager": _nearest_by_chunks}.items():
        found["providers"][name] = _tried(search, x, x, backward=False)
    found["repeats"] = "error" not in found["providers"]["imbloss"] and all(
        torch.equal(a, b) for a, b in zip(imbloss.knn(x, NEIGHBOURS), imbloss.knn(x, NEIGHBOURS), strict=True)
    )
    found["copy_seconds"], _ = _measured(lambda x, y: x.clone(), x, x, backward=False)
    return {**found, "bandwidth_over_copy": None, "predicted_seconds": None}  # bound by arithmetic


def _nearest_by_chunks(x: Tensor, y: Tensor) -> Tensor:
    found = []
    for start in range(0, len(x), 2048):
        distances = torch.cdist(x[start : start + 2048], x)
        distances.diagonal(start).fill_(torch.inf)
        found.append(distances.topk(NEIGHBOURS, largest=False)[0])
    return torch.cat(found)


def _liger() -> Step:
    from liger_kernel.transformers.functional import liger_cross_entropy  # pyright: ignore[reportMissingImports]

    return lambda x, y: liger_cross_entropy(x, y)  # pyright: ignore[reportReturnType]


def _predicted(work: Work, x: Tensor, bandwidth: float) -> float | None:
    """By imbloss/kernels/model.py, with the bandwidth that a copy has here."""
    if not x.is_cuda:
        return None
    from imbloss.kernels import model

    properties = torch.cuda.get_device_properties(x.device)
    clock = 1e3 * getattr(properties, "clock_rate", 1.5e6)
    device = model.Device(properties.name, bandwidth, properties.multi_processor_count, clock)
    kind = "elements" if work.of_elements else model.kind(x.shape[1], 1 if x.dim() == 2 else 2)
    return sum(model.seconds(device, kind, x.numel(), x.element_size()))


def _tried(loss: Step, x: Tensor, y: Tensor, backward: bool = True) -> dict:
    """A rival that does not work here is a finding, not a failure."""
    try:
        seconds, peak = _measured(loss, x, y, backward)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return {"seconds": seconds, "peak_bytes": peak}


def _measured(loss: Step, x: Tensor, y: Tensor, backward: bool = True) -> tuple[float, int | None]:
    """Median seconds of forward and backward, and bytes at their peak beyond the inputs (on CUDA)."""
    x = x.detach().requires_grad_(backward)

    def step() -> None:
        x.grad = None
        result = loss(x, y)
        if backward:
            result.backward()

    def wait() -> None:
        if not x.is_cpu:
            torch.accelerator.synchronize(x.device)

    for _ in range(3):  # compiles, and fills caches
        step()
    wait()
    peak = None
    if x.is_cuda:
        x.grad = None
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        step()
        wait()
        peak = torch.cuda.max_memory_allocated(x.device) - before
    times = []
    start = time.perf_counter()
    while len(times) < 5 or (len(times) < 200 and time.perf_counter() - start < 0.3):
        began = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times), peak


def _repeats(loss: Step, x: Tensor, y: Tensor) -> bool:
    """Whether value and gradient are the same, to the bit, twice."""
    results = []
    for _ in range(2):
        leaf = x.detach().requires_grad_()
        value = loss(leaf, y)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True))
