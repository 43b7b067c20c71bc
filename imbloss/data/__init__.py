"""Which samples a DataLoader draws, and how often."""

from imbloss.data.labels import labels_of
from imbloss.data.samplers import ClassBalancedBatchSampler, ImbalancedDatasetSampler, WeightedSampler

__all__ = ["ClassBalancedBatchSampler", "ImbalancedDatasetSampler", "WeightedSampler", "labels_of"]
