"""Nearest neighbours on a GPU: tiles of the distance matrix, of which each query keeps the best in registers.

A program has a block of queries and reads all points, a tile at a time, in products of full float32 precision; the
candidates, more than k, are computed again in float64 and certified by imbloss.sampling.neighbors. Nothing of the
size of the distance matrix is ever written.
"""

import torch
import triton
import triton.language as tl

MOST_LISTED = 64  # candidates a query, beyond which plain PyTorch selects
TILE_QUERIES, TILE_POINTS, TILE_COLUMNS, WARPS = 32, 64, 16, 8
NOTHING = tl.constexpr(3.0e38)


@triton.jit
def neighbors_kernel(
    queries_ptr,
    points_ptr,
    halves_ptr,
    exclude_ptr,
    scores_ptr,
    ids_ptr,
    num_queries,
    num_points,
    num_columns,
    LISTED: tl.constexpr,
    WANTED: tl.constexpr,
    QUERIES: tl.constexpr,
    POINTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Half the squared distances less the query's share, |b|^2 / 2 - a b, of the WANTED least, and their points.

    The worst of the LISTED is replaced as long as a tile has a better one: once a tile's least has been taken it is
    struck out, so that the loop ends after as many turns as the busiest query takes.
    """
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    there = query < num_queries
    row = query.to(tl.int64) * num_columns
    exclude = tl.load(exclude_ptr + query, mask=there, other=-1)
    slot = tl.arange(0, LISTED)[None, :]
    free = slot < WANTED
    # slots beyond WANTED hold less than anything: they are never the worst
    kept = tl.where(free, NOTHING, -NOTHING) + tl.zeros([QUERIES, LISTED], dtype=tl.float32)
    ids = tl.full([QUERIES, LISTED], -1, dtype=tl.int32)
    worst = tl.max(kept, 1)
    for start in range(0, num_points, POINTS):
        point = start + tl.arange(0, POINTS)
        inside = point < num_points
        of_point = point.to(tl.int64) * num_columns
        products = tl.zeros([QUERIES, POINTS], dtype=tl.float32)
        for first in range(0, num_columns, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            is_column = column < num_columns
            a = tl.load(
                queries_ptr + row[:, None] + column[None, :], mask=there[:, None] & is_column[None, :], other=0.0
            )
            b = tl.load(
                points_ptr + of_point[None, :] + column[:, None], mask=inside[None, :] & is_column[:, None], other=0.0
            )
            products += tl.dot(a, b, input_precision="ieee")
        half = tl.load(halves_ptr + point, mask=inside, other=0.0)
        score = half[None, :] - products
        score = tl.where(inside[None, :] & (point[None, :] != exclude[:, None]), score, NOTHING)
        least = tl.min(score, 1)
        while tl.max((least < worst).to(tl.int32), 0) > 0:
            at = tl.argmin(score, 1)
            better = least < worst
            place = tl.argmax(kept, 1)
            here = (slot == place[:, None]) & better[:, None]
            kept = tl.where(here, least[:, None], kept)
            ids = tl.where(here, (start + at).to(tl.int32)[:, None], ids)
            score = tl.where((tl.arange(0, POINTS)[None, :] == at[:, None]) & better[:, None], NOTHING, score)
            worst = tl.max(kept, 1)
            least = tl.min(score, 1)
    out = query.to(tl.int64)[:, None] * WANTED + slot
    mask = there[:, None] & free
    tl.store(scores_ptr + out, kept, mask=mask)
    tl.store(ids_ptr + out, ids, mask=mask)


def stages(listed: int) -> int:
    """How many tiles are on their way at a time: with two, the longest lists would not fit into the registers."""
    return 2 if listed < MOST_LISTED else 1


def select(queries, points, halves, exclude, wanted):
    """`imbloss.sampling.neighbors.Select` by the kernel."""
    scores = queries.new_empty((len(queries), wanted))
    ids = torch.empty((len(queries), wanted), dtype=torch.int32, device=queries.device)
    if exclude is None:
        exclude = torch.full((len(queries),), -1, dtype=torch.int64, device=queries.device)
    listed = triton.next_power_of_2(max(wanted, 2))
    neighbors_kernel[(triton.cdiv(len(queries), TILE_QUERIES),)](
        queries, points, halves, exclude, scores, ids, len(queries), len(points), points.shape[1],
        LISTED=listed, WANTED=wanted, QUERIES=TILE_QUERIES, POINTS=TILE_POINTS, COLUMNS=TILE_COLUMNS,
        num_warps=WARPS, num_stages=stages(listed),
    )  # fmt: skip
    ids = ids.long()
    return scores.amax(1), torch.where(ids < 0, exclude.unsqueeze(1), ids)  # a slot is left empty by an excluded point


def neighbors(points, queries, exclude, k, done):
    from imbloss.sampling.neighbors import SPARE, check_finite, search

    check_finite(points, "points")
    if queries is not None:
        check_finite(queries, "queries")
    fits = k + SPARE <= MOST_LISTED and points.dtype == torch.float32 and (queries is None or len(queries) > 0)
    with torch.accelerator.device_index(None if points.is_cpu else points.device.index):
        return search(points, k, queries, exclude, select if fits else None)
