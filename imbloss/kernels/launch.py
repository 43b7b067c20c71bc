"""How a kernel is launched: pure functions of shape, dtype, layout and the device's processors. Nothing is tried at run
time; benchmarks/aot.py shows what the choices compile to, docs/gpu.md why they are so.
"""

import functools
import itertools
import math
from typing import NamedTuple

import torch

LONG = 4096  # classes from which on a row is walked in blocks rather than held
UNALIGNED = 128  # the same for rows that do not start at whole vectors
NARROW = 16  # classes up to which a thread reads a row on its own
THREAD_HOLDS = 32  # logits, about, that a thread holds
VECTOR = 16  # bytes of the widest load
FEWEST_ROWS, MOST_ROWS = 32, 256  # that a program of class_columns.py sums over


class Layout(NamedTuple):
    """Rows in memory: (outer, inner) of them, of `classes` logits each."""

    outer: int
    classes: int
    inner: int
    contiguous: bool  # the classes of a row
    vector: int  # so many logits from one that every row's address and number of classes is a multiple of


class Tile(NamedTuple):
    """A program's rows, wholly held: ROWS rows of BLOCKS blocks of COLUMNS classes. 0 blocks: not held, walked."""

    rows: int
    columns: int
    blocks: int
    vector: int
    warps: int
    programs: int


