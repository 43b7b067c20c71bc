"""The Triton kernels without a GPU: compiled for some, run in Triton's interpreter on CPU tensors, and dispatched to.

The tests marked triton run in the interpreter, in a process of their own: tests/test_losses.py has most of them.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import INTERPRETED
from losses import LOSSES
from test_losses import assert_accurate, case
from torch.utils._python_dispatch import TorchDispatchMode

import imbloss
from imbloss import _ops

ROOT = Path(__file__).parents[1]
pytest.importorskip("triton")
in_the_interpreter = pytest.mark.skipif(not INTERPRETED, reason="only in Triton's interpreter")
out_of_the_interpreter = pytest.mark.skipif(INTERPRETED, reason="not in Triton's interpreter")


# ---- in the interpreter ------------------------------------------------------------------------------------------
@pytest.mark.long
@out_of_the_interpreter
def test_the_kernels_in_the_interpreter():
    """The tests marked triton; `make test-all` runs the whole table so."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "triton", "-p", "no:cacheprovider", str(ROOT / "tests")],
        env={**os.environ, "TRITON_INTERPRET": "1", "IMBLOSS_BACKEND": "triton"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 100


@in_the_interpreter
@pytest.mark.triton
def test_this_run_is_in_the_interpreter():
    assert _ops._kernels["cpu"] == "triton"


@in_the_interpreter
@pytest.mark.triton
def test_nodes_of_autograd_in_python_do_as_those_in_cpp(monkeypatch):
    x, y, weight = torch.randn(6, 5, requires_grad=True), torch.arange(6) % 5, torch.rand(5)
    found = []
    for function in (_ops._with_statistics, _ops.WithStatistics.apply):
        monkeypatch.setattr(_ops, "_with_statistics", function)
        loss = imbloss.focal_loss(x, y, gamma=1.5, weight=weight)
        (grad,) = torch.autograd.grad(3 * loss, x, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), x)
        loss = imbloss.focal_loss(x, y, gamma=1.5, weight=weight)
        (first,) = torch.autograd.grad(loss, x)
        torch.testing.assert_close(first, grad.detach() / 3)
        found.append((loss.grad_fn.name(), loss.detach(), first, second))
    cpp, python = found
    assert cpp[0] != python[0] and all(torch.equal(a, b) for a, b in zip(cpp[1:], python[1:], strict=True))


@in_the_interpreter
@pytest.mark.triton
def test_a_write_outside_a_buffer_is_noticed(canaries):
    import triton
    import triton.language as tl

    from imbloss.kernels import rows

    @triton.jit
    def overrun(ptr):
        tl.store(ptr + 4, 1.0)

    with pytest.raises(AssertionError, match=r"wrote outside a tensor of shape \(4,\)"):
        rows.run(overrun, (1,), torch.device("cpu"), torch.empty(4))


@in_the_interpreter
@pytest.mark.triton
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(
    "name, sample",
    [("focal_loss", "gamma 0.5"), ("focal_loss", "soft"), ("vs_loss", "gamma and tau"), ("ldam_loss", "weight")],
)
def test_many_programs_and_many_blocks_of_classes(monkeypatch, name, sample, held):
    from imbloss.kernels import launch

    def small(rows, processors, stores):
        rows_held = min(4, launch.power_of_2(rows.inner))
        programs = rows.outer * launch.cdiv(rows.inner, rows_held)
        blocks = launch.cdiv(rows.classes, 16) if held else 0
        return launch.Tile(rows_held, 16, blocks, rows.vector, 4, programs)

    monkeypatch.setattr(launch, "tile", small)
    monkeypatch.setattr(launch, "is_long", lambda rows: False)
    (loss,) = (loss for loss in LOSSES if loss.name == name)
    for classes, shape in ((1, (9,)), (15, (9,)), (16, (3,)), (33, (9,)), (100, (2, 3, 2))):
        for spread in (3.0, 60.0):
            c = case(loss, sample, classes, shape, spread=spread)
            # rows whose largest logit comes first, comes last, and comes twice
            c.logits[0] = c.logits[0].sort(0, descending=True)[0]
            c.logits[-1] = c.logits[-1].sort(0)[0]
            c.logits[1, -1] = c.logits[1].amax(0)
            upstream = c.upstream()
            assert_accurate(c, upstream, c.run(upstream=upstream))


