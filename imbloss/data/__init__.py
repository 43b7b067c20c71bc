"""Rare classes seen in ever new forms."""

from imbloss.data.image import CMO, CutMix, MixUp, ReMix
from imbloss.data.rare import AugmentedDataset, RareClassTransform
from imbloss.data.text import TextAugment, oversample_text

__all__ = [
    "CMO",
    "AugmentedDataset",
    "CutMix",
    "MixUp",
    "RareClassTransform",
    "ReMix",
    "TextAugment",
    "oversample_text",
]
