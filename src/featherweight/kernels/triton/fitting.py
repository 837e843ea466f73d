"""Fitting uniform grids inside a kernel: a thread has a row, and reads its columns again for each set of candidates."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from featherweight.kernels.fitting import Fitting
from featherweight.kernels.triton.columns import BFLOAT16, FLOAT16, ROUNDER, apart, load_scalar, load_tile, to_dtype

#: `SHRINKS`, `MOVES` and the rest of `featherweight.grids.search`, as counts and steps.
SHRINKS: Any = tl.constexpr(9)
STEP: Any = tl.constexpr(0.08)
SMALLEST_SHRINK: Any = tl.constexpr(0.05)
REFITS: Any = tl.constexpr(2)

#: `NORM`, and the shrink factors `1 − i / STEPS` that are tried by it, so many at once.
NORM: Any = tl.constexpr(2.4)
FINE_STEP: Any = tl.constexpr(0.01)
FINE_SHRINKS: Any = tl.constexpr(80)
TRIED: Any = tl.constexpr(8)

#: What `fit` goes by.
HOW = {"minmax": 0, "weighted": 1, "mse": 2}

#: Columns read at once.
AT_ONCE: Any = tl.constexpr(4)

#: As the kernels tell scale dtypes apart, and the smallest and largest scale of each.
SCALES = {torch.bfloat16: BFLOAT16.value, torch.float16: FLOAT16.value, torch.float32: 4}


def constants(fitting: Fitting) -> tuple[int, bool, int, int, float, float]:
    """The compile-time arguments of `fit`: what it goes by, symmetric, largest code, scale dtype, smallest and largest scale."""
    return (
        HOW[fitting.by],
        fitting.symmetric,
        fitting.largest_code,
        SCALES[fitting.scale_dtype],
        *fitting.scale_limits(),
    )


@triton.jit
def store_scale(scale, dtype: tl.constexpr, smallest: tl.constexpr, largest: tl.constexpr):
    """`featherweight.grids.uniform.store_scale`."""
    magnitude = to_dtype(tl.minimum(tl.maximum(tl.abs(scale), smallest), largest), dtype)
    return tl.where(scale < 0, -magnitude, magnitude)


@triton.jit
def with_scale(
    scale, low, symmetric: tl.constexpr, largest_code: tl.constexpr, dtype: tl.constexpr, smallest: tl.constexpr,
    largest: tl.constexpr,
):  # fmt: skip
    """`UniformGrid.with_scale`: the stored scale and the zero point."""
    scale = store_scale(scale, dtype, smallest, largest)
    if symmetric:
        zero = tl.zeros_like(scale) + (largest_code + 1) / 2
    else:
        zero = tl.minimum(tl.maximum(tl.div_rn(-low, scale), 0.0), largest_code)
        zero = (zero + ROUNDER) - ROUNDER
    return scale, zero


@triton.jit
def read(values, stride, start, last, row, inside):
    """`AT_ONCE` columns of a matrix `[columns, rows]`; 0 beyond `last`."""
    return apart(tl.trans(load_tile(values, stride, start, last, row, inside, AT_ONCE)), AT_ONCE, row.shape[0])


@triton.jit
def ends(values, stride, first, last, row, inside, symmetric: tl.constexpr):
    """`UniformGrid.ends`."""
    low, high = tl.zeros(row.shape, dtype=tl.float32), tl.zeros(row.shape, dtype=tl.float32)
    for start in range(first, last, AT_ONCE):
        columns = read(values, stride, start, last, row, inside)
        for k in tl.static_range(AT_ONCE):
            low, high = tl.minimum(low, columns[k]), tl.maximum(high, columns[k])
    if symmetric:
        high = tl.maximum(-low, high)
        low = tl.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    return tl.where(empty, -1.0, low), tl.where(empty, 1.0, high)


@triton.jit
def errors_of(
    values, stride, first, last, row, inside, importance, has_importance: tl.constexpr, scales, zeros, count: tl.constexpr,
    largest_code: tl.constexpr, by_norm: tl.constexpr = False,
):  # fmt: skip
    """`Σ importance (ŵ − w)²` of each of `count` candidates, or `Σ |ŵ − w|^NORM`."""
    inverses, sums = (), ()
    for c in tl.static_range(count):
        inverses, sums = inverses + (1.0 / scales[c],), sums + (tl.zeros(row.shape, dtype=tl.float32),)
    for start in range(first, last, AT_ONCE):
        columns = read(values, stride, start, last, row, inside)
        for k in tl.static_range(AT_ONCE):
            weigh = (start + k < last).to(tl.float32)
            if has_importance:
                weigh = load_scalar(importance, start + k, last, False)
            added = ()
            for c in tl.static_range(count):
                level = tl.minimum(tl.maximum(columns[k] * inverses[c], -zeros[c]), largest_code - zeros[c])
                level = (level + ROUNDER) - ROUNDER
                away = level * scales[c] - columns[k]
                if by_norm:
                    cost = tl.where(start + k < last, tl.exp2(tl.log2(tl.abs(away)) * NORM), 0.0)
                else:
                    cost = weigh * away * away
                added = added + (sums[c] + cost,)
            sums = added
    return sums


@triton.jit
def refitted(
    values, stride, first, last, row, inside, importance, has_importance: tl.constexpr, scale, zero, largest_code: tl.constexpr
):
    """The scale `Σ i w c / Σ i c²` that suits the present codes best; unchanged where they determine none."""
    inverse = 1.0 / scale
    above, below = tl.zeros(row.shape, dtype=tl.float32), tl.zeros(row.shape, dtype=tl.float32)
    for start in range(first, last, AT_ONCE):
        columns = read(values, stride, start, last, row, inside)
        for k in tl.static_range(AT_ONCE):
            weigh = (start + k < last).to(tl.float32)
            if has_importance:
                weigh = load_scalar(importance, start + k, last, False)
            level = tl.minimum(tl.maximum(columns[k] * inverse, -zero), largest_code - zero)
            level = (level + ROUNDER) - ROUNDER
            above += weigh * level * columns[k]
            below += weigh * level * level
    usable = (below > 0) & (above != 0)
    return tl.where(usable, tl.div_rn(above, tl.where(usable, below, 1.0)), scale)


@triton.jit
def better_of(best, tried, count: tl.constexpr):
    """The best of `count` candidates where it is strictly better than the best so far, each `(error, scale, zero, mark)`."""
    error, scale, zero, mark = best
    for c in tl.static_range(count):
        better = tried[0][c] < error
        error, scale = tl.where(better, tried[0][c], error), tl.where(better, tried[1][c], scale)
        zero, mark = tl.where(better, tried[2][c], zero), tl.where(better, tried[3][c], mark)
    return error, scale, zero, mark


@triton.jit
def fit(
    values, stride, first, last, row, inside, importance, has_importance: tl.constexpr, how: tl.constexpr,
    symmetric: tl.constexpr, largest_code: tl.constexpr, dtype: tl.constexpr, smallest: tl.constexpr, largest: tl.constexpr,
):  # fmt: skip
    """Scale and zero of columns `first … last` of `values`, by "minmax" or by a search of `featherweight.grids.search`."""
    low, high = ends(values, stride, first, last, row, inside, symmetric)
    width = tl.div_rn(high - low, tl.zeros_like(low) + largest_code)
    if how == 0:
        return with_scale(width, low, symmetric, largest_code, dtype, smallest, largest)
    ones = tl.zeros_like(low) + 1.0
    best = (ones * float("inf"), ones, ones - 1.0, ones)
    if how == 2:
        for tried in range(0, FINE_SHRINKS, TRIED):
            scales, zeros, marks = (), (), ()
            for c in tl.static_range(TRIED):
                shrink = ones - FINE_STEP * (tried + c)
                bottom, top = shrink * low, shrink * high
                s, z = with_scale(
                    tl.div_rn(top - bottom, ones * largest_code), bottom, symmetric, largest_code, dtype, smallest, largest
                )
                scales, zeros, marks = scales + (s,), zeros + (z,), marks + (shrink,)
            errors = errors_of(
                values, stride, first, last, row, inside, importance, False, scales, zeros, TRIED, largest_code, True
            )
            best = better_of(best, (errors, scales, zeros, marks), TRIED)
        return best[1], best[2]
    signs: tl.constexpr = 2 if symmetric else 1
    scales, zeros, marks = (), (), ()
    for sign in tl.static_range(signs):
        for c in tl.static_range(SHRINKS):
            shrink = tl.zeros_like(low) + (1.0 - STEP * c) * (1 - 2 * sign)
            s, z = with_scale(shrink * width, shrink * low, symmetric, largest_code, dtype, smallest, largest)
            scales, zeros, marks = scales + (s,), zeros + (z,), marks + (shrink,)
    errors = errors_of(
        values, stride, first, last, row, inside, importance, has_importance, scales, zeros, SHRINKS * signs, largest_code
    )
    best = better_of(best, (errors, scales, zeros, marks), SHRINKS * signs)
    if not symmetric:
        both = best[3]
        for end in tl.static_range(2):
            scales, zeros, marks = (), (), ()
            for c in tl.static_range(4):
                moved = tl.minimum(tl.maximum(both + STEP * (c - 2 if c < 2 else c - 1), SMALLEST_SHRINK), 1.0)
                if end == 0:
                    bottom, top = moved * low, both * high
                else:
                    bottom, top = best[3] * low, moved * high
                s, z = with_scale(
                    tl.div_rn(top - bottom, tl.zeros_like(low) + largest_code), bottom, symmetric, largest_code, dtype,
                    smallest, largest,
                )  # fmt: skip
                if end == 1:
                    moved = best[3]
                scales, zeros, marks = scales + (s,), zeros + (z,), marks + (moved,)
            errors = errors_of(
                values, stride, first, last, row, inside, importance, has_importance, scales, zeros, 4, largest_code
            )
            best = better_of(best, (errors, scales, zeros, marks), 4)
    for _ in tl.static_range(REFITS):
        scale = refitted(values, stride, first, last, row, inside, importance, has_importance, best[1], best[2], largest_code)
        scales, zeros = (store_scale(scale, dtype, smallest, largest),), (best[2],)
        errors = errors_of(values, stride, first, last, row, inside, importance, has_importance, scales, zeros, 1, largest_code)
        best = better_of(best, (errors, scales, zeros, (best[3],)), 1)
    return best[1], best[2]
