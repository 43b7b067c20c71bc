"""Generic tests: every row of the table in losses.py, at every dtype, size, stride and extreme."""

import copy
import dataclasses
import functools
import itertools
import math
import pickle
from dataclasses import dataclass

import pytest
import torch
from conftest import INTERPRETED
from losses import ELEMENTS, LOSSES, Loss, uneven

import imbloss
from imbloss import _ops, functional, reference

CLASSES = [1, 2, 3, 15, 16, 17, 31, 100, 1000, 1203]
ROWS = [0, 1, 7, 1024]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALF = (torch.bfloat16, torch.float16)
EVERY = [pytest.param(loss, id=loss.name) for loss in LOSSES]
SAMPLES = [pytest.param(loss, name, id=f"{loss.name}-{name}") for loss in LOSSES for name in loss.samples]
EPS = torch.finfo(torch.float32).eps


def to_double(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@dataclass
class Case:
    """A loss, its keywords, and inputs to call it with."""

    loss: Loss
    keywords: dict
    logits: torch.Tensor
    target: torch.Tensor

    @property
    def soft(self):
        return self.target.is_floating_point() or bool(self.keywords.get("label_smoothing"))

    def double(self):
        keywords = {name: to_double(value) for name, value in self.keywords.items()}
        return dataclasses.replace(self, keywords=keywords, logits=self.logits.double(), target=to_double(self.target))

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)

    def value(self, function=None):
        return (function or self.loss.function)(self.logits, self.target, **self.keywords)

    def upstream(self):
        """A gradient of the loss that is not 1, and not uniform."""
        shape = self.value().shape
        return uneven(math.prod(shape), 0.5, 4.0).view(shape) if shape else torch.tensor(2.7)

    def run(self, function=None, upstream=None):
        """Value and gradient."""
        logits = self.logits.detach().requires_grad_()
        loss = self.replace(logits=logits).value(function)
        upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
        (grad,) = torch.autograd.grad(loss, logits, upstream)
        return loss.detach(), grad

    def truth(self, upstream=None):
        return self.double().run(self.loss.reference, upstream)

    @property
    def gamma(self):
        gamma = self.keywords.get("gamma", self.loss.default("gamma", 0.0))
        return float(gamma.max()) if isinstance(gamma, torch.Tensor) else float(gamma)

    def constants(self):
        """Scale, bias and margin of each class, in float64."""
        k = self.double().keywords
        if self.loss.name == "ldam_loss":
            return functional.ldam_constants(k["counts"], k.get("max_margin", 0.5), k.get("scale", 30.0))
        if self.loss.name == "vs_loss":
            return functional.vs_constants(k["counts"], k.get("gamma_scale", 0.15), k.get("tau", 1.0))
        if "counts" in k:
            return {"bias": functional.log_shares(k["counts"] + k.get("smoothing", 0))}
        return {"bias": k.get("tau", 1.0) * k["prior"].log()} if "prior" in k else {}

    @property
    def largest_scale(self):
        """What multiplies e^z at most."""
        return max(1.0, float(self.constants().get("scale", torch.ones(1)).max()))

    def bound(self):
        """docs/math.md, "Accuracy": what the rounding of z_j - max z costs a float32 gradient; nothing else may."""
        shape = (-1, *[1] * (self.logits.dim() - 2))
        z = self.logits.double().abs()
        constants = {name: value.view(shape).abs() for name, value in self.constants().items()}
        z = z * constants.get("scale", 1) + constants.get("bias", 0) + constants.get("margin", 0)
        top = z.amax(1, keepdim=True) if z.numel() else z[:, :1]
        # a multiply-add of Triton's interpreter rounds twice
        return (4 + z + top) * (1 + self.gamma) * EPS * (1.1 if INTERPRETED else 1)

    def slope(self, terms, gamma):
        """d value / d log p of every class, where p = 1 - q moves along."""
        _, p, q, _ = leaves = [term.detach().requires_grad_() for term in terms]
        value = self.loss.of_class(reference.TargetTerms(*leaves), gamma, self.keywords)
        by = [torch.autograd.grad(value.sum(), leaf, retain_graph=True, allow_unused=True)[0] for leaf in leaves]
        by = [torch.zeros_like(p) if grad is None else grad for grad in by]
        return by[0] + p * (by[1] - by[2]) - torch.where(by[3] == 0, 0, p / q * by[3])

    def sizes(self):
        case = self.double()
        return self.loss.sizes(case.logits, case.target, case.keywords)

    @property
    def cancels(self):
        """Whether a gradient is the difference of larger terms."""
        return self.soft or self.loss.sizes is not None

    def reduced(self, reduction):
        """The same with another reduction, if the loss has one."""
        keywords = self.keywords | ({"reduction": reduction} if self.loss.reductions else {})
        return self.replace(keywords=keywords)

    def scale(self, upstream, want):
        """What the bound is relative to: the gradient; where its terms may cancel (soft targets), those terms."""
        if self.loss.sizes:
            size = self.sizes()[1]
            return size if upstream is None else size * float(upstream)
        if not self.soft:
            return want.abs()
        case = self.double()
        k, constants, y = case.keywords, case.constants(), case.target
        shape = (-1, *[1] * (case.logits.dim() - 2))
        per_class = lambda values: values.view(shape)  # noqa: E731
        scale = per_class(constants["scale"]) if "scale" in constants else 1
        z = case.logits * scale + (per_class(constants["bias"]) if "bias" in constants else 0)
        weight = k.get("weight", torch.ones(z.shape[1], dtype=z.dtype))
        row = k.get("sample_weight", torch.ones(z[:, 0].shape, dtype=z.dtype))
        divisors = row
        if not y.is_floating_point():
            row = torch.where(y == k.get("ignore_index", -100), 0, row)
            y = torch.where(y == k.get("ignore_index", -100), 0, y)
            divisors = row * weight[y]
            y = torch.zeros_like(z).scatter(1, y.unsqueeze(1), 1)
        smoothing = k.get("label_smoothing", 0)
        share = (y * (1 - smoothing) + smoothing / z.shape[1]) * per_class(weight)
        terms = reference.class_terms(z)
        gamma = k.get("gamma", self.loss.default("gamma", 0.0))
        gamma = per_class(gamma) if isinstance(gamma, torch.Tensor) else gamma
        slope = (share * self.slope(terms, gamma)).abs()
        scale = scale * (slope * terms.q + terms.p * (slope.sum(1, keepdim=True) - slope))
        if k.get("reduction", "mean") == "mean":
            row = row / k.get("normalizer", divisors.sum())
        if upstream is not None:
            row = row * upstream
        return scale.abs() * row.unsqueeze(1).abs()


