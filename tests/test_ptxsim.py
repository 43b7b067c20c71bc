"""ptxsim by itself: what it computes, and that it notices what it is there to notice."""

import numpy as np
import ptxsim
import pytest
import torch
from conftest import INTERPRETED
from ptxsim import floats, formats

pytest.importorskip("triton")
import triton
import triton.language as tl

pytestmark = pytest.mark.skipif(INTERPRETED, reason="not in Triton's interpreter")
HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"


def kernel(body, params="", registers="", shared=""):
    """An entry; registers %p, %r and %rd are there."""
    registers = ".reg .pred %p<9>; .reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .b16 %h<9>; .reg .f32 %f<9>;" + registers
    return ptxsim.Kernel(f"{HEAD}{shared}\n.visible .entry k({params})\n{{\n{registers}\n{body}\nret;\n}}")


OUT = ".param .u64 out"
PLACE = """
ld.param.u64 %rd1, [out];
mov.u32 %r1, %tid.x;
mul.wide.u32 %rd2, %r1, 4;
add.s64 %rd3, %rd1, %rd2;
"""
SHARED = ".shared .align 4 .b8 buffer[256];"
EXCHANGE = (
    PLACE
    + """
mov.u32 %r2, buffer;
shl.b32 %r3, %r1, 2;
add.s32 %r4, %r2, %r3;
st.shared.b32 [%r4], %r1;
{barrier}
xor.b32 %r5, %r1, 63;
shl.b32 %r5, %r5, 2;
add.s32 %r5, %r2, %r5;
ld.shared.b32 %r6, [%r5];
st.global.b32 [%rd3], %r6;
"""
)


# ---- known results -------------------------------------------------------------------------------------------------
@triton.jit
def sums_kernel(x_ptr, out_ptr, n, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # noqa: N803
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, n, COLUMNS):
        cols = start + tl.arange(0, COLUMNS)
        total += tl.sum(tl.load(x_ptr + row[:, None] * stride + cols[None, :], mask=cols[None, :] < n, other=0.0), 1)
    tl.store(out_ptr + row, total)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("schedule", ["lockstep", "random"])
def test_sums_of_rows(architecture, schedule):
    x = torch.randn(8, 300)
    out = torch.full((8,), torch.nan)
    with ptxsim.install(architecture, racecheck=True, schedule=schedule) as driver:
        sums_kernel[(2,)](x, out, 300, x.stride(0), ROWS=4, COLUMNS=128)
    torch.testing.assert_close(out, x.sum(1))
    (launch,) = driver.log
    assert launch.kernel == "sums_kernel" and launch.grid == (2, 1, 1)
    assert launch.counts["load bytes"] == x.nbytes and launch.counts["store bytes"] == out.nbytes
    assert launch.counts["load sectors of x_ptr"] >= x.nbytes / 32


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, out_ptr):
    i = tl.arange(0, 64)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(out_ptr + i, tl.div_rn(tl.fma(x, y, tl.exp2(x)), tl.abs(y) + 1.0))
    tl.store(out_ptr + 64 + i, tl.where(x < y, tl.log2(tl.abs(x)), tl.sqrt(tl.abs(y))))
    tl.store(out_ptr + 128 + i, tl.floor(x) + (x.to(tl.int32) % 7).to(tl.float32))
    tl.store(out_ptr + 192 + i, (x.to(tl.bfloat16) * y.to(tl.bfloat16)).to(tl.float32))


def test_arithmetic():
    x, y, out = torch.randn(64) * 5, torch.randn(64) * 5, torch.full((256,), torch.nan)
    with ptxsim.install(80):
        arithmetic_kernel[(1,)](x, y, out)
    a, b = x.double(), y.double()
    remainders = torch.fmod(a.trunc(), 7)
    want = [
        (a * b + a.exp2()) / (b.abs() + 1),
        torch.where(a < b, a.abs().log2(), b.abs().sqrt()),
        a.floor() + remainders,
        (x.bfloat16() * y.bfloat16()).double(),
    ]
    torch.testing.assert_close(out.double(), torch.cat(want), rtol=1e-6, atol=1e-6)


