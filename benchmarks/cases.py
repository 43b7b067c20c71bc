"""The table: one row a piece of work, and everybody who does it. Adding a benchmark is adding a row.

Rivals are what people write by hand, torch.compile of that, torch's own function of the same inputs, and a peer where
one is installed. They are checked to compute the same before they are timed.
"""

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import imbloss
from imbloss import reference
from imbloss.doctor import long_tailed_counts, softmax_losses

Inputs = tuple[Tensor, ...]
Provider = Callable[..., object]  # a function of the inputs
Call = Callable[[], object]

# These do other, lesser work than imbloss: "builtin" is cross entropy whatever the loss, "copy" one copy of the inputs.
YARDSTICKS = ("builtin", "copy")


def forward_and_backward(loss: Provider, logits: Tensor, *rest: Tensor) -> Call:
    def step():
        loss(logits, *rest).backward()
        logits.grad = None  # each frees its own: of 262 MB in 4-KB pages that takes longer than our loss

    return step


@dataclass(frozen=True, eq=False)
class Case:
    function: str  # the public name that is measured
    detail: str  # the size and whatever else is special
    inputs: Callable[[], Inputs]  # the same for all providers
    # "imbloss", "eager" (by hand; "compile" is made of it), "builtin", or a peer's name
    providers: dict[str, Provider]
    work: Callable[..., Call] = forward_and_backward  # (provider, *inputs) -> what is timed
    section: str = "losses"  # of the report
    copies: bool = True  # whether one copy of the first input is a bound for the work
    peak: bool = False  # whether its peak memory is measured, too
    gradient: bool = True  # whether providers return a loss, else values that are compared, or nothing
    # whether providers did the same, of two results; None compares values and gradients
    agree: Callable[[object, object], bool] | None = None

    @property
    def name(self) -> str:
        return f"{self.function} {self.detail}"


# ---- by hand -----------------------------------------------------------------------------------------------------
def log_p_of(x, y):
    return F.log_softmax(x, 1).gather(1, y.unsqueeze(1)).squeeze(1)


def focal(gamma=2.0, weight=None):
    def loss(x, y):
        log_p = log_p_of(x, y)
        loss = -((1 - log_p.exp()) ** gamma) * log_p
        if weight is None:
            return loss.mean()
        w = weight[y]
        return (w * loss).sum() / w.sum()

    return loss


def soft_focal(x, t):
    log_p = F.log_softmax(x, 1)
    return -(t * (1 - log_p.exp()) ** 2 * log_p).sum(1).mean()


def poly(x, y):
    log_p = log_p_of(x, y)
    return (-log_p + (1 - log_p.exp())).mean()


def adjusted(offset):
    return lambda x, y: F.cross_entropy(x + offset, y)


def ldam(counts, max_margin=0.5, scale=30.0):
    margins = counts**-0.25
    margins = margins * (max_margin / margins.max())

    def loss(x, y):
        is_target = torch.zeros_like(x, dtype=torch.bool).scatter_(1, y.unsqueeze(1), True)
        return F.cross_entropy(scale * torch.where(is_target, x - margins[y].unsqueeze(1), x), y)

    return loss


def vs(counts, gamma=0.15, tau=1.0):
    factor, offset = (counts / counts.max()) ** gamma, tau * (counts / counts.sum()).log()
    return lambda x, y: F.cross_entropy(factor * x + offset, y)


def lade(prior, alpha=0.1, lam=0.1):
    """As the paper's code, github.com/hyperconnect/LADE, computes it."""

    def loss(x, y):
        n, c = x.shape
        one_hot = y == torch.arange(c).view(-1, 1)
        first = (x.T * one_hot).sum(-1) / (one_hot.sum(-1).float() + 1e-8)
        spread = (x - torch.log(prior + 1e-9) + math.log(1 / c + 1e-9)).T
        second = torch.logsumexp(spread, -1) - math.log(n)
        regulariser = -((first - second - lam * second**2) * prior).sum()
        return F.cross_entropy(x + prior.log(), y) + alpha * regulariser

    return loss


def sigmoid_focal(x, t, alpha=0.25, gamma=2.0):
    p, ce = torch.sigmoid(x), F.binary_cross_entropy_with_logits(x, t, reduction="none")
    p_t = p * t + (1 - p) * (1 - t)
    return ((alpha * t + (1 - alpha) * (1 - t)) * ce * (1 - p_t) ** gamma).mean()


