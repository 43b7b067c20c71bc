"""Types of PTX and their arithmetic where numpy has none: bfloat16, fused multiply-add, flush to zero."""

import re

import numpy as np

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
TYPE = re.compile(r"^(pred|[bsu](8|16|32|64|128)|f16|f32|f64|bf16|f16x2|bf16x2|f32x2|tf32)$")
SMALLEST_NORMAL = np.float32(1.1754944e-38)


def width(kind: str) -> int:
    """Bits of a type."""
    packed = {"pred": 1, "f16x2": 32, "bf16x2": 32, "f32x2": 64}
    return packed.get(kind) or int(re.sub(r"\D", "", kind))


def integer(kind: str, bits: int):
    """numpy's integer of so many bits, with the sign of the type."""
    return (SIGNED if kind[0] == "s" else UNSIGNED)[bits]


def from_bf16(bits):
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(x, toward_zero=False):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    if toward_zero:
        rounded = bits >> np.uint32(16)
    else:
        last = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = (bits.astype(np.uint64) + 0x7FFF + last) >> np.uint64(16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded.astype(np.uint16))


def _round_to_odd(x, error, bits):
    """x with its last bit set where x + error is between two numbers: rounding once more is then exact."""
    i = x.view(bits)
    inexact = (error != 0) & ((i & 1) == 0) & np.isfinite(x)
    if not inexact.any():
        return x
    away = np.where((error > 0) == (x > 0), 1, -1).astype(bits)
    return np.where(inexact, i + away, i).view(x.dtype)


def _exact_sum(a, b, c):
    """a * b + c of float32 in float64, rounded to odd."""
    product, c = a.astype(np.float64) * b, np.asarray(c, np.float64)
    total = product + c
    of_c = total - product
    error = (product - (total - of_c)) + (c - of_c)
    return _round_to_odd(np.ascontiguousarray(total), error, np.int64)


def fma32(a, b, c):
    return _exact_sum(a, b, c).astype(np.float32)


def fma_bf16(a, b, c):
    """Of three float32 that are bfloat16; the bits of the result."""
    total = _exact_sum(a, b, c)
    single = total.astype(np.float32)
    return to_bf16(_round_to_odd(np.ascontiguousarray(single), total - single, np.int32))


def flush(x):
    """Float32 below the smallest normal number to 0."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), x) if x.dtype == np.float32 else x
