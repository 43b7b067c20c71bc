"""Floating-point instructions: operations in numpy, on float32, float16, bfloat16 and pairs of them."""

import numpy as np

from ptxsim.formats import FLOAT, UNSIGNED, flush, fma32, fma_bf16, from_bf16, integer, to_bf16, width

WIDE = np.float64
BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "copysign": lambda x, y: np.copysign(y, x)}
UNARY = {"neg": np.negative, "abs": np.abs}
# computed in float64, so that float32 is correctly rounded
ROUNDED = {
    "div": np.divide, "rcp": np.reciprocal, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "ex2": np.exp2,
    "lg2": np.log2, "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
}  # fmt: skip
# Documented errors of the approximate instructions, relative but for those of sin and cos.
RELATIVE_ERROR = {"ex2": -22.5, "rsqrt": -22.5, "rcp": -23, "sqrt": -23, "div": -22, "lg2": -22, "tanh": -11}
ABSOLUTE_ERROR = {"sin": -20.5, "cos": -20.5}


def disturbed(op: str, result, x, seed: int):
    """A result that is off by at most the documented error, always the same for the same operand."""
    bits = np.ascontiguousarray(np.broadcast_to(x, result.shape)).view(np.uint32) * np.uint32(2654435761)
    bits = bits + np.uint32(seed * 40503 & 0xFFFFFFFF)
    bits ^= bits >> np.uint32(15)
    bits *= np.uint32(2246822519)
    uniform = (bits >> np.uint32(8)) / 2.0**23 - 1
    if op in ABSOLUTE_ERROR:
        error = uniform * 2.0 ** ABSOLUTE_ERROR[op]
    else:
        error = result * uniform * 2.0 ** RELATIVE_ERROR[op]
    if op == "lg2":
        error = np.where((x > 0.5) & (x < 2), np.where(x == 1, 0, uniform * 2.0**-22), error)
    exact = (x == np.rint(x)) if op == "ex2" else result == 0
    return np.where(exact | ~np.isfinite(result), result, (result.astype(WIDE) + error).astype(np.float32))


def _function(o):
    """The operation on numpy floats of one type."""
    op, machine = o.op, o.machine
    if o.has("rz", "rm", "rp") or op not in (*BINARY, *UNARY, *ROUNDED, "fma", "mad", "min", "max"):
        raise o.unsupported
    flushes = o.has("ftz") and o.kind == "f32"
    approximate = machine.noise and o.has("approx", "full")

    def function(*operands):
        operands = [flush(x) for x in operands] if flushes else operands
        dtype = operands[0].dtype.type
        if op in BINARY:
            result = BINARY[op](*operands)
        elif op in UNARY:
            result = UNARY[op](*operands)
        elif op in ("fma", "mad"):
            if dtype == np.float32:
                result = fma32(*np.broadcast_arrays(*operands))
            else:
                a, b, c = (x.astype(np.longdouble if dtype == WIDE else WIDE) for x in operands)
                result = (a * b + c).astype(dtype)
        elif op in ("min", "max"):
            ordered = (np.minimum, np.maximum) if o.has("NaN") else (np.fmin, np.fmax)
            result = ordered[op == "max"](*operands)
        else:
            result = ROUNDED[op](*[x.astype(WIDE) for x in operands]).astype(dtype)
            if approximate and dtype == np.float32:
                result = disturbed(op, result, operands[-1], machine.seed)
        if o.has("sat"):
            result = np.where(np.isnan(result), dtype(0), np.clip(result, 0, 1)).astype(dtype)
        if o.has("relu"):
            result = np.fmax(result, dtype(0))
        return flush(result) if flushes else result

    return function


