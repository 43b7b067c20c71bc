"""Is all well on this machine? What is installed, what computes, and whether it computes right. `imbloss doctor`.

Needs torch and numpy alone; cli.py makes it a table.
"""

import contextlib
import importlib
import importlib.metadata
import inspect
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import imbloss
from imbloss import _C, _ops, reference

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


# ---- what is there -----------------------------------------------------------------------------------------------
def environment() -> dict:
    """Versions, devices and settings, ready for JSON."""
    return {
        "imbloss": imbloss.__version__,
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if _ops._has_triton else None,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "core": _C.isa(),
        "build": _C.build_info(),
        "autograd": "Python" if _C.autograd is None else "C++",
        "backend": _ops._backend,
        "devices": ["cpu", *accelerators(), *(["mps"] if torch.backends.mps.is_available() else [])],
        "triton_state": triton_state(),
        "huge_pages": huge_pages(),
        "threads": torch.get_num_threads(),
    }


def accelerators() -> list[str]:
    """Devices that Triton's kernels serve, with their names: "cuda:0 NVIDIA H100"."""
    found = []
    for kind in _ops._ACCELERATORS:
        module = getattr(torch, kind)
        if module.is_available():
            found += [f"{kind}:{i} {module.get_device_name(i)}" for i in range(module.device_count())]
    return found


def triton_state() -> str:
    """ "not installed", "broken: ...", "interpreted", "usable" or "no device"."""
    if not _ops._has_triton:
        return "not installed"
    try:
        for module in _ops._TRITON_OPERATORS:
            importlib.import_module(f"imbloss.kernels.{module}")
    except Exception as error:  # whatever it is, it is what the user wants to know
        return f"broken: {_one_line(error)}"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreted"
    return "usable" if accelerators() else "no device"


def huge_pages() -> str:
    """The kernel's setting: "always", "madvise" (imbloss asks for its gradients), "never" or "unknown"."""
    with contextlib.suppress(OSError, IndexError):
        return HUGE_PAGES.read_text().split("[")[1].split("]")[0]
    return "unknown"


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


# ---- whether it is right -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Check:
    """A loss to compare with its reference in float64."""

    function: str
    keywords: Callable[[Tensor], dict] = lambda counts: {}  # of the training counts
    soft: bool = False  # probabilities as targets
    of_elements: bool = False  # a target for each logit


def softmax_losses() -> list[Check]:
    """Every public loss of (logits, target), with counts or a prior of the classes if it takes them."""
    found = []
    for name in imbloss.__all__:
        if not hasattr(reference, name):  # first of all: other names may need an extra
            continue
        function = getattr(imbloss, name)
        parameters = list(inspect.signature(function).parameters) if inspect.isfunction(function) else []
        if parameters[:2] != ["logits", "target"]:
            continue
        if "counts" in parameters:
            found.append(Check(name, lambda counts: {"counts": counts}))
        elif "prior" in parameters:
            found.append(Check(name, lambda counts: {"prior": counts / counts.sum()}))
        else:
            found.append(Check(name))
    return found


def element_losses() -> list[Check]:
    """Every public loss of (inputs, targets); quality focal loss's targets are no classes."""
    names = [
        name for name in imbloss.__all__ if hasattr(reference, name) and inspect.isfunction(getattr(imbloss, name))
    ]
    found = [n for n in names if list(inspect.signature(getattr(imbloss, n)).parameters)[:2] == ["inputs", "targets"]]
    return [
        Check(name, lambda counts: {"reduction": "mean"}, soft=name.startswith("quality"), of_elements=True)
        for name in found
    ]


CHECKS = (
    *softmax_losses(),
    *element_losses(),
    Check("cross_entropy", lambda counts: {"label_smoothing": 0.1, "weight": counts / counts.mean()}),
    Check("focal_loss", lambda counts: {"gamma": 0.5, "weight": counts / counts.mean()}),
    Check("focal_loss", lambda counts: {"gamma": 1.5}, soft=True),
)
SHAPES = ((65, 2), (33, 10), (17, 37), (9, 100), (5, 1203), (2, 7, 5, 9))
POINTS, NEIGHBOURS = ((65, 1), (130, 33), (260, 128)), 5  # (n, d), and how many of each
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STEPS = 64  # of the dtype's eps, relative to the largest element: float32 in plain PyTorch needs 20, a defect has more


@dataclass(frozen=True)
class Result:
    function: str
    dtype: str
    shape: tuple[int, ...]
    steps: float  # error of value or gradient, in eps of the dtype; NaN where it is not finite
    error: str | None = None  # what was raised

    @property
    def right(self) -> bool:
        return self.error is None and self.steps <= STEPS

    def __str__(self) -> str:
        what = self.error or (f"off by {self.steps:.3g} eps" if self.steps == self.steps else "not finite")
        return f"{self.dtype} {'x'.join(map(str, self.shape))}: {what}"


def long_tailed_counts(classes: int) -> Tensor:
    """From 1000 down to 10, in float64."""
    return (1000 * 0.01 ** torch.linspace(0, 1, classes, dtype=torch.float64)).round()


