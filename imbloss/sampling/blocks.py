"""Nearest neighbours among points that are never together in memory: block after block, from a file or from the other
processes of a group."""

import math

import torch
from torch import Tensor

from imbloss.sampling.neighbors import chunks, nearest, widest


class Nearest:
    """The k nearest of the points seen so far: those that :func:`nearest` finds among all of them at once.

    Blocks may come in any order. Equal distances are ordered by their squares in float64, equal ones by number. Where
    the squares of unlike points differ by no more than the rounding of a float64 sum, that is another sum's rounding
    than the kernel's.

    Args:
        queries: shape (m, d), finite.
        k: how many.
        own: the number of the point that each query is, which it does not get; int64, shape (m,).
    """

    def __init__(self, queries: Tensor, k: int, own: Tensor | None = None) -> None:
        half = queries.dtype in (torch.float16, torch.bfloat16)
        self._queries = queries.float() if half else queries
        self._k, self._own = k, own
        shape = len(queries), k
        self._distances = self._queries.new_full(shape, math.inf)
        self._squares = self._queries.new_full(shape, math.inf, dtype=widest(queries))
        self._numbers = torch.full(shape, torch.iinfo(torch.int64).max, device=queries.device)

    def add(self, points: Tensor, first: int) -> None:
        """Points of the numbers first, first + 1, ..., finite, shape (n, d)."""
        if not len(points) or not len(self._queries):
            return
        points = points.to(self._queries.dtype)
        wanted = min(self._k + (self._own is not None), len(points))  # the query itself may be among them
        distances, found = nearest(points, wanted, self._queries)
        squares = self._squares_of(points, found)
        numbers = found + first
        if self._own is not None:
            itself = numbers == self._own.unsqueeze(1)
            distances, squares = distances.masked_fill(itself, math.inf), squares.masked_fill(itself, math.inf)
        before = self._distances, self._squares, self._numbers
        lists = [torch.cat(pair, 1) for pair in zip(before, (distances, squares, numbers), strict=True)]
        for key in (2, 1, 0):  # stable: what comes last counts most
            order = lists[key].sort(dim=1, stable=True)[1]
            lists = [values.gather(1, order) for values in lists]
        self._distances, self._squares, self._numbers = (values[:, : self._k] for values in lists)

    def _squares_of(self, points: Tensor, found: Tensor) -> Tensor:
        squares = torch.empty(found.shape, dtype=self._squares.dtype, device=points.device)
        for rows in chunks(len(found), found.shape[1] * points.shape[1]):
            there = points[found[rows]].to(squares.dtype)
            squares[rows] = there.sub_(self._queries[rows].to(squares.dtype).unsqueeze(1)).square_().sum(2)
        return squares

    def result(self) -> tuple[Tensor, Tensor]:
        """Distances and numbers, (m, k); with fewer points than k, the last ones mean nothing."""
        return self._distances.contiguous(), self._numbers.contiguous()
