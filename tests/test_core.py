"""The compiled core: its instruction sets, its loader, its arithmetic, and life without it."""

import concurrent.futures
import importlib.util
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch

import imbloss
from imbloss import _C, _ops

ROOT = Path(__file__).parent.parent


def build_table():
    """ISAS and FLAGS of setup.py."""
    spec = importlib.util.spec_from_file_location("imbloss_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["C++", "Python"])
def node(request, monkeypatch):
    """The nodes of autograd in C++, and those for every other torch."""
    if request.param == "Python":
        monkeypatch.setattr(_ops, "_with_grad", _ops.WithGrad.apply)
        monkeypatch.setattr(_ops, "_with_statistics", _ops.WithStatistics.apply)


both_nodes = pytest.mark.usefixtures("node")


def runnable_isas():
    capability = torch.backends.cpu.get_cpu_capability()
    return list(reversed(_C._VARIANTS.get(capability, ["default"])))


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_a_core_is_loaded():
    """Everything else here could pass on the fallback alone."""
    assert _C.loaded()
    assert _C.isa() == os.environ.get("IMBLOSS_EXPECTED_ISA", runnable_isas()[-1])
    assert set(_C.build_info()) == {"isa", "compiler", "flags", "torch"}


@pytest.mark.skipif("IMBLOSS_EXPECTED_ISA" in os.environ, reason="one of the runs that the next test starts")
@pytest.mark.long
@pytest.mark.parametrize("isa", runnable_isas()[:-1])
def test_every_instruction_set(isa):
    """The tests marked isa, in a process that loads this variant."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "isa", "-p", "no:cacheprovider", str(ROOT / "tests")],
        env={**os.environ, "ATEN_CPU_CAPABILITY": isa, "IMBLOSS_EXPECTED_ISA": isa}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 300
    expected = python("import imbloss._C as c; print(c.isa())", ATEN_CPU_CAPABILITY=isa)
    assert expected.stdout.strip() == isa


@pytest.mark.isa
def test_this_run_has_the_instruction_set_it_was_started_for():
    assert _C.isa() == os.environ.get("IMBLOSS_EXPECTED_ISA", runnable_isas()[-1])


@pytest.mark.parametrize("isa", runnable_isas())
def test_vmath_keeps_its_bounds(isa, tmp_path):
    """csrc/vmath.h against long double; the bounds are those of its header."""
    setup = build_table()
    program = tmp_path / "vmath_bounds"
    compiler = os.environ.get("CXX", "g++")
    flags = [*setup.FLAGS, *setup.ISAS[isa], *setup.WARNINGS]
    subprocess.run([compiler, *flags, str(ROOT / "tests/vmath_bounds.cpp"), "-o", str(program)], check=True)
    lines = subprocess.run([program, "400000"], check=True, capture_output=True, text=True).stdout.splitlines()
    slack = 4 / 3 if isa == "default" else 1
    bounds = {"exp": 1.1, "exp_of_small": 1.1, "log": 1.2, "log1p": 1.6, "log1p_of_fraction": 1.8, "pow": 1.2}
    seen = set()
    for line in lines:
        assert not line.startswith("edge"), line
        name, dtype, ulp = line.split()
        seen.add((name, dtype))
        assert float(ulp) <= bounds[name] * slack, line
    assert len(seen) == 12


def test_a_profile_shows_the_operator():
    x = torch.randn(8, 3, requires_grad=True)
    with torch.profiler.profile() as profile:
        imbloss.focal_loss(x, torch.tensor([0] * 8), reduction="none").sum().backward()
    names = {event.name for event in profile.events()}
    assert {"imbloss::softmax_rows", "imbloss::softmax_rows_backward"} <= names


def test_without_shared_objects_one_warning_and_the_same_results(tmp_path):
    shutil.copytree(ROOT / "imbloss", tmp_path / "imbloss", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = """
import sys; sys.path.insert(0, {path!r})
import torch, imbloss
from imbloss import _C
assert imbloss.__file__.startswith({path!r})
x = torch.linspace(-3, 3, 60).view(6, 10).requires_grad_()
loss = imbloss.focal_loss(x, torch.arange(6), gamma=0.5)
loss.backward()
print(_C.isa(), _C.build_info(), loss.item(), x.grad.abs().sum().item())
"""
    alone = python(code.format(path=str(tmp_path)))
    assert alone.returncode == 0, alone.stderr
    assert alone.stderr.count("RuntimeWarning") == 1 and "imbloss has no compiled core" in alone.stderr
    assert "No module named 'imbloss._C_default'" in alone.stderr
    with_core = python(code.format(path=str(ROOT)))
    assert "Warning" not in with_core.stderr
    *_, value, grad = alone.stdout.split()
    *_, core_value, core_grad = with_core.stdout.split()
    assert alone.stdout.startswith("none {}")
    assert float(value) == pytest.approx(float(core_value), rel=1e-6)
    assert float(grad) == pytest.approx(float(core_grad), rel=1e-6)


def test_the_loader_falls_down_the_list(tmp_path):
    best, *others = reversed(runnable_isas())
    if not others:
        pytest.skip("this machine has one instruction set")
    shutil.copytree(ROOT / "imbloss", tmp_path / "imbloss", ignore=shutil.ignore_patterns(f"_C_{best}*", "__pycache__"))
    result = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import imbloss._C as c; print(c.isa())")
    assert result.stdout.strip() == others[0] and "Warning" not in result.stderr


def test_backends():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for name in ("auto", "cpp", "reference"):
        with imbloss.testing.backend(name):
            assert imbloss.focal_loss(x, y).isfinite()
    with pytest.raises(ValueError, match=r"expected backend in .* but got 'cuda'"), imbloss.testing.backend("cuda"):
        pass
    result = python("import imbloss._ops as o; print(o._backend, o._kernels)", IMBLOSS_BACKEND="reference")
    assert result.stdout.strip() == "reference {'cpu': None}"
    assert "expected backend in" in python("import imbloss", IMBLOSS_BACKEND="nonsense").stderr


def test_importing_needs_torch_and_numpy_alone():
    code = """
import sys, torch, numpy.random
before = set(sys.modules)
import imbloss
new = {m.split(".")[0] for m in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    assert python(code).stdout.strip() == "['imbloss']"


def test_meta_tensors_take_the_reference():
    x = torch.empty(8, 3, device="meta", requires_grad=True)
    loss = imbloss.focal_loss(x, torch.empty(8, dtype=torch.int64, device="meta"))
    loss.backward()
    assert loss.shape == () and x.grad.shape == (8, 3)


def test_autocast_gives_a_float32_loss():
    x = torch.randn(8, 3, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = imbloss.focal_loss(x, torch.tensor([0] * 8))
    loss.backward()
    assert loss.dtype == torch.float32 and x.grad.dtype == torch.bfloat16


@both_nodes
def test_a_changed_input_is_noticed_by_a_second_backward():
    x = torch.randn(8, 3, requires_grad=True)
    z = x * 1
    loss = imbloss.focal_loss(z, torch.tensor([0] * 8))
    torch.autograd.grad(loss, z, retain_graph=True)
    with torch.no_grad():
        z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, z)


@both_nodes
def test_a_gradient_of_the_gradient():
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3, -100])
    for reduction in ("mean", "none"):
        function = lambda x: imbloss.focal_loss(x, y, gamma=0.5, reduction=reduction)  # noqa: B023, E731
        assert torch.autograd.gradgradcheck(function, x)


