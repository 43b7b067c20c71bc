"""The table: one row a public loss. The generic tests of test_losses.py run every row; a loss without one fails there.

A sample is a function (classes, shape of the rows) -> keywords, so that each can be tried at any size. The keyword
"soft" is not the loss's: with it the targets are probabilities.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import imbloss
from imbloss import reference

Keywords = dict[str, object]
Shape = tuple[int, ...]
Sample = Callable[[int, Shape], Keywords]


def uneven(n: int, low: float = 0.1, high: float = 3.0) -> torch.Tensor:
    """n different positive numbers in no order."""
    return torch.linspace(low, high, n)[torch.randperm(n, generator=torch.Generator().manual_seed(n))]


def row_weights(shape: "Shape") -> torch.Tensor:
    return uneven(math.prod(shape)).view(shape)


def long_tailed_counts(classes: int) -> torch.Tensor:
    return (1000 * 0.01 ** (torch.arange(classes) / max(classes - 1, 1))).long()


def prior_of(classes: int) -> torch.Tensor:
    counts = long_tailed_counts(classes).double()
    return (counts / counts.sum()).float()


ACRONYMS = {"lade": "LADE", "lader": "LADER", "ldam": "LDAM", "vs": "VS"}


@dataclass(frozen=True)
class Loss:
    name: str
    samples: dict[str, Sample] = field(repr=False)
    # name -> (keywords, exception, its message)
    errors: dict[str, tuple[Keywords, type[Exception], str]] = field(default_factory=dict, repr=False)
    # name -> (keywords of this loss, another way to the same value), at any number of classes and rows
    identities: dict[str, tuple[Sample, Callable[..., torch.Tensor]]] = field(default_factory=dict, repr=False)
    # terms of every class, gamma, keywords -> what each class adds to the loss of soft targets, per share
    of_class: Callable[..., torch.Tensor] = lambda terms, gamma, keywords: reference.focal(
        terms, gamma, keywords.get("detach_factor", False)
    )
    # what "reduction" may be, the default first; () where there is no such keyword
    reductions: tuple[str, ...] = ("mean", "none", "sum")
    # whether a row's loss and gradient depend on the other rows
    coupled: bool = False
    # where terms may cancel, (logits, target, keywords in float64) -> the sizes of those of the value and of the
    # gradient, which rounding is relative to
    sizes: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None

    @property
    def inplace(self) -> bool:
        """Whether the gradient may be written over the logits."""
        return "inplace" in inspect.signature(self.function).parameters

    @property
    def function(self) -> Callable[..., torch.Tensor]:
        return getattr(imbloss, self.name)

    @property
    def reference(self) -> Callable[..., torch.Tensor]:
        return getattr(reference, self.name)

    def default(self, keyword: str, without: object) -> object:
        """The default of a keyword, or what stands for it in a loss that has none of that name."""
        parameter = inspect.signature(self.function).parameters.get(keyword)
        return parameter.default if parameter else without

    @property
    def module(self) -> type[torch.nn.Module]:
        return getattr(imbloss, "".join(ACRONYMS.get(part, part.capitalize()) for part in self.name.split("_")))


def lade_sizes(x, y, keywords, prior_ce=True, alpha=0.1):
    """Of PriorCE and of LADER's F and A, which pull in opposite directions."""
    k = dict(keywords)
    alpha, ignored = k.pop("alpha", alpha), k.get("ignore_index", -100)
    prior = reference.smoothed_prior(k["counts"], k.get("smoothing", 0.0)) if "counts" in k else k["prior"]
    lam, official = k.get("lam", 0.1), k.get("estimator", "official") == "official"
    rows = lambda t: t.movedim(1, -1).reshape(-1, len(prior))  # noqa: E731
    z, flat, counts = rows(x), y.reshape(-1), y.reshape(-1) != ignored
    flat = torch.where(counts, flat, 0)
    weight = counts.double()
    v = torch.ones_like(weight) if official else 1 / (len(prior) * prior[flat])
    shifted = torch.where(counts.unsqueeze(1), z + v.log().unsqueeze(1), -math.inf)
    of_class = torch.nn.functional.one_hot(flat, len(prior)) * counts.unsqueeze(1)
    n = of_class.sum(0)
    second = shifted.logsumexp(0) - weight.sum().log()
    second = second - (prior + 1e-9).log() + math.log(1 / len(prior) + 1e-9) if official else second
    share = alpha * prior * (1 if official else (n > 0))
    first = (z.abs() * of_class).sum(0) / n.clamp(min=1)
    value = (share * (first + second.abs() + lam * second**2)).sum()
    columns = share * (1 + 2 * lam * second.abs()) * shifted.softmax(0) + of_class * (share / n.clamp(min=1))
    columns = torch.where(counts.unsqueeze(1), columns, 0)
    grad = columns.view(x.shape[0], *x.shape[2:], len(prior)).movedim(-1, 1)
    if prior_ce:
        leaf = x.detach().requires_grad_()
        names = ("ignore_index", "reduction", "sample_weight", "normalizer")
        loss = reference.logit_adjusted_loss(leaf, y, prior=prior, **{name: k[name] for name in names if name in k})
        value = value + loss.detach().abs()
        grad = grad + torch.autograd.grad(loss, leaf)[0].abs()
    return value, grad


