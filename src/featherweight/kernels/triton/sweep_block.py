"""One block of columns, walked by one Triton launch: rows are independent, so every program takes some of them."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels.keeping import LIMITS, Keeping
from featherweight.kernels.narrow import Narrow

#: Rows of one program, columns that it holds in registers at once (32 of them spill), and its warps.
ROWS, SUB_BLOCK, WARPS = 32, 16, 1

#: `(x + ROUNDER) − ROUNDER` rounds float32 half-to-even while |x| < 2²².
ROUNDER: Any = tl.constexpr(12582912.0)


#: Ways to round, as the kernel tells them apart.
INTEGER: Any = tl.constexpr(0)
REAL: Any = tl.constexpr(1)
BFLOAT16: Any = tl.constexpr(2)
FLOAT16: Any = tl.constexpr(3)
NARROW: Any = tl.constexpr(5)
ROUNDINGS = {"integer": 0, "real": 1, torch.bfloat16: 2, torch.float16: 3, torch.float32: 4}


@triton.jit
def _to_dtype(value, rounding: tl.constexpr):
    """`value` rounded half-to-even to a dtype and back."""
    if rounding == BFLOAT16:
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        value = bits.to(tl.float32, bitcast=True)
    elif rounding == FLOAT16:
        value = value.to(tl.float16).to(tl.float32)
    return value


@triton.jit
def _to_narrow(value, bits: tl.constexpr, mantissa: tl.constexpr, smallest_exponent: tl.constexpr, largest: tl.constexpr):
    """The nearest number of a narrow format, ties to the even mantissa, and its bit pattern; that of −0 is 0."""
    size = tl.minimum(tl.abs(value), largest)
    exponent = tl.maximum((size.to(tl.int32, bitcast=True) >> 23) - 127, smallest_exponent)
    step = ((exponent - mantissa + 127) << 23).to(tl.float32, bitcast=True)
    steps = (tl.div_rn(size, step) + ROUNDER) - ROUNDER
    code = (exponent - smallest_exponent).to(tl.float32) * (1 << mantissa) + steps
    sign = (value < 0) & (steps > 0)
    return tl.where(value < 0, -steps * step, steps * step), tl.where(sign, code + (1 << (bits - 1)), code)


@triton.jit
def _pick(tile, here):
    """One column of `tile [columns, rows]`: the one where `here [columns, 1]` is true."""
    return tl.sum(tl.where(here, tile, 0.0), axis=0)


@triton.jit
def _rounded(value, narrow: tl.constexpr):
    """`value` as float16; with `narrow` one that is a float8_e5m2 number, whose bits are the upper half of float16's."""
    half = value.to(tl.float16)
    if narrow:
        bits = half.to(tl.uint16, bitcast=True).to(tl.uint32)
        bits = (bits + 0x7F + ((bits >> 8) & 1)) & 0xFF00
        half = bits.to(tl.uint16).to(tl.float16, bitcast=True)
    return half


@triton.jit
def _correct(value, feedback, error, start, here, row, columns, inside, feedback_stride, error_stride, width: tl.constexpr):
    """Add the feedback of the columns before `start` to `value [columns, rows]`."""
    for before in range(0, start, width):
        earlier = before + tl.arange(0, width)
        matrix = tl.load(
            feedback + earlier[None, :] * feedback_stride + here[:, None], mask=(here < columns)[:, None], other=0.0
        )
        errors = tl.load(error + earlier[:, None] * error_stride + row[None, :], mask=inside[None, :], other=0.0)
        value = tl.dot(matrix, errors, acc=value, input_precision="ieee")
    return value


