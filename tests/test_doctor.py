"""`imbloss doctor`: silent when all is well, one line for each thing that is not."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from losses import LOSSES
from typer.testing import CliRunner

import imbloss
from imbloss import doctor
from imbloss.cli import app


def examine(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_all_is_well_here(tmp_path):
    result = examine("--json", str(tmp_path / "doctor.json"))
    assert result.exit_code == 0 and result.stderr == "" and result.stdout.endswith("All is well.\n")
    findings = json.loads((tmp_path / "doctor.json").read_text())
    assert findings["problems"] == []
    assert findings["environment"]["core"] == imbloss._C.isa() and findings["environment"]["torch"] in result.stdout
    assert findings["parity"]["checks"] == len(doctor.CHECKS) * len(doctor.SHAPES) * len(doctor.DTYPES)
    assert set(findings["parity"]["worst_eps"]) == {"float32", "float64", "bfloat16", "float16"}


def test_every_loss_of_the_table_is_checked():
    assert {check.function for check in doctor.CHECKS} == {loss.name for loss in LOSSES}


def test_without_a_compiled_core(tmp_path):
    package = Path(imbloss.__file__).parent
    shutil.copytree(package, tmp_path / "imbloss", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "-W", "ignore", "-m", "imbloss.cli", "doctor"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1 and "All is well" not in result.stdout
    assert result.stderr.startswith("imbloss: no compiled core for CPU capability") and result.stderr.count("\n") == 1


def test_a_slower_core_than_the_processor_can_run(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(doctor._C, "isa", lambda: "default")
    (problem,) = doctor._problems(doctor.environment())
    assert problem.startswith("the compiled core for avx512 is missing, the slower one for default serves")


def raises(*args, **keywords):
    raise RuntimeError("no such kernel")


DEFECTS = {
    "gradient": (lambda loss: loss.register_hook(lambda grad: 1.001 * grad) and loss, r"off by .* eps"),
    "value": (lambda loss: loss + 0.01, r"off by .* eps"),
    "nan": (lambda loss: loss * torch.nan, "not finite"),
    "exception": (raises, "RuntimeError: no such kernel"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_wrong_loss_is_one_line_and_exit_code_1(defect, monkeypatch, tmp_path):
    change, message = DEFECTS[defect]
    poly_loss = imbloss.poly_loss
    monkeypatch.setattr(imbloss, "poly_loss", lambda *args, **keywords: change(poly_loss(*args, **keywords)))
    result = examine("--json", str(tmp_path / "doctor.json"))
    assert result.exit_code == 1 and "All is well" not in result.stdout
    findings = json.loads((tmp_path / "doctor.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    (problem,) = findings["problems"]
    assert result.stderr == f"imbloss: {problem}\n"
    assert problem.startswith("poly_loss differs from its float64 reference in ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problem)


def test_a_triton_that_does_not_work(monkeypatch):
    import_module = importlib.import_module
    monkeypatch.setattr(doctor._ops, "_has_triton", True)
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "3.0")
    monkeypatch.setattr(
        importlib, "import_module", lambda name: raises() if name.startswith("imbloss.kernels") else import_module(name)
    )
    (problem,) = doctor._problems(doctor.environment())
    assert problem == "triton is installed but does not work, broken: RuntimeError: no such kernel"


def test_a_gpu_without_triton(monkeypatch):
    monkeypatch.setattr(doctor._ops, "_has_triton", False)
    assert doctor._problems(doctor.environment()) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100")
    assert "cuda:0 NVIDIA H100" in doctor.environment()["devices"]
    (problem,) = doctor._problems(doctor.environment())
    assert problem.startswith("no triton: losses on the GPU are computed in plain PyTorch")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there(device):
    result = examine("--device", device)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"imbloss: expected a device that works, but got '{device}'")


def test_a_file_that_cannot_be_written(tmp_path):
    result = examine("--json", str(tmp_path))
    assert result.exit_code == 2 and result.stderr.startswith("imbloss: ") and result.stderr.count("\n") == 1


def test_huge_pages_are_read(monkeypatch, tmp_path):
    setting = tmp_path / "enabled"
    monkeypatch.setattr(doctor, "HUGE_PAGES", setting)
    assert doctor.huge_pages() == "unknown"
    setting.write_text("always [madvise] never\n")
    assert doctor.huge_pages() == "madvise"
