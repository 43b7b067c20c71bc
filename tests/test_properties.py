"""Random arguments of every kind: the compiled core against the float64 reference, and what holds for any of them.

The draws are the same in every run; HYPOTHESIS_PROFILE=explore draws others, and many more.
"""

import inspect
import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from losses import LOSSES, prior_of
from test_losses import HALF, Case, assert_accurate, assert_close, assert_within, half_steps

import imbloss

pytestmark = pytest.mark.isa

FACTORS = [1.0, 0.5, 2.5, 128.0, -3.0, 0.0]  # upstream, representable in half precision


def number(low, high, *special):
    return st.one_of(st.sampled_from(special), st.floats(low, high, width=16))


# What a keyword may be, for C classes and rows of a shape. A loss with a keyword of another name needs an entry here.
KEYWORDS = {
    "weight": lambda draw, c, rows: torch.rand(c) * 3 + draw(st.sampled_from([0.0, 0.1])),
    "sample_weight": lambda draw, c, rows: torch.rand(rows) * (torch.rand(rows) < 0.9),
    "gamma": lambda draw, c, rows: torch.rand(c) * 4 if draw(st.booleans()) else draw(number(0, 6, 0, 0.5, 1, 2, 3)),
    "prior": lambda draw, c, rows: prior_of(c)[torch.randperm(c)],
    "counts": lambda draw, c, rows: torch.randint(1, 1000, (c,)).to(draw(st.sampled_from([torch.int64, torch.float]))),
    "tau": lambda draw, c, rows: draw(number(-1, 2, 0, 1)),
    "label_smoothing": lambda draw, c, rows: draw(number(0, 1, 0, 0.1, 1)),
    "detach_factor": lambda draw, c, rows: draw(st.booleans()),
    "epsilon": lambda draw, c, rows: draw(number(-0.5, 3, 0, 1)),
    "max_margin": lambda draw, c, rows: draw(number(0, 2, 0)),
    "scale": lambda draw, c, rows: draw(number(0.5, 30, 1)),
    "gamma_scale": lambda draw, c, rows: draw(number(0, 1, 0)),
    "ignore_index": lambda draw, c, rows: draw(st.sampled_from([-100, -1, 0, c - 1, c, 2**31 - 1, -(2**63)])),
    "reduction": lambda draw, c, rows: draw(st.sampled_from(["none", "mean", "sum"])),
    "normalizer": lambda draw, c, rows: draw(st.sampled_from([7.5, torch.tensor(3), torch.tensor(0.3)])),
}


def laid_out(draw, x):
    """x with its dimensions in any order and any distance in memory, which ends with the last element; NaN between."""
    order = draw(st.permutations(range(x.dim()))) if draw(st.booleans()) else range(x.dim())
    distances = draw(st.tuples(*[st.sampled_from([1, 1, 1, 2, 3])] * x.dim()))
    offset = draw(st.sampled_from([0, 0, 1, 5]))
    if draw(st.integers(0, 9)) == 9:
        constant = draw(st.integers(0, x.dim() - 1))
        x = x.narrow(constant, 0, min(1, x.shape[constant])).expand(x.shape)
        return x
    strides, step = [0] * x.dim(), 1
    for d in reversed(order):
        strides[d] = step * distances[d]
        step = strides[d] * max(x.shape[d], 1)
    span = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True)) if x.numel() else 0
    filling = math.nan if x.is_floating_point() else torch.iinfo(x.dtype).max
    memory = torch.full((offset + span,), filling, dtype=x.dtype)
    return memory.as_strided(x.shape, strides, offset).copy_(x)


class Drawn(Case):
    """A case that may be the worst: where logits are scaled and shifted, s, s x, b and their sum are rounded, too."""

    def bound(self):
        return super().bound() * (2 if self.constants() else 1)


@st.composite
def cases(draw, dtypes=(torch.float32,), rows=70, **given):
    """A loss with all it takes, and an upstream gradient."""
    loss = draw(st.sampled_from([loss for loss in LOSSES if not loss.coupled]))
    dtype = draw(st.sampled_from(dtypes))
    classes = draw(st.one_of(st.integers(1, 70), st.sampled_from([100, 127, 257, 1203, 9000])))
    rows = rows if classes < 9000 else 7
    shape = draw(
        st.one_of(
            st.tuples(st.integers(0, rows)),
            st.tuples(st.integers(1, 3), st.integers(1, rows // 2)),
            st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, rows // 7)),
        )
    )
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))

    keywords = dict(given)
    for name, parameter in inspect.signature(loss.function).parameters.items():
        required = parameter.default is parameter.empty
        if name == "inplace":  # changes what the other keywords are tried on
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and name not in given and (required or draw(st.booleans())):
            keywords[name] = KEYWORDS[name](draw, classes, shape)
    if keywords.get("reduction", "mean") != "mean":
        keywords.pop("normalizer", None)

    logits = (torch.randn(shape[0], classes, *shape[1:]) * draw(st.sampled_from([0.1, 3.0, 30.0]))).to(dtype)
    if "soft" in loss.samples and draw(st.booleans()):
        keywords.pop("ignore_index", None)
        target = (torch.randn(logits.shape) * 2).softmax(1) * (torch.rand(logits.shape) < 0.8)
        target = laid_out(draw, target.to(draw(st.sampled_from([dtype, torch.float32]))))
    else:
        ignored = torch.rand(shape) < draw(st.sampled_from([0.0, 0.2, 1.0]))
        target = torch.where(ignored, keywords.get("ignore_index", -100), torch.randint(0, classes, shape))
        target = laid_out(draw, target)
    c = Drawn(loss, keywords, laid_out(draw, logits), target)

    out = shape if keywords.get("reduction") == "none" else ()
    if draw(st.booleans()):
        return c, torch.tensor(draw(st.sampled_from(FACTORS))).expand(out)
    return c, torch.tensor(FACTORS)[torch.randint(0, len(FACTORS), out)]