@both_nodes
def test_the_gradient_is_not_copied(monkeypatch):
    """autograd takes over the memory that the forward wrote, so that a step needs one gradient and no more."""
    written = []

    def forward(*args):
        loss, grad = _ops.softmax_rows.forward(*args)
        written.append(grad.data_ptr())
        return loss, grad

    monkeypatch.setitem(_ops.softmax_rows.__dict__, "eager", forward)
    x = torch.randn(64, 1000, requires_grad=True)
    imbloss.focal_loss(x, torch.randint(0, 1000, (64,))).backward()
    assert written == [x.grad.data_ptr()]


@both_nodes
def test_a_graph_lets_go_of_what_it_holds():
    """Freed by the backward, and with the loss where there was none; a second backward says what was wrong."""
    weight, kept = torch.ones(3), []
    for backward in (True, False):
        x = torch.randn(4, 3, requires_grad=True)
        z = x * 1
        kept.append(weakref.ref(z))
        loss = imbloss.focal_loss(z, torch.tensor([0, 1, 2, 0]), weight=weight)
        del z
        if backward:
            loss.backward()
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                loss.backward()
        else:
            del loss
        assert kept[-1]() is None


@both_nodes
def test_hooks_and_what_they_change():
    x, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    (want,) = torch.autograd.grad(imbloss.focal_loss(x, y), x)
    loss, seen = imbloss.focal_loss(x, y), []
    loss.register_hook(lambda upstream: upstream * 3)
    loss.grad_fn.register_hook(lambda downstream, upstream: seen.append((downstream[0], upstream[0].item())))
    loss.backward()
    torch.testing.assert_close(x.grad, 3 * want)
    assert torch.equal(seen[0][0], x.grad) and seen[0][1] == 3


