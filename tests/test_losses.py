"""Generic tests: every row of the table in losses.py, at every dtype, size, stride and extreme."""

import copy
import math
import pickle

import pytest
import torch
from losses import LOSSES, Loss, uneven

import imbloss
from imbloss import _ops

CLASSES = [1, 2, 3, 15, 16, 17, 31, 100, 1000, 1203]
ROWS = [0, 1, 7, 1024]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
EVERY = [pytest.param(loss, id=loss.name) for loss in LOSSES]
SAMPLES = [pytest.param(loss, name, id=f"{loss.name}-{name}") for loss in LOSSES for name in loss.samples]


def assert_close(got, want, **tolerance):
    torch.testing.assert_close(got, want, equal_nan=True, **tolerance)


def inputs(classes, rows, dtype=torch.float32, spread=3.0, ignored=-100):
    """Logits and targets, among them ignored ones where there are rows enough."""
    logits = (torch.randn(rows, classes) * spread).to(dtype)
    target = torch.randint(0, classes, (rows,))
    target[3::7] = ignored
    return logits, target


def case(loss, sample, classes, rows, dtype=torch.float32, spread=3.0):
    """Keywords of a sample (by name, or the row's first), and inputs to go with them."""
    keywords = loss.samples[sample or next(iter(loss.samples))](classes, rows)
    return keywords, *inputs(classes, rows, dtype, spread, keywords.get("ignore_index", -100))


def as_double(keywords):
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in keywords.items()
    }


def value_and_grad(function, logits, target, keywords, upstream=None):
    logits = logits.detach().requires_grad_()
    loss = function(logits, target, **keywords)
    (grad,) = torch.autograd.grad(loss, logits, torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype))
    return loss.detach(), grad


def upstream_for(loss):
    """Not 1, and not uniform."""
    return uneven(loss.numel(), 0.5, 4.0).view(loss.shape) if loss.dim() else torch.tensor(2.7)


def gamma_of(loss, keywords):
    gamma = keywords.get("gamma", 2.0 if loss.name == "focal_loss" else 0.0)
    return float(gamma.max()) if isinstance(gamma, torch.Tensor) else gamma


def bound(loss, logits, keywords):
    """What the rounding of z_j - max z costs a float32 gradient, relative and per element; nothing else may."""
    z = logits.double().abs()
    for name in ("prior", "counts"):
        if name in keywords:
            z = z + keywords.get("tau", 1.0) * (keywords[name] / keywords[name].sum()).double().log().abs()
    return (4 + z + z.amax(1, keepdim=True)) * (1 + gamma_of(loss, keywords)) * torch.finfo(torch.float32).eps


def assert_within(got, want, relative, tiny=1e-36):
    got, want = got.double(), want.double()
    got, want = got.where(got.abs() >= tiny, 0), want.where(want.abs() >= tiny, 0)
    excess = (got - want).abs() - relative * want.abs()
    bad = ~(excess <= 0) & ~(got.isnan() & want.isnan()) & ~(got == want)
    assert not bad.any(), (
        f"{int(bad.sum())} of {bad.numel()} elements off, first {got[bad][0]:.9g} for {want[bad][0]:.9g}, "
        f"worst {(excess / want.abs())[bad].max():.3g} over the bound"
    )


@pytest.mark.isa
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_float32_equals_the_float64_reference(loss: Loss, sample, classes):
    for rows in ROWS:
        keywords, logits, target = case(loss, sample, classes, rows)
        upstream = upstream_for(loss.function(logits, target, **keywords))
        got = value_and_grad(loss.function, logits, target, keywords, upstream)
        want = value_and_grad(loss.reference, logits.double(), target, as_double(keywords), upstream)
        relative = bound(loss, logits, keywords)
        row = relative.amax(1) if relative.numel() else relative.sum(1)
        assert_within(got[0], want[0], row if got[0].dim() else row.amax() if rows else 0)
        assert_within(got[1], want[1], relative)


