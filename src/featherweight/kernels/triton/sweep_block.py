"""One block of columns, walked by one Triton launch: rows are independent, so every program takes some of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels.keeping import LIMITS, Keeping
from featherweight.kernels.narrow import Narrow
from featherweight.kernels.triton.columns import (
    BFLOAT16,
    INTEGER,
    NARROW,
    REAL,
    ROUNDER,
    apart,
    correct,
    feed,
    load_scalar,
    load_tile,
    store_columns,
    to_dtype,
    to_narrow,
    to_residual,
)

#: Rows of one program (one for each thread), columns that a thread holds at once, and warps.
ROWS, SUB_BLOCK, WARPS = 32, 16, 1

ROUNDINGS = {"integer": 0, "real": 1, torch.bfloat16: 2, torch.float16: 3, torch.float32: 4}


@triton.jit
def decide(
    t, s, z, dropped, largest_code, has_dropped: tl.constexpr, rounding: tl.constexpr, bits: tl.constexpr,
    mantissa: tl.constexpr, smallest_exponent: tl.constexpr, largest: tl.constexpr,
):  # fmt: skip
    """`ŵ` and its code for the values `t` of one column."""
    if rounding == INTEGER:
        level = tl.minimum(tl.maximum(tl.div_rn(t, s), -z), largest_code - z)
        level = (level + ROUNDER) - ROUNDER
        if has_dropped:
            level = tl.where(dropped > 0, 0.0, level)
        code = level + z
        w_hat = level * s
    elif rounding == REAL:
        code = tl.minimum(tl.maximum(tl.div_rn(t, s) + z, 0.0), largest_code)
        code = (code + ROUNDER) - ROUNDER
        w_hat = (code - z) * s
    elif rounding == NARROW:
        number, code = to_narrow(tl.div_rn(t, s), bits, mantissa, smallest_exponent, largest)
        if has_dropped:
            number, code = tl.where(dropped > 0, 0.0, number), tl.where(dropped > 0, 0.0, code)
        w_hat = number * s
    else:
        code = z
        w_hat = to_dtype(t, rounding)
        if has_dropped:
            w_hat = tl.where(dropped > 0, 0.0, w_hat)
    return w_hat, code


@triton.jit
def keep(t, s, z, r, w_hat, code, largest_code, threshold, limit, narrow: tl.constexpr):
    """`ŵ` and code where a weight is kept, where that is, and its residual."""
    out = r * (t - w_hat) * (t - w_hat) > threshold
    of_zero = (tl.minimum(tl.maximum(z, 0.0), largest_code) + ROUNDER) - ROUNDER
    dense = (of_zero - z) * s
    left = to_residual(tl.minimum(tl.maximum(t - dense, -limit), limit), narrow)
    return tl.where(out, dense + left.to(tl.float32), w_hat), tl.where(out, of_zero, code), out, left


@triton.jit
def walk_columns(
    start, s, z, target, target_stride, original, original_stride, feedback, feedback_stride, importance, scale, zero, group,
    dropped, dropped_stride, codes, codes_stride, error, error_stride, kept, kept_stride, residual, residual_stride,
    columns, rows, row, inside, largest_code, threshold, limit, has_dropped: tl.constexpr, rounding: tl.constexpr,
    has_keeping: tl.constexpr, narrow: tl.constexpr, one_grid: tl.constexpr, rows_each: tl.constexpr, width: tl.constexpr,
    even: tl.constexpr, bits: tl.constexpr, mantissa: tl.constexpr, smallest_exponent: tl.constexpr, largest: tl.constexpr,
):  # fmt: skip
    """Walk `width` columns on the grid `s`, `z`, or where these are not `one_grid` each on its own; returns their cost."""
    values = correct(
        target, target_stride, feedback, feedback_stride, error, error_stride, start, columns, row, inside, width, rows_each
    )
    weights = apart(tl.trans(load_tile(original, original_stride, start, columns, row, inside, width)), width, rows_each)
    if has_dropped:
        drops = apart(tl.trans(load_tile(dropped, dropped_stride, start, columns, row, inside, width)), width, rows_each)
    all_codes, all_decoded, all_errors, all_kept, all_left = (), (), (), (), ()
    cost = tl.zeros_like(s)
    for step in tl.static_range(width):
        exists = start + step < columns
        if not one_grid:
            index = tl.load(group + start + step, mask=exists, other=0)
            s = tl.load(scale + index * rows + row, mask=inside, other=1.0)
            z = tl.load(zero + index * rows + row, mask=inside, other=0.0)
        t = values[step]
        r = load_scalar(importance, start + step, columns, even)
        drop = t
        if has_dropped:
            drop = drops[step].to(tl.float32)
        w_hat, code = decide(t, s, z, drop, largest_code, has_dropped, rounding, bits, mantissa, smallest_exponent, largest)
        if has_keeping:
            w_hat, code, out, left = keep(t, s, z, r, w_hat, code, largest_code, threshold, limit, narrow)
            all_kept, all_left = all_kept + (out.to(tl.float32),), all_left + (left,)
        e = weights[step] - w_hat
        cost += r * (t - w_hat) * (t - w_hat)
        all_codes, all_decoded, all_errors = all_codes + (code,), all_decoded + (w_hat,), all_errors + (e,)
        values = feed(values, feedback, feedback_stride, start, step, columns, e, width, even)
    store_columns(target, target_stride, start, columns, row, inside, all_decoded, width, rows_each)
    store_columns(error, error_stride, start, columns, row, inside, all_errors, width, rows_each)
    if rounding < BFLOAT16 or rounding == NARROW:
        store_columns(codes, codes_stride, start, columns, row, inside, all_codes, width, rows_each)
    if has_keeping:
        store_columns(kept, kept_stride, start, columns, row, inside, all_kept, width, rows_each)
        store_columns(residual, residual_stride, start, columns, row, inside, all_left, width, rows_each)
    tl.debug_barrier()  # the errors just stored are loaded again, by other threads, for the next columns
    return cost


@triton.jit
def _walk(
    target, original, feedback, importance, scale, zero, group, dropped, codes, error, loss, kept, residual,
    columns, rows, target_stride, original_stride, feedback_stride, dropped_stride, codes_stride, error_stride,
    kept_stride, residual_stride, largest_code, threshold, limit, has_dropped: tl.constexpr, rounding: tl.constexpr,
    has_keeping: tl.constexpr, narrow: tl.constexpr, one_grid: tl.constexpr, rows_each: tl.constexpr, width: tl.constexpr,
    even: tl.constexpr, bits: tl.constexpr, mantissa: tl.constexpr, smallest_exponent: tl.constexpr, largest: tl.constexpr,
):  # fmt: skip
    """The arguments of `sweep_block` as pointers; the strides are those of the first dimension."""
    row = tl.program_id(0) * rows_each + tl.arange(0, rows_each)
    inside = row < rows
    cost = tl.zeros([rows_each], dtype=tl.float32)
    for start in range(0, columns, width):
        index = tl.load(group + start)
        s = tl.load(scale + index * rows + row, mask=inside, other=1.0)
        z = tl.load(zero + index * rows + row, mask=inside, other=0.0)
        cost += walk_columns(
            start, s, z, target, target_stride, original, original_stride, feedback, feedback_stride, importance, scale, zero,
            group, dropped, dropped_stride, codes, codes_stride, error, error_stride, kept, kept_stride, residual,
            residual_stride, columns, rows, row, inside, largest_code, threshold, limit, has_dropped, rounding, has_keeping,
            narrow, one_grid, rows_each, width, even, bits, mantissa, smallest_exponent, largest,
        )  # fmt: skip
    tl.store(loss + row, tl.load(loss + row, mask=inside, other=0.0) + cost, mask=inside)


def sweep_block(
    target: Tensor,
    original: Tensor,
    feedback: Tensor,
    importance: Tensor,
    scale: Tensor,
    zero: Tensor,
    group: Tensor,
    dropped: Tensor | None,
    largest_code: int,
    codes: Tensor,
    error: Tensor,
    loss: Tensor,
    rounding: str | torch.dtype | Narrow = "integer",
    keeping: Keeping | None = None,
    run: int = 1,
) -> None:
    """As `featherweight.kernels.reference.sweep_block`, the same arguments; float32 throughout, no plain TF32.

    The last dimension of every tensor is contiguous. Each sub-block of columns first takes the errors of the earlier
    ones by one product, then is walked in registers.
    """
    for name, tensor in (("target", target), ("original", original), ("feedback", feedback), ("error", error)):
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} has strides {tensor.stride()}; its last dimension must be contiguous")
    columns, rows = target.shape
    mask = codes if dropped is None else dropped.view(torch.uint8)
    kept, residual = (codes, error) if keeping is None else (keeping.kept.view(torch.uint8), keeping.residual)
    threshold, narrow = (0.0, False) if keeping is None else (keeping.threshold, keeping.narrow)
    if isinstance(rounding, (str, torch.dtype)):
        how, form = ROUNDINGS[rounding], (0, 0, 0, 0.0)
    else:
        how, form = NARROW.value, (rounding.bits, rounding.mantissa, rounding.smallest_exponent, rounding.largest)
    _walk[(triton.cdiv(rows, ROWS),)](
        target, original, feedback, importance, scale, zero, group, mask, codes, error, loss, kept, residual,
        columns, rows, target.stride(0), original.stride(0), feedback.stride(0), mask.stride(0), codes.stride(0),
        error.stride(0), kept.stride(0), residual.stride(0), float(largest_code), threshold, LIMITS[narrow],
        dropped is not None, how, keeping is not None, narrow, run % SUB_BLOCK == 0 or run >= columns, ROWS, SUB_BLOCK,
        columns % SUB_BLOCK == 0, *form, num_warps=WARPS,
    )  # fmt: skip
