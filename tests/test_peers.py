"""The pairs of docs/migration.md: what a peer computes, and what imbloss computes in its place.

A peer that is not installed is skipped. Those whose package wants a torchvision built for this very torch are read from
their source files alone.
"""

import importlib
import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from losses import uneven

import imbloss


@pytest.fixture
def peer(monkeypatch):
    """Imports a module of a peer, without running the packages above it where they cannot be imported."""

    def load(name, alone=False):
        top = name.split(".")[0]
        spec = importlib.util.find_spec(top)
        if spec is None or not spec.submodule_search_locations:
            pytest.skip(f"{top} is not installed")
        if not alone:
            return pytest.importorskip(name, reason=f"{top} does not import beside this torch")
        folder = Path(spec.submodule_search_locations[0])
        parents = name.split(".")[:-1]
        for depth in range(len(parents)):
            shell = types.ModuleType(".".join(parents[: depth + 1]))
            shell.__path__ = [str(folder.joinpath(*parents[1 : depth + 1]))]
            monkeypatch.setitem(sys.modules, shell.__name__, shell)
        before = set(sys.modules)
        module = importlib.import_module(name)
        for added in set(sys.modules) - before:
            if added.split(".")[0] == top:
                del sys.modules[added]
        return module

    return load


@dataclass
class Inputs:
    """Logits of some pictures, and every kind of labels for them."""

    x: torch.Tensor
    t: torch.Tensor  # 0 or 1
    soft: torch.Tensor
    index: torch.Tensor  # classes

    @classmethod
    def some(cls):
        x = torch.randn(4, 5, 6, 3, dtype=torch.float64) * 2
        return cls(
            x, (torch.rand(x.shape) < 0.3).double(), torch.rand(x.shape).double(), torch.randint(0, 5, (4, 6, 3))
        )


