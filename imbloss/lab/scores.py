"""The numbers of the loss test, all from one confusion matrix (rows: truth)."""

import numpy as np

SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "g_mean": "G-mean",
    "worst_recall": "worst recall",
}


def confusion_matrix(y_true: np.ndarray, y_pred: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(y_true * num_classes + y_pred, minlength=num_classes**2).reshape(num_classes, num_classes)


def recalls(confusion: np.ndarray) -> np.ndarray:
    return np.diag(confusion) / confusion.sum(1)


def scores(confusion: np.ndarray) -> dict[str, float]:
    """Every class has samples in the test set; a class that is never predicted has F1 = 0."""
    recall = recalls(confusion)
    f1 = 2 * np.diag(confusion) / (confusion.sum(0) + confusion.sum(1))
    return {
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "g_mean": float(np.prod(recall) ** (1 / len(recall))),
        "worst_recall": float(recall.min()),
    }