@in_the_interpreter
@pytest.mark.triton
@pytest.mark.parametrize(
    "loss, sample",
    [(loss, sample) for loss in LOSSES if loss.name in ("lade_loss", "lader") for sample in loss.samples],
)
def test_lade_in_one_program_and_in_many(monkeypatch, loss, sample):
    """Sums of several programs, of rows in several blocks of classes, in any layout."""
    from imbloss.kernels import launch

    for rows_held, columns, steps in ((32, 64, 8), (8, 16, 2)):

        def small(rows, processors, held=rows_held, columns=columns, steps=steps):
            programs = launch.cdiv(rows.outer * rows.inner, held * steps)
            return launch.Columns(held, columns, steps, rows.vector, 4, programs)

        monkeypatch.setattr(launch, "columns", small)
        for classes, shape, dtype, spread in (
            (1, (9,), torch.float32, 3.0),
            (10, (130,), torch.float32, 60.0),
            (37, (70,), torch.bfloat16, 3.0),
            (5, (2, 3, 21), torch.float32, 3.0),
            (33, (0,), torch.float32, 3.0),
        ):
            c = case(loss, sample, classes, shape, dtype, spread=spread)
            if len(shape) > 1:
                c.logits = c.logits.to(memory_format=torch.channels_last)
            upstream = c.upstream()
            got = c.run(upstream=upstream)
            if dtype == torch.float32:
                assert_accurate(c, upstream, got)
            else:
                want = c.truth(upstream)
                tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-4}
                torch.testing.assert_close([t.double() for t in got], list(want), **tolerance)


@in_the_interpreter
@pytest.mark.triton
def test_lade_repeats_and_is_nan_for_a_target_out_of_range():
    x, y = torch.randn(90, 4, requires_grad=True), torch.randint(0, 4, (90,))
    results = []
    for _ in range(2):
        value = imbloss.lade_loss(x, y, prior=torch.full((4,), 0.25))
        results.append((value.detach(), *torch.autograd.grad(value, x)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    y[7] = 4
    assert imbloss.lade_loss(x, y, prior=torch.full((4,), 0.25)).isnan()
    assert imbloss.lader(x, y, prior=torch.full((4,), 0.25)).isnan()


@in_the_interpreter
@pytest.mark.triton
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_target_out_of_range_is_nan_in_its_row(smoothing):
    x, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 3, -1, 2])
    loss = imbloss.focal_loss(x, y, reduction="none", label_smoothing=smoothing)
    loss.sum().backward()
    assert loss.isnan().tolist() == [False, True, True, False]
    assert x.grad.isnan().all(1).tolist() == [False, True, True, False]
    assert imbloss.focal_loss(x, y, label_smoothing=smoothing).isnan()


def elements(x, y, **options):
    return imbloss.sigmoid_focal_loss(x, y, reduction="mean")


def columns(x, y, **options):
    return imbloss.lade_loss(x, y, prior=torch.full((x.shape[1],), 1 / x.shape[1]))


@in_the_interpreter
@pytest.mark.triton
@pytest.mark.parametrize(
    "shape, strides", [((3, 3, 4), (2**30, 1, 1)), ((3, 3, 4), (4, 2**30, 1)), ((3, 5000), (2**30, 1))]
)
@pytest.mark.parametrize(
    "loss",
    [imbloss.focal_loss, functools.partial(imbloss.focal_loss, label_smoothing=0.1), elements, columns],
    ids=["hard", "soft", "elements", "columns"],
)
def test_offsets_beyond_32_bits(loss, shape, strides, monkeypatch):
    monkeypatch.undo()  # no canaries: they would need the memory that is only reserved here
    x = torch.empty(0, dtype=torch.bfloat16)
    x.set_(torch.UntypedStorage(2 * (2**31 + 5000)), 0, shape, strides)
    x.copy_(torch.randn(shape))
    y = torch.randint(0, 3, (shape[0], *shape[2:]))
    near = x.contiguous().requires_grad_()
    x.requires_grad_()
    values = loss(x, y), loss(near, y)
    gradients = [torch.autograd.grad(value, logits)[0] for value, logits in zip(values, (x, near), strict=True)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)
    assert gradients[0].count_nonzero() > len(x)


