"""Generic tests of the losses of elements: every row of ELEMENTS, at every dtype, size, stride and extreme."""

import copy
import dataclasses
import math
import pickle
from dataclasses import dataclass

import pytest
import torch
from conftest import INTERPRETED
from losses import ELEMENTS, Loss, uneven
from test_losses import DTYPES, EPS, HALF, LAYOUTS, assert_close, assert_within, half_steps, to_double

import imbloss
from imbloss import _C, _ops, reference

EVERY = [pytest.param(loss, id=loss.name) for loss in ELEMENTS]
SAMPLES = [pytest.param(loss, name, id=f"{loss.name}-{name}") for loss in ELEMENTS for name in loss.samples]
SHAPES = [(7,), (5, 1), (0, 3), (64, 3), (33, 17), (3, 1203), (2, 5, 9), (2, 3, 4, 70)]


def class_dim(shape):
    return 1 if len(shape) > 1 else 0


def rows_of(shape):
    """The shape without classes."""
    dim = class_dim(shape)
    return shape[:dim] + shape[dim + 1 :]


def along_classes(values, x):
    """A number, or one a class, against the logits."""
    return values.view(-1, *[1] * (x.dim() - 2)) if isinstance(values, torch.Tensor) and values.dim() else values


def inputs(shape, dtype=torch.float32, kind="0 or 1", ignored=-100, spread=3.0):
    """Logits and targets of a kind; of those that can be ignored, every seventh is."""
    x = (torch.randn(shape) * spread).to(dtype)
    hard = torch.rand(shape) < 0.3
    some = torch.arange(x.numel()).view(shape) % 7 == 3
    if kind == "indices":
        classes = shape[class_dim(shape)]
        y = torch.randint(-1, classes + 1, rows_of(shape))
        y.view(-1)[3::7] = ignored
        return x, y
    if kind == "bool":
        return x, hard
    if kind == "integers":
        return x, torch.where(some, ignored, hard.long())
    t = hard.to(dtype)
    if kind != "0 or 1":
        t = torch.where(torch.rand(shape) < 0.2, t, torch.rand(shape).to(dtype))
    return x, torch.where(some, torch.tensor(ignored, dtype=dtype), t) if kind == "some ignored" else t


def bce_terms(terms, t, pos_weight):
    """Binary cross entropy, its slope, and the slope's terms without their signs."""
    p, q = terms.p, terms.q
    bce = reference._binary_cross_entropy(terms, t, pos_weight)
    return bce, (1 - t) * p - pos_weight * t * q, (1 - t) * p + pos_weight * t * q


def scales_of_focal(terms, t, pos_weight, k):
    gamma = k["gamma"]
    q_t = (1 - t) * terms.p + t * terms.q
    bce, _, slope = bce_terms(terms, t, pos_weight)
    moved = torch.where(q_t > 0, terms.p * terms.q / q_t, 0) * (1 - 2 * t).abs() * bce
    return q_t**gamma * bce, q_t**gamma * (gamma * moved + slope)


def scales_of_quality(terms, t, pos_weight, k):
    beta = k["beta"]
    excess = ((1 - t) * terms.p - t * terms.q).abs()
    worse = 1 + torch.where(excess > 0, ((1 - t) * terms.p + t * terms.q) / excess, 0)
    bce, _, slope = bce_terms(terms, t, pos_weight)
    moved = torch.where(excess > 0, terms.p * terms.q / excess, 0) * bce
    return worse * excess**beta * bce, worse * excess**beta * (beta * moved + slope)


def scales_of_asymmetric(terms, t, pos_weight, k):
    p, q, clip = terms.p, terms.q, k["clip"]
    p_m = (p - clip).clamp(min=0)
    worse = torch.where(p_m > 0, 1 + clip / p_m, 1)  # what the subtraction of the clip costs
    loss = torch.log1p(p_m / (q + clip)) if clip else -terms.log_q
    moved = torch.where(p_m > 0, loss / p_m, 0) * p * q
    keep = 0 if k["detach_factor"] else 1
    negative = worse * p_m ** k["gamma_neg"] * loss
    negative_slope = worse * p_m ** k["gamma_neg"] * (keep * k["gamma_neg"] * moved + p * q / (q + clip))
    positive = q ** k["gamma_pos"] * -terms.log_p
    positive_slope = q ** k["gamma_pos"] * (keep * k["gamma_pos"] * p * -terms.log_p + q)
    share = pos_weight * t
    return share * positive + (1 - t) * negative, share * positive_slope + (1 - t) * negative_slope


