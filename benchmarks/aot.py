"""What the Triton kernels compile to, with no GPU at hand: `python -m benchmarks aot`.

Every case runs an operator on small CPU tensors, under a driver that compiles for a GPU and launches nothing:
the kernels are those that the launcher chooses. The machine code is then read: registers, spills, shared memory, how
wide loads and stores are, and instructions an element, of each loop or, where there is none, of the whole kernel.
"""

import contextlib
import importlib.util
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from imbloss.kernels import class_columns, launch, sigmoid_elements, soft_rows, softmax_rows

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32), "gfx942": GPUTarget("hip", "gfx942", 64),
}  # fmt: skip
SHARED_MEMORY = {80: 163, 90: 227, 100: 227, 120: 99, "gfx942": 64}  # KiB a program may have
# Of a multiprocessor, for how many threads fit: registers, threads, programs, shared memory in KiB
LIMITS = {
    80: (65536, 2048, 32, 164),
    90: (65536, 2048, 32, 228),
    100: (65536, 2048, 32, 228),
    120: (65536, 1536, 24, 100),
}
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


# ---- compiling -----------------------------------------------------------------------------------------------------
class CompileOnly:
    """A Triton driver for an architecture, which launches nothing."""

    def __init__(self, target: GPUTarget) -> None:
        self.target, self.utils = target, self

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return f"aot {self.target.arch}"  # each has a cache of kernels

    def get_current_stream(self, device=None):
        return 0

    def load_binary(self, name, binary, shared, device):
        return object(), object(), 0, 0, 1024

    def get_device_properties(self, device):
        shared = SHARED_MEMORY[self.target.arch] * 1024
        return {"max_shared_mem": shared, "multiprocessor_count": 132, "warpSize": self.target.warp_size}

    def launcher_cls(self, source, metadata):
        return lambda *args: None


@contextlib.contextmanager
def compiling(target: str, processors: int = 1) -> Iterator[list]:
    """Within, launches compile for a target with so many processors; yields (kernel, logits of a program) of each."""
    from triton.compiler.compiler import CompiledKernel

    launches, find_run, count = [], CompiledKernel.run, launch.processors

    def run(kernel):
        find_run.fget(kernel)

        def note(x, y, z, stream, function, packed, metadata, enter, leave, logits, *rest):
            launches.append((kernel, logits.numel() / (x * y * z)))

        return note

    driver.set_active(CompileOnly(TARGETS[target]))
    CompiledKernel.run = property(run)
    launch.processors = lambda device: processors
    try:
        yield launches
    finally:
        CompiledKernel.run, launch.processors = find_run, count
        driver.set_active(None)


# ---- reading machine code ------------------------------------------------------------------------------------------
@dataclass
class Loop:
    instructions: float  # an element, on the path that is taken mostly
    loads: dict[str, int]
    stores: dict[str, int]
    spills: int


@dataclass
class Code:
    kernel: str
    registers: int
    spills: int  # bytes
    shared: int
    instructions: int  # of a thread, in all
    float64: int
    widths: dict[str, int]  # of loads and stores, in the whole kernel
    occupancy: float | None  # warps that fit, of those that there may be
    per_element: float  # thread instructions, were every one run once: true where there is no loop
    loops: list[Loop] = field(default_factory=list)


INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


def _width(op: str) -> str:
    return next((part for part in op.split(".")[1:] if part in WIDTHS), "32")


def _jump(op: str, rest: str) -> int | None:
    target = re.search(r"0x([0-9a-f]+)", rest) if op.startswith("BRA") else None
    return int(target[1], 16) if target else None


def _memory(ops: list[str]) -> dict[str, int]:
    names = ("LDG", "STG", "LDL", "STL", "LDS", "STS", "ATOMG", "RED")
    return dict(Counter(f"{op.split('.')[0]}.{_width(op)}" for op in ops if op.split(".")[0] in names))


