"""Builds a core per instruction set from the same sources, and autograd's nodes; all else is in pyproject.toml."""

import os
import platform
import sys

import pybind11
import torch
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from torch.utils.cpp_extension import include_paths

# Instruction set -> compiler flags. imbloss/_C.py loads the best one that the machine has.
ISAS = {"default": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISAS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISAS["avx512"] = [*ISAS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# One is built sooner than three: while working on a kernel, or, called native, to use imbloss on this machine alone.
if only := os.environ.get("IMBLOSS_ISA"):
    if only == "native":
        only = torch.backends.cpu.get_cpu_capability().lower()
        only = only if only in ISAS else "default"
    ISAS = {only: ISAS[only]}

FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden"]
# -Wpsabi: no vector crosses an ABI boundary here. -Wuninitialized: GCC's own AVX-512 headers, _mm512_undefined_ps.
WARNINGS = ["-Wall", "-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
# More flags for compiler and linker, those of the sanitizers for instance: see "sanitize" in the Makefile.
EXTRA = os.environ.get("IMBLOSS_CXXFLAGS", "").split()
HEADERS = [
    "memory.h",
    "simd.h",
    "vmath.h",
    "policies.h",
    "rows.h",
    "softmax_rows.h",
    "softmax_pairs.h",
    "softmax_long_rows.h",
    "softmax_wide_rows.h",
    "softmax_packed_rows.h",
    "softmax_soft_rows.h",
    "softmax_soft_targets.h",
    "softmax_soft_wide_rows.h",
    "class_columns.h",
    "sigmoid_elements.h",
    "neighbors.h",
    "interpolated_rows.h",
]


def extension(isa, flags):
    return Extension(
        f"imbloss._C_{isa}",
        ["csrc/ops.cpp", "csrc/sampling.cpp", "csrc/module.cpp"],
        depends=[f"csrc/{name}" for name in HEADERS],
        include_dirs=[*include_paths(), pybind11.get_include()],
        define_macros=[
            ("TORCH_TARGET_VERSION", "0x020a000000000000ULL"),
            ("IMBLOSS_MODULE", f"_C_{isa}"),
            ("IMBLOSS_ISA", isa),
            ("IMBLOSS_FLAGS", " ".join([*FLAGS, *flags, *EXTRA])),
            ("IMBLOSS_TORCH", torch.__version__),
        ],
        extra_compile_args=[*FLAGS, *flags, *EXTRA, *WARNINGS],
        extra_link_args=EXTRA,
        libraries=["torch_cpu", "c10"],
        library_dirs=[os.path.join(os.path.dirname(torch.__file__), "lib")],
        # Without a compiler the package installs, warns when imported and computes in plain PyTorch. Not here, please:
        optional=not os.environ.get("IMBLOSS_REQUIRE_CORE"),
    )


def autograd():
    """Not of the stable ABI: it serves the torch that is here, and imbloss/_C.py leaves it alone with any other."""
    flags = ["-std=c++20", *FLAGS[1:], "-O2", *EXTRA, *WARNINGS]  # C++20: torch's own headers
    return Extension(
        "imbloss._autograd",
        ["csrc/autograd.cpp"],
        include_dirs=include_paths(),
        extra_compile_args=flags,
        extra_link_args=EXTRA,
        libraries=["torch_cpu", "torch_python", "c10"],
        library_dirs=[os.path.join(os.path.dirname(torch.__file__), "lib")],
        optional=not os.environ.get("IMBLOSS_REQUIRE_CORE"),
    )


class BuildExt(build_ext):
    """Compiles the variants side by side, each into a folder of its own: they share their source files."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext):
        path = self.get_ext_fullpath(ext.name)
        newest = max(os.path.getmtime(f) for f in [*ext.sources, *ext.depends, __file__])
        if os.path.exists(path) and os.path.getmtime(path) > newest and not self.force:
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.exists(path):
            os.remove(path)  # a failed build must not leave the last one in its place
        objects = self.compiler.compile(
            ext.sources,
            output_dir=os.path.join(self.build_temp, ext.name),
            macros=ext.define_macros,
            include_dirs=ext.include_dirs,
            extra_postargs=ext.extra_compile_args,
            depends=ext.depends,
        )
        self.compiler.link_shared_object(
            objects,
            path,
            libraries=ext.libraries,
            library_dirs=ext.library_dirs,
            extra_postargs=ext.extra_link_args,
            target_lang="c++",
        )


if __name__ == "__main__":
    if sys.platform == "win32":  # the vector types are GCC's and Clang's
        ISAS.clear()
    extensions = [extension(*item) for item in ISAS.items()]
    setup(ext_modules=[*extensions, *([autograd()] if extensions else [])], cmdclass={"build_ext": BuildExt})
