"""What callers hand in, checked and flattened to rows: scores (n, C), classes or labels, weights. Nothing is changed in
place, and on a GPU nothing waits."""

import torch
from torch import Tensor

from imbloss.priors import can_look, check_labels, check_target, describe

IGNORED = -1  # the target of a row, or of an element of labels, that does not count


def check_scores(scores: Tensor, name: str = "preds") -> None:
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise TypeError(f"expected {name} to be a tensor of a floating dtype, but got {describe(scores)}")


def rows_of_classes(target: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    """Class indices (n,), int64, IGNORED where they do not count."""
    check_labels(target)
    ignored = IGNORED if ignore_index is None else ignore_index
    if ignore_index is None and can_look(target) and target.numel() and int(target.min()) < 0:
        raise IndexError(f"expected target in [0, {classes}), but got {int(target.min())}")
    check_target(target, classes, ignored)
    target = target.reshape(-1).long()
    return target if ignored == IGNORED else torch.where(target == ignored, IGNORED, target)


def rows_of_scores(preds: Tensor, target: Tensor, classes: int) -> Tensor:
    """(n, C) of (N, C, d1, ...) beside a target (N, d1, ...)."""
    wanted = (target.shape[0], classes, *target.shape[1:]) if target.dim() else (classes,)
    if tuple(preds.shape) != wanted:
        raise ValueError(f"expected preds of shape {wanted}, but got {tuple(preds.shape)}")
    return preds.movedim(1, -1).reshape(-1, classes) if preds.dim() > 2 else preds.reshape(-1, classes)


def rows_of_answers(preds: Tensor, target: Tensor, classes: int) -> Tensor:
    """Class indices (n,), int64, of predictions that are classes already."""
    if preds.shape != target.shape:
        raise ValueError(f"expected preds of shape {tuple(target.shape)}, but got {tuple(preds.shape)}")
    if can_look(preds) and preds.numel() and not (int(preds.min()) >= 0 and int(preds.max()) < classes):
        bad = int(preds.min()) if int(preds.min()) < 0 else int(preds.max())
        raise IndexError(f"expected preds in [0, {classes}), but got {bad}")
    return preds.reshape(-1).long()


def rows_of_labels(target: Tensor, classes: int, ignore_index: int | None, name: str = "target") -> Tensor:
    """Labels (n, C) of (N, C, d1, ...), int8: 0, 1, or IGNORED."""
    if not isinstance(target, Tensor) or target.is_floating_point() or target.is_complex():
        raise TypeError(f"expected {name} to be a tensor of an integer or bool dtype, but got {describe(target)}")
    if target.dim() < 2 or target.shape[1] != classes:
        raise ValueError(f"expected {name} of shape (N, {classes}, ...), but got {tuple(target.shape)}")
    flat = target.movedim(1, -1).reshape(-1, classes)
    ignored = torch.zeros_like(flat, dtype=torch.bool) if ignore_index is None else flat == ignore_index
    if can_look(flat):
        bad = ~ignored & (flat != 0) & (flat != 1)
        if bad.any():
            value = int(flat[bad][0])
            allowed = "0 or 1" if ignore_index is None else f"0, 1 or ignore_index={ignore_index}"
            raise ValueError(f"expected {name} of {allowed}, but got {value}")
    return torch.where(ignored, IGNORED, flat.to(torch.int8))


def rows_of_weights(weight: Tensor | None, target: Tensor, *, labels: bool = False) -> Tensor | None:
    """(n,), float64."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor) or weight.is_complex() or weight.dtype == torch.bool:
        raise TypeError(f"expected sample_weight to be a tensor of a real dtype, but got {describe(weight)}")
    wanted = (target.shape[0], *target.shape[2:]) if labels else tuple(target.shape)
    if tuple(weight.shape) == wanted[:1] and len(wanted) > 1:  # a weight for each sample, whose elements share it
        weight = weight.view(-1, *[1] * (len(wanted) - 1)).expand(wanted)
    if tuple(weight.shape) != wanted:
        raise ValueError(f"expected sample_weight of shape {wanted}, but got {tuple(weight.shape)}")
    weight = weight.detach().reshape(-1).double()
    if can_look(weight):
        bad = ~((weight >= 0) & (weight < torch.inf))
        if bad.any():
            index = int(bad.nonzero()[0])
            raise ValueError(f"expected sample_weight >= 0 and finite, but got {weight[index].item()} at index {index}")
    return weight


def are_probabilities(scores: Tensor, counted: Tensor, *, sum_to_one: bool) -> bool:
    """Whether the scores (n, C) of the rows, or elements, that count can be probabilities; NaN can."""
    counted = counted if counted.dim() == 2 else counted.unsqueeze(1)
    if bool(((scores < 0) | (scores > 1)).logical_and(counted).any()):
        return False
    if not sum_to_one:
        return True
    return not bool((((scores.float().sum(1, keepdim=True) - 1).abs() > 1e-2) & counted).any())


def answers(scores: Tensor) -> Tensor:
    """The class with the highest score (n,); C, no answer, where one is NaN."""
    top, answer = scores.max(1)  # NaN is the highest
    return torch.where(top.isnan(), scores.shape[1], answer)


def binary_answers(scores: Tensor, threshold: float) -> Tensor:
    """Class 1 where the score (n, 1) is above the threshold; 2, no answer, where it is NaN."""
    scores = scores.squeeze(1)
    return torch.where(scores.isnan(), 2, (scores > threshold).long())
