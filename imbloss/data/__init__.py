"""Which samples a DataLoader draws, and rare classes seen in ever new forms."""

from imbloss.data.image import CMO, CutMix, MixUp, ReMix
from imbloss.data.labels import labels_of
from imbloss.data.rare import AugmentedDataset, RareClassTransform
from imbloss.data.samplers import ClassBalancedBatchSampler, ImbalancedDatasetSampler, WeightedSampler
from imbloss.data.text import TextAugment, oversample_text

__all__ = [
    "CMO",
    "AugmentedDataset",
    "ClassBalancedBatchSampler",
    "CutMix",
    "ImbalancedDatasetSampler",
    "MixUp",
    "RareClassTransform",
    "ReMix",
    "TextAugment",
    "WeightedSampler",
    "labels_of",
    "oversample_text",
]
