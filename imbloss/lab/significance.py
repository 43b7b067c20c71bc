"""Which differences between methods are real: a paired bootstrap over test samples."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imbloss.lab.scores import SCORES
from imbloss.metrics import margins

DRAWS = 2000
LEVEL = 0.95
_MOST_CELLS = 2**24  # of confusion matrices at once

# Rows of (truth, the baseline's answer, a method's answer, number of test samples): all that a comparison needs.
Joint = list[list[int]]


def joint_answers(truth: Tensor, baseline: Tensor, method: Tensor, num_classes: int) -> Joint:
    """Of one seed, from answers of shape (n,).

    >>> joint_answers(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), 2)
    [[0, 0, 0, 2], [1, 1, 0, 1]]
    """
    key = (truth.long() * num_classes + baseline) * num_classes + method
    cells, counts = torch.unique(key, return_counts=True)
    rows = [cells // num_classes**2, cells // num_classes % num_classes, cells % num_classes, counts]
    return torch.stack(rows, 1).tolist()


def vector_of_scores(confusion: Tensor) -> Tensor:
    """SCORES of confusion matrices (..., C, C), in order in a new last dimension."""
    found = margins.summary(margins.of_confusion(confusion))
    numbers = found["single"] | {"macro_f1": found["averages"]["macro"]["f1"]}
    return torch.stack([numbers[name] for name in SCORES], -1)


def paired_differences(joints: Sequence[Joint], num_classes: int, seed: int = 0) -> dict[str, dict[str, float | bool]]:
    """A method's scores minus the baseline's, and how far chance may have moved them.

    Test samples are drawn anew with replacement within each seed, the same for both methods, DRAWS times; a difference
    is the mean over seeds. It says what another test set would have said of these very models; how far another training
    would lie off, the deviation over seeds says.

    Args:
        joints: of each seed, see :func:`joint_answers`.

    Returns:
        For each of SCORES "difference", "low" and "high", the limits of the 95 % interval, and "real": whether 0 is
        outside of it.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).
    """
    generator = np.random.default_rng(seed)
    drawn = torch.zeros(DRAWS, len(SCORES), dtype=torch.float64)
    observed = torch.zeros(len(SCORES), dtype=torch.float64)
    for joint in joints:
        table = torch.tensor(joint)
        cells = [table[:, 0] * num_classes + table[:, answer] for answer in (1, 2)]  # of either's confusion matrix

        def difference(counts: Tensor, cells: list[Tensor] = cells) -> Tensor:
            of = []
            for cell in cells:
                confusion = torch.zeros(*counts.shape[:-1], num_classes**2, dtype=torch.float64)
                confusion.index_add_(-1, cell, counts)
                of.append(vector_of_scores(confusion.unflatten(-1, (num_classes, num_classes))))
            return of[1] - of[0]

        counts = table[:, 3].double()
        observed += difference(counts) / len(joints)
        samples = int(counts.sum())
        part = max(1, _MOST_CELLS // num_classes**2)
        for first in range(0, DRAWS, part):
            n = min(part, DRAWS - first)
            again = torch.from_numpy(generator.multinomial(samples, (counts / samples).numpy(), n)).double()
            drawn[first : first + n] += difference(again) / len(joints)
    # a class may be absent from a draw; its scores are then those of the others
    limits = torch.nanquantile(drawn, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64), dim=0)
    return {
        name: {
            "difference": float(observed[i]),
            "low": float(limits[0, i]),
            "high": float(limits[1, i]),
            "real": bool(limits[0, i] > 0 or limits[1, i] < 0),
        }
        for i, name in enumerate(SCORES)
    }