def half_ulp_steps(got, want, dtype):
    """How many representable numbers lie between a half-precision tensor and the correctly rounded one."""

    def ordered(x):
        bits = x.to(dtype).view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(got) - ordered(want)).abs().max() if got.numel() else torch.tensor(0)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_half_precision_is_the_float64_gradient_rounded_once(loss, sample, dtype):
    for classes, rows, spread in ((2, 65, 3.0), (10, 33, 6.0), (17, 64, 6.0), (100, 7, 3.0), (1203, 16, 3.0)):
        keywords, logits, target = case(loss, sample, classes, rows, dtype, spread)
        for upstream in (None, torch.tensor(128.0)):
            if upstream is not None and keywords.get("reduction") == "none":
                upstream = upstream.expand(rows)
            got = value_and_grad(loss.function, logits, target, keywords, upstream)
            want = value_and_grad(loss.reference, logits.double(), target, as_double(keywords), upstream)
            assert got[0].dtype == got[1].dtype == dtype
            assert half_ulp_steps(got[1], want[1], dtype) <= 1
            assert half_ulp_steps(got[0], want[0], dtype) <= 1


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_float64_equals_the_reference(loss, sample):
    for classes, rows in ((1, 3), (2, 5), (10, 7), (100, 33)):
        keywords, logits, target = case(loss, sample, classes, rows, torch.float64)
        keywords = as_double(keywords)
        upstream = upstream_for(loss.function(logits, target, **keywords))
        got = value_and_grad(loss.function, logits, target, keywords, upstream)
        want = value_and_grad(loss.reference, logits, target, keywords, upstream)
        assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_gradcheck(loss, sample):
    keywords, logits, target = case(loss, sample, 5, 6, torch.float64)
    if keywords.get("detach_factor"):
        keywords["gamma"] = 0.0  # a detached factor's gradient is not the value's derivative, but for this
    function = lambda x: loss.function(x, target, **as_double(keywords))  # noqa: E731
    assert torch.autograd.gradcheck(function, logits.requires_grad_())


@pytest.mark.isa
@pytest.mark.parametrize("spread", [1.0, 5.0, 50.0])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 2.0, 3.3, 5.0])
def test_no_digit_is_lost_however_sure_the_model_is(gamma, spread):
    focal = next(loss for loss in LOSSES if loss.name == "focal_loss")
    for classes in (2, 10, 1000):
        logits, target = inputs(classes, 256, spread=spread)
        rows = torch.arange(256)
        logits[rows[::8], target[::8].clamp(min=0)] += 27.6  # p = 1 - 1e-12, about
        logits[rows[1::8], target[1::8].clamp(min=0)] -= 69.1  # p = 1e-30, about
        logits[rows[2::8], target[2::8].clamp(min=0)] = 1e4
        logits[rows[4::8], target[4::8].clamp(min=0)] = -1e4
        keywords = {"gamma": gamma, "reduction": "none"}
        upstream = uneven(256, 0.5, 4.0)
        got = value_and_grad(imbloss.focal_loss, logits, target, keywords, upstream)
        want = value_and_grad(focal.reference, logits.double(), target, keywords, upstream)
        relative = bound(focal, logits, keywords)
        assert_within(got[0], want[0], relative.amax(1))
        assert_within(got[1], want[1], relative)
        assert got[0].isfinite().all() and got[1].isfinite().all()


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", EVERY)
def test_infinite_and_nan_logits_stay_in_their_rows(loss, dtype):
    sample = next(iter(loss.samples.values()))
    for classes in (2, 3, 10, 37, 1000):
        keywords = {**sample(classes, 12), "reduction": "none"}
        logits, _ = inputs(classes, 12, dtype)
        target = torch.zeros(12, dtype=torch.int64)
        logits[1, 1] = -math.inf  # not the target
        logits[2, 0] = -math.inf  # the target
        logits[3, 1] = math.inf
        logits[4, 0] = math.inf
        logits[5, :] = -math.inf
        logits[6, 1] = math.nan
        logits[7, 0] = math.nan
        logits[8] = math.nan
        target[8] = -100
        value, grad = value_and_grad(loss.function, logits, target, keywords)
        assert grad[1, 1] == 0 and value[1].isfinite() and grad[1].isfinite().all()
        plain = value_and_grad(imbloss.cross_entropy, logits, target, {"reduction": "none"})
        assert value[2] == math.inf and grad[2, 0] == plain[1][2, 0] == -1 and grad[2].isfinite().all()
        assert value[3:8].isnan().all() and grad[3:8].isnan().all()
        assert value[8] == 0 and (grad[8] == 0).all()
        untouched = [0, 9, 10, 11]
        assert value[untouched].isfinite().all() and grad[untouched].isfinite().all()


