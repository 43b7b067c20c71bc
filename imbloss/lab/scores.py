"""The numbers of the loss test, from imbloss.metrics. Confusion matrices have the truth in rows."""

import numpy as np
import torch
from torch import Tensor

from imbloss.metrics import ImbalanceReport, margins

SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "g_mean": "G-mean",
    "worst_recall": "worst recall",
}
# of the scores rather than of the answers
RANKING = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "ece": "calibration error",
    "brier": "Brier score",
}
LOWER_IS_BETTER = {"ece", "brier"}


def confusion_matrix(y_true: np.ndarray, y_pred: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(y_true * num_classes + y_pred, minlength=num_classes**2).reshape(num_classes, num_classes)


def recalls(confusion: np.ndarray) -> np.ndarray:
    return np.diag(confusion) / confusion.sum(1)


def rare_recall(confusion: np.ndarray, train_counts: list[int]) -> float:
    """Mean recall of the third of the classes (rounded down, at least one) that training saw least of."""
    rarest = np.argsort(train_counts, kind="stable")[: max(1, len(train_counts) // 3)]
    return float(recalls(confusion)[rarest].mean())


def scores(confusion: np.ndarray) -> dict[str, float]:
    """SCORES; every class has samples in the test set; a class that is never predicted has F1 = 0."""
    found = margins.summary(margins.of_confusion(torch.as_tensor(confusion)))
    numbers = found["single"] | {"macro_f1": found["averages"]["macro"]["f1"]}
    return {name: float(numbers[name]) for name in SCORES}


def evaluate(logits: Tensor, target: Tensor) -> dict:
    """Of a test set: "scores", all of them, RANKING as macro means of one class against the rest; "confusion"; and
    "calibration": of each bin of confidence its samples, the sum of their confidences, and their hits."""
    classes = logits.shape[1]
    report = ImbalanceReport(classes, scores="logits")
    report.update(logits, target)
    found = report.findings()
    confusion = found["confusion"][:, :classes].long()
    ranking = {name: float(found["single"][name]) for name in RANKING}
    return {
        "scores": scores(confusion.numpy()) | ranking,
        "confusion": confusion.tolist(),
        "calibration": found["calibration"][0].tolist(),
    }
