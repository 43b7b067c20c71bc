"""Cases of augmentation: a batch beside the training step that it precedes, and texts beside splitting them."""

import torch

import imbloss
from benchmarks.cases import Call, Case, Provider

CLASSES = 10


def _values(function: Provider, *inputs: torch.Tensor) -> Call:
    return lambda: function(*inputs)


def _step() -> Provider:
    """Forward, backward and Adam."""
    state = []

    def step(x, y):
        if not state:
            from imbloss.lab.models import CNN

            network = CNN(tuple(x.shape[1:]), CLASSES)
            state.extend([network, torch.optim.Adam(network.parameters())])
        network, optimizer = state
        optimizer.zero_grad()
        imbloss.cross_entropy(network(x), y).backward()
        optimizer.step()

    return step


def batch_case(name: str, make, rows: int, shape: tuple[int, ...]) -> Case:
    mixes = []

    def mix(x, y):
        if not mixes:
            mixes.append(make(torch.tensor([2 ** (CLASSES - c) for c in range(CLASSES)])))
        mixes[0](x, y)

    def inputs():
        return torch.rand(rows, *shape), torch.randint(CLASSES, (rows,))

    providers = {"imbloss": mix, "a step of LeNet": _step()}
    return Case(
        name, f"{rows}x{'x'.join(map(str, shape))}", inputs, providers, work=_values, section="augmentation",
        copies=False, gradient=False,
    )  # fmt: skip


def text_case(method: str, **options) -> Case:
    """A thousand texts of 60 words."""
    text = " ".join(["grain", "prices", "fell", "sharply", "in", "chicago"] * 10)

    def provider() -> Provider:
        augment = imbloss.TextAugment(method, **options)

        def change(_):
            for _ in range(1000):
                augment(text)

        return change

    def split(_):
        for _ in range(1000):
            " ".join(text.split())

    providers = {"imbloss": provider(), "splitting alone": split}
    title = f"TextAugment {method}" + ("".join(f" {name}" for name in options.get("operations", ())))
    return Case(
        title, "1000 texts of 60 words", lambda: (torch.zeros(1),), providers, work=_values, section="augmentation",
        copies=False, gradient=False,
    )  # fmt: skip


AUGMENTATION = [
    batch_case(name, make, rows, shape)
    for rows, shape in ((64, (1, 28, 28)), (128, (3, 32, 32)))
    for name, make in (
        ("MixUp", lambda counts: imbloss.MixUp(CLASSES, seed=0)),
        ("CutMix", lambda counts: imbloss.CutMix(CLASSES, seed=0)),
        ("ReMix", lambda counts: imbloss.ReMix(counts, seed=0)),
        ("CMO", lambda counts: imbloss.CMO(counts, seed=0)),
    )
] + [text_case("eda", operations=("swap", "delete")), text_case("aeda")]
