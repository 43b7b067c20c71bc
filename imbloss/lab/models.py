"""Small models for the loss test."""

import torch
from torch import Tensor, nn


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


MODELS = {"mlp": MLP, "cnn": CNN}
