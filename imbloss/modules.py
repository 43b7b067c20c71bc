"""The losses as modules: arguments are checked once, tensors among them are buffers that move with the module."""

from torch import Tensor, nn

from imbloss import functional
from imbloss._ops import REDUCTIONS
from imbloss.priors import (
    check_counts,
    check_number,
    check_positive,
    check_prior,
    check_shares,
    check_vector,
    precise,
)

__all__ = [
    "AsymmetricLoss",
    "BalancedSoftmaxLoss",
    "CrossEntropy",
    "FocalLoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "PolyLoss",
    "QualityFocalLoss",
    "SigmoidFocalLoss",
    "VSLoss",
]


class _Loss(nn.Module):
    """What the modules share: reduction, ignored index, constants that keep their dtype."""

    def __init__(self, *, ignore_index: int, reduction: str) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f'expected reduction to be "none", "mean" or "sum", but got {reduction!r}')
        self.ignore_index = ignore_index
        self.reduction = reduction

    def _apply(self, fn, recurse=True):
        """Constants follow the module to a device, but keep their dtype: counts and priors do not fit into float16."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, constant in before.items():
            moved = self._buffers[name]
            if constant is not None and moved is not None and moved.dtype != constant.dtype:
                self._buffers[name] = constant.to(moved.device)
        return self

    def extra_repr(self) -> str:
        options = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "training"}
        shapes = {name: f"tensor of shape {tuple(b.shape)}" for name, b in self.named_buffers()}
        return ", ".join(f"{name}={value}" for name, value in (shapes | options).items())

    weight: Tensor | None

    def _weight_buffer(self, weight: Tensor | None) -> None:
        if weight is not None:
            check_vector(weight, None, "weight")
        self.register_buffer("weight", weight)

    def _gamma_buffer(self, gamma: float | Tensor, name: str = "gamma") -> None:
        if not isinstance(gamma, Tensor):
            check_number(gamma, name, least=0, most=functional.MOST_GAMMA)
            setattr(self, name, gamma)
            return
        check_vector(gamma, None, name)
        check_positive(gamma, name, zero=True)
        if isinstance(gamma, nn.Parameter):
            setattr(self, name, gamma)
        else:
            self.register_buffer(name, gamma)


class _SoftmaxLoss(_Loss):
    """A loss that fills in constants of the softmax row traversal."""

    prior: Tensor | None

    def _constants(self) -> dict:
        """The keywords of :func:`imbloss.functional.softmax_rows` that make this loss."""
        raise NotImplementedError

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        for name, constant in self._buffers.items():
            if constant is not None:
                check_vector(constant, functional.num_classes(logits), name, floating=False)
        return functional.softmax_rows(
            logits, target, **self._constants(), ignore_index=self.ignore_index, reduction=self.reduction,
            sample_weight=sample_weight, normalizer=normalizer,
        )  # fmt: skip

    def _prior_buffer(self, prior: Tensor | None, tau: float) -> None:
        if prior is not None:
            check_prior(prior, None)
        check_number(tau, "tau")
        self.register_buffer("prior", prior)
        self.tau = tau

    def _bias(self) -> Tensor | None:
        return None if self.prior is None else self.tau * precise(self.prior).log()


class CrossEntropy(_SoftmaxLoss):
    """Softmax cross entropy: see :func:`imbloss.cross_entropy`.

    >>> CrossEntropy(weight=torch.tensor([1.0, 9.0]))(torch.zeros(1, 2), torch.tensor([1]))
    tensor(0.6931)
    """

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        prior: Tensor | None = None,
        tau: float = 1.0,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        self._weight_buffer(weight)
        self._prior_buffer(prior, tau)
        check_number(label_smoothing, "label_smoothing", least=0, most=1)
        self.label_smoothing = label_smoothing

    def _constants(self) -> dict:
        return {"weight": self.weight, "bias": self._bias(), "label_smoothing": self.label_smoothing}


class FocalLoss(CrossEntropy):
    """Softmax focal loss: see :func:`imbloss.focal_loss`.

    >>> loss = FocalLoss(gamma=2.0)
    >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tensor(0.0018)
    """

    def __init__(
        self,
        *,
        gamma: float | Tensor = 2.0,
        weight: Tensor | None = None,
        prior: Tensor | None = None,
        tau: float = 1.0,
        label_smoothing: float = 0.0,
        detach_factor: bool = False,
        inplace: bool = False,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            weight=weight, prior=prior, tau=tau, label_smoothing=label_smoothing, ignore_index=ignore_index,
            reduction=reduction,
        )  # fmt: skip
        self._gamma_buffer(gamma)
        self.detach_factor = detach_factor
        self.inplace = inplace

    def _constants(self) -> dict:
        params = functional.FOCAL_PARAMS[bool(self.detach_factor)]
        return super()._constants() | {"gamma": self.gamma, "params": params, "inplace": self.inplace}


class PolyLoss(_SoftmaxLoss):
    """Poly-1 loss: see :func:`imbloss.poly_loss`.

    >>> PolyLoss(epsilon=1.0)(torch.zeros(1, 4), torch.tensor([0]))
    tensor(2.1363)
    """

    def __init__(
        self,
        *,
        epsilon: float = 1.0,
        gamma: float = 0.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        functional.poly_params(epsilon)
        check_number(gamma, "gamma", least=0, most=functional.MOST_GAMMA)
        self._weight_buffer(weight)
        self.epsilon = epsilon
        self.gamma = gamma

    def _constants(self) -> dict:
        params = functional.poly_params(self.epsilon)
        return {"weight": self.weight, "gamma": self.gamma, "policy": "poly", "params": params}


class BalancedSoftmaxLoss(_SoftmaxLoss):
    """Balanced softmax: see :func:`imbloss.balanced_softmax_loss`.

    >>> BalancedSoftmaxLoss(counts=torch.tensor([99, 1]))(torch.zeros(1, 2), torch.tensor([1]))
    tensor(4.6052)
    """

    counts: Tensor

    def __init__(self, *, counts: Tensor, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        check_counts(counts)
        self.register_buffer("counts", counts)

    def _constants(self) -> dict:
        return {"bias": functional.log_shares(self.counts)}


class LogitAdjustedLoss(_SoftmaxLoss):
    """Logit-adjusted cross entropy: see :func:`imbloss.logit_adjusted_loss`.

    >>> LogitAdjustedLoss(prior=torch.tensor([0.99, 0.01]))(torch.zeros(1, 2), torch.tensor([1]))
    tensor(4.6052)
    """

    def __init__(self, *, prior: Tensor, tau: float = 1.0, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        if prior is None:
            raise TypeError("expected prior to be a tensor of a floating dtype, but got None")
        self._prior_buffer(prior, tau)

    def _constants(self) -> dict:
        return {"bias": self._bias()}


class LDAMLoss(_SoftmaxLoss):
    """Label-distribution-aware margin loss: see :func:`imbloss.ldam_loss`.

    >>> LDAMLoss(counts=torch.tensor([16, 1]), scale=1.0)(torch.zeros(1, 2), torch.tensor([1]))
    tensor(0.9741)
    """

    counts: Tensor

    def __init__(
        self,
        *,
        counts: Tensor,
        max_margin: float = 0.5,
        scale: float = 30.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        check_counts(counts)
        functional.ldam_constants(counts, max_margin, scale)
        self.register_buffer("counts", counts)
        self._weight_buffer(weight)
        self.max_margin = max_margin
        self.scale = scale

    def _constants(self) -> dict:
        return {"weight": self.weight, **functional.ldam_constants(self.counts, self.max_margin, self.scale)}


class VSLoss(_SoftmaxLoss):
    """Vector-scaling loss: see :func:`imbloss.vs_loss`.

    >>> VSLoss(counts=torch.tensor([99, 1]))(torch.zeros(1, 2), torch.tensor([1]))
    tensor(4.6052)
    """

    counts: Tensor

    def __init__(
        self,
        *,
        counts: Tensor,
        gamma_scale: float = 0.15,
        tau: float = 1.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        check_counts(counts)
        functional.vs_constants(counts, gamma_scale, tau)
        self.register_buffer("counts", counts)
        self.gamma_scale = gamma_scale
        self.tau = tau

    def _constants(self) -> dict:
        return functional.vs_constants(self.counts, self.gamma_scale, self.tau)


class _ElementLoss(_Loss):
    """A loss that fills in constants of the sigmoid element traversal."""

    def __init__(
        self, *, weight: Tensor | None, pos_weight: float | Tensor | None, ignore_index: int, reduction: str
    ) -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        self._weight_buffer(weight)
        if isinstance(pos_weight, Tensor):
            check_vector(pos_weight, None, "pos_weight")
            self.register_buffer("pos_weight", pos_weight)
        else:
            self.pos_weight = None if pos_weight is None else functional.checked_pos_weight(pos_weight)

    def _constants(self) -> dict:
        """The keywords of :func:`imbloss.functional.sigmoid_elements` that make this loss."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, targets: Tensor, *, normalizer: float | Tensor | None = None) -> Tensor:
        return functional.sigmoid_elements(
            inputs, targets, **self._constants(), weight=self.weight, pos_weight=self.pos_weight,
            normalizer=normalizer, ignore_index=self.ignore_index, reduction=self.reduction,
        )  # fmt: skip


