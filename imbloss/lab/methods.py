"""What the loss test compares: a loss made from the training counts, and how its logits predict."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

import imbloss


def _plain(logits: Tensor, counts: Tensor) -> Tensor:
    return logits


def _adjusted(logits: Tensor, counts: Tensor) -> Tensor:
    return imbloss.adjust_logits(logits, counts.double() / counts.sum())


@dataclass(frozen=True)
class Method:
    title: str
    loss: Callable[[Tensor], nn.Module]
    scores: Callable[[Tensor, Tensor], Tensor] = _plain
    trained_as: str | None = None  # the method whose model this one only reads differently


METHODS = {
    "cross_entropy": Method("cross entropy", lambda counts: imbloss.CrossEntropy()),
    "focal": Method("focal, gamma 2", lambda counts: imbloss.FocalLoss(gamma=2.0)),
    "class_balanced_focal": Method(
        "class-balanced focal",
        lambda counts: imbloss.FocalLoss(gamma=2.0, weight=imbloss.class_balanced_weights(counts, beta=0.999)),
    ),
    "balanced_softmax": Method("balanced softmax", lambda counts: imbloss.BalancedSoftmaxLoss(counts=counts)),
    "logit_adjusted": Method(
        "logit adjusted, tau 1.5",
        lambda counts: imbloss.LogitAdjustedLoss(prior=counts.double() / counts.sum(), tau=1.5),
    ),
    "adjusted_cross_entropy": Method(
        "adjusted cross entropy", lambda counts: imbloss.CrossEntropy(), _adjusted, "cross_entropy"
    ),
}
