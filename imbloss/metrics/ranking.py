"""Exact one-vs-rest AUROC and average precision of all classes by one batched sort.

Without weights the key that is sorted holds the score and, in its lowest bit, whether the sample is a positive: values
are sorted, not indices, and everything after that looks at the positives alone. With weights, or in float64, indices
are sorted. Sums are of integers, or on a CPU in float64 in the order of the scores: the order of unweighted samples
changes no bit.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 2**22  # keys that are sorted at a time, a bound on memory: 40 to 95 bytes a key, 160 with weights
SIGN = -(2**31)


def auroc_and_average_precision(
    scores: Tensor, positive: Tensor, weight: Tensor | None = None, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Of each class, float64 (C,): the probability that a positive's score is above a negative's plus half that of a
    tie; and precision at the score of each positive, averaged over positives.

    Args:
        scores: (N, C), floating; infinities are scores like others.
        positive: (N,), the index of the class that a sample is of; or (N, C), bool.
        weight: (N,) or (N, C), >= 0 and finite; a weight of 0 is no sample.
        chunk: about as many scores are sorted at a time, classes by classes.

    A class with a NaN among its scores, without a positive, or (AUROC alone) without a negative, is NaN.
    """
    rows, classes = scores.shape
    auroc, precision = (torch.full((classes,), torch.nan, dtype=torch.float64, device=scores.device) for _ in "ab")
    if rows == 0:
        return auroc, precision
    rank = _ranked if weight is None and scores.dtype != torch.float64 else _ranked_by_index
    step = max(1, chunk // rows)
    for start in range(0, classes, step):
        part = slice(start, min(start + step, classes))
        auroc[part], precision[part] = rank(*_class_rows(scores, positive, part), _weight_rows(weight, part))
    broken = scores.isnan().any(0)
    return auroc.masked_fill_(broken, torch.nan), precision.masked_fill_(broken, torch.nan)


def _class_rows(scores: Tensor, positive: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Integers in the order of the scores, (classes, N) and contiguous, and (row, column) of the positives or (row, N)
    where they are a matrix."""
    scores = scores[:, part].detach().T
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    rows = torch.empty(scores.shape, dtype=wide, device=scores.device)
    torch.add(scores, 0.0, out=rows)  # -0.0, which equals 0.0, becomes 0.0
    bits = rows.view(torch.int64 if wide == torch.float64 else torch.int32)
    largest = torch.iinfo(bits.dtype).max
    # the bits of a negative float grow with its magnitude
    ordered = bits ^ ((bits >> (bits.element_size() * 8 - 1)) & largest)
    if positive.dim() == 2:
        return ordered, positive[:, part].T
    return ordered, positive - part.start


def _weight_rows(weight: Tensor | None, part: slice) -> Tensor | None:
    if weight is None:
        return None
    return weight.double().unsqueeze(0) if weight.dim() == 1 else weight[:, part].T.double()


def _set_positive(keys: Tensor, positive: Tensor) -> None:
    if positive.dim() == 2:
        keys |= positive
        return
    columns = ((positive >= 0) & (positive < len(keys))).nonzero().squeeze(1)
    keys[positive[columns], columns] += 1


def _ranked(ordered: Tensor, positive: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    """Without weights; see above."""
    classes, n = ordered.shape
    low, high = (int(value) for value in ordered.aminmax())
    if high - low < 2**31:  # probabilities, their logarithms, anything between -2 and 2: 32 bits do
        keys = (ordered - low) << 1
        _set_positive(keys, positive)
        keys ^= SIGN
    else:
        keys = ordered.long() << 1
        _set_positive(keys, positive)
    keys = _sort(keys).view(-1)
    at = (keys & 1).nonzero().squeeze(1)  # the positives, class by class, from their lowest score
    row = at // n
    positives = torch.bincount(row, minlength=classes)
    before = (positives.cumsum(0) - positives)[row]  # positives of earlier classes
    number = torch.arange(len(at), device=at.device) - before
    value = keys[at] >> 1
    first = torch.ones_like(at, dtype=torch.bool)  # of its score among the positives
    first[1:] = (value[1:] != value[:-1]) | (row[1:] != row[:-1])
    tied = first & (at > row * n) & ((keys[(at - 1).clamp(min=0)] >> 1) == value)  # with negatives, which come first
    start = at.clone()  # of its score among all
    start[tied] = _starts(keys, n, at[tied])
    leader = torch.where(first, torch.arange(len(at), device=at.device), 0).cummax(0).values
    start, first_number, at = start[leader] - row * n, number[leader], at - row * n
    # negatives below, twice, and once more those with the same score: an integer
    above = torch.zeros_like(positives).index_add_(0, row, (start - first_number) + (at - number))
    pairs = 2 * positives.double() * (n - positives)
    auroc = torch.where(pairs > 0, above / pairs, torch.nan)
    precision = (positives[row] - first_number) / (n - start).double()
    precision = _sum_rows(precision, row, classes) / positives
    return auroc, torch.where(positives > 0, precision, torch.nan)


def _sort(keys: Tensor) -> Tensor:
    if keys.device.type == "cpu":
        keys.numpy().sort(-1)  # in place, without indices: torch's takes twice as long
        return keys
    return keys.sort(-1).values


def _starts(keys: Tensor, n: int, at: Tensor) -> Tensor:
    """The first positions of the scores at these positions, ascending, of rows of n sorted keys."""
    if len(at) == 0:
        return at
    value = keys >> 1
    new = torch.ones_like(value, dtype=torch.bool)
    torch.ne(value[1:], value[:-1], out=new[1:])
    new[::n] = True
    starts = new.nonzero().squeeze(1)
    return starts[torch.searchsorted(starts, at, right=True) - 1]


def _sum_rows(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """One after the other: the same sum whatever the threads."""
    if values.device.type == "cpu":
        return torch.bincount(row, values, minlength=rows)
    return torch.zeros(rows, dtype=values.dtype, device=values.device).index_add_(0, row, values)


# ---- with weights ------------------------------------------------------------------------------------------------
def _order(ordered: Tensor) -> Tensor:
    """Indices of rows from the highest to the lowest."""
    return (~ordered).argsort(-1)


def _ranked_by_index(ordered: Tensor, positive: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    classes, n = ordered.shape
    is_positive = torch.zeros(ordered.shape, dtype=torch.uint8, device=ordered.device)
    _set_positive(is_positive, positive)
    order = _order(ordered)
    value, is_positive = ordered.gather(1, order), is_positive.gather(1, order)
    weight = torch.ones((), dtype=torch.float64) if weight is None else weight.expand(classes, n).gather(1, order)
    positives = (weight * is_positive).cumsum(1)
    negatives = (weight * (1 - is_positive)).cumsum(1)
    ends = torch.ones_like(value, dtype=torch.bool)
    torch.ne(value[:, 1:], value[:, :-1], out=ends[:, :-1])
    row, end = ends.nonzero().unbind(1)
    return areas(positives, negatives, row, end)


def areas(positives: Tensor, negatives: Tensor, row: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """AUROC and average precision of weights summed from the highest score down, (classes, N), whose scores end at
    these (row, column), in order."""
    classes = len(positives)
    tp, fp = positives[row, end], negatives[row, end]
    new_row = torch.ones_like(row, dtype=torch.bool)
    new_row[1:] = row[1:] != row[:-1]
    d_tp, fp_above = (torch.where(new_row, 0, t.roll(1)) for t in (tp, fp))
    d_tp = tp - d_tp
    all_tp, all_fp = positives[:, -1], negatives[:, -1]
    below = _sum_rows(d_tp * (all_fp[row] - (fp_above + fp) / 2), row, classes)
    precision = _sum_rows(torch.where(d_tp > 0, d_tp * tp / (tp + fp), 0), row, classes)
    auroc = torch.where((all_tp > 0) & (all_fp > 0), below / (all_tp * all_fp), torch.nan)
    return auroc, torch.where(all_tp > 0, precision / all_tp, torch.nan)


def curves(scores: Tensor, positive: Tensor, weight: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """For each class the weights of true and of false positives at each of its scores, from the highest down."""
    for c in range(scores.shape[1]):
        part = slice(c, c + 1)
        ordered, own = _class_rows(scores, positive, part)
        is_positive = torch.zeros(ordered.shape, dtype=torch.uint8, device=ordered.device)
        _set_positive(is_positive, own)
        order = _order(ordered)[0]
        value, is_positive = ordered[0][order], is_positive[0][order]
        w = _weight_rows(weight, part)
        w = torch.ones(len(value), dtype=torch.float64, device=value.device) if w is None else w[0][order]
        end = torch.ones_like(value, dtype=torch.bool)
        torch.ne(value[1:], value[:-1], out=end[:-1])
        yield (w * is_positive).cumsum(0)[end], (w * (1 - is_positive)).cumsum(0)[end]
