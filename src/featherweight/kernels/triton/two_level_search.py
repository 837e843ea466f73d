"""The searches of `featherweight.grids.two_level_search` for real zeros, inside a kernel: a thread has a row and all of its group."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from featherweight.kernels.triton.columns import ROUNDER

#: `SHRINKS` as a count and a step, and the rest of `featherweight.grids.two_level_search`.
SHRINKS: Any = tl.constexpr(9)
STEP: Any = tl.constexpr(0.075)
REFITS: Any = tl.constexpr(4)
NEAR: Any = tl.constexpr(2)

#: As in `featherweight.grids.two_level`; the smallest normal number.
SMALLEST_SCALE: Any = tl.constexpr(1e-9)
TINY: Any = tl.constexpr(2.0**-126)


@triton.jit
def between(low, high, largest_code):
    """`TwoLevelGrid.between` with a real zero."""
    flat = low == high
    low, high = tl.where(flat, tl.minimum(low, 0.0), low), tl.where(flat, tl.maximum(high, 0.0), high)
    scale = tl.maximum(tl.div_rn(high - low, tl.zeros_like(low) + largest_code), SMALLEST_SCALE)
    return scale, tl.div_rn(-low, scale)


@triton.jit
def nearest_code(value, inverse, zero, largest_code):
    """The code of the level next to `value`, but for ties, where a product with the inverse scale may go the other way."""
    code = tl.minimum(tl.maximum(value * inverse + zero, 0.0), largest_code)
    return (code + ROUNDER) - ROUNDER


@triton.jit
def error_of(values, weighs, scale, zero, largest_code, width: tl.constexpr):
    """`Σ importance (ŵ − w)²`."""
    inverse, total = 1.0 / tl.maximum(scale, SMALLEST_SCALE), tl.zeros_like(scale)
    for k in tl.static_range(width):
        away = (nearest_code(values[k], inverse, zero, largest_code) - zero) * scale - values[k]
        total += weighs[k] * away * away
    return total


@triton.jit
def refitted(values, weighs, scale, zero, centre, whole, largest_code, width: tl.constexpr):
    """The line through the pairs of code and value; unchanged where they determine none."""
    inverse = 1.0 / tl.maximum(scale, SMALLEST_SCALE)
    codes, mean = (), tl.zeros_like(scale)
    for k in tl.static_range(width):
        code = nearest_code(values[k], inverse, zero, largest_code)
        codes, mean = codes + (code,), mean + weighs[k] * code
    mean, above, below = mean / whole, tl.zeros_like(scale), tl.zeros_like(scale)
    for k in tl.static_range(width):
        level = codes[k] - mean
        above, below = above + level * (values[k] - centre) * weighs[k], below + level * level * weighs[k]
    usable = (below > 0) & (above > 0)
    fitted = tl.where(usable, tl.div_rn(above, tl.where(usable, below, 1.0)), scale)
    return fitted, tl.where(usable, mean - tl.div_rn(centre, fitted), zero)


@triton.jit
def search_range(values, weighs, low, high, largest_code, width: tl.constexpr):
    """`search_first_level`: scale and zero of the values between `low` and `high`."""
    middle, whole, centre = (low + high) / 2, tl.zeros_like(low), tl.zeros_like(low)
    for k in tl.static_range(width):
        whole, centre = whole + weighs[k], centre + weighs[k] * values[k]
    whole = tl.maximum(whole, TINY)
    centre = tl.div_rn(centre, whole)
    least, best_scale, best_zero = tl.zeros_like(low) + float("inf"), tl.zeros_like(low) + 1.0, tl.zeros_like(low)
    for turn in range(0, SHRINKS + REFITS):
        shrink = 1.0 - STEP * turn
        scale, zero = between(middle + (low - middle) * shrink, middle + (high - middle) * shrink, largest_code)
        if turn >= SHRINKS:
            scale, zero = refitted(values, weighs, best_scale, best_zero, centre, whole, largest_code, width)
        error = error_of(values, weighs, scale, zero, largest_code, width)
        better = error < least
        least, best_scale = tl.where(better, error, least), tl.where(better, scale, best_scale)
        best_zero = tl.where(better, zero, best_zero)
    return best_scale, best_zero


@triton.jit
def search_codes(
    values, weighs, scale_code, zero_code, scale_unit, scale_zero, zero_unit, zero_zero, largest_code,
    scale_levels: tl.constexpr, zero_levels: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """`search_codes` of pairs next to a scale's and a zero's code."""
    best_scale, best_zero, least = scale_code, zero_code, tl.zeros_like(scale_code) + float("inf")
    for first in range(-NEAR, NEAR + 1):
        for second in range(-NEAR, NEAR + 1):
            scale = tl.minimum(tl.maximum(scale_code + first, 0.0), scale_levels)
            zero = tl.minimum(tl.maximum(zero_code + second, 0.0), zero_levels)
            error = error_of(
                values, weighs, (scale - scale_zero) * scale_unit, (zero - zero_zero) * zero_unit, largest_code, width
            )
            better = error < least
            least, best_scale = tl.where(better, error, least), tl.where(better, scale, best_scale)
            best_zero = tl.where(better, zero, best_zero)
    return best_scale, best_zero
