"""How a kernel gets here: from PTX and arrays, or through Triton as `kernel[grid](*tensors)`."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from ptxsim.machine import Machine
from ptxsim.memory import Memory
from ptxsim.parse import Kernel

SHARED_MEMORY = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a program may have


def run(
    kernel: Kernel, args, grid, threads: int, dynamic_shared=0, misalign=None, uninitialised=(), **options
) -> Counter:
    """Arrays are changed in place, numbers passed on, one for each parameter; returns the counts.

    `misalign`: bytes by which an argument misses alignment, by position; `uninitialised`: positions of outputs.
    """
    memory, values, arrays = Memory(), [], []
    for i, arg in enumerate(args):
        if isinstance(arg, np.ndarray):
            values.append(memory.add(arg, f"argument {i}", i not in uninitialised, (misalign or {}).get(i, 0)))
            arrays.append((arg.reshape(-1).view(np.uint8), values[-1]))
        else:
            values.append(arg)
    memory.freeze(options.get("racecheck", False))
    counts = Machine(kernel, memory, grid, threads, dynamic_shared, values, **options).run()
    for array, address in arrays:
        memory.copy_back(array, address)
    return counts


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, int, int]
    warps: int
    counts: Counter


@contextlib.contextmanager
def install(architecture: int = 90, **options) -> Iterator["Driver"]:
    """Within, `kernel[grid](*tensors)` compiles for an architecture and runs here; options are Machine's."""
    from triton import knobs
    from triton.runtime import driver

    ours, stages = Driver(architecture, **options), knobs.runtime.add_stages_inspection_hook
    driver.set_active(ours)
    Driver._current = ours
    knobs.runtime.kernel_load_start_hook.add(ours.note_ptx)
    knobs.runtime.add_stages_inspection_hook = _without_ptxas
    try:
        yield ours
    finally:
        knobs.runtime.add_stages_inspection_hook = stages
        knobs.runtime.kernel_load_start_hook.remove(ours.note_ptx)
        driver.set_active(None)


def _without_ptxas(backend=None, stages=None, *_):
    """Triton's hook: PTX is all that is needed. Returns what tells such kernels from others in the cache."""
    if stages is not None:
        stages["cubin"] = lambda ptx, metadata: b""
    return "ptx", "ptx"


class Driver:
    """A Triton driver of an architecture, whose launches run here. Use `install`.

    Only what tensors show of their storage may be touched. A storage of nothing but NaN is an output, to be written
    before it is read.
    """

    _current: "Driver"  # triton's caches of kernels outlive a driver
    _ptx: ClassVar[dict[str, str]] = {}  # paths by hash
    _kernels: ClassVar[dict[str, Kernel]] = {}

    def __init__(self, architecture: int, **options) -> None:
        from triton.backends.compiler import GPUTarget

        self.target, self.options, self.utils = GPUTarget("cuda", architecture, 32), options, self
        self.log: list[Launch] = []

    # ---- what triton asks of a driver
    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch  # each has a cache of kernels

    def get_current_stream(self, device=None):
        return 0

    def load_binary(self, name, binary, shared, device):
        return object(), object(), 0, 0, 1024

    def get_device_properties(self, device):
        shared = SHARED_MEMORY[self.target.arch] * 1024
        return {"max_shared_mem": shared, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}

    def launcher_cls(self, source, metadata):
        def launch(x, y, z, stream, function, packed, launch_metadata, enter, leave, *args):
            kernel = self._kernel(metadata.hash)
            Driver._current.launch(kernel, metadata, (x, y, z), list(_flat(source.signature, args)))

        return launch

    # ---- what happens instead
    def note_ptx(self, module, function, name, files, key) -> None:
        self._ptx[key] = next(path for file, path in files.items() if file.endswith(".ptx"))

    def _kernel(self, key: str) -> Kernel:
        if key not in self._kernels:
            self._kernels[key] = Kernel(Path(self._ptx[key]).read_text())
        return self._kernels[key]

    def launch(self, kernel: Kernel, metadata, grid, args) -> None:
        storages, memory = {}, Memory()
        for name, arg in args:
            if hasattr(arg, "untyped_storage"):
                storage = arg.untyped_storage()
                entry = storages.setdefault(
                    storage.data_ptr(), (name, _bytes(storage), np.zeros(len(storage), bool), [])
                )
                entry[2][:] |= _visible(arg)
                entry[3].append(arg)
        addresses = {
            start: memory.add(raw, name, not all(map(_is_output, tensors)), start % 16, visible)
            for start, (name, raw, visible, tensors) in storages.items()
        }
        values = []
        for _, arg in args:
            if hasattr(arg, "untyped_storage"):
                start = arg.untyped_storage().data_ptr()
                values.append(addresses[start] + arg.data_ptr() - start)
            else:
                values.append(arg)
        values += [0] * (len(kernel.params) - len(values))  # triton's scratch memory
        memory.freeze(self.options.get("racecheck", False))
        machine = Machine(kernel, memory, grid, 32 * metadata.num_warps, metadata.shared, values, **self.options)
        self.log.append(Launch(kernel.name, grid, metadata.num_warps, machine.run()))
        for start, (_, raw, _, _) in storages.items():
            memory.copy_back(raw, addresses[start])


def _flat(signature: dict, args) -> Iterator[tuple[str, object]]:
    """Names and values of the arguments that are not compile-time constants, tuples taken apart."""
    for (name, kind), arg in zip(signature.items(), args, strict=True):
        if isinstance(kind, tuple):
            yield from _flat({f"{name}[{i}]": part for i, part in enumerate(kind)}, arg)
        elif kind != "constexpr":
            yield name, arg


def _bytes(storage) -> np.ndarray:
    import torch

    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()


def _visible(tensor) -> np.ndarray:
    """Which bytes of its storage a tensor shows."""
    import torch

    size = tensor.element_size()
    shown = torch.zeros(len(tensor.untyped_storage()), dtype=torch.bool)
    first = shown[tensor.storage_offset() * size :]
    first.as_strided(
        (*tensor.shape, size), (*(step * size for step in tensor.stride()), 1), first.storage_offset()
    ).fill_(True)
    return shown.numpy()


def _is_output(tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0 and bool(tensor.isnan().all())
