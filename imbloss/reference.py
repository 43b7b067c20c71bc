"""Every loss from its paper's formula in plain PyTorch: the truth that kernels are tested against (in float64), and
what computes where there is no kernel. Differentiable as often as wanted, by autograd alone.

Formulas are written so that no digit is lost (docs/math.md, section 1): 1 - p is summed from the other classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TargetTerms(NamedTuple):
    """log p, p, q = 1 - p and log q of each row's target class, of shape (N, d1, ...)."""

    log_p: Tensor
    p: Tensor
    q: Tensor
    log_q: Tensor


def target_terms(z: Tensor, target: Tensor) -> TargetTerms:
    """The target's probability under ``softmax(z, 1)`` and its complement, both to full relative precision."""
    index = target.unsqueeze(1)
    is_target = torch.zeros_like(z, dtype=torch.bool).scatter(1, index, True)
    lse = z.logsumexp(1)
    log_q = z.masked_fill(is_target, -math.inf).logsumexp(1) - lse
    q = log_q.exp()
    log_p = torch.where(q < 0.5, torch.log1p(-q.clamp(max=0.5)), z.gather(1, index).squeeze(1) - lse)
    return TargetTerms(log_p, log_p.exp(), q, log_q)


def focal_factor(terms: TargetTerms, gamma: float | Tensor) -> Tensor:
    """q^gamma, whose gradient stays finite for 0 < gamma < 1; 0^0 is 1, and p = 0 contributes no gradient."""
    if not isinstance(gamma, Tensor):
        factor = (gamma * terms.log_q).exp() if gamma else torch.ones_like(terms.q)
    else:
        factor = (gamma * terms.log_q).masked_fill(gamma == 0, 0).exp()
    return torch.where(terms.p > 0, factor, factor.detach())


def _focal(terms: TargetTerms, gamma: float | Tensor, detach: float) -> Tensor:
    factor = focal_factor(terms, gamma)
    return (factor.detach() if detach else factor) * -terms.log_p


POLICIES = {"focal": _focal}  # as in csrc/policies.h


def softmax_rows(
    logits: Tensor,
    target: Tensor,
    operands: Sequence[Tensor | None],
    numbers: list[float],
    ignore_index: int,
    reduction: int,
    policy: str,
) -> Tensor:
    """The softmax row loss of docs/math.md, section 1, with the arguments of the operator ``imbloss::softmax_rows``."""
    weight, sample_weight, scale, bias, margin, gammas, normalizer = operands or [None] * 7
    gamma, *params = numbers
    x = logits if logits.dim() > 1 else logits.unsqueeze(0)
    y = target if logits.dim() > 1 else target.unsqueeze(0)
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    classes = x.shape[1]
    valid = y != ignore_index
    in_range = (y >= 0) & (y < classes)
    _check_target(y, valid & ~in_range, classes, ignore_index)
    y = torch.where(valid & in_range, y, 0)

    per_class = (-1, *[1] * (x.dim() - 2))
    z = x
    if scale is not None:
        z = z * scale.view(per_class)
    if bias is not None:
        z = z + bias.view(per_class)
    if margin is not None:
        z = z.scatter_add(1, y.unsqueeze(1), -margin[y].unsqueeze(1).to(z.dtype))

    loss = POLICIES[policy](target_terms(z, y), gamma if gammas is None else gammas[y], *params)
    row_weight = None
    if weight is not None:
        row_weight = weight[y]
    if sample_weight is not None:
        row_weight = sample_weight.view(y.shape) if row_weight is None else row_weight * sample_weight.view(y.shape)
    if row_weight is not None:
        loss = loss * row_weight
    loss = torch.where(valid, loss, 0)
    loss = torch.where(valid & ~in_range, math.nan, loss)
    if reduction == 0:
        return loss.view(target.shape)
    if reduction == 2:
        return loss.sum()
    if normalizer is None:
        normalizer = (valid.to(loss.dtype) if row_weight is None else torch.where(valid, row_weight, 0)).sum()
    return loss.sum() / normalizer.to(loss.dtype)


