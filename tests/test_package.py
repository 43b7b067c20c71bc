"""What is shipped: the sdist builds, installs and imports with torch and numpy alone."""

import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

from imbloss import _C

ROOT = Path(__file__).parent.parent


def run(*command, **options):
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def packages_of(environment):
    (packages,) = (environment / "lib").glob("python*/site-packages")
    return packages


@pytest.mark.long
def test_the_sdist_installs_and_computes(tmp_path):
    source = tmp_path / "source"  # a clean copy: no build products of this checkout
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(source))
    (sdist,) = tmp_path.glob("imbloss-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    assert {f"csrc/{p.name}" for p in (ROOT / "csrc").iterdir()} <= names

    # A fresh environment that sees this one's torch and build tools. Its site-packages are named, not made a site
    # directory, so that the editable install in them stays out.
    target = tmp_path / "venv"
    venv.create(target, with_pip=True)
    python = str(target / "bin" / "python")
    environment = {**os.environ, "PYTHONPATH": next(p for p in sys.path if p.endswith("site-packages"))}
    environment["IMBLOSS_ISA"] = "native"  # one variant is built sooner than three, all of which `make test` has built
    options = "--no-build-isolation", "--no-deps", "--no-index", "--ignore-installed"
    run(python, "-m", "pip", "install", *options, str(sdist), env=environment)
    code = """
import sys
for name in ("triton", "matplotlib", "sklearn", "typer", "rich", "torchmetrics"):
    sys.modules[name] = None  # importing it fails
import torch, imbloss
import pytest

from imbloss import _C
x = torch.randn(4, 3, requires_grad=True)
imbloss.focal_loss(x, torch.tensor([0, 1, 2, 0])).backward()
print(imbloss.__file__, _C.isa(), x.grad.isfinite().all().item())
"""
    built = {p.name.split(".")[0] for p in packages_of(target).glob("imbloss/_C_*")}
    assert built == {f"_C_{_C.isa()}"}
    file, isa, finite = run(python, "-W", "error", "-c", code, cwd=tmp_path, env=environment).split()
    assert Path(file).is_relative_to(target) and isa != "none" and finite == "True"
    assert os.path.exists(target / "bin" / "imbloss")