def inputs(classes, shape, dtype=torch.float32, spread=3.0, ignored=-100, soft=False):
    """Logits and targets. Class indices: every seventh row is ignored. Probabilities: some rows are one-hot."""
    logits = (torch.randn(shape[0], classes, *shape[1:]) * spread).to(dtype)
    target = torch.randint(0, classes, shape)
    if soft:
        hot = torch.zeros(logits.shape).scatter(1, target.unsqueeze(1), 1)
        mixed = (torch.randn(logits.shape) * 2).softmax(1)
        return logits, torch.where((target % 3 == 0).unsqueeze(1), hot, mixed)
    target.view(-1)[3::7] = ignored
    return logits, target


def case(loss, sample=None, classes=10, shape=(32,), dtype=torch.float32, spread=3.0):
    """A sample of a loss, by name or the row's first, with inputs."""
    keywords = dict(loss.samples[sample or next(iter(loss.samples))](classes, shape))
    ignored, soft = keywords.get("ignore_index", -100), keywords.pop("soft", False)
    return Case(loss, keywords, *inputs(classes, shape, dtype, spread, ignored, soft))


def assert_close(got, want, **tolerance):
    torch.testing.assert_close(got, want, equal_nan=True, **tolerance)


def assert_within(got, want, bound, tiny=1e-36):
    """|got - want| <= bound, element by element; values under `tiny` count as 0."""
    got, want = got.double(), want.double()
    error = (got - want).abs()
    bad = (
        ~(error <= bound) & ~((got.abs() < tiny) & (want.abs() < tiny)) & ~(got.isnan() & want.isnan()) & (got != want)
    )
    assert not bad.any(), (
        f"{int(bad.sum())} of {bad.numel()} elements off, first {got[bad][0]:.9g} for {want[bad][0]:.9g}, "
        f"worst {(error / bound)[bad].max():.3g} times the bound"
    )


def assert_accurate(c, upstream, got):
    want = c.truth(upstream)
    bound = c.bound()
    row = bound.amax(1)
    # a sum of rows is as accurate as its rows
    value = c.sizes()[0] if c.loss.sizes else want[0].abs()
    assert_within(got[0], want[0], (row if got[0].dim() else row.amax() if row.numel() else 0) * value)
    assert_within(got[1], want[1], bound * c.scale(upstream, want[1]), 1e-36 * c.largest_scale)


@pytest.mark.isa
@pytest.mark.triton
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_float32_equals_the_float64_reference(loss, sample, classes):
    for rows in ROWS:
        c = case(loss, sample, classes, (rows,))
        upstream = c.upstream()
        assert_accurate(c, upstream, c.run(upstream=upstream))


@pytest.mark.isa
@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 10, 40, 100])
@pytest.mark.parametrize("loss, sample", [p for p in SAMPLES if not p.values[1].startswith("soft")])
def test_many_rows_that_count(loss, sample, classes, left_out):
    """What takes vectors of rows that all count another way: weights and their sum, LADE's targets."""
    rows = 300
    c = case(loss, sample, classes, (rows,))
    ignored = c.keywords.get("ignore_index", -100)
    c.target = torch.arange(rows) * 7 % classes
    c.target[c.target == ignored] = (ignored + 1) % classes
    if left_out:
        c.target[100] = ignored
    upstream = c.upstream()
    assert_accurate(c, upstream, c.run(upstream=upstream))


@pytest.mark.isa
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row", [0, 63, 64, 130, 199])
@pytest.mark.parametrize(
    "odd", ["ignored", "nan", "inf", "-inf", "both -inf", "far", "just near", "just far", "out of range"]
)
def test_one_odd_row_among_pairs(odd, row, dtype, gamma):
    """Two classes, the usual case: whatever leaves it, in whole vectors or after them, changes no other row."""
    x, y = (3 * torch.randn(200, 2)).to(dtype), torch.arange(200) % 2
    values = {
        "nan": (math.nan, 1.0), "inf": (1.0, math.inf), "-inf": (-math.inf, 1.0),
        "both -inf": (-math.inf, -math.inf), "far": (300.0, -300.0),
        "just near": (34.0, -34.5), "just far": (34.5, -35.0),
    }  # fmt: skip
    if odd in values:
        x[row] = torch.tensor(values[odd])
    elif odd == "ignored":
        y[row] = -100
    else:
        y[row] = 2
        with pytest.raises(IndexError, match=rf"got 2 at index {row}$"):
            imbloss.focal_loss(x, y, gamma=gamma)
        return

    def run(function, x, y):
        x = x.clone().requires_grad_()
        loss = function(x, y)
        return loss.detach().double(), torch.autograd.grad(loss, x)[0].double()

    def fused(x, y):
        return imbloss.focal_loss(x, y, gamma=gamma, reduction="sum")

    loss, grad = run(fused, x, y)
    others = torch.arange(200) != row
    alone_loss, alone_grad = run(fused, x[~others], y[~others])  # by another way: it is less than a vector
    reference_of = functools.partial(reference.focal_loss, gamma=gamma, reduction="sum")
    others_loss, others_grad = run(reference_of, x[others].double(), y[others])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(grad[~others], alone_grad, rtol=8 * EPS, atol=0, equal_nan=True)
    torch.testing.assert_close(grad[others], others_grad, rtol=8 * EPS + eps, atol=1e-12)
    torch.testing.assert_close(loss, alone_loss + others_loss, rtol=8 * EPS + eps, atol=0, equal_nan=True)
    with torch.no_grad():
        torch.testing.assert_close(fused(x, y).double(), loss, rtol=0, atol=0, equal_nan=True)


