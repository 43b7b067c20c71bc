"""Small models for the loss test, made of the shape of a sample and the number of classes."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from imbloss.lab.data import Data


class Linear(nn.Sequential):
    """features - classes: logistic regression."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(int(torch.Size(shape).numel()), num_classes))


class MLP(nn.Sequential):
    """features - 128 - classes, ReLU."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        features = int(torch.Size(shape).numel())
        super().__init__(nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, num_classes))


class CNN(nn.Module):
    """LeNet: conv 6 5x5, pool, conv 16 5x5, pool, 120 - 84 - classes, ReLU. Images under 20 pixels are padded."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"expected images of shape (channels, height, width) for the cnn, but got {shape}")
        if min(shape[1:]) < 4:
            raise ValueError(f"expected images of at least 4 x 4 pixels for the cnn, but got {shape[1]} x {shape[2]}")
        padding = 0 if min(shape[1:]) >= 20 else 2
        self.features = nn.Sequential(
            nn.Conv2d(shape[0], 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        with torch.no_grad():
            width = self.features(torch.zeros(1, *shape)).shape[1]
        self.head = nn.Sequential(
            nn.Linear(width, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Bag(nn.Module):
    """Bag of embeddings: the mean of a text's words' vectors, of 64 numbers, - classes. The shape is (words,)."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(shape[0], 64, mode="mean", padding_idx=0)
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x))


MODELS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "mlp": MLP, "cnn": CNN, "linear": Linear, "bag": Bag,
}  # fmt: skip


def default_model(data: Data) -> str:
    """bag for texts, cnn for images of 20 pixels and more, else mlp."""
    if data.kind == "text":
        return "bag"
    return "cnn" if data.kind == "image" and min(data.x_train.shape[2:]) >= 20 else "mlp"


def make_model(name: str, data: Data) -> nn.Module:
    """A fresh model by its name in MODELS, or "module:function", called with a sample's shape (of texts the number of
    words in the vocabulary) and the number of classes.

    Raises:
        ValueError: no such model, or one for another kind of data.
    """
    if name in MODELS:
        make = MODELS[name]
        if (name == "bag") != (data.kind == "text"):
            raise ValueError(f"expected a model for {data.kind} data, but got {name!r}")
    else:
        module, colon, function = name.partition(":")
        if not colon:
            raise ValueError(f"expected model among {', '.join(MODELS)} or module:function, but got {name!r}")
        try:
            make = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"expected model {name!r} to be importable, but: {error}") from error
    shape = (len(data.vocabulary),) if data.vocabulary else tuple(data.x_train.shape[1:])
    return make(shape, data.num_classes)