# What every softmax loss takes.
SHARED: dict[str, Sample] = {
    "none": lambda c, n: {"reduction": "none"},
    "sum": lambda c, n: {"reduction": "sum"},
    "sample weight": lambda c, n: {"sample_weight": row_weights(n)},
    "sample weight, none": lambda c, n: {"sample_weight": row_weights(n), "reduction": "none"},
    "normalizer": lambda c, n: {"normalizer": 7.5},
    "normalizer tensor": lambda c, n: {"normalizer": torch.tensor(3)},
    "ignore index": lambda c, n: {"ignore_index": 0},
}
# What those take whose targets may be probabilities.
SOFT: dict[str, Sample] = {
    "smoothing": lambda c, n: {"label_smoothing": 0.1},
    "smoothing, weight, none": lambda c, n: {"label_smoothing": 0.3, "weight": uneven(c), "reduction": "none"},
    "smoothing, ignore index": lambda c, n: {"label_smoothing": 0.1, "ignore_index": 0},
    "soft": lambda c, n: {"soft": True},
    "soft, none": lambda c, n: {"soft": True, "reduction": "none"},
    "soft, smoothing": lambda c, n: {"soft": True, "label_smoothing": 0.2},
    "soft, weight, sample weight": lambda c, n: {"soft": True, "weight": uneven(c), "sample_weight": row_weights(n)},
    "soft, prior, sum": lambda c, n: {"soft": True, "prior": prior_of(c), "reduction": "sum"},
    "soft, normalizer": lambda c, n: {"soft": True, "normalizer": 3.5},
}
SHARED_ERRORS: dict[str, tuple[Keywords, type[Exception], str]] = {
    "reduction": ({"reduction": "avg"}, ValueError, r"expected reduction to be .*, but got 'avg'"),
    "sample weight": (
        {"sample_weight": torch.ones(3)}, ValueError, r"expected sample_weight of shape \(5,\), but got \(3,\)",
    ),
    "normalizer": (
        {"normalizer": 2, "reduction": "sum"}, ValueError, 'expected normalizer only with reduction="mean"',
    ),
    "normalizer tensor": ({"normalizer": torch.ones(2)}, ValueError, "expected normalizer to be a number"),
}  # fmt: skip
SOFT_ERRORS: dict[str, tuple[Keywords, type[Exception], str]] = {
    "label smoothing": ({"label_smoothing": 1.5}, ValueError, r"expected label_smoothing in \[0, 1\], but got 1.5"),
}
PRIOR_ERRORS: dict[str, tuple[Keywords, type[Exception], str]] = {
    "prior length": ({"prior": torch.full((3,), 1 / 3)}, ValueError, r"expected prior of shape \(4,\), but got \(3,\)"),
    "prior sum": ({"prior": torch.ones(4)}, ValueError, "expected prior to sum to 1 within 1e-4, but got a sum of 4"),
    "prior zero": ({"prior": torch.tensor([1.0, 0, 0, 0])}, ValueError, "expected prior > 0 .* but got 0.0 at index 1"),
    "prior counts": (
        {"prior": torch.tensor([1, 2, 3, 4])},
        TypeError,
        "expected prior to be a tensor of a floating dtype",
    ),
    "tau": (
        {"prior": torch.full((4,), 0.25), "tau": float("nan")},
        ValueError,
        "expected tau to be finite, but got nan",
    ),
}
WEIGHT_ERRORS: dict[str, tuple[Keywords, type[Exception], str]] = {
    "weight length": ({"weight": torch.ones(3)}, ValueError, r"expected weight of shape \(4,\), but got \(3,\)"),
    "weight dtype": (
        {"weight": torch.ones(4, dtype=torch.int64)},
        TypeError,
        "expected weight to be a tensor of a floating",
    ),
    "weight list": ({"weight": [1.0] * 4}, TypeError, "expected weight to be a tensor .* but got list"),
}

