"""Training on class-imbalanced data in PyTorch."""

__version__ = "0.1.0"

from imbloss import testing
from imbloss.functional import balanced_softmax_loss, cross_entropy, focal_loss, logit_adjusted_loss
from imbloss.modules import BalancedSoftmaxLoss, CrossEntropy, FocalLoss, LogitAdjustedLoss
from imbloss.priors import adjust_logits, class_balanced_weights, class_counts

__all__ = [
    "BalancedSoftmaxLoss",
    "CrossEntropy",
    "FocalLoss",
    "LogitAdjustedLoss",
    "adjust_logits",
    "balanced_softmax_loss",
    "class_balanced_weights",
    "class_counts",
    "cross_entropy",
    "focal_loss",
    "logit_adjusted_loss",
    "testing",
]
