import itertools
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


# ---- priors that are learnt --------------------------------------------------------------------------------------
def test_a_tracker_counts_every_label():
    tracker = imbloss.PriorTracker(4, smoothing=0.5)
    assert torch.equal(tracker.prior, torch.full((4,), 0.25, dtype=torch.float64))
    for labels in ([0, 0, 3], [[1, -100], [0, 3]], []):
        prior = tracker(torch.tensor(labels, dtype=torch.int64))
    want = torch.tensor([3.5, 1.5, 0.5, 2.5], dtype=torch.float64)
    assert torch.equal(prior, want / want.sum()) and torch.equal(tracker.prior, prior)
    assert tracker.state_dict()["counts"].tolist() == [3, 1, 0, 2]


def test_a_tracker_with_momentum_forgets():
    tracker = imbloss.PriorTracker(2, momentum=0.5)
    tracker(torch.tensor([0] * 8))
    tracker(torch.tensor([1] * 2, dtype=torch.uint8))
    tracker(torch.tensor([-100]))  # nothing to learn, nothing to forget
    assert tracker.counts.tolist() == [4, 2]
    for _ in range(60):
        tracker(torch.tensor([1] * 99))
    assert tracker.prior[1] > 0.99


def test_a_tracker_goes_wherever_a_prior_is_wanted():
    tracker = imbloss.PriorTracker(5)
    modules = {
        imbloss.LogitAdjustedLoss(prior=tracker): lambda x, y, p: imbloss.logit_adjusted_loss(x, y, prior=p),
        imbloss.FocalLoss(prior=tracker): lambda x, y, p: imbloss.focal_loss(x, y, prior=p),
        imbloss.CrossEntropy(prior=tracker, tau=0.5): lambda x, y, p: imbloss.cross_entropy(x, y, prior=p, tau=0.5),
        imbloss.LADELoss(prior=tracker): lambda x, y, p: imbloss.lade_loss(x, y, prior=p),
        imbloss.LADER(prior=tracker): lambda x, y, p: imbloss.lader(x, y, prior=p),
    }
    x, y = torch.randn(9, 5), torch.randint(0, 5, (9,))
    for _ in range(2):  # the modules follow
        prior = tracker(y)
        for module, function in modules.items():
            assert torch.equal(module(x, y), function(x, y, prior))
            assert torch.equal(module(x, y), function(x, y, tracker))
            assert "prior.counts" in module.state_dict()
        assert torch.equal(imbloss.adjust_logits(x, tracker), imbloss.adjust_logits(x, prior))
        assert torch.equal(imbloss.PostCompensatedSoftmax(tracker)(x), imbloss.PostCompensatedSoftmax(prior)(x))


def test_a_tracker_keeps_its_counts_in_float64():
    tracker = imbloss.PriorTracker(2)
    tracker(torch.tensor([0] * 3))
    tracker.half()
    assert tracker.counts.dtype == torch.float64 and tracker.counts.tolist() == [3, 0]