@both_nodes
def test_upstream_gradients_of_other_kinds():
    x, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    (want,) = torch.autograd.grad(imbloss.focal_loss(x, y), x)
    negative, nothing = torch._neg_view(torch.tensor(1.0)), torch._efficientzerotensor(())
    for upstream, factor in ((negative, -1), (nothing, 0), (torch.tensor(1.0).to_sparse(), 1)):
        (got,) = torch.autograd.grad(imbloss.focal_loss(x, y), x, upstream)
        torch.testing.assert_close(got.to_dense(), factor * want)


@both_nodes
def test_what_goes_wrong_in_a_backward_arrives(monkeypatch):
    class BrokenError(Exception):
        pass

    def gradient(*args):
        raise BrokenError("so it is")

    x = torch.randn(4, 3, requires_grad=True)
    loss = imbloss.focal_loss(x, torch.tensor([0, 1, 2, 0]))
    monkeypatch.setattr(_ops.Traversal, "reference_gradient", gradient)
    with pytest.raises(BrokenError, match="so it is"):
        torch.autograd.grad(loss, x, create_graph=True)


@both_nodes
def test_one_graph_in_several_threads():
    """The gradient at hand is given once; the others compute it again."""
    x, y = torch.randn(512, 10, requires_grad=True), torch.randint(0, 10, (512,))
    (want,) = torch.autograd.grad(imbloss.focal_loss(x, y), x)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            loss = imbloss.focal_loss(x, y)
            backward = lambda _: torch.autograd.grad(loss, x, retain_graph=True)[0]  # noqa: B023, E731
            for got in pool.map(backward, range(4)):
                assert torch.equal(got, want)


@both_nodes
def test_compiled_autograd():
    from torch._dynamo import compiled_autograd

    x, y = torch.randn(6, 4, requires_grad=True), torch.arange(6) % 4
    for gamma, factor in ((2.0, 1.0), (1.5, 1.0), (1.5, 3.0)):
        loss = lambda: factor * imbloss.focal_loss(x, y, gamma=gamma)  # noqa: B023, E731
        (want,) = torch.autograd.grad(loss(), x)
        with compiled_autograd._enable(torch.compile(backend="aot_eager")), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a break in the graph, with the node in Python
            (got,) = torch.autograd.grad(loss(), x)
        torch.testing.assert_close(got, want)


def test_nodes_in_cpp_serve_the_torch_of_their_build_alone():
    assert _C.autograd is not None and _ops._with_grad is _C.autograd.with_grad
    loss = imbloss.focal_loss(torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1]))
    assert loss.grad_fn.name() == "FusedLossBackward"
    assert _C._load_autograd({"torch": "2.10.0"}) is None and _C._load_autograd({}) is None
    with pytest.raises(TypeError, match="expected logits and a tuple of three"):
        _C.autograd.with_grad(loss)