class Long(NamedTuple):
    """Blocks of a row that a program walks, which shares the row with others if there are too few rows."""

    block: int
    vector: int
    splits: int
    warps: int


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The next one."""
    return 1 << max(n - 1, 0).bit_length()


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors, or what a device has in their place."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    if device.type == "xpu":
        return torch.xpu.get_device_properties(device).max_compute_units
    return 1


Shape = Strides = tuple[int, int, int]  # (outer, class, inner)


def merged(shape: Shape, strides: tuple[Strides, ...]) -> tuple[Shape, tuple[Strides, ...]]:
    """(N, C, inner) and its strides in some tensors, with N and inner made one where all strides allow it."""
    n, classes, inner = shape
    if inner == 1:
        return (1, classes, n), tuple((0, of_class, outer) for outer, of_class, _ in strides)
    if n == 1:
        return shape, tuple((0, of_class, step) for _, of_class, step in strides)
    if all(outer == inner * step for outer, _, step in strides):
        return (1, classes, n * inner), tuple((0, of_class, step) for _, of_class, step in strides)
    return shape, strides


def layout(shape: Shape, strides: tuple[Strides, ...], sizes: tuple[int, ...], aligned: bool) -> Layout:
    """Of tensors that are walked together: bytes of their elements, and whether they all start at whole vectors."""
    outer, classes, inner = shape
    contiguous = classes == 1 or all(of_class == 1 for _, of_class, _ in strides)
    common = classes if aligned and contiguous else 1
    for (stride_outer, _, stride_inner), size in zip(strides, sizes, strict=True):
        common = math.gcd(common, stride_outer, stride_inner, VECTOR // size)
    return Layout(outer, classes, inner, contiguous, common)


class Plan(NamedTuple):
    shape: Shape
    strides: tuple[Strides, ...]
    is_long: bool
    long: "Long"
    tile: "Tile"


@functools.lru_cache(4096)
def plan(
    shape: Shape, strides: tuple[Strides, ...], sizes: tuple[int, ...], aligned: bool, stores: bool, processors: int
) -> Plan:
    """How rows are walked: in tiles or, if they are long, in blocks."""
    shape, strides = merged(shape, strides)
    rows = layout(shape, strides, sizes, aligned)
    blocks = long(rows.outer * rows.inner, rows.classes, sizes[0], processors)
    return Plan(shape, strides, is_long(rows), blocks, tile(rows, processors, stores))


@functools.lru_cache(4096)
def tile(rows: Layout, processors: int, stores: bool) -> Tile:
    """`stores`: whether something as large as the logits is written, which has to be in whole sectors."""
    outer, classes, inner, contiguous, vector = rows
    warps = 4
    if contiguous and classes <= NARROW and not stores:
        fewest, most, columns = 32, 128, min(vector, power_of_2(classes))
        blocks = cdiv(classes, columns)
    elif contiguous and classes < LONG:
        # a warp a row, two where a thread would hold too much
        lanes = 32 * power_of_2(cdiv(classes, 64 * THREAD_HOLDS))
        columns = min(power_of_2(classes), lanes * vector)
        fewest = max(warps * 32 * vector // columns, 1)
        blocks = cdiv(classes, columns)
        most = max(power_of_2(32 * warps * THREAD_HOLDS // (columns * blocks) + 1) // 2, fewest)
    elif contiguous:
        fewest, most, columns, blocks = 1, 1, 1024, 0
    elif classes <= 32:
        fewest, most, columns, blocks = 32, 128, 1, classes
    elif classes <= 256:
        fewest, most, columns = 32, 32, 16
        blocks = cdiv(classes, columns)
    else:
        fewest, most, columns, blocks = 32, 32, 32, 0
    held = most
    while held > fewest and outer * cdiv(inner, held) < 2 * processors:
        held //= 2
    held = min(held, power_of_2(inner))
    # no more threads than elements: none has to hold what another may have overwritten, where that is done in place
    warps = min(warps, max(held * columns // 32, 1))
    return Tile(held, columns, blocks, vector, warps, outer * cdiv(inner, held))


def spread(rows: Tile) -> bool:
    """Whether several threads share a row, and what is done once a row is better done by one."""
    return rows.columns > rows.vector and rows.rows < 32 * rows.warps


def is_long(rows: Layout) -> bool:
    return rows.contiguous and rows.classes >= (UNALIGNED if rows.vector == 1 else LONG)


@functools.lru_cache(4096)
def long(num_rows: int, classes: int, size: int, processors: int) -> Long:
    """`size`: bytes of a logit. Two vectors a thread are under way at a time."""
    warps = 1 if classes < 2048 else 2 if classes < 4096 else 4 if classes < 16384 else 8
    block = 32 * warps * 2 * VECTOR // size
    wanted = cdiv(2 * processors, max(num_rows, 1))  # programs for every row
    splits = min(power_of_2(wanted), power_of_2(max(cdiv(classes, block) // 2, 1)), 64)
    return Long(block, VECTOR // size, splits, warps)


class Columns(NamedTuple):
    """Rows that a program of class_columns.py holds at a time, how often, and classes."""

    rows: int
    columns: int
    steps: int
    vector: int
    warps: int
    programs: int  # along the rows


@functools.lru_cache(4096)
def columns(rows: Layout, processors: int) -> Columns:
    """A program's sums over rows are in float32, and take as much memory as four rows: it has some, but not many."""
    outer, classes, inner, contiguous, vector = rows
    num_rows, threads = outer * inner, 128
    # classes of a row: a thread each, so that sums over rows stay in it
    held = min(power_of_2(classes), threads * max(vector, 4) if contiguous else 16)
    at_a_time = min(max(threads * THREAD_HOLDS // 2 // held, 4), power_of_2(num_rows), MOST_ROWS)
    blocks = cdiv(classes, held)
    steps = max(cdiv(FEWEST_ROWS, at_a_time), 1)
    while steps * at_a_time < MOST_ROWS and cdiv(num_rows, 2 * steps * at_a_time) * blocks >= 2 * processors:
        steps *= 2
    return Columns(at_a_time, held, steps, vector, 4, cdiv(num_rows, steps * at_a_time))


class Elements(NamedTuple):
    """A tile of elements, and the shape and strides (outer, class, column) of what it is of."""

    rows: int
    columns: int
    shape: tuple[int, int]
    row_classes: int  # rows are so many classes, one after the other
    in_columns: bool  # or columns are classes
    strides: tuple[tuple[int, int, int], ...]
    full: bool  # tiles without elements that are not there
    grid: tuple[int, int]


ELEMENTS = 1024  # of a tile


@functools.lru_cache(4096)
def elements(shape: tuple[int, int, int], strides: tuple[tuple[int, int, int], ...], by_class: bool) -> Elements:
    """`shape`: (N, C, inner); `by_class`: whether the class of an element matters."""
    n, classes, inner = shape
    if not by_class and all(_flat_step(shape, of) is not None for of in strides):
        in_columns, row_classes, num_rows, num_columns = False, 1, 1, n * classes * inner
        strides = tuple((0, 0, _flat_step(shape, of)) for of in strides)
    elif inner == 1:
        in_columns, row_classes, num_rows, num_columns = True, 1, n, classes
        strides = tuple((outer, 0, of_class) for outer, of_class, _ in strides)
    else:
        in_columns, row_classes, num_rows, num_columns = False, classes, n * classes, inner
    columns = min(power_of_2(num_columns), ELEMENTS)
    held = min(max(ELEMENTS // columns, 1), power_of_2(num_rows))
    full = num_columns % columns == 0 and num_rows % held == 0
    grid = cdiv(num_rows, held), cdiv(num_columns, columns)
    return Elements(held, columns, (num_rows, num_columns), row_classes, in_columns, strides, full, grid)


def _flat_step(shape: tuple[int, int, int], strides: tuple[int, int, int]) -> int | None:
    """The distance of elements in order, if they have one."""
    steps = [(size, step) for size, step in zip(shape, strides, strict=True) if size > 1]
    if not steps:
        return 1
    whole = all(step == size * after for (_, step), (size, after) in itertools.pairwise(steps))
    return steps[-1][1] if whole else None


def reduction_block(programs: int) -> int:
    """Results of programs that are added up at a time."""
    return min(max(power_of_2(programs), 32), 2048)