class Operators(TorchDispatchMode):
    """Notes the names of operators."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


# ---- dispatch ----------------------------------------------------------------------------------------------------
@out_of_the_interpreter
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_tensors_on_a_gpu_go_to_the_kernels(smoothing):
    from torch._subclasses.fake_tensor import FakeTensorMode

    def operators(dtype):
        with FakeTensorMode(), Operators() as called:
            x, y = torch.empty(4, 3, dtype=dtype, device="cuda"), torch.empty(4, dtype=torch.int64, device="cuda")
            assert imbloss.focal_loss(x, y, label_smoothing=smoothing).device.type == "cuda"
        return {name for name in called.names if name.startswith("imbloss")}

    name = "softmax_soft_rows" if smoothing else "softmax_rows_value"
    assert operators(torch.float32) == operators(torch.bfloat16) == {f"imbloss::{name}"}


@out_of_the_interpreter
def test_lade_on_a_gpu_goes_to_the_kernels():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), Operators() as called:
        x, y = torch.empty(4, 3, device="cuda"), torch.empty(4, dtype=torch.int64, device="cuda")
        assert imbloss.lade_loss(x, y, prior=torch.empty(3, device="cuda")).device.type == "cuda"
    assert {name for name in called.names if name.startswith("imbloss")} == {"imbloss::class_columns"}


class NoWaiting(TorchDispatchMode):
    """Fails on what a GPU's host would have to wait for: values, sizes that depend on values, copies to the CPU."""

    OPERATORS = (
        "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "bincount",
        "histc", "repeat_interleave",
    )  # fmt: skip

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        assert name not in self.OPERATORS, f"{function.name()} waits for the device"
        if name == "_to_copy":
            assert (kwargs or {}).get("device") in (None, args[0].device), "a copy to another device"
        masks = args[1] if name in ("index", "index_put_") else ()
        assert not any(mask is not None and mask.dtype == torch.bool for mask in masks), "an index by a mask"
        return function(*args, **(kwargs or {}))


def operator_calls(device):
    """Every operator's kernel, forward and backward, with all sorts of operands; nothing is launched."""
    from imbloss.kernels import class_columns, sigmoid_elements, soft_rows, softmax_rows

    def on(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device=device)

    for shape in ((6, 10), (6, 1203), (3, 5003), (2, 4, 3, 5), (7,)):
        classes, rows = (shape[1], (shape[0], *shape[2:])) if len(shape) > 1 else (shape[0], ())
        x, y = on(*shape), on(*rows, dtype=torch.int64)
        c, n = on(classes), on(*rows)
        for operands in ((), (c, n, c, c, c, c, None), (c, n, None, None, None, None, on())):
            for reduction in (0, 1, 2):
                args = operands, [0.5, 0.0], -100, reduction, "focal"
                loss, stats = softmax_rows.softmax_rows(x, y, *args, False)
                assert loss.shape == (() if reduction else rows) and loss.device.type == device
                grad = softmax_rows.softmax_rows_backward(loss, x, y, stats, operands, -100)
                assert grad.shape == x.shape
                softmax_rows.softmax_rows_(x.clone(), y, *args)
                for target in (y, on(*shape)):
                    args = target, operands, [0.5, 0.0], 0.1, -100, reduction, "focal"
                    loss, _ = soft_rows.softmax_soft_rows(x, *args, False)
                    assert loss.shape == (() if reduction else rows)
                    assert soft_rows.softmax_soft_rows_backward(loss, x, *args).shape == x.shape
        for estimator in ("official", "paper") if len(shape) > 1 else ():
            args = (c, n, None), [1.0, 0.1, 0.1]
            loss, kept = class_columns.class_columns(x, y, *args, -100, 1, estimator, False)
            grad = class_columns.class_columns_backward(loss, x, y, kept, *args, -100, estimator)
            assert loss.shape == () and grad.shape == x.shape
        for target in (on(*shape, dtype=torch.int64), on(*shape), *([y] if len(shape) > 1 else [])):
            for operands in ((), (c, c, c, c, None)):
                for reduction in (0, 1, 2):
                    args = target, operands, [1.5, 0.25, 1.0], -100, reduction, "sigmoid_focal"
                    loss, _ = sigmoid_elements.sigmoid_elements(x, *args, False)
                    assert loss.shape == (() if reduction else shape)
                    assert sigmoid_elements.sigmoid_elements_backward(loss, x, *args).shape == x.shape


