"""The compiled core: its instruction sets, its loader, its arithmetic, and life without it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import imbloss
from imbloss import _C

ROOT = Path(__file__).parent.parent


def build_table():
    """ISAS and FLAGS of setup.py."""
    spec = importlib.util.spec_from_file_location("imbloss_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runnable_isas():
    capability = torch.backends.cpu.get_cpu_capability()
    return list(reversed(_C._VARIANTS.get(capability, ["default"])))


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_a_core_is_loaded():
    """Everything else here could pass on the fallback alone."""
    assert _C.loaded()
    assert _C.isa() == os.environ.get("IMBLOSS_EXPECTED_ISA", runnable_isas()[-1])
    assert set(_C.build_info()) == {"isa", "compiler", "flags", "torch"}


@pytest.mark.skipif("IMBLOSS_EXPECTED_ISA" in os.environ, reason="one of the runs that the next test starts")
@pytest.mark.parametrize("isa", runnable_isas()[:-1])
def test_every_instruction_set(isa):
    """The tests marked isa, in a process that loads this variant."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "isa", "-p", "no:cacheprovider", str(ROOT / "tests")],
        env={**os.environ, "ATEN_CPU_CAPABILITY": isa, "IMBLOSS_EXPECTED_ISA": isa}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 300
    expected = python("import imbloss._C as c; print(c.isa())", ATEN_CPU_CAPABILITY=isa)
    assert expected.stdout.strip() == isa


@pytest.mark.isa
def test_this_run_has_the_instruction_set_it_was_started_for():
    assert _C.isa() == os.environ.get("IMBLOSS_EXPECTED_ISA", runnable_isas()[-1])


@pytest.mark.parametrize("isa", runnable_isas())
def test_vmath_keeps_its_bounds(isa, tmp_path):
    """csrc/vmath.h against long double; the bounds are those of its header."""
    setup = build_table()
    program = tmp_path / "vmath_bounds"
    compiler = os.environ.get("CXX", "g++")
    flags = [*setup.FLAGS, *setup.ISAS[isa], *setup.WARNINGS]
    subprocess.run([compiler, *flags, str(ROOT / "tests/vmath_bounds.cpp"), "-o", str(program)], check=True)
    lines = subprocess.run([program, "400000"], check=True, capture_output=True, text=True).stdout.splitlines()
    slack = 4 / 3 if isa == "default" else 1
    bounds = {"exp": 1.1, "log": 1.2, "log1p": 1.6, "pow": 1.2}
    seen = set()
    for line in lines:
        assert not line.startswith("edge"), line
        name, dtype, ulp = line.split()
        seen.add((name, dtype))
        assert float(ulp) <= bounds[name] * slack, line
    assert len(seen) == 8


def test_a_profile_shows_the_operator():
    x = torch.randn(8, 3, requires_grad=True)
    with torch.profiler.profile() as profile:
        imbloss.focal_loss(x, torch.tensor([0] * 8), reduction="none").sum().backward()
    names = {event.name for event in profile.events()}
    assert {"imbloss::softmax_rows", "imbloss::softmax_rows_backward"} <= names


def test_without_shared_objects_one_warning_and_the_same_results(tmp_path):
    shutil.copytree(ROOT / "imbloss", tmp_path / "imbloss", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = """
import sys; sys.path.insert(0, {path!r})
import torch, imbloss
from imbloss import _C
assert imbloss.__file__.startswith({path!r})
x = torch.linspace(-3, 3, 60).view(6, 10).requires_grad_()
loss = imbloss.focal_loss(x, torch.arange(6), gamma=0.5)
loss.backward()
print(_C.isa(), _C.build_info(), loss.item(), x.grad.abs().sum().item())
"""
    alone = python(code.format(path=str(tmp_path)))
    assert alone.returncode == 0, alone.stderr
    assert alone.stderr.count("RuntimeWarning") == 1 and "imbloss has no compiled core" in alone.stderr
    assert "No module named 'imbloss._C_default'" in alone.stderr
    with_core = python(code.format(path=str(ROOT)))
    assert "Warning" not in with_core.stderr
    *_, value, grad = alone.stdout.split()
    *_, core_value, core_grad = with_core.stdout.split()
    assert alone.stdout.startswith("none {}")
    assert float(value) == pytest.approx(float(core_value), rel=1e-6)
    assert float(grad) == pytest.approx(float(core_grad), rel=1e-6)


def test_the_loader_falls_down_the_list(tmp_path):
    best, *others = reversed(runnable_isas())
    if not others:
        pytest.skip("this machine has one instruction set")
    shutil.copytree(ROOT / "imbloss", tmp_path / "imbloss", ignore=shutil.ignore_patterns(f"_C_{best}*", "__pycache__"))
    result = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import imbloss._C as c; print(c.isa())")
    assert result.stdout.strip() == others[0] and "Warning" not in result.stderr


def test_backends():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for name in ("auto", "cpp", "reference"):
        with imbloss.testing.backend(name):
            assert imbloss.focal_loss(x, y).isfinite()
    with pytest.raises(ValueError, match=r"expected backend in .* but got 'cuda'"), imbloss.testing.backend("cuda"):
        pass
    result = python("import imbloss._ops as o; print(o._backend, o._kernels)", IMBLOSS_BACKEND="reference")
    assert result.stdout.strip() == "reference {'cpu': False}"
    assert "expected backend in" in python("import imbloss", IMBLOSS_BACKEND="nonsense").stderr


def test_importing_needs_torch_and_numpy_alone():
    code = """
import sys, torch
before = set(sys.modules)
import imbloss
new = {m.split(".")[0] for m in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    assert python(code).stdout.strip() == "['imbloss']"


def test_meta_tensors_take_the_reference():
    x = torch.empty(8, 3, device="meta", requires_grad=True)
    loss = imbloss.focal_loss(x, torch.empty(8, dtype=torch.int64, device="meta"))
    loss.backward()
    assert loss.shape == () and x.grad.shape == (8, 3)


def test_autocast_gives_a_float32_loss():
    x = torch.randn(8, 3, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = imbloss.focal_loss(x, torch.tensor([0] * 8))
    loss.backward()
    assert loss.dtype == torch.float32 and x.grad.dtype == torch.bfloat16


def test_a_changed_input_is_noticed_by_a_second_backward():
    x = torch.randn(8, 3, requires_grad=True)
    z = x * 1
    loss = imbloss.focal_loss(z, torch.tensor([0] * 8))
    torch.autograd.grad(loss, z, retain_graph=True)
    with torch.no_grad():
        z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, z)


def test_a_gradient_of_the_gradient():
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3, -100])
    for reduction in ("mean", "none"):
        function = lambda x: imbloss.focal_loss(x, y, gamma=0.5, reduction=reduction)  # noqa: B023, E731
        assert torch.autograd.gradgradcheck(function, x)


def test_the_gradient_is_not_copied():
    """autograd takes over the memory that the forward wrote, so that a step needs one gradient and no more."""
    x = torch.randn(64, 1000, requires_grad=True)
    loss = imbloss.focal_loss(x, torch.randint(0, 1000, (64,)))
    pointer = loss.grad_fn.grad.data_ptr()
    loss.backward()
    assert x.grad.data_ptr() == pointer
