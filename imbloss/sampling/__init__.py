"""Resampling on tensors: exact neighbours, SMOTE and its relatives, cleaning. `imblearn` has the scikit-learn face."""

from imbloss.sampling.bootstrap import ROSE, RandomOverSampler
from imbloss.sampling.combine import SMOTEENN, SMOTETomek
from imbloss.sampling.faiss import FaissNeighbors
from imbloss.sampling.neighbors import knn
from imbloss.sampling.nominal import SMOTENC
from imbloss.sampling.smote import ADASYN, SMOTE, BorderlineSMOTE
from imbloss.sampling.under import EditedNearestNeighbours, NearMiss, RandomUnderSampler, TomekLinks

__all__ = [
    "ADASYN",
    "ROSE",
    "SMOTE",
    "SMOTEENN",
    "SMOTENC",
    "BorderlineSMOTE",
    "EditedNearestNeighbours",
    "FaissNeighbors",
    "NearMiss",
    "RandomOverSampler",
    "RandomUnderSampler",
    "SMOTETomek",
    "TomekLinks",
    "knn",
]