SCALES = {
    "sigmoid_focal_loss": scales_of_focal,
    "quality_focal_loss": scales_of_quality,
    "asymmetric_loss": scales_of_asymmetric,
}


@dataclass
class Case:
    """A loss of elements, its keywords, and inputs to call it with."""

    loss: Loss
    keywords: dict
    x: torch.Tensor
    t: torch.Tensor

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)

    def double(self):
        keywords = {name: to_double(value) for name, value in self.keywords.items()}
        return self.replace(keywords=keywords, x=self.x.double(), t=to_double(self.t))

    def value(self, function=None):
        return (function or self.loss.function)(self.x, self.t, **self.keywords)

    def upstream(self):
        """A gradient of the loss that is not 1, and not uniform."""
        shape = self.value().shape
        return uneven(math.prod(shape), 0.5, 4.0).view(shape) if shape else torch.tensor(2.7)

    def run(self, function=None, upstream=None):
        """Value and gradient."""
        x = self.x.detach().requires_grad_()
        loss = self.replace(x=x).value(function)
        upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
        (grad,) = torch.autograd.grad(loss, x, upstream)
        return loss.detach(), grad

    def truth(self, upstream=None):
        return self.double().run(self.loss.reference, upstream)

    def keyword(self, name, without=None):
        return self.keywords.get(name, self.loss.default(name, without))

    def scales(self, upstream=None):
        """docs/math.md, "Accuracy": sums of the terms of value and gradient without their signs, in float64."""
        c = self.double()
        x, k = c.x, {name: along_classes(c.keyword(name), c.x) for name in ("gamma", "beta", "gamma_neg", "gamma_pos")}
        k |= {name: c.keyword(name) for name in ("clip", "detach_factor")}
        t, counts, _ = reference._element_targets(c.t, x, self.keyword("ignore_index"))
        t = torch.where(counts, t, 0)
        pos_weight = along_classes(c.keyword("pos_weight"), x)
        value, slope = SCALES[self.loss.name](reference.element_terms(x), t, 1 if pos_weight is None else pos_weight, k)
        alpha, weight = along_classes(c.keyword("alpha"), x), c.keyword("weight")
        factor = counts.double()
        if alpha is not None and not (isinstance(alpha, (int, float)) and alpha < 0):
            factor = factor * (alpha * t + (1 - alpha) * (1 - t))
        if weight is not None:
            factor = factor * (along_classes(weight, x) if weight.dim() == 1 else weight)
        reduction = c.keyword("reduction")
        value, slope = value * factor, slope * factor
        if upstream is not None:
            slope = slope * upstream.abs()
        if reduction == "mean":
            normalizer = c.keyword("normalizer")
            divisor = counts.sum() if normalizer is None else normalizer
            value, slope = value / divisor, slope / divisor
        return (value if reduction == "none" else value.sum()), slope

    def bound(self):
        """docs/math.md, "Accuracy"."""
        gammas = [self.keyword(name) for name in ("gamma", "beta", "gamma_neg", "gamma_pos")]
        gamma = max(float(torch.as_tensor(g).max()) for g in gammas if g is not None)
        return 2 * (4 + (1 + gamma) * self.x.double().abs()) * EPS


def case(loss, sample=None, shape=(16, 10), dtype=torch.float32, spread=3.0):
    """A sample of a loss, by name or the row's first, with inputs."""
    rows = (*rows_of(shape),) if len(shape) > 1 else (1,)
    keywords = dict(loss.samples[sample or next(iter(loss.samples))](shape[class_dim(shape)], rows))
    kind = keywords.pop("targets", "0 or 1")
    if len(shape) == 1 and "weight" in keywords:
        keywords["weight"] = keywords["weight"].reshape(shape)
    return Case(loss, keywords, *inputs(shape, dtype, kind, keywords.get("ignore_index", -100), spread))


def assert_accurate(c, upstream, got):
    want, scales, bound = c.truth(upstream), c.scales(upstream), c.bound()
    # a sum is as accurate as its terms
    of_value = bound if got[0].dim() else bound.amax() if bound.numel() else 0
    assert_within(got[0], want[0], of_value * scales[0])
    assert_within(got[1], want[1], bound * scales[1])


@pytest.mark.isa
@pytest.mark.triton
@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_float32_equals_the_float64_reference(loss, sample):
    for shape in SHAPES:
        c = case(loss, sample, shape)
        upstream = c.upstream()
        assert_accurate(c, upstream, c.run(upstream=upstream))


