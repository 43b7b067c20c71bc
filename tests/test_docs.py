"""Every example in a docstring and every Python block of the README runs."""

import doctest
import importlib
import pkgutil
import re
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
