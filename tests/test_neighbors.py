"""knn: equal to a float64 brute force in every index and distance, whatever the data."""

import numpy as np
import pytest
import torch

import imbloss
from imbloss import _C, _ops, reference
from imbloss.sampling import _progress, neighbors

pytestmark = pytest.mark.isa
N = 300
DEPTHS = [1, 7, 33, 600]


def random(d):
    return torch.randn(N, d)


def clusters(d):
    return torch.randn(N, d) + torch.where(torch.arange(N) % 2 == 0, 3000.0, -3000.0).unsqueeze(1)


def line(d):
    return torch.arange(N).float().unsqueeze(1) * torch.linspace(0.1, 1, d)


DATA = {
    "random": random,
    "each 20 times": lambda d: torch.randn(-(-N // 20), d).repeat(20, 1)[torch.randperm(N)],
    "few copies": lambda d: torch.cat([torch.randn(N - 3, d)] * 2)[torch.randperm(2 * N - 6)][:N],
    "sorted": lambda d: random(d)[torch.randn(N).argsort()].sort(0)[0],
    "collinear": line,
    "on a grid": lambda d: torch.arange(N).float().unsqueeze(1) * torch.ones(d),
    "constant": lambda d: torch.ones(N, d),
    "offset 1e6": lambda d: random(d) + 1e6,
    "two clusters": clusters,
    "binary": lambda d: (random(d) > 0).float(),
    "one far away": lambda d: random(d) * torch.where(torch.arange(N) == 5, 1e7, 1.0).unsqueeze(1),
    "one wide column": lambda d: random(d) * torch.cat([torch.tensor([1e6]), torch.ones(d - 1)]),
    "tiny": lambda d: random(d) * 1e-30,
    "huge": lambda d: random(d) * 1e15,
    "signed zeros": lambda d: torch.zeros(N, d) * torch.randn(N, d).sign(),
}


def assert_same(got, expected):
    (distances, indices), (true_distances, true_indices) = got, expected
    assert torch.equal(indices, true_indices)
    tolerance = 1e-12 if distances.dtype == torch.float64 else 2**-23
    torch.testing.assert_close(distances.double(), true_distances, rtol=tolerance, atol=0)


@pytest.mark.parametrize("d", DEPTHS)
@pytest.mark.parametrize("name", DATA)
def test_indices_and_distances_equal_brute_force(name, d):
    points = DATA[name](d)
    distances, indices = reference.knn(points, 40)
    for k in (1, 5, 13, 40):
        assert_same(imbloss.knn(points, k), (distances[:, :k], indices[:, :k]))
    some = points[::3] + (0.1 if name == "random" else 0.0)
    assert_same(imbloss.knn(points, 7, some), reference.knn(points, 7, some))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["random", "each 20 times", "on a grid", "two clusters", "offset 1e6"])
def test_every_dtype(name, dtype):
    points = DATA[name](17)
    if dtype == torch.float16:
        points = points.clamp(-6e4, 6e4)
    points = points.to(dtype)
    got = imbloss.knn(points, 6)
    assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_same(got, reference.knn(points, 6))
    assert_same(imbloss.knn(points, 6, points[:9]), reference.knn(points, 6, points[:9]))


def test_clusters_that_float32_cannot_tell_apart():
    points = torch.randn(N, 9).double() * 1e-7 + torch.where(torch.arange(N) % 3 == 0, 1e6, -2e6).unsqueeze(1)
    assert_same(imbloss.knn(points, 5), reference.knn(points, 5))


@pytest.mark.parametrize("name", ["random", "offset 1e6", "one far away"])
def test_cosine(name):
    points = DATA[name](12)
    distances, indices = imbloss.knn(points, 5, metric="cosine")
    true_distances, true_indices = reference.knn(points, 5, metric="cosine")
    assert torch.equal(indices, true_indices) and distances.dtype == torch.float32
    torch.testing.assert_close(distances.double(), true_distances, rtol=1e-6, atol=0)
    wide = points.double()
    cosine = (wide @ wide.T) / wide.norm(dim=1) / wide.norm(dim=1, keepdim=True)
    torch.testing.assert_close(distances.double(), 1 - cosine.gather(1, indices), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name, d", [("random", 9), ("copies", 9), ("clusters", 3), ("line", 2), ("random", 520)])
def test_points_enough_for_each_pair_once(name, d, threads):
    n = 9001 if d < 100 else 4100
    points = torch.randn(n, d)
    if name == "copies":
        points[::2] = points[1::2][:1].expand(len(points[::2]), d)
        points[5000:7000] = points[:2000]
    elif name == "clusters":
        points += torch.where(torch.arange(n) % 2 == 0, 3000.0, -3000.0).unsqueeze(1)
    elif name == "line":
        points = torch.arange(n).float().unsqueeze(1) * torch.tensor([1.0, 0.3])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        distances, indices = imbloss.knn(points, 5)
    finally:
        torch.set_num_threads(before)
    some = torch.randperm(n)[:60]
    squares = torch.stack([(points.double() - points[i].double()).square().sum(1) for i in some])
    squares[torch.arange(len(some)), some] = torch.inf
    squares, expected = squares.sort(dim=1, stable=True)
    assert_same((distances[some], indices[some]), (squares[:, :5].sqrt(), expected[:, :5]))


def test_a_hundred_thousand_columns():
    points = torch.randn(20, 100_000)
    assert_same(imbloss.knn(points, 3), reference.knn(points, 3))


@pytest.mark.parametrize("n", [2, 3, 15, 16, 17, 31, 97])
def test_every_other_point(n):
    points = torch.randn(n, 3)
    assert_same(imbloss.knn(points, n - 1), reference.knn(points, n - 1))
    assert_same(imbloss.knn(points, n, points), reference.knn(points, n, points))


def test_no_queries_and_one_point():
    distances, indices = imbloss.knn(torch.randn(5, 2), 2, torch.empty(0, 2))
    assert distances.shape == indices.shape == (0, 2)
    assert imbloss.knn(torch.zeros(1, 2), 1, torch.ones(3, 2))[1].tolist() == [[0]] * 3


def test_strides_shapes_and_inputs_untouched():
    points = torch.randn(40, 6, 4)[:, ::2].transpose(1, 2)
    before = points.clone()
    distances, indices = imbloss.knn(points, 3)
    assert_same((distances, indices), reference.knn(points.flatten(1), 3))
    assert torch.equal(points, before)
    assert not imbloss.knn(points.contiguous().requires_grad_(), 3)[0].requires_grad


def test_numpy_and_pandas_give_arrays():
    points = np.random.default_rng(0).normal(size=(30, 3))
    distances, indices = imbloss.knn(points, 2)
    assert isinstance(distances, np.ndarray) and distances.dtype == np.float64 and indices.dtype == np.int64
    assert_same(map(torch.from_numpy, (distances, indices)), reference.knn(torch.from_numpy(points), 2))
    frame = pytest.importorskip("pandas").DataFrame(points[::-1])
    assert (imbloss.knn(frame, 2)[0][::-1] == distances).all()


ERRORS = {
    "k": ({"k": 0}, ValueError, r"expected k in \[1, 4\] among 5 points, each without itself, but got 0"),
    "k n": ({"k": 5}, ValueError, r"expected k in \[1, 4\] among 5 points"),
    "k queries": ({"k": 6, "queries": torch.ones(1, 2)}, ValueError, r"expected k in \[1, 5\] among 5 points, but"),
    "k float": ({"k": 1.0}, TypeError, "expected k to be an int, but got float 1.0"),
    "k bool": ({"k": True}, TypeError, "expected k to be an int, but got bool True"),
    "shape": ({"points": torch.ones(5)}, ValueError, r"expected points of shape .* but got \(5,\)"),
    "dtype": ({"points": torch.ones(5, 2).long()}, TypeError, "expected points of dtype float32, .* got torch.int64"),
    "columns": ({"points": torch.ones(5, 0)}, ValueError, "expected points of at least one column"),
    "kind": ({"points": "abc"}, TypeError, "expected points to be a tensor, a numpy array or a pandas frame"),
    "objects": ({"points": np.array([["a"]] * 5)}, TypeError, "expected points of numbers"),
    "queries": ({"queries": torch.ones(2, 3)}, ValueError, "expected queries of 2 columns, as points, but got 3"),
    "queries dtype": ({"queries": torch.ones(2, 2).double()}, ValueError, "expected queries of torch.float32 on cpu"),
    "metric": ({"metric": "l1"}, ValueError, r"expected metric in \('l2', 'cosine'\), but got 'l1'"),
    "progress": ({"progress": 1}, TypeError, "expected progress to be True, False or None, but got int 1"),
    "zeros": ({"points": torch.zeros(5, 2), "metric": "cosine"}, ValueError, "without rows of zeros .* got one in row"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    keywords, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        imbloss.knn(**{"points": torch.arange(10.0).view(5, 2), "k": 2, **keywords})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number_that_is_none_is_reported(value, metric, dtype):
    points = torch.randn(20, 3, dtype=dtype)
    bad = points.clone()
    bad[7, 1] = value
    with pytest.raises(ValueError, match=f"expected points to be finite, but got {value} in row 7"):
        imbloss.knn(bad, 2, metric=metric)
    with pytest.raises(ValueError, match=f"expected queries to be finite, but got {value} in row 7"):
        imbloss.knn(points, 2, bad, metric=metric)


def test_finite_numbers_whose_sum_is_not():
    points = torch.randn(30, 3) * 1e37
    points[:25] = points[:25].abs() + 2e38
    assert_same(imbloss.knn(points, 2), reference.knn(points, 2))


def test_reduced_precision_products_change_nothing(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    points = random(5)
    with imbloss.testing.backend("reference"):
        assert_same(imbloss.knn(points, 4), reference.knn(points, 4))


def test_the_operator_is_registered_right():
    if not _C.loaded():
        pytest.skip("no compiled core")
    points = torch.randn(50, 3)
    operator = torch.ops.imbloss.neighbors.default
    for arguments in ((points, None, None, 4, None), (points, points[:5], torch.arange(5), 4, None)):
        torch.library.opcheck(operator, arguments)
    rows = torch.ops.imbloss.interpolated_rows.default
    torch.library.opcheck(rows, (points, torch.arange(9), torch.arange(9) + 1, torch.rand(9)))
    with pytest.raises(IndexError, match="indices of rows"):
        rows(points, torch.tensor([50]), torch.tensor([0]), torch.rand(1))
    with pytest.raises(RuntimeError, match="contiguous rows"):
        operator(points.T, None, None, 4, None)


def test_a_bar_shows_the_progress(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "EVERY", 0.01)
    points = torch.randn(9000, 64)
    quiet = imbloss.knn(points, 3)
    assert capsys.readouterr().err == ""
    loud = imbloss.knn(points, 3, progress=True)
    assert torch.equal(loud[1], quiet[1])
    assert "100 %" in capsys.readouterr().err


def test_an_excluded_point_is_left_out_and_no_other():
    points = torch.randn(40, 3).repeat(2, 1)
    which = torch.tensor([3, 41, 79])
    distances, indices = neighbors.nearest(points, 4, points[which], which)
    expected = reference.knn(points, 4)
    assert_same((distances, indices), (expected[0][which], expected[1][which]))


def test_plain_pytorch_finds_the_same():
    for name in ("random", "each 20 times", "two clusters", "on a grid"):
        points = DATA[name](5)
        with imbloss.testing.backend("reference"):
            assert not _ops.has_kernels(points)
            assert_same(imbloss.knn(points, 6), reference.knn(points, 6))
            assert_same(imbloss.knn(points, 6, points[:20]), reference.knn(points, 6, points[:20]))


@pytest.mark.triton
@pytest.mark.parametrize("name", ["random", "each 20 times", "on a grid", "constant", "offset 1e6", "two clusters"])
def test_few_points(name):
    """Few enough for Triton's interpreter, where this runs as well."""
    points = DATA[name](5)[:45]
    distances, indices = reference.knn(points, 32)
    for k in (1, 5, 32):
        assert_same(imbloss.knn(points, k), (distances[:, :k], indices[:, :k]))
    assert_same(imbloss.knn(points, 45, points[:7]), reference.knn(points, 45, points[:7]))
    assert_same(imbloss.knn(points[:3], 2), reference.knn(points[:3], 2))


@pytest.mark.triton
def test_more_columns_than_a_tile_has():
    points = torch.randn(40, 70)
    assert_same(imbloss.knn(points, 4), reference.knn(points, 4))