@pytest.mark.isa
@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_several_blocks(loss, sample):
    for shape in ((5000, 9), (3, 4, 7000)):
        c = case(loss, sample, shape)
        assert_accurate(c, None, c.run())


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", ["0 or 1", "soft", "indices"])
def test_gradients_too_large_for_caches(target, dtype):
    """Their stores may go past the caches, in aligned vectors: every element is that of a part of the rows, which is
    small."""
    classes, parts = 67, 8
    rows = 17 * 2**20 // (classes * dtype.itemsize * parts) * parts + parts
    x, y = torch.randn(rows, classes).to(dtype), torch.randint(classes, (rows,))
    if target != "indices":
        y = torch.rand(rows, classes) if target == "soft" else (torch.rand(rows, classes) < 0.1).float()

    def gradient(x, y):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(imbloss.sigmoid_focal_loss(x, y, reduction="sum"), x)[0]

    grad = gradient(x, y)
    for part, of_x, of_y in zip(grad.chunk(parts), x.chunk(parts), y.chunk(parts), strict=True):
        assert torch.equal(part, gradient(of_x, of_y))


@pytest.mark.isa
@pytest.mark.parametrize("kind", ["0 or 1", "soft"])
@pytest.mark.parametrize("alpha", [0.25, -1, 0.9])
@pytest.mark.parametrize("gamma", [0, 0.5, 0.7, 1, 2, 3.7])
def test_no_digit_is_lost_however_sure_the_model_is(gamma, alpha, kind):
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([1e4, -1e4, 100.0, -100.0, 0.0, -0.0])])
    for value in (0.0, 1.0) if kind == "0 or 1" else (1e-4, 0.3, 0.999):
        c = Case(ELEMENTS[0], {"gamma": gamma, "alpha": alpha}, x, torch.full_like(x, value))
        value, grad = c.run()
        assert_accurate(c, None, (value, grad))
        assert value.isfinite().all() and grad.isfinite().all()


@pytest.mark.isa
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("alpha", [0.25, -1, 0.9])
@pytest.mark.parametrize("gamma", [0, 0.5, 0.7, 1, 2, 3.7])
def test_half_precision_gradients_are_rounded_once(gamma, alpha, dtype):
    x = torch.linspace(-30, 30, 4001).to(dtype)
    for value in (0.0, 1.0):
        c = Case(ELEMENTS[0], {"gamma": gamma, "alpha": alpha}, x, torch.full_like(x, value))
        for got, want in zip(c.run(), c.truth(), strict=True):
            assert got.dtype == dtype and half_steps(got, want, dtype).le(1).all()