@given(cases(dtypes=(torch.float32, torch.float32, torch.float64, *HALF)))
def test_any_arguments_give_what_the_reference_gives(drawn):
    c, upstream = drawn
    dtype = c.logits.dtype
    got = c.run(upstream=upstream)
    assert got[0].dtype == got[1].dtype == dtype and got[1].shape == c.logits.shape
    if dtype == torch.float32:
        assert_accurate(c, upstream, got)
    elif dtype == torch.float64:
        assert_close(got, c.double().truth(upstream), rtol=1e-11, atol=1e-12)
    else:
        want = c.truth(upstream)
        within = (got[1].double() - want[1]).abs() <= c.bound() * c.scale(upstream, want[1])
        assert (half_steps(got[0], want[0], dtype).le(1) | want[0].isnan()).all()
        assert (half_steps(got[1], want[1], dtype).le(1) | within).all()


def assert_both_accurate(c, upstream, one, other):
    """Two ways to the same value and gradient."""
    bound = 2 * c.bound()
    row = bound.amax(1)
    assert_within(one[0], other[0], (row if one[0].dim() else row.amax() if row.numel() else 0) * other[0].abs())
    assert_within(one[1], other[1], bound * c.scale(upstream, other[1]), 1e-34)


@given(cases())
def test_a_gradient_row_sums_to_zero(drawn):
    c, upstream = drawn
    assume("scale" not in c.constants())
    _, grad = c.run(upstream=upstream)
    terms = c.scale(upstream, grad.double()).sum(1).nan_to_num()  # 0 / 0 where no row counts
    assert (grad.double().sum(1).abs() <= 16 * torch.finfo(torch.float32).eps * terms + 1e-36).all()


def take(keywords, names, index):
    """Keywords with those of these names indexed where they are tensors."""
    return {
        name: value[index] if name in names and isinstance(value, torch.Tensor) else value
        for name, value in keywords.items()
    }


PER_ROW = ["sample_weight"]
PER_CLASS = ["weight", "gamma", "prior", "counts"]


@given(cases())
def test_permuted_rows_give_permuted_results(drawn):
    c, upstream = drawn
    order = torch.randperm(c.logits.shape[0])
    back = order.argsort()
    permuted = c.replace(logits=c.logits[order], target=c.target[order], keywords=take(c.keywords, PER_ROW, order))
    value, grad = permuted.run(upstream=upstream[order] if upstream.dim() else upstream)
    assert_both_accurate(c, upstream, (value[back] if value.dim() else value, grad[back]), c.run(upstream=upstream))


@given(cases())
def test_permuted_classes_give_a_permuted_gradient(drawn):
    c, upstream = drawn
    order = torch.randperm(c.logits.shape[1])
    back = order.argsort()
    target, keywords = c.target, take(c.keywords, PER_CLASS, order)
    if target.is_floating_point():
        target = target[:, order]
    else:
        ignored = keywords.setdefault("ignore_index", -100)
        target = torch.where(target == ignored, -100, back[target.clamp(0, len(order) - 1)])
        keywords["ignore_index"] = -100
    value, grad = c.replace(logits=c.logits[:, order], target=target, keywords=keywords).run(upstream=upstream)
    assert_both_accurate(c, upstream, (value, grad[:, back]), c.run(upstream=upstream))


@given(cases(rows=14, reduction="none"))
def test_a_batch_is_its_rows(drawn):
    c, upstream = drawn
    soft = c.target.is_floating_point()
    value, grad = torch.empty(upstream.shape), torch.empty(c.logits.shape)
    for index in itertools.product(*map(range, value.shape)):
        row = (index[0], slice(None), *index[1:])
        one = c.replace(
            logits=c.logits[row],
            target=c.target[row if soft else index],
            keywords=take(c.keywords, PER_ROW, index),
        )
        value[index], grad[row] = one.run(upstream=upstream[index])
    assert_both_accurate(c, upstream, (value, grad), c.run(upstream=upstream))


@given(cases(), st.sampled_from([0.25, 3.0, -1.0]))
def test_the_gradient_follows_the_upstream_gradient(drawn, factor):
    c, upstream = drawn
    value, grad = c.run(upstream=upstream)
    scaled_value, scaled = c.run(upstream=factor * upstream)
    assert_both_accurate(c, upstream, (scaled_value, scaled / factor), (value, grad))


@pytest.mark.parametrize("number", [2**31 - 1, -(2**31), 2**63 - 1, -(2**63)])
def test_targets_of_any_size_are_ignored_or_named(number):
    for shape in ((40,), (2, 5, 4)):
        x, y = torch.randn(shape[0], 3, *shape[1:]), torch.randint(0, 3, shape)
        small, large = y.clone(), y.clone()
        small.view(-1)[3::7], large.view(-1)[3::7] = -100, number
        assert torch.equal(imbloss.focal_loss(x, large, ignore_index=number), imbloss.focal_loss(x, small))
        with pytest.raises(IndexError, match=f"but got {number} at index 3"):
            imbloss.focal_loss(x, large)