def parity(device: str = "cpu", checks: Iterable[Check] = CHECKS) -> list[Result]:
    """Value and gradient of every loss on a device against the float64 reference, in a second or so."""
    generator = torch.Generator().manual_seed(0)
    results = []
    for shape in SHAPES:
        rows, classes = (shape[0], *shape[2:]), shape[1]
        counts = long_tailed_counts(classes)
        logits = 3 * torch.randn(shape, generator=generator)
        target = torch.randint(classes, rows, generator=generator)
        shares = torch.randn(shape, generator=generator).softmax(1)
        marks = (shares > 1.5 / classes).long()
        for check in checks:
            targets = shares if check.soft else marks if check.of_elements else target
            for dtype in DTYPES:
                result = _compare(check, logits.to(dtype), targets, counts, device)
                results.append(Result(check.function, str(dtype).removeprefix("torch."), shape, *result))
    return results


def _compare(check: Check, logits: Tensor, target: Tensor, counts: Tensor, device: str) -> tuple[float, str | None]:
    def run(function, x, y):
        x = x.detach().requires_grad_()
        loss = function(x, y, **check.keywords(counts.to(x.device)))
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    soft = target.double() if check.soft else target
    wanted = run(getattr(reference, check.function), logits.double(), soft)
    try:
        got = run(getattr(imbloss, check.function), logits.to(device), target.to(device))
    except Exception as error:
        return float("nan"), _one_line(error)
    eps = torch.finfo(logits.dtype).eps
    pairs = zip(got, wanted, strict=True)
    # the largest by torch, for which NaN is the largest
    return float(torch.stack([(g.cpu().double() - w).abs().max() / w.abs().max() / eps for g, w in pairs]).max()), None


def neighbours(device: str = "cpu") -> list[Result]:
    """:func:`imbloss.knn` on a device against a brute force in float64."""
    generator = torch.Generator().manual_seed(0)
    results = []
    for shape in POINTS:
        for dtype in DTYPES:
            points = torch.randn(shape, generator=generator).to(dtype)
            wanted, indices = reference.knn(points.double(), NEIGHBOURS)
            steps, error = float("nan"), None
            try:
                distances, found = imbloss.knn(points.to(device), NEIGHBOURS)
            except Exception as problem:
                error = _one_line(problem)
            else:
                steps = float((distances.cpu().double() - wanted).abs().max() / wanted.max() / torch.finfo(dtype).eps)
                if not torch.equal(found.cpu(), indices):
                    error = "not the nearest points"
            results.append(Result("knn", str(dtype).removeprefix("torch."), shape, steps, error))
    return results


# ---- the verdict -------------------------------------------------------------------------------------------------
def examine(device: str = "cpu", speed: bool | None = None, rows: int | None = None) -> dict:
    """Everything that `imbloss doctor` says, ready for JSON; all is well if "problems" is empty.

    `speed`: whether to measure it; by default where the device is no CPU. `rows`: of that at most so many.
    """
    found = environment()
    problems = _problems(found)
    start = time.perf_counter()
    results = []
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        problems.append(f"expected a device that works, but got {device!r}: {_one_line(error)}")
    else:
        results = parity(device) + neighbours(device)
    seconds = time.perf_counter() - start
    for function in dict.fromkeys(result.function for result in results):
        of_function = [result for result in results if result.function == function]
        wrong = [result for result in of_function if not result.right]
        if wrong:
            worst = max(wrong, key=lambda result: (result.steps != result.steps, result.steps))
            problems.append(
                f"{function} differs from its float64 reference in {len(wrong)} of {len(of_function)} checks, "
                f"at worst {worst} ({STEPS} eps are allowed)"
            )
    checked = {"device": device, "checks": len(results), "seconds": round(seconds, 2), "allowed_eps": STEPS}
    checked["worst_eps"] = {  # None: not finite
        dtype: _largest([result.steps for result in results if result.dtype == dtype])
        for dtype in dict.fromkeys(result.dtype for result in results)
    }
    raced = []
    if results and (torch.device(device).type != "cpu" if speed is None else speed):
        from imbloss.speed import race

        raced = race(device, rows)
        for entry in raced:
            what = f"{entry['name']} of {'x'.join(map(str, entry['shape']))} in {entry['dtype']}"
            if "error" in entry["providers"]["imbloss"]:
                problems.append(f"{what} fails: {entry['providers']['imbloss']['error']}")
            elif not entry["repeats"]:
                problems.append(f"{what} differs from itself, computed twice")
    return {"environment": found, "parity": checked, "speed": raced, "problems": problems}


def _problems(found: dict) -> list[str]:
    problems = []
    capability, core = found["cpu_capability"], found["core"]
    best = _C._VARIANTS.get(capability, ["default"])[0]
    if core == "none":
        problems.append(
            f"no compiled core for CPU capability {capability}: losses on CPU are computed in plain PyTorch, which is "
            "slower; reinstall imbloss with a C++17 compiler (g++ or clang++) at hand"
        )
    elif core != best:
        problems.append(f"the compiled core for {best} is missing, the slower one for {core} serves; reinstall imbloss")
    state = found["triton_state"]
    if state.startswith("broken"):
        problems.append(f"triton is installed but does not work, {state}")
    elif state == "not installed" and accelerators():
        problems.append("no triton: losses on the GPU are computed in plain PyTorch, which is slower; install triton")
    return problems


def _largest(steps: list[float]) -> float | None:
    return None if any(s != s for s in steps) else round(max(steps), 3)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