@pytest.mark.parametrize("loss", EVERY)
def test_nothing_that_counts(loss):
    sample = next(iter(loss.samples.values()))
    for rows, classes in ((0, 5), (4, 5)):
        keywords = sample(classes, rows)
        logits, target = torch.randn(rows, classes), torch.full((rows,), -100)
        for reduction, want in (("mean", math.nan), ("sum", 0.0)):
            value, grad = value_and_grad(loss.function, logits, target, {**keywords, "reduction": reduction})
            assert value.isnan() if math.isnan(want) else value == want
            assert (grad == 0).all()
        value, grad = value_and_grad(loss.function, logits, target, {**keywords, "reduction": "none"})
        assert value.shape == (rows,) and (value == 0).all() and (grad == 0).all()


@pytest.mark.parametrize("loss", EVERY)
def test_one_sample_without_a_batch_dimension(loss):
    sample = next(iter(loss.samples.values()))
    logits, target = inputs(10, 1)
    for reduction in ("none", "mean", "sum"):
        keywords = {**sample(10, 1), "reduction": reduction}
        value, grad = value_and_grad(loss.function, logits[0], target[0], keywords)
        batch_value, batch_grad = value_and_grad(loss.function, logits, target, keywords)
        assert value.shape == () and grad.shape == (10,)
        assert torch.equal(value, batch_value.view(())) and torch.equal(grad, batch_grad[0])