ODD_ROWS = ["none", "ignored", "nan", "inf", "-inf", "far", "nearly certain", "out of range"]
MANY_CLASSES = [(383, 40), (384, 40), (512, 40), (529, 43), (1000, 71), (1283, 40), (5003, 9)]
LONG_ROWS = list(itertools.product(MANY_CLASSES, ODD_ROWS, [torch.float32, torch.float64, torch.bfloat16]))
TOO_LARGE_FOR_CACHES = [(67, 131_000), (131, 67_000), (257, 34_001), (1003, 8400)]
LONG_ROWS += [(shape, odd, torch.float32) for shape in TOO_LARGE_FOR_CACHES for odd in ("none", "ignored", "nan")]


@pytest.mark.isa
@pytest.mark.parametrize("shape, odd, dtype", LONG_ROWS)
def test_one_odd_row_among_rows_of_many_classes(shape, odd, dtype):
    """A row is finished while the next is read: whatever leaves this way changes no other row. Targets lie everywhere,
    and rows begin anywhere in a line of memory."""
    classes, rows = shape
    row = 2 + rows // 2
    padded = (3 * torch.randn(rows, classes + 1)).to(dtype)
    x = padded[:, 1:]
    y = torch.arange(rows) * 13 % classes
    y[:2] = torch.tensor([0, classes - 1])

    def run(inplace=False):
        leaf = padded.clone().requires_grad_()
        loss = imbloss.focal_loss((leaf * 1)[:, 1:], y, gamma=2.0, reduction="sum", inplace=inplace)
        return loss.detach().double(), torch.autograd.grad(loss, leaf)[0][:, 1:]

    usual_grad = run()[1]
    if odd == "ignored":
        y[row] = -100
    elif odd == "out of range":
        y[row] = classes
        with pytest.raises(IndexError, match=rf"got {classes} at index {row}$"):
            run()
        return
    elif odd == "nearly certain":
        x[row] = 0
        x[row, y[row]] = 35
    elif odd != "none":
        x[row, -3] = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "far": 300.0}[odd]
    loss, grad = run()
    eps = max(torch.finfo(dtype).eps, EPS)
    others = torch.arange(rows) != row
    if classes < (128 if rows > 100 else 384):  # rows that share a vector leave together: shifted first, and rounded
        torch.testing.assert_close(grad[others], usual_grad[others], rtol=32 * eps, atol=1e-36)
    else:
        assert torch.equal(grad[others], usual_grad[others])

    wide = x.double().requires_grad_()
    want = reference.focal_loss(wide, y, gamma=2.0, reduction="sum")
    (want_grad,) = torch.autograd.grad(want, wide)
    torch.testing.assert_close(loss, want.detach(), rtol=8 * eps, atol=0, equal_nan=True)
    assert_within(grad, want_grad, 32 * eps * want_grad.abs())
    aligned = x.contiguous().requires_grad_()
    again = imbloss.focal_loss(aligned, y, gamma=2.0, reduction="sum")
    for same in (run(inplace=True), (again.detach().double(), torch.autograd.grad(again, aligned)[0])):
        torch.testing.assert_close(same, (loss, grad), rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        value = imbloss.focal_loss(x, y, gamma=2.0, reduction="sum").double()
    torch.testing.assert_close(value, loss, rtol=0, atol=0, equal_nan=True)


SOFT_CLASSES = [2, 3, 15, 16, 40, 47, 48, 49, 100, 256, 257]  # both sides of every switch


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["probabilities", "label smoothing"])
@pytest.mark.parametrize("odd", ["none", "nan", "-inf", "far", "nearly certain", "ignored", "ignored nan"])
@pytest.mark.parametrize("classes", SOFT_CLASSES)
def test_one_odd_row_among_soft_targets(classes, odd, kind, dtype):
    """Rows that are worked on together: whatever leaves the usual way changes no other row."""
    rows, row = 41, 20
    x = (3 * torch.randn(rows, classes)).to(dtype)
    y = torch.arange(rows) * 7 % classes
    t = torch.rand(rows, classes, dtype=torch.float64).softmax(1).to(dtype)
    x[row] = x[row].clamp(-3, 3)

    def run(function, x, convert, inplace=False):
        leaf = convert(x).requires_grad_()
        target, numbers = (convert(t), {}) if kind == "probabilities" else (y, {"label_smoothing": 0.2})
        numbers |= {"inplace": True} if inplace else {}
        loss = function(leaf * 1, target, gamma=2.0, reduction="sum", **numbers)
        return loss.detach().double(), torch.autograd.grad(loss, leaf)[0].double()

    usual = run(imbloss.focal_loss, x, torch.clone)[1]
    if "ignored" in odd:
        y[row] = -100
    if odd == "nearly certain":
        x[row] = 0
        x[row, 1] = 30
    elif odd not in ("none", "ignored"):
        x[row, -1] = {"-inf": -math.inf, "far": 300.0}.get(odd, math.nan)
    loss, grad = run(imbloss.focal_loss, x, torch.clone)
    others = torch.arange(rows) != row
    eps = max(torch.finfo(dtype).eps, EPS)
    if classes >= 48:
        assert torch.equal(grad[others], usual[others])
    else:  # rows that share a vector leave together
        torch.testing.assert_close(grad[others], usual[others], rtol=32 * eps, atol=32 * eps / classes)
    again = run(imbloss.focal_loss, x, torch.clone, inplace=True)
    if odd == "ignored nan" and kind == "label smoothing":
        x[row] = 0  # what an ignored row holds does not matter; the reference's own gradient would be NaN
    want_loss, want = run(reference.focal_loss, x, torch.Tensor.double)
    share = t.double().amax(1, keepdim=True) if kind == "probabilities" else 0.2 / classes
    torch.testing.assert_close(loss, want_loss, rtol=16 * eps, atol=0, equal_nan=True)
    assert_within(grad, want, 32 * eps * (want.abs().amax(1, keepdim=True) + share))  # of which it is a difference
    torch.testing.assert_close(again, (loss, grad), rtol=0, atol=0, equal_nan=True)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inner", [(), (17,)])