# ---- where autograd, torch.compile and the dispatcher are used in other ways ---------------------------------------
LAYOUTS = {
    "contiguous": lambda: torch.randn(8, 6),
    "transposed": lambda: torch.randn(6, 8).t(),
    "sliced columns of a transposed": lambda: torch.randn(12, 8).t()[:, ::2],
    "dense": lambda: torch.randn(2, 5, 6, 7),
    "channels last": lambda: torch.randn(2, 5, 6, 7).to(memory_format=torch.channels_last),
    "cropped channels last": lambda: torch.randn(2, 5, 8, 9).to(memory_format=torch.channels_last)[:, :, 1:-1, 1:-1],
    "height and width swapped": lambda: torch.randn(2, 5, 7, 6).transpose(2, 3),
    "batch and height swapped": lambda: torch.randn(6, 5, 2, 7).transpose(0, 2),
    "expanded": lambda: torch.randn(2, 5, 6, 1).expand(2, 5, 6, 7),
}


def target_for(x, soft):
    if soft:
        return x.detach().softmax(1)
    return torch.randint(0, x.shape[1], x.shape[:1] + x.shape[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_gradients_have_the_strides_that_the_compiler_expects(layout, soft, dtype):
    torch.compiler.reset()
    x = LAYOUTS[layout]().to(dtype).detach().requires_grad_()
    y = target_for(x, soft)
    compiled = torch.compile(imbloss.focal_loss, fullgraph=True)
    (got,) = torch.autograd.grad(compiled(x, y), x)
    (want,) = torch.autograd.grad(imbloss.focal_loss(x, y), x)
    assert got.dtype == dtype and want.stride() == torch.empty_like(x).stride()
    torch.testing.assert_close(got, want)
    args = x.detach(), y, [], [2.0, 0.0], *([0.0] if soft else []), -100, 1, "focal"
    op = torch.ops.imbloss.softmax_soft_rows.default if soft else torch.ops.imbloss.softmax_rows.default
    for keep_grad in (False, True):
        torch.library.opcheck(op, (*args, keep_grad))
    if not soft:
        torch.library.opcheck(torch.ops.imbloss.softmax_rows_value.default, args)


def test_compiled_without_gradients():
    x, y = torch.randn(6, 4), torch.arange(6) % 4
    for dynamic in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(imbloss.focal_loss, fullgraph=True, dynamic=dynamic)
        assert torch.equal(compiled(x, y), imbloss.focal_loss(x, y))
        compiled(x.clone().requires_grad_(), y).backward()
        with torch.no_grad():
            assert torch.equal(compiled(x.clone().requires_grad_(), y), imbloss.focal_loss(x, y))
        with torch.inference_mode():
            compiled(x, y)


def test_compiled_with_numbers_that_change():
    compiled = torch.compile(imbloss.focal_loss, fullgraph=True, dynamic=True)
    x, y, prior = torch.randn(6, 4), torch.arange(6) % 4, torch.tensor([0.4, 0.3, 0.2, 0.1])
    for gamma, tau, normalizer in ((2.0, 1.0, 6), (1.3, 0.5, 7.5), (0.0, 2.0, 3)):
        keywords = {"gamma": gamma, "prior": prior, "tau": tau, "normalizer": normalizer, "label_smoothing": tau / 10}
        torch.testing.assert_close(compiled(x, y, **keywords), imbloss.focal_loss(x, y, **keywords))
    torch.testing.assert_close(
        torch.compile(imbloss.adjust_logits, fullgraph=True)(x, prior), imbloss.adjust_logits(x, prior)
    )


def test_exported():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 4)
            self.loss = imbloss.BalancedSoftmaxLoss(counts=torch.tensor([4, 3, 2, 1]))

        def forward(self, x, y):
            return self.loss(self.linear(x), y)

    model, inputs = Model(), (torch.randn(6, 3), torch.arange(6) % 4)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, inputs, dynamic_shapes=({0: batch}, {0: batch}))
    assert any("imbloss" in str(node.target) for node in program.graph.nodes)
    more = torch.randn(9, 3), torch.arange(9) % 4
    torch.testing.assert_close(program.module()(*more), model(*more))


