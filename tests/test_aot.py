"""What the kernels compile to: ceilings on registers spilled, float64, the width of loads and stores, and instructions.

IMBLOSS_TEST_ALL=1 compiles every case for every target, else a share of them.
"""

import itertools

import pytest
import torch
from conftest import ALL, INTERPRETED

pytest.importorskip("triton")
from benchmarks import aot
from imbloss.kernels import model, neighbors

pytestmark = pytest.mark.skipif(INTERPRETED, reason="not in Triton's interpreter")
BY_NAME = {case.name: case for case in aot.CASES}
# As the issue of the GPU path asks of sm_90 in bfloat16: instructions an element of the statistics and of the gradient.
CEILINGS = {"softmax_long_rows_kernel": 8.0, "softmax_long_rows_backward_kernel": 7.0}
MODELLED = ("rows C=10", "rows C=100", "rows C=1000", "long rows C=50257", "dense C=19", "sigmoid focal")
LONG = [case for case in aot.CASES if case.long]
SHARE = 23
EVERY = [
    (case, dtype, target) for case, target in itertools.product(aot.CASES, aot.TARGETS) for dtype in case.dtypes
]  # fmt: skip


@pytest.mark.parametrize("case, dtype, target", EVERY if ALL else EVERY[::SHARE], ids=lambda p: getattr(p, "name", p))
def test_no_float64_and_no_spills(case, dtype, target):
    for code in aot.measure(case, dtype, target):
        assert code.float64 == 0 and code.spills <= 4, code
        assert not any(loop.spills for loop in code.loops)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", LONG if ALL else LONG[-3::2], ids=lambda case: case.name)
def test_loops_over_long_rows_move_whole_vectors(case, dtype):
    """At any alignment of the rows."""
    kernels = {code.kernel: code for code in aot.measure(case, dtype, "sm_90")}
    for name, ceiling in CEILINGS.items():
        loop = max(kernels[name].loops, key=lambda loop: loop.instructions)
        assert set(loop.loads) == {"LDG.128"} and set(loop.stores) <= {"STG.128"}
        assert bool(loop.stores) == ("backward" in name)
        if dtype == torch.bfloat16:
            assert loop.instructions <= ceiling


@pytest.mark.parametrize(
    "kind, name", list(zip(model.INSTRUCTIONS, MODELLED, strict=True)) if ALL else [("long rows", MODELLED[3])]
)
def test_the_model_counts_the_instructions_of_the_kernels(kind, name):
    """Within a tenth."""
    forward, backward = (
        max((loop.instructions for loop in code.loops), default=code.per_element)
        for code in aot.measure(BY_NAME[name], torch.bfloat16, "sm_90")
    )
    assert model.INSTRUCTIONS[kind] == pytest.approx((forward, backward), rel=0.1)


@pytest.mark.parametrize("k", [1, 5, 10, 32])
def test_neighbours_have_no_float64_and_no_spills(k):
    points, halves = torch.randn(70, 32), torch.ones(70)
    with aot.compiling("sm_90") as launches:
        neighbors.select(points, points, halves, torch.arange(70), k + 3)
    assert launches
    for kernel, elements in launches:
        code = aot.read(kernel, 4, elements)
        assert code.float64 == 0 and code.spills == 0 and not any(loop.spills for loop in code.loops), code


def test_occupancy_is_what_fits():
    assert aot.occupancy(90, 32, 128, 0) == 1.0
    assert aot.occupancy(90, 128, 256, 0) == 0.25  # registers
    assert aot.occupancy(90, 32, 32, 0) == 0.5  # programs
    assert aot.occupancy(90, 32, 128, 100 * 1024) == 0.12  # shared memory


def test_a_loop_is_read_without_what_it_skips():
    body = [(0, "LDG.E.128", "R0"), (16, "BRA", " 0x30"), (32, "FADD", ""), (48, "MUFU.EX2", ""), (64, "BRA", " 0x0")]
    loop = aot._loop(body, 64, 2, 8)
    assert loop.instructions == 0.5 and loop.loads == {"LDG.128": 1}
    assert aot._loop([(0, "LDG.E.128", ""), (16, "LDL", ""), (32, "BRA", " 0x0")], 32, 2, 8).spills == 1


def test_float64_would_be_noticed():
    import triton
    import triton.language as tl

    @triton.jit
    def wide(ptr):
        tl.store(ptr, tl.sqrt(tl.load(ptr).to(tl.float64)).to(tl.float32))

    with aot.compiling("sm_90") as launches:
        wide[(1,)](torch.zeros(1))
    ((kernel, elements),) = launches
    assert aot.read(kernel, 4, elements).float64 > 0
