"""Metrics for imbalanced data: functions of whole predictions, and torchmetrics' ``Metric`` s. Needs the extra
``metrics``."""

try:
    import torchmetrics as _  # noqa: F401
except ImportError as error:
    raise ImportError(f"imbloss.metrics needs its extra: pip install 'imbloss[metrics]' ({error})") from error

from imbloss.metrics.functional import (
    auroc,
    auroc_and_average_precision,
    average_precision,
    balanced_accuracy,
    brier_score,
    calibration_error,
    counts,
    geometric_mean,
    index_balanced_accuracy,
    shot_accuracy,
)
from imbloss.metrics.margins import Counts
from imbloss.metrics.report import ImbalanceReport
from imbloss.metrics.single import BalancedAccuracy, GeometricMean, IndexBalancedAccuracy, ShotAccuracy

__all__ = [
    "BalancedAccuracy",
    "Counts",
    "GeometricMean",
    "ImbalanceReport",
    "IndexBalancedAccuracy",
    "ShotAccuracy",
    "auroc",
    "auroc_and_average_precision",
    "average_precision",
    "balanced_accuracy",
    "brier_score",
    "calibration_error",
    "counts",
    "geometric_mean",
    "index_balanced_accuracy",
    "shot_accuracy",
]