def sigmoid_focal_of_indices(x, y):
    return sigmoid_focal(x, F.one_hot(y, x.shape[1]).to(x.dtype))


def asymmetric(x, t, gamma_neg=4.0, gamma_pos=1.0, clip=0.05):
    p = torch.sigmoid(x)
    p_m = (p - clip).clamp(min=0)
    ones, zeros = t * torch.log(p.clamp(min=1e-8)), (1 - t) * torch.log((1 - p_m).clamp(min=1e-8))
    return -((1 - p) ** gamma_pos * ones + p_m**gamma_neg * zeros).mean()


def quality_focal(x, t):
    return (F.binary_cross_entropy_with_logits(x, t, reduction="none") * (t - torch.sigmoid(x)).abs() ** 2).mean()


def kornia_focal(x, y):
    """kornia's "mean" is over rows and classes."""
    losses = importlib.import_module("kornia.losses")
    return x.shape[1] * losses.focal_loss(x, y, alpha=None, gamma=2.0, reduction="mean")


# ---- sampling ----------------------------------------------------------------------------------------------------
def plain_call(function: Provider, *inputs: Tensor) -> Call:
    return lambda: function(*inputs)


def neighbours_by_chunks(points: Tensor, k: int, rows: int = 1024) -> tuple[Tensor, Tensor]:
    """What people write: distances by a product, the diagonal among them."""
    norms = (points * points).sum(1)
    found = [
        (norms - 2 * points[i : i + rows] @ points.T).topk(k + 1, largest=False) for i in range(0, len(points), rows)
    ]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])[:, 1:]


def neighbours_by_sklearn(points: Tensor, k: int):
    search = importlib.import_module("sklearn.neighbors").NearestNeighbors(n_neighbors=k + 1, algorithm="brute")
    distances, indices = search.fit(points.numpy()).kneighbors(points.numpy())
    return distances[:, 1:], torch.from_numpy(indices[:, 1:])


def neighbours_by_faiss(points: Tensor, k: int):
    index = importlib.import_module("faiss").IndexFlatL2(points.shape[1])
    index.add(points.numpy())
    distances, indices = index.search(points.numpy(), k + 1)
    return distances, torch.from_numpy(indices[:, 1:])


def knn_case(n: int, d: int, k: int = 5) -> Case:
    providers = {"imbloss": functools.partial(imbloss.knn, k=k), "chunks": lambda x: neighbours_by_chunks(x, k)}
    if importlib.util.find_spec("sklearn"):
        providers["scikit-learn"] = lambda x: neighbours_by_sklearn(x, k)
    if importlib.util.find_spec("faiss"):
        providers["faiss"] = lambda x: neighbours_by_faiss(x, k)
    # float32 products swap neighbours that are almost equally far
    agree = lambda ours, theirs: (ours[1] == theirs[1]).float().mean() > 0.999  # noqa: E731
    return Case(
        "knn", f"{n}x{d} k {k}", lambda: (torch.randn(n, d),), providers, plain_call, "sampling", False, agree=agree
    )


def smote_case(majority: int, minority: int, d: int) -> Case:
    def inputs():
        y = torch.cat([torch.zeros(majority), torch.ones(minority)]).long()
        return torch.randn(majority + minority, d) + y.unsqueeze(1), y

    providers = {"imbloss": lambda x, y: imbloss.SMOTE(random_state=0).fit_resample(x, y)}
    if importlib.util.find_spec("imblearn"):
        providers["imbalanced-learn"] = lambda x, y: (
            importlib.import_module("imblearn.over_sampling").SMOTE(random_state=0).fit_resample(x.numpy(), y.numpy())
        )
    agree = lambda ours, theirs: ours[0].shape == theirs[0].shape  # noqa: E731  # rows are random
    detail = f"{majority + minority}x{d} with {minority} of a class"
    return Case("SMOTE", detail, inputs, providers, plain_call, "sampling", False, agree=agree)