@pytest.mark.isa
@pytest.mark.triton
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_half_precision_is_the_float64_gradient_rounded_once(loss, sample, dtype):
    for shape, spread in (((65, 3), 6.0), ((2, 4, 33), 3.0)):
        c = case(loss, sample, shape, dtype, spread)
        for upstream in (None, torch.tensor(64.0)):
            if upstream is not None and c.keyword("reduction") == "none":
                upstream = upstream.expand(shape)
            got, want = c.run(upstream=upstream), c.truth(upstream)
            assert got[0].dtype == got[1].dtype == dtype
            scales = c.scales(upstream)
            for i in range(2):
                cancelled = (got[i].double() - want[i]).abs() <= (c.bound() if i else c.bound().amax()) * scales[i]
                assert (half_steps(got[i], want[i], dtype).le(1) | cancelled).all()


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_float64_equals_the_reference(loss, sample):
    for shape in SHAPES:
        c = case(loss, sample, shape, torch.float64).double()
        upstream = c.upstream().double()
        assert_close(c.run(upstream=upstream), c.truth(upstream), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_gradcheck_and_gradgradcheck(loss, sample):
    for shape in ((6, 3), (2, 3, 2)):
        c = case(loss, sample, shape, torch.float64).double()
        if c.keywords.get("detach_factor"):
            # a detached factor's gradient is not the value's derivative, but for this
            c.keywords |= {"gamma_neg": 0.0, "gamma_pos": 0.0}
        if c.keyword("clip"):
            c.x = torch.where((c.x.sigmoid() - c.keyword("clip")).abs() < 1e-3, 0, c.x)  # a kink
        function = lambda x: c.replace(x=x).value()  # noqa: B023, E731
        assert torch.autograd.gradcheck(function, c.x.requires_grad_())
        assert torch.autograd.gradgradcheck(function, c.x.requires_grad_())


@pytest.mark.isa
@pytest.mark.triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", EVERY)
def test_infinite_and_nan_logits_stay_in_their_elements(loss, dtype):
    for value in (0.0, 1.0):
        x = torch.linspace(-4, 4, 50).to(dtype)
        x[[3, 20, 47]] = torch.tensor([math.inf, -math.inf, math.nan], dtype=dtype)
        c = Case(loss, {"reduction": "none"}, x, torch.full_like(x, value))
        if loss.name == "asymmetric_loss":
            c.keywords["clip"] = 0.0
        loss_value, grad = c.run()
        wrong, right = (3, 20) if value == 0 else (20, 3)
        alpha = c.keyword("alpha", 0.5)
        weight = 1.0 if loss.name != "sigmoid_focal_loss" else alpha if value else 1 - alpha
        assert loss_value[wrong] == math.inf and abs(grad[wrong]).item() == weight  # cross entropy's slope
        assert loss_value[right] == 0 and grad[right] == 0
        assert loss_value[47].isnan() and grad[47].isnan()
        others = [i for i in range(50) if i not in (3, 20, 47)]
        assert loss_value[others].isfinite().all() and grad[others].isfinite().all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("loss", EVERY)
def test_an_ignored_element_is_zero_whatever_it_holds(loss, backend):
    with imbloss.testing.backend(backend):
        for t in (
            torch.tensor([[-100, 1], [0, -100], [1, 0]]),
            torch.tensor([[-100.0, 1], [0, -100], [0.3, 0]]),
            torch.tensor([-100, 2, -100]),
        ):
            ignored = (t == -100).view(3, -1).expand(3, 2)
            x = torch.where(ignored, math.nan, torch.randn(3, 2)).requires_grad_()
            weight = torch.where(ignored, math.nan, 1.0)
            for reduction in ("none", "mean", "sum"):
                value = loss.function(x, t, reduction=reduction, weight=weight)
                (grad,) = torch.autograd.grad(value.sum(), x)
                assert value.isfinite().all() and (grad[ignored] == 0).all() and (grad[~ignored] != 0).any()


@pytest.mark.parametrize("loss", EVERY)
def test_nothing_that_counts(loss):
    for t in (torch.full((4, 3), -100), torch.full((4, 3), -100.0), torch.full((4,), -100), torch.zeros(0, 3)):
        x = torch.full((t.shape[0], 3), math.nan)
        for reduction, want in (("mean", math.nan), ("sum", 0.0), ("none", 0.0)):
            value, grad = Case(loss, {"reduction": reduction}, x, t).run()
            assert value.isnan() if math.isnan(want) else (value == want).all()
            assert (grad == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_any_strides(loss, sample, layout):
    for dtype in DTYPES:
        for shape in ((8, 3), (40, 100)):
            c = case(loss, sample, shape, dtype)
            c.x = LAYOUTS[layout](c.x)
            c.t = LAYOUTS[layout](c.t) if c.t.dim() > 1 else c.t.repeat_interleave(2)[::2]
            if isinstance(c.keywords.get("weight"), torch.Tensor) and c.keywords["weight"].dim() > 1:
                c.keywords["weight"] = LAYOUTS[layout](c.keywords["weight"])
            plain = c.replace(x=c.x.contiguous(), t=c.t.contiguous(), keywords=dict(c.keywords))
            if "weight" in plain.keywords:
                plain.keywords["weight"] = plain.keywords["weight"].contiguous()
            upstream = c.upstream()
            tolerance = 4 * torch.finfo(dtype).eps
            assert_close(c.run(upstream=upstream), plain.run(upstream=upstream), rtol=tolerance, atol=tolerance / 100)


DENSE = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "cropped": lambda x: torch.nn.functional.pad(x, (1, 2, 1, 0))[..., 1:, 1:-2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "classes last, moved": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "batch and height swapped": lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
    "expanded": lambda x: x[..., :1].expand(x.shape),
}


@pytest.mark.isa
@pytest.mark.triton
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("loss", EVERY)
def test_layouts_of_four_dimensions(loss, layout):
    for sample in ("0 or 1", "soft", "integers, mean", "indices, mean", "weight", "weight of elements"):
        for shape in ((2, 3, 5, 31), (3, 19, 8, 9), (1, 1, 2, 3), (0, 5, 3, 4)):
            c = case(loss, sample, shape)
            c.x = DENSE[layout](c.x)
            upstream = c.upstream()
            got = c.run(upstream=upstream)
            if shape[0] > 1:
                assert got[1].stride() == torch.empty_like(c.x).stride()
            assert_accurate(c, upstream, got)
            if c.t.shape == shape:
                c.t = DENSE[layout](c.t)
                assert_accurate(c, upstream, c.run(upstream=upstream))


@pytest.mark.triton
@pytest.mark.skipif(not INTERPRETED, reason="only in Triton's interpreter")
@pytest.mark.parametrize("sample", ["0 or 1", "soft, mean", "indices, mean", "weight, indices"])
def test_many_programs(monkeypatch, sample):
    from imbloss.kernels import launch

    monkeypatch.setattr(launch, "ELEMENTS", 64)
    for loss in ELEMENTS:
        for shape in ((1,), (13, 5), (2, 3, 4, 7)):
            c = case(loss, sample, shape)
            upstream = c.upstream()
            assert_accurate(c, upstream, c.run(upstream=upstream))


@pytest.mark.triton
@pytest.mark.skipif(not INTERPRETED, reason="only in Triton's interpreter")
def test_a_target_that_is_none_is_nan_in_its_elements():
    x = torch.randn(4, 3, requires_grad=True)
    for t, bad in (
        (torch.tensor([0, 4, -2, 3]), [1, 2]),
        (torch.tensor([[0, 1, 1], [2, 2, 2], [-1, -1, 3], [1, 0, 0]]), [1, 2]),
    ):
        loss = imbloss.sigmoid_focal_loss(x, t)
        (grad,) = torch.autograd.grad(loss.sum(), x)
        for values in (loss, grad):
            assert values.isnan().all(1).nonzero().flatten().tolist() == bad and values.isnan().sum() == 6
        assert imbloss.sigmoid_focal_loss(x, t, reduction="mean").isnan()


def test_a_single_element():
    x, t = torch.tensor(0.7, requires_grad=True), torch.tensor(1.0)
    value = imbloss.sigmoid_focal_loss(x, t)
    assert value.shape == () and torch.equal(value, imbloss.sigmoid_focal_loss(x.view(1), t.view(1))[0])


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_opcheck(loss, sample, monkeypatch):
    """Schemas, fakes and aliasing of the operators behind the loss, called as the loss calls them."""
    calls = []
    traversal = _ops.sigmoid_elements

    def forward(*args):
        calls.append(args)
        return traversal.forward(*args)

    monkeypatch.setattr(_ops, "sigmoid_elements", dataclasses.replace(traversal, forward=forward))
    for shape in ((6, 5), (2, 5, 3)):
        c = case(loss, sample, shape)
        c.run(upstream=c.upstream())
        case(loss, sample, shape, torch.bfloat16).run()
    assert calls
    ops = torch.ops.imbloss
    for args in calls:
        args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        torch.library.opcheck(ops.sigmoid_elements.default, args)
        grad_output = torch.ones_like(ops.sigmoid_elements(*args)[0])
        torch.library.opcheck(ops.sigmoid_elements_backward.default, (grad_output, *args[:-1]))


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_backward_twice_and_inputs_untouched(loss, sample):
    for dtype in (torch.float32, torch.bfloat16):
        c = case(loss, sample, (32, 10), dtype)
        tensors = {"x": c.x, "t": c.t, **c.keywords}
        tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
        before = {name: (tensor.clone(), tensor._version) for name, tensor in tensors.items()}
        x = c.x.requires_grad_()
        value = c.value()
        for upstream in (1.0, 1.0, 3.0):
            upstream = torch.full_like(value, upstream)
            first = torch.autograd.grad(value, x, upstream, retain_graph=True)[0]
            first_copy = first.clone()
            second = torch.autograd.grad(value, x, upstream, retain_graph=True)[0]
            assert torch.equal(first, second) and torch.equal(first, first_copy)
            first.zero_()
        for name, tensor in tensors.items():
            assert torch.equal(tensor.detach(), before[name][0]) and tensor._version == before[name][1]


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_same_bits_for_any_number_of_threads_and_every_run(loss, sample):
    for shape in ((20000, 10), (3, 5, 7000)):
        c = case(loss, sample, shape)
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
    compiled = torch.compile(lambda x, t, k: loss.function(x, t, **k), fullgraph=True, backend="aot_eager")
    c = case(loss, sample)
    upstream = c.upstream()
    got = c.run(lambda x, t, **k: compiled(x, t, k), upstream)
    assert_close(got, c.run(upstream=upstream), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sample", ["0 or 1", "indices, mean"])
@pytest.mark.parametrize("loss", EVERY)
def test_compiles_with_inductor_and_dynamic_shapes(loss, sample):
    torch.compiler.reset()
    compiled = torch.compile(lambda x, t, k: loss.function(x * 2, t, **k), fullgraph=True, dynamic=True)
    for rows in (12, 5, 33):
        c = case(loss, sample, (rows, 10))
        got = c.run(lambda x, t, **k: compiled(x, t, k))
        assert_close(got, c.run(lambda x, t, **k: loss.function(x * 2, t, **k)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", EVERY)
def test_torch_func(loss):
    """grad, vmap of grad (gradients per sample) and jacrev give what autograd gives."""
    for sample in ("0 or 1", "soft", "indices, none", "weight"):
        c = case(loss, sample, (4, 5), torch.float64).double()
        c.keywords |= {"reduction": "sum"}
        want = c.run()[1]
        assert_close(torch.func.grad(lambda x: c.replace(x=x).value())(c.x), want)  # noqa: B023
        one = lambda x, t: loss.function(x, t, **c.keywords)  # noqa: B023, E731
        assert_close(torch.func.vmap(torch.func.grad(one))(c.x, c.t), want)
        elements = c.replace(keywords=c.keywords | {"reduction": "none"})
        jacobian = torch.func.jacrev(lambda x: elements.replace(x=x).value())(c.x)  # noqa: B023
        assert_close(jacobian.sum((0, 1)), want)


@pytest.mark.parametrize("loss, identity", [(loss, name) for loss in ELEMENTS for name in loss.identities])
def test_identity(loss, identity):
    sample, other = loss.identities[identity]
    for shape in ((64, 3), (33, 100), (2, 7, 5, 9)):
        keywords = dict(sample(shape[1], rows_of(shape)))
        kind = keywords.pop("targets", "0 or 1")
        c = Case(loss, keywords, *inputs(shape, torch.float64, kind, spread=2.0)).double()
        if kind == "integers":
            c.t = c.t.clamp(min=0)  # none ignored
        assert_close(c.run(), c.run(other), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss, error", [(loss, name) for loss in ELEMENTS for name in loss.errors])
def test_bad_argument_is_named(loss, error):
    keywords, exception, message = loss.errors[error]
    with pytest.raises(exception, match=message):
        loss.function(torch.zeros(5, 4), torch.zeros(5, 4), **keywords)


NO_TARGETS = "expected targets to be a tensor of a floating, integer or bool dtype"
BAD_INPUTS = {
    "inputs list": ([[0.0]], torch.zeros(1, 1), TypeError, "expected inputs to be a tensor, but got list"),
    "inputs dtype": (torch.zeros(5, 4).long(), torch.zeros(5, 4), TypeError, "expected inputs of dtype float32"),
    "targets list": (torch.zeros(5, 4), [0] * 5, TypeError, NO_TARGETS),
    "targets complex": (torch.zeros(5, 4), torch.zeros(5, 4) * 1j, TypeError, NO_TARGETS),
    "targets shape": (
        torch.zeros(5, 4), torch.zeros(5, 3), ValueError,
        r"expected targets of shape \(5, 4\) or, as class indices, \(5,\), but got \(5, 3\) of dtype torch.float32",
    ),
    "floating indices": (torch.zeros(5, 4), torch.zeros(5), ValueError, r"but got \(5,\) of dtype torch.float32"),
    "bool indices": (torch.zeros(5, 4), torch.zeros(5).bool(), ValueError, r"but got \(5,\) of dtype torch.bool"),
    "dense shape": (torch.zeros(5, 4, 2, 3), torch.zeros(5, 3, 2).long(), ValueError, r"but got \(5, 3, 2\)"),
    "targets device": (torch.zeros(5, 4), torch.zeros(5, 4, device="meta"), ValueError, "expected targets on cpu"),
    "index too large": (
        torch.zeros(5, 4), torch.tensor([0, 4, -1, 9, 0]), IndexError,
        r"expected targets in \[-1, 4\] or ignore_index=-100, but got 9 at index 3",
    ),
    "index negative": (torch.zeros(5, 4), torch.tensor([0, 1, 2, -2, -1]), IndexError, "but got -2 at index 3"),
    "dense index": (torch.zeros(2, 4, 3), torch.tensor([[0, 1, 2], [3, 7, 0]]), IndexError, "but got 7 at index 4"),
    "neither 0 nor 1": (
        torch.zeros(2, 2), torch.tensor([[0, 1], [2, 0]], dtype=torch.uint8), IndexError,
        "expected targets 0, 1 or ignore_index=-100, but got 2 at index 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_INPUTS)
@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_is_named(loss, bad, backend):
    x, t, exception, message = BAD_INPUTS[bad]
    with imbloss.testing.backend(backend), pytest.raises(exception, match=message):
        loss.function(x, t)


def test_the_first_of_many_bad_targets_is_reported():
    y = torch.randint(0, 4, (30000,))
    y[[12345, 20001, 29999]] = torch.tensor([77, 10, -3])
    for x in (torch.zeros(30000, 4), torch.zeros(4, 30000).t()):
        for reduction in ("none", "mean", "sum"):
            with pytest.raises(IndexError, match="but got 77 at index 12345"):
                imbloss.sigmoid_focal_loss(x, y, reduction=reduction)


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_targets_of_any_integer_dtype(loss, dtype):
    x = torch.randn(32, 10)
    for t in (torch.randint(0, 11, (32,)), torch.randint(0, 2, (32, 10))):
        assert torch.equal(loss.function(x, t.to(dtype)), loss.function(x, t))


@pytest.mark.parametrize("loss", EVERY)
def test_targets_of_any_floating_dtype(loss):
    for x_dtype in DTYPES:
        for dtype in DTYPES:
            x, t = torch.randn(32, 10).to(x_dtype), torch.rand(32, 10).to(dtype)
            want = loss.function(x.double(), t.double(), reduction="sum")
            assert_close(loss.function(x, t, reduction="sum"), want.to(x_dtype))


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_the_fallback_computes_the_same(loss, sample):
    """Plain PyTorch, as on a machine without a compiled core."""
    for dtype in DTYPES:
        for shape in ((21, 10), (2, 10, 3, 4)):
            c = case(loss, sample, shape, dtype)
            upstream = c.upstream()
            want = c.run(upstream=upstream)
            with imbloss.testing.backend("reference"):
                got = c.run(upstream=upstream)
            tolerance = {torch.float32: 1e-4, torch.float64: 1e-11}.get(dtype, 2 * torch.finfo(dtype).eps)
            assert_close(got, want, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize(
    "name, argument, tensor",
    [
        ("sigmoid_focal_loss", "weight", uneven(5)),
        ("sigmoid_focal_loss", "weight", uneven(30).view(6, 5)),
        ("sigmoid_focal_loss", "pos_weight", uneven(5)),
        ("sigmoid_focal_loss", "gamma", uneven(5)),
        ("sigmoid_focal_loss", "alpha", uneven(5, 0.1, 0.9)),
        ("sigmoid_focal_loss", "targets", uneven(30, 0.1, 0.9).view(6, 5)),
        ("quality_focal_loss", "targets", uneven(30, 0.1, 0.9).view(6, 5)),
        ("asymmetric_loss", "targets", uneven(30, 0.1, 0.9).view(6, 5)),
        ("asymmetric_loss", "normalizer", torch.tensor(2.5)),
    ],
)
def test_other_tensors_have_gradients_too(name, argument, tensor):
    x, t = inputs((6, 5), torch.float64)
    call = lambda x, tensor: getattr(imbloss, name)(x, **{"targets": t, "reduction": "mean", argument: tensor})  # noqa: E731
    assert torch.autograd.gradcheck(call, (x.requires_grad_(), tensor.double().requires_grad_()))


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_module_equals_function(loss, sample):
    c = case(loss, sample)
    keywords = dict(c.keywords)
    call = {"normalizer": keywords.pop("normalizer")} if "normalizer" in keywords else {}
    if isinstance(keywords.get("weight"), torch.Tensor) and keywords["weight"].dim() > 1:
        with pytest.raises(ValueError, match=r"expected weight of shape \(C,\)"):
            loss.module(**keywords)
        return
    module = loss.module(**keywords)
    for copied in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(c.x, c.t, **call), c.value())
    for name, value in keywords.items():
        if isinstance(value, torch.Tensor):
            assert name in dict(module.named_buffers())
        assert name in repr(module)


@pytest.mark.parametrize("loss, error", [(loss, name) for loss in ELEMENTS for name in loss.errors])
def test_module_checks_its_arguments_once_and_for_all(loss, error):
    keywords, exception, message = loss.errors[error]
    keywords = dict(keywords)
    call = {"normalizer": keywords.pop("normalizer")} if "normalizer" in keywords else {}
    with pytest.raises(exception, match=message):
        loss.module(**keywords)(torch.zeros(5, 4), torch.zeros(5, 4), **call)


# ---- what it is for ----------------------------------------------------------------------------------------------
def peak_of(step):
    """Bytes that a step allocates for tensors at its height."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    height = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            height += event.nbytes()
            peak = max(peak, height)
    return peak


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_class_indices_need_no_memory_beyond_the_gradient(reduction):
    x = torch.randn(8192, 1203, requires_grad=True)
    y = torch.randint(-1, 1204, (8192,))
    y[::5] = -100

    def step():
        x.grad = None
        imbloss.sigmoid_focal_loss(x, y, reduction=reduction).backward()

    step()
    x.grad = None
    _C._keep(_C._module)
    assert peak_of(step) <= 2 * y.numel() * 8 + 2**22
    # the profiler does not see large tensors; of these another one would now be kept
    assert x.grad.count_nonzero() > 0 and _C._module.kept() == 0
    x.grad = None
    assert 0 <= _C._module.kept() - 4 * x.numel() < 2**21


@pytest.mark.parametrize("layout", ["sliced rows", "transposed", "every other class", "expanded"])
def test_strided_inputs_are_not_copied(layout):
    x = LAYOUTS[layout](torch.randn(2000, 500))
    t = LAYOUTS[layout](torch.rand(2000, 500) < 0.1)
    x = x.detach().requires_grad_()
    step = lambda: imbloss.sigmoid_focal_loss(x, t, reduction="sum")  # noqa: E731
    step()
    assert peak_of(step) <= x.numel() * 4 + 2**22


class RetinaNetHead(torch.nn.Module):
    """As torchvision's: classification of every anchor of two levels, its loss over the positives."""

    def __init__(self, loss, classes=20, anchors=3):
        super().__init__()
        self.tower = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.logits = torch.nn.Conv2d(8, anchors * classes, 3, padding=1)
        self.classes, self.loss = classes, loss

    def forward(self, features, labels):
        every = []
        for feature in features:
            x = self.logits(self.tower(feature).relu())
            n, _, h, w = x.shape
            every.append(x.view(n, -1, self.classes, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, self.classes))
        return self.loss(torch.cat(every, 1), labels)


def by_one_hot(logits, labels):
    valid, classes = labels != -100, logits.shape[-1]
    t = torch.nn.functional.one_hot(torch.where(valid, labels, classes), classes + 1)[..., :-1].to(logits.dtype)
    loss = imbloss.sigmoid_focal_loss(logits, t, reduction="none") * valid.unsqueeze(-1)
    return loss.sum() / ((labels >= 0) & (labels < classes)).sum().clamp(min=1)


def by_class_indices(logits, labels):
    positives = ((labels >= 0) & (labels < logits.shape[-1])).sum().clamp(min=1)
    return imbloss.sigmoid_focal_loss(logits.flatten(0, 1), labels.flatten(), reduction="sum") / positives


@pytest.mark.parametrize("loss", [by_one_hot, by_class_indices])
def test_a_retinanet_head_compiles_without_a_graph_break(loss):
    torch.compiler.reset()
    head = RetinaNetHead(loss)
    features = [torch.randn(2, 8, 8, 8), torch.randn(2, 8, 4, 4)]
    labels = torch.randint(0, 20, (2, 240)).where(torch.rand(2, 240) < 0.2, 20)
    labels[:, ::9] = -100

    def gradients(call, one):
        head.zero_grad()
        value = call(features, labels)
        value.backward()
        return [value.detach(), *(p.grad.clone() for p in one.parameters())]

    want = gradients(head, head)
    by_torchvision = RetinaNetHead(lambda x, y: by_one_hot(x.double(), y).float())
    by_torchvision.load_state_dict(head.state_dict())
    explained = torch._dynamo.explain(head)(features, labels)
    assert explained.graph_break_count == 0
    got = gradients(torch.compile(head, fullgraph=True), head)
    assert_close(got, want, rtol=1e-4, atol=1e-6)
    value = by_torchvision(features, labels)
    value.backward()
    assert_close(want, [value.detach(), *(p.grad for p in by_torchvision.parameters())], rtol=1e-3, atol=1e-5)
