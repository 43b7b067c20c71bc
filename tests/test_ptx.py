"""The kernels as compiled for NVIDIA GPUs, run by ptxsim through imbloss's own functions and launches.

What every case here shows: the accuracy that is asked of any backend, no read or write out of bounds, none of what
nobody has written, no race and no deadlock; with approximate instructions off by their documented error, and in some
cases with warps in random order. IMBLOSS_TEST_ALL=1 runs the whole table, else a share of it.
"""

import contextlib
import itertools

import ptxsim
import pytest
import test_elements as elements
import torch
from conftest import ALL, INTERPRETED
from losses import ELEMENTS, LOSSES
from test_losses import Case, assert_accurate, half_steps, inputs

from imbloss import _ops

pytest.importorskip("triton")
from imbloss.kernels import launch, softmax_rows

pytestmark = pytest.mark.skipif(INTERPRETED, reason="not in Triton's interpreter")
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
LOSS = {loss.name: loss for loss in LOSSES}
SHARE = 17  # of the table, one in so many outside `make test-all`


@contextlib.contextmanager
def compiled_code(architecture, processors=1, schedule="lockstep", seed=0):
    """Within, imbloss computes on CPU tensors by the PTX of its kernels; few processors: as if there were many rows."""
    library = torch.library.Library("imbloss", "IMPL")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ops, "_kernels", {"cpu": "triton"})
        patch.setattr(launch, "processors", lambda device: processors)
        _ops._register_triton(library, "CPU", allow_override=True)
        try:
            with ptxsim.install(architecture, racecheck=True, noise=True, schedule=schedule, seed=seed) as driver:
                yield driver
        finally:
            library._destroy()


def assert_right(c, upstream=None, **options):
    """In float32 to the bound of all backends, in half precision correctly rounded or the number next to it."""
    upstream = c.upstream() if upstream is None else upstream
    with compiled_code(**options) as driver:
        got = c.run(upstream=upstream)
    assert driver.log
    if c.logits.dtype == FP32:
        assert_accurate(c, upstream, got)
        return
    want = c.truth(upstream)
    cancelled = (got[1].double() - want[1]).abs() <= c.bound() * c.scale(upstream, want[1])
    assert (half_steps(got[0], want[0], c.logits.dtype).le(1) | bool(c.loss.sizes)).all()
    assert (
        half_steps(got[1], want[1], c.logits.dtype).le(1) | (cancelled if c.cancels else got[1].abs() < 1e-36)
    ).all()


def loss_case(name, keywords, classes, shape, dtype, sliced=False, soft=False, spread=3.0):
    logits, target = inputs(classes, shape, dtype, spread, soft=soft)
    if sliced:  # rows begin anywhere
        wider = torch.full((shape[0], classes + 3, *shape[1:]), torch.nan, dtype=dtype)
        wider[:, 2:-1] = logits
        logits = wider[:, 2:-1]
    return Case(LOSS[name], keywords, logits, target)


# ---- one class a row -----------------------------------------------------------------------------------------------
ROWS = {2: 300, 3: 70, 10: 150, 100: 40, 1000: 9, 1203: 5, 5003: 4}  # classes: rows
TABLE = list(itertools.product((80, 90), ROWS, (FP32, BF16, FP16), (0.0, 0.5, 2.0), (False, True)))


@pytest.mark.parametrize("architecture, classes, dtype, gamma, sliced", TABLE if ALL else TABLE[::SHARE])
def test_rows(architecture, classes, dtype, gamma, sliced):
    """Ignored rows, all reductions; several programs a row where the device has processors enough."""
    number = TABLE.index((architecture, classes, dtype, gamma, sliced))
    keywords = {"gamma": gamma, "reduction": ("mean", "none", "sum")[number % 3]}
    c = loss_case("focal_loss", keywords, classes, (ROWS[classes],), dtype, sliced)
    schedule = "random" if number % 4 == 0 else "lockstep"
    assert_right(c, architecture=architecture, processors=(1, 132)[number % 2], schedule=schedule, seed=number)


