"""What the loss test compares: a loss made from the training counts, and how its logits predict."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import imbloss


def _plain(logits: Tensor, counts: Tensor) -> Tensor:
    return logits


def _adjusted(logits: Tensor, counts: Tensor) -> Tensor:
    return imbloss.adjust_logits(logits, _prior(counts))


@dataclass(frozen=True)
class Method:
    title: str
    loss: Callable[[Tensor], nn.Module]
    scores: Callable[[Tensor, Tensor], Tensor] = _plain
    trained_as: str | None = None  # the method whose model this one only reads differently
    soft: bool = True  # whether it takes target probabilities
    balanced: bool = True  # whether its scores are those of equally frequent classes; else of the training set's


def _prior(counts: Tensor) -> Tensor:
    return counts.double() / counts.sum()


def for_test_prior(scores: Tensor, method: Method, counts: Tensor, test_prior: Tensor | None) -> Tensor:
    """A method's scores corrected to a test set's class prior, or to one estimated from the scores themselves."""
    learnt = torch.full_like(_prior(counts), 1 / len(counts)) if method.balanced else _prior(counts)
    if test_prior is None:
        test_prior = imbloss.estimate_prior(scores, learnt).prior
        test_prior = test_prior.clamp(min=1e-12)  # a class that is nowhere
        test_prior = test_prior / test_prior.sum()
    return imbloss.adjust_logits(scores, learnt, test_prior)


METHODS = {
    "cross_entropy": Method("cross entropy", lambda counts: imbloss.CrossEntropy(), balanced=False),
    "focal": Method("focal, gamma 2", lambda counts: imbloss.FocalLoss(gamma=2.0), balanced=False),
    "class_balanced_focal": Method(
        "class-balanced focal",
        lambda counts: imbloss.FocalLoss(gamma=2.0, weight=imbloss.class_balanced_weights(counts, beta=0.999)),
    ),
    "balanced_softmax": Method("balanced softmax", lambda counts: imbloss.BalancedSoftmaxLoss(counts=counts)),
    "logit_adjusted": Method(
        "logit adjusted, tau 1.5",
        lambda counts: imbloss.LogitAdjustedLoss(prior=_prior(counts), tau=1.5),
    ),
    "lade": Method("LADE", lambda counts: imbloss.LADELoss(counts=counts), soft=False),
    "lade_paper": Method(
        "LADE, paper estimator", lambda counts: imbloss.LADELoss(counts=counts, estimator="paper"), soft=False
    ),
    "lader": Method("LADER alone", lambda counts: imbloss.LADER(counts=counts), soft=False),
    "adjusted_cross_entropy": Method(
        "adjusted cross entropy", lambda counts: imbloss.CrossEntropy(), _adjusted, "cross_entropy"
    ),
}