def smotenc_case(majority: int, minority: int, numeric: int, categorical: int, categories: int) -> Case:
    def inputs():
        y = torch.cat([torch.zeros(majority), torch.ones(minority)]).long()
        codes = torch.randint(categories, (len(y), categorical))
        return torch.cat([torch.randn(len(y), numeric) + y.unsqueeze(1), codes], dim=1), y

    columns = list(range(numeric, numeric + categorical))
    providers = {"imbloss": lambda x, y: imbloss.SMOTENC(columns, random_state=0).fit_resample(x, y)}
    if importlib.util.find_spec("imblearn"):
        providers["imbalanced-learn"] = lambda x, y: (
            importlib.import_module("imblearn.over_sampling")
            .SMOTENC(columns, random_state=0)
            .fit_resample(x.numpy(), y.numpy())
        )
    agree = lambda ours, theirs: ours[0].shape == theirs[0].shape  # noqa: E731  # rows are random
    detail = f"{majority + minority}x{numeric + categorical} with {minority} of a class"
    return Case("SMOTENC", detail, inputs, providers, plain_call, "sampling", False, agree=agree)


# ---- the table ---------------------------------------------------------------------------------------------------
def softmax_case(
    function: str,
    shape: tuple[int, ...],
    ours: Provider,
    eager: Provider,
    *,
    note: str = "",
    builtin: Provider = F.cross_entropy,
    peer: tuple[str, Provider] | None = None,
    dtype: torch.dtype = torch.float32,
    soft: bool = False,
    upstream: float = 1.0,
    **options,
) -> Case:
    def inputs():
        logits = torch.randn(shape, dtype=dtype).requires_grad_()
        if soft:
            return logits, torch.randn(shape).softmax(1).to(dtype)
        return logits, torch.randint(shape[1], (shape[0], *shape[2:]))

    providers = {"imbloss": ours, "eager": eager, "builtin": builtin}
    if peer and importlib.util.find_spec(peer[0]):
        providers[peer[0]] = peer[1]
    if upstream != 1:
        providers = {k: lambda *args, loss=loss: loss(*args) * upstream for k, loss in providers.items()}
    detail = "x".join(map(str, shape)) + (f" {note}" if note else "")
    return Case(function, detail, inputs, providers, **options)


def focal_case(*shape: int, **options) -> Case:
    return softmax_case("focal_loss", shape, imbloss.focal_loss, focal(), peer=("kornia", kornia_focal), **options)


def lade_case(rows: int, classes: int) -> Case:
    counts = long_tailed_counts(classes).float()
    prior = counts / counts.sum()
    ours = functools.partial(imbloss.lade_loss, prior=prior, alpha=0.1, lam=0.1)
    return softmax_case("lade_loss", (rows, classes), ours, lade(prior))


def element_case(function: str, *shape: int, eager: Provider, targets: str = "sparse", note: str = "") -> Case:
    """Of logits that are a question each: one target in a hundred is 1, or all are in [0, 1], or class indices."""

    def inputs():
        x = torch.randn(shape).requires_grad_()
        if targets == "indices":
            return x, torch.randint(shape[1], shape[:1])
        return x, torch.rand(shape) if targets == "soft" else (torch.rand(shape) < 0.01).float()

    ours = functools.partial(getattr(imbloss, function), reduction="mean")
    providers = {"imbloss": ours, "eager": eager}
    if targets != "indices":
        providers["builtin"] = F.binary_cross_entropy_with_logits
    detail = "x".join(map(str, shape)) + (f" {note}" if note else "")
    return Case(function, detail, inputs, providers, section="elements", peak=targets == "indices")