@pytest.mark.parametrize("classes", SOFT_CLASSES)
def test_two_classes_that_share_the_top(classes, inner, dtype):
    """p = 1/2, rounded: neither is the single one at the top."""
    x = torch.full((300, classes, *inner), -20, dtype=dtype)
    x[:, [0, -1]] = 20 * torch.rand(300, 1, *inner, dtype=dtype)
    t = torch.rand_like(x).softmax(1)
    leaf = x.requires_grad_()
    (grad,) = torch.autograd.grad(imbloss.focal_loss(leaf, t, reduction="sum"), leaf)
    wide = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(reference.focal_loss(wide, t.double(), reduction="sum"), wide)
    scale = t.double().mul(wide.detach().softmax(1)).amax(1, keepdim=True)  # the gradient is the difference of two such
    ulps = 32 if dtype == torch.float32 else 256  # of float64 the reference rounds, too
    assert_within(grad.double(), want, ulps * torch.finfo(dtype).eps * (want.abs() + scale))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "classes, inner", [(2, ()), (10, ()), (100, ()), (450, ()), (500, ()), (1003, ()), (19, (8, 130))]
)
def test_gradients_too_large_for_caches(classes, inner, dtype):
    """Their stores may go past the caches, in aligned vectors: every element is that of a part of the rows, which is
    small."""
    bytes_of_row, parts = classes * math.prod(inner) * dtype.itemsize, 8
    rows = (33 * 2**20 // bytes_of_row // (64 * parts) + 1) * 64 * parts
    x, y = torch.randn(rows, classes, *inner).to(dtype), torch.randint(classes, (rows, *inner))

    def gradient(x, y):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(imbloss.focal_loss(x, y, gamma=2.0, reduction="sum"), x)[0]

    grad = gradient(x, y)
    for part, of_x, of_y in zip(grad.chunk(parts), x.chunk(parts), y.chunk(parts), strict=True):
        assert torch.equal(part, gradient(of_x, of_y))


@pytest.mark.isa
@pytest.mark.parametrize("classes", [300, 1203])
@pytest.mark.parametrize("loss, sample", [p for p in SAMPLES if p.values[1].startswith(("soft", "smoothing"))])
def test_soft_targets_beside_a_class_that_is_nearly_certain(loss, sample, classes):
    """Anywhere in the row, up to a complement that float32's 1 - p would lose; small logits otherwise."""
    rows = 64
    c = case(loss, sample, classes, (rows,), spread=1.0)
    top = torch.randint(0, classes, (rows,))
    top[:3] = torch.tensor([0, classes - 1, classes // 2])
    c.logits[torch.arange(rows), top] = torch.linspace(4, 30, rows)
    if not c.target.is_floating_point():
        c.target[::3] = top[::3]
    upstream = c.upstream()
    assert_accurate(c, upstream, c.run(upstream=upstream))


DENSE = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "cropped": lambda x: torch.nn.functional.pad(x, (1, 2, 1, 0))[..., 1:, 1:-2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "classes sliced": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "batch and height swapped": lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
    "expanded": lambda x: x[..., :1].expand(x.shape),
}


@pytest.mark.isa
@pytest.mark.triton
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_dense_logits(loss, sample, layout):
    for classes, shape in ((3, (2, 5, 31)), (19, (2, 9, 16)), (4, (1, 1, 3)), (100, (3, 2, 40)), (5, (0, 3, 4))):
        c = case(loss, sample, classes, shape)
        c.logits = DENSE[layout](c.logits)
        if c.target.is_floating_point():
            c.target = DENSE[layout](c.target)
        upstream = c.upstream()
        got = c.run(upstream=upstream)
        assert got[1].shape == c.logits.shape
        assert_accurate(c, upstream, got)


@pytest.mark.triton
@pytest.mark.parametrize("loss", EVERY)
def test_the_gradient_has_the_strides_of_dense_logits(loss):
    for layout in ("contiguous", "channels last"):
        c = case(loss, shape=(2, 4, 6))
        c.logits = DENSE[layout](c.logits)
        for reduction in loss.reductions or (None,):
            assert c.reduced(reduction).run()[1].stride() == c.logits.stride()


def half_steps(got, want, dtype):
    """How many representable numbers lie between half-precision values and the correctly rounded ones."""

    def ordered(x):
        bits = x.to(dtype).view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(got) - ordered(want)).abs()


@pytest.mark.isa
@pytest.mark.triton
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_half_precision_is_the_float64_gradient_rounded_once(loss, sample, dtype):
    # Triton's interpreter truncates to bfloat16 where a GPU rounds
    steps = 2 if INTERPRETED and dtype == torch.bfloat16 else 1
    sizes = (2, (65,), 3), (10, (33,), 6), (17, (64,), 6), (100, (7,), 3), (1203, (16,), 3), (5, (2, 3, 33), 3)
    for classes, shape, spread in sizes:
        c = case(loss, sample, classes, shape, dtype, spread)
        for upstream in (None, torch.tensor(128.0)):
            if upstream is not None and c.keywords.get("reduction") == "none":
                upstream = upstream.expand(shape)
            got, want = c.run(upstream=upstream), c.truth(upstream)
            assert got[0].dtype == got[1].dtype == dtype
            # where terms cancel, float32 has no more to give
            value_cancelled = c.loss.sizes and (got[0].double() - want[0]).abs() <= c.bound().amax() * c.sizes()[0]
            assert (half_steps(got[0], want[0], dtype).le(steps) | bool(value_cancelled)).all()
            cancelled = (got[1].double() - want[1]).abs() <= c.bound() * c.scale(upstream, want[1])
            if INTERPRETED:  # and values under 1e-36 count as 0
                want = want[0], torch.where(want[1].abs() < 1e-36 * c.largest_scale, got[1], want[1])
            assert (half_steps(got[1], want[1], dtype).le(steps) | (cancelled if c.cancels else False)).all()


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_float64_equals_the_reference(loss, sample):
    for classes, shape in ((1, (3,)), (2, (5,)), (10, (7,)), (100, (33,)), (7, (2, 3, 20))):
        c = case(loss, sample, classes, shape, torch.float64).double()
        upstream = c.upstream().double()
        assert_close(c.run(upstream=upstream), c.truth(upstream), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_gradcheck_and_gradgradcheck(loss, sample):
    for shape in ((6,), (2, 3)):
        c = case(loss, sample, 5, shape, torch.float64).double()
        if c.keywords.get("detach_factor"):
            c.keywords["gamma"] = 0.0  # a detached factor's gradient is not the value's derivative, but for this
        function = lambda x: c.replace(logits=x).value()  # noqa: B023, E731
        assert torch.autograd.gradcheck(function, c.logits.requires_grad_())
        assert torch.autograd.gradgradcheck(function, c.logits.requires_grad_())


@pytest.mark.isa
@pytest.mark.triton
@pytest.mark.parametrize("spread", [1.0, 5.0, 50.0])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 2.0, 3.3, 5.0])
def test_no_digit_is_lost_however_sure_the_model_is(gamma, spread):
    loss = next(loss for loss in LOSSES if loss.name == "focal_loss")
    shapes = (2, (256,)), (10, (256,)), (1000, (256,)), (10, (1, 256))
    for (classes, shape), extreme in itertools.product(shapes, (False, True)):
        for options in ({}, {"label_smoothing": 0.1}, {"soft": True}):
            logits, target = inputs(classes, shape, spread=spread, soft="soft" in options)
            y = target.argmax(1) if "soft" in options else target.clamp(min=0)
            z = logits.movedim(1, -1).reshape(-1, classes)
            rows, y = torch.arange(256), y.view(-1)
            z[rows[::8], y[::8]] += 27.6  # p = 1 - 1e-12, about
            if extreme:
                z[rows[1::8], y[1::8]] -= 69.1  # p = 1e-30, about
                z[rows[2::8], y[2::8]] = 1e4
                z[rows[4::8], y[4::8]] = -1e4
            logits = z.view(*logits.movedim(1, -1).shape).movedim(-1, 1).contiguous()
            keywords = {"gamma": gamma, "reduction": "none", **{k: v for k, v in options.items() if k != "soft"}}
            c = Case(loss, keywords, logits, target)
            upstream = c.upstream()
            got = c.run(upstream=upstream)
            assert_accurate(c, upstream, got)
            assert got[0].isfinite().all() and got[1].isfinite().all()


@pytest.mark.isa
@pytest.mark.triton
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", EVERY)
def test_infinite_and_nan_logits_stay_in_their_rows(loss, dtype, dense):
    if loss.coupled:
        return
    for classes in (2, 3, 10, 37, 1000):
        c = case(loss, None, classes, (12,), dtype)
        c.keywords["reduction"] = "none"
        c.target = torch.zeros(12, dtype=torch.int64)
        x = c.logits
        x[1, 1] = -math.inf  # not the target
        x[2, 0] = -math.inf  # the target
        x[3, 1] = math.inf
        x[4, 0] = math.inf
        x[5, :] = -math.inf
        x[6, 1] = math.nan
        x[7, 0] = math.nan
        x[8] = math.nan
        c.target[8] = -100
        if dense:
            c.logits, c.target = x.t().contiguous().unsqueeze(0), c.target.unsqueeze(0)
        value, grad = c.run()
        if dense:
            value, grad = value[0], grad[0].t()
        assert grad[1, 1] == 0 and value[1].isfinite() and grad[1].isfinite().all()
        scale = c.constants().get("scale", torch.ones(classes))
        assert value[2] == math.inf and grad[2].isfinite().all()
        assert_close(grad[2, 0].double(), -scale[0].double(), rtol=1e-2, atol=0)  # cross entropy's slope
        assert value[3:8].isnan().all() and grad[3:8].isnan().all()
        assert value[8] == 0 and (grad[8] == 0).all()
        untouched = [0, 9, 10, 11]
        assert value[untouched].isfinite().all() and grad[untouched].isfinite().all()


@pytest.mark.isa
@pytest.mark.triton
@pytest.mark.parametrize("first", [0, 32])  # in whole vectors of rows, and after them
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("dense", [False, True])
def test_infinite_and_nan_logits_with_soft_targets(dense, classes, first):
    for function in (imbloss.cross_entropy, lambda *a, **k: imbloss.focal_loss(*a, gamma=0.5, **k)):
        logits, target = inputs(classes, (38,), soft=True)
        one, two, three, four = range(first + 1, first + 5)
        target[:] = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0])[:classes]
        target[one] = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])[:classes]
        logits[one, -1] = -math.inf  # a class without a share
        logits[two, 0] = -math.inf  # one with
        logits[three, 1] = math.nan
        logits[four, -1] = math.inf
        if dense:
            logits, target = (t.t().contiguous().unsqueeze(0) for t in (logits, target))
        x = logits.requires_grad_()
        value = function(x, target, reduction="none")
        (grad,) = torch.autograd.grad(value.sum(), x)
        value, grad = (value[0], grad[0].t()) if dense else (value, grad)
        others = [row for row in range(38) if row not in (two, three, four)]
        assert value[others].isfinite().all() and grad[others].isfinite().all() and grad[one, -1] == 0
        assert value[two] == math.inf and grad[two].isfinite().all() and grad[two, 0] == -0.5
        assert value[three : four + 1].isnan().all() and grad[three : four + 1].isnan().all()