LAYOUTS = {
    "sliced rows": lambda x: torch.cat([x, x + 1], 1)[:, : x.shape[1]],
    "every other row": lambda x: torch.stack([x, x + 1], 1).view(-1, x.shape[1])[::2],
    "transposed": lambda x: x.t().contiguous().t(),
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "expanded": lambda x: x[:1].expand(x.shape),
    "every other class": lambda x: torch.stack([x, x + 1], 2).flatten(1)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", EVERY)
def test_any_strides(loss, layout):
    sample = next(iter(loss.samples.values()))
    for dtype in DTYPES:
        for classes, rows in ((3, 8), (10, 7), (100, 40)):
            logits, target = inputs(classes, rows, dtype)
            logits = LAYOUTS[layout](logits)
            target = target.repeat_interleave(2)[::2]
            for reduction in ("none", "mean"):
                keywords = {**sample(classes, rows), "reduction": reduction}
                upstream = upstream_for(loss.function(logits, target, **keywords))
                got = value_and_grad(loss.function, logits, target, keywords, upstream)
                want = value_and_grad(loss.function, logits.contiguous(), target.contiguous(), keywords, upstream)
                assert_close(got, want, rtol=16 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_opcheck(loss, sample, monkeypatch):
    """Schemas, fakes and aliasing of the operators behind the loss, called as the loss calls them."""
    calls = []
    for name in ("_softmax_rows", "_softmax_rows_backward"):
        op = getattr(_ops, name)
        monkeypatch.setattr(_ops, name, lambda *args, op=op: calls.append((op, args)) or op(*args))
    keywords, logits, target = case(loss, sample, 5, 6)
    value_and_grad(loss.function, logits, target, keywords, upstream_for(loss.function(logits, target, **keywords)))
    assert calls
    for op, args in calls:
        torch.library.opcheck(op, [a.detach() if isinstance(a, torch.Tensor) else a for a in args])


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", EVERY)
def test_backward_twice_and_inputs_untouched(loss, reduction):
    keywords = {**next(iter(loss.samples.values()))(10, 32), "reduction": reduction}
    for dtype in DTYPES:
        logits, target = inputs(10, 32, dtype)
        tensors = {
            "logits": logits,
            "target": target,
            **{k: v for k, v in keywords.items() if isinstance(v, torch.Tensor)},
        }
        before = {name: (tensor.clone(), tensor._version) for name, tensor in tensors.items()}
        x = logits.requires_grad_()
        value = loss.function(x, target, **keywords)
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
    keywords, logits, target = case(loss, None, 10, 32)
    x = logits.requires_grad_()
    for _ in range(3):
        loss.function(x, target, **keywords).backward()
    single = value_and_grad(loss.function, logits, target, keywords)[1]
    assert_close(x.grad, 3 * single)


@pytest.mark.parametrize("loss", EVERY)
def test_same_bits_for_any_number_of_threads_and_every_run(loss):
    for classes, rows in ((10, 20000), (1203, 400)):
        keywords, logits, target = case(loss, None, classes, rows)
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(value_and_grad(loss.function, logits, target, keywords))
        torch.set_num_threads(2)
        for value, grad in results[1:]:
            assert torch.equal(value, results[0][0]) and torch.equal(grad, results[0][1])


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_compiles_without_a_graph_break(loss, sample):
    keywords, logits, target = case(loss, sample, 10, 12)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, y, keywords: loss.function(x, y, **keywords), fullgraph=True, backend="aot_eager"
    )
    upstream = upstream_for(loss.function(logits, target, **keywords))
    got = value_and_grad(lambda x, y, **k: compiled(x, y, k), logits, target, keywords, upstream)
    want = value_and_grad(loss.function, logits, target, keywords, upstream)
    assert_close(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", EVERY)
def test_compiles_with_inductor(loss):
    keywords, logits, target = case(loss, None, 10, 12)
    torch.compiler.reset()

    def step(x, y):
        return loss.function(x * 2, y, **keywords)

    got = value_and_grad(torch.compile(step, fullgraph=True), logits, target, {})
    want = value_and_grad(step, logits, target, {})
    assert_close(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss, identity", [(loss, name) for loss in LOSSES for name in loss.identities])
def test_identity(loss, identity):
    sample, other = loss.identities[identity]
    for classes, rows in ((2, 5), (10, 64), (100, 33)):
        logits, target = inputs(classes, rows)
        keywords = sample(classes, rows)
        got = value_and_grad(loss.function, logits, target, keywords)
        want = value_and_grad(other, logits, target, keywords)
        assert_close(got, want, rtol=2e-5, atol=1e-7)


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
    "target float": (torch.zeros(5, 4), torch.zeros(5), TypeError, NO_INTEGERS),
    "target list": (torch.zeros(5, 4), [0] * 5, TypeError, NO_INTEGERS),
    "target shape": (
        torch.zeros(5, 4), torch.zeros(4).long(), ValueError, r"expected target of shape \(5,\) .* got \(4,\)",
    ),
    "target device": (torch.zeros(5, 4), torch.zeros(5, device="meta").long(), ValueError, "expected target on cpu"),
    "target too large": (
        torch.zeros(5, 4), torch.tensor([0, 1, 4, 9, 0]), IndexError,
        r"expected target in \[0, 4\) or ignore_index=-100, but got 4 at index 2",
    ),
    "target negative": (torch.zeros(5, 4), torch.tensor([0, 1, 2, 0, -1]), IndexError, "but got -1 at index 4"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_INPUTS)
@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_is_named(loss, bad, backend):
    logits, target, exception, message = BAD_INPUTS[bad]
    keywords = next(iter(loss.samples.values()))(0 if bad == "no classes" else 4, 5)
    with imbloss.testing.backend(backend), pytest.raises(exception, match=message):
        loss.function(logits, target, **keywords)


@pytest.mark.parametrize("loss", EVERY)
def test_the_first_of_many_bad_targets_is_reported(loss):
    keywords = next(iter(loss.samples.values()))(10, 30000)
    logits, target = inputs(10, 30000)
    target[[12345, 20001, 29999]] = torch.tensor([77, 10, -3])
    for reduction in ("none", "mean", "sum"):
        with pytest.raises(IndexError, match="but got 77 at index 12345"):
            loss.function(logits, target, **{**keywords, "reduction": reduction})


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_targets_of_any_integer_dtype(loss, dtype):
    keywords = next(iter(loss.samples.values()))(10, 32)
    logits, _ = inputs(10, 32)
    target = torch.randint(0, 10, (32,))
    assert torch.equal(loss.function(logits, target.to(dtype), **keywords), loss.function(logits, target, **keywords))


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_the_fallback_computes_the_same(loss, sample):
    """Plain PyTorch, as on a machine without a compiled core: gradient, double backward and all."""
    for dtype in DTYPES:
        keywords, logits, target = case(loss, sample, 10, 21, dtype)
        upstream = upstream_for(loss.function(logits, target, **keywords))
        want = value_and_grad(loss.function, logits, target, keywords, upstream)
        with imbloss.testing.backend("reference"):
            got = value_and_grad(loss.function, logits, target, keywords, upstream)
        if dtype in (torch.float16, torch.bfloat16):
            assert half_ulp_steps(got[0], want[0], dtype) <= 1 and half_ulp_steps(got[1], want[1], dtype) <= 1
        else:
            assert_close(got, want, rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=1e-12)


# The tensors that a loss takes besides the logits, at 5 classes and 6 rows.
DIFFERENTIABLE = [
    ("cross_entropy", {"weight": uneven(5)}),
    ("cross_entropy", {"sample_weight": uneven(6)}),
    ("cross_entropy", {"normalizer": torch.tensor(2.5)}),
    ("focal_loss", {"gamma": uneven(5)}),
    ("logit_adjusted_loss", {"prior": torch.full((5,), 0.2)}),
    ("balanced_softmax_loss", {"counts": uneven(5)}),
]


@pytest.mark.parametrize("name, keywords", DIFFERENTIABLE)
def test_other_tensors_have_gradients_too(name, keywords):
    (argument, tensor), *_ = keywords.items()
    logits, target = inputs(5, 6, torch.float64)
    tensor = tensor.double().requires_grad_()
    function = getattr(imbloss, name)
    if argument != "prior":  # gradcheck's steps leave the simplex
        assert torch.autograd.gradcheck(
            lambda x, t: function(x, target, **{argument: t}), (logits.requires_grad_(), tensor)
        )
    else:
        function(logits, target, **{argument: tensor}).backward()
        assert tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0


# ---- modules -----------------------------------------------------------------------------------------------------
def split(keywords):
    """What a module takes when it is made, and when it is called."""
    call = {name: value for name, value in keywords.items() if name in ("sample_weight", "normalizer")}
    return {name: value for name, value in keywords.items() if name not in call}, call


@pytest.mark.parametrize("loss, sample", SAMPLES)
def test_module_equals_function(loss, sample):
    keywords, logits, target = case(loss, sample, 10, 12)
    keywords, call = split(keywords)
    module = loss.module(**keywords)
    want = loss.function(logits, target, **keywords, **call)
    for copied in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(logits, target, **call), want)
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
    assert public == {loss.name for loss in LOSSES}
    for loss in LOSSES:
        assert loss.module.__name__ in imbloss.__all__ and callable(loss.reference)
