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
SHARE = 8  # of the parametrised cases, one in so many is for the interpreter, which is slow
CANARIES = 128  # elements on either side


def pytest_collection_modifyitems(items):
    if INTERPRETED and not ALL:
        items[:] = [item for i, item in enumerate(items) if not hasattr(item, "callspec") or i % SHARE == 0]


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


def launch_in_canaries(launch, kernel, rows, *args, **constants):
    pairs = {}
    for arg in args:
        if isinstance(arg, torch.Tensor):
            pairs[id(arg)] = arg, *_in_canaries(arg)
    launch(kernel, rows, *(pairs[id(arg)][2] if id(arg) in pairs else arg for arg in args), **constants)
    for arg, memory, _ in pairs.values():
        for canaries in (memory[:CANARIES], memory[-CANARIES:]):
            hurt = ~canaries.isnan() if arg.is_floating_point() else canaries != torch.iinfo(arg.dtype).max
            assert not hurt.any(), f"{kernel} wrote outside a tensor of shape {tuple(arg.shape)}"
        span = len(memory) - 2 * CANARIES
        arg.as_strided((span,), (1,)).copy_(memory[CANARIES : CANARIES + span])


@pytest.fixture(autouse=INTERPRETED)
def canaries(monkeypatch):
    from imbloss.kernels import class_columns, sigmoid_elements, softmax_rows

    # numpy adds the rows of a column one by one, a GPU in a tree: as few in a program as there may be
    monkeypatch.setattr(class_columns, "ROW_RANGE", (32, 32))
    for module in (sigmoid_elements, softmax_rows):
        launch = functools.partial(launch_in_canaries, module._launch)
        monkeypatch.setattr(module, "_launch", launch)
        monkeypatch.setattr(module, "TILE", 2**20)  # the interpreter takes 5 ms a program, however large