def read_nvidia(kernel, size: int, elements: float) -> Code:
    """`size`: bytes of a logit; `elements` of a program."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        cuobjdump = str(BINARIES / "cuobjdump")
        usage = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        text = subprocess.run([cuobjdump, "-sass", file.name], capture_output=True, text=True, check=False).stdout
        if "/*0" not in text:
            command = [str(BINARIES / "nvdisasm"), "-c", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = [(int(m[1], 16), m[2], m[3]) for m in map(INSTRUCTION.match, text.splitlines()) if m and m[2] != "NOP"]
    number = lambda name: int(re.search(rf"\b{name}:(\d+)", usage)[1])  # noqa: E731
    ops, threads, shared = [op for _, op, _ in code], 32 * kernel.metadata.num_warps, kernel.metadata.shared
    arch, registers = kernel.metadata.target.arch, number("REG")
    widths = _memory(ops)
    spills = sum(4 * count for name, count in widths.items() if name.startswith("STL"))
    found = Code(
        kernel.name, registers, spills, shared, len(ops), kernel.asm["ptx"].count(".f64"), widths,
        occupancy(arch, registers, threads, shared), len(ops) * threads / elements,
    )  # fmt: skip
    for address, op, rest in code:
        start = _jump(op, rest)
        if start is not None and start < address:
            body = [i for i in code if start <= i[0] <= address]
            found.loops.append(_loop(body, address, size, _held(kernel) / threads))
    found.loops = [loop for loop in found.loops if loop.loads or loop.stores]
    return found


def _held(kernel) -> int:
    """Logits that a program has at a time."""
    of = {kernel.src.fn.arg_names[index]: value for (index, *_), value in kernel.src.constants.items()}
    return of["BLOCK"] if "BLOCK" in of else of.get("ROWS", 1) * of.get("COLUMNS", 1)


def _loop(body, end: int, size: int, held: float) -> Loop:
    """`held`: logits of a thread and step of the loop, which may be unrolled."""
    # what a branch forward within the loop skips is done for one block of a row, that of its target
    skipped = set()
    for address, op, rest in body:
        to = _jump(op, rest)
        if to is not None and address < to <= end:
            skipped |= {i[0] for i in body if address < i[0] < to}
    taken = [op for address, op, _ in body if address not in skipped]
    memory = _memory(taken)
    of = lambda kind: {name: n for name, n in memory.items() if name.startswith(kind)}  # noqa: E731
    moved = of("LDG") or of("STG")
    widest = max((WIDTHS.get(name.split(".")[1], 4) for name in moved), default=0)
    steps = widest * sum(n for name, n in moved.items() if WIDTHS.get(name.split(".")[1], 4) == widest) // (held * size)
    spills = sum(n for name, n in memory.items() if name.startswith(("LDL", "STL")))
    return Loop(round(len(taken) / max(steps, 1) / held, 2), of("LDG"), of("STG"), spills)


def occupancy(arch: int, registers: int, threads: int, shared: int) -> float | None:
    if arch not in LIMITS:
        return None
    all_registers, most_threads, most_programs, memory = LIMITS[arch]
    a_program = -(-registers // 8) * 8 * threads
    fit = min(all_registers // a_program, most_threads // threads, most_programs, memory * 1024 // (shared + 1024))
    return round(fit * threads / most_threads, 2)


def read_amd(kernel, size: int, elements: float) -> Code:
    """Without loops: AMD's ISA is read for registers, spills and widths alone."""
    text = kernel.asm["amdgcn"]
    number = lambda name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1])  # noqa: E731
    widths = Counter(m[1] for m in re.finditer(r"^\s+((?:global|buffer|scratch)_(?:load|store|atomic)\w*)", text, re.M))
    count = len(re.findall(r"^\s+[sv]_\w+|^\s+(?:global|buffer|ds)_", text, re.M))
    return Code(
        kernel.name, number("vgpr_count"), 4 * number("vgpr_spill_count"), number("group_segment_fixed_size"), count,
        len(re.findall(r"_f64\b", text)), dict(widths), None, count * 64 * kernel.metadata.num_warps / elements,
    )  # fmt: skip


def read(kernel, size: int, elements: float) -> Code:
    return (read_nvidia if "cubin" in kernel.asm else read_amd)(kernel, size, elements)


# ---- the cases -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    name: str
    run: Callable[[torch.dtype], None]  # launches forward and backward
    dtypes: tuple[torch.dtype, ...] = (BF16, FP32)
    processors: int = 1  # few: as if there were many rows
    long: bool = False  # has loops whose loads and stores are 128 bits wide, whatever the alignment


