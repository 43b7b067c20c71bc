"""Batches of images mixed with each other, rare classes first. Targets come out as probabilities, which every softmax
loss of this package takes at the price of little more than class indices."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from imbloss.data.randomness import Randomness
from imbloss.priors import can_look, check_counts, check_number, describe


class MixedBatch(NamedTuple):
    """What the mixing of a batch returns."""

    x: Tensor  # of the shape and dtype it came in
    target: Tensor  # probabilities, (N, C), float32 (float64 for float64 x)


class _Mix:
    """Draws the partners and the share of a batch; how they are put together is the subclass's."""

    def __init__(self, num_classes: int, alpha: float, p: float, seed: int | None) -> None:
        check_number(num_classes, "num_classes", least=1, whole=True)
        check_number(alpha, "alpha", above=0)
        check_number(p, "p", least=0, most=1)
        self.num_classes = num_classes
        self.alpha = alpha
        self.p = p
        self._random = Randomness(seed)

    def _is_skipped(self) -> bool:
        return self.p < 1 and self._random.numbers.random() >= self.p

    def _share(self) -> float:
        """lambda from Beta(alpha, alpha)."""
        return float(self._random.numbers.beta(self.alpha, self.alpha))

    def _partners(self, x: Tensor) -> Tensor:
        return torch.randperm(len(x), generator=self._random.on(x.device), device=x.device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_classes={self.num_classes}, alpha={self.alpha}, p={self.p})"


def _check_batch(x: Tensor, y: Tensor, num_classes: int, dims: int, *, probabilities: bool = False) -> None:
    if not isinstance(x, Tensor) or x.dim() < dims:
        raise TypeError(f"expected x to be a tensor of {dims} or more dimensions, (N, ...), but got {describe(x)}")
    if not isinstance(y, Tensor) or y.dtype == torch.bool or y.is_complex():
        raise TypeError(f"expected y to be a tensor of class indices, but got {describe(y)}")
    if y.is_floating_point():
        if not probabilities:
            raise TypeError(f"expected y to be class indices, but got {describe(y)}")
        if y.shape != (len(x), num_classes):
            raise ValueError(f"expected y of shape {(len(x), num_classes)}, but got {tuple(y.shape)}")
        return
    if y.shape != (len(x),):
        raise ValueError(f"expected y of shape ({len(x)},), as x has rows, but got {tuple(y.shape)}")
    if y.device != x.device:
        raise ValueError(f"expected y on {x.device}, where x is, but got {y.device}")
    if can_look(y) and len(y) and not (int(y.min()) >= 0 and int(y.max()) < num_classes):
        bad = int(((y < 0) | (y >= num_classes)).nonzero()[0])
        raise IndexError(f"expected y in [0, {num_classes}), but got {int(y[bad])} at index {bad}")


def _check_floating(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"expected x of a floating dtype, as pixels are averaged, but got {x.dtype}")