@both_nodes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["weight", "sample_weight", "target", "logits"])
def test_an_operand_changed_before_its_use_is_noticed(name, dtype):
    x = torch.randn(4, 3).to(dtype).requires_grad_()
    operands = {"target": torch.tensor([0, 1, 2, 0]), "weight": torch.ones(3), "sample_weight": torch.ones(4)}
    tensors = operands | {"logits": x}
    loss = imbloss.cross_entropy(x, **operands, reduction="sum")
    if dtype == torch.float32:
        torch.autograd.grad(loss, x, retain_graph=True)  # the first has its gradient at hand
    with torch.no_grad():
        tensors[name].mul_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss / 2).backward()


def test_forward_mode():
    x, t, y = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    tangents = []
    for function in (imbloss.cross_entropy, torch.nn.functional.cross_entropy):
        with torch.autograd.forward_ad.dual_level():
            loss = function(torch.autograd.forward_ad.make_dual(x, t), y)
            tangents.append(torch.autograd.forward_ad.unpack_dual(loss).tangent)
    torch.testing.assert_close(*tangents)
    hessian = torch.func.hessian(lambda x: imbloss.focal_loss(x, y, gamma=0.0))(x)
    torch.testing.assert_close(hessian, torch.func.hessian(lambda x: torch.nn.functional.cross_entropy(x, y))(x))


@both_nodes
def test_batched_gradients():
    x, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    loss = imbloss.focal_loss(x, y)
    upstream = torch.tensor([1.0, 2.0, -3.0])
    (got,) = torch.autograd.grad(loss, x, upstream, is_grads_batched=True, retain_graph=True)
    (one,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(got, upstream.view(3, 1, 1) * one)


@both_nodes
def test_traced_with_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    prior = torch.tensor([0.5, 0.3, 0.2])
    with FakeTensorMode() as mode:
        x = torch.randn(4, 3, requires_grad=True)
        imbloss.focal_loss(x, torch.zeros(4, dtype=torch.int64), prior=mode.from_tensor(prior)).backward()
        assert x.grad.shape == (4, 3)
    x, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    step = lambda x, y: torch.autograd.grad(imbloss.focal_loss(x, y), x)[0]  # noqa: E731
    torch.testing.assert_close(make_fx(step)(x, y)(x, y), step(x, y))


@both_nodes
def test_checkpointing_keeps_nothing_behind_its_back():
    x, y = torch.randn(64, 100, requires_grad=True), torch.randint(0, 100, (64,))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = imbloss.focal_loss(x, y)
    assert not hasattr(loss.grad_fn, "kept")
    assert any(t is x or t.data_ptr() == x.data_ptr() for t in saved)
    (got,) = torch.autograd.grad(loss, x)
    again = torch.utils.checkpoint.checkpoint(imbloss.focal_loss, x, y, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again, x)[0], got)
    torch.testing.assert_close(torch.autograd.grad(imbloss.focal_loss(x, y), x)[0], got)


def test_many_dimensions_are_an_error_not_a_crash():
    x = torch.zeros([2, 3] + [1] * 62, requires_grad=True)
    imbloss.focal_loss(x, torch.zeros([2] + [1] * 62, dtype=torch.int64)).backward()
    with pytest.raises(RuntimeError, match="expected logits of 1 to 64 dimensions, but got 65"):
        imbloss.focal_loss(torch.zeros([2, 3] + [1] * 63), torch.zeros([2] + [1] * 63, dtype=torch.int64))


def test_conjugate_and_negative_views_are_resolved():
    weight = torch.tensor([-5j, -2j]).conj().imag
    assert weight.is_neg()
    x, y = torch.zeros(2, 2), torch.tensor([0, 1])
    torch.testing.assert_close(
        imbloss.cross_entropy(x, y, sample_weight=weight, reduction="none") / weight.clone(),
        torch.full((2,), 2.0).log(),
    )


