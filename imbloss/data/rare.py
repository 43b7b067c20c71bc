"""Any transform, applied the more often the rarer a sample's class is."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from imbloss.data.randomness import check_seed, global_seeds
from imbloss.priors import check_number, check_positive, check_vector, describe


def rarity(counts: Tensor | Sequence[float], strength: float) -> Tensor:
    """How often a class is augmented: clip(strength * (1 - n_c / n_max), 0, 1), float64 of shape (C,)."""
    counts = torch.as_tensor(counts)
    check_vector(counts, None, "counts", floating=False)
    check_positive(counts, "counts", zero=True)
    check_number(strength, "strength", least=0)
    if len(counts) == 0 or counts.max() == 0:
        raise ValueError(f"expected counts with at least one class that has samples, but got {counts.tolist()}")
    counts = counts.detach().double().cpu()
    return (strength * (1 - counts / counts.max())).clamp(0, 1)


def rarity_of(label: Any, probability: Tensor) -> float:
    """That of a label: a class index, or a 0/1 vector of classes, of which the rarest counts."""
    if not isinstance(label, Tensor):
        label = torch.as_tensor(label) if isinstance(label, int | np.integer | np.ndarray) else label
    if not isinstance(label, Tensor) or label.dim() > 1:
        raise TypeError(f"expected label to be a class index or a vector of 0 and 1, but got {describe(label)}")
    if label.dim() == 1:
        if label.shape != probability.shape or not ((label == 0) | (label == 1)).all():
            raise ValueError(
                f"expected label to be a class index or {len(probability)} numbers 0 and 1, but got {label.tolist()}"
            )
        return float((probability * label).max())
    if label.is_floating_point() or not 0 <= label < len(probability):
        raise ValueError(f"expected label in [0, {len(probability)}), but got {label.item()}")
    return float(probability[int(label)])


class RareClassTransform:
    r"""Applies a transform to a sample with a probability that grows with the rarity of its class.

    .. math:: P_c = \operatorname{clip}\left(s \left(1 - \frac{n_c}{n_{\max}}\right), 0, 1\right)

    The most frequent class is left alone; the rare ones, which would be memorised, are seen in ever new forms. It takes
    and returns (sample, label): it is what torchvision's data sets take as ``transforms``, and
    :class:`AugmentedDataset` puts it on any other.

    Args:
        transform: a callable of the sample: from torchvision.transforms.v2, kornia or your own.
        counts: training samples per class, shape (C,), >= 0.
        strength: s >= 0; above 1 classes of middling size are transformed always, too.

    Called with the sample and its label, a class index in [0, C) or, for several labels at once, a vector of 0 and 1
    of shape (C,), of which the rarest counts. The coin is torch's global generator, as in torchvision's transforms:
    each DataLoader worker has its own.

    Raises:
        TypeError, ValueError: a bad argument or label; the message names it.

    >>> augment = RareClassTransform(lambda image: image.flip(-1), counts=torch.tensor([1000, 1000, 1]), strength=2.0)
    >>> augment.probability
    tensor([0., 0., 1.], dtype=torch.float64)
    >>> augment(torch.tensor([1, 2]), 2)
    (tensor([2, 1]), 2)
    """

    def __init__(
        self, transform: Callable[[Any], Any], counts: Tensor | Sequence[float], strength: float = 1.0
    ) -> None:
        if not callable(transform):
            raise TypeError(f"expected transform to be callable, but got {describe(transform)}")
        self.transform = transform
        self.strength = strength
        self.probability = rarity(counts, strength)  # (C,)

    def __call__(self, sample: Any, label: Any) -> tuple[Any, Any]:
        if float(torch.rand((), dtype=torch.float64)) < rarity_of(label, self.probability):
            sample = self.transform(sample)
        return sample, label

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self.transform!r}, classes={len(self.probability)}, strength={self.strength})"


class AugmentedDataset(Dataset):
    """A data set whose samples go through a transform of (sample, label), repeatably.

    What happens to a sample depends on `seed`, the epoch and the sample's index alone, so results do not depend on the
    number of DataLoader workers. For that the global generators of torch, numpy and Python are seeded while the
    transform runs, and put back.

    Args:
        dataset: map-style, of (sample, label).
        transform: called with both, returns both; :class:`RareClassTransform`, for instance.
        seed: >= 0.

    Call :meth:`set_epoch` before each epoch, as for a DistributedSampler, lest each sees the same changes.

    >>> flip = RareClassTransform(lambda x: x.flip(-1), counts=[2, 1], strength=2.0)
    >>> data = [(torch.tensor([1, 2]), 0), (torch.tensor([3, 4]), 0), (torch.tensor([5, 6]), 1)]
    >>> AugmentedDataset(data, flip)[2]
    (tensor([6, 5]), 1)
    """

    def __init__(self, dataset: Any, transform: Callable[[Any, Any], tuple[Any, Any]], *, seed: int = 0) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(f"expected dataset to have __getitem__ and __len__, but got {describe(dataset)}")
        if not callable(transform):
            raise TypeError(f"expected transform to be callable, but got {describe(transform)}")
        check_seed(seed)
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Which changes come next; seen by workers that are running, too."""
        check_number(epoch, "epoch", least=0, whole=True)
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected index in [{-len(self)}, {len(self)}), but got {index}")
        index = index % len(self)
        sample, label = self.dataset[index]
        with global_seeds(self.seed, int(self._epoch), index):
            return self.transform(sample, label)
