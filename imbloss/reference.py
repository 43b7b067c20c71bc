"""Every loss from its paper's formula in plain PyTorch: the truth that kernels are tested against (in float64), and
what computes where there is no kernel. Differentiable as often as wanted, by autograd alone.

Formulas are written so that no digit is lost (docs/math.md, section 1): 1 - p is summed from the other classes.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imbloss.priors import check_prior, check_target, smoothed_prior

ESTIMATORS = OFFICIAL, PAPER = "official", "paper"  # of LADER; docs/math.md, section 4


class TargetTerms(NamedTuple):
    """log p, p, q = 1 - p and log q of each row's target class, of shape (N, d1, ...)."""

    log_p: Tensor
    p: Tensor
    q: Tensor
    log_q: Tensor


def _below_top(z: Tensor) -> Tensor:
    """Shifted so that the largest is 0; a row with a +inf, or of -inf alone, becomes NaN."""
    return z - z.detach().amax(1, keepdim=True)


def _logsumexp_of_others(z: Tensor, mask: Tensor) -> Tensor:
    """logsumexp over the classes outside the mask, (N, 1, ...): -inf with gradient 0 where all others are -inf."""
    others = z.masked_fill(mask, -math.inf)
    top = others.detach().amax(1, keepdim=True)
    none = top == -math.inf
    top = top.masked_fill(none, 0)
    total = (others - top).exp().sum(1, keepdim=True)
    return (total.masked_fill(none, 1).log() + top).masked_fill(none, -math.inf)


def target_terms(z: Tensor, target: Tensor) -> TargetTerms:
    """The target's probability under ``softmax(z, 1)`` and its complement, both to full relative precision."""
    z = _below_top(z)
    index = target.unsqueeze(1)
    is_target = torch.zeros_like(z, dtype=torch.bool).scatter(1, index, True)
    lse = z.logsumexp(1)
    log_q = _logsumexp_of_others(z, is_target).squeeze(1) - lse
    q = log_q.exp()
    log_p = torch.where(q < 0.5, torch.log1p(-q.clamp(max=0.5)), z.gather(1, index).squeeze(1) - lse)
    return TargetTerms(log_p, log_p.exp(), q, log_q)


def class_terms(z: Tensor) -> TargetTerms:
    """The same of every class, of the shape of z."""
    z = _below_top(z)
    lse = z.logsumexp(1, keepdim=True)
    top = torch.zeros_like(z, dtype=torch.bool).scatter(1, z.argmax(1, keepdim=True), True)
    log_q_top = _logsumexp_of_others(z, top) - lse
    q_top = log_q_top.exp()
    log_p = torch.where(top & (q_top < 0.5), torch.log1p(-q_top.clamp(max=0.5)), z - lse)
    # below the top p <= 1/2, and 1 - p loses nothing
    log_q = torch.where(top, log_q_top, (-torch.expm1(log_p.masked_fill(top, -1))).log())
    return TargetTerms(log_p, log_p.exp(), log_q.exp(), log_q)


def focal_factor(terms: TargetTerms, gamma: float | Tensor) -> Tensor:
    """q^gamma, whose gradient stays finite for 0 < gamma < 1; 0^0 is 1, and p = 0 contributes no gradient."""
    if not isinstance(gamma, Tensor):
        factor = (gamma * terms.log_q).exp() if gamma else torch.ones_like(terms.q)
    else:
        factor = (gamma * terms.log_q).masked_fill(gamma == 0, 0).exp()
    return torch.where(terms.p > 0, factor, factor.detach())


def focal(terms: TargetTerms, gamma: float | Tensor, detach: float = 0) -> Tensor:
    """-(1 - p)^gamma log p: Lin et al. 2017, eq. 5."""
    factor = focal_factor(terms, gamma)
    return (factor.detach() if detach else factor) * -terms.log_p


def poly(terms: TargetTerms, gamma: float | Tensor, epsilon: float = 1.0) -> Tensor:
    """focal + epsilon (1 - p)^(gamma + 1): Leng et al. 2022, Poly-1."""
    return focal(terms, gamma) + epsilon * focal_factor(terms, gamma) * terms.q


POLICIES = {"focal": focal, "poly": poly}  # as in csrc/policies.h


# ---- the operators -----------------------------------------------------------------------------------------------
Operands = Sequence[Tensor | None]


def softmax_rows(
    logits: Tensor,
    target: Tensor,
    operands: Operands,
    numbers: list[float],
    ignore_index: int,
    reduction: int,
    policy: str,
) -> Tensor:
    """The loss of one class a row (docs/math.md, section 1): the arguments of ``imbloss::softmax_rows``."""
    weight, sample_weight, scale, bias, margin, gammas, normalizer = operands or [None] * 7
    gamma, *params = numbers
    z, y = _adjusted(logits, scale, bias), target if logits.dim() > 1 else target.unsqueeze(0)
    y, counts, in_range = _checked(y, z.shape[1], ignore_index)
    z = torch.where(counts.unsqueeze(1), z, 0)  # an ignored row is 0, whatever its logits
    if margin is not None:
        z = z.scatter_add(1, y.unsqueeze(1), -margin[y].unsqueeze(1).to(z.dtype))
    loss = POLICIES[policy](target_terms(z, y), gamma if gammas is None else gammas[y], *params)
    row_weight = None if weight is None else weight[y]
    return _reduced_rows(
        loss, target.shape, counts, in_range, row_weight, row_weight, sample_weight, normalizer, reduction
    )


