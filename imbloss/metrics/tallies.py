"""Sums over samples that processes and batches can add up: confusion, calibration, histograms of scores.

Each function adds rows to a float64 tensor in place. Unweighted, every addend is a multiple of 2^-26 and the sums are
exact up to a hundred million samples, so that neither order nor process changes a bit.
"""

import torch
from torch import Tensor

QUANTUM = 2.0**-26
REACH = 20.0  # log odds beyond +-REACH share the outermost bins


def log_odds(logits: Tensor) -> Tensor:
    """log p - log(1 - p) of the softmax, (n, C), which unlike p itself keeps its digits where p is nearly 1.

    In float64 and then rounded: sums over classes depend on the shape of the batch in their last digits, and equal rows
    must be equal whatever batch they came in.
    """
    logits = logits.double()
    top, at = logits.max(1, keepdim=True)
    shifted = logits - top
    others = shifted.exp().scatter_(1, at, 0.0)
    rest = others.sum(1, keepdim=True)
    return (shifted - (1 + rest - others).log_()).scatter_(1, at, -rest.log()).float()


def _weights(weight: Tensor | None, counted: Tensor) -> Tensor:
    counted = counted.double()
    if weight is None:
        return counted
    return counted * (weight if counted.dim() == 1 else weight.unsqueeze(1))


def _exact(values: Tensor) -> Tensor:
    return (values.double() / QUANTUM).round_() * QUANTUM


def add_confusion(confusion: Tensor, answer: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """(C, C + 1): rows the truth, the last column no answer."""
    columns = confusion.shape[1]
    counted = target >= 0
    cell = torch.where(counted, target * columns + answer, 0)
    confusion.view(-1).index_add_(0, cell, _weights(weight, counted))


def add_labels(margins: Tensor, answer: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """(4, C): hits, positives, predicted positives, elements that count."""
    counted = target >= 0
    w = _weights(weight, counted)
    positive, predicted = target == 1, answer == 1
    margins[0] += (w * (positive & predicted)).sum(0)
    margins[1] += (w * positive).sum(0)
    margins[2] += (w * predicted).sum(0)
    margins[3] += w.sum(0)


def _bin(confidence: Tensor, number: int) -> Tensor:
    """(0, 1/number] is the first, ((number - 1)/number, 1] the last."""
    return ((confidence * number).ceil().long() - 1).clamp_(0, number - 1)


def add_calibration(bins: Tensor, confidence: Tensor, hit: Tensor, weight: Tensor, labels: bool) -> None:
    """(1 or C, bins, 3): weight, confidence and hits."""
    kinds, number, _ = bins.shape
    safe = confidence.nan_to_num(nan=0.0)
    cell = _bin(safe, number)
    if labels:
        cell = cell + number * torch.arange(kinds, device=cell.device)
    addend = torch.stack([weight, weight * _exact(safe), weight * hit], -1)
    bins.view(-1, 3).index_add_(0, cell.reshape(-1), addend.reshape(-1, 3))


def calibration_error(bins: Tensor) -> Tensor:
    """Expected calibration error, the mean over labels: sum over bins of |confidence - hits| over all weight."""
    weight, confidence, hit = bins.unbind(-1)
    return ((confidence - hit).abs().sum(1) / weight.sum(1)).nanmean()


def calibration_errors(confidence: Tensor, hit: Tensor, weight: Tensor, number: int) -> Tensor:
    """The same of replicates, (replicates,), from confidences and hits (n,) and weights (replicates, n)."""
    gaps = torch.zeros(len(weight), number, dtype=weight.dtype, device=weight.device)
    gaps.index_add_(1, _bin(confidence.nan_to_num(nan=0.0), number), weight * (confidence.double() - hit.double()))
    return gaps.abs().sum(1) / weight.sum(1)


def add_brier(sums: Tensor, loss: Tensor, weight: Tensor) -> None:
    """(2,): squared errors, weight."""
    sums += torch.stack([(weight * _exact(loss.nan_to_num(nan=0.0))).sum(), weight.sum()])


def add_histogram(histogram: Tensor, odds: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """(C, bins, 2): negatives and positives by log odds. A target (n,) is a class, (n, C) are labels."""
    classes, number, _ = histogram.shape
    scale = number / (2 * REACH)
    cell = (odds.nan_to_num(nan=0.0).clamp(-REACH, REACH) * scale).add_(number / 2).to(torch.int32)
    cell = cell.clamp_(max=number - 1).mul_(2).add_(2 * number * torch.arange(classes, device=odds.device))
    if target.dim() == 2:
        w = _weights(weight, target >= 0)
        histogram.view(-1).index_add_(0, (cell + (target == 1)).reshape(-1), w.reshape(-1))
        return
    w = _weights(weight, target >= 0)
    # all are negatives, then the positives move
    histogram.view(-1).index_add_(0, cell.reshape(-1), w.unsqueeze(1).expand(odds.shape).reshape(-1))
    own = cell.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
    histogram.view(-1).index_add_(0, own, -w).index_add_(0, own + 1, w)


def histogram_areas(histogram: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """AUROC and average precision of each class (C,), the scores of a bin taken for equal, and bounds of their errors.

    A pair in two bins is in the right order and one in the same bin counts 1/2, so AUROC errs by at most half the
    share of such pairs. A positive's precision is lowest with the bin's negatives all above it, and highest with none.
    """
    negative, positive = histogram.flip(1).unbind(-1)  # from the highest score down
    tp, fp = positive.cumsum(1), negative.cumsum(1)
    all_tp, all_fp = tp[:, -1], fp[:, -1]
    pairs = all_tp * all_fp
    tied = (positive * negative).sum(1) / 2
    auroc = ((positive * (all_fp.unsqueeze(1) - fp)).sum(1) + tied) / pairs
    tp_above, fp_above = tp - positive, fp - negative
    there = positive > 0

    def total(values: Tensor) -> Tensor:
        return torch.where(there, values, 0).sum(1) / all_tp

    middle = total(positive * tp / (tp + fp))
    high = total(positive * tp / (tp + fp_above))
    low = total(positive - torch.where(fp > 0, fp * ((tp + fp) / (tp_above + fp)).log(), 0))
    auroc = torch.where(pairs > 0, auroc, torch.nan)
    return auroc, middle, torch.where(pairs > 0, tied / pairs, torch.nan), torch.maximum(high - middle, middle - low)