def _check_target(y: Tensor, bad: Tensor, classes: int, ignore_index: int) -> None:
    """The compiled core's error. Not on other devices, where looking at values would wait for them: NaN tells there."""
    if y.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    if bad.any():
        index = int(bad.flatten().nonzero()[0])
        raise IndexError(
            f"expected target in [0, {classes}) or ignore_index={ignore_index}, "
            f"but got {int(y.flatten()[index])} at index {index}"
        )


# ---- the losses --------------------------------------------------------------------------------------------------
def _reduced(loss: Tensor, target: Tensor, ignore_index, reduction, weight, sample_weight, normalizer) -> Tensor:
    """Weights and reduction as torch.nn.functional.cross_entropy has them: "mean" divides by the weights' sum."""
    valid = target != ignore_index
    weights = torch.ones_like(loss)
    if weight is not None:
        weights = weights * weight.to(loss.dtype)[torch.where(valid, target, 0)]
    if sample_weight is not None:
        weights = weights * sample_weight
    weights = torch.where(valid, weights, 0)
    loss = torch.where(valid, weights * loss, 0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / (weights.sum() if normalizer is None else normalizer)


def _per_class(values: Tensor, z: Tensor) -> Tensor:
    return values.to(z.dtype).view(-1, *[1] * (z.dim() - 2))


def _terms(z: Tensor, target: Tensor, ignore_index: int) -> TargetTerms:
    return target_terms(z, torch.where(target == ignore_index, 0, target))


def focal_loss(
    logits, target, *, gamma=2.0, weight=None, prior=None, tau=1.0, detach_factor=False,
    ignore_index=-100, reduction="mean", sample_weight=None, normalizer=None,
):  # fmt: skip
    """FL = -alpha (1 - p)^gamma log p. Lin et al. 2017, eq. 5."""
    z = logits if prior is None else logits + tau * _per_class(prior, logits).log()
    terms = _terms(z, target, ignore_index)
    if isinstance(gamma, Tensor):
        gamma = gamma.to(z.dtype)[torch.where(target == ignore_index, 0, target)]
    factor = focal_factor(terms, gamma)
    loss = -(factor.detach() if detach_factor else factor) * terms.log_p
    return _reduced(loss, target, ignore_index, reduction, weight, sample_weight, normalizer)


def cross_entropy(
    logits, target, *, weight=None, prior=None, tau=1.0,
    ignore_index=-100, reduction="mean", sample_weight=None, normalizer=None,
):  # fmt: skip
    """CE = -log p."""
    z = logits if prior is None else logits + tau * _per_class(prior, logits).log()
    loss = -_terms(z, target, ignore_index).log_p
    return _reduced(loss, target, ignore_index, reduction, weight, sample_weight, normalizer)


def balanced_softmax_loss(
    logits, target, *, counts, ignore_index=-100, reduction="mean", sample_weight=None, normalizer=None
):
    """-log( n_y exp(x_y) / sum_c n_c exp(x_c) ). Ren et al. 2020, eq. 3."""
    z = logits + _per_class(counts, logits).log()
    loss = -_terms(z, target, ignore_index).log_p
    return _reduced(loss, target, ignore_index, reduction, None, sample_weight, normalizer)


def logit_adjusted_loss(
    logits, target, *, prior, tau=1.0, ignore_index=-100, reduction="mean", sample_weight=None, normalizer=None
):
    """-log( exp(x_y + tau log pi_y) / sum_c exp(x_c + tau log pi_c) ). Menon et al. 2021, eq. 10."""
    z = logits + tau * _per_class(prior, logits).log()
    loss = -_terms(z, target, ignore_index).log_p
    return _reduced(loss, target, ignore_index, reduction, None, sample_weight, normalizer)