OPERANDS = {
    "weights": ("focal_loss", "weight and sample weight", {}),
    "gamma per class": ("focal_loss", "gamma per class", {}),
    "normalizer": ("focal_loss", "normalizer tensor", {}),
    "margin and scale": ("ldam_loss", "none", {}),
    "scale and bias": ("vs_loss", "counts", {}),
    "poly": ("poly_loss", None, {}),
    "smoothing": ("focal_loss", "smoothing, weight, none", {}),
    "soft": ("focal_loss", "soft, gamma 0.5", {"soft": True}),
    "soft per class": ("focal_loss", "soft, gamma per class", {"soft": True}),
    "lade": ("lade_loss", "sample weight", {}),
    "lade, paper": ("lade_loss", "paper", {}),
    "lader": ("lader", "official", {}),
}
SHAPES = [
    (10, (130,)),
    (1280, (7,)),
    (37, (33,)),
    (1000, (9,)),
    (4097, (3,)),
    (5, (2, 3, 21)),
    (40, (2, 64)),
    (300, (2, 33)),
]
OPERAND_TABLE = list(itertools.product((90, 80), OPERANDS, SHAPES, (FP32, BF16)))


@pytest.mark.parametrize("architecture, name, size, dtype", OPERAND_TABLE if ALL else OPERAND_TABLE[::SHARE])
def test_operands_and_layouts(architecture, name, size, dtype):
    loss, sample, options = OPERANDS[name]
    (classes, shape), row = size, LOSS[loss]
    keywords = dict(row.samples[sample or next(iter(row.samples))](classes, shape))
    keywords.pop("soft", None)
    assert_right(loss_case(loss, keywords, classes, shape, dtype, **options), architecture=architecture)


@pytest.mark.parametrize("classes, shape", [(10, (40,)), (5003, (3,)), (7, (2, 40))])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_in_the_place_of_the_logits(classes, shape, smoothing):
    c = loss_case("focal_loss", {"label_smoothing": smoothing}, classes, shape, FP32)
    want, logits = c.truth(), c.logits.clone().requires_grad_()
    with compiled_code(90):
        value = c.replace(logits=logits * 1, keywords={**c.keywords, "inplace": True}).value()
        (grad,) = torch.autograd.grad(value, logits)
    assert_accurate(c, None, (value.detach(), grad))
    assert torch.isfinite(want[1]).all()


@pytest.mark.parametrize("classes", [10, 100, 5003])
def test_rows_without_a_class_and_logits_that_are_not_finite(classes):
    """An ignored row's logits are nobody's business, even if they are NaN; a target that is no class makes NaN."""
    logits, target = inputs(classes, (6,))
    target[:] = torch.tensor([1, -100, classes, 0, -1, 1])
    logits[1], logits[3, 1] = torch.nan, -torch.inf
    c = Case(LOSS["focal_loss"], {"reduction": "none"}, logits, target)
    with compiled_code(90, processors=132):
        value, grad = c.run()
    assert value.isnan().tolist() == grad.isnan().any(1).tolist() == [False, False, True, False, True, False]
    assert value[1] == 0 and not grad[1].any() and grad[3, 1] == 0
    good = torch.tensor([0, 3, 5])
    c = Case(LOSS["focal_loss"], {"reduction": "none"}, logits[good], target[good])
    assert_accurate(c, None, (value[good], grad[good]))


@pytest.mark.parametrize("classes", [2, 10, 1000, 5003])
def test_logits_however_far_apart(classes):
    for spread in (60.0, 3000.0):
        c = loss_case("focal_loss", {"reduction": "none"}, classes, (6,), FP32, spread=spread)
        c.logits[0], c.logits[1, 0] = 7.0, 1e4  # all the same; one that leads
        assert_right(c, architecture=90)