COUNTS_ERRORS: dict[str, tuple[Keywords, type[Exception], str]] = {
    "counts zero": (
        {"counts": torch.tensor([3, 0, 1, 1])}, ValueError, "expected counts > 0 .* but got 0 at index 1",
    ),
    "counts length": ({"counts": torch.ones(3)}, ValueError, r"expected counts of shape \(4,\), but got \(3,\)"),
    "counts list": ({"counts": [1, 2, 3, 4]}, TypeError, "expected counts to be a tensor of an integer"),
}  # fmt: skip

LADE_ERRORS: dict[str, tuple[Keywords, type[Exception], str]] = {
    "neither": ({}, ValueError, "expected either prior or counts, but got neither"),
    "both": (
        {"prior": torch.full((4,), 0.25), "counts": torch.ones(4)}, ValueError,
        "expected either prior or counts, but got both",
    ),
    "counts zero": ({"counts": torch.tensor([3, 0, 1, 1])}, ValueError, "expected counts > 0 .* but got 0 at index 1"),
    "smoothed counts": (
        {"counts": torch.tensor([3, -1, 1, 1]), "smoothing": 2.0}, ValueError, "expected counts >= 0 .* but got -1",
    ),
    "counts length": ({"counts": torch.ones(3)}, ValueError, r"expected counts of shape \(4,\), but got \(3,\)"),
    "smoothing": (
        {"prior": torch.full((4,), 0.25), "smoothing": 1.0}, ValueError,
        "expected smoothing only beside counts, but got smoothing=1.0",
    ),
    "lam": ({"prior": torch.full((4,), 0.25), "lam": math.nan}, ValueError, "expected lam >= 0 .* but got nan"),
    "estimator": (
        {"prior": torch.full((4,), 0.25), "estimator": "dv"}, ValueError,
        'expected estimator to be "official" or "paper", but got \'dv\'',
    ),
}  # fmt: skip