def assert_equal(theirs, ours, x, tolerance=1e-6):
    """Values, and gradients of their sum."""
    results = []
    for function in (theirs, ours):
        leaf = x.detach().clone().requires_grad_()
        value = function(leaf)
        results.append((value.detach().double(), torch.autograd.grad(value.sum(), leaf)[0]))
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("options", [{}, {"alpha": -1}, {"alpha": 0.9, "gamma": 1.5}])
def test_torchvision(peer, options, reduction):
    theirs, i = peer("torchvision.ops.focal_loss", alone=True).sigmoid_focal_loss, Inputs.some()
    for t in (i.t, i.soft):
        assert_equal(
            lambda x: theirs(x, t, **options, reduction=reduction),  # noqa: B023
            lambda x: imbloss.sigmoid_focal_loss(x, t, **options, reduction=reduction),  # noqa: B023
            i.x,
        )
    with pytest.raises(ValueError, match="reduction"):
        theirs(i.x, i.t, reduction="avg")
    with pytest.raises(ValueError, match="reduction"):
        imbloss.sigmoid_focal_loss(i.x, i.t, reduction="avg")


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_fvcore(peer, reduction):
    theirs, i = peer("fvcore.nn").sigmoid_focal_loss, Inputs.some()
    for t in (i.t, i.soft):
        assert_equal(
            lambda x: theirs(x, t, reduction=reduction),  # noqa: B023
            lambda x: imbloss.sigmoid_focal_loss(x, t, alpha=-1, reduction=reduction),  # noqa: B023
            i.x,
            1e-4,  # theirs is in float32
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_kornia(peer, reduction):
    theirs, i = peer("kornia.losses").binary_focal_loss_with_logits, Inputs.some()
    weight, pos_weight = uneven(5).double(), uneven(5, 1.0, 4.0).double()
    options = {"alpha": 0.25, "gamma": 2.0, "weight": weight, "pos_weight": pos_weight, "reduction": reduction}
    assert_equal(lambda x: theirs(x, i.t, **options), lambda x: imbloss.sigmoid_focal_loss(x, i.t, **options), i.x)
    # soft targets weigh two losses there: asymmetric_loss without clip
    halves = {"gamma_neg": 2.0, "gamma_pos": 2.0, "clip": 0.0, "pos_weight": 0.25 / 0.75, "reduction": reduction}
    assert_equal(
        lambda x: theirs(x, i.soft, 0.25, 2.0, reduction),
        lambda x: 0.75 * imbloss.asymmetric_loss(x, i.soft, **halves),
        i.x,
    )


def test_kornia_ignored(peer):
    theirs, i = peer("kornia.losses").binary_focal_loss_with_logits, Inputs.some()
    t = torch.where(torch.rand(i.t.shape) < 0.2, -100, i.t)
    assert_equal(
        lambda x: theirs(x, t, 0.25, 2.0, "mean"),
        lambda x: imbloss.sigmoid_focal_loss(x, t, reduction="mean", normalizer=t.numel()),
        i.x,
    )


def test_monai(peer):
    theirs, i = peer("monai.losses").FocalLoss, Inputs.some()
    ours = imbloss.sigmoid_focal_loss
    weight, alpha = uneven(5), uneven(5, 0.1, 0.9)
    mean = {"reduction": "mean"}
    pairs = [
        (theirs(), lambda x: ours(x, i.t, None, **mean), i.t),
        (theirs(gamma=1.5, alpha=0.3), lambda x: ours(x, i.t, 0.3, 1.5, **mean), i.t),
        (theirs(weight=weight), lambda x: ours(x, i.t, None, weight=weight, **mean), i.t),
        (theirs(alpha=alpha), lambda x: ours(x, i.t, None, pos_weight=alpha, **mean), i.t),
        (theirs(to_onehot_y=True), lambda x: ours(x, i.index, None, **mean), i.index.unsqueeze(1)),
        (
            theirs(to_onehot_y=True, include_background=False),
            lambda x: ours(x[:, 1:], i.index - 1, None, **mean),
            i.index.unsqueeze(1),
        ),
        (theirs(reduction="sum"), lambda x: ours(x, i.t, None, reduction="sum") / 18, i.t),  # a mean over pixels
        (theirs(reduction="none"), lambda x: ours(x, i.t, None), i.t),
    ]
    for loss, ours_too, target in pairs:
        assert_equal(lambda x: loss(x, target), ours_too, i.x, 1e-4)  # noqa: B023


@pytest.mark.parametrize("options", [{}, {"alpha": 0.25}, {"gamma": 1.5}])
def test_segmentation_models_pytorch(peer, options):
    theirs = peer("segmentation_models_pytorch.losses.focal", alone=True).FocalLoss
    i, ours = Inputs.some(), imbloss.sigmoid_focal_loss
    keywords = {"alpha": None, "reduction": "mean", **options}
    assert_equal(lambda x: theirs("binary", **options)(x, i.t), lambda x: ours(x, i.t, **keywords), i.x)
    assert_equal(lambda x: theirs("multilabel", **options)(x, i.t), lambda x: ours(x, i.t, **keywords), i.x)
    assert_equal(lambda x: theirs("multiclass", **options)(x, i.index), lambda x: ours(x, i.index, **keywords), i.x)

    weights = uneven(5).double()
    loss = theirs("multilabel", class_weights=weights.tolist(), **options)
    weight = weights * 5 / weights.sum()
    assert_equal(lambda x: loss(x, i.t), lambda x: ours(x, i.t, weight=weight, **keywords), i.x)

    y = torch.where(torch.rand(i.index.shape) < 0.2, 255, i.index)
    loss = theirs("multiclass", ignore_index=255, **options)
    assert_equal(lambda x: loss(x, y), lambda x: ours(x, y, ignore_index=255, **keywords), i.x)


@pytest.mark.parametrize("detach", [False, True])
def test_timm(peer, detach):
    theirs, i = peer("timm.loss.asymmetric_loss", alone=True).AsymmetricLossMultiLabel, Inputs.some()
    x, t = i.x.flatten(1), i.t.flatten(1)
    weight = uneven(x.shape[1])
    options = {"weight": weight, "pos_weight": 2.0}
    for sizes in ({}, {"gamma_neg": 2.5, "gamma_pos": 0.5, "clip": 0.1}, {"clip": 0.0}):
        loss = theirs(**sizes, **options, disable_torch_grad_focal_loss=detach)
        assert_equal(
            lambda x: loss(x, t),  # noqa: B023
            lambda x: imbloss.asymmetric_loss(x, t, **sizes, **options, detach_factor=detach, normalizer=len(x)),  # noqa: B023
            x,
            1e-4,  # theirs is in float32
        )


# mmcv, tests/test_ops/test_focal_loss.py: inputs, class indices, the loss with gamma 2 and alpha 0.25, over N. Its
# operators need a build of their own; their formula is by class index, as in sigmoid_focal_loss_cuda_kernel.cuh.
MMCV = [
    ([[1.0, 0.0], [0.0, 1.0]], [0, 1], 0.13562961),
    ([[1.0, 0.0, -1.0], [0.0, 1.0, 2.0]], [2, 1], 1.10251057),
    ([[1e-6, 2e-6, 3e-6], [4e-6, 5e-5, 6e-4], [7e-3, 8e-2, 9e-1]], [1, 2, 0], 0.42287254),
]


@pytest.mark.parametrize("x, y, want", MMCV)
def test_mmcv(x, y, want):
    got = imbloss.sigmoid_focal_loss(torch.tensor(x), torch.tensor(y), reduction="mean", normalizer=len(y))
    assert got.item() == pytest.approx(want, rel=2e-6)


def test_mmcv_weighs_rows_by_their_class():
    x, y, weight = torch.randn(6, 5, dtype=torch.float64), torch.randint(0, 5, (6,)), uneven(5).double()

    def theirs(x):
        p, one = x.sigmoid(), torch.nn.functional.one_hot(y, 5)
        loss = -one * 0.25 * (1 - p) ** 2 * p.log() - (1 - one) * 0.75 * p**2 * (1 - p).log()
        return (loss * weight[y].unsqueeze(1)).sum() / 6

    rows = weight[y].unsqueeze(1).expand_as(x)
    assert_equal(theirs, lambda x: imbloss.sigmoid_focal_loss(x, y, reduction="mean", normalizer=6, weight=rows), x)


@pytest.mark.isa
def test_fvcore_identities():
    """Theirs: gamma 0 without alpha is BCE, and CE / FL = 1 / (1 - p_t)^gamma; and alpha is a share of each side."""
    x, t = torch.randn(64, 10).double() * 3, (torch.rand(64, 10) < 0.3).double()
    ce = torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none")
    torch.testing.assert_close(imbloss.sigmoid_focal_loss(x, t, -1, 0), ce)
    q_t = torch.where(t == 1, -x, x).sigmoid()
    for gamma in (0.5, 1, 2, 3.7):
        torch.testing.assert_close(imbloss.sigmoid_focal_loss(x, t, -1, gamma) / ce, q_t**gamma)
        with_alpha = imbloss.sigmoid_focal_loss(x, t, 0.3, gamma)
        share = torch.where(t == 1, 0.3, 0.7)
        torch.testing.assert_close(with_alpha, share * imbloss.sigmoid_focal_loss(x, t, -1, gamma))
