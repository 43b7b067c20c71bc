"""New memory holds NaN, our own warnings are errors, two threads share the work, every test draws the same numbers."""

import pytest
import torch

from imbloss import _C

torch.set_num_threads(2)
torch.utils.deterministic.fill_uninitialized_memory = True
torch.use_deterministic_algorithms(True)
if _C.loaded():
    _C._module.set_fill_new_tensors(True)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