def test_a_tracker_names_what_is_wrong():
    tracker = imbloss.PriorTracker(3)
    with pytest.raises(IndexError, match=r"expected labels in \[0, 3\) or ignore_index=-100, but got 3 at index 1"):
        tracker(torch.tensor([0, 3]))
    with pytest.raises(TypeError, match="expected labels to be a tensor of an integer dtype"):
        tracker(torch.tensor([0.0]))
    for keywords, message in (
        ({"num_classes": 0}, "expected num_classes >= 1"),
        ({"num_classes": 2, "momentum": 1.0}, r"expected momentum in \[0, 1\), but got 1.0"),
        ({"num_classes": 2, "smoothing": 0}, "expected smoothing > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            imbloss.PriorTracker(**keywords)


def mixture(prior, rows, generator):
    """Samples of Gaussian classes and their logits under a training prior."""
    classes = len(prior)
    y = torch.multinomial(prior, rows, replacement=True, generator=generator)
    means = 3 * torch.eye(classes, dtype=torch.float64)
    x = means[y] + torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return y, x @ means - 4.5


def test_the_estimated_prior_is_that_of_the_samples():
    generator = torch.Generator().manual_seed(3)
    train = torch.tensor([0.85, 0.1, 0.03, 0.02], dtype=torch.float64)
    test = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    y, likelihood = mixture(test, 20000, generator)
    logits = likelihood + train.log() + torch.randn(20000, 1, generator=generator, dtype=torch.float64)
    estimate = imbloss.estimate_prior(logits, train)
    assert estimate.converged and estimate.change < 1e-8 and estimate.iterations > 3
    want = torch.bincount(y).double() / len(y)
    torch.testing.assert_close(estimate.prior, want, rtol=0, atol=5e-3)
    predicted = imbloss.adjust_logits(logits, train, estimate.prior).argmax(1)
    assert (predicted == y).double().mean() > (logits.argmax(1) == y).double().mean() + 0.01
    dense = logits.view(200, 100, 4).movedim(2, 1)
    torch.testing.assert_close(imbloss.estimate_prior(dense, train).prior, estimate.prior)


def test_an_estimate_that_has_not_converged_says_so():
    _, logits = mixture(torch.tensor([0.5, 0.5], dtype=torch.float64), 100, torch.Generator().manual_seed(0))
    estimate = imbloss.estimate_prior(logits, torch.tensor([0.99, 0.01]), max_iterations=2)
    assert not estimate.converged and estimate.iterations == 2 and estimate.change > 1e-8


def test_each_iteration_makes_the_samples_likelier():
    train = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    logits = torch.randn(50, 3, dtype=torch.float64) * 2
    likelihood = logits.softmax(1) / train
    log_likelihoods = [
        (likelihood @ imbloss.estimate_prior(logits, train, max_iterations=n).prior).log().sum() for n in range(1, 9)
    ]
    assert all(after >= before for before, after in itertools.pairwise(log_likelihoods))


@pytest.mark.parametrize(
    "logits, exception, message",
    [
        (torch.zeros(0, 2), ValueError, r"expected logits of shape .* N > 0, but got \(0, 2\)"),
        (torch.zeros(2), ValueError, r"but got \(2,\)"),
        (torch.tensor([[0.0, math.nan]]), ValueError, "expected logits to be finite"),
        (torch.zeros(3, 2).long(), TypeError, "expected logits to be a tensor of a floating dtype"),
        (torch.zeros(3, 3), ValueError, r"expected train_prior of shape \(3,\), but got \(2,\)"),
    ],
)
def test_estimate_prior_names_what_is_wrong(logits, exception, message):
    with pytest.raises(exception, match=message):
        imbloss.estimate_prior(logits, torch.tensor([0.5, 0.5]))


def test_post_compensated_softmax_is_the_posterior_under_the_test_prior():
    train, test = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.2, 0.6])
    logits = torch.randn(4, 3, 5)
    posterior = logits.softmax(1) / train.view(3, 1) * test.view(3, 1)
    module = imbloss.PostCompensatedSoftmax(train, test)
    torch.testing.assert_close(module(logits), posterior / posterior.sum(1, keepdim=True))
    torch.testing.assert_close(module(logits[0, :, 0]), module(logits)[0, :, 0])
    assert set(module.state_dict()) == {"train_prior", "test_prior"}
    torch.testing.assert_close(imbloss.PostCompensatedSoftmax(train, train)(logits), logits.softmax(1))
    with pytest.raises(ValueError, match="expected test_prior to sum to 1"):
        imbloss.PostCompensatedSoftmax(train, train * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.uint8])
def test_positive_count(dtype):
    assert imbloss.positive_count(torch.tensor([[0, 1], [1, 1]]).to(dtype)) == 3


def test_positive_count_of_soft_targets_and_class_indices():
    assert imbloss.positive_count(torch.tensor([0.0, 0.2, 1.0])) == 2
    assert imbloss.positive_count(torch.tensor([0, 7, -100, 3])) == 2


def test_valid_count_is_what_mean_divides_by():
    x, y, weight = torch.randn(6, 4), torch.tensor([0, 3, -100, 1, 1, -100]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert imbloss.valid_count(y) == 4 and imbloss.valid_count(y, ignore_index=1) == 4
    assert imbloss.valid_count(y, weight=weight) == 9
    for keywords in ({}, {"weight": weight}):
        got = imbloss.focal_loss(x, y, normalizer=imbloss.valid_count(y, **keywords), **keywords)
        torch.testing.assert_close(got, imbloss.focal_loss(x, y, **keywords))
