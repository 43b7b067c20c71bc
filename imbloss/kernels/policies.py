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
    return log(1.0 + x) + log1p_tail(x)


@triton.jit
def log1p_tail(x):
    """What 1 + x rounds away of log(1 + x); a division that is not exact will do."""
    s = 1.0 + x
    return (x - (s - 1.0)) / s


@triton.jit
def reciprocal(x):
    """1 / x for an x that is neither tiny nor huge: one step of Newton's on a division that is good for 2 ulp."""
    y = 1.0 / x
    return tl.fma(y, tl.fma(-x, y, 1.0), y)


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


# ---- elements ------------------------------------------------------------------------------------------------------
@triton.jit
def sigmoid(x):
    """log p, log q, p, q, each to full relative precision: p = sigmoid(x), q = 1 - p."""
    magnitude = tl.abs(x)
    e = tl.exp2(magnitude * -LOG2E)
    s = 1.0 + e
    larger = reciprocal(s)
    rest = log(s) + (e - (s - 1.0)) * larger
    smaller = e * larger
    negative = x < 0.0
    log_p = tl.where(negative, -(magnitude + rest), -rest)
    log_q = tl.where(negative, -rest, -(magnitude + rest))
    return log_p, log_q, tl.where(negative, smaller, larger), tl.where(negative, larger, smaller)


@triton.jit
def _times(share, value):
    """share * value: 0 without a share, even of an infinite value."""
    return tl.where(share == 0.0, 0.0, share * value)


@triton.jit
def _finite(log_p):
    """For products with a p of 0."""
    return tl.where(log_p < -1e30, -1e30, log_p)


@triton.jit
def _focal_factor(q, log_q, gamma, WHOLE: tl.constexpr):
    """q^gamma from log q, which is more exact than `power`; 0^0 is 1."""
    return power(q, gamma, WHOLE) if WHOLE >= 0 else tl.exp2(gamma * _finite(log_q) * LOG2E)


@triton.jit
def _binary_cross_entropy(log_p, log_q, p, q, t, pos_weight):
    """Of a target t, and its slope."""
    value = _times(pos_weight * t, -log_p) + _times(1.0 - t, -log_q)
    return value, (1.0 - t) * p - pos_weight * t * q


# A policy has two ways to value and slope of an element, as in csrc/policies.h. Hard: the target is 0 or 1; log p,
# log q, p and q are those of u, x for target 1 and -x for 0, and so is the slope. Soft: the target is t, in [0, 1].
@triton.jit
def sigmoid_focal(log_p, log_q, p, q, positive, gamma, args, WHOLE: tl.constexpr):
    """q_t^gamma BCE, q_t = p (1 - t) + q t: Lin et al. 2017, eq. 5, with torchvision's meaning of soft targets."""
    factor = _focal_factor(q, log_q, gamma, WHOLE)
    return -(factor * log_p), factor * (gamma * p * _finite(log_p) - q)


@triton.jit
def sigmoid_focal_soft(log_p, log_q, p, q, t, pos_weight, gamma, args, WHOLE: tl.constexpr):
    q_t = tl.maximum((1.0 - t) * p + t * q, 0.0, propagate_nan=tl.PropagateNan.ALL)
    factor = power(q_t, gamma, WHOLE)
    bce, slope = _binary_cross_entropy(log_p, log_q, p, q, t, pos_weight)
    moved = tl.where(p * q == 0.0, 0.0, _times(tl.div_rn(p * q, q_t), bce) * (1.0 - 2.0 * t))
    return factor * bce, factor * (gamma * moved + slope)


@triton.jit
def asymmetric(log_p, log_q, p, q, positive, gamma, args, WHOLE: tl.constexpr):
    """-t q^gamma log p - (1 - t) p_m^gamma_neg log(1 - p_m), p_m = max(p - clip, 0): Ridnik et al. 2021, eq. 4 to 7.

    Here q_m, what the clip leaves of q, and 1 - q_m = p + clip belong to the negatives alone.
    """
    gamma_neg, clip, detach = args[0], args[1], args[2]
    clipped = (positive == 0) & (clip != 0.0)
    exponent = tl.where(positive, gamma, gamma_neg)
    q_m = tl.where(clipped, tl.maximum(q - clip, 0.0, propagate_nan=tl.PropagateNan.ALL), q)
    factor = tl.where(clipped, power(q_m, exponent, -1), _focal_factor(q, log_q, exponent, -1))
    cut = q_m == 0.0
    rest = tl.where(clipped, p + clip, 1.0)
    clipped_loss = log1p(tl.div_rn(q_m, rest))
    loss = tl.where(clipped, clipped_loss, -log_p)
    slope = tl.where(clipped, tl.where(cut, 0.0, tl.div_rn(p * q, rest)), q)
    clipped_moved = tl.where(cut, 0.0, -p * q * tl.div_rn(clipped_loss, tl.where(cut, 1.0, q_m)))
    moved = tl.where(clipped, clipped_moved, p * _finite(log_p))
    return factor * loss, tl.where(detach != 0.0, -(factor * slope), factor * (exponent * moved - slope))


@triton.jit
def asymmetric_soft(log_p, log_q, p, q, t, pos_weight, gamma, args, WHOLE: tl.constexpr):
    one, one_slope = asymmetric(log_p, log_q, p, q, t == t, gamma, args, WHOLE)
    zero, zero_slope = asymmetric(log_q, log_p, q, p, t != t, gamma, args, WHOLE)
    share = pos_weight * t
    return _times(share, one) + _times(1.0 - t, zero), share * one_slope - (1.0 - t) * zero_slope


@triton.jit
def quality_focal(log_p, log_q, p, q, positive, gamma, args, WHOLE: tl.constexpr):
    """|t - p|^beta BCE, beta in the place of gamma: Li et al. 2020, eq. 3."""
    return sigmoid_focal(log_p, log_q, p, q, positive, gamma, args, WHOLE)


@triton.jit
def quality_focal_soft(log_p, log_q, p, q, t, pos_weight, gamma, args, WHOLE: tl.constexpr):
    excess = (1.0 - t) * p - t * q
    factor = power(tl.abs(excess), gamma, WHOLE)
    bce, slope = _binary_cross_entropy(log_p, log_q, p, q, t, pos_weight)
    moved = tl.where(excess == 0.0, 0.0, _times(tl.div_rn(p * q, tl.where(excess == 0.0, 1.0, excess)), bce))
    return factor * bce, factor * (gamma * moved + slope)


ELEMENT_POLICIES = {  # name -> (hard, soft), as in csrc/policies.h
    "sigmoid_focal": (sigmoid_focal, sigmoid_focal_soft),
    "asymmetric": (asymmetric, asymmetric_soft),
    "quality_focal": (quality_focal, quality_focal_soft),
}
