"""What the loss test may do to the samples of a batch, by the kind of data."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import imbloss
from imbloss.lab.data import Data

# Indices of training samples -> features, and class indices or probabilities.
Batches = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Augmentation:
    title: str
    make: Callable[[Data, int], Batches]  # of the data and a seed
    kinds: tuple[str, ...] = ("image", "table", "text")  # of data it makes sense for
    soft: bool = False  # whether targets are probabilities


def plain(data: Data, seed: int) -> Batches:
    return lambda batch: (data.x_train[batch], data.y_train[batch])


def _mixed(make: Callable[[Data, int], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]):
    def of_data(data: Data, seed: int) -> Batches:
        mix = make(data, seed)
        return lambda batch: mix(data.x_train[batch], data.y_train[batch])

    return of_data


def _cmo(data: Data, seed: int) -> Batches:
    """Foregrounds from all of the training set, as the paper has it."""
    cmo = imbloss.CMO(data.train_counts, seed=seed)
    weights = cmo.weights(data.y_train)
    generator = torch.Generator().manual_seed(seed)

    def batches(batch: Tensor) -> tuple[Tensor, Tensor]:
        front = torch.multinomial(weights, len(batch), replacement=True, generator=generator)
        foreground = data.x_train[front], data.y_train[front]
        return cmo(data.x_train[batch], data.y_train[batch], foreground=foreground)

    return batches


def _rare_shifts(data: Data, seed: int) -> Batches:
    """Images of rare classes moved by up to an eighth of their size, and mirrored never: digits have a direction."""
    generator = torch.Generator().manual_seed(seed)
    height, width = data.x_train.shape[-2:]

    def shift(image: Tensor) -> Tensor:
        reach = max(1, min(height, width) // 8)
        top, left = (int(torch.randint(0, 2 * reach + 1, (), generator=generator)) for _ in range(2))
        padded = torch.nn.functional.pad(image, (reach,) * 4)
        return padded[..., top : top + height, left : left + width]

    augment = imbloss.RareClassTransform(shift, data.train_counts)

    def batches(batch: Tensor) -> tuple[Tensor, Tensor]:
        y = data.y_train[batch]
        with torch.random.fork_rng(devices=[]):  # of RareClassTransform, from this generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            x = [augment(image, label)[0] for image, label in zip(data.x_train[batch], y, strict=True)]
        return torch.stack(x), y

    return batches


def _text(method: str):
    def of_data(data: Data, seed: int) -> Batches:
        augment = imbloss.TextAugment(method, counts=data.train_counts, seed=seed)
        vocabulary = data.vocabulary
        assert vocabulary is not None  # texts have one
        labels = data.y_train.tolist()

        def batches(batch: Tensor) -> tuple[Tensor, Tensor]:
            changed = [augment(data.texts[i], labels[i]) for i in batch.tolist()]
            return vocabulary.encode(changed), data.y_train[batch]

        return batches

    return of_data


AUGMENTATIONS = {
    "none": Augmentation("", plain),
    "rare": Augmentation("shifts of rare classes", _rare_shifts, ("image",)),
    "mixup": Augmentation(
        "MixUp", _mixed(lambda data, seed: imbloss.MixUp(data.num_classes, seed=seed)), ("image", "table"), soft=True
    ),
    "cutmix": Augmentation(
        "CutMix", _mixed(lambda data, seed: imbloss.CutMix(data.num_classes, seed=seed)), ("image",), soft=True
    ),
    "remix": Augmentation(
        "ReMix", _mixed(lambda data, seed: imbloss.ReMix(data.train_counts, seed=seed)), ("image", "table"), soft=True
    ),
    "cmo": Augmentation("CMO", _cmo, ("image",), soft=True),
    "eda": Augmentation("EDA of rare classes", _text("eda"), ("text",)),
    "aeda": Augmentation("AEDA of rare classes", _text("aeda"), ("text",)),
}