def softmax_soft_rows(
    logits: Tensor,
    target: Tensor,
    operands: Operands,
    numbers: list[float],
    label_smoothing: float,
    ignore_index: int,
    reduction: int,
    policy: str,
) -> Tensor:
    """The loss of a distribution a row (docs/math.md, section 2): the arguments of ``imbloss::softmax_soft_rows``."""
    weight, sample_weight, scale, bias, _, gammas, normalizer = operands or [None] * 7
    gamma, *params = numbers
    z, t = _adjusted(logits, scale, bias), target if logits.dim() > 1 else target.unsqueeze(0)
    classes = z.shape[1]
    row_weight = None
    if target.is_floating_point():
        t = t.to(z.dtype)
        counts = in_range = torch.ones_like(t[:, 0], dtype=torch.bool)
        shape = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else ()
    else:
        y, counts, in_range = _checked(t, classes, ignore_index)
        z = torch.where(counts.unsqueeze(1), z, 0)
        row_weight = None if weight is None else weight[y]
        t = torch.zeros_like(z).scatter(1, y.unsqueeze(1), 1)
        shape = target.shape
    share = t * (1 - label_smoothing) + label_smoothing / classes
    if weight is not None:
        share = share * _along_classes(weight, z)
    terms = class_terms(z)
    terms = terms._replace(log_p=torch.where(share == 0, 0, terms.log_p))  # counts nothing, even at log p = -inf
    value = POLICIES[policy](terms, gamma if gammas is None else _along_classes(gammas, z), *params)
    loss = (share * value).sum(1)
    return _reduced_rows(loss, shape, counts, in_range, None, row_weight, sample_weight, normalizer, reduction)


def _along_classes(values: Tensor, z: Tensor) -> Tensor:
    return values.view(-1, *[1] * (z.dim() - 2))


