"""Loads the compiled core: the best variant of ``csrc`` that this machine can run, and only that one.

Chosen before loading, by torch's own CPU capability (so ATEN_CPU_CAPABILITY works here too); if its file is missing,
the next one down. Without any, imbloss computes in plain PyTorch and says why, once.
"""

import importlib
import os
import warnings

import torch

# CPU capability of torch -> variants, best first. Anything else (NEON, VSX, ...) has its baseline in "default".
_VARIANTS = {"AVX512": ["avx512", "avx2", "default"], "AVX2": ["avx2", "default"]}


def _load():
    capability = torch.backends.cpu.get_cpu_capability()
    causes = []
    for isa in _VARIANTS.get(capability, ["default"]):
        try:
            return importlib.import_module(f"imbloss._C_{isa}")
        except ImportError as error:
            causes.append(str(error))
    warnings.warn(
        f"imbloss has no compiled core for CPU capability {capability} and computes in plain PyTorch, which is slower "
        f"({'; '.join(causes)}). To build it, reinstall imbloss with a C++17 compiler (g++ or clang++) at hand.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _keep(module) -> None:
    """IMBLOSS_KEEP_MB: how much memory of freed gradients may wait for the next ones, by default 1024 MB."""
    megabytes = os.environ.get("IMBLOSS_KEEP_MB", "1024")
    if not megabytes.isdecimal():
        raise ValueError(f"expected IMBLOSS_KEEP_MB to be a whole number >= 0, but got {megabytes!r}")
    module.keep_at_most(int(megabytes) << 20)


def _load_autograd(build_info: dict[str, str]):
    """Autograd's nodes in C++, if they were compiled with this very torch: its classes change from one to the next."""
    if build_info.get("torch") != torch.__version__:
        return None
    try:
        return importlib.import_module("imbloss._autograd")
    except ImportError:
        return None


_module = _load()
if _module is not None:
    _keep(_module)


def loaded() -> bool:
    """Whether a compiled core serves CPU tensors."""
    return _module is not None


def isa() -> str:
    """The instruction set of the loaded core: "avx512", "avx2", "default"; "none" without one."""
    return _module.isa() if _module else "none"


def build_info() -> dict[str, str]:
    """Compiler, flags and torch version of the loaded core; empty without one."""
    return _module.build_info() if _module else {}


autograd = _load_autograd(build_info())  # None: autograd.Function, in Python, as with every other torch
