"""Parts of the walk that Triton kernels share. A thread holds a row: columns become a tuple of values `[rows of a program]`."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

#: `(x + ROUNDER) − ROUNDER` rounds float32 half-to-even while |x| < 2²².
ROUNDER: Any = tl.constexpr(12582912.0)

#: Ways to round, as kernels tell them apart.
INTEGER: Any = tl.constexpr(0)
REAL: Any = tl.constexpr(1)
BFLOAT16: Any = tl.constexpr(2)
FLOAT16: Any = tl.constexpr(3)
FLOAT32: Any = tl.constexpr(4)
NARROW: Any = tl.constexpr(5)


@triton.jit
def to_dtype(value, rounding: tl.constexpr):
    """`value` rounded half-to-even to a dtype and back."""
    if rounding == BFLOAT16:
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        value = bits.to(tl.float32, bitcast=True)
    elif rounding == FLOAT16:
        value = value.to(tl.float16).to(tl.float32)
    return value


@triton.jit
def to_narrow(value, bits: tl.constexpr, mantissa: tl.constexpr, smallest_exponent: tl.constexpr, largest: tl.constexpr):
    """The nearest number of a narrow format, ties to the even mantissa, and its bit pattern; that of −0 is 0."""
    size = tl.minimum(tl.abs(value), largest)
    exponent = tl.maximum((size.to(tl.int32, bitcast=True) >> 23) - 127, smallest_exponent)
    step = ((exponent - mantissa + 127) << 23).to(tl.float32, bitcast=True)
    steps = (tl.div_rn(size, step) + ROUNDER) - ROUNDER
    code = (exponent - smallest_exponent).to(tl.float32) * (1 << mantissa) + steps
    sign = (value < 0) & (steps > 0)
    return tl.where(value < 0, -steps * step, steps * step), tl.where(sign, code + (1 << (bits - 1)), code)


@triton.jit
def to_residual(value, narrow: tl.constexpr):
    """`value` as float16; with `narrow` one that is a float8_e5m2 number, whose bits are the upper half of float16's."""
    half = value.to(tl.float16)
    if narrow:
        bits = half.to(tl.uint16, bitcast=True).to(tl.uint32)
        bits = (bits + 0x7F + ((bits >> 8) & 1)) & 0xFF00
        half = bits.to(tl.uint16).to(tl.float16, bitcast=True)
    return half


@triton.jit
def apart(tile, width: tl.constexpr, rows: tl.constexpr):
    """The columns of `tile [rows, width]`, a power of two of them, as a tuple."""
    if width == 1:
        return (tl.reshape(tile, [rows]),)
    else:
        even, odd = tl.split(tl.reshape(tile, [rows, width // 2, 2]))
        evens = apart(even, width // 2, rows)
        odds = apart(odd, width // 2, rows)
        columns = ()
        for k in tl.static_range(width // 2):
            columns = columns + (evens[k], odds[k])
        return columns


@triton.jit
def together(columns, width: tl.constexpr, rows: tl.constexpr):
    """The inverse of `apart`."""
    if width == 1:
        return tl.reshape(columns[0], [rows, 1])
    else:
        evens, odds = (), ()
        for k in tl.static_range(width // 2):
            evens, odds = evens + (columns[2 * k],), odds + (columns[2 * k + 1],)
        joined = tl.join(together(evens, width // 2, rows), together(odds, width // 2, rows))
        return tl.reshape(joined, [rows, width])


@triton.jit
def load_tile(pointer, stride, start, columns, row, inside, width: tl.constexpr):
    """Columns `start … start + width` of a matrix `[columns, rows]`, `[width, rows of the program]`; 0 beyond its end."""
    here = start + tl.arange(0, width)
    mask = (here < columns)[:, None] & inside[None, :]
    return tl.load(pointer + here[:, None] * stride + row[None, :], mask=mask, other=0.0)


@triton.jit
def store_columns(pointer, stride, start, columns, row, inside, values, width: tl.constexpr, rows: tl.constexpr):
    """Write a tuple of `width` columns to a matrix `[columns, rows]`."""
    here = start + tl.arange(0, width)
    mask = (here < columns)[:, None] & inside[None, :]
    tile = tl.trans(together(values, width, rows)).to(pointer.dtype.element_ty)
    tl.store(pointer + here[:, None] * stride + row[None, :], tile, mask=mask)


@triton.jit
def load_scalar(pointer, place, columns, even: tl.constexpr):
    """The number at `place`; 0 from `columns` on, where these are not `even`."""
    if even:
        return tl.load(pointer + place)
    return tl.load(pointer + place, mask=place < columns, other=0.0)


@triton.jit
def correct(
    target, target_stride, feedback, feedback_stride, error, error_stride, start, columns, row, inside, width: tl.constexpr,
    rows: tl.constexpr,
):  # fmt: skip
    """Columns `start … start + width` of `target` with the errors of all columns before them in the block, as a tuple."""
    here = start + tl.arange(0, width)
    value = load_tile(target, target_stride, start, columns, row, inside, width)
    for before in range(0, start, width):
        earlier = before + tl.arange(0, width)
        matrix = tl.load(
            feedback + earlier[None, :] * feedback_stride + here[:, None], mask=(here < columns)[:, None], other=0.0
        )
        errors = tl.load(error + earlier[:, None] * error_stride + row[None, :], mask=inside[None, :], other=0.0)
        value = tl.dot(matrix, errors, acc=value, input_precision="tf32x3")
    return apart(tl.trans(value), width, rows)


@triton.jit
def feed(values, feedback, feedback_stride, start, step: tl.constexpr, columns, error, width: tl.constexpr, even: tl.constexpr):
    """`values` with the error of column `start + step` carried to those after it."""
    fed = ()
    line = feedback + (start + step) * feedback_stride
    for k in tl.static_range(width):
        if k > step:
            fed = fed + (values[k] + load_scalar(line, start + k, columns, even) * error,)
        else:
            fed = fed + (values[k],)
    return fed