def _adjusted(logits: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """z = scale x + bias, in (N, C, ...), half precision widened."""
    z = logits if logits.dim() > 1 else logits.unsqueeze(0)
    if z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    if scale is not None:
        z = z * _along_classes(scale, z)
    return z if bias is None else z + _along_classes(bias, z)


def _checked(y: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Targets made safe to index with; which rows count; which of them are in range. Where none may look: NaN tells."""
    check_target(y, classes, ignore_index)
    counts = y != ignore_index
    in_range = (y >= 0) & (y < classes)
    return torch.where(counts & in_range, y, 0), counts, in_range


def _reduced_rows(
    loss: Tensor,
    shape: Sequence[int],
    counts: Tensor,
    in_range: Tensor,
    weight: Tensor | None,
    divisor_weight: Tensor | None,
    sample_weight: Tensor | None,
    normalizer: Tensor | None,
    reduction: int,
) -> Tensor:
    """Weights and reduction of rows; `weight` multiplies the loss, `divisor_weight` counts in the divisor of "mean"."""
    divisors = torch.ones_like(loss) if divisor_weight is None else divisor_weight
    if weight is not None:
        loss = loss * weight
    if sample_weight is not None:
        sample_weight = torch.where(counts, sample_weight.view(loss.shape), 0)
        loss, divisors = loss * sample_weight, divisors * sample_weight
    loss = torch.where(counts, loss, 0)
    loss = torch.where(counts & ~in_range, math.nan, loss)
    if reduction == 0:
        return loss.view(shape)
    if reduction == 2:
        return loss.sum()
    if normalizer is None:
        normalizer = torch.where(counts, divisors, 0).sum()
    return loss.sum() / normalizer.to(loss.dtype)


def class_columns(
    logits: Tensor,
    target: Tensor,
    operands: Operands,
    numbers: list[float],
    ignore_index: int,
    reduction: int,
    estimator: str,
) -> Tensor:
    """PriorCE and LADER (docs/math.md, section 4): the arguments of ``imbloss::class_columns``."""
    prior, sample_weight, normalizer = operands
    assert prior is not None
    prior_ce, alpha, lam = numbers
    loss = 0.0
    if prior_ce:
        bias = prior.to(torch.promote_types(logits.dtype, torch.float32)).log()
        rows = None, sample_weight, None, bias, None, None, normalizer
        loss = prior_ce * softmax_rows(logits, target, rows, [0.0, 0.0], ignore_index, reduction, "focal")
    x, y, counts, v = _columns(logits, target, prior, ignore_index, estimator)
    prior, classes, counts = prior.to(x.dtype), x.shape[1], counts.unsqueeze(1)
    of_class = torch.zeros_like(x, dtype=torch.bool).scatter(1, y.unsqueeze(1), True) & counts
    per_class = of_class.sum(0).to(x.dtype)
    divisor = per_class + 1e-8 if estimator == OFFICIAL else per_class.clamp(min=1)
    first = torch.where(of_class, x, 0).sum(0) / divisor
    x = torch.where(counts, x, -math.inf)
    top = x.detach().amax(0) if len(x) else x.new_zeros(classes)
    top = top.masked_fill(top == -math.inf, 0)
    total = (v.unsqueeze(1) * (x - top).exp()).sum(0)
    rows = counts.sum().to(x.dtype)
    nothing = rows == 0
    second = top + torch.where(nothing, 1, total).log() - torch.where(nothing, 1, rows).log()
    if estimator == OFFICIAL:
        second = second - torch.log(prior + 1e-9) + math.log(1 / classes + 1e-9)
    term = prior * (second + lam * second**2 - first)
    takes_part = ~nothing if estimator == OFFICIAL else per_class > 0
    return loss + alpha * torch.where(takes_part, term, 0).sum()


# The same in the three steps in which processes share it: sums over a process's rows; the loss and the factors of its
# gradient from everybody's sums; the gradient.


def class_columns_statistics(
    logits: Tensor, target: Tensor, operands: Operands, numbers: list[float], ignore_index: int, estimator: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments and results of ``imbloss::class_columns_statistics``.

    rows: of each row the largest z, and d PriorCE / d z of the other classes, over exp(z - largest), and of the target.
    columns: of each class the largest logit, the sum of v exp(x - largest), the sum and number of the targets' logits.
    totals: the sum of PriorCE, and the divisor of its mean.
    """
    prior, sample_weight, _ = operands
    assert prior is not None
    x, y, counts, v = _columns(logits, target, prior, ignore_index, estimator)
    classes, wide = x.shape[1], torch.float32 if x.device.type == "mps" else torch.float64
    weight = torch.ones_like(x[:, 0]) if sample_weight is None else sample_weight.reshape(-1)
    weight = torch.where(counts, weight, 0)
    z = torch.where(counts.unsqueeze(1), x + prior.to(x.dtype).log(), 0)
    largest = z.amax(1)
    terms = target_terms(z, y)
    rows = torch.stack([largest, weight / (z - largest.unsqueeze(1)).exp().sum(1), -weight * terms.q])
    if not numbers[0]:
        rows = torch.zeros_like(rows)
    totals = torch.stack([-(weight * terms.log_p).sum(), weight.sum()]).to(wide)

    of_class = torch.zeros_like(x).scatter(1, y.unsqueeze(1), 1) * counts.unsqueeze(1)
    x = x.masked_fill(~counts.unsqueeze(1), -math.inf)
    top = x.amax(0) if len(x) else x.new_full((classes,), -math.inf)
    total = (v.unsqueeze(1) * (x - top.masked_fill(top == -math.inf, 0)).exp()).sum(0)
    own = torch.where(of_class > 0, x, 0).sum(0)
    return rows, torch.stack([top, total, own, of_class.sum(0)]).to(wide), totals


def finish_columns(
    columns: Tensor, totals: Tensor, operands: Operands, numbers: list[float], reduction: int, estimator: str
) -> tuple[Tensor, Tensor]:
    """The loss, and the factors of its gradient: top_c, k_c and D_c of every class, then that of PriorCE.

    d loss / d x_nc = PriorCE's factor * (d PriorCE_n / d x_nc) + k_c v_n exp(x_nc - top_c) - [c = y_n] D_c
    """
    prior, _, normalizer = operands
    assert prior is not None
    prior_ce, alpha, lam = numbers
    top, total, own, count = columns
    prior, rows, classes = prior.to(columns), count.sum(), len(top)
    divisor = 1.0
    if reduction == 1:
        divisor = totals[1] if normalizer is None else normalizer.to(totals)
    second = top + total.log() - rows.log()
    if estimator == OFFICIAL:
        second = second - torch.log(prior + 1e-9) + math.log(1 / classes + 1e-9)
        takes_part, count = rows > 0, count + 1e-8
    else:
        takes_part, count = count > 0, count.clamp(min=1)
    share = torch.where(takes_part, alpha * prior, 0)
    term = torch.where(takes_part, share * (second + lam * second**2 - own / count), 0)
    slope = torch.where(takes_part, share * (1 + 2 * lam * second) / total, 0)
    top = top.masked_fill(top == -math.inf, 0)
    loss = term.sum() + (totals[0] / divisor * prior_ce if prior_ce else 0)
    factor = torch.zeros_like(totals[:1]) + prior_ce / divisor
    return loss, torch.cat([top, slope, share / count, factor])


def class_columns_backward(
    grad_output: Tensor,
    logits: Tensor,
    target: Tensor,
    kept: Tensor,
    operands: Operands,
    numbers: list[float],
    ignore_index: int,
    estimator: str,
) -> Tensor:
    """The arguments of ``imbloss::class_columns_backward``: what was kept are the rows and the factors."""
    prior = operands[0]
    assert prior is not None
    x, y, counts, v = _columns(logits, target, prior, ignore_index, estimator)
    n, classes = x.shape
    rows = kept[: 3 * n].view(3, n, 1)
    top, slope, share = kept[3 * n : -1].view(3, classes)
    index = y.unsqueeze(1)
    grad = rows[1] * (x + prior.to(x.dtype).log() - rows[0]).exp() if numbers[0] else torch.zeros_like(x)
    grad = kept[-1] * grad.scatter(1, index, rows[2])
    grad = grad + slope * (v.unsqueeze(1) * (x - top).exp())
    grad = grad.scatter_add(1, index, -share[index])
    grad = torch.where(counts.unsqueeze(1), grad, 0) * grad_output
    shape = logits.shape if logits.dim() > 1 else (1, *logits.shape)
    grad = grad.view(shape[0], *shape[2:], classes).movedim(-1, 1)
    return torch.empty_like(logits).copy_(grad.reshape(logits.shape))


def _columns(
    logits: Tensor, target: Tensor, prior: Tensor, ignore_index: int, estimator: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits as (N, C), targets made safe, which rows count, and their factors v."""
    check_prior(prior, None)
    x = _adjusted(logits, None, None)
    classes = x.shape[1]
    y, counts, in_range = _checked(target if logits.dim() > 1 else target.unsqueeze(0), classes, ignore_index)
    x = torch.where((in_range | ~counts).unsqueeze(1), x, math.nan)  # a target out of range, but on CPU
    x, y, counts = x.movedim(1, -1).reshape(-1, classes), y.reshape(-1), counts.reshape(-1)
    v = torch.ones_like(x[:, 0]) if estimator == OFFICIAL else 1 / (classes * prior.to(x.dtype))[y]
    return x, y, counts, v


# ---- elements ----------------------------------------------------------------------------------------------------
class ElementTerms(NamedTuple):
    """log p and log q of each element, p = sigmoid(x) and q = 1 - p, and p and q themselves."""

    log_p: Tensor
    log_q: Tensor
    p: Tensor
    q: Tensor

    def mirrored(self) -> "ElementTerms":
        """Of -x."""
        return ElementTerms(self.log_q, self.log_p, self.q, self.p)


def element_terms(x: Tensor) -> ElementTerms:
    """To full relative precision, on both sides of 0."""
    log_p, log_q = torch.nn.functional.logsigmoid(x), torch.nn.functional.logsigmoid(-x)
    return ElementTerms(log_p, log_q, log_p.exp(), log_q.exp())


def _times(share: Tensor, value: Tensor) -> Tensor:
    """share * value: 0 where the share is 0, even of an infinite value."""
    return share * torch.where(share == 0, 0, value)


def _positive_focal(terms: ElementTerms, gamma: float | Tensor, detach: float = 0) -> Tensor:
    """-(1 - p)^gamma log p, with a gradient that is finite for 0 < gamma < 1."""
    terms_of_target = TargetTerms(terms.log_p, terms.p, terms.q, terms.log_q)
    return focal(terms_of_target, gamma, detach)


def _binary_cross_entropy(terms: ElementTerms, t: Tensor, pos_weight: float | Tensor) -> Tensor:
    return _times(t * pos_weight, -terms.log_p) + _times(1 - t, -terms.log_q)


def _power(base: Tensor, exponent: float | Tensor) -> Tensor:
    """base^exponent of a base >= 0, without gradient where that is infinite; 0^0 is 1."""
    safe = torch.where(base > 0, base, 1) ** exponent
    return torch.where(base > 0, safe, torch.zeros_like(base) ** exponent)


def sigmoid_focal(
    terms: ElementTerms, t: Tensor, positive: Tensor | None, pos_weight: float | Tensor, gamma: float | Tensor
) -> Tensor:
    """(1 - p_t)^gamma BCE with p_t = p t + (1 - p) (1 - t): Lin et al. 2017, and torchvision's for soft targets.

    `positive` says which targets are 1 where all are 0 or 1 (but not differentiated), else it is None.
    """
    if positive is not None:
        ones, zeros = _positive_focal(terms, gamma), _positive_focal(terms.mirrored(), gamma)
        return torch.where(positive, pos_weight * ones, zeros)
    q_t = _times(1 - t, terms.p) + _times(t, terms.q)
    return _power(q_t, gamma) * _binary_cross_entropy(terms, t, pos_weight)


def asymmetric(
    terms: ElementTerms,
    t: Tensor,
    positive: Tensor | None,
    pos_weight: float | Tensor,
    gamma: float | Tensor,
    gamma_neg: float,
    clip: float,
    detach: float,
) -> Tensor:
    """-t (1 - p)^gamma log p - (1 - t) p_m^gamma_neg log(1 - p_m), p_m = max(p - clip, 0).

    Ridnik et al. 2021, eq. 4 to 7.
    """
    ones = pos_weight * _positive_focal(terms, gamma, detach)
    if clip == 0:
        zeros = _positive_focal(terms.mirrored(), gamma_neg, detach)
    else:
        p_m = (terms.p - clip).clamp(min=0)
        factor = _power(p_m, gamma_neg)
        zeros = (factor.detach() if detach else factor) * torch.log1p(p_m / (terms.q + clip))
    return torch.where(positive, ones, zeros) if positive is not None else _times(t, ones) + _times(1 - t, zeros)


def quality_focal(
    terms: ElementTerms, t: Tensor, positive: Tensor | None, pos_weight: float | Tensor, gamma: float | Tensor
) -> Tensor:
    """|t - p|^beta BCE: Li et al. 2020, eq. 3. beta is called gamma here."""
    if positive is not None:
        return sigmoid_focal(terms, t, positive, pos_weight, gamma)
    distance = _times(t, terms.q) - _times(1 - t, terms.p)  # t - p
    return _power(distance.abs(), gamma) * _binary_cross_entropy(terms, t, pos_weight)


ELEMENT_POLICIES = {"sigmoid_focal": sigmoid_focal, "asymmetric": asymmetric, "quality_focal": quality_focal}


def sigmoid_elements(
    logits: Tensor,
    target: Tensor,
    operands: Operands,
    numbers: list[float],
    ignore_index: int,
    reduction: int,
    policy: str,
) -> Tensor:
    """The loss of each element by itself (docs/math.md, section 5): the arguments of ``imbloss::sigmoid_elements``."""
    weight, pos_weights, alphas, gammas, normalizer = operands or [None] * 5
    gamma, alpha, pos_weight, *params = numbers
    x = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def along_classes(values: Tensor) -> Tensor:
        return values.view(-1, *[1] * (x.dim() - 2)) if x.dim() else values.view(())

    t, counts, in_range = _element_targets(target, x, ignore_index)
    x, t = torch.where(counts, x, 0), torch.where(counts, t, 0)
    positive, hard = None, (t == 0) | (t == 1)
    one, zero = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    if alphas is not None:
        one = along_classes(alphas).to(x.dtype)
        zero = 1 - one
    arguments = (
        pos_weight if pos_weights is None else along_classes(pos_weights),
        gamma if gammas is None else along_classes(gammas),
        *params,
    )
    terms = element_terms(x)
    if target.requires_grad:  # its gradient is that of the formula between 0 and 1
        loss = ELEMENT_POLICIES[policy](terms, t, None, *arguments)
    else:
        positive = t == 1
        loss = ELEMENT_POLICIES[policy](terms, t, positive, *arguments)
        if target.is_floating_point():
            between = torch.where(hard, 0.5, t)
            soft = ELEMENT_POLICIES[policy](element_terms(torch.where(hard, 0, x)), between, None, *arguments)
            loss = torch.where(hard, loss, soft)
    factor = _times(t, one * torch.ones_like(t)) + _times(1 - t, zero * torch.ones_like(t))
    if weight is not None:
        factor = factor * (along_classes(weight) if weight.dim() == 1 else weight)
    loss = torch.where(counts, loss * torch.where(counts, factor, 0), 0)
    loss = torch.where(counts & ~in_range, math.nan, loss)
    if reduction == 0:
        return loss
    if reduction == 2:
        return loss.sum()
    return loss.sum() / (counts.sum() if normalizer is None else normalizer).to(loss.dtype)


def _element_targets(target: Tensor, x: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each element: the target; whether it counts; whether its target is one."""
    if target.shape == x.shape:
        counts = target != ignore_index
        if target.is_floating_point():
            return target.to(x.dtype), counts, torch.ones_like(counts)
        in_range = (target == 0) | (target == 1)
        _check_in_range(target, counts, in_range, f"0, 1 or ignore_index={ignore_index}")
        return target.to(x.dtype), counts, in_range
    dim = 1 if x.dim() > 1 else 0
    y, classes = target.unsqueeze(dim), x.shape[dim]
    counts, in_range = y != ignore_index, (y >= -1) & (y <= classes)
    _check_in_range(y, counts, in_range, f"in [-1, {classes}] or ignore_index={ignore_index}")
    shape = [1] * x.dim()
    shape[dim] = classes
    t = (y == torch.arange(classes, device=y.device).view(shape)).to(x.dtype)
    return t, counts.expand(x.shape), in_range.expand(x.shape)


def _check_in_range(target: Tensor, counts: Tensor, in_range: Tensor, want: str) -> None:
    """The compiled core's error on CPU. Elsewhere looking at values would wait for the device: NaN tells there."""
    bad = counts & ~in_range
    looks = target.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and not torch._C._are_functorch_transforms_active() and bad.any():
        index = int(bad.flatten().nonzero()[0])
        raise IndexError(f"expected targets {want}, but got {int(target.flatten()[index])} at index {index}")


# ---- the losses --------------------------------------------------------------------------------------------------
def _mean_or_so(
    value, z, target, *, gamma=0.0, weight=None, label_smoothing=0.0, ignore_index, reduction, sample_weight, normalizer
):
    """sum_c w_c t_c value(p_c), reduced as torch.nn.functional.cross_entropy does: "mean" divides by the sum of the
    weights of the target classes, for target probabilities by the number of rows."""
    classes = z.shape[1]
    per_class = (-1, *[1] * (z.dim() - 2))
    weight = torch.ones(classes, dtype=z.dtype) if weight is None else weight.to(z.dtype)
    gamma = torch.full((classes,), float(gamma), dtype=z.dtype) if not isinstance(gamma, Tensor) else gamma.to(z.dtype)
    if target.is_floating_point():
        counts = torch.ones(target[:, 0].shape, dtype=torch.bool)
        divisors = torch.ones(counts.shape, dtype=z.dtype)
        t, y = target.to(z.dtype), None
    else:
        counts = target != ignore_index
        y = torch.where(counts, target, 0)
        divisors = weight[y]
        t = torch.zeros_like(z).scatter(1, y.unsqueeze(1), 1)
    if y is None or label_smoothing:
        t = t * (1 - label_smoothing) + label_smoothing / classes
        loss = t * weight.view(per_class) * value(class_terms(z), gamma.view(per_class))
        loss = torch.where(t == 0, 0, loss).sum(1)
    else:
        loss = weight[y] * value(target_terms(z, y), gamma[y])
    if sample_weight is not None:
        loss, divisors = loss * sample_weight, divisors * sample_weight
    loss = torch.where(counts, loss, 0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / (torch.where(counts, divisors, 0).sum() if normalizer is None else normalizer)


def _per_class(values: Tensor, z: Tensor) -> Tensor:
    return values.to(z.dtype).view(-1, *[1] * (z.dim() - 2))


def cross_entropy(
    logits, target, *, weight=None, prior=None, tau=1.0, label_smoothing=0.0,
    ignore_index=-100, reduction="mean", sample_weight=None, normalizer=None,
):  # fmt: skip
    """CE = -log p."""
    z = logits if prior is None else logits + tau * _per_class(prior, logits).log()
    return _mean_or_so(
        lambda terms, gamma: -terms.log_p, z, target, weight=weight, label_smoothing=label_smoothing,
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def focal_loss(
    logits, target, *, gamma=2.0, weight=None, prior=None, tau=1.0, label_smoothing=0.0, detach_factor=False,
    ignore_index=-100, reduction="mean", sample_weight=None, normalizer=None,
):  # fmt: skip
    """FL = -alpha (1 - p)^gamma log p. Lin et al. 2017, eq. 5."""
    z = logits if prior is None else logits + tau * _per_class(prior, logits).log()
    return _mean_or_so(
        lambda terms, gamma: focal(terms, gamma, detach_factor), z, target, gamma=gamma, weight=weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def poly_loss(
    logits, target, *, epsilon=1.0, gamma=0.0, weight=None,
    ignore_index=-100, reduction="mean", sample_weight=None, normalizer=None,
):  # fmt: skip
    """FL + epsilon (1 - p)^(gamma + 1). Leng et al. 2022, Poly-1 of cross entropy (gamma 0) and of focal loss."""
    return _mean_or_so(
        lambda terms, gamma: poly(terms, gamma, epsilon), logits, target, gamma=gamma, weight=weight,
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def balanced_softmax_loss(
    logits, target, *, counts, ignore_index=-100, reduction="mean", sample_weight=None, normalizer=None
):
    """-log( n_y exp(x_y) / sum_c n_c exp(x_c) ). Ren et al. 2020, eq. 3."""
    return cross_entropy(
        logits + _per_class(counts, logits).log(), target,
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def logit_adjusted_loss(
    logits, target, *, prior, tau=1.0, ignore_index=-100, reduction="mean", sample_weight=None, normalizer=None
):
    """-log( exp(x_y + tau log pi_y) / sum_c exp(x_c + tau log pi_c) ). Menon et al. 2021, eq. 10."""
    return cross_entropy(
        logits + tau * _per_class(prior, logits).log(), target,
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def ldam_loss(
    logits, target, *, counts, max_margin=0.5, scale=30.0, weight=None,
    ignore_index=-100, reduction="mean", sample_weight=None, normalizer=None,
):  # fmt: skip
    """Cross entropy of scale * (x_c - [c = y] margin_y), margin_c = n_c^(-1/4), the largest max_margin.

    Cao et al. 2019, eq. 13.
    """
    margins = _per_class(counts, logits) ** -0.25
    margins = margins * (max_margin / margins.max())
    y = torch.where(target == ignore_index, 0, target).unsqueeze(1)
    is_target = torch.zeros_like(logits).scatter(1, y, 1)
    return cross_entropy(
        scale * (logits - is_target * margins), target, weight=weight,
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


def vs_loss(
    logits, target, *, counts, gamma_scale=0.15, tau=1.0,
    ignore_index=-100, reduction="mean", sample_weight=None, normalizer=None,
):  # fmt: skip
    """Cross entropy of Delta_c x_c + iota_c, Delta_c = (n_c / n_max)^gamma_scale, iota_c = tau log pi_c.

    Kini et al. 2021, eq. 3.
    """
    n = _per_class(counts, logits)
    z = (n / n.max()) ** gamma_scale * logits + tau * (n / n.sum()).log()
    return cross_entropy(
        z, target,
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip


# ---- losses whose rows share statistics --------------------------------------------------------------------------
def lader(
    logits, target, *, prior=None, counts: Any = None, smoothing=0.0, lam=0.1, estimator=OFFICIAL, group=None,
    ignore_index=-100,
):  # fmt: skip
    """-sum_c pi_c (F_c - A_c - lam A_c^2). Hong et al. 2021: eq. 9 ("paper"), or as its published code has it.

    Of one process, whatever the group.
    """
    classes = logits.shape[0 if logits.dim() == 1 else 1]
    prior = (smoothed_prior(counts, smoothing) if prior is None else prior).to(logits.dtype)
    x = logits.movedim(1, -1).reshape(-1, classes) if logits.dim() > 1 else logits.unsqueeze(0)
    y = target.reshape(-1)
    x, y = x[y != ignore_index], y[y != ignore_index]
    if len(y) == 0:
        return x.sum()
    of_class = y == torch.arange(classes).view(-1, 1)  # (C, N)
    own = torch.where(of_class, x.T, 0).sum(-1)
    if estimator == OFFICIAL:
        first = own / (of_class.sum(-1).to(x.dtype) + 1e-8)
        spread = (x - torch.log(prior + 1e-9) + math.log(1 / classes + 1e-9)).T
        second = torch.logsumexp(spread, -1) - math.log(len(y))
        return -((first - second - lam * second**2) * prior).sum()
    present = of_class.any(-1)
    first = own[present] / of_class.sum(-1)[present]
    importance = (1 / classes) / prior[y]  # of a row: the uniform prior over the training prior
    second = torch.logsumexp(x[:, present] + importance.log().unsqueeze(1), 0) - math.log(len(y))
    return -((first - second - lam * second**2) * prior[present]).sum()


def lade_loss(
    logits, target, *, prior=None, counts: Any = None, smoothing=0.0, alpha=0.1, lam=0.1, estimator=OFFICIAL,
    ignore_index=-100, reduction="mean", sample_weight=None, normalizer=None, group=None,
):  # fmt: skip
    """PriorCE + alpha LADER. Hong et al. 2021, eq. 10."""
    prior = smoothed_prior(counts, smoothing) if prior is None else prior
    prior_ce = logit_adjusted_loss(
        logits, target, prior=prior,
        ignore_index=ignore_index, reduction=reduction, sample_weight=sample_weight, normalizer=normalizer,
    )  # fmt: skip
    return prior_ce + alpha * lader(
        logits, target, prior=prior, lam=lam, estimator=estimator, ignore_index=ignore_index
    )


def _element_loss(
    inputs, targets, policy, gamma, params, *, alpha=None, weight, pos_weight, normalizer, ignore_index, reduction
):
    """The same, elementwise, reduced over all elements that count."""
    tensor = lambda value: value if isinstance(value, Tensor) else None  # noqa: E731
    number = lambda value, otherwise: otherwise if value is None or isinstance(value, Tensor) else float(value)  # noqa: E731
    if normalizer is not None and not isinstance(normalizer, Tensor):
        normalizer = torch.tensor(normalizer, dtype=torch.float64)
    operands = weight, tensor(pos_weight), tensor(alpha), tensor(gamma), normalizer
    numbers = [number(gamma, 0.0), number(alpha, -1.0), number(pos_weight, 1.0), *params]
    reductions = {"none": 0, "mean": 1, "sum": 2}
    return sigmoid_elements(inputs, targets, operands, numbers, ignore_index, reductions[reduction], policy)


def sigmoid_focal_loss(
    inputs, targets, alpha=0.25, gamma=2, reduction="none", *,
    weight=None, pos_weight=None, normalizer=None, ignore_index=-100,
):  # fmt: skip
    """FL = -alpha_t (1 - p_t)^gamma log p_t, p = sigmoid(x). Lin et al. 2017, eq. 5."""
    return _element_loss(
        inputs, targets, "sigmoid_focal", gamma, [], alpha=alpha, weight=weight, pos_weight=pos_weight,
        normalizer=normalizer, ignore_index=ignore_index, reduction=reduction,
    )  # fmt: skip


def asymmetric_loss(
    inputs, targets, *, gamma_neg=4.0, gamma_pos=1.0, clip=0.05, detach_factor=False, reduction="mean",
    weight=None, pos_weight=None, normalizer=None, ignore_index=-100,
):  # fmt: skip
    """-t (1 - p)^gamma_pos log p - (1 - t) p_m^gamma_neg log(1 - p_m), p_m = max(p - clip, 0). Ridnik et al. 2021."""
    params = [float(gamma_neg), float(clip), float(detach_factor)]
    return _element_loss(
        inputs, targets, "asymmetric", gamma_pos, params, weight=weight, pos_weight=pos_weight,
        normalizer=normalizer, ignore_index=ignore_index, reduction=reduction,
    )  # fmt: skip


def quality_focal_loss(
    inputs, targets, *, beta=2.0, reduction="mean", weight=None, pos_weight=None, normalizer=None, ignore_index=-100
):
    """QFL = |t - p|^beta BCE(x, t). Li et al. 2020, eq. 3."""
    return _element_loss(
        inputs, targets, "quality_focal", beta, [], weight=weight, pos_weight=pos_weight,
        normalizer=normalizer, ignore_index=ignore_index, reduction=reduction,
    )  # fmt: skip


# ---- sampling ------------------------------------------------------------------------------------------------------
# In float64 and all at once: O(n^2) memory. Random numbers come as arguments.
def knn(points, k, queries=None, *, metric="l2"):
    """Distances and indices of a brute force, equal distances by index; a point is no neighbour of its own."""
    points, asked = points.flatten(1).double(), (points if queries is None else queries).flatten(1).double()
    if metric == "cosine":
        points, asked = (rows / rows.norm(dim=1, keepdim=True) for rows in (points, asked))
    squares = torch.stack([(points - row).square().sum(1) for row in asked]) if len(asked) else points.new_empty(0, k)
    if queries is None:
        squares.fill_diagonal_(math.inf)
    squares, indices = squares.sort(dim=1, stable=True)
    squares = squares[:, :k]
    return squares / 2 if metric == "cosine" else squares.sqrt(), indices[:, :k]


def neighbours_in(points, which, k):
    """The k nearest of all points to those at ``which``."""
    return knn(points, k)[1][which]


def smote(points, drawn, gap, k):
    """New rows of one class: row i = drawn // k, its neighbour drawn % k, x_i + gap (x_j - x_i). Chawla et al. 2002."""
    points = points.double()
    rows = drawn // k
    others = neighbours_in(points, rows, k).gather(1, (drawn % k).unsqueeze(1)).squeeze(1)
    return points[rows] + gap.double().unsqueeze(1) * (points[others] - points[rows])


def smotenc(points, nominal, drawn, gap, k, chosen):
    """New rows of one class: numbers as by `smote`, of each column in ``nominal`` a most frequent value among the k
    neighbours, ``chosen`` by a function of which categories those are, (count, V). Chawla et al. 2002, section 6.1."""
    points = points.double()
    numeric = [j for j in range(points.shape[1]) if j not in nominal]
    cost = points[:, numeric].std(0, correction=0).quantile(0.5)
    apart = torch.stack([(points[:, nominal] != row).sum(1) for row in points[:, nominal]])
    squares = knn_squares(points[:, numeric]) + cost**2 * apart
    found = squares.fill_diagonal_(math.inf).sort(dim=1, stable=True)[1][:, :k]
    rows = drawn // k
    others = found[rows, drawn % k]
    new = points[rows] + gap.double().unsqueeze(1) * (points[others] - points[rows])
    for j in nominal:
        categories, codes = points[:, j].unique(return_inverse=True)
        votes = torch.nn.functional.one_hot(codes[found[rows]], len(categories)).sum(1)
        new[:, j] = categories[chosen(votes == votes.amax(1, keepdim=True))]
    return new


def knn_squares(points):
    return torch.stack([(points - row).square().sum(1) for row in points])


def danger(points, codes, code, m):
    """Rows of a class of whose m neighbours at least half, but not all, are foreign. Han et al. 2005."""
    which = (codes == code).nonzero().squeeze(1)
    foreign = (codes[neighbours_in(points, which, m)] != code).sum(1)
    return which[(foreign >= m / 2) & (foreign < m)]


def adasyn_counts(points, codes, code, count, k):
    """How many new rows each row of a class gets: in proportion to its foreign neighbours. He et al. 2008."""
    which = (codes == code).nonzero().squeeze(1)
    share = (codes[neighbours_in(points, which, k)] != code).sum(1).double() / k
    return (share / share.sum() * count).round().long()


def rose(points, drawn, noise, shrink=1.0, rows=None):
    """x_i + h sigma noise, h = shrink (4 / ((d + 2) n))^(1 / (d + 4)). Menardi and Torelli 2014."""
    points = points.double()
    n, d = points.shape
    width = shrink * (4 / ((d + 2) * (rows or n))) ** (1 / (d + 4))
    return points[drawn] + width * points.std(0) * noise.double()


def tomek_links(points, codes):
    """Whether each row is in a link: mutual nearest neighbours of different classes. Tomek 1976."""
    first = knn(points, 1)[1].squeeze(1)
    return (first[first] == torch.arange(len(first))) & (codes != codes[first])


def edited(points, codes, k, kind_sel="all"):
    """Whether each row stays: all of its neighbours, or the commonest class among them, agree. Wilson 1972."""
    labels = codes[knn(points, k)[1]]
    if kind_sel == "all":
        return (labels == codes.unsqueeze(1)).all(1)
    counts = torch.nn.functional.one_hot(labels, int(codes.max()) + 1).sum(1)
    winner = torch.tensor([row.index(max(row)) for row in counts.tolist()])
    return winner == codes


def near_miss(points, codes, code, count, k, version=1, k_first=3):
    """Which rows of a class stay, the best first. Mani and Zhang 2003."""
    smallest = points[codes == codes.bincount().argmin()]
    which = (codes == code).nonzero().squeeze(1)
    if version == 3:
        which = which[knn(points[which], k_first, smallest)[1].unique()]
    distances = knn(smallest, len(smallest), points[which])[0]
    mean = (distances[:, -k:] if version == 2 else distances[:, :k]).sum(1)
    return which[mean.sort(descending=version == 3, stable=True)[1][:count]]
