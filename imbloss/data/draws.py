"""Random numbers by position: draw k is a function of a key and of k, so that any process can compute any draw, and a
stream goes on from wherever it stopped. Nothing here has a state, or knows what is drawn."""

import numpy as np

STEP = 0x9E3779B97F4A7C15  # of SplitMix64; odd
FEW, ROUNDS = 32, 10  # of shuffled(): fewer rounds, or fewer cells, and the orders are not equally frequent


def words(key: int | np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Random 64-bit words: those at `positions` of SplitMix64 started at `key`, one key or one for each position.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, figure 16.
    """
    x = positions.astype(np.uint64)
    x *= np.uint64(STEP)
    x += np.uint64(key) if isinstance(key, int) else key
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def key_of(*parts: int) -> int:
    """A key made of whole numbers in [0, 2^64): a seed, an epoch, the number of a purpose."""
    key = 0
    for part in parts:
        key = int(words(key, words(part, np.zeros(1)))[0])
    return key


def unit(key: int | np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1), multiples of 2^-53: times a whole number n <= 2^53 and rounded, still below n."""
    return (words(key, positions) >> np.uint64(11)) * 2.0**-53


def shuffled(positions: np.ndarray, sizes: np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """Where a random permutation of [0, size), of its own for each key, sends a position. Nothing is kept in memory.

    Up to 32: the rank of the position's random word. Else a Feistel network on the cells of a rectangle of at least
    `size` cells, repeated for those outside [0, size).

    Args:
        positions: int64 in [0, size), shape (n,).
        sizes: int64, 1 to 2^53, shape (n,).
        key: uint64, shape (n,), or one for all.

    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002, sections 4 and 5.

    >>> sorted(shuffled(np.arange(7), np.full(7, 7), key=5).tolist())
    [0, 1, 2, 3, 4, 5, 6]
    """
    keys = np.broadcast_to(np.asarray(key, np.uint64), positions.shape)
    few = sizes <= FEW
    if few.all():
        return _ranks(positions, sizes, keys)
    cells = positions.copy()
    cells[few] = _ranks(positions[few], sizes[few], keys[few])
    outside = np.flatnonzero(~few)
    while len(outside):
        cells[outside] = _moved(cells[outside], sizes[outside], keys[outside])
        outside = outside[cells[outside] >= sizes[outside]]
    return cells


def _ranks(positions: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    own, ranks = words(keys, positions), np.zeros_like(positions)
    for other in range(int(sizes.max(initial=0))):
        ranks += (words(keys, np.full_like(positions, other)) < own) & (other < sizes)
    return ranks


def _moved(cells: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    columns = np.ceil(np.sqrt(sizes)).astype(np.int64)
    rows = -(-sizes // columns)
    row, column = np.divmod(cells, columns)
    for turn in range(0, ROUNDS, 2):
        column = _turned(column, columns, words(keys, row * ROUNDS + turn))
        row = _turned(row, rows, words(keys, column * ROUNDS + turn + 1))
    return row * columns + column


def _turned(values: np.ndarray, modulus: np.ndarray, random: np.ndarray) -> np.ndarray:
    """values plus a random number in [0, modulus), modulo modulus."""
    shift = (random >> np.uint64(32)) * modulus.astype(np.uint64) >> np.uint64(32)
    turned = values + shift.astype(np.int64)
    return np.where(turned >= modulus, turned - modulus, turned)


class AliasTable:
    """Draws i with probability weights[i] / sum in two steps, however many there are.

    Bucket i, one of n of equal size, holds item i up to a threshold and one other item above. The buckets are filled by
    the sweep of Vose's method, but all at once: where it stands after i light and j heavy items depends on sums alone.

    Args:
        weights: float64, shape (n,), >= 0 and finite, the sum > 0 and finite.

    Source: Vose, A Linear Algorithm for Generating Random Numbers with a Given Distribution, 1991; the sums: Huebschle-
    Schneider and Sanders, Parallel Weighted Random Sampling, 2019, section 4.
    """

    def __init__(self, weights: np.ndarray) -> None:
        size = weights * (len(weights) / weights.sum())
        is_heavy = size >= 1
        is_heavy[size.argmax()] = True  # rounded, all may be just below
        heavy, light = np.flatnonzero(is_heavy), np.flatnonzero(~is_heavy)
        surplus = np.cumsum(size[heavy] - 1)
        room = np.concatenate([[0.0], np.cumsum(1 - size[light])])
        self.threshold = size
        self.other = np.arange(len(weights))
        filler = np.searchsorted(surplus, room[:-1], side="right")
        self.other[light] = heavy[np.minimum(filler, len(heavy) - 1)]
        # a heavy item with less than a bucket left is topped up by the next one; the last has nothing but its bucket
        left = 1 + surplus - room[np.minimum(np.searchsorted(room, surplus), len(light))]
        self.threshold[heavy] = left.clip(0, 1)
        self.other[heavy[:-1]] = heavy[1:]

    def draw(self, bucket: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Items, int64, from two independent uniform numbers in [0, 1) each."""
        i = (bucket * len(self.threshold)).astype(np.int64)
        return np.where(height < self.threshold[i], i, self.other[i])