@pytest.mark.triton
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", EVERY)
def test_nothing_that_counts(loss, smoothing):
    if smoothing and "smoothing" not in loss.samples:
        return
    for shape in ((0,), (4,), (2, 3, 40)):
        c = case(loss, None, 5, shape)
        c.target = torch.full(shape, -100)
        c.logits[:] = math.nan
        c.keywords |= {"label_smoothing": smoothing} if smoothing else {}
        for reduction in loss.reductions or ("sum",):
            value, grad = c.reduced(reduction).run()
            assert value.isnan() if reduction == "mean" else (value == 0).all()
            assert (grad == 0).all() and value.shape == (shape if reduction == "none" else ())


@pytest.mark.triton
@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_one_sample_without_a_batch_dimension(loss, sample):
    batch = case(loss, sample, 10, (1,))
    c = batch.replace(logits=batch.logits[0], target=batch.target[0], keywords=dict(batch.keywords))
    if "sample_weight" in c.keywords:
        c.keywords["sample_weight"] = c.keywords["sample_weight"][0]
    value, grad = c.run()
    batch_value, batch_grad = batch.run()
    assert value.shape == () and grad.shape == (10,)
    assert_close((value, grad), (batch_value.view(()), batch_grad[0]), rtol=0, atol=0)


LAYOUTS = {
    "sliced rows": lambda x: torch.cat([x, x + 1], 1)[:, : x.shape[1]],
    "every other row": lambda x: torch.stack([x, x + 1], 1).view(-1, x.shape[1])[::2],
    "transposed": lambda x: x.t().contiguous().t(),
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "expanded": lambda x: x[:1].expand(x.shape),
    "every other class": lambda x: torch.stack([x, x + 1], 2).flatten(1)[:, ::2],
}


