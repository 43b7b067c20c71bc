"""Training on class-imbalanced data in PyTorch."""

__version__ = "0.1.0"

from imbloss import testing
from imbloss.functional import (
    asymmetric_loss,
    balanced_softmax_loss,
    cross_entropy,
    focal_loss,
    ldam_loss,
    logit_adjusted_loss,
    poly_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
    vs_loss,
)
from imbloss.modules import (
    AsymmetricLoss,
    BalancedSoftmaxLoss,
    CrossEntropy,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    PolyLoss,
    QualityFocalLoss,
    SigmoidFocalLoss,
    VSLoss,
)
from imbloss.priors import adjust_logits, class_balanced_weights, class_counts, drw_weights

__all__ = [
    "AsymmetricLoss",
    "BalancedSoftmaxLoss",
    "CrossEntropy",
    "FocalLoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "PolyLoss",
    "QualityFocalLoss",
    "SigmoidFocalLoss",
    "VSLoss",
    "adjust_logits",
    "asymmetric_loss",
    "balanced_softmax_loss",
    "class_balanced_weights",
    "class_counts",
    "cross_entropy",
    "drw_weights",
    "focal_loss",
    "ldam_loss",
    "logit_adjusted_loss",
    "poly_loss",
    "quality_focal_loss",
    "sigmoid_focal_loss",
    "testing",
    "vs_loss",
]
