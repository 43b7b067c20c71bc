"""Time in turns, agreement, peak memory. Knows nothing of what the cases are.

Every provider has its turn in every round, so that a drift of the machine hits all alike; a ratio is the median of the
rounds' ratios. Peak memory is the resident set's high-water mark in a process of its own.
"""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.cases import CASES, YARDSTICKS, Call, Case

ROUNDS, BUDGET = 7, 0.05  # rounds, and seconds a provider and round
# Relative error, of the norm, within which providers agree: what is written by hand rounds between its operations.
AGREE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def calls(case: Case, compiled: bool = True) -> dict[str, Call]:
    """What each provider is timed by, on the same inputs."""
    torch._dynamo.reset()  # one case's shapes must not make the next one's graph dynamic
    torch.manual_seed(0)
    inputs = case.inputs()
    providers = dict(case.providers)
    if compiled and "eager" in providers:
        providers["compile"] = torch.compile(providers["eager"], dynamic=False)
    done = {name: case.work(provider, *inputs) for name, provider in providers.items()}
    if case.copies:
        source = inputs[0].detach()
        sink = torch.empty_like(source)
        done["copy"] = lambda: sink.copy_(source)
    return done


def check_agreement(case: Case) -> None:
    """Raises AssertionError if a rival's value or gradient is not ours."""
    torch.manual_seed(0)
    logits, *rest = case.inputs()
    if case.agree:
        results = {name: provider(logits, *rest) for name, provider in case.providers.items()}
        for name, result in results.items():
            assert case.agree(results["imbloss"], result), f"{case.name}: {name} differs from ours"
        return
    for name, provider in case.providers.items():
        if name in YARDSTICKS:
            continue
        logits.grad = None
        value = provider(logits, *rest)
        if value is None:
            return
        if case.gradient:
            value.backward()
        got = value.detach().double(), (logits.grad if case.gradient else value).double()
        if name == "imbloss":
            ours = got
            continue
        for what, ours_, theirs in zip(("value", "gradient"), ours, got, strict=True):
            error = float((ours_ - theirs).norm() / ours_.norm())
            assert error <= AGREE[logits.dtype], f"{case.name}: {what} of {name} differs from ours by {error:.1e}"


def interleaved(calls: Mapping[str, Call], rounds: int = ROUNDS, budget: float = BUDGET) -> dict[str, list[float]]:
    """Seconds a call, of each provider and round; calls are repeated to fill the budget, "imbloss" deciding."""
    for call in calls.values():  # the first compiles, the second settles
        call()
        call()
    repeats = max(1, int(budget / min(_seconds(calls["imbloss"]) for _ in range(5))))
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            done = 0
            while True:
                call()
                done += 1
                spent = time.perf_counter() - start
                if done == repeats or spent > 4 * budget:
                    break
            seconds[name].append(spent / done)
    return seconds


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def summary(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float | list[float]]]:
    """Of each provider: median seconds, and quartiles of the rounds' ratios to imbloss."""
    ours = seconds["imbloss"]
    return {
        name: {
            "seconds": _short(statistics.median(taken)),
            "ratio": [_short(q) for q in _quartiles([t / o for t, o in zip(taken, ours, strict=True)])],
        }
        for name, taken in seconds.items()
    }


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def timed(case: Case, rounds: int, budget: float, compiled: bool) -> dict:
    """A case's entry in the results."""
    check_agreement(case)
    providers = summary(interleaved(calls(case, compiled), rounds, budget))
    logits = case.inputs()[0]
    return {
        "section": case.section,
        "function": case.function,
        "detail": case.detail,
        "elements": logits.numel(),
        "bytes": logits.numel() * logits.element_size(),
        "rounds": rounds,
        "providers": providers,
    }


# ---- memory ------------------------------------------------------------------------------------------------------
def peak_of_call(call: Call) -> int:
    """Bytes of resident memory that a call needs at its peak, beyond what was there before; Linux only.

    Right within a few hundred kilobytes: the kernel counts pages in batches.
    """
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)  # free memory that is kept would hide small buffers
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def peaks(case: Case, compiled: bool) -> dict[str, int]:
    """Bytes beyond the inputs that forward and backward need at their peak, the gradient included, per provider.
    imbloss keeps no freed gradient: that would be there before, and not be counted."""
    names = [name for name in [*case.providers, *(["compile"] if compiled else [])] if name not in YARDSTICKS]
    alone = ("benchmarks.measure", case.section, case.name)
    return {name: in_own_process(*alone, name, IMBLOSS_KEEP_MB="0") for name in names}


def in_own_process(module: str, *arguments: str, **environment: str):
    """What ``python -m module arguments`` prints, as JSON."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    return json.loads(done.stdout)


def _main(section: str, name: str, provider: str) -> None:
    case = next(case for case in CASES if (case.section, case.name) == (section, name))
    torch._dynamo.reset()
    torch.manual_seed(0)
    inputs = case.inputs()
    loss = torch.compile(case.providers["eager"], dynamic=False) if provider == "compile" else case.providers[provider]
    call = case.work(loss, *inputs)
    for _ in range(2):  # whatever is set up once
        call()
    inputs[0].grad = None
    print(json.dumps(peak_of_call(call)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