@pytest.mark.triton
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_any_strides(loss, sample, layout):
    for dtype in DTYPES[:1] + DTYPES[2:] if INTERPRETED else DTYPES:  # Triton leaves float64 to the reference
        for classes, rows in ((3, 8), (10, 7), (100, 40)):
            c = case(loss, sample, classes, (rows,), dtype)
            c.logits = LAYOUTS[layout](c.logits)
            c.target = LAYOUTS[layout](c.target) if c.target.dim() > 1 else c.target.repeat_interleave(2)[::2]
            plain = c.replace(logits=c.logits.contiguous(), target=c.target.contiguous())
            upstream = c.upstream()
            tolerance = 16 * torch.finfo(dtype).eps
            got, want = c.run(upstream=upstream), plain.run(upstream=upstream)
            assert_close(got[0], want[0], rtol=tolerance, atol=tolerance / 100)
            bound = tolerance * (c.scale(upstream, want[1]) + want[1].double().abs())
            assert_within(got[1], want[1], bound, 1e-7 if dtype == torch.float16 else 1e-36 * c.largest_scale)


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_opcheck(loss, sample, monkeypatch):
    """Schemas, fakes and aliasing of the operators behind the loss, called as the loss calls them."""
    calls = []
    for name in [name for name, value in vars(_ops).items() if isinstance(value, _ops.Traversal)]:
        traversal = getattr(_ops, name)

        def forward(*args, op=traversal.forward):
            calls.append((op, args))
            return op(*args)

        monkeypatch.setattr(_ops, name, dataclasses.replace(traversal, forward=forward))
    for shape in ((6,), (2, 3)):
        c = case(loss, sample, 5, shape)
        c.run(upstream=c.upstream())
    assert calls
    detach = lambda a: a.detach() if isinstance(a, torch.Tensor) else a  # noqa: E731
    for op, args in calls:
        args = [detach(a) for a in args]
        torch.library.opcheck(op, args)
        logits, target, operands, *options, _ = args
        grad_output = torch.ones(op(*args)[0].shape)
        if op is torch.ops.imbloss.softmax_rows.default:
            stats = op(*args[:-1], False)[1]
            args = grad_output, logits, target, stats, operands, options[1]
            torch.library.opcheck(torch.ops.imbloss.softmax_rows_backward.default, args)
        elif op is torch.ops.imbloss.class_columns.default:
            kept = op(*args[:-1], False)[1]
            numbers, ignore_index, _, estimator = options
            args = grad_output, logits, target, kept, operands, numbers, ignore_index, estimator
            torch.library.opcheck(torch.ops.imbloss.class_columns_backward.default, args)
            args = logits, target, operands, numbers, ignore_index, estimator
            torch.library.opcheck(torch.ops.imbloss.class_columns_statistics.default, args)
        else:
            args = grad_output, *args[:-1]
            torch.library.opcheck(torch.ops.imbloss.softmax_soft_rows_backward.default, args)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_backward_twice_and_inputs_untouched(loss, sample, reduction):
    for dtype in DTYPES:
        c = case(loss, sample, 10, (32,), dtype)
        if (c.loss.reductions and reduction not in c.loss.reductions) or (
            "normalizer" in c.keywords and reduction == "none"
        ):
            continue
        c = c.reduced(reduction)
        tensors = {"logits": c.logits, "target": c.target, **c.keywords}
        tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
        before = {name: (tensor.clone(), tensor._version) for name, tensor in tensors.items()}
        x = c.logits.requires_grad_()
        value = c.value()
        for upstream in (1.0, 1.0, 3.0):
            upstream = torch.full_like(value, upstream)
            first = torch.autograd.grad(value, x, upstream, retain_graph=True)[0]
            first_copy = first.clone()
            second = torch.autograd.grad(value, x, upstream, retain_graph=True)[0]
            assert torch.equal(first, second) and torch.equal(first, first_copy)
            first.zero_()
        (third,) = torch.autograd.grad(value, x, upstream)
        assert torch.equal(third, second)
        for name, tensor in tensors.items():
            assert torch.equal(tensor.detach(), before[name][0]) and tensor._version == before[name][1]


