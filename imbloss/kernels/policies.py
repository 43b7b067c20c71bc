"""The mathematics of the losses in Triton (docs/math.md): what csrc/policies.h is on CPU, under the same names.

A policy turns (log p, p, q) of a class into the loss's value and its slope d value / d log p. Accuracy is that of
csrc/vmath.h: the GPU's own lg2.approx loses all digits near 1, and ex2.approx is good for 2 ulp.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def log_parts(x):
    """x = 2^exponent * m with m in [2/3, 4/3): exponent, log m."""
    two_thirds: tl.constexpr = 0x3F2AAAAB
    bits = x.to(tl.int32, bitcast=True) - two_thirds
    exponent = (bits >> 23).to(tl.float32)
    f = ((bits & 0x7FFFFF) + two_thirds).to(tl.float32, bitcast=True) - 1.0
    tail = 0.13984436368281208 + f * -0.12891685049795136
    tail = -0.12184261014322666 + f * tail
    tail = 0.14005869099385768 + f * tail
    tail = -0.16680487348484887 + f * tail
    tail = 0.20010405911526426 + f * tail
    tail = -0.24999797672948273 + f * tail
    tail = 0.33333215982629064 + f * tail
    square = f * f
    log_m = f + (square * f * tail - square * 0.5)
    return exponent, log_m + x * 0.0  # the bits of a NaN would come out as a number


@triton.jit
def log(x):
    exponent, log_m = log_parts(x)
    return exponent * LN2 + log_m


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0."""
    s = 1.0 + x
    return log(s) + tl.div_rn(x - (s - 1.0), s)  # the last term is what 1 + x rounded away


@triton.jit
def power(x, exponent, WHOLE: tl.constexpr):
    """x^exponent for 0 <= x <= 1; 0^0 is 1. WHOLE is the exponent where that is known to be 0, 1, 2 or 3, else -1."""
    if WHOLE == 0:
        y = tl.zeros_like(x) + 1.0
    elif WHOLE == 1:
        y = x
    elif WHOLE == 2:
        y = x * x
    elif WHOLE == 3:
        y = x * x * x
    else:
        e, log_m = log_parts(x)
        y = tl.exp2(exponent * (e + log_m * LOG2E))
        y = tl.where(x == 0.0, tl.where(exponent == 0.0, 1.0, 0.0), y)
    return y


@triton.jit
def focal(log_p, p, q, gamma, args, WHOLE: tl.constexpr):
    """q^gamma (-log p): Lin et al. 2017, eq. 5. With `detach`, q^gamma counts as a constant in the gradient."""
    detach = args[0]
    if WHOLE == 0:
        value = -log_p
        slope = tl.zeros_like(log_p) - 1.0
    else:
        factor = power(q, gamma, WHOLE)
        value = -(factor * log_p)
        if WHOLE > 0:  # q^(gamma - 1) is harmless, and saves a division
            p_log_p = tl.where(p == 0.0, 0.0, p * log_p)
            slope = power(q, gamma - 1.0, WHOLE - 1) * (gamma * p_log_p - q)
        else:
            ratio = tl.where(q == 0.0, -1.0, tl.div_rn(log_p, q))  # log p / q -> -1 at p = 1
            slope = factor * (gamma * tl.where(p == 0.0, 0.0, p * ratio) - 1.0)  # p log p -> 0 at p = 0
        slope = tl.where(detach != 0.0, -factor, slope)
    return value, slope


@triton.jit
def poly(log_p, p, q, gamma, args, WHOLE: tl.constexpr):
    """focal + epsilon q^(gamma + 1): Leng et al. 2022, Poly-1."""
    epsilon = args[0]
    value, slope = focal(log_p, p, q, gamma, (0.0,), WHOLE)
    added = epsilon * power(q, gamma, WHOLE)
    return value + added * q, slope - added * (gamma + 1.0) * p


POLICIES = {"focal": focal, "poly": poly}  # as in csrc/policies.h
