"""Draws docs/img/loss_*.svg, a figure for each section of losses.md, from the library: `python docs/plots.py`."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch

import imbloss

FOLDER = Path(__file__).parent / "img"
COUNTS = torch.tensor([90, 10])
PRIOR = torch.tensor([0.9, 0.1])
X = torch.linspace(-6, 6, 241, dtype=torch.float64)  # log odds of the target before any adjustment


def softmax(loss, target=0, **keywords):
    """Value over X of two classes' logits, the target's X and the other's 0."""

    def value(x):
        logits = torch.stack([x, torch.zeros_like(x)], 1)
        logits = logits.flip(1) if target else logits
        return loss(logits, torch.full((len(x),), target), reduction="none", **keywords)

    return value


def elements(loss, t, **keywords):
    return lambda x: loss(x, torch.full_like(x, t), reduction="none", **keywords)


def batch(loss, **keywords):
    """Of a batch of two, one of each class, whose own logit is x and the other 0: such losses are sums over a batch."""

    def value(x):
        pairs = torch.diag_embed(torch.stack([x, x], 1))
        return torch.stack([loss(pair, torch.tensor([0, 1]), prior=PRIOR, **keywords) for pair in pairs])

    return value


# file -> (what the horizontal axis is, {label: value over X})
P = "p, the target's probability under softmax of the logits"
PAIR = "p of both samples of a batch, one of each class"
OF_TWO = {0: "target of 90 %", 1: "target of 10 %"}
FIGURES = {
    "cross_entropy": (P, {
        "weight 1": softmax(imbloss.cross_entropy),
        "weight 3": softmax(imbloss.cross_entropy, sample_weight=torch.tensor(3.0).expand(len(X))),
    }),
    "focal_loss": (P, {f"gamma {g}": softmax(imbloss.focal_loss, gamma=g) for g in (0.0, 0.5, 1.0, 2.0, 5.0)}),
    "poly_loss": (P, {f"epsilon {e}": softmax(imbloss.poly_loss, epsilon=e) for e in (-1.0, 0.0, 1.0, 3.0)}),
    "balanced_softmax_loss": (P, {
        "cross entropy": softmax(imbloss.cross_entropy),
        **{name: softmax(imbloss.balanced_softmax_loss, t, counts=COUNTS) for t, name in OF_TWO.items()},
    }),
    "logit_adjusted_loss": (P, {
        f"target of 10 %, tau {tau}": softmax(imbloss.logit_adjusted_loss, 1, prior=PRIOR, tau=tau)
        for tau in (0.0, 0.5, 1.0, 1.5)
    }),
    "ldam_loss": (P, {
        "cross entropy": softmax(imbloss.cross_entropy),
        **{name: softmax(imbloss.ldam_loss, t, counts=COUNTS, scale=1.0, max_margin=2.0) for t, name in OF_TWO.items()},
    }),
    "vs_loss": (P, {
        "cross entropy": softmax(imbloss.cross_entropy),
        **{name: softmax(imbloss.vs_loss, t, counts=COUNTS) for t, name in OF_TWO.items()},
    }),
    "lade_loss": (PAIR, {f"alpha {alpha}": batch(imbloss.lade_loss, alpha=alpha) for alpha in (0.0, 0.1, 0.5)}),
    "lader": (PAIR, {f"{e} estimator": batch(imbloss.lader, estimator=e) for e in ("official", "paper")}),
    "sigmoid_focal_loss": ("p = sigmoid(x)", {
        f"{name}, gamma {g}": elements(imbloss.sigmoid_focal_loss, t, gamma=g)
        for t, name in ((1.0, "positive"), (0.0, "negative")) for g in (0.0, 2.0)
    }),
    "asymmetric_loss": ("p = sigmoid(x)", {
        "positive": elements(imbloss.asymmetric_loss, 1.0),
        "negative": elements(imbloss.asymmetric_loss, 0.0),
        "negative, clip 0": elements(imbloss.asymmetric_loss, 0.0, clip=0.0),
    }),
    "quality_focal_loss": ("p = sigmoid(x)", {
        f"quality {t}": elements(imbloss.quality_focal_loss, t) for t in (0.0, 0.3, 0.7, 1.0)
    }),
}  # fmt: skip


def curve(value):
    """(loss, its derivative) over X, each of shape (241,)."""
    x = X.clone().requires_grad_()
    loss = value(x)
    (slope,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), slope


def draw(name, path):
    axis, lines = FIGURES[name]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.9), layout="constrained")
    for label, value in lines.items():
        loss, slope = curve(value)
        left.plot(X.sigmoid(), loss, label=label)
        right.plot(X.sigmoid(), slope)
    left.set(xlabel=axis, ylabel="loss", ylim=(min(0, left.get_ylim()[0]), min(5, left.get_ylim()[1])))
    right.set(xlabel=axis, ylabel="gradient in the logit")
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.label.set_size(8)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main(folder=FOLDER):
    plt.rcParams.update({"svg.hashsalt": "imbloss", "svg.fonttype": "none", "path.simplify_threshold": 1.0})
    for name in FIGURES:
        draw(name, folder / f"loss_{name}.svg")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
