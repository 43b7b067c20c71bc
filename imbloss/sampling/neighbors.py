"""Exact nearest neighbours: arguments checked, the best kernel called. Without one, `search` below, in plain PyTorch.

Exact means: indices and order are those of a float64 brute force whose ties break to the lower index. What is selected
with rounding errors is computed again without, and certified (docs/math.md, section 6); what is not, is searched
directly.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imbloss import _ops
from imbloss.priors import describe
from imbloss.sampling import _kinds
from imbloss.sampling._progress import watched

METRICS = ("l2", "cosine")
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SPARE = 3  # candidates beyond k, by which most rows are certified
CHUNK_ELEMENTS = 1 << 22  # of a tile of distances, or of candidates' differences


def knn(
    points: Any,
    k: int,
    queries: Any = None,
    *,
    metric: str = "l2",
    progress: bool | None = None,
    group: Any = None,
) -> tuple[Any, Any]:
    r"""The k nearest points of each query, exactly.

    .. math:: d(a, b) = \lVert a - b \rVert_2 \quad\text{or}\quad 1 - \frac{a \cdot b}{\lVert a \rVert \lVert b \rVert}

    Indices and order are those of a brute force in float64, equal distances in the order of their indices. Needs
    memory for one packed copy of the points, the result and a tile of distances, never for all distances.

    Args:
        points: shape (n, d), or (n, ...), which is flattened: float32, float64, bfloat16 or float16, finite. A numpy
            array or pandas frame gives numpy arrays back.
        k: how many; 1 <= k < n, or k <= n with ``queries``.
        queries: shape (m, d), of the same kind, dtype and device; None asks for the points' own neighbours, of which
            a point itself is none (copies of it are).
        metric: "l2", or "cosine", which no row of zeros has.
        progress: a bar on stderr; None shows one on a terminal, for a search of more than a few seconds.
        group: a process group, each process of which calls this with rows of its own, of any number, and gets their
            neighbours among all processes' points; process r's points have indices from n_0 + ... + n_(r-1) on. The
            processes' blocks of points go round: each holds three at most. No bar is shown then.

    Returns:
        Distances, shape (m, k), ascending, not squared, float32 (float64 for float64 points); and indices, int64.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, or a NaN; the message names it.
            With ``group``, on all its processes where it is wrong on one, or where they differ.
        RuntimeError: a process of ``group`` ended, or sent nothing within the group's time-out.

    >>> distances, indices = knn(torch.tensor([[0.0], [1.0], [3.0]]), k=1)
    >>> distances.flatten(), indices.flatten()
    (tensor([1., 1., 2.]), tensor([1, 0, 1]))
    """
    if group is not None:
        from imbloss.sampling import ring  # which needs what is here

        return ring.knn(points, k, queries, metric, progress, group)
    kind, rows, asked = checked(points, queries, metric, progress)
    check_k(k, len(rows), asked is None)
    if metric == "cosine":
        units = None if asked is None else unit_rows(asked, "queries")
        distances, indices = nearest(unit_rows(rows, "points"), k, units, progress=progress)
        distances = cosine_of(distances, rows.dtype)
    else:
        distances, indices = nearest(rows, k, asked, progress=progress)
    return _kinds.like(kind, distances), _kinds.like(kind, indices)


def checked(points: Any, queries: Any, metric: str, progress: bool | None) -> tuple[str, Tensor, Tensor | None]:
    """The kind of the points; points and queries as rows."""
    kind = _kinds.kind_of(points)
    rows = check_points(_kinds.to_tensor(points, "points"), "points")
    asked = None if queries is None else check_points(_kinds.to_tensor(queries, "queries"), "queries", like=rows)
    if metric not in METRICS:
        raise ValueError(f"expected metric in {METRICS}, but got {metric!r}")
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"expected progress to be True, False or None, but got {describe(progress)}")
    return kind, rows, asked


def cosine_of(distances: Tensor, dtype: torch.dtype) -> Tensor:
    """From the distances of vectors of length 1: |a - b|^2 = 2 - 2 cos."""
    return (distances.square() / 2).to(dtype if dtype == torch.float64 else torch.float32)


def check_points(points: Tensor, name: str, like: Tensor | None = None) -> Tensor:
    """As rows, (n, d), checked in everything but their values; one more rank than 2 is flattened."""
    if points.dim() < 2:
        raise ValueError(f"expected {name} of shape (n, d) or (n, ...), but got {tuple(points.shape)}")
    if points.dtype not in FLOATING:
        raise TypeError(f"expected {name} of dtype float32, float64, bfloat16 or float16, but got {points.dtype}")
    rows = points.detach().flatten(1)
    if rows.shape[1] == 0:
        raise ValueError(f"expected {name} of at least one column, but got shape {tuple(points.shape)}")
    if like is not None:
        if rows.shape[1] != like.shape[1]:
            raise ValueError(f"expected {name} of {like.shape[1]} columns, as points, but got {rows.shape[1]}")
        if rows.dtype != like.dtype or rows.device != like.device:
            raise ValueError(
                f"expected {name} of {like.dtype} on {like.device}, as points, but got {rows.dtype} on {rows.device}"
            )
    return rows


def check_k(k: Any, count: int, own: bool, name: str = "k") -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"expected {name} to be an int, but got {describe(k)}")
    most = count - 1 if own else count
    if not 1 <= k <= most:
        among = f"{count} points, each without itself" if own else f"{count} points"
        raise ValueError(f"expected {name} in [1, {most}] among {among}, but got {k}")


def check_finite(rows: Tensor, name: str) -> None:
    """ValueError with the first row that has a NaN or an infinity."""
    if not rows.numel() or bool(rows.sum(dtype=None if rows.is_cpu else torch.float32).isfinite()):
        return  # one pass without a temporary; a sum of finite numbers may overflow, so look again
    for start in range(0, len(rows), max(1, CHUNK_ELEMENTS // rows.shape[1])):
        finite = rows[start : start + max(1, CHUNK_ELEMENTS // rows.shape[1])].isfinite()
        if not bool(finite.all()):
            row, column = (~finite).nonzero()[0].tolist()
            value = float(rows[start + row, column])
            raise ValueError(f"expected {name} to be finite, but got {value} in row {start + row}")


def unit_rows(rows: Tensor, name: str) -> Tensor:
    """Rows of length 1, in float64 where there is such a thing."""
    check_finite(rows, name)
    rows = rows.to(widest(rows))
    largest = rows.abs().amax(1, keepdim=True)  # whose square may overflow, or vanish
    rows = rows / torch.where(largest > 0, largest, 1)
    length = rows.norm(dim=1, keepdim=True)
    if not bool((length > 0).all()):
        row = int((length[:, 0] == 0).nonzero()[0])
        raise ValueError(f"expected {name} without rows of zeros for metric='cosine', but got one in row {row}")
    return rows / length


def widest(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def nearest(
    points: Tensor,
    k: int,
    queries: Tensor | None = None,
    exclude: Tensor | None = None,
    progress: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """`knn` of rows that are checked, but for NaN; ``exclude`` (m,) has a point for each query that it may not get."""
    half = points.dtype in (torch.float16, torch.bfloat16)
    points = (points.float() if half else points).contiguous()
    if queries is None:
        exclude = None  # the operator knows
    else:
        queries = (queries.float() if half else queries).contiguous()
    if not _ops.has_kernels(points):
        check_finite(points, "points")
        if queries is not None:
            check_finite(queries, "queries")
        return search(points, k, queries, exclude)
    operator = torch.ops.imbloss.neighbors.default
    count = len(points) if queries is None else len(queries)
    with watched(points, float(count) * len(points) * points.shape[1], progress) as counter:
        return operator(points, queries, exclude, k, counter)


# ---- in plain PyTorch --------------------------------------------------------------------------------------------
# (queries, points, half the squared lengths of points, points that queries may not get or None, how many candidates),
# centred -> of each query half the squared distance, less its own share, that no other point is below; and the
# candidates' indices, an excluded point among them perhaps.
Select = Callable[[Tensor, Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor]]
BLOCK = 1 << 16  # queries a call of one that needs no tile of distances


def by_tiles(asked: Tensor, centred: Tensor, halves: Tensor, exclude: Tensor | None, wanted: int):
    scores = torch.addmm(halves, asked, centred.T, alpha=-1)
    if exclude is not None:
        scores.scatter_(1, exclude.unsqueeze(1), math.inf)
    bound, candidates = scores.topk(wanted, largest=False)
    return bound[:, -1], candidates


def search(
    points: Tensor, k: int, queries: Tensor | None, exclude: Tensor | None, select: Select | None = None
) -> tuple[Tensor, Tensor]:
    """The certified search, chunk by chunk."""
    own = queries is None
    if own:
        queries, exclude = points, torch.arange(len(points), device=points.device)
    assert queries is not None
    centre = points.mean(0, dtype=widest(points))
    largest = torch.maximum(points.amax(0) - centre, centre - points.amin(0)).max()
    scale = 2.0 ** -float(torch.frexp(largest).exponent)  # squares of tiny numbers would underflow
    centred = ((points - centre) * scale).to(points.dtype)
    halves = centred.square().sum(1) / 2
    lengths = (2 * halves.to(widest(points))).sqrt()
    wanted = min(k + SPARE, len(points))
    distances = points.new_empty((len(queries), k))
    indices = points.new_empty((len(queries), k), dtype=torch.int64)
    for rows in chunks(len(queries), len(points) if select is None else CHUNK_ELEMENTS // BLOCK):
        asked = centred[rows] if own else ((queries[rows] - centre) * scale).to(points.dtype)
        bound, candidates = (select or by_tiles)(
            asked, centred, halves, None if exclude is None else exclude[rows], wanted
        )
        length = asked.to(widest(points)).norm(dim=1)
        floor = bound.to(widest(points)) + length.square() / 2
        squares, found = rerank(points, queries[rows], candidates, None if exclude is None else exclude[rows])
        squares, found = squares[:, :k], found[:, :k]
        certain = is_certain(squares[:, -1] * scale**2, floor, length, lengths.max(), points.shape[1], unit_of(points))
        certain |= wanted >= len(points)
        found, squares = found.contiguous(), squares.contiguous()
        if not bool(certain.all()):
            left = (~certain).nonzero().squeeze(1)
            squares[left], found[left] = brute_force(
                points, k, queries[rows][left], None if exclude is None else exclude[rows][left]
            )
        distances[rows], indices[rows] = squares.sqrt().to(points.dtype), found
    return distances, indices


def chunks(rows: int, columns: int):
    step = max(1, CHUNK_ELEMENTS // max(columns, 1))
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))


def unit_of(points: Tensor) -> float:
    """Relative rounding error of a product in this dtype, whatever torch makes of it."""
    if points.dtype != torch.float64 and torch.get_float32_matmul_precision() != "highest":
        return 2.0**-8  # bfloat16 products
    return torch.finfo(points.dtype).eps / 2


def is_certain(kth: Tensor, floor: Tensor, length: Tensor, longest: Tensor, depth: int, unit: float) -> Tensor:
    """Whether no other point can be nearer than the k-th: docs/math.md, section 6.

    Args:
        kth: the squared distance of the k-th.
        floor: half the squared distance, up to rounding, that no other point is below.
        length, longest: of the centred queries, and of the longest centred point.
        depth: how many roundings one after the other a product takes.
    """
    reach = torch.minimum(longest, length + kth.sqrt())  # longer points are farther than the k-th
    error = (depth + 8) * unit * (length + reach).square() / 2
    return kth / 2 < floor - error


def rerank(points: Tensor, queries: Tensor, candidates: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """Squared distances of candidates without the selection's rounding errors, and both in order."""
    squares = points.new_empty(candidates.shape, dtype=widest(points))
    for rows in chunks(len(queries), candidates.shape[1] * points.shape[1]):
        there = points[candidates[rows]].to(squares.dtype)
        squares[rows] = there.sub_(queries[rows].to(squares.dtype).unsqueeze(1)).square_().sum(2)
    if exclude is not None:
        squares.masked_fill_(candidates == exclude.unsqueeze(1), math.inf)
    return in_order(squares, candidates)


