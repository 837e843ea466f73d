"""One block of columns in groups, fitted and walked by one Triton launch; and the grids of all groups of a weight."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels.fitting import Fitting
from featherweight.kernels.triton.columns import INTEGER, apart, correct, feed, load_tile, store_columns
from featherweight.kernels.triton.fitting import constants, fit
from featherweight.kernels.triton.sweep_block import ROWS, SUB_BLOCK, WARPS, walk_columns


@triton.jit
def stand(
    start, target, target_stride, original, original_stride, feedback, feedback_stride, error, error_stride, standing,
    standing_stride, columns, row, inside, rows_each: tl.constexpr, width: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """Walk `width` columns without rounding them: what they stand at goes to `standing`, what that is off to `error`."""
    values = correct(
        target, target_stride, feedback, feedback_stride, error, error_stride, start, columns, row, inside, width, rows_each
    )
    weights = apart(tl.trans(load_tile(original, original_stride, start, columns, row, inside, width)), width, rows_each)
    errors = ()
    for step in tl.static_range(width):
        e = weights[step] - values[step]
        errors = errors + (e,)
        values = feed(values, feedback, feedback_stride, start, step, columns, e, width, even)
    store_columns(standing, standing_stride, start, columns, row, inside, values, width, rows_each)
    store_columns(error, error_stride, start, columns, row, inside, errors, width, rows_each)
    tl.debug_barrier()


@triton.jit
def _fit_and_walk(
    target, original, feedback, importance, scale, zero, codes, error, loss, standing, columns, rows, size, target_stride,
    original_stride, feedback_stride, codes_stride, error_stride, standing_stride, scale_stride, rows_each: tl.constexpr,
    width: tl.constexpr, even: tl.constexpr, how: tl.constexpr, symmetric: tl.constexpr, largest_code: tl.constexpr,
    dtype: tl.constexpr, smallest: tl.constexpr, largest: tl.constexpr,
):  # fmt: skip
    """The arguments of `sweep_groups` as pointers; the strides are those of the first dimension."""
    row = tl.program_id(0) * rows_each + tl.arange(0, rows_each)
    inside = row < rows
    cost = tl.zeros([rows_each], dtype=tl.float32)
    number = 0
    for first in range(0, columns, size):
        last = tl.minimum(first + size, columns)
        for start in range(first, last, width):
            stand(
                start, target, target_stride, original, original_stride, feedback, feedback_stride, error, error_stride,
                standing, standing_stride, columns, row, inside, rows_each, width, even,
            )  # fmt: skip
        s, z = fit(
            standing, standing_stride, first, last, row, inside, importance, True, how, symmetric, largest_code, dtype,
            smallest, largest,
        )  # fmt: skip
        tl.store(scale + number * scale_stride + row, s, mask=inside)
        tl.store(zero + number * scale_stride + row, z, mask=inside)
        number += 1
        for start in range(first, last, width):
            cost += walk_columns(
                start, s, z, target, target_stride, original, original_stride, feedback, feedback_stride, importance, scale,
                zero, scale, target, target_stride, codes, codes_stride, error, error_stride, target, 0, target, 0, columns,
                rows, row, inside, largest_code, 0.0, 0.0, False, INTEGER, False, False, True, rows_each, width, even, 0, 0, 0, 0.0,
            )  # fmt: skip
    tl.store(loss + row, tl.load(loss + row, mask=inside, other=0.0) + cost, mask=inside)


@triton.jit
def _fit_all(
    weight, importance, scale, zero, rows, size, groups, weight_stride, has_importance: tl.constexpr, rows_each: tl.constexpr,
    how: tl.constexpr, symmetric: tl.constexpr, largest_code: tl.constexpr, dtype: tl.constexpr, smallest: tl.constexpr,
    largest: tl.constexpr,
):  # fmt: skip
    """Some rows of one group of `weight [rows, in]`."""
    row = tl.program_id(0) * rows_each + tl.arange(0, rows_each)
    group = tl.program_id(1)
    s, z = fit(
        weight, 1, group * size, group * size + size, row.to(tl.int64) * weight_stride, row < rows, importance, has_importance,
        how, symmetric, largest_code, dtype, smallest, largest,
    )  # fmt: skip
    tl.store(scale + row * groups + group, s, mask=row < rows)
    tl.store(zero + row * groups + group, z, mask=row < rows)


def sweep_groups(
    target: Tensor,
    original: Tensor,
    feedback: Tensor,
    importance: Tensor,
    scale: Tensor,
    zero: Tensor,
    size: int,
    fitting: Fitting,
    codes: Tensor,
    error: Tensor,
    loss: Tensor,
) -> None:
    """As `featherweight.kernels.reference.sweep_groups`, the same arguments; `size` is a multiple of 16."""
    columns, rows = target.shape
    standing = torch.empty_like(error)
    _fit_and_walk[(triton.cdiv(rows, ROWS),)](
        target, original, feedback, importance, scale, zero, codes, error, loss, standing, columns, rows, size,
        target.stride(0), original.stride(0), feedback.stride(0), codes.stride(0), error.stride(0), standing.stride(0),
        scale.stride(0), ROWS, SUB_BLOCK, columns % SUB_BLOCK == 0, *constants(fitting), num_warps=WARPS,
    )  # fmt: skip


def fit_groups(weight: Tensor, importance: Tensor | None, size: int, fitting: Fitting) -> tuple[Tensor, Tensor]:
    """As `featherweight.kernels.reference.fit_groups`, the same arguments."""
    rows, groups = len(weight), weight.shape[1] // size
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    scale = torch.empty(rows, groups, dtype=torch.float32, device=weight.device)
    zero = torch.empty_like(scale)
    _fit_all[(triton.cdiv(rows, ROWS), groups)](
        weight, weight if importance is None else importance, scale, zero, rows, size, groups, weight.stride(0),
        importance is not None, ROWS, *constants(fitting), num_warps=WARPS,
    )  # fmt: skip
    return scale, zero