def test_a_fused_multiply_add_rounds_once():
    a, b, c = (np.float32(np.random.default_rng(i).standard_normal(10000)) for i in range(3))
    exact = a.astype(np.longdouble) * b + c
    assert (formats.fma32(a, b, c) == exact.astype(np.float32)).all()
    tiny = np.float32([2**-24])
    assert formats.fma32(1 + tiny * 2, 1 - tiny, -np.ones(1, np.float32)) == np.float32(2**-24 - 2**-47)


def test_bfloat16_rounds_to_nearest_even():
    x = torch.randn(10000) * 100
    assert (formats.to_bf16(x.numpy()) == x.bfloat16().view(torch.int16).numpy().view(np.uint16)).all()
    assert (formats.from_bf16(formats.to_bf16(x.numpy())) == x.bfloat16().float().numpy()).all()


def test_noise_is_within_the_documented_error_and_repeats():
    x = np.linspace(-20, 20, 1001, dtype=np.float32)
    exact = np.exp2(x.astype(np.float64)).astype(np.float32)
    noisy = floats.disturbed("ex2", exact, x, seed=1)
    error = np.abs(noisy.astype(np.float64) / exact - 1)
    assert 2**-24 < error.max() <= 2**-22.5 + 2**-24
    assert (noisy == floats.disturbed("ex2", exact, x, seed=1)).all()
    assert (noisy != floats.disturbed("ex2", exact, x, seed=2)).any()
    assert (noisy[x == np.rint(x)] == exact[x == np.rint(x)]).all()


def test_divergent_threads_take_their_own_branches():
    body = PLACE + "setp.lt.u32 %p1, %r1, 13;\n@%p1 bra $L1;\nmov.u32 %r2, 7;\nbra $L2;\n$L1:\nmov.u32 %r2, 5;\n$L2:\n"
    out = np.zeros(64, np.uint32)
    ptxsim.run(kernel(body + "st.global.b32 [%rd3], %r2;", OUT), [out], (1,), 64)
    assert (out == np.where(np.arange(64) < 13, 5, 7)).all()


def test_what_a_butterfly_exchanges():
    body = PLACE + "shfl.sync.bfly.b32 %r2, %r1, 5, 31, -1;\nst.global.b32 [%rd3], %r2;"
    out = np.zeros(64, np.uint32)
    ptxsim.run(kernel(body, OUT), [out], (1,), 64)
    assert (out == (np.arange(64) ^ 5)).all()


@pytest.mark.parametrize("schedule", ["lockstep", "random"])
def test_atomics_add_up(schedule):
    body = "ld.param.u64 %rd1, [out];\natom.global.add.u32 %r1, [%rd1], 3;"
    out = np.zeros(1, np.uint32)
    counts = ptxsim.run(kernel(body, OUT), [out], (5,), 64, schedule=schedule)
    assert out == 3 * 5 * 64 and counts["atomics"] == 5 * 64


# ---- planted defects -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("schedule", ["lockstep", "random"])
def test_a_missing_barrier_is_a_race(schedule):
    out = np.zeros(64, np.uint32)
    good = kernel(EXCHANGE.format(barrier="bar.sync 0;"), OUT, shared=SHARED)
    ptxsim.run(good, [out], (3,), 64, racecheck=True, schedule=schedule)
    assert (out == np.arange(64) ^ 63).all()
    bad = kernel(EXCHANGE.format(barrier=""), OUT, shared=SHARED)
    with pytest.raises((ptxsim.RaceError, ptxsim.AccessError), match=r"race in shared memory|uninitialised"):
        ptxsim.run(bad, [out], (1,), 64, racecheck=True, schedule=schedule)


@triton.jit
def racing_kernel(out_ptr):
    tl.store(out_ptr, tl.program_id(0).to(tl.float32))


