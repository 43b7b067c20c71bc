"""Whole training steps with the loss written by hand and with imbloss's: time, the loss's share of it, peak memory.

The networks are small on purpose: a loss that matters in them may not matter in a larger one, and its share says so.
"""

import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imbloss
from benchmarks.cases import focal
from benchmarks.measure import in_own_process, peak_of_call


@dataclass(frozen=True)
class Workload:
    title: str
    # -> network, its input, the targets
    build: Callable[[], tuple[nn.Module, Tensor, Tensor]]
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]]  # "eager" by hand, "imbloss"


class Tokens(nn.Module):
    """Two layers of a transformer and a head over the vocabulary: logits of (batch * length, vocabulary)."""

    def __init__(self, vocabulary: int, width: int = 256):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(tokens))).flatten(0, 1)


class Segmenter(nn.Module):
    """Four convolutions at an eighth of the size and an upsampling: logits of (batch, classes, height, width)."""

    def __init__(self, classes: int, width: int = 64):
        super().__init__()
        steps = [nn.Conv2d(a, width, 3, stride=2, padding=1) for a in (3, width, width)]
        self.body = nn.Sequential(*(layer for step in steps for layer in (step, nn.ReLU())))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.head(self.body(images)), scale_factor=8, mode="bilinear")


class Detector(nn.Module):
    """A RetinaNet-like classification head on one level: logits of (batch, anchors * classes, height, width)."""

    def __init__(self, classes: int, anchors: int = 9, width: int = 64):
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, anchors * classes, 3, padding=1)
        )
        nn.init.constant_(self.head[-1].bias, -math.log(99))  # the paper's prior of 0.01

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features)


def segmentation():
    return Segmenter(19), torch.randn(4, 3, 256, 512), torch.randint(19, (4, 256, 512))


def language_model():
    tokens = torch.randint(32000, (8, 256))
    return Tokens(32000), tokens, tokens.roll(-1, 1).flatten()


def detection():
    return Detector(80), torch.randn(2, 64, 64, 64), (torch.rand(2, 720, 64, 64) < 1e-4).float()


def sigmoid_focal(x: Tensor, y: Tensor) -> Tensor:
    p = x.sigmoid()
    ce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    q = p * (1 - y) + (1 - p) * y
    return ((0.25 * y + 0.75 * (1 - y)) * q**2 * ce).sum() / y.sum().clamp(min=1)


WORKLOADS = {
    "segmentation": Workload(
        "segmentation, 19 classes, 4 images of 256x512, focal loss",
        segmentation,
        {"eager": focal(), "imbloss": imbloss.focal_loss},
    ),
    "language model": Workload(
        "language model, 32000 classes, 2048 tokens, cross entropy",
        language_model,
        {"eager": F.cross_entropy, "imbloss": imbloss.cross_entropy},
    ),
}
if hasattr(imbloss, "sigmoid_focal_loss"):
    WORKLOADS["detection"] = Workload(
        "detection head, 80 classes, 73728 anchors, sigmoid focal loss",
        detection,
        {
            "eager": sigmoid_focal,
            "imbloss": lambda x, y: imbloss.sigmoid_focal_loss(x, y, reduction="sum") / y.sum().clamp(min=1),
        },
    )


def trainer(workload: Workload, provider: str) -> Callable[[], tuple[float, float]]:
    """A function that makes a step and returns its seconds, and those of the loss's forward and backward in it."""
    torch.manual_seed(0)
    model, x, y = workload.build()
    loss = workload.losses[provider]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step():
        start = time.perf_counter()
        optimizer.zero_grad()
        logits = model(x)
        leaf = logits.detach().requires_grad_()  # cut here to time the loss by itself
        before = time.perf_counter()
        loss(leaf, y).backward()
        in_loss = time.perf_counter() - before
        logits.backward(leaf.grad)
        optimizer.step()
        return time.perf_counter() - start, in_loss

    return step


def _check_agreement(workload: Workload) -> None:
    torch.manual_seed(0)
    model, x, y = workload.build()
    with torch.no_grad():
        logits = model(x)
        ours, by_hand = (workload.losses[name](logits, y) for name in ("imbloss", "eager"))
    torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=0)


def timed(name: str, rounds: int) -> dict:
    """A workload's entry in the results: providers take turns step by step."""
    workload = WORKLOADS[name]
    _check_agreement(workload)
    steps = {provider: trainer(workload, provider) for provider in workload.losses}
    taken = {provider: [] for provider in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for provider, step in steps.items():
            taken[provider].append(step())
    median = functools.partial(map, statistics.median)
    entry = {"title": workload.title, "rounds": rounds, "providers": {}}
    for provider, pairs in taken.items():
        whole, in_loss = median(zip(*pairs, strict=True))
        peak = in_own_process("benchmarks.train_step", name, provider, IMBLOSS_KEEP_MB="0")
        entry["providers"][provider] = {"step": round(whole, 6), "loss": round(in_loss, 6), "peak": peak}
    return entry


def _main(name: str, provider: str) -> None:
    step = trainer(WORKLOADS[name], provider)
    for _ in range(2):
        step()
    print(json.dumps(peak_of_call(step)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
