"""`imbloss doctor`: silent when all is well, one line for each thing that is not."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from losses import LOSSES
from typer.testing import CliRunner

import imbloss
from imbloss import doctor, speed
from imbloss.cli import app


def examine(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_all_is_well_here(tmp_path):
    result = examine("--json", str(tmp_path / "doctor.json"))
    assert result.exit_code == 0 and result.stderr == "" and result.stdout.endswith("All is well.\n")
    findings = json.loads((tmp_path / "doctor.json").read_text())
    assert findings["problems"] == []
    assert findings["environment"]["autograd"] == "C++"
    assert findings["environment"]["core"] == imbloss._C.isa() and findings["environment"]["torch"] in result.stdout
    checks = len(doctor.CHECKS) * len(doctor.SHAPES) + len(doctor.POINTS)
    assert findings["parity"]["checks"] == checks * len(doctor.DTYPES)
    assert set(findings["parity"]["worst_eps"]) == {"float32", "float64", "bfloat16", "float16"}


def test_every_loss_of_the_table_is_checked():
    of_elements = {"sigmoid_focal_loss", "asymmetric_loss", "quality_focal_loss"}
    assert {check.function for check in doctor.CHECKS} == {loss.name for loss in LOSSES} | of_elements


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


def shuffled(distances, indices):
    return distances, indices.flip(1)


def longer(distances, indices):
    return distances * 1.001, indices


@pytest.mark.parametrize("change, message", [(shuffled, "not the nearest points"), (longer, "off by .* eps")])
def test_wrong_neighbours_are_one_line_and_exit_code_1(change, message, monkeypatch):
    knn = imbloss.knn
    monkeypatch.setattr(imbloss, "knn", lambda *args: change(*knn(*args)))
    result = examine()
    assert result.exit_code == 1
    assert re.fullmatch(f"imbloss: knn differs from its float64 reference in .*{message}.*\n", result.stderr)


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


# ---- speed ---------------------------------------------------------------------------------------------------------
def check_speed(findings, provider="imbloss"):
    *losses, search = findings["speed"]
    assert [entry["name"] for entry in losses] == [work.name for work in speed.WORK]
    assert search["name"] == "5 neighbours" and search["shape"] == [6, 64]
    for entry in findings["speed"]:
        assert entry["repeats"] and entry["providers"][provider]["seconds"] > 0 and entry["copy_seconds"] > 0
        assert entry["predicted_seconds"] is None
    assert all(entry["bandwidth_over_copy"] > 0 for entry in losses)


def test_the_speed_is_measured_against_others(tmp_path, monkeypatch):
    monkeypatch.setattr(speed.torch, "compile", lambda function: function)  # whose speed is not the matter
    result = examine("--speed", "--rows", "4", "--json", str(tmp_path / "doctor.json"))
    assert result.exit_code == 0 and "logit-adjusted" in result.stdout
    findings = json.loads((tmp_path / "doctor.json").read_text())
    check_speed(findings)
    assert {name for entry in findings["speed"] for name in entry["providers"]} == {
        "imbloss", "eager", "builtin", "compile",
    }  # fmt: skip


@pytest.mark.parametrize("work", speed.WORK, ids=lambda work: f"{work.name} {work.shape}")
def test_rivals_compute_the_same(work):
    x, y = work.inputs("cpu", 2)
    x = x.float()
    want = work.loss(x, y)
    for rival in (work.eager, work.builtin):
        if rival:
            torch.testing.assert_close(rival(x, y), want, rtol=1e-4, atol=1e-6)


def test_a_loss_that_does_not_repeat_or_fails_is_a_problem(monkeypatch):
    results = iter(range(10**6))

    def unlike(x, y):
        return x.float().sum() * next(results)

    work = speed.WORK[0]
    for loss, problem in ((unlike, "differs from itself, computed twice"), (raises, "fails: RuntimeError")):
        monkeypatch.setattr(speed, "WORK", (dataclasses.replace(work, loss=loss),))
        (found,) = doctor.examine("cpu", True, rows=3)["problems"]
        assert found.startswith("focal of 3x10 in float32 ") and problem in found


def test_the_doctor_of_triton_in_its_interpreter(tmp_path):
    """The same command on the kernels of GPUs."""
    pytest.importorskip("triton")
    code = f"""
import json, torch
from imbloss import doctor, speed
speed.torch.compile = lambda function: function
doctor.SHAPES, doctor.DTYPES = ((5, 10),), (torch.float32, torch.bfloat16)
speed.WORK = speed.WORK[:3:2]
found = doctor.examine("cpu", True, rows=2)
open({str(tmp_path / "out.json")!r}, "w").write(json.dumps(found))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "IMBLOSS_BACKEND": "triton"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["environment"]["triton_state"] == "interpreted" and found["environment"]["backend"] == "triton"
    # the interpreter truncates to bfloat16, which is within what is allowed
    assert found["problems"] == [] and found["parity"]["checks"] > 20 and len(found["speed"]) == 3
    assert all(entry["repeats"] for entry in found["speed"])
