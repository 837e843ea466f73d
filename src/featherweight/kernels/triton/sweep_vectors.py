"""Blocks of columns that are rounded eight at a time, one Triton launch each: the walk, and coordinate descent."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels.triton.columns import apart, correct, load_scalar, load_tile, store_columns
from featherweight.kernels.triton.e8 import encode
from featherweight.kernels.vectors import Vectors

#: Rows of one program (one for each thread), columns that a thread holds at once (two vectors), and warps.
ROWS, SUB_BLOCK, WARPS = 32, 16, 1


@triton.jit
def product(matrix, stride, row_start, column_start, columns, vector, transposed: tl.constexpr, even: tl.constexpr):
    """`M x` or `Mᵀ x` of the 8 × 8 part of `matrix` at (row_start, column_start)."""
    result = ()
    for c in tl.static_range(8):
        total = tl.zeros_like(vector[0])
        for k in tl.static_range(8):
            if transposed:
                line, place = row_start + k, column_start + c
            else:
                line, place = row_start + c, column_start + k
            limit = tl.where(line < columns, columns, 0)
            total += load_scalar(matrix + line * stride, place, limit, even) * vector[k]
        result = result + (total,)
    return result


@triton.jit
def eight(values, first: tl.constexpr):
    """Eight values of a tuple."""
    part = ()
    for k in tl.static_range(8):
        part = part + (values[first + k],)
    return part


@triton.jit
def _walk(
    target, original, feedback, root, scale, by_key, codes, error, loss, columns, rows, target_stride, original_stride,
    feedback_stride, root_stride, codes_stride, error_stride, bits: tl.constexpr, residual_scale: tl.constexpr,
    rows_each: tl.constexpr, width: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """The arguments of `sweep_vectors` as pointers; the strides are those of the first dimension."""
    row = tl.program_id(0) * rows_each + tl.arange(0, rows_each)
    inside = row < rows
    s = tl.load(scale + row, mask=inside, other=1.0)
    inverse = 1.0 / tl.maximum(s, 1e-30)
    cost = tl.zeros([rows_each], dtype=tl.float32)
    for start in range(0, columns, width):
        values = correct(
            target, target_stride, feedback, feedback_stride, error, error_stride, start, columns, row, inside, width, rows_each
        )
        weights = apart(tl.trans(load_tile(original, original_stride, start, columns, row, inside, width)), width, rows_each)
        vector, after, own = eight(values, 0), eight(values, 8), eight(weights, 0)
        decoded, errors = eight(values, 0), eight(values, 0)
        earlier_decoded, earlier_errors = eight(values, 0), eight(values, 0)
        for half in range(0, 2):
            first = start + 8 * half
            scaled = ()
            for k in tl.static_range(8):
                scaled = scaled + (vector[k] * inverse,)
            code, units = encode(scaled, bits, residual_scale, by_key)
            tl.store(codes + first // 8 * codes_stride + row, code, mask=inside & (first < columns))
            earlier_decoded, earlier_errors, left = decoded, errors, ()
            decoded, errors = (), ()
            for k in tl.static_range(8):
                w_hat = units[k] * s
                decoded, errors, left = decoded + (w_hat,), errors + (own[k] - w_hat,), left + (vector[k] - w_hat,)
            seen = product(root, root_stride, first, first, columns, left, True, even)
            for k in tl.static_range(8):
                cost += seen[k] * seen[k]
            fed = product(feedback, feedback_stride, start, start + 8, columns, errors, True, even)
            vector = ()
            for k in tl.static_range(8):  # of use to the second eight
                vector = vector + (after[k] + fed[k],)
            own = eight(weights, 8)
        store_columns(target, target_stride, start, columns, row, inside, earlier_decoded + decoded, width, rows_each)
        store_columns(error, error_stride, start, columns, row, inside, earlier_errors + errors, width, rows_each)
        tl.debug_barrier()  # the errors just stored are loaded again, by other threads, for the next columns
    tl.store(loss + row, tl.load(loss + row, mask=inside, other=0.0) + cost, mask=inside)


@triton.jit
def descend_eight(
    first, pull, before, inverses, hessian, hessian_stride, s, inverse, by_key, codes, codes_stride, columns, row, inside,
    bits: tl.constexpr, residual_scale: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """Round the eight columns from `first` on anew, where that lowers the objective: the steps taken, and what it falls by."""
    moved, scaled = product(inverses + first * 8, 8, 0, 0, tl.where(first < columns, 8, 0), pull, False, even), ()
    for k in tl.static_range(8):
        scaled = scaled + ((before[k] + moved[k]) * inverse,)
    code, units = encode(scaled, bits, residual_scale, by_key)
    step, falls = (), tl.zeros_like(s)
    for k in tl.static_range(8):
        step = step + (units[k] * s - before[k],)
    seen = product(hessian, hessian_stride, first, first, columns, step, False, even)
    for k in tl.static_range(8):
        falls += step[k] * (2.0 * pull[k] - seen[k])
    better = inside & (first < columns) & (falls > 0)
    taken = ()
    for k in tl.static_range(8):
        taken = taken + (tl.where(better, step[k], 0.0),)
    tl.store(codes + first // 8 * codes_stride + row, code, mask=better)
    return taken, tl.where(better, falls, 0.0)


@triton.jit
def _descend(
    pull, hessian, inverses, scale, by_key, codes, decoded, error, steps, gain, columns, rows, pull_stride, hessian_stride,
    codes_stride, decoded_stride, error_stride, steps_stride, bits: tl.constexpr, residual_scale: tl.constexpr,
    rows_each: tl.constexpr, width: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """The arguments of `descend_vectors` as pointers; the strides are those of the first dimension."""
    row = tl.program_id(0) * rows_each + tl.arange(0, rows_each)
    inside = row < rows
    s = tl.load(scale + row, mask=inside, other=1.0)
    inverse = 1.0 / tl.maximum(s, 1e-30)
    fallen = tl.zeros([rows_each], dtype=tl.float32)
    parts = tl.cdiv(columns, width)
    for part in range(0, parts):
        start = (parts - 1 - part) * width
        here = start + tl.arange(0, width)
        tile = load_tile(pull, pull_stride, start, columns, row, inside, width)
        for after in range(start + width, columns, width):
            later = after + tl.arange(0, width)
            matrix = tl.load(
                hessian + later[None, :] * hessian_stride + here[:, None],
                mask=(later < columns)[None, :] & (here < columns)[:, None], other=0.0,
            )  # fmt: skip
            taken = load_tile(steps, steps_stride, after, columns, row, inside, width)
            tile = tl.dot(matrix, taken, acc=tile, input_precision="tf32x3")
        values = apart(tl.trans(tile), width, rows_each)
        before = apart(tl.trans(load_tile(decoded, decoded_stride, start, columns, row, inside, width)), width, rows_each)
        off = apart(tl.trans(load_tile(error, error_stride, start, columns, row, inside, width)), width, rows_each)
        pulled, old, last, first = eight(values, 8), eight(before, 8), eight(values, 8), eight(values, 8)
        for turn in range(0, 2):
            place = start + 8 - 8 * turn
            last = first
            first, falls = descend_eight(
                place, pulled, old, inverses, hessian, hessian_stride, s, inverse, by_key, codes, codes_stride, columns, row,
                inside, bits, residual_scale, even,
            )  # fmt: skip
            fallen += falls
            fed = product(hessian, hessian_stride, start + 8, start, columns, first, True, even)
            pulled = ()
            for k in tl.static_range(8):  # of use to the first eight
                pulled = pulled + (values[k] - fed[k],)
            old = eight(before, 0)
        both = first + last
        new_decoded, new_error, negative = (), (), ()
        for k in tl.static_range(width):
            new_decoded, new_error = new_decoded + (before[k] + both[k],), new_error + (off[k] - both[k],)
            negative = negative + (-both[k],)
        store_columns(decoded, decoded_stride, start, columns, row, inside, new_decoded, width, rows_each)
        store_columns(error, error_stride, start, columns, row, inside, new_error, width, rows_each)
        store_columns(steps, steps_stride, start, columns, row, inside, negative, width, rows_each)
        tl.debug_barrier()
    tl.store(gain + row, tl.load(gain + row, mask=inside, other=0.0) + fallen, mask=inside)


def sweep_vectors(
    target: Tensor,
    original: Tensor,
    feedback: Tensor,
    root: Tensor,
    scale: Tensor,
    rule: Vectors,
    codes: Tensor,
    error: Tensor,
    loss: Tensor,
) -> None:
    """As `featherweight.kernels.reference.sweep_vectors`, the same arguments."""
    columns, rows = target.shape
    _walk[(triton.cdiv(rows, ROWS),)](
        target, original, feedback, root, scale, rule.by_key, codes, error, loss, columns, rows, target.stride(0),
        original.stride(0), feedback.stride(0), root.stride(0), codes.stride(0), error.stride(0), rule.bits,
        rule.residual_scale, ROWS, SUB_BLOCK, columns % SUB_BLOCK == 0, num_warps=WARPS,
    )  # fmt: skip


def descend_vectors(
    pull: Tensor,
    hessian: Tensor,
    inverses: Tensor,
    scale: Tensor,
    rule: Vectors,
    codes: Tensor,
    decoded: Tensor,
    error: Tensor,
    gain: Tensor,
) -> None:
    """As `featherweight.kernels.reference.sweep_vectors`, the same arguments."""
    columns, rows = pull.shape
    steps = torch.empty_like(pull)
    _descend[(triton.cdiv(rows, ROWS),)](
        pull, hessian, inverses.contiguous(), scale, rule.by_key, codes, decoded, error, steps, gain, columns, rows,
        pull.stride(0), hessian.stride(0), codes.stride(0), decoded.stride(0), error.stride(0), steps.stride(0), rule.bits,
        rule.residual_scale, ROWS, SUB_BLOCK, columns % SUB_BLOCK == 0, num_warps=WARPS,
    )  # fmt: skip