def others(classes: int = 100, rows: int = 4096) -> list[Case]:
    """The other losses of the test table, at one size."""
    counts = long_tailed_counts(classes).float()
    prior, weight = counts / counts.sum(), imbloss.class_balanced_weights(counts).float()
    shape = rows, classes

    def weighted(x, y):
        return F.cross_entropy(x, y, weight=weight)

    def smoothed(x, y):
        return F.cross_entropy(x, y, label_smoothing=0.1)

    return [
        softmax_case("cross_entropy", shape, imbloss.cross_entropy, F.cross_entropy),
        softmax_case(
            "cross_entropy", shape, imbloss.CrossEntropy(weight=weight), weighted, builtin=weighted, note="weight"
        ),
        softmax_case(
            "cross_entropy", shape, imbloss.CrossEntropy(label_smoothing=0.1), smoothed, builtin=smoothed,
            note="smoothing",
        ),
        softmax_case("cross_entropy", shape, imbloss.CrossEntropy(prior=prior), adjusted(prior.log()), note="prior"),
        softmax_case("poly_loss", shape, imbloss.poly_loss, poly),
        softmax_case("balanced_softmax_loss", shape, imbloss.BalancedSoftmaxLoss(counts=counts), adjusted(prior.log())),
        softmax_case(
            "logit_adjusted_loss", shape, imbloss.LogitAdjustedLoss(prior=prior, tau=1.5), adjusted(1.5 * prior.log())
        ),
        softmax_case("ldam_loss", shape, imbloss.LDAMLoss(counts=counts), ldam(counts)),
        softmax_case("vs_loss", shape, imbloss.VSLoss(counts=counts), vs(counts)),
    ]  # fmt: skip


def variants(*shape: int) -> list[Case]:
    """Focal loss of one size with everything that may be special."""
    weight = imbloss.class_balanced_weights(long_tailed_counts(shape[1])).float()
    return [
        focal_case(*shape, upstream=3.7, note="upstream 3.7"),
        focal_case(*shape, dtype=torch.bfloat16, note="bfloat16"),
        softmax_case("focal_loss", shape, imbloss.FocalLoss(gamma=1.5), focal(1.5), note="gamma 1.5"),
        softmax_case("focal_loss", shape, imbloss.FocalLoss(weight=weight), focal(weight=weight), note="weight"),
        softmax_case("focal_loss", shape, imbloss.focal_loss, soft_focal, soft=True, note="soft"),
    ]


def against_the_reference(but: set[str], classes: int = 100, rows: int = 4096) -> Iterator[Case]:
    """Losses that have no row yet, so that to add a loss is to touch nothing here.

    reference.py is written for its digits, and a rival written by hand is faster: better add a row.
    """
    counts = long_tailed_counts(classes).float()
    for loss in softmax_losses():
        if loss.function not in but:
            ours, theirs = (
                functools.partial(getattr(module, loss.function), **loss.keywords(counts))
                for module in (imbloss, reference)
            )
            yield softmax_case(loss.function, (rows, classes), ours, theirs, note="against reference.py")


CASES = [
    focal_case(32, 10),
    focal_case(4096, 10),
    focal_case(65536, 10),
    focal_case(1_000_000, 2),
    focal_case(1024, 37),
    focal_case(1024, 100),
    focal_case(4096, 257),
    focal_case(4096, 1000),
    focal_case(2048, 32000, peak=True),
    focal_case(2048, 32000, dtype=torch.bfloat16, note="bfloat16"),
    focal_case(4, 19, 256, 512, peak=True),
    focal_case(2, 150, 128, 128),
    *variants(4096, 10),
    *variants(4096, 1000),
    softmax_case("focal_loss", (4, 19, 256, 512), imbloss.focal_loss, soft_focal, soft=True, note="soft"),
    *others(),
    lade_case(128, 100),
    lade_case(4096, 10),
    lade_case(4096, 1000),
    lade_case(256, 8142),
    element_case("sigmoid_focal_loss", 65536, eager=sigmoid_focal),
    element_case("sigmoid_focal_loss", 512, 1203, eager=sigmoid_focal),
    element_case("sigmoid_focal_loss", 8192, 1203, eager=sigmoid_focal_of_indices, targets="indices", note="indices"),
    element_case("sigmoid_focal_loss", 8_388_608, eager=sigmoid_focal),
    element_case("asymmetric_loss", 512, 1203, eager=asymmetric),
    element_case("quality_focal_loss", 512, 1203, eager=quality_focal, targets="soft"),
    knn_case(5000, 32),
    knn_case(20_000, 64),
    knn_case(20_000, 128),
    smote_case(100_000, 10_000, 32),
    smotenc_case(18_000, 2_000, 5, 5, 40),
    *(focal_case(round(elements / 1000), 1000, section="scaling") for elements in (1e6, 3e6, 1e7, 3e7, 1e8)),
]
CASES += against_the_reference(but={case.function for case in CASES})
assert len({(case.section, case.name) for case in CASES}) == len(CASES)