LOSSES = [
    Loss(
        "cross_entropy",
        samples={
            "plain": lambda c, n: {},
            "weight": lambda c, n: {"weight": uneven(c)},
            "prior": lambda c, n: {"prior": prior_of(c), "tau": 0.7},
            **SHARED,
            **SOFT,
        },
        errors=SHARED_ERRORS | PRIOR_ERRORS | WEIGHT_ERRORS | SOFT_ERRORS,
        identities={
            "torch's": (lambda c, n: {"weight": uneven(c)}, torch.nn.functional.cross_entropy),
            "prior is added to the logits": (
                lambda c, n: {"prior": prior_of(c), "tau": 2.0},
                lambda x, y, prior, tau: torch.nn.functional.cross_entropy(
                    x + tau * prior.to(x).log().view(-1, *[1] * (x.dim() - 2)), y
                ),
            ),
        },
    ),
    Loss(
        "focal_loss",
        samples={
            "gamma 2": lambda c, n: {},
            "gamma 0": lambda c, n: {"gamma": 0.0},
            "gamma 0.3": lambda c, n: {"gamma": 0.3},
            "gamma 0.5": lambda c, n: {"gamma": 0.5, "reduction": "none"},
            "gamma 1": lambda c, n: {"gamma": 1},
            "gamma 3.3": lambda c, n: {"gamma": 3.3},
            "gamma 5": lambda c, n: {"gamma": 5.0, "reduction": "sum"},
            "gamma per class": lambda c, n: {"gamma": uneven(c, 0.0, 3.0)},
            "weight": lambda c, n: {"weight": uneven(c)},
            "weight and sample weight": lambda c, n: {"weight": uneven(c), "sample_weight": row_weights(n)},
            "prior": lambda c, n: {"prior": prior_of(c), "tau": 0.7},
            "detached factor": lambda c, n: {"detach_factor": True, "gamma": 0.7},
            **SHARED,
            **SOFT,
            "soft, gamma 0.5": lambda c, n: {"soft": True, "gamma": 0.5},
            "soft, gamma 3.3": lambda c, n: {"soft": True, "gamma": 3.3, "label_smoothing": 0.1},
            "soft, gamma per class": lambda c, n: {"soft": True, "gamma": uneven(c, 0.0, 3.0)},
            "soft, detached factor": lambda c, n: {"soft": True, "detach_factor": True, "gamma": 2.0},
        },
        errors={
            **SOFT_ERRORS,
            **SHARED_ERRORS,
            **PRIOR_ERRORS,
            **WEIGHT_ERRORS,
            "gamma": ({"gamma": -0.5}, ValueError, r"expected gamma in \[0, 1e\+06\], but got -0.5"),
            "gamma nan": ({"gamma": float("nan")}, ValueError, r"expected gamma in \[0, 1e\+06\], but got nan"),
            "gamma length": ({"gamma": torch.ones(2)}, ValueError, r"expected gamma of shape \(4,\), but got \(2,\)"),
            "gamma of a class": (
                {"gamma": torch.tensor([1.0, -1, 0, 0])}, ValueError, "expected gamma >= 0 .* but got -1.0 at index 1",
            ),
        },
        identities={
            "gamma 0 is cross entropy": (
                lambda c, n: {"gamma": 0.0, "weight": uneven(c)},
                lambda x, y, gamma, weight: torch.nn.functional.cross_entropy(x, y, weight=weight),
            ),
            "one gamma for each class": (
                lambda c, n: {"gamma": torch.full((c,), 1.7)},
                lambda x, y, gamma: imbloss.focal_loss(x, y, gamma=float(gamma[0])),
            ),
        },
    ),
    Loss(
        "poly_loss",
        samples={
            "epsilon 1": lambda c, n: {},
            "epsilon -0.5": lambda c, n: {"epsilon": -0.5},
            "gamma 2": lambda c, n: {"epsilon": 2.0, "gamma": 2.0, "weight": uneven(c)},
            "gamma 0.5": lambda c, n: {"epsilon": 0.5, "gamma": 0.5},
            "soft": lambda c, n: {"soft": True, "gamma": 1.0},
            **SHARED,
        },
        errors={
            **SHARED_ERRORS,
            **WEIGHT_ERRORS,
            "epsilon": ({"epsilon": -1.5}, ValueError, r"expected epsilon >= -1 .* but got -1.5"),
            "gamma": ({"gamma": -0.5}, ValueError, r"expected gamma in \[0, 1e\+06\], but got -0.5"),
        },
        identities={
            "epsilon 0 is focal loss": (
                lambda c, n: {"epsilon": 0.0, "gamma": 1.5},
                lambda x, y, epsilon, gamma: imbloss.focal_loss(x, y, gamma=gamma),
            )
        },
        of_class=lambda terms, gamma, keywords: reference.poly(terms, gamma, keywords.get("epsilon", 1.0)),
    ),
    Loss(
        "balanced_softmax_loss",
        samples={
            name: (lambda c, n, shared=shared: {"counts": long_tailed_counts(c), **shared(c, n)})
            for name, shared in {"counts": lambda c, n: {}, "soft": lambda c, n: {"soft": True}, **SHARED}.items()
        },
        errors={
            **{name: ({"counts": torch.arange(1, 5), **bad}, *rest) for name, (bad, *rest) in SHARED_ERRORS.items()},
            **COUNTS_ERRORS,
        },
        identities={
            "equal counts are cross entropy": (
                lambda c, n: {"counts": torch.full((c,), 5)},
                lambda x, y, counts: torch.nn.functional.cross_entropy(x, y),
            )
        },
    ),
    Loss(
        "logit_adjusted_loss",
        samples={
            name: (lambda c, n, shared=shared: {"prior": prior_of(c), "tau": 1.3, **shared(c, n)})
            for name, shared in {"prior": lambda c, n: {}, "soft": lambda c, n: {"soft": True}, **SHARED}.items()
        },
        errors={
            **{name: ({"prior": torch.full((4,), 0.25), **bad}, *rest) for name, (bad, *rest) in SHARED_ERRORS.items()},
            **PRIOR_ERRORS,
            "no prior": ({"prior": None}, TypeError, "expected prior to be a tensor"),
        },
        identities={
            "tau 1 is balanced softmax": (
                lambda c, n: {"prior": long_tailed_counts(c).double() / long_tailed_counts(c).sum()},
                lambda x, y, prior: imbloss.balanced_softmax_loss(x, y, counts=prior * 1000),
            )
        },
    ),
    Loss(
        "ldam_loss",
        samples={
            name: (lambda c, n, shared=shared: {"counts": long_tailed_counts(c), **shared(c, n)})
            for name, shared in {
                "counts": lambda c, n: {},
                "weight": lambda c, n: {"weight": uneven(c), "scale": 5.0, "max_margin": 1.5},
                **SHARED,
            }.items()
        },
        errors={
            **{name: ({"counts": torch.arange(1, 5), **bad}, *rest) for name, (bad, *rest) in SHARED_ERRORS.items()},
            **COUNTS_ERRORS,
            "margin": (
                {"counts": torch.ones(4), "max_margin": -1.0}, ValueError, "expected max_margin >= 0 .* but got -1.0",
            ),
            "scale": ({"counts": torch.ones(4), "scale": 0}, ValueError, "expected scale > 0 and finite, but got 0"),
        },
        identities={
            "no margin is scaled cross entropy": (
                lambda c, n: {"counts": long_tailed_counts(c), "max_margin": 0.0, "scale": 3.0},
                lambda x, y, counts, max_margin, scale: torch.nn.functional.cross_entropy(3 * x, y),
            )
        },
    ),
    Loss(
        "vs_loss",
        samples={
            name: (lambda c, n, shared=shared: {"counts": long_tailed_counts(c), **shared(c, n)})
            for name, shared in {
                "counts": lambda c, n: {},
                "gamma and tau": lambda c, n: {"gamma_scale": 0.4, "tau": 0.6},
                "soft": lambda c, n: {"soft": True},
                **SHARED,
            }.items()
        },
        errors={
            **{name: ({"counts": torch.arange(1, 5), **bad}, *rest) for name, (bad, *rest) in SHARED_ERRORS.items()},
            **COUNTS_ERRORS,
            "gamma": (
                {"counts": torch.ones(4), "gamma_scale": -1}, ValueError, "expected gamma_scale >= 0 .* but got -1",
            ),
            "tau": (
                {"counts": torch.ones(4), "tau": math.inf}, ValueError, "expected tau to be finite, but got inf",
            ),
        },
        identities={
            "gamma 0 is balanced softmax": (
                lambda c, n: {"counts": long_tailed_counts(c), "gamma_scale": 0.0},
                lambda x, y, counts, gamma_scale: imbloss.balanced_softmax_loss(x, y, counts=counts),
            )
        },
    ),
    Loss(
        "lade_loss",
        reductions=("mean", "sum"),
        coupled=True,
        sizes=lade_sizes,
        samples={
            "official": lambda c, n: {"prior": prior_of(c)},
            "paper": lambda c, n: {"prior": prior_of(c), "estimator": "paper", "lam": 0.5},
            "counts": lambda c, n: {"counts": long_tailed_counts(c), "alpha": 0.3},
            "smoothed counts": lambda c, n: {"counts": long_tailed_counts(c) // 20, "smoothing": 0.5},
            "large alpha": lambda c, n: {"prior": prior_of(c).double(), "alpha": 20.0, "estimator": "paper"},
            "tiny prior": lambda c, n: {"prior": torch.softmax(torch.linspace(0, -30, c), 0)},
            **{
                name: (lambda c, n, shared=shared: {"prior": prior_of(c), **shared(c, n)})
                for name, shared in SHARED.items()
                if "none" not in name
            },
            "paper, ignore index": lambda c, n: {"prior": prior_of(c), "estimator": "paper", "ignore_index": 0},
        },
        errors={
            **{name: ({"prior": torch.full((4,), 0.25), **bad}, *rest) for name, (bad, *rest) in SHARED_ERRORS.items()},
            **{name: error for name, error in PRIOR_ERRORS.items() if name != "tau"},
            **LADE_ERRORS,
            "none": (
                {"prior": torch.full((4,), 0.25), "reduction": "none"}, ValueError,
                'expected reduction to be "mean" or "sum", but got \'none\'',
            ),
            "alpha": ({"prior": torch.full((4,), 0.25), "alpha": -1}, ValueError, "expected alpha >= 0 .* but got -1"),
        },
        identities={
            "alpha 0 is logit adjusted loss": (
                lambda c, n: {"prior": prior_of(c), "alpha": 0.0},
                lambda x, y, prior, alpha: imbloss.logit_adjusted_loss(x, y, prior=prior),
            ),
            "PriorCE and alpha LADER": (
                lambda c, n: {"counts": long_tailed_counts(c), "alpha": 0.7, "lam": 0.3, "estimator": "paper"},
                lambda x, y, counts, alpha, lam, estimator: imbloss.balanced_softmax_loss(x, y, counts=counts)
                + alpha * imbloss.lader(x, y, counts=counts, lam=lam, estimator=estimator),
            ),
        },
    ),
    Loss(
        "lader",
        reductions=(),
        coupled=True,
        sizes=lambda x, y, keywords: lade_sizes(x, y, keywords, prior_ce=False, alpha=1.0),
        samples={
            "official": lambda c, n: {"prior": prior_of(c)},
            "paper": lambda c, n: {"prior": prior_of(c), "estimator": "paper"},
            "counts": lambda c, n: {"counts": long_tailed_counts(c), "lam": 0.0},
            "ignore index": lambda c, n: {"prior": prior_of(c), "ignore_index": 0},
        },
        errors={**{name: error for name, error in PRIOR_ERRORS.items() if name != "tau"}, **LADE_ERRORS},
    ),
]  # fmt: skip

# ---- losses of elements ------------------------------------------------------------------------------------------
# Here a sample's keyword "targets" is not the loss's: it says what kind of targets there are, see test_elements.py.
ELEMENT_SHARED: dict[str, Sample] = {
    "0 or 1": lambda c, n: {},
    "0 or 1, mean": lambda c, n: {"reduction": "mean"},
    "0 or 1, sum": lambda c, n: {"reduction": "sum"},
    "soft": lambda c, n: {"targets": "soft", "reduction": "none"},
    "soft, mean": lambda c, n: {"targets": "soft", "reduction": "mean"},
    "bool": lambda c, n: {"targets": "bool", "reduction": "mean"},
    "integers, none": lambda c, n: {"targets": "integers", "reduction": "none"},
    "integers, mean": lambda c, n: {"targets": "integers", "reduction": "mean"},
    "indices, none": lambda c, n: {"targets": "indices", "reduction": "none"},
    "indices, mean": lambda c, n: {"targets": "indices", "reduction": "mean"},
    "some ignored, mean": lambda c, n: {"targets": "some ignored", "reduction": "mean"},
    "class 0 ignored": lambda c, n: {"targets": "indices", "ignore_index": 0, "reduction": "mean"},
    "weight": lambda c, n: {"weight": uneven(c), "reduction": "mean"},
    "weight, indices": lambda c, n: {"weight": uneven(c), "targets": "indices", "reduction": "sum"},
    "weight of elements": lambda c, n: {"weight": element_weights(c, n), "reduction": "none"},
    "weight of rows, soft": lambda c, n: {
        "weight": row_weights(n).unsqueeze(1).expand(n[0], c, *n[1:]), "targets": "soft",
    },
    "positive weight": lambda c, n: {"pos_weight": 3.0},
    "positive weight, soft": lambda c, n: {"pos_weight": 0.3, "targets": "soft", "reduction": "sum"},
    "positive weight per class": lambda c, n: {"pos_weight": uneven(c), "targets": "integers"},
    "normalizer": lambda c, n: {"normalizer": 7.5, "reduction": "mean"},
    "normalizer tensor": lambda c, n: {"normalizer": torch.tensor(3), "reduction": "mean", "targets": "indices"},
}  # fmt: skip
ELEMENT_ERRORS: dict[str, tuple[Keywords, type[Exception], str]] = {
    "reduction": ({"reduction": "avg"}, ValueError, r"expected reduction to be .*, but got 'avg'"),
    "normalizer": (
        {"normalizer": 2, "reduction": "sum"}, ValueError, 'expected normalizer only with reduction="mean"',
    ),
    "normalizer tensor": (
        {"normalizer": torch.ones(2), "reduction": "mean"}, ValueError, "expected normalizer to be a number",
    ),
    "weight length": ({"weight": torch.ones(3)}, ValueError, r"expected weight of shape \(4,\), but got \(3,\)"),
    "weight dtype": (
        {"weight": torch.ones(4).long()}, TypeError, "expected weight to be a tensor of a floating dtype",
    ),
    "weight list": ({"weight": [1.0] * 4}, TypeError, "expected weight to be a tensor .* but got list"),
    "positive weight": ({"pos_weight": -1.0}, ValueError, "expected pos_weight >= 0 and finite, but got -1.0"),
    "positive weight length": (
        {"pos_weight": torch.ones(3)}, ValueError, r"expected pos_weight of shape \(4,\), but got \(3,\)",
    ),
}  # fmt: skip
GAMMA_ERROR = r"expected {} in \[0, 1e\+06\], but got {}"


def element_weights(classes: int, shape: Shape) -> torch.Tensor:
    return row_weights((shape[0], classes, *shape[1:]))


def one_hot(y: torch.Tensor, classes: int) -> torch.Tensor:
    """Integer targets from class indices: -1 and C are background, -100 is ignored in every class."""
    background = y.where((y >= 0) & (y < classes), classes)
    t = torch.nn.functional.one_hot(background, classes + 1)[..., :-1].movedim(-1, 1)
    return t.where((y != -100).unsqueeze(1), -100)


def binary_cross_entropy(x: torch.Tensor, t: torch.Tensor, **keywords) -> torch.Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(x, t.to(x.dtype), **keywords)


def torchvision_focal_loss(x, t, alpha=0.25, gamma=2.0, reduction="none"):
    """torchvision.ops.sigmoid_focal_loss, the computation."""
    t = t.to(x.dtype)
    p, ce = x.sigmoid(), binary_cross_entropy(x, t, reduction="none")
    loss = ce * (1 - (p * t + (1 - p) * (1 - t))) ** gamma
    if alpha >= 0:
        loss = (alpha * t + (1 - alpha) * (1 - t)) * loss
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


ELEMENTS = [
    Loss(
        "sigmoid_focal_loss",
        samples={
            **ELEMENT_SHARED,
            "gamma 0": lambda c, n: {"gamma": 0, "reduction": "mean"},
            "gamma 0.5": lambda c, n: {"gamma": 0.5},
            "gamma 0.5, soft": lambda c, n: {"gamma": 0.5, "targets": "soft"},
            "gamma 1, without alpha": lambda c, n: {"gamma": 1.0, "alpha": -1},
            "gamma 3.7, without alpha, soft": lambda c, n: {"gamma": 3.7, "alpha": None, "targets": "soft"},
            "gamma 3, alpha 0.9": lambda c, n: {"gamma": 3.0, "alpha": 0.9, "targets": "bool", "reduction": "sum"},
            "gamma per class": lambda c, n: {"gamma": uneven(c, 0.0, 3.0), "reduction": "mean"},
            "gamma per class, soft": lambda c, n: {"gamma": uneven(c, 0.0, 3.0), "targets": "soft"},
            "alpha per class": lambda c, n: {"alpha": uneven(c, 0.0, 1.0)},
            "all per class, indices": lambda c, n: {
                "alpha": uneven(c, 0.1, 0.9), "gamma": uneven(c, 0.0, 3.0), "weight": uneven(c),
                "pos_weight": uneven(c, 1.0, 9.0), "targets": "indices", "reduction": "mean",
            },
        },
        errors={
            **ELEMENT_ERRORS,
            "alpha": ({"alpha": 1.5}, ValueError, "expected alpha <= 1 and finite, but got 1.5"),
            "alpha length": ({"alpha": torch.ones(3)}, ValueError, r"expected alpha of shape \(4,\), but got \(3,\)"),
            "alpha of a class": (
                {"alpha": torch.tensor([0.1, 0.2, 1.3, 0.4])}, ValueError,
                r"expected alpha in \[0, 1\], but got 1.29.* at index 2",
            ),
            "gamma": ({"gamma": -0.5}, ValueError, GAMMA_ERROR.format("gamma", "-0.5")),
            "gamma length": ({"gamma": torch.ones(2)}, ValueError, r"expected gamma of shape \(4,\), but got \(2,\)"),
            "gamma of a class": (
                {"gamma": torch.tensor([1.0, -1, 0, 0])}, ValueError, "expected gamma >= 0 .* but got -1.0 at index 1",
            ),
        },
        identities={
            "torchvision's": (lambda c, n: {"alpha": 0.3, "gamma": 2, "reduction": "none"}, torchvision_focal_loss),
            "torchvision's, soft": (
                lambda c, n: {"alpha": 0.3, "gamma": 1.5, "reduction": "mean", "targets": "soft"},
                torchvision_focal_loss,
            ),
            "gamma 0 without alpha is binary cross entropy": (
                lambda c, n: {"alpha": -1, "gamma": 0, "reduction": "mean", "targets": "soft"},
                lambda x, t, alpha, gamma, reduction: binary_cross_entropy(x, t),
            ),
            "weights are those of binary cross entropy": (
                lambda c, n: {
                    "alpha": None, "gamma": 0, "reduction": "mean", "targets": "soft", "weight": element_weights(c, n),
                    "pos_weight": 2.5,
                },
                lambda x, t, alpha, gamma, reduction, weight, pos_weight: binary_cross_entropy(
                    x, t, weight=weight.to(x.dtype), pos_weight=torch.tensor(pos_weight)
                ),
            ),
            "one gamma and alpha for each class": (
                lambda c, n: {"gamma": torch.full((c,), 1.5), "alpha": torch.full((c,), 0.25), "targets": "integers"},
                lambda x, t, gamma, alpha: imbloss.sigmoid_focal_loss(x, t, 0.25, 1.5),
            ),
            "indices are one-hot": (
                lambda c, n: {"targets": "indices", "reduction": "none"},
                lambda x, t, reduction: imbloss.sigmoid_focal_loss(x, one_hot(t, x.shape[1])),
            ),
        },
    ),
    Loss(
        "asymmetric_loss",
        samples={
            **ELEMENT_SHARED,
            "gammas that are not whole": lambda c, n: {"gamma_neg": 2.5, "gamma_pos": 0.5},
            "gammas that are not whole, soft": lambda c, n: {"gamma_neg": 2.5, "gamma_pos": 0.5, "targets": "soft"},
            "no clip": lambda c, n: {"clip": 0.0, "gamma_neg": 3.0},
            "no clip, gammas that are not whole": lambda c, n: {"clip": 0, "gamma_neg": 3.3, "gamma_pos": 0.3},
            "detached factor": lambda c, n: {"detach_factor": True},
            "detached factor, soft, no clip": lambda c, n: {"detach_factor": True, "clip": 0.0, "targets": "soft"},
            "gammas 0": lambda c, n: {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.2},
        },
        errors={
            **ELEMENT_ERRORS,
            "gamma of negatives": ({"gamma_neg": -1.0}, ValueError, GAMMA_ERROR.format("gamma_neg", "-1.0")),
            "gamma of positives": ({"gamma_pos": "1"}, TypeError, "expected gamma_pos to be a number, but got str '1'"),
            "clip": ({"clip": 1.5}, ValueError, r"expected clip in \[0, 1\], but got 1.5"),
        },
        identities={
            "equal gammas and no clip are focal loss": (
                lambda c, n: {"gamma_neg": 1.3, "gamma_pos": 1.3, "clip": 0.0, "targets": "integers"},
                lambda x, t, gamma_neg, gamma_pos, clip: imbloss.sigmoid_focal_loss(x, t, -1, 1.3, "mean"),
            ),
            "gammas 0 and no clip are binary cross entropy": (
                lambda c, n: {"gamma_neg": 0, "gamma_pos": 0, "clip": 0, "targets": "soft"},
                lambda x, t, gamma_neg, gamma_pos, clip: binary_cross_entropy(x, t),
            ),
        },
    ),
    Loss(
        "quality_focal_loss",
        samples={
            **ELEMENT_SHARED,
            "beta 0": lambda c, n: {"beta": 0.0, "targets": "soft"},
            "beta 1": lambda c, n: {"beta": 1, "targets": "soft"},
            "beta 1.5": lambda c, n: {"beta": 1.5, "targets": "soft", "reduction": "none"},
        },
        errors={**ELEMENT_ERRORS, "beta": ({"beta": -1.0}, ValueError, GAMMA_ERROR.format("beta", "-1.0"))},
        identities={
            "beta 0 is binary cross entropy": (
                lambda c, n: {"beta": 0, "targets": "soft"},
                lambda x, t, beta: binary_cross_entropy(x, t),
            ),
            "targets of 0 and 1 are focal loss": (
                lambda c, n: {"beta": 1.5, "reduction": "none", "targets": "bool"},
                lambda x, t, beta, reduction: imbloss.sigmoid_focal_loss(x, t, -1, beta, reduction),
            ),
        },
    ),
]  # fmt: skip