def in_order(squares: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending; equal ones by index."""
    indices, order = indices.sort(1)
    squares, order = squares.gather(1, order).sort(dim=1, stable=True)
    return squares, indices.gather(1, order)


def brute_force(points: Tensor, k: int, queries: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """Squared distances and indices from differences alone: for what the quick selection leaves uncertain."""
    wide = points.to(widest(points))
    squares = wide.new_empty((len(queries), k))
    indices = torch.empty((len(queries), k), dtype=torch.int64, device=points.device)
    for rows in chunks(len(queries), len(points)):
        tile = torch.cdist(queries[rows].to(wide.dtype), wide, compute_mode="donot_use_mm_for_euclid_dist")
        if exclude is not None:
            tile.scatter_(1, exclude[rows].unsqueeze(1), math.inf)
        found = first_of(tile, k)
        exact, found = rerank(points, queries[rows], found, None if exclude is None else exclude[rows])
        squares[rows], indices[rows] = exact, found
    return squares, indices


def first_of(tile: Tensor, k: int) -> Tensor:
    """Indices of each row's k smallest, the lowest among equal ones."""
    values, found = tile.topk(k, largest=False)
    last = values[:, -1:]
    ties = tile == last
    free = k - (values < last).sum(1)
    torn = (ties.sum(1) > free).nonzero().squeeze(1)  # more of them than there is room for
    if len(torn):
        ties = ties[torn]
        keep = (tile[torn] < last[torn]) | (ties & (ties.cumsum(1) <= free[torn].unsqueeze(1)))
        found[torn] = keep.nonzero()[:, 1].view(len(torn), k)
    return found
