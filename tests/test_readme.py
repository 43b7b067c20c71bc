"""Every command that the README and the guides show is run, slow ones at their smallest. One that this file does not
know fails."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import imbloss.lab.report  # before a test puts something else in the place of its plots
from imbloss.cli import app

ROOT = Path(__file__).parent.parent
PROGRAMS = "imbloss", "make", "pip", "python", "pytest"
FENCES = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_of(page):
    """Lines of fences that are no program text, and code within lines, that call one of PROGRAMS."""
    text = (ROOT / page).read_text()
    lines = [
        line
        for language, block in FENCES.findall(text)
        if language in ("", "console", "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCES.sub("", text))]
    commands = [shlex.join(shlex.split(line.removeprefix("$ "), comments=True)) for line in lines if is_command(line)]
    return list(dict.fromkeys(commands))


def is_command(line):
    words = line.removeprefix("$ ").split()
    return len(words) > 1 and words[0] in PROGRAMS and "|" not in words


# ---- how each is run ---------------------------------------------------------------------------------------------
SMALLEST = ["--seeds", "1", "--epochs", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a small file of each kind that the pages name."""
    place = tmp_path_factory.mktemp("commands")
    generator = np.random.default_rng(0)
    y = np.arange(60) % 3
    rows = "\n".join(f"{a:.3f},{b:.3f},{c}" for (a, b), c in zip(generator.normal(size=(60, 2)), y, strict=True))
    for column in ("y", "diagnosis"):
        (place / f"{column}.csv").write_text(f"a,b,{column}\n{rows}\n")
    texts = "\n".join(f"{'abc'[c]}\tgrain prices {['rose', 'fell', 'held'][c]} again" for c in y)
    (place / "tickets.txt").write_text(texts + "\n")
    np.savez(place / "images.npz", X=generator.normal(size=(60, 1, 20, 20)), y=y)
    return place


def data_for(named, words, folder):
    """A small file of the kind that the command names."""
    stands_for = {
        "table.csv": "diagnosis.csv" if "--target" in words else "y.csv",
        "photos/": "images.npz",
        "fashion-mnist": "images.npz",
        "tickets.txt": "tickets.txt",
        "r8:FOLDER": "tickets.txt",
    }
    return str(folder / stands_for[named])


def compare(words, folder):
    words = words.copy()
    if "--data" in words:
        at = words.index("--data") + 1
        words[at] = data_for(words[at], words, folder)
        if "--imbalance-ratio" in words:  # that of much data
            words[words.index("--imbalance-ratio") + 1] = "2"
    for option in ("--seeds", "--epochs", "--jobs"):
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    result = CliRunner().invoke(app, [*words[1:], *SMALLEST, "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    assert "Written: " in result.output and (folder / "out" / "report.html").is_file()


def doctor(words, folder):
    result = CliRunner().invoke(app, words[1:])
    if "cuda" in words and not torch.cuda.is_available():
        assert result.exit_code == 1 and "expected a device that works, but got 'cuda'" in result.output
    else:
        assert result.exit_code == 0 and "All is well." in result.output, result.output


def output_of(*command):
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# What a target comes to in the end, whatever it must set up first; the suite cannot run itself, nor set up an
# environment. The demo's command is in the README, too.
TARGETS = {
    "demo": ".venv/bin/imbloss compare",
    "test": ".venv/bin/python -m pytest",
    "docs": "mkdocs build --strict",
    "dist": "-m pytest -q test_smoke.py",
}


def make(words, folder):
    recipe = output_of("make", "-n", "-B", *words[1:])
    assert TARGETS[words[1]] in recipe
    install = re.search(r"pip install .*torch==\S+ ?(.*)$", recipe, re.MULTILINE)
    settings = dict(word.split("=", 1) for word in words[2:])
    if "SYSTEM_TORCH" in settings:
        assert install is None and "--system-site-packages" in recipe
    else:
        assert install[1] == settings.get("TORCH_ARGS", "")


def pip(words, folder):
    """Resolved here, where everything is installed: names, extras and metadata are right; nothing is built."""
    extra = re.search(r"imbloss\[(\w+)\]", words[-1])
    if extra:
        metadata = output_of(sys.executable, "-c", "from importlib.metadata import *; print(metadata('imbloss'))")
        assert f"Provides-Extra: {extra[1]}\n" in metadata
        return
    offline = "--dry-run", "--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"
    said = output_of(sys.executable, "-m", "pip", "install", *offline, *words[2:])
    assert "Would install imbloss-" in said or said.count("already satisfied") == len(words[2:])


RUN = {
    "imbloss compare": compare,
    "imbloss doctor": doctor,
    "make demo": make,
    "make test": make,
    "make docs": make,
    "make dist": make,
    "pip install": pip,
}
PAGES = ["README.md", "docs/index.md", "docs/install.md", "docs/choosing.md", "docs/compare.md", "docs/augmentation.md"]
COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands_of(page)))


DRAWN = "imbloss compare --data table.csv"  # with its pictures, which take longer than the rest


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, folder, monkeypatch):
    words = shlex.split(command)
    if command != DRAWN:
        for plot in ("plot_recall", "plot_confusion", "plot_calibration"):
            monkeypatch.setattr(f"imbloss.lab.plots.{plot}", lambda results, path: None)
        monkeypatch.setattr(imbloss.lab.report, "_plot", lambda title, plot, results: "")
    monkeypatch.setattr("imbloss.lab.significance.DRAWS", 20)
    assert " ".join(words[:2]) in RUN, f"tests/test_readme.py does not know how to run: {command}"
    RUN[" ".join(words[:2])](words, folder)


def test_the_readme_shows_its_commands():
    assert DRAWN in COMMANDS
    assert {"imbloss compare", "make demo", "make test", "imbloss doctor"} <= {
        " ".join(command.split()[:2]) for command in commands_of("README.md")
    }