class SigmoidFocalLoss(_ElementLoss):
    """Sigmoid focal loss: see :func:`imbloss.sigmoid_focal_loss`.

    >>> SigmoidFocalLoss(reduction="mean")(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    tensor(0.0866)
    """

    def __init__(
        self,
        *,
        alpha: float | Tensor | None = 0.25,
        gamma: float | Tensor = 2.0,
        reduction: str = "none",
        weight: Tensor | None = None,
        pos_weight: float | Tensor | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(weight=weight, pos_weight=pos_weight, ignore_index=ignore_index, reduction=reduction)
        if isinstance(alpha, Tensor):
            check_vector(alpha, None, "alpha")
            check_shares(alpha, "alpha")
            self.register_buffer("alpha", alpha)
        else:
            self.alpha = None if alpha is None else functional.checked_alpha(alpha)
        self._gamma_buffer(gamma)

    def _constants(self) -> dict:
        return {"alpha": self.alpha, "gamma": self.gamma, "policy": "sigmoid_focal"}


class AsymmetricLoss(_ElementLoss):
    """Asymmetric loss: see :func:`imbloss.asymmetric_loss`.

    >>> AsymmetricLoss()(torch.zeros(1, 2), torch.tensor([[1, 0]]))
    tensor(0.1855)
    """

    def __init__(
        self,
        *,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        clip: float = 0.05,
        detach_factor: bool = False,
        reduction: str = "mean",
        weight: Tensor | None = None,
        pos_weight: float | Tensor | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(weight=weight, pos_weight=pos_weight, ignore_index=ignore_index, reduction=reduction)
        functional.asymmetric_params(gamma_neg, gamma_pos, clip, detach_factor)
        self.gamma_neg = gamma_neg
        self.gamma_pos = gamma_pos
        self.clip = clip
        self.detach_factor = detach_factor

    def _constants(self) -> dict:
        params = functional.asymmetric_params(self.gamma_neg, self.gamma_pos, self.clip, self.detach_factor)
        return {"gamma": self.gamma_pos, "policy": "asymmetric", "params": params}


class QualityFocalLoss(_ElementLoss):
    """Quality focal loss: see :func:`imbloss.quality_focal_loss`.

    >>> QualityFocalLoss()(torch.tensor([0.0, 1.0]), torch.tensor([0.8, 0.0]))
    tensor(0.3821)
    """

    def __init__(
        self,
        *,
        beta: float = 2.0,
        reduction: str = "mean",
        weight: Tensor | None = None,
        pos_weight: float | Tensor | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(weight=weight, pos_weight=pos_weight, ignore_index=ignore_index, reduction=reduction)
        check_number(beta, "beta", least=0, most=functional.MOST_GAMMA)
        self.beta = beta

    def _constants(self) -> dict:
        return {"gamma": self.beta, "gamma_name": "beta", "policy": "quality_focal"}