@pytest.mark.parametrize("loss", EVERY)
def test_gradients_accumulate(loss):
    c = case(loss)
    x = c.logits.clone().requires_grad_()
    for _ in range(3):
        c.replace(logits=x).value().backward()
    assert_close(x.grad, 3 * c.run()[1])


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_same_bits_for_any_number_of_threads_and_every_run(loss, sample):
    for classes, shape in ((10, (20000,)), (1203, (100,)), (5, (3, 100, 70))):
        c = case(loss, sample, classes, shape)
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(c.run())
        torch.set_num_threads(2)
        for value, grad in results[1:]:
            assert torch.equal(value, results[0][0]) and torch.equal(grad, results[0][1])


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_compiles_without_a_graph_break(loss, sample):
    torch.compiler.reset()
    compiled = torch.compile(lambda x, y, k: loss.function(x, y, **k), fullgraph=True, backend="aot_eager")
    c = case(loss, sample, 10, (12,))
    upstream = c.upstream()
    got = c.run(lambda x, y, **k: compiled(x, y, k), upstream)
    assert_close(got, c.run(upstream=upstream), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", EVERY)
def test_compiles_with_inductor_and_dynamic_shapes(loss):
    keywords = {name: value for name, value in case(loss).keywords.items() if name != "sample_weight"}
    torch.compiler.reset()
    compiled = torch.compile(lambda x, y: loss.function(x * 2, y, **keywords), fullgraph=True, dynamic=True)
    for rows in (12, 5, 33):
        c = Case(loss, {}, *inputs(10, (rows,)))
        got = c.run(compiled)
        assert_close(got, c.run(lambda x, y: loss.function(x * 2, y, **keywords)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_torch_func(loss, sample):
    """grad, vmap of grad (gradients per sample) and jacrev give what autograd gives."""
    c = case(loss, sample, 5, (4,), torch.float64).double()
    c.keywords.pop("normalizer", None)
    c = c.reduced("sum")
    want = c.run()[1]
    total = lambda x: c.replace(logits=x).value()  # noqa: E731
    assert_close(torch.func.grad(total)(c.logits), want)
    if loss.coupled:
        return
    if "sample_weight" not in c.keywords:
        one = lambda x, y: loss.function(x, y, **c.keywords)  # noqa: E731
        assert_close(torch.func.vmap(torch.func.grad(one))(c.logits, c.target), want)
    rows = c.replace(keywords=c.keywords | {"reduction": "none"})
    jacobian = torch.func.jacrev(lambda x: rows.replace(logits=x).value())(c.logits)
    assert_close(jacobian.sum(0), want)


@pytest.mark.parametrize("loss, identity", [(loss, name) for loss in LOSSES for name in loss.identities])
def test_identity(loss, identity):
    sample, other = loss.identities[identity]
    for classes, shape in ((2, (5,)), (10, (64,)), (100, (33,)), (7, (2, 5, 9))):
        c = Case(loss, sample(classes, shape), *inputs(classes, shape))
        assert_close(c.run(), c.run(other), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("loss, error", [(loss, name) for loss in LOSSES for name in loss.errors])
def test_bad_argument_is_named(loss, error):
    keywords, exception, message = loss.errors[error]
    with pytest.raises(exception, match=message):
        loss.function(torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64), **keywords)


NO_INTEGERS = "expected target to be a tensor of an integer dtype"
BAD_INPUTS = {
    "logits list": ([[0.0]], torch.zeros(1).long(), TypeError, "expected logits to be a tensor, but got list"),
    "logits dtype": (torch.zeros(5, 4).long(), torch.zeros(5).long(), TypeError, "expected logits of dtype float32"),
    "logits scalar": (torch.tensor(1.0), torch.tensor(0), ValueError, r"expected logits of shape .*, but got \(\)"),
    "no classes": (torch.zeros(5, 0), torch.zeros(5).long(), ValueError, "expected logits of at least one class"),
    "target bool": (torch.zeros(5, 4), torch.zeros(5).bool(), TypeError, NO_INTEGERS),
    "target list": (torch.zeros(5, 4), [0] * 5, TypeError, NO_INTEGERS),
    "target shape": (
        torch.zeros(5, 4), torch.zeros(4).long(), ValueError,
        r"expected target of shape \(5,\), as class indices for logits of shape \(5, 4\), but got \(4,\)",
    ),
    "dense target shape": (
        torch.zeros(5, 4, 2, 3), torch.zeros(5, 2, 4).long(), ValueError,
        r"expected target of shape \(5, 2, 3\), as class indices .* but got \(5, 2, 4\)",
    ),
    "target device": (torch.zeros(5, 4), torch.zeros(5, device="meta").long(), ValueError, "expected target on cpu"),
    "target too large": (
        torch.zeros(5, 4), torch.tensor([0, 1, 4, 9, 0]), IndexError,
        r"expected target in \[0, 4\) or ignore_index=-100, but got 4 at index 2",
    ),
    "target negative": (torch.zeros(5, 4), torch.tensor([0, 1, 2, 0, -1]), IndexError, "but got -1 at index 4"),
    "dense target": (
        torch.zeros(2, 4, 3), torch.tensor([[0, 1, 2], [3, 7, 0]]), IndexError, "but got 7 at index 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_INPUTS)
@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_is_named(loss, bad, backend):
    logits, target, exception, message = BAD_INPUTS[bad]
    keywords = next(iter(loss.samples.values()))(0 if bad == "no classes" else 4, (5,))
    with imbloss.testing.backend(backend), pytest.raises(exception, match=message):
        loss.function(logits, target, **keywords)


@pytest.mark.parametrize("loss", EVERY)
def test_probabilities_of_another_shape_are_named(loss):
    keywords = next(iter(loss.samples.values()))(4, (5,))
    message = r"expected target of shape \(5, 4\), as probabilities|expected target to be class indices"
    with pytest.raises((ValueError, TypeError), match=message):
        loss.function(torch.zeros(5, 4), torch.zeros(5, 3), **keywords)


def test_probabilities_and_an_ignored_class_do_not_mix():
    with pytest.raises(ValueError, match="expected no ignore_index beside target probabilities, but got 2"):
        imbloss.cross_entropy(torch.zeros(5, 4), torch.full((5, 4), 0.25), ignore_index=2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", EVERY)
def test_the_first_of_many_bad_targets_is_reported(loss, smoothing):
    if smoothing and "smoothing" not in loss.samples:
        return
    c = case(loss, None, 10, (30000,))
    c.target[[12345, 20001, 29999]] = torch.tensor([77, 10, -3])
    c.keywords |= {"label_smoothing": smoothing} if smoothing else {}
    for reduction in loss.reductions or (None,):
        with pytest.raises(IndexError, match="but got 77 at index 12345"):
            c.reduced(reduction).value()


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_targets_of_any_integer_dtype(loss, dtype):
    c = case(loss)
    c.target = torch.randint(0, 10, (32,))
    assert torch.equal(c.replace(target=c.target.to(dtype)).value(), c.value())


def test_probabilities_of_any_floating_dtype():
    for logits_dtype in DTYPES:
        logits, target = inputs(10, (32,), logits_dtype, soft=True)
        for dtype in DTYPES:
            given = target.to(dtype)
            want = imbloss.focal_loss(logits.double(), given.double())
            assert_close(imbloss.focal_loss(logits, given), want.to(logits_dtype))


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_the_fallback_computes_the_same(loss, sample):
    """Plain PyTorch, as on a machine without a compiled core."""
    for dtype in DTYPES:
        for shape in ((21,), (2, 3, 4)):
            c = case(loss, sample, 10, shape, dtype)
            upstream = c.upstream()
            want = c.run(upstream=upstream)
            with imbloss.testing.backend("reference"):
                got = c.run(upstream=upstream)
            if dtype in HALF:
                scale = c.scale(upstream, want[1]) * 1e-4
                assert half_steps(got[0], want[0], dtype).le(1).all()
                assert (half_steps(got[1], want[1], dtype).le(1) | ((got[1] - want[1]).abs() <= scale)).all()
            else:
                tolerance = 1e-4 if dtype == torch.float32 else 1e-11
                assert_close(got, want, rtol=tolerance, atol=tolerance / 100)


IN_PLACE = [
    pytest.param(loss, name, id=f"{loss.name}-{name}") for loss in LOSSES if loss.inplace for name in loss.samples
]


@pytest.mark.isa
@pytest.mark.triton
@pytest.mark.parametrize("layout", ["rows", "transposed", "dense", "channels last", "height and width swapped"])
@pytest.mark.parametrize("loss, sample", IN_PLACE)
def test_the_gradient_over_the_logits_is_the_gradient(loss, sample, layout):
    for dtype in (torch.float32, torch.bfloat16):
        for classes in (2, 10, 100):
            c = case(loss, sample, classes, (37,) if layout in ("rows", "transposed") else (2, 3, 16), dtype)
            want = c.run()
            leaf = c.logits.requires_grad_()
            z = leaf * 1
            if layout == "transposed":
                z = z.t().contiguous().t()
            elif layout == "channels last":
                z = z.contiguous(memory_format=torch.channels_last)
            elif layout == "height and width swapped":
                z = z.transpose(2, 3).contiguous().transpose(2, 3)
            value = c.replace(logits=z, keywords=c.keywords | {"inplace": True}).value()
            (grad,) = torch.autograd.grad(value, leaf, torch.ones_like(value))
            assert torch.equal(grad, z)
            if dtype == torch.float32:
                assert_accurate(c, None, (value.detach(), grad))
            else:
                tolerance = 2 * torch.finfo(dtype).eps
                assert_close((value.detach(), grad), want, rtol=tolerance, atol=tolerance / 100)


# The tensors that a loss takes besides the logits, at 5 classes and 6 rows.
DIFFERENTIABLE = [
    ("cross_entropy", {"weight": uneven(5)}),
    ("cross_entropy", {"sample_weight": uneven(6)}),
    ("cross_entropy", {"normalizer": torch.tensor(2.5)}),
    ("cross_entropy", {"target": torch.full((6, 5), 0.2)}),
    ("focal_loss", {"gamma": uneven(5)}),
    ("focal_loss", {"target": torch.full((6, 5), 0.2)}),
    ("logit_adjusted_loss", {"prior": torch.full((5,), 0.2)}),
    ("balanced_softmax_loss", {"counts": uneven(5)}),
    ("ldam_loss", {"counts": uneven(5)}),
    ("vs_loss", {"counts": uneven(5)}),
]


@pytest.mark.parametrize("name, keywords", DIFFERENTIABLE)
def test_other_tensors_have_gradients_too(name, keywords):
    ((argument, tensor),) = keywords.items()
    logits, target = inputs(5, (6,), torch.float64)
    tensor = tensor.double().requires_grad_()
    function = getattr(imbloss, name)
    call = lambda x, t: function(x, **{"target": target, argument: t})  # noqa: E731
    if argument == "prior":  # gradcheck's steps leave the simplex
        call(logits, tensor).backward()
        assert tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0
    else:
        assert torch.autograd.gradcheck(call, (logits.requires_grad_(), tensor))


# ---- modules -----------------------------------------------------------------------------------------------------
def split(keywords):
    """What a module takes when it is made, and when it is called."""
    call = {name: value for name, value in keywords.items() if name in ("sample_weight", "normalizer")}
    return {name: value for name, value in keywords.items() if name not in call}, call


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_module_equals_function(loss, sample):
    c = case(loss, sample)
    keywords, call = split(c.keywords)
    module = loss.module(**keywords)
    for copied in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(c.logits, c.target, **call), c.value())
    for name, value in keywords.items():
        if isinstance(value, torch.Tensor):
            assert name in dict(module.named_buffers())
        assert name in repr(module)


@pytest.mark.parametrize("loss, error", [(loss, name) for loss in LOSSES for name in loss.errors])
def test_module_checks_its_arguments_once_and_for_all(loss, error):
    keywords, exception, message = loss.errors[error]
    keywords, call = split(keywords)
    with pytest.raises(exception, match=message if "length" not in error else "of shape"):
        loss.module(**keywords)(torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64), **call)


def test_every_public_loss_has_a_row():
    public = {name for name in imbloss.__all__ if name.endswith("_loss") or name in ("cross_entropy", "lader")}
    assert public == {loss.name for loss in LOSSES + ELEMENTS}
    for loss in LOSSES + ELEMENTS:
        assert loss.module.__name__ in imbloss.__all__ and callable(loss.reference)
