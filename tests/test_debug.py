"""imbloss.set_debug: values that only the CPU is asked for otherwise."""

import os
import subprocess
import sys

import pytest
import torch

import imbloss
from imbloss import priors


@pytest.fixture
def debug():
    before = priors.is_debug()
    yield imbloss.set_debug
    imbloss.set_debug(before)


class Elsewhere(torch.Tensor):
    """On a device without kernels, as far as anybody asks."""

    device = property(lambda self: torch.device("mps"))


def elsewhere(values):
    return torch.as_tensor(values).as_subclass(Elsewhere)


BAD_VALUES = {
    "prior": (lambda v: imbloss.LogitAdjustedLoss(prior=v), [0.6, 0.6], ValueError, "expected prior to sum to 1"),
    "counts": (lambda v: imbloss.LDAMLoss(counts=v), [3, 0], ValueError, "expected counts > 0 .* but got 0 at index 1"),
    "gamma": (lambda v: imbloss.FocalLoss(gamma=v), [1.0, -1.0], ValueError, "expected gamma >= 0 .* but got -1.0"),
    "target": (
        lambda v: imbloss.focal_loss(elsewhere(torch.zeros(2, 3)), v), [0, 3], IndexError,
        r"expected target in \[0, 3\) or ignore_index=-100, but got 3 at index 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_VALUES)
def test_values_on_a_device_are_checked_in_debug_mode_only(name, debug):
    call, values, exception, message = BAD_VALUES[name]
    with imbloss.testing.backend("reference"):
        debug(False)
        result = call(elsewhere(values))
        assert isinstance(result, torch.nn.Module) or result.isnan()
        debug(True)
        with pytest.raises(exception, match=message):
            call(elsewhere(values))


@pytest.mark.parametrize("enabled", [False, True])
def test_values_that_are_not_there_are_never_looked_at(enabled, debug):
    debug(enabled)
    x, y = torch.zeros(4, 3, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    assert imbloss.balanced_softmax_loss(x, y, counts=torch.zeros(3, device="meta")).is_meta
    compiled = torch.compile(imbloss.logit_adjusted_loss, fullgraph=True, backend="aot_eager")
    x, y, prior = torch.zeros(4, 3), torch.arange(4) % 3, torch.full((3,), 1 / 3)
    torch.testing.assert_close(compiled(x, y, prior=prior), torch.tensor(3.0).log())
    per_row = torch.func.vmap(lambda x, y: imbloss.cross_entropy(x, y))(x, y)
    torch.testing.assert_close(per_row, torch.full((4,), 3.0).log())


def test_debug_takes_a_bool():
    with pytest.raises(TypeError, match="expected enabled to be a bool, but got int 1"):
        imbloss.set_debug(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_triton_launch_checks_its_targets_in_debug_mode(smoothing):
    pytest.importorskip("triton")
    code = f"""
import sys, torch, imbloss
from imbloss import _ops
assert _ops._kernels["cpu"] == "triton"
x, y = torch.zeros(4, 3, requires_grad=True), torch.tensor([0, -100, 3, -1])
def outcome(function=imbloss.focal_loss, **options):
    try:
        return function(x, y, label_smoothing={smoothing}, **options).sum().item()
    except IndexError as error:
        return error
compiled = torch.compile(imbloss.focal_loss, backend="aot_eager", fullgraph=True)
print(outcome(), outcome(reduction="none"), outcome(compiled), sep=chr(10))
imbloss.set_debug(not imbloss.priors.is_debug())
print(outcome(), outcome(reduction="none"), outcome(compiled), sep=chr(10))
"""
    message = "expected target in [0, 3) or ignore_index=-100, but got 3 at index 2"
    for environment, want in (({}, ["nan", message]), ({"IMBLOSS_DEBUG": "1"}, [message, "nan"])):
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "TRITON_INTERPRET": "1", "IMBLOSS_BACKEND": "triton", **environment},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert result.stdout.splitlines() == [want[0]] * 3 + [want[1]] * 3, result.stderr