def arithmetic(o):
    kind, function, write = o.kind, _function(o), o.write()
    count = len(o.args) - 1
    if len(o.kinds) == 2 and o.kinds[0] == "f32" and kind in ("bf16", "f16"):  # sub.rn.f32.bf16: the last is float32
        convert = from_bf16 if kind == "bf16" else lambda x: x.astype(np.float32)
        narrow = [o.read(i, "b16" if kind == "bf16" else kind) for i in range(1, count)]
        last = o.read(count, "f32")
        return lambda: write(function(*[convert(read()) for read in narrow], last()))
    pairs = kind.endswith("x2")
    element = kind[:-2] if pairs else kind
    if not pairs and element != "bf16":
        readers = [o.read(i) for i in range(1, count + 1)]
        return lambda: write(function(*[read() for read in readers]))
    readers = [o.read(i, f"b{o.bits}") for i in range(1, count + 1)]
    bits = o.bits // (2 if pairs else 1)
    on_bits = _on_bits(o.op, element, function)

    def run():
        operands, result = [read() for read in readers], 0
        for i in range(o.bits // bits):
            step = UNSIGNED[o.bits](i * bits)
            part = on_bits(*[(x >> step).astype(UNSIGNED[bits]) for x in operands])
            result = result | (part.astype(UNSIGNED[o.bits]) << step)
        write(result)

    return run


def _on_bits(op: str, element: str, function):
    """The operation on the bits of its operands."""
    if element != "bf16":
        dtype = FLOAT[element]
        bits = UNSIGNED[width(element)]
        return lambda *x: np.ascontiguousarray(function(*[np.ascontiguousarray(v).view(dtype) for v in x])).view(bits)
    if op == "neg":
        return lambda x: x ^ np.uint16(0x8000)
    if op == "abs":
        return lambda x: x & np.uint16(0x7FFF)
    if op == "fma":
        return lambda *x: fma_bf16(*[from_bf16(v) for v in x])
    return lambda *x: to_bf16(function(*[from_bf16(v) for v in x]))


# ---- conversions ---------------------------------------------------------------------------------------------------
ROUND_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def convert(o):
    if len(o.kinds) != 2 or o.has("rm", "rp"):
        raise o.unsupported
    to, source = o.kinds
    if to in ("bf16x2", "f16x2"):
        return _pack(o, to, source)
    toward_zero = o.has("rz")
    if (toward_zero and to != "bf16") or to == "tf32":
        raise o.unsupported
    write, read = o.write(), o.read(1, "b16" if source == "bf16" else source)
    from_float, to_float = source in FLOAT or source == "bf16", to in FLOAT or to == "bf16"
    rounding = next((ROUND_TO_INTEGER[word] for word in o.modifiers if word in ROUND_TO_INTEGER), None)
    flushes = flush if o.has("ftz") else lambda x: x

    def run():
        x = from_bf16(read()) if source == "bf16" else read()
        x = flushes(x)
        if from_float and rounding:
            x = rounding(x)
        if to == "bf16":
            x = to_bf16(x.astype(np.float32), toward_zero)
        elif to_float:
            x = x.astype(FLOAT[to])
            if o.has("sat"):
                x = np.clip(np.where(np.isnan(x), 0, x), 0, 1).astype(x.dtype)
            x = flushes(x)
        elif from_float:
            x = _saturated(x.astype(WIDE), integer(to, width(to)))
        else:
            if o.has("sat"):
                limits = np.iinfo(integer(to, width(to)))
                x = np.clip(x, limits.min, limits.max)
            if width(to) != width(source):
                x = x.astype(integer(source, width(to)))
        write(x)

    return run


def _saturated(x, dtype):
    """Float to integer: the nearest there is, 0 for NaN."""
    limits = np.iinfo(dtype)
    too_large = x >= float(limits.max)
    inside = np.where(np.isnan(x) | too_large, 0, np.maximum(x, float(limits.min))).astype(dtype)
    return np.where(too_large, dtype(limits.max), inside)


def _pack(o, to, source):
    toward_zero = o.has("rz")
    if source != "f32" or o.has("satfinite") or (toward_zero and to == "f16x2"):
        raise o.unsupported
    high, low, write = o.read(1, "f32"), o.read(2, "f32"), o.write()

    def half(x):
        x = np.where(x < 0, np.float32(0), x) if o.has("relu") else x
        if to == "bf16x2":
            return to_bf16(x, toward_zero).astype(np.uint32)
        return np.ascontiguousarray(x.astype(np.float16)).view(np.uint16).astype(np.uint32)

    return lambda: write(half(low()) | (half(high()) << np.uint32(16)))
