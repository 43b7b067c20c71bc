"""Every example in a docstring and every Python block of the README runs."""

import doctest
import importlib
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import torch

import imbloss

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(imbloss.__path__, "imbloss.")
    if not module.name.startswith("imbloss._C") and module.name != "imbloss.cli"
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    names = {public: getattr(imbloss, public) for public in imbloss.__all__}
    names |= {"torch": torch, "imbloss": imbloss, **vars(imbloss.testing)}
    result = doctest.testmod(module, extraglobs=names)
    assert result.failed == 0


def test_every_public_name_has_an_example():
    for name in imbloss.__all__:
        if name != "testing":
            assert ">>> " in getattr(imbloss, name).__doc__, name


@pytest.mark.parametrize("page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))])
def test_python_blocks_run(page):
    path = ROOT / page
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        exec(compile(block, str(path), "exec"), namespace)


LOSSES = sorted(name for name in imbloss.__all__ if name.endswith("_loss") or name in ("cross_entropy", "lader"))


def test_every_loss_has_a_section_with_formula_figure_and_comparison():
    text = (ROOT / "docs" / "losses.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    for name in LOSSES:
        (section,) = [section for section in sections if f"img/loss_{name}.svg" in section]
        assert "```math" in section and (ROOT / "docs" / "img" / f"loss_{name}.svg").is_file(), name
        code = "".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
        assert f"imbloss.{name}(" in code and "assert_close" in code, name
        assert f"[`{name}`](#" in text, name


def test_the_figures_show_the_losses():
    pytest.importorskip("matplotlib")
    plots = runpy.run_path(str(ROOT / "docs" / "plots.py"))
    assert sorted(plots["FIGURES"]) == LOSSES
    p = plots["X"].sigmoid()
    for label, value in plots["FIGURES"]["focal_loss"][1].items():
        gamma = float(label.split()[1])
        loss, slope = plots["curve"](value)
        torch.testing.assert_close(loss, -((1 - p) ** gamma) * p.log())
        torch.testing.assert_close(slope, (1 - p) ** gamma * (gamma * p * p.log() - (1 - p)))
    for _, lines in plots["FIGURES"].values():
        for value in lines.values():
            loss, slope = plots["curve"](value)
            steps = (loss[2:] - loss[:-2]) / (plots["X"][2:] - plots["X"][:-2])
            smooth = (steps - slope[1:-1]).abs() < 0.02 * (1 + slope[1:-1].abs())
            assert smooth.double().mean() > 0.98  # all but where a clip has a corner