def test_programs_that_write_one_place_race():
    out = torch.zeros(1)
    with ptxsim.install(90, racecheck=True), pytest.raises(ptxsim.RaceError, match="different values to one place"):
        racing_kernel[(2,)](out)
    with ptxsim.install(90, racecheck=True):
        racing_kernel[(1,)](out)


@triton.jit
def copy_kernel(x_ptr, out_ptr, n, stride, BLOCK: tl.constexpr):  # noqa: N803
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i * stride, mask=i < n), mask=i < n)


@pytest.mark.parametrize("n, what", [(65, r"load out of bounds: x_ptr\+256 of 256 bytes"), (64, None)])
def test_a_read_out_of_bounds(n, what):
    x, out = torch.randn(64), torch.full((128,), torch.nan)
    with ptxsim.install(90):
        if what:
            with pytest.raises(ptxsim.AccessError, match=what):
                copy_kernel[(1,)](x, out, n, 1, BLOCK=128)
        else:
            copy_kernel[(1,)](x, out, n, 1, BLOCK=128)
            assert torch.equal(out[:n], x) and out[n:].isnan().all()


def test_a_read_between_the_elements_of_a_view():
    x, out = torch.randn(64, 2), torch.full((64,), torch.nan)
    with ptxsim.install(90):
        copy_kernel[(1,)](x[:, 0], out, 64, 2, BLOCK=64)
        assert torch.equal(out, x[:, 0])
        with pytest.raises(ptxsim.AccessError, match="load out of bounds"):
            copy_kernel[(1,)](x[:, 0], out, 64, 1, BLOCK=64)


def test_a_write_out_of_bounds():
    x, out = torch.randn(128), torch.zeros(64)
    with ptxsim.install(90), pytest.raises(ptxsim.AccessError, match=r"store out of bounds: out_ptr\+256"):
        copy_kernel[(1,)](x, out, 128, 1, BLOCK=128)


def test_a_read_of_an_output():
    x, out = torch.full((64,), torch.nan), torch.zeros(64)
    with ptxsim.install(90), pytest.raises(ptxsim.AccessError, match=r"uninitialised memory: x_ptr\+0"):
        copy_kernel[(1,)](x, out, 64, 1, BLOCK=64)


def test_a_misaligned_vector():
    body = PLACE + "ld.global.v2.b32 {%r2, %r3}, [%rd1];"
    good, out = kernel(body, OUT), np.zeros(64, np.uint32)
    ptxsim.run(good, [out], (1,), 32, misalign={0: 8})
    with pytest.raises(ptxsim.AccessError, match="misaligned access of 8 bytes"):
        ptxsim.run(good, [out], (1,), 32, misalign={0: 4})


def test_a_barrier_that_some_threads_miss():
    body = PLACE + "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra $L1;\nbar.sync 0;\nbra $L2;\n$L1:\nbar.sync 1;\n$L2:\n"
    with pytest.raises(ptxsim.PTXError, match="deadlocks"):
        ptxsim.run(kernel(body, OUT), [np.zeros(64, np.uint32)], (1,), 64)


def test_a_shuffle_from_a_thread_that_is_elsewhere():
    body = PLACE + "setp.lt.u32 %p1, %r1, 16;\n@%p1 bra $L1;\nshfl.sync.bfly.b32 %r2, %r1, 16, 31, -1;\n$L1:\n"
    with pytest.raises(ptxsim.PTXError, match="absent thread"):
        ptxsim.run(kernel(body, OUT), [np.zeros(32, np.uint32)], (1,), 32)


def test_what_is_not_simulated_is_said():
    with pytest.raises(ptxsim.UnsupportedError, match=r"mma\.sync"):
        ptxsim.run(kernel("mma.sync.aligned.m16n8k8.f32 %f1, %f2, %f3, %f4;", OUT), [np.zeros(1, np.uint32)], (1,), 32)
