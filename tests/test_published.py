"""Values that others have published or that everybody can compute with torch itself."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from losses import uneven

import imbloss


@pytest.mark.isa
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 17, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gamma_0_is_torch_cross_entropy(classes, dtype):
    """Value and gradient, for every combination of weight, ignore_index and reduction and any upstream gradient."""
    logits = (torch.randn(37, classes) * 3).to(dtype)
    for weighted, ignored, reduction in itertools.product((False, True), (None, -100, 0, 5), ("none", "mean", "sum")):
        target = torch.randint(0, classes, (37,))
        keywords = {"reduction": reduction}
        if ignored is not None:
            target[::5] = keywords["ignore_index"] = ignored
            if ignored == 5 and classes <= 5:
                continue
        if weighted:
            keywords["weight"] = uneven(classes).to(dtype)
        results = []
        for function in (imbloss.cross_entropy, F.cross_entropy):
            x = logits.clone().requires_grad_()
            loss = function(x, target, **keywords)
            upstream = uneven(37, 0.5, 4.0).to(dtype) if reduction == "none" else torch.tensor(-1.7, dtype=dtype)
            (grad,) = torch.autograd.grad(loss, x, upstream)
            results.append((loss.detach(), grad))
        scale = max(1.0, float(results[1][1].nan_to_num().abs().max()))
        tolerance = 10 * torch.finfo(dtype).eps
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


# mmcv, tests/test_ops/test_focal_loss.py: inputs, targets, softmax loss with gamma 2 and alpha 0.25 as a flat factor.
MMCV = [
    ([[1.0, 0.0], [0.0, 1.0]], [0, 1], 0.00566451),
    ([[1.0, 0.0, -1.0], [0.0, 1.0, 2.0]], [2, 1], 0.34956908),
    ([[1e-6, 2e-6, 3e-6], [4e-6, 5e-5, 6e-4], [7e-3, 8e-2, 9e-1]], [1, 2, 0], 0.15754992),
]


@pytest.mark.parametrize("logits, target, want", MMCV)
def test_mmcv_softmax_focal_loss(logits, target, want):
    got = 0.25 * imbloss.focal_loss(torch.tensor(logits), torch.tensor(target), gamma=2.0)
    assert got.item() == pytest.approx(want, rel=2e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_focal_loss_of_many_notebooks(gamma, weighted):
    """log p gathered, its exponential detached: equal in value, and in gradient with detach_factor=True."""
    weight = uneven(10) if weighted else torch.ones(10)

    def notebook(logits, target):
        log_p = F.log_softmax(logits, dim=1).gather(1, target.view(-1, 1)).view(-1)
        p = log_p.detach().exp()
        return (-((1 - p) ** gamma) * log_p * weight[target]).mean()

    logits, target = torch.randn(64, 10), torch.randint(0, 10, (64,))
    results = []
    ours = {"gamma": gamma, "weight": weight, "detach_factor": True, "normalizer": 64}  # theirs divides by N
    for function in (lambda x, y: imbloss.focal_loss(x, y, **ours), notebook):
        x = logits.clone().requires_grad_()
        loss = function(x, target)
        loss.backward()
        results.append((loss.detach(), x.grad))
    torch.testing.assert_close(*results, rtol=2e-5, atol=1e-7)
