"""examples/loss_test.ipynb runs, on its smallest setting, and is committed with the outputs of a whole run."""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATH = ROOT / "examples" / "loss_test.ipynb"


def printed(notebook):
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    texts = ["".join(output["text"]) for output in outputs if output.get("name") == "stdout"]
    return "".join(texts), [output for output in outputs if "image/png" in output.get("data", {})]


def test_the_notebook_runs(monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs the extra test")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra test")
    monkeypatch.setenv("IMBLOSS_SMALLEST", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(PATH, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    said, pictures = printed(notebook)
    assert "digits: " in said and "14 trainings" in said and len(pictures) == 2
    assert "Every answer of the first two rows is the same: True" in said


def test_the_committed_outputs_are_of_a_whole_run():
    assert PATH.stat().st_size < 500_000
    notebook = json.loads(PATH.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    said, pictures = printed(notebook)
    assert len(pictures) == 2 and "21 trainings" in said
    assert "Every answer of the first two rows is the same: True" in said
    assert re.search(r"imbloss \S+, torch \S+, Python \S+, .+, one thread, \d{4}-\d\d-\d\d", said)