def _probabilities(y: Tensor, x: Tensor, num_classes: int) -> Tensor:
    """(N, C) from class indices; NaN for an index out of range, where nobody could look."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if y.is_floating_point():
        return y.to(dtype)
    inside = (y >= 0) & (y < num_classes)
    target = torch.zeros(len(y), num_classes, dtype=dtype, device=y.device)
    target.scatter_(1, torch.where(inside, y, 0).long()[:, None], 1)
    return target if can_look(y) else target.masked_fill_(~inside[:, None], math.nan)


class Box(NamedTuple):
    """A rectangle of an image, and the share of the image outside of it."""

    rows: slice
    columns: slice
    outside: float


def _box(height: int, width: int, outside: float, random: Randomness) -> Box:
    """A rectangle of the image's proportions that leaves a share `outside` where it lies inside the image; its centre
    is uniform, so that it is clipped at the edges."""
    numbers = random.numbers
    side = math.sqrt(1 - outside)
    half_height, half_width = int(height * side) / 2, int(width * side) / 2
    row, column = numbers.integers(height) if height else 0, numbers.integers(width) if width else 0
    top, bottom = max(0, math.floor(row - half_height)), min(height, math.floor(row + half_height))
    left, right = max(0, math.floor(column - half_width)), min(width, math.floor(column + half_width))
    area = (bottom - top) * (right - left)
    return Box(slice(top, bottom), slice(left, right), 1 - area / max(height * width, 1))


def _paste(x: Tensor, foreground: Tensor, partners: Tensor, box: Box) -> Tensor:
    """Copies of x with a rectangle of others in them; only that rectangle of the others is read."""
    mixed = x.clone()
    mixed[..., box.rows, box.columns] = foreground[..., box.rows, box.columns][partners]
    return mixed


class MixUp(_Mix):
    r"""Averages a batch with itself in another order.

    .. math:: \tilde x = \lambda x_i + (1 - \lambda) x_j, \quad \tilde y = \lambda y_i + (1 - \lambda) y_j,
        \quad \lambda \sim \operatorname{Beta}(\alpha, \alpha)

    Args:
        num_classes: C.
        alpha: > 0; the larger, the nearer lambda is to 1/2.
        p: probability that a batch is mixed at all.
        seed: >= 0; None draws from torch's global generator. One lambda a batch, as in the paper's code.

    Call it with x of shape (N, ...), floating, and y: class indices of shape (N,) in [0, C), or probabilities (N, C).
    Returns :class:`MixedBatch`. Works on any device, without waiting for it, in the training loop or as a DataLoader's
    ``collate_fn`` (where the workers' seeds join in).

    Raises:
        IndexError: a label outside [0, C) (on CPU; elsewhere its target is NaN).
        TypeError, ValueError: an argument of the wrong type, dtype or shape; the message names it.

    Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.

    >>> mix = MixUp(num_classes=3, seed=0)
    >>> x, target = mix(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    >>> loss = focal_loss(torch.zeros(4, 3), target)
    >>> target.sum(1)
    tensor([1., 1., 1., 1.])
    """

    def __init__(self, num_classes: int, *, alpha: float = 1.0, p: float = 1.0, seed: int | None = None) -> None:
        super().__init__(num_classes, alpha, p, seed)

    def __call__(self, x: Tensor, y: Tensor) -> MixedBatch:
        _check_batch(x, y, self.num_classes, 1, probabilities=True)
        _check_floating(x)
        target = _probabilities(y, x, self.num_classes)
        if self._is_skipped():
            return MixedBatch(x, target)
        share, partners = self._share(), self._partners(x)
        return MixedBatch(x[partners].lerp_(x, share), target[partners].lerp_(target, share))


class CutMix(_Mix):
    r"""Pastes a rectangle of another image of the batch into each; the label follows the areas.

    .. math:: \tilde y = \lambda y_i + (1 - \lambda) y_j, \quad \lambda = 1 - \frac{\text{area pasted}}{HW}

    Arguments, calls, errors: as :class:`MixUp`, with x of shape (N, ..., H, W) of any dtype. The rectangle has the
    image's proportions and the area 1 - Beta(alpha, alpha), its centre is uniform, and what lies outside is cut off.

    Source: Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV
    2019.

    >>> x, target = CutMix(num_classes=2, seed=0)(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    >>> x.shape, target.shape
    (torch.Size([2, 3, 8, 8]), torch.Size([2, 2]))
    """

    def __init__(self, num_classes: int, *, alpha: float = 1.0, p: float = 1.0, seed: int | None = None) -> None:
        super().__init__(num_classes, alpha, p, seed)

    def __call__(self, x: Tensor, y: Tensor) -> MixedBatch:
        _check_batch(x, y, self.num_classes, 3, probabilities=True)
        target = _probabilities(y, x, self.num_classes)
        if self._is_skipped():
            return MixedBatch(x, target)
        box, partners = _box(x.shape[-2], x.shape[-1], self._share(), self._random), self._partners(x)
        return MixedBatch(_paste(x, x, partners, box), target[partners].lerp_(target, box.outside))


class ReMix(_Mix):
    r"""MixUp whose label leans to the rarer class.

    .. math:: \tilde x = \lambda x_i + (1 - \lambda) x_j, \quad \tilde y = \lambda_y y_i + (1 - \lambda_y) y_j, \quad
        \lambda_y = \begin{cases} 0 & n_i / n_j \ge \kappa \text{ and } \lambda < \tau \\
        1 & n_i / n_j \le 1 / \kappa \text{ and } 1 - \lambda < \tau \\ \lambda & \text{otherwise} \end{cases}

    A mixture of a frequent and a rare class in which the rare one has the larger part (more than 1 - tau) counts as
    wholly rare: the decision boundary moves away from the rare class.

    Args:
        counts: training samples per class, shape (C,), > 0.
        kappa: how many times as frequent a class must be to give way, >= 1; infinity gives :class:`MixUp`.
        tau: share of the frequent class up to which it gives way, in [0, 1].
        alpha, p, seed: see :class:`MixUp`; likewise calls and errors, but labels are class indices.

    kappa = 3 and tau = 0.5 are the paper's.

    Source: Chou et al., Remix: Rebalanced Mixup, ECCV 2020 Workshops, eqs. 6 and 7.

    >>> remix = ReMix(counts=torch.tensor([1000, 10]), seed=0)
    >>> x, target = remix(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 0]))
    >>> target.sum(1)
    tensor([1., 1., 1., 1.])
    """

    def __init__(
        self,
        counts: Tensor,
        *,
        kappa: float = 3.0,
        tau: float = 0.5,
        alpha: float = 1.0,
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        check_counts(counts)
        super().__init__(len(counts), alpha, p, seed)
        check_number(kappa, "kappa", least=1, finite=False)
        check_number(tau, "tau", least=0, most=1)
        self.counts = counts.detach().double()
        self.kappa = kappa
        self.tau = tau

    def __call__(self, x: Tensor, y: Tensor) -> MixedBatch:
        _check_batch(x, y, self.num_classes, 1)
        _check_floating(x)
        target = _probabilities(y, x, self.num_classes)
        if self._is_skipped():
            return MixedBatch(x, target)
        share, partners = self._share(), self._partners(x)
        share_of_label = self._shares_of_labels(share, y, partners).to(target.dtype)
        return MixedBatch(x[partners].lerp_(x, share), target[partners].lerp_(target, share_of_label[:, None]))

    def _shares_of_labels(self, share: float, y: Tensor, partners: Tensor) -> Tensor:
        """lambda_y of each row."""
        counts = self.counts.to(y.device)[y.clamp(0, self.num_classes - 1).long()]
        ratio = counts / counts[partners]
        shares = torch.full_like(ratio, share)
        if share < self.tau:
            shares = shares.masked_fill(ratio >= self.kappa, 0)
        if 1 - share < self.tau:
            shares = shares.masked_fill(ratio <= 1 / self.kappa, 1)
        return shares


class CMO(_Mix):
    r"""Context-rich minority oversampling: rare foregrounds are pasted onto frequent backgrounds.

    Backgrounds come as the data do, foregrounds with class probabilities
    :math:`q_c \propto n_c \cdot n_c^{-r} / \sum_k n_k^{1 - r}`: each sample weighs :math:`n_c^{-r}`, so that r = 1
    makes classes alike. The rectangle and the label are :class:`CutMix`'s with :math:`\lambda \sim
    \operatorname{Beta}(\alpha, \alpha)`.

    Args:
        counts: training samples per class, shape (C,), > 0.
        power: r >= 0.
        alpha, p, seed: see :class:`MixUp`; likewise errors, but labels are class indices.

    Call it with a batch (x, y) of backgrounds, x of shape (N, ..., H, W), and ``foreground=(x, y)``, a batch of
    at least one image of the same size, from a second DataLoader over the same data with
    :class:`imbloss.WeightedSampler` or torch's WeightedRandomSampler over :meth:`weights`: so the paper has it. Without
    one, foregrounds are drawn from the batch itself by the same weights, which cannot show a class that the batch
    lacks.

    Source: Park et al., The Majority Can Help the Minority: Context-Rich Minority Oversampling for Long-Tailed
    Classification, CVPR 2022, algorithm 1 and eq. 1.

    >>> cmo = CMO(counts=torch.tensor([1000, 10]), seed=0)
    >>> cmo.weights(torch.tensor([0, 1]))
    tensor([0.0010, 0.1000], dtype=torch.float64)
    >>> x, target = cmo(torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 0, 1]))
    >>> target.sum(1)
    tensor([1., 1., 1., 1.])
    """

    def __init__(
        self, counts: Tensor, *, power: float = 1.0, alpha: float = 1.0, p: float = 1.0, seed: int | None = None
    ) -> None:
        check_counts(counts)
        super().__init__(len(counts), alpha, p, seed)
        check_number(power, "power", least=0)
        self.power = power
        self._weight = counts.detach().double() ** -power

    def weights(self, labels: Tensor) -> Tensor:
        """Of each sample, for the sampler of foregrounds: n_y^-r, float64 of the labels' shape.

        Raises:
            IndexError: a label outside [0, C) (on CPU; elsewhere it weighs as the nearest class).
        """
        if can_look(labels) and labels.numel() and not (labels.min() >= 0 and labels.max() < self.num_classes):
            bad = labels.min() if labels.min() < 0 else labels.max()
            raise IndexError(f"expected labels in [0, {self.num_classes}), but got {int(bad)}")
        return self._weight.to(labels.device)[labels.clamp(0, self.num_classes - 1).long()]

    def __call__(self, x: Tensor, y: Tensor, *, foreground: tuple[Tensor, Tensor] | None = None) -> MixedBatch:
        _check_batch(x, y, self.num_classes, 3)
        target = _probabilities(y, x, self.num_classes)
        if self._is_skipped() or len(x) == 0:
            return MixedBatch(x, target)
        if foreground is None:
            front, front_target = x, target
            drawn_by = self.weights(y).float()  # not every device has float64
            partners = torch.multinomial(drawn_by, len(x), replacement=True, generator=self._random.on(x.device))
        else:
            front, front_y = foreground
            _check_batch(front, front_y, self.num_classes, 3)
            if front.shape[1:] != x.shape[1:] or len(front) == 0:
                raise ValueError(
                    f"expected foreground images, at least one, of shape {tuple(x.shape[1:])}, "
                    f"but got x of shape {tuple(front.shape)}"
                )
            front_target = _probabilities(front_y, x, self.num_classes)
            partners = torch.arange(len(x), device=x.device) % len(front)
        box = _box(x.shape[-2], x.shape[-1], self._share(), self._random)
        return MixedBatch(_paste(x, front, partners, box), front_target[partners].lerp_(target, box.outside))
