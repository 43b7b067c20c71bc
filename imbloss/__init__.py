"""Training on class-imbalanced data in PyTorch."""

__version__ = "0.1.0"

from imbloss import testing
from imbloss.functional import (
    balanced_softmax_loss,
    cross_entropy,
    focal_loss,
    ldam_loss,
    logit_adjusted_loss,
    poly_loss,
    vs_loss,
)
from imbloss.modules import BalancedSoftmaxLoss, CrossEntropy, FocalLoss, LDAMLoss, LogitAdjustedLoss, PolyLoss, VSLoss
from imbloss.priors import adjust_logits, class_balanced_weights, class_counts, drw_weights, set_debug

__all__ = [
    "BalancedSoftmaxLoss",
    "CrossEntropy",
    "FocalLoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "PolyLoss",
    "VSLoss",
    "adjust_logits",
    "balanced_softmax_loss",
    "class_balanced_weights",
    "class_counts",
    "cross_entropy",
    "drw_weights",
    "focal_loss",
    "ldam_loss",
    "logit_adjusted_loss",
    "poly_loss",
    "set_debug",
    "testing",
    "vs_loss",
]
