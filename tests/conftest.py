"""New memory holds NaN, our own warnings are errors, two threads share the work, every test draws the same numbers.

HYPOTHESIS_PROFILE=explore draws other arguments than ever, and many more.
Triton's kernels run in its interpreter with TRITON_INTERPRET=1 IMBLOSS_BACKEND=triton: canaries around their buffers.
"""

import functools
import os

import pytest
import torch
from hypothesis import settings

from imbloss import _C

settings.register_profile("same", derandomize=True, deadline=None, database=None, max_examples=250)
settings.register_profile("explore", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
torch.set_num_threads(2)
torch.utils.deterministic.fill_uninitialized_memory = True
torch.use_deterministic_algorithms(True)
if _C.loaded():
    _C._module.set_fill_new_tensors(True)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ALL = os.environ.get("IMBLOSS_TEST_ALL") == "1"  # `make test-all`
SHARE = 16  # of the parametrised cases, one in so many is for the interpreter, which is slow
CANARIES = 128  # elements on either side


def pytest_collection_modifyitems(items):
    if INTERPRETED and not ALL:
        items[:] = [item for i, item in enumerate(items) if not hasattr(item, "callspec") or i % SHARE == 0]
    items.sort(key=lambda item: item.get_closest_marker("long") is None)  # what takes minutes begins first


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def _in_canaries(tensor):
    """A copy of a tensor and all memory between its elements, with canaries before and behind."""
    span = (
        1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
    )
    canary = torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
    memory = torch.full((span + 2 * CANARIES,), canary, dtype=tensor.dtype)
    memory[CANARIES : CANARIES + span] = tensor.as_strided((span,), (1,))
    return memory, memory.as_strided(tensor.shape, tensor.stride(), CANARIES)


def run_in_canaries(run, kernel, grid, device, *args, **constants):
    pairs = {}
    for arg in args:
        if isinstance(arg, torch.Tensor):
            pairs[id(arg)] = arg, *_in_canaries(arg)
    run(kernel, grid, device, *(pairs[id(arg)][2] if id(arg) in pairs else arg for arg in args), **constants)
    for arg, memory, _ in pairs.values():
        for canaries in (memory[:CANARIES], memory[-CANARIES:]):
            hurt = ~canaries.isnan() if arg.is_floating_point() else canaries != torch.iinfo(arg.dtype).max
            assert not hurt.any(), f"{kernel} wrote outside a tensor of shape {tuple(arg.shape)}"
        span = len(memory) - 2 * CANARIES
        arg.as_strided((span,), (1,)).copy_(memory[CANARIES : CANARIES + span])


def few_programs(monkeypatch):
    """The interpreter takes 5 ms a program, however large: large ones. A program of long rows has but one of them."""
    from imbloss.kernels import launch

    is_long = launch.is_long

    def all_rows(rows, processors, stores):
        columns = launch.power_of_2(rows.classes)
        held = min(launch.power_of_2(rows.inner), max(2**20 // columns, 1))
        return launch.Tile(held, columns, 1, rows.vector, 4, rows.outer * launch.cdiv(rows.inner, held))

    def few_rows(rows, processors):
        # numpy adds the rows of a column one by one, a GPU in a tree: few in a program
        num_rows, columns = rows.outer * rows.inner, launch.power_of_2(rows.classes)
        held = min(32, launch.power_of_2(num_rows))
        return launch.Columns(held, columns, 1, rows.vector, 4, launch.cdiv(num_rows, held))

    monkeypatch.setattr(launch, "tile", all_rows)
    monkeypatch.setattr(launch, "columns", few_rows)
    monkeypatch.setattr(launch, "is_long", lambda rows: is_long(rows) and rows.outer * rows.inner <= 16)
    monkeypatch.setattr(launch, "elements", launch.elements.__wrapped__)
    monkeypatch.setattr(launch, "ELEMENTS", 2**20)


@pytest.fixture(autouse=INTERPRETED)
def canaries(monkeypatch):
    from imbloss.kernels import rows

    monkeypatch.setattr(rows, "run", functools.partial(run_in_canaries, rows.run))
    few_programs(monkeypatch)
