"""Training on class-imbalanced data in PyTorch."""

__version__ = "0.1.0"

from imbloss import testing
from imbloss.distributed import positive_count, valid_count
from imbloss.functional import (
    balanced_softmax_loss,
    cross_entropy,
    focal_loss,
    lade_loss,
    lader,
    ldam_loss,
    logit_adjusted_loss,
    poly_loss,
    vs_loss,
)
from imbloss.modules import (
    LADER,
    BalancedSoftmaxLoss,
    CrossEntropy,
    FocalLoss,
    LADELoss,
    LDAMLoss,
    LogitAdjustedLoss,
    PolyLoss,
    PostCompensatedSoftmax,
    VSLoss,
)
from imbloss.priors import (
    PriorTracker,
    adjust_logits,
    class_balanced_weights,
    class_counts,
    drw_weights,
    estimate_prior,
    set_debug,
)

__all__ = [
    "LADER",
    "BalancedSoftmaxLoss",
    "CrossEntropy",
    "FocalLoss",
    "LADELoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "PolyLoss",
    "PostCompensatedSoftmax",
    "PriorTracker",
    "VSLoss",
    "adjust_logits",
    "balanced_softmax_loss",
    "class_balanced_weights",
    "class_counts",
    "cross_entropy",
    "drw_weights",
    "estimate_prior",
    "focal_loss",
    "lade_loss",
    "lader",
    "ldam_loss",
    "logit_adjusted_loss",
    "poly_loss",
    "positive_count",
    "set_debug",
    "testing",
    "valid_count",
    "vs_loss",
]