@pytest.mark.parametrize("classes", [9000, 65536, 1_000_000])
def test_accurate_for_any_number_of_classes(classes):
    """Sums of equal terms: the worst case for a running sum."""
    for soft in (False, True):
        x = torch.full((2, classes), -0.3)
        x[:, 0] = 0
        y = torch.zeros(2, classes).index_fill_(1, torch.tensor([0]), 1.0) if soft else torch.tensor([0, 1])
        results = []
        for function, dtype in (
            (imbloss.cross_entropy, torch.float32),
            (torch.nn.functional.cross_entropy, torch.float64),
        ):
            z = x.to(dtype).requires_grad_()
            (grad,) = torch.autograd.grad(function(z, y.to(dtype) if soft else y), z)
            results.append(grad.double())
        assert ((results[0] - results[1]) / results[1]).abs().max() <= 4.3 * torch.finfo(torch.float32).eps


MESSAGES = {
    "gamma text": ({"gamma": "2"}, TypeError, "expected gamma to be a number, but got str '2'"),
    "gamma none": ({"gamma": None}, TypeError, "expected gamma to be a number, but got NoneType None"),
    "gamma huge": ({"gamma": 1e39}, ValueError, r"expected gamma in \[0, 1e\+06\], but got 1e\+39"),
    "prior list": (
        {"prior": [0.5, 0.5]},
        TypeError,
        r"expected prior to be a tensor of a floating dtype, but got list",
    ),
    "ignore index": ({"ignore_index": None}, TypeError, "expected ignore_index to be an integer, but got NoneType"),
    "normalizer": ({"normalizer": 1j}, TypeError, "expected normalizer to be a number, but got complex 1j"),
    "normalizer tensor": ({"normalizer": torch.tensor(1j)}, ValueError, "expected normalizer to be a number or a real"),
}


@pytest.mark.parametrize("bad", MESSAGES)
def test_messages_name_the_argument(bad):
    keywords, exception, message = MESSAGES[bad]
    with pytest.raises(exception, match=message):
        imbloss.focal_loss(torch.zeros(3, 2), torch.tensor([0, 1, 0]), **keywords)


def test_an_array_is_not_printed_into_the_message():
    with pytest.raises(TypeError, match=r"expected logits to be a tensor, but got ndarray of shape \(1000, 50\)$"):
        imbloss.focal_loss(torch.zeros(1000, 50).numpy(), torch.zeros(1000, dtype=torch.int64))


def test_a_module_names_the_constant_of_the_wrong_length():
    x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    for module, name in (
        (imbloss.LogitAdjustedLoss(prior=torch.full((4,), 0.25)), "prior"),
        (imbloss.BalancedSoftmaxLoss(counts=torch.ones(4)), "counts"),
        (imbloss.FocalLoss(gamma=torch.ones(4)), "gamma"),
    ):
        with pytest.raises(ValueError, match=rf"expected {name} of shape \(3,\), but got \(4,\)"):
            module(x, y)


def test_half_precision_models_keep_exact_constants():
    x, y = torch.zeros(2, 2), torch.tensor([0, 1])
    for module in (
        imbloss.BalancedSoftmaxLoss(counts=torch.tensor([1e5, 10.0])),
        imbloss.LogitAdjustedLoss(prior=torch.tensor([1 - 1e-8, 1e-8]).double()),
        imbloss.CrossEntropy(weight=torch.tensor([1.0, 1e5])),
    ):
        want = module(x, y)
        assert torch.equal(torch.nn.Sequential(module).half()[0](x, y), want)
        assert torch.equal(torch.nn.Sequential(module).to(torch.bfloat16)[0](x, y), want)


