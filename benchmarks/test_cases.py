"""The table under pytest-benchmark, for its bookkeeping: saved runs, comparisons between them, histograms.

    pytest benchmarks --benchmark-autosave -k "focal_loss and 4096x1000"
    pytest benchmarks --benchmark-compare

pytest-benchmark would run one provider after another, and ratios would be the machine's moods. So all providers of a
case run once, in turns, and each test replays the rounds of one to pytest-benchmark's clock.
"""

import functools

import pytest

from benchmarks.augmentation import AUGMENTATION
from benchmarks.cases import CASES
from benchmarks.measure import ROUNDS, calls, interleaved
from benchmarks.metrics import METRICS


def providers(case) -> list[str]:
    return [*case.providers, *(["compile"] if "eager" in case.providers else []), *(["copy"] if case.copies else [])]


def name_of(parameter) -> str:
    return parameter if isinstance(parameter, str) else f"{parameter.section} {parameter.name}"


class Replay:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def round(self, seconds) -> None:
        self.now += next(seconds, 0.0)  # the last call of pytest-benchmark is not timed


clock = Replay()
measured = functools.lru_cache(maxsize=1)(lambda case: interleaved(calls(case)))


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(
    "case, provider",
    [(case, name) for case in [*CASES, *METRICS, *AUGMENTATION] for name in providers(case)],
    ids=name_of,
)
def test_case(benchmark, case, provider):
    benchmark.group = f"{case.section} {case.name}"
    benchmark.pedantic(clock.round, args=[iter(measured(case)[provider])], rounds=ROUNDS)