@out_of_the_interpreter
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_kernel_waits_for_the_device(device, monkeypatch):
    from imbloss.kernels import launch, rows

    launched = []
    monkeypatch.setattr(rows, "run", lambda kernel, *args, **constants: launched.append(kernel.__name__))
    monkeypatch.setattr(launch, "processors", lambda device: 132)
    with NoWaiting():
        operator_calls(device)
    assert len(set(launched)) == 10


@out_of_the_interpreter
def test_waiting_is_noticed():
    x = torch.ones(3)
    for wait in (
        lambda: x.sum().item(),
        lambda: bool(x[0]),
        lambda: x[x > 0],
        lambda: x.nonzero(),
        lambda: x.to("meta"),
    ):
        with pytest.raises(AssertionError), NoWaiting():
            wait()


@pytest.fixture
def triton_on_cpu_and_meta(monkeypatch):
    """Dispatch as on a GPU, without kernels that could run."""
    library = torch.library.Library("imbloss", "IMPL")
    monkeypatch.setattr(_ops, "_kernels", {"cpu": "triton", "meta": "triton"})
    _ops._register_triton(library, "CPU", allow_override=True)
    yield
    library._destroy()


@out_of_the_interpreter
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"label_smoothing": 0.1}])
def test_autograd_on_meta(options, triton_on_cpu_and_meta):
    x = torch.empty(4, 3, 5, device="meta", dtype=torch.bfloat16, requires_grad=True)
    loss = imbloss.focal_loss(x, torch.empty(4, 5, device="meta", dtype=torch.int64), **options)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    assert grad.shape == x.shape and grad.dtype == x.dtype and grad.device.type == "meta"


@out_of_the_interpreter
def test_export_and_tracing_keep_the_operators(triton_on_cpu_and_meta):
    from torch.fx.experimental.proxy_tensor import make_fx

    class Model(torch.nn.Module):
        def forward(self, x, y):
            return imbloss.focal_loss(x, y)

    args = torch.randn(4, 3), torch.randint(0, 3, (4,))
    exported = torch.export.export(Model(), args)
    assert "imbloss.softmax_rows_value.default" in str(exported.graph)

    def gradient(x, y):
        return torch.autograd.grad(imbloss.focal_loss(x, y), x)

    traced = make_fx(gradient, tracing_mode="fake")(args[0].requires_grad_(), args[1])
    assert "imbloss.softmax_rows_backward" in traced.code


@in_the_interpreter
@pytest.mark.triton
def test_fakes_have_the_shapes_of_the_kernels_results():
    x, y = torch.randn(6, 5), torch.randint(0, 5, (6,))
    ops, tests = torch.ops.imbloss, ("test_schema", "test_faketensor")
    for reduction in (0, 1, 2):
        args = x, y, [], [2.0, 0.0], -100, reduction, "focal", False
        torch.library.opcheck(ops.softmax_rows.default, args, test_utils=tests)
        loss, stats = ops.softmax_rows(*args)
        torch.library.opcheck(ops.softmax_rows_backward.default, (loss, x, y, stats, [], -100), test_utils=tests)


@out_of_the_interpreter
def test_without_triton_a_gpu_computes_by_the_reference_after_one_warning(monkeypatch):
    monkeypatch.setattr(_ops, "_has_triton", False)
    monkeypatch.setattr(_ops, "_kernels", {"cpu": "cpp"})
    _ops._warn_of_missing_triton.cache_clear()

    class Logits:
        device = torch.device("cuda")

    with pytest.warns(RuntimeWarning, match="imbloss has no kernels for cuda tensors without triton"):
        assert _ops._kernels_elsewhere(Logits) is None
    assert _ops._kernels_elsewhere(Logits) is None  # and warns no more: our warnings are errors here
    with pytest.raises(RuntimeError, match="expected triton for backend='triton'"), imbloss.testing.backend("triton"):
        pass


@out_of_the_interpreter
def test_importing_and_computing_on_cpu_leaves_triton_alone():
    call = "imbloss.focal_loss(torch.zeros(1, 2), torch.tensor([0]))"
    code = f"import sys, torch, imbloss; {call}; print('triton' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "False", result.stderr