def test_a_learned_gamma_is_a_parameter():
    loss = imbloss.FocalLoss(gamma=torch.nn.Parameter(torch.full((3,), 2.0)))
    loss(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])).backward()
    assert [name for name, _ in loss.named_parameters()] == ["gamma"] and loss.gamma.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_ignored_row_is_zero_whatever_it_holds(backend):
    with imbloss.testing.backend(backend):
        for smoothing in (0.0, 0.1):
            x = torch.randn(3, 4)
            x[0] = torch.nan
            y, weight = torch.tensor([-100, 1, 2]), torch.ones(4, requires_grad=True)
            sample_weight = torch.tensor([torch.nan, 1.0, 2.0])
            x = x.requires_grad_()
            loss = imbloss.focal_loss(x, y, weight=weight, sample_weight=sample_weight, label_smoothing=smoothing)
            grad, weight_grad = torch.autograd.grad(loss, (x, weight), create_graph=True)
            assert loss.isfinite() and (grad[0] == 0).all() and grad.isfinite().all() and weight_grad.isfinite().all()
            (second,) = torch.autograd.grad(grad.square().sum(), x)
            assert (second[0] == 0).all() and second.isfinite().all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_infinities_mean_the_same_everywhere(backend):
    inf = float("inf")
    x = torch.tensor(
        [[0, -inf, -inf], [inf, 0, 0], [0, inf, 0], [-inf, 0, 0], [-inf] * 3, [0, 0, -inf]], requires_grad=True
    )
    with imbloss.testing.backend(backend):
        loss = imbloss.focal_loss(x, torch.zeros(6, dtype=torch.int64), gamma=0.5, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), x)
    assert loss[0] == 0 and (grad[0] == 0).all()
    assert loss[[1, 2, 4]].isnan().all() and grad[[1, 2, 4]].isnan().all()
    assert loss[3] == inf and grad[3, 0] == -1 and grad[3].isfinite().all()
    assert loss[5].isfinite() and grad[5].isfinite().all() and grad[5, 2] == 0


# ---- the gradient over the logits -----------------------------------------------------------------------------------
def focal_in_place(z, y, **keywords):
    return imbloss.focal_loss(z, y, inplace=True, **keywords)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_in_place_an_upstream_gradient_scales_what_is_there(reduction):
    x, y = torch.randn(6, 5, requires_grad=True), torch.tensor([0, 1, 2, 3, 4, -100])
    upstream = torch.linspace(1, 3, 6) if reduction == "none" else torch.tensor(3.7)
    grads = []
    for inplace in (False, True):
        loss = imbloss.focal_loss(x * 2, y, reduction=reduction, inplace=inplace)
        grads.append(torch.autograd.grad(loss, x, upstream)[0])
    torch.testing.assert_close(*grads)


def test_in_place_needs_no_memory_for_a_gradient():
    x, y = torch.randn(64, 1000, requires_grad=True), torch.randint(0, 1000, (64,))
    z = x * 1
    loss = focal_in_place(z, y)
    (grad,) = torch.autograd.grad(loss, z)
    assert grad.data_ptr() == z.data_ptr() and torch.equal(grad, z)


def test_in_place_whoever_else_needs_the_logits_notices():
    x, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    z = x * 1
    penalty = z.square().sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (focal_in_place(z, y) + penalty).backward()


def test_in_place_a_second_backward_is_refused():
    x, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    loss = focal_in_place(x * 1, y)
    torch.autograd.grad(loss, x, retain_graph=True)
    with pytest.raises(RuntimeError, match=r"expected one backward .* but got a second one"):
        loss.backward()
    with pytest.raises(RuntimeError, match="expected no gradient of the gradient"):
        torch.autograd.grad(focal_in_place(x * 1, y), x, create_graph=True)


IN_PLACE_REFUSED = {
    "leaf": (lambda x, y: focal_in_place(x, y), "logits that are a leaf of the graph"),
    "expanded": (lambda x, y: focal_in_place((x[:1] * 1).expand(4, 3), y), "logits whose elements share memory"),
    "torch.func": (lambda x, y: torch.func.grad(lambda z: focal_in_place(z * 1, y))(x), "torch.func"),
    "weight": (
        lambda x, y: focal_in_place(x * 1, y, weight=torch.ones(3, requires_grad=True)), "another tensor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_PLACE_REFUSED)
def test_in_place_is_refused_before_anything_changes(name):
    call, reason = IN_PLACE_REFUSED[name]
    x, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match=rf"expected inplace=False, but got inplace=True with .*{reason}"):
        call(x, y)
    assert torch.equal(x, before)


def test_in_place_stays_out_of_compiled_graphs():
    x, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    with pytest.raises(RuntimeError):
        torch.compile(focal_in_place, backend="eager", fullgraph=True)(x * 1, y)
    torch.compiler.reset()
    torch.compile(focal_in_place, backend="eager")(x * 1, y).backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(imbloss.focal_loss(x, y), x)[0])


