"""How kernels are launched: pure functions, of which every kind of rows is tried."""

import itertools
import math

import pytest
import torch

pytest.importorskip("triton")
from imbloss.kernels import launch

SIZES = {torch.float32: 4, torch.bfloat16: 2}
CLASSES = [
    1,
    2,
    3,
    7,
    10,
    16,
    17,
    32,
    33,
    64,
    100,
    127,
    128,
    129,
    255,
    256,
    257,
    1000,
    1024,
    1203,
    2048,
    4095,
    4096,
    50257,
]
ROWS = [1, 2, 5, 64, 1000, 65536, 2**22]


def rows(classes, count, size=2):
    """As contiguous logits of shape (count, classes)."""
    return launch.layout(*launch.merged((count, classes, 1), ((classes, 1, 0),)), (size,), True)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("stores", [False, True])
@pytest.mark.parametrize("processors", [1, 108, 132])
def test_tiles_cover_all_rows_and_classes(size, stores, processors):
    for classes, count in itertools.product(CLASSES, ROWS):
        for outer, inner, contiguous in ((1, count, True), (1, count, False), (3, count, False)):
            vector = rows(classes, count, size).vector if contiguous else 1
            tile = launch.tile(launch.Layout(outer, classes, inner, contiguous, vector), processors, stores)
            assert tile.programs * tile.rows >= outer * inner
            assert tile.rows == 1 or (tile.programs / outer - 1) * tile.rows < inner  # and no program has no rows
            for number in (tile.rows, tile.columns, tile.vector, tile.warps):
                assert number == launch.power_of_2(number)
            if tile.blocks:
                assert (tile.blocks - 1) * tile.columns < classes <= tile.blocks * tile.columns
                assert tile.rows * tile.columns * tile.blocks <= 130 * 32 * tile.warps  # logits that threads hold
            assert tile.columns % tile.vector == 0 and classes % tile.vector == 0
            assert tile.rows * tile.columns >= 32 * tile.warps or tile.warps == 1


@pytest.mark.parametrize("size", [2, 4])
def test_blocks_of_long_rows(size):
    for classes, count, processors in itertools.product((128, 1203, 4096, 50257, 10**6), ROWS, (1, 108, 132)):
        long = launch.long(count, classes, size, processors)
        assert long.vector * size == 16 and long.block == 32 * long.warps * 2 * long.vector
        assert 1 <= long.splits <= 64
        if count >= 2 * processors:
            assert long.splits == 1  # there are programs enough
        if long.splits > 1:
            assert long.splits * long.block <= 2 * classes + 2 * long.block  # each has something to do
    assert launch.long(1, 50257, 2, 132).splits > 1


def test_many_processors_get_programs():
    """Fewer rows a program where there are few rows, as long as a program is worth it."""
    for classes in (10, 100, 1000):
        few, many = (launch.tile(rows(classes, 512), processors, True) for processors in (132, 1))
        assert few.rows <= many.rows and few.programs >= many.programs


def test_rows_that_are_long():
    assert not launch.is_long(rows(4095 // 8 * 8, 5)) and launch.is_long(rows(4096, 5))
    assert launch.is_long(rows(1203, 5)) and not launch.is_long(rows(1000, 5)) and not launch.is_long(rows(101, 5))
    assert not launch.is_long(rows(50257, 5)._replace(contiguous=False))


def test_vectors_are_as_wide_as_alignment_allows():
    assert [rows(classes, 5, 2).vector for classes in (1024, 1000, 100, 10, 1203)] == [8, 8, 4, 2, 1]
    assert [rows(classes, 5, 4).vector for classes in (1024, 1000, 100, 10, 1203)] == [4, 4, 4, 2, 1]
    assert launch.layout((1, 1000, 5), ((0, 1, 1001),), (2,), True).vector == 1  # rows of a wider matrix
    assert launch.layout((1, 1000, 5), ((0, 1, 1000),), (2,), False).vector == 1  # a slice that starts anywhere
    assert launch.layout((1, 1000, 5), ((0, 1, 1000), (0, 1, 1004)), (2, 2), True).vector == 4


@pytest.mark.parametrize("shape", [(4, 3), (1, 3, 5), (4, 3, 1), (2, 3, 5), (2, 3, 4, 5)])
def test_merged_rows_are_where_they_were(shape):
    for x in (torch.arange(math.prod(shape)).view(shape), torch.arange(math.prod(shape)).view(shape[::-1]).permute(
        *range(len(shape) - 1, -1, -1)
    )):  # fmt: skip
        three = x.reshape(*x.shape[:2], -1) if x.dim() > 2 else x.unsqueeze(2)
        (outer, classes, inner), ((of_outer, of_class, of_inner),) = launch.merged(three.shape, (three.stride(),))
        want = three.movedim(1, 2).reshape(-1, classes)
        places = [
            [o * of_outer + c * of_class + i * of_inner for c in range(classes)]
            for o, i in itertools.product(range(outer), range(inner))
        ]
        flat = torch.as_strided(three, (three.numel(),), (1,)) if three.numel() else three
        assert torch.equal(flat[torch.tensor(places)], want)


def test_columns_and_elements_cover_everything():
    for classes, count, processors in itertools.product(CLASSES, ROWS, (1, 132)):
        tile = launch.columns(rows(classes, count), processors)
        assert tile.programs * tile.rows * tile.steps >= count and tile.rows * tile.steps <= launch.MOST_ROWS
        shape = (count, classes, 1)
        for by_class in (False, True):
            got = launch.elements(shape, ((classes, 1, 1),), by_class)
            (num_rows, num_columns), (x, y) = got.shape, got.grid
            assert num_rows * num_columns == count * classes
            assert x * got.rows >= num_rows and y * got.columns >= num_columns
            assert got.full == (x * got.rows * y * got.columns == num_rows * num_columns)
            assert got.in_columns == by_class


def test_elements_without_gaps_are_one_row():
    assert launch.elements((4, 3, 5), ((15, 5, 1), (0, 0, 0)), False).shape == (1, 60)
    assert launch.elements((4, 3, 5), ((30, 5, 1),), False).shape == (12, 5)
    assert launch.elements((4, 3, 5), ((15, 5, 1),), True).shape == (12, 5)
