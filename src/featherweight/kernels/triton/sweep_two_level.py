"""One block of columns in SpQR's groups, fitted and walked by one Triton launch: a thread has a row and all of its group."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels.keeping import LIMITS, Keeping
from featherweight.kernels.triton.columns import FLOAT16, ROUNDER, apart, correct, feed, load_tile, store_columns, to_dtype
from featherweight.kernels.triton.fitting import store_scale
from featherweight.kernels.triton.sweep_block import ROWS, keep
from featherweight.kernels.triton.two_level_search import between, search_codes, search_range
from featherweight.kernels.two_level import GROUP, SecondLevel, TwoLevelFitting

#: As in `featherweight.grids.two_level`.
SMALLEST_SPREAD: Any = tl.constexpr(2.0**-10)

#: The numbers of float16.
SMALLEST_HALF: Any = tl.constexpr(2.0**-24)
LARGEST_HALF: Any = tl.constexpr(65504.0)


@triton.jit
def errors_between(values, weighs, low, high, largest_code, width: tl.constexpr):
    """The weighed squared error of every value on the grid between `low` and `high`."""
    scale, zero = between(low, high, largest_code)
    errors = ()
    for k in tl.static_range(width):
        code = tl.minimum(tl.maximum(tl.div_rn(values[k], scale) + zero, 0.0), largest_code)
        away = ((code + ROUNDER) - ROUNDER - zero) * scale - values[k]
        errors = errors + (weighs[k] * away * away,)
    return errors


@triton.jit
def others(errors, place, width: tl.constexpr):
    """The sum of all errors but that at `place`."""
    total = tl.zeros_like(errors[0])
    for k in tl.static_range(width):
        total += tl.where(place == k, 0.0, errors[k])
    return total


@triton.jit
def without_likely(values, weighs, threshold, largest_code, width: tl.constexpr):
    """`featherweight.solvers.outliers.replace_likely_outliers` for one row in each thread."""
    infinite = tl.zeros_like(values[0]) + float("inf")
    low, high, next_low, next_high = infinite, -infinite, infinite, -infinite
    at_low, at_high = tl.zeros_like(infinite), tl.zeros_like(infinite)
    for k in tl.static_range(width):
        value = values[k]
        next_low = tl.where(value < low, low, tl.minimum(next_low, value))
        next_high = tl.where(value > high, high, tl.maximum(next_high, value))
        at_low, at_high = tl.where(value < low, k * 1.0, at_low), tl.where(value > high, k * 1.0, at_high)
        low, high = tl.minimum(low, value), tl.maximum(high, value)
    own = errors_between(values, weighs, low, high, largest_code, width)
    base = others(own, -1.0, width)
    gain_low, gain_high = base, base
    for turn in range(0, 2):
        bottom, top = tl.where(turn == 0, next_low, low), tl.where(turn == 0, high, next_high)
        away = others(
            errors_between(values, weighs, bottom, top, largest_code, width), tl.where(turn == 0, at_low, at_high), width
        )
        gain_low, gain_high = tl.where(turn == 0, base - away, gain_low), base - away
    likely, count, total = (), tl.zeros_like(base), tl.zeros_like(base)
    for k in tl.static_range(width):
        gain = tl.where(at_high == k, gain_high, tl.where(at_low == k, gain_low, own[k]))
        kept = (gain <= threshold).to(tl.float32)
        likely, count, total = likely + (kept < 0.5,), count + kept, total + kept * values[k]
    mean, replaced = tl.div_rn(total, tl.maximum(count, 1.0)), ()
    for k in tl.static_range(width):
        replaced = replaced + (tl.where(likely[k], mean, values[k]),)
    return replaced


@triton.jit
def spread(blocks, rows: tl.constexpr, second: tl.constexpr):
    """A number for every `second` rows, `[rows / second]`, to all of them."""
    return tl.reshape(tl.broadcast_to(blocks[:, None], [rows // second, second]), [rows])


@triton.jit
def second_grid(values, inside, levels: tl.constexpr, grids, rows, rows_each: tl.constexpr, second: tl.constexpr):
    """`TwoLevelGrid._store`: codes of `values`, and the scale and zero of their second grids, which are written."""
    low = tl.min(tl.reshape(tl.where(inside, values, float("inf")), [rows_each // second, second]), 1)
    high = tl.max(tl.reshape(tl.where(inside, values, -float("inf")), [rows_each // second, second]), 1)
    flat = high - low <= tl.maximum(high, -low) * SMALLEST_SPREAD
    low, high = tl.where(flat, tl.minimum(low, 0.0), low), tl.where(flat, tl.maximum(high, 0.0), high)
    scale = store_scale(tl.div_rn(high - low, tl.zeros_like(low) + levels), FLOAT16, SMALLEST_HALF, LARGEST_HALF)
    zero = to_dtype(tl.minimum(tl.maximum(tl.div_rn(-low, scale), -LARGEST_HALF), LARGEST_HALF), FLOAT16)
    block = tl.program_id(0) * (rows_each // second) + tl.arange(0, rows_each // second)
    there = block * second < rows
    tl.store(grids + 2 * block, scale.to(tl.float16), mask=there)
    tl.store(grids + 2 * block + 1, zero.to(tl.float16), mask=there)
    own_scale, own_zero = spread(scale, rows_each, second), spread(zero, rows_each, second)
    code = tl.minimum(tl.maximum(tl.div_rn(values, own_scale) + own_zero, 0.0), levels)
    return (code + ROUNDER) - ROUNDER, own_scale, own_zero


@triton.jit
def group_grid(
    standing, weighs, gain, inside, scale_codes, zero_codes, scale_grids, zero_grids, row, rows, largest_code,
    scale_levels: tl.constexpr, zero_levels: tl.constexpr, leaves_out: tl.constexpr, weighted: tl.constexpr,
    rows_each: tl.constexpr, second: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """`KeepOutliers.start_group`: scale and zero of the columns `standing` as they are stored; the stored form is written."""
    if leaves_out:
        standing = without_likely(standing, weighs, gain, largest_code, width)
    low, high = standing[0], standing[0]
    for k in tl.static_range(1, width):
        low, high = tl.minimum(low, standing[k]), tl.maximum(high, standing[k])
    if weighted:
        s, z = search_range(standing, weighs, low, high, largest_code, width)
    else:
        s, z = between(low, high, largest_code)
    full = (((low != 0) | (high != 0)) & inside).to(tl.float32)  # rows of zeros take the mean of those that share a grid
    count = tl.maximum(tl.sum(tl.reshape(full, [rows_each // second, second]), 1), 1.0)
    mean_s = tl.div_rn(tl.sum(tl.reshape(full * s, [rows_each // second, second]), 1), count)
    mean_z = tl.div_rn(tl.sum(tl.reshape(full * z, [rows_each // second, second]), 1), count)
    s = tl.where(full > 0, s, spread(mean_s, rows_each, second))
    z = tl.where(full > 0, z, spread(mean_z, rows_each, second))
    s, scale_unit, scale_zero = second_grid(s, inside, scale_levels, scale_grids, rows, rows_each, second)
    z, zero_unit, zero_zero = second_grid(z, inside, zero_levels, zero_grids, rows, rows_each, second)
    if weighted:
        s, z = search_codes(
            standing, weighs, s, z, scale_unit, scale_zero, zero_unit, zero_zero, largest_code, scale_levels, zero_levels, width
        )
    tl.store(scale_codes + row, s.to(tl.uint8), mask=inside)
    tl.store(zero_codes + row, z.to(tl.uint8), mask=inside)
    return (s - scale_zero) * scale_unit, (z - zero_zero) * zero_unit


@triton.jit
def _fit_and_walk(
    target, original, feedback, importance, scale, zero, scale_codes, zero_codes, scale_grids, zero_grids, codes, error, loss,
    kept, residual, columns, rows, target_stride, original_stride, feedback_stride, codes_stride, error_stride, kept_stride,
    residual_stride, gain, threshold, limit, largest_code: tl.constexpr, scale_levels: tl.constexpr,
    zero_levels: tl.constexpr, leaves_out: tl.constexpr, weighted: tl.constexpr, has_keeping: tl.constexpr,
    narrow: tl.constexpr, rows_each: tl.constexpr, second: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """The arguments of `sweep_two_level` as pointers; the strides are those of the first dimension."""
    row = tl.program_id(0) * rows_each + tl.arange(0, rows_each)
    inside = row < rows
    cost = tl.zeros([rows_each], dtype=tl.float32)
    blocks = tl.cdiv(rows, second)
    for start in range(0, columns, width):
        number = start // width
        s, z = tl.zeros([rows_each], dtype=tl.float32) + 1.0, tl.zeros([rows_each], dtype=tl.float32)
        for turn in range(
            0, 2
        ):  # first without rounding, to see what the group is fitted on; one loop compiles faster than two
            final = inside & (turn == 1)
            values = correct(
                target, target_stride, feedback, feedback_stride, error, error_stride, start, columns, row, inside, width,
                rows_each,
            )  # fmt: skip
            weights = apart(
                tl.trans(load_tile(original, original_stride, start, columns, row, inside, width)), width, rows_each
            )
            standing, weighs, decoded, errors, all_codes, all_kept, all_left = (), (), (), (), (), (), ()
            for step in tl.static_range(width):
                t, r = values[step], tl.load(importance + start + step)
                code = tl.minimum(tl.maximum(tl.div_rn(t, s) + z, 0.0), largest_code)
                code = (code + ROUNDER) - ROUNDER
                w_hat = (code - z) * s
                if has_keeping:
                    w_hat, code, out, left = keep(t, s, z, r, w_hat, code, largest_code, threshold, limit, narrow)
                    all_kept, all_left = all_kept + (out.to(tl.float32),), all_left + (left,)
                w_hat = tl.where(turn == 0, t, w_hat)
                e = weights[step] - w_hat
                cost += r * (t - w_hat) * (t - w_hat)
                standing, weighs, decoded = standing + (t,), weighs + (r,), decoded + (w_hat,)
                errors, all_codes = errors + (e,), all_codes + (code,)
                values = feed(values, feedback, feedback_stride, start, step, columns, e, width, True)
            store_columns(target, target_stride, start, columns, row, final, decoded, width, rows_each)
            store_columns(error, error_stride, start, columns, row, final, errors, width, rows_each)
            store_columns(codes, codes_stride, start, columns, row, final, all_codes, width, rows_each)
            if has_keeping:
                store_columns(kept, kept_stride, start, columns, row, final, all_kept, width, rows_each)
                store_columns(residual, residual_stride, start, columns, row, final, all_left, width, rows_each)
            if turn == 0:
                s, z = group_grid(
                    standing, weighs, gain, inside, scale_codes + number * rows, zero_codes + number * rows,
                    scale_grids + 2 * number * blocks, zero_grids + 2 * number * blocks, row, rows, largest_code, scale_levels,
                    zero_levels, leaves_out, weighted, rows_each, second, width,
                )  # fmt: skip
            tl.debug_barrier()
        tl.store(scale + number * rows + row, s, mask=inside)
        tl.store(zero + number * rows + row, z, mask=inside)
    tl.store(loss + row, tl.load(loss + row, mask=inside, other=0.0) + cost, mask=inside)


def sweep_two_level(
    target: Tensor,
    original: Tensor,
    feedback: Tensor,
    importance: Tensor,
    scale: Tensor,
    zero: Tensor,
    second_level: SecondLevel,
    fitting: TwoLevelFitting,
    codes: Tensor,
    error: Tensor,
    loss: Tensor,
    keeping: Keeping | None = None,
) -> None:
    """As `featherweight.kernels.reference.sweep_two_level`, the same arguments."""
    columns, rows = target.shape
    rows_each = max(ROWS, fitting.second)
    kept, residual = (codes, error) if keeping is None else (keeping.kept.view(torch.uint8), keeping.residual)
    threshold, narrow = (0.0, False) if keeping is None else (keeping.threshold, keeping.narrow)
    _fit_and_walk[(triton.cdiv(rows, rows_each),)](
        target, original, feedback, importance, scale, zero, second_level.scale_codes, second_level.zero_codes,
        second_level.scale_grids, second_level.zero_grids, codes, error, loss, kept, residual, columns, rows, target.stride(0),
        original.stride(0), feedback.stride(0), codes.stride(0), error.stride(0), kept.stride(0), residual.stride(0),
        0.0 if fitting.gain is None else fitting.gain, threshold, LIMITS[narrow], fitting.largest_code, fitting.scale_levels,
        fitting.zero_levels, fitting.gain is not None, fitting.weighted, keeping is not None, narrow, rows_each, fitting.second, GROUP,
        num_warps=rows_each // ROWS,
    )  # fmt: skip
