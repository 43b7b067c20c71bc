"""Training on class-imbalanced data in PyTorch."""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imbloss import testing
from imbloss.data import (
    CMO,
    AugmentedDataset,
    ClassBalancedBatchSampler,
    CutMix,
    ImbalancedDatasetSampler,
    MixUp,
    RareClassTransform,
    ReMix,
    TextAugment,
    WeightedSampler,
    labels_of,
    oversample_text,
)
from imbloss.distributed import positive_count, valid_count
from imbloss.functional import (
    asymmetric_loss,
    balanced_softmax_loss,
    cross_entropy,
    focal_loss,
    lade_loss,
    lader,
    ldam_loss,
    logit_adjusted_loss,
    poly_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
    vs_loss,
)
from imbloss.modules import (
    LADER,
    AsymmetricLoss,
    BalancedSoftmaxLoss,
    CrossEntropy,
    FocalLoss,
    LADELoss,
    LDAMLoss,
    LogitAdjustedLoss,
    PolyLoss,
    PostCompensatedSoftmax,
    QualityFocalLoss,
    SigmoidFocalLoss,
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
from imbloss.sampling import (
    ADASYN,
    ROSE,
    SMOTE,
    SMOTEENN,
    SMOTENC,
    BorderlineSMOTE,
    EditedNearestNeighbours,
    FaissNeighbors,
    NearMiss,
    RandomOverSampler,
    RandomUnderSampler,
    SMOTETomek,
    TomekLinks,
    knn,
)

if TYPE_CHECKING:
    from imbloss.metrics import BalancedAccuracy, GeometricMean, ImbalanceReport, IndexBalancedAccuracy, ShotAccuracy

# What needs an extra is imported when it is asked for: name -> module.
_LAZY = dict.fromkeys(
    ("BalancedAccuracy", "GeometricMean", "ImbalanceReport", "IndexBalancedAccuracy", "ShotAccuracy"), "imbloss.metrics"
)

__all__ = [
    "ADASYN",
    "CMO",
    "LADER",
    "ROSE",
    "SMOTE",
    "SMOTEENN",
    "SMOTENC",
    "AsymmetricLoss",
    "AugmentedDataset",
    "BalancedAccuracy",
    "BalancedSoftmaxLoss",
    "BorderlineSMOTE",
    "ClassBalancedBatchSampler",
    "CrossEntropy",
    "CutMix",
    "EditedNearestNeighbours",
    "FaissNeighbors",
    "FocalLoss",
    "GeometricMean",
    "ImbalanceReport",
    "ImbalancedDatasetSampler",
    "IndexBalancedAccuracy",
    "LADELoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "MixUp",
    "NearMiss",
    "PolyLoss",
    "PostCompensatedSoftmax",
    "PriorTracker",
    "QualityFocalLoss",
    "RandomOverSampler",
    "RandomUnderSampler",
    "RareClassTransform",
    "ReMix",
    "SMOTETomek",
    "ShotAccuracy",
    "SigmoidFocalLoss",
    "TextAugment",
    "TomekLinks",
    "VSLoss",
    "WeightedSampler",
    "adjust_logits",
    "asymmetric_loss",
    "balanced_softmax_loss",
    "class_balanced_weights",
    "class_counts",
    "cross_entropy",
    "drw_weights",
    "estimate_prior",
    "focal_loss",
    "knn",
    "labels_of",
    "lade_loss",
    "lader",
    "ldam_loss",
    "logit_adjusted_loss",
    "oversample_text",
    "poly_loss",
    "positive_count",
    "quality_focal_loss",
    "set_debug",
    "sigmoid_focal_loss",
    "testing",
    "valid_count",
    "vs_loss",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'imbloss' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