def _targets(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def rows_case(classes: int, rows: int = 256, sliced: int = 0, gamma: float = 2.0, operands=()):
    def run(dtype):
        x = torch.zeros(rows, classes + sliced, dtype=dtype)[:, :classes]
        y = _targets(rows)
        loss, stats = softmax_rows.softmax_rows(x, y, operands, [gamma, 0.0], -100, 1, "focal", False)
        softmax_rows.softmax_rows_backward(loss, x, y, stats, operands, -100)

    return run


def dense_case(classes: int, pixels: tuple[int, int] = (64, 64)):
    def run(dtype):
        x, y = torch.zeros(1, classes, *pixels, dtype=dtype), _targets(1, *pixels)
        loss, stats = softmax_rows.softmax_rows(x, y, (), [2.0, 0.0], -100, 1, "focal", False)
        softmax_rows.softmax_rows_backward(loss, x, y, stats, (), -100)

    return run


def soft_case(classes: int, smoothing: float):
    def run(dtype):
        x = torch.zeros(256, classes, dtype=dtype)
        y = _targets(256) if smoothing else torch.zeros(256, classes)
        args = x, y, (), [2.0, 0.0], smoothing, -100, 1, "focal"
        loss, _ = soft_rows.softmax_soft_rows(*args, False)
        soft_rows.softmax_soft_rows_backward(loss, *args)

    return run


def elements_case(policy: str, numbers: list[float]):
    def run(dtype):
        x, y = torch.zeros(64, 1024, dtype=dtype), torch.zeros(64, 1024, dtype=torch.int64)
        args = x, y, (), numbers, -100, 1, policy
        loss, _ = sigmoid_elements.sigmoid_elements(*args, False)
        sigmoid_elements.sigmoid_elements_backward(loss, *args)

    return run


def columns_case(classes: int):
    def run(dtype):
        x, y = torch.zeros(512, classes, dtype=dtype), _targets(512)
        args = (torch.full((classes,), 1 / classes), None, None), [1.0, 0.1, 0.1], -100, "official"
        loss, kept = class_columns.class_columns(x, y, args[0], args[1], -100, 1, "official", False)
        class_columns.class_columns_backward(loss, x, y, kept, *args)

    return run


def _scale_and_bias(classes: int):
    return None, None, torch.ones(classes), torch.ones(classes), None, None, None


CASES = (
    *(Case(f"rows C={c}", rows_case(c)) for c in (2, 3, 10, 100, 1000, 1024)),
    Case("rows C=1000, gamma 0.5", rows_case(1000, gamma=0.5)),
    Case("rows C=1000, scale and bias", rows_case(1000, operands=_scale_and_bias(1000))),
    Case("rows C=1000, few rows", rows_case(1000, 8), processors=132),
    *(Case(f"long rows C={c}", rows_case(c, 8), long=c >= launch.LONG) for c in (1203, 4096, 5003, 8192, 50257)),
    Case("long rows C=50257, sliced", rows_case(50257, 8, sliced=8), long=True),
    Case("long rows C=50257, sliced anywhere", rows_case(50257, 8, sliced=1)),
    Case("long rows C=50257, few rows", rows_case(50257, 8), processors=132, long=True),
    Case("long rows C=8142, scale and bias", rows_case(8142, 8, operands=_scale_and_bias(8142))),
    *(Case(f"dense C={c}", dense_case(c)) for c in (2, 19, 150, 1000)),
    Case("soft rows C=10, label smoothing", soft_case(10, 0.1)),
    Case("soft rows C=1000, label smoothing", soft_case(1000, 0.1)),
    Case("soft rows C=1000, probabilities", soft_case(1000, 0.0)),
    Case("sigmoid focal", elements_case("sigmoid_focal", [2.0, 0.25, 1.0])),
    Case("sigmoid focal, gamma 1.5", elements_case("sigmoid_focal", [1.5, 0.25, 1.0])),
    Case("asymmetric", elements_case("asymmetric", [1.0, -1.0, 1.0, 4.0, 0.05, 0.0])),
    Case("class columns C=1000", columns_case(1000)),
)  # fmt: skip


def measure(case: Case, dtype: torch.dtype, target: str) -> list[Code]:
    with compiling(target, case.processors) as launches:
        case.run(dtype)
    return [read(kernel, dtype.itemsize, n) for kernel, n in launches if kernel.name != "reduce_kernel"]


def liger(target: str, classes: int, dtype: torch.dtype) -> list[Code]:
    """Liger's cross entropy: one kernel, whose first loop is the statistics and whose second is the gradient."""
    from liger_kernel.ops import cross_entropy

    with compiling(target) as launches:
        x = torch.zeros(8, classes, dtype=dtype, requires_grad=True)
        cross_entropy.cross_entropy_forward(x, _targets(8), None, -100, 0.0, 0.0, "mean", None, False)
    return [read(kernel, dtype.itemsize, elements) for kernel, elements in launches]


# ---- the table -----------------------------------------------------------------------------------------------------
def line(name: str, dtype: torch.dtype, target: str, code: Code) -> str:
    loops = ", ".join(f"{loop.instructions:.1f}" for loop in code.loops) or f"{code.per_element:.1f} in all"
    widths = " ".join(f"{width} x{n}" for width, n in sorted(code.widths.items()))
    short = str(dtype).removeprefix("torch.")
    return (
        f"{name:36} {short:9} {target:7} {code.kernel:34} {code.registers:4} {code.spills:6} {code.shared:6} "
        f"{code.float64:3} {code.occupancy or '':5} {code.instructions:6} {loops:>12}  {widths}"
    )


HEAD = (
    f"{'case':36} {'dtype':9} {'target':7} {'kernel':34} {'regs':>4} {'spills':>6} {'shared':>6} {'f64':>3} {'occ':5} "
    f"{'instr':>6} {'loops/elem':>12}  loads and stores"
)


def table(targets: list[str], only: str, out: Path | None) -> None:
    found = []
    print(f"triton {triton.__version__}\n{HEAD}")
    for case in CASES:
        for dtype in case.dtypes if only in case.name else ():
            for target in targets:
                for code in measure(case, dtype, target):
                    print(line(case.name, dtype, target, code), flush=True)
                    found.append({"case": case.name, "dtype": str(dtype), "target": target, **asdict(code)})
    if importlib.util.find_spec("liger_kernel") and only in "Liger":
        for classes in (4096, 50257):
            for target in targets:
                for code in liger(target, classes, BF16):
                    print(line(f"Liger C={classes}", BF16, target, code), flush=True)
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")
