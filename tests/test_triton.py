"""The Triton kernels without a GPU: compiled for some, run in Triton's interpreter on CPU tensors, and dispatched to.

The tests marked triton run in the interpreter, in a process of their own: tests/test_losses.py has most of them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_elements
import torch
from conftest import INTERPRETED
from losses import ELEMENTS, LOSSES
from test_losses import assert_accurate, case
from torch.utils._python_dispatch import TorchDispatchMode

import imbloss
from imbloss import _ops

ROOT = Path(__file__).parents[1]
pytest.importorskip("triton")
in_the_interpreter = pytest.mark.skipif(not INTERPRETED, reason="only in Triton's interpreter")
out_of_the_interpreter = pytest.mark.skipif(INTERPRETED, reason="not in Triton's interpreter")


# ---- in the interpreter ------------------------------------------------------------------------------------------
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


@in_the_interpreter
@pytest.mark.triton
@pytest.mark.parametrize("strides", [(2**30, 1, 1), (4, 2**30, 1)])
def test_offsets_beyond_32_bits(strides, monkeypatch):
    from imbloss.kernels import softmax_rows

    monkeypatch.undo()  # no canaries: they would need the memory that is only reserved here
    x = torch.empty(0, dtype=torch.bfloat16)
    x.set_(torch.UntypedStorage(2 * (2**31 + 4096)), 0, (3, 3, 4), strides)
    x.copy_(torch.randn(3, 3, 4))
    target = torch.randint(0, 3, (3, 4))
    got, _ = softmax_rows.softmax_rows(x, target, (), [2.0, 0.0], -100, 0, "focal", False)
    want = imbloss.reference.focal_loss(x.double().contiguous(), target, reduction="none")
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


# ---- compiled ----------------------------------------------------------------------------------------------------
class CompileOnly:
    """A Triton driver that compiles for an architecture of NVIDIA's and launches nothing."""

    def __init__(self, architecture):
        from triton.backends.compiler import GPUTarget

        self.target, self.utils = GPUTarget("cuda", architecture, 32), self

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch

    def get_current_stream(self, device=None):
        return 0

    def load_binary(self, name, binary, shared, device):
        return object(), object(), 0, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": 99 * 1024, "multiprocessor_count": 100, "warpSize": 32}

    def launcher_cls(self, src, metadata):
        return lambda *args: None


COMPILED = {
    "plain": ("focal_loss", "gamma 2", (5,), torch.float32),
    "weights": ("focal_loss", "weight and sample weight", (5,), torch.bfloat16),
    "gamma per class": ("focal_loss", "gamma per class", (5,), torch.float16),
    "margin and scale, none": ("ldam_loss", "none", (5,), torch.float32),
    "dense": ("vs_loss", "counts", (2, 3, 4), torch.bfloat16),
    "smoothing": ("focal_loss", "smoothing, weight, none", (5,), torch.float32),
    "soft": ("focal_loss", "soft, gamma 0.5", (2, 3, 4), torch.bfloat16),
    "soft per class": ("focal_loss", "soft, gamma per class", (1,), torch.float32),
    "class columns": ("lade_loss", "sample weight", (5,), torch.float32),
    "class columns, dense": ("lade_loss", "paper", (2, 3, 4), torch.bfloat16),
    "class columns without rows": ("lader", "official", (5,), torch.float16),
}


def code_for_a_gpu(module, c):
    """What the kernels of a module compile to when a case runs, through the launches, as on a GPU."""
    from triton.runtime import driver

    library = torch.library.Library("imbloss", "IMPL")
    kernels = [kernel for kernel in vars(module).values() if hasattr(kernel, "device_caches")]
    driver.set_active(CompileOnly(90))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_ops, "_kernels", {"cpu": "triton"})
            _ops._register_triton(library, "CPU", allow_override=True)
            c.run()
        return [code for kernel in kernels for code in kernel.device_caches[90][0].values()]
    finally:
        library._destroy()
        driver.set_active(None)


def assert_without_float64(compiled):
    """A float64 constant would slow down all that follows it."""
    assert compiled
    for code in compiled:
        assert ".target sm_90" in code.asm["ptx"] and ".f64" not in code.asm["ptx"]


@out_of_the_interpreter
@pytest.mark.parametrize("name", COMPILED)
def test_the_kernels_compile_to_code_without_float64(name):
    from imbloss.kernels import class_columns, softmax_rows

    loss_name, sample, shape, dtype = COMPILED[name]
    (loss,) = (loss for loss in LOSSES if loss.name == loss_name)
    module = class_columns if loss_name in ("lade_loss", "lader") else softmax_rows
    assert_without_float64(code_for_a_gpu(module, case(loss, sample, 10, shape, dtype)))


COMPILED_ELEMENTS = {
    "plain": ("sigmoid_focal_loss", "0 or 1, mean", (5, 3), torch.float32),
    "per class": ("sigmoid_focal_loss", "all per class, indices", (5, 3), torch.bfloat16),
    "bool": ("sigmoid_focal_loss", "bool", (2, 3, 4), torch.bfloat16),
    "clipped": ("asymmetric_loss", "weight of rows, soft", (5, 3), torch.float32),
    "soft": ("quality_focal_loss", "beta 1.5", (2, 3, 4), torch.float16),
}


@out_of_the_interpreter
@pytest.mark.parametrize("name", COMPILED_ELEMENTS)
def test_the_kernels_of_elements_compile_to_code_without_float64(name):
    from imbloss.kernels import sigmoid_elements

    loss_name, sample, shape, dtype = COMPILED_ELEMENTS[name]
    (loss,) = (loss for loss in ELEMENTS if loss.name == loss_name)
    assert_without_float64(code_for_a_gpu(sigmoid_elements, test_elements.case(loss, sample, shape, dtype)))


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

    name = "softmax_soft_rows" if smoothing else "softmax_rows"
    assert operators(torch.float32) == operators(torch.bfloat16) == {f"imbloss::{name}"}


@out_of_the_interpreter
def test_lade_on_a_gpu_goes_to_the_kernels():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), Operators() as called:
        x, y = torch.empty(4, 3, device="cuda"), torch.empty(4, dtype=torch.int64, device="cuda")
        assert imbloss.lade_loss(x, y, prior=torch.empty(3, device="cuda")).device.type == "cuda"
    assert {name for name in called.names if name.startswith("imbloss")} == {"imbloss::class_columns"}


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