@pytest.mark.parametrize("options", [{"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.1}])
def test_in_place_a_bad_target_costs_nothing(options):
    x = torch.randn(4, 3, requires_grad=True)
    z = x * 1
    before = z.detach().clone()
    with pytest.raises(IndexError, match="but got 3 at index 3"):
        focal_in_place(z, torch.tensor([0, 1, 2, 3]), **options)
    assert torch.equal(z, before)


def test_in_place_without_gradients_leaves_the_logits_alone():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    before = x.clone()
    assert torch.equal(focal_in_place(x, y), imbloss.focal_loss(x, y)) and torch.equal(x, before)
    assert torch.equal(imbloss.FocalLoss(inplace=True)(x, y), imbloss.focal_loss(x, y))


def test_in_place_operators_say_what_they_change():
    for op, smoothing in ((torch.ops.imbloss.softmax_rows_, []), (torch.ops.imbloss.softmax_soft_rows_, [0.1])):
        args = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), [], [2.0, 0.0], *smoothing, -100, 1, "focal"
        torch.library.opcheck(op.default, args, test_utils=("test_schema", "test_faketensor"))


def test_large_gradients_lie_in_huge_pages():
    x, y = torch.randn(1100, 1000, requires_grad=True), torch.randint(0, 1000, (1100,))
    imbloss.focal_loss(x, y).backward()
    assert x.grad.data_ptr() % (2 << 20) == 0 and x.grad.is_contiguous()


@pytest.fixture
def kept():
    """Bytes that are kept; nothing at first, and with the usual limit."""
    _C._keep(_C._module)
    yield _C._module.kept
    _C._keep(_C._module)


def gradient(rows):
    x = torch.randn(rows, 1000, requires_grad=True)
    imbloss.focal_loss(x, torch.randint(0, 1000, (rows,))).backward()
    return x.grad


@pytest.mark.isa
def test_the_memory_of_a_freed_gradient_serves_the_next(kept):
    first = gradient(1100)
    address = first.data_ptr()
    assert kept() == 0
    del first
    assert kept() == 3 * (2 << 20)  # 4.4 MB in huge pages
    torch.manual_seed(0)
    second = gradient(1099)
    assert second.data_ptr() == address and kept() == 0
    torch.manual_seed(0)
    third = gradient(1099)  # of the same numbers, elsewhere
    assert third.data_ptr() != address and torch.equal(second, third)
    del second
    larger = gradient(3000)  # for which what is kept is too small
    assert kept() == 3 * (2 << 20) and larger.data_ptr() != address


@pytest.mark.isa
def test_little_is_kept(kept):
    gradients = [gradient(1100) for _ in range(5)]
    gradients.clear()
    assert kept() == 2 * 3 * (2 << 20)  # of two
    gradient(9000)
    assert kept() <= (3 + 18) * (2 << 20)
    _C._module.keep_at_most(2**23)
    assert kept() == 0
    gradient(3000)  # 12 MB
    assert kept() == 0
    gradients = [gradient(1100) for _ in range(2)]
    gradients.clear()
    assert kept() == 3 * (2 << 20)


@pytest.mark.isa
def test_views_and_storages_of_large_gradients(kept):
    whole = gradient(1100)
    part = whole[5:7].clone(), whole[5:7]
    del whole
    assert kept() == 0 and torch.equal(*part)
    copied = pickle.loads(pickle.dumps(gradient(1100)))
    assert copied.shape == (1100, 1000) and copied.isfinite().all()


def test_the_limit_is_read_from_the_environment():
    code = (
        "import torch, imbloss; from imbloss import _C; x = torch.zeros(1100, 1000, requires_grad=True); "
        "imbloss.focal_loss(x, torch.zeros(1100).long()).backward(); del x; print(_C._module.kept())"
    )
    assert python(code, IMBLOSS_KEEP_MB="0").stdout.strip() == "0"
    assert python(code).stdout.strip() == str(3 * (2 << 20))
    message = python("import imbloss", IMBLOSS_KEEP_MB="some").stderr
    assert "expected IMBLOSS_KEEP_MB to be a whole number >= 0, but got 'some'" in message
