import math

import pytest
import torch

import imbloss


def test_class_counts():
    labels = torch.tensor([[0, 2], [2, 1]])
    assert imbloss.class_counts(labels, 4).tolist() == [1, 1, 2, 0]
    assert imbloss.class_counts(labels.to(torch.uint8), 3).tolist() == [1, 1, 2]
    assert imbloss.class_counts(torch.empty(0, dtype=torch.int64), 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    "labels, num_classes, exception, message",
    [
        (torch.tensor([0, 3]), 3, ValueError, r"expected labels in \[0, 3\), but got 3"),
        (torch.tensor([0, -1]), 3, ValueError, "but got -1"),
        (torch.tensor([0.5]), 3, TypeError, "expected labels to be a tensor of an integer dtype"),
        ([0, 1], 3, TypeError, "but got list"),
        (torch.tensor([0]), 0, ValueError, "expected num_classes >= 1 and finite, but got 0"),
    ],
)
def test_class_counts_names_what_is_wrong(labels, num_classes, exception, message):
    with pytest.raises(exception, match=message):
        imbloss.class_counts(labels, num_classes)


def test_class_balanced_weights_follow_the_paper():
    counts = torch.tensor([5000, 2997, 50, 1])
    for beta in (0.0, 0.9, 0.999, 0.9999):
        want = torch.tensor([(1 - beta) / (1 - beta ** int(n)) for n in counts], dtype=torch.float64)
        got = imbloss.class_balanced_weights(counts, beta=beta)
        torch.testing.assert_close(got.double(), want / want.mean(), rtol=1e-6, atol=0)
        assert got.mean().item() == pytest.approx(1)


def test_class_balanced_weights_lose_no_digit_for_beta_near_one():
    weights = imbloss.class_balanced_weights(torch.tensor([1, 2, 1000]).double(), beta=1 - 1e-12)
    assert (weights[0] / weights[1]).item() == pytest.approx(2, rel=1e-9)
    assert (weights[0] / weights[2]).item() == pytest.approx(1000, rel=1e-9)


@pytest.mark.parametrize("beta", [1.0, -0.1, math.nan])
def test_class_balanced_weights_name_a_bad_beta(beta):
    with pytest.raises(ValueError, match=r"expected beta in \[0, 1\), but got"):
        imbloss.class_balanced_weights(torch.tensor([1, 2]), beta=beta)


def test_class_balanced_weights_name_a_bad_count():
    with pytest.raises(ValueError, match="expected counts > 0 and finite, but got 0 at index 1"):
        imbloss.class_balanced_weights(torch.tensor([1, 0]))


def test_adjust_logits_moves_bayes_posteriors():
    """p(y | x) = p(x | y) prior(y) / ...: with another prior, the same likelihoods give another posterior."""
    likelihood = torch.rand(6, 4, dtype=torch.float64) + 0.1
    train, test = torch.tensor([0.7, 0.2, 0.05, 0.05]).double(), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    logits = (likelihood * train).log()
    want = likelihood * test / (likelihood * test).sum(1, keepdim=True)
    torch.testing.assert_close(imbloss.adjust_logits(logits, train, test).softmax(1), want)
    uniform = likelihood / likelihood.sum(1, keepdim=True)
    torch.testing.assert_close(imbloss.adjust_logits(logits, train).softmax(1), uniform)


def test_adjust_logits_of_any_shape_and_dtype():
    train = torch.tensor([0.5, 0.3, 0.2])
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        dense = torch.randn(2, 3, 4, 5).to(dtype)
        got = imbloss.adjust_logits(dense, train)
        assert got.dtype == dtype and got.shape == dense.shape
        assert torch.equal(got[0, :, 1, 2], imbloss.adjust_logits(dense[0, :, 1, 2], train))


def test_adjust_logits_names_a_bad_prior():
    with pytest.raises(ValueError, match=r"expected train_prior of shape \(3,\), but got \(2,\)"):
        imbloss.adjust_logits(torch.zeros(1, 3), torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="expected test_prior to sum to 1"):
        imbloss.adjust_logits(torch.zeros(1, 2), torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.6]))