@triton.jit
def _walk(
    target, original, feedback, importance, scale, zero, group, dropped, codes, error, loss, kept, residual,
    columns, rows, target_stride, original_stride, feedback_stride, dropped_stride, codes_stride, error_stride,
    kept_stride, residual_stride, largest_code, threshold, limit, has_dropped: tl.constexpr, rounding: tl.constexpr,
    has_keeping: tl.constexpr, narrow: tl.constexpr, rows_each: tl.constexpr, width: tl.constexpr, bits: tl.constexpr,
    mantissa: tl.constexpr, smallest_exponent: tl.constexpr, largest: tl.constexpr,
):  # fmt: skip
    """The arguments of `sweep_block` as pointers; the strides are those of the first dimension."""
    row = tl.program_id(0) * rows_each + tl.arange(0, rows_each)
    inside = row < rows
    lane = tl.arange(0, width)
    cost = tl.zeros([rows_each], dtype=tl.float32)
    for start in range(0, columns, width):
        here = start + lane
        mask = (here < columns)[:, None] & inside[None, :]
        value = tl.load(target + here[:, None] * target_stride + row[None, :], mask=mask, other=0.0)
        weight = tl.load(original + here[:, None] * original_stride + row[None, :], mask=mask, other=0.0)
        value = _correct(value, feedback, error, start, here, row, columns, inside, feedback_stride, error_stride, width)
        if has_dropped:
            drop = tl.load(dropped + here[:, None] * dropped_stride + row[None, :], mask=mask, other=0).to(tl.float32)
        code_tile = tl.zeros([width, rows_each], dtype=tl.float32)
        decoded_tile = tl.zeros([width, rows_each], dtype=tl.float32)
        error_tile = tl.zeros([width, rows_each], dtype=tl.float32)
        for step in tl.static_range(width):
            exists = start + step < columns
            index = tl.load(group + start + step, mask=exists, other=0)
            s = tl.load(scale + index * rows + row, mask=inside, other=1.0)
            z = tl.load(zero + index * rows + row, mask=inside, other=0.0)
            cell = (lane == step)[:, None]
            t = _pick(value, cell)
            r = tl.load(importance + start + step, mask=exists, other=0.0)
            if rounding == INTEGER:
                level = tl.minimum(tl.maximum(tl.div_rn(t, s), -z), largest_code - z)
                level = (level + ROUNDER) - ROUNDER
                if has_dropped:
                    level = tl.where(_pick(drop, cell) > 0, 0.0, level)
                code = level + z
                w_hat = level * s
            elif rounding == REAL:
                code = tl.minimum(tl.maximum(tl.div_rn(t, s) + z, 0.0), largest_code)
                code = (code + ROUNDER) - ROUNDER
                w_hat = (code - z) * s
            elif rounding == NARROW:
                number, code = _to_narrow(tl.div_rn(t, s), bits, mantissa, smallest_exponent, largest)
                if has_dropped:
                    gone = _pick(drop, cell) > 0
                    number, code = tl.where(gone, 0.0, number), tl.where(gone, 0.0, code)
                w_hat = number * s
            else:
                code = z
                w_hat = _to_dtype(t, rounding)
                if has_dropped:
                    w_hat = tl.where(_pick(drop, cell) > 0, 0.0, w_hat)
            if has_keeping:
                out = r * (t - w_hat) * (t - w_hat) > threshold
                of_zero = (tl.minimum(tl.maximum(z, 0.0), largest_code) + ROUNDER) - ROUNDER
                dense = (of_zero - z) * s
                left = _rounded(tl.minimum(tl.maximum(t - dense, -limit), limit), narrow)
                w_hat = tl.where(out, dense + left.to(tl.float32), w_hat)
                code = tl.where(out, of_zero, code)
                there = inside & exists
                tl.store(kept + (start + step) * kept_stride + row, out.to(tl.uint8), mask=there)
                tl.store(residual + (start + step) * residual_stride + row, left, mask=there)
            e = _pick(weight, cell) - w_hat
            code_tile = tl.where(cell, code[None, :], code_tile)
            decoded_tile = tl.where(cell, w_hat[None, :], decoded_tile)
            error_tile = tl.where(cell, e[None, :], error_tile)
            cost += r * (t - w_hat) * (t - w_hat)
            line = tl.load(feedback + (start + step) * feedback_stride + here, mask=exists & (here < columns), other=0.0)
            value += tl.where(lane > step, line, 0.0)[:, None] * e[None, :]
        tl.store(target + here[:, None] * target_stride + row[None, :], decoded_tile, mask=mask)
        tl.store(error + here[:, None] * error_stride + row[None, :], error_tile, mask=mask)
        if rounding < BFLOAT16 or rounding == NARROW:
            tl.store(codes + here[:, None] * codes_stride + row[None, :], code_tile.to(tl.uint8), mask=mask)
        tl.debug_barrier()  # the errors just stored are loaded again, by other threads, for the next columns
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
) -> None:
    """As `featherweight.kernels.reference.sweep_block`, the same arguments; float32 throughout, no TF32.

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
        dropped is not None, how, keeping is not None, narrow, ROWS, SUB_BLOCK, *form, num_warps=WARPS,
    )  # fmt: skip