@pytest.mark.parametrize("classes, shape", [(10, (300,)), (1000, (20,)), (5003, (8,)), (5003, (3,)), (19, (2, 300))])
def test_results_repeat_however_warps_are_scheduled(classes, shape):
    c = loss_case("focal_loss", {}, classes, shape, FP32)
    results = []
    for schedule, seed in (("lockstep", 0), ("random", 0)):
        with compiled_code(90, processors=132, schedule=schedule, seed=seed):
            results.append(c.run())
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


# ---- memory --------------------------------------------------------------------------------------------------------
MOVED = [
    (c, dtype, sliced) for c in (100, 1000, 1203, 5003, 50257) for dtype in (FP32, BF16) for sliced in (False, True)
]


@pytest.mark.parametrize("classes, dtype, sliced", [m for m in MOVED if ALL or not m[2]])
def test_memory_moves_in_whole_sectors(classes, dtype, sliced):
    """At most 1.15 sectors for each that the logits fill. A sector is 32 bytes; a row's target is read once more."""
    c = loss_case("focal_loss", {}, classes, (max(3, 4000 // classes),), dtype, sliced)
    c.target = c.target.clamp(min=0)
    with compiled_code(90) as driver:
        c.run()
    counts = {entry.kernel.split("_rows")[-1]: entry.counts for entry in driver.log if "_rows" in entry.kernel}
    ideal = c.logits.numel() * dtype.itemsize / 32
    aligned = classes % (16 // dtype.itemsize) == 0 or (classes == 100 and not sliced)
    for kernel, count in counts.items():
        read = count["load sectors of logits_ptr"]
        if aligned and not sliced:  # as vectors, but for the target
            read -= count[f"load sectors of logits_ptr by {dtype.itemsize} bytes a thread"]
        assert read <= 1.15 * ideal, (kernel, read / ideal)
    assert counts["_backward_kernel"]["store sectors of grad_ptr"] <= 1.15 * ideal


# ---- elements ------------------------------------------------------------------------------------------------------
ELEMENT = {loss.name: loss for loss in ELEMENTS}
ELEMENT_SAMPLES = {
    "0 or 1": ("sigmoid_focal_loss", "0 or 1, mean"),
    "per class, indices": ("sigmoid_focal_loss", "all per class, indices"),
    "bool": ("sigmoid_focal_loss", "bool"),
    "soft": ("sigmoid_focal_loss", "soft, mean"),
    "clipped": ("asymmetric_loss", "weight of rows, soft"),
    "quality": ("quality_focal_loss", "beta 1.5"),
}
ELEMENT_TABLE = list(
    itertools.product((90, 80), ELEMENT_SAMPLES, [(32, 16), (13, 80), (70, 5), (2, 3, 37), (2, 4, 64)], (FP32, BF16))
)


@pytest.mark.parametrize("architecture, name, shape, dtype", ELEMENT_TABLE if ALL else ELEMENT_TABLE[::SHARE])
def test_elements(architecture, name, shape, dtype):
    loss, sample = ELEMENT_SAMPLES[name]
    c = elements.case(ELEMENT[loss], sample, shape, dtype)
    upstream = c.upstream()
    with compiled_code(architecture):
        got = c.run(upstream=upstream)
    if dtype == FP32:
        elements.assert_accurate(c, upstream, got)
    else:
        want = c.truth(upstream)
        assert half_steps(got[0], want[0], dtype).le(1).all()
        assert (half_steps(got[1], want[1], dtype).le(1) | (got[1].double() - want[1]).abs().lt(1e-6)).all()


def test_the_kernels_are_those_of_the_launcher():
    """The names that the tests above look for in the log."""
    with compiled_code(90, processors=132) as driver:
        loss_case("focal_loss", {}, 50257, (2,), BF16).run()
    names = [entry.kernel for entry in driver.log]
    kernel = "softmax_long_rows"
    assert names == [f"{kernel}_kernel", f"{kernel}_merge_kernel", "reduce_kernel", f"{kernel}_backward_kernel"]
    assert driver.log[0].grid[1] > 1 and softmax_rows.long_rows
