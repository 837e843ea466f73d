"""What a decode step does to one row of activations between its products, and the dense product of one row, in Triton."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels.triton.dependent import launch_options, wait_and_hold, wait_for_inputs

#: Activations, as the kernels tell them apart.
NONE: Any = tl.constexpr(0)
SILU: Any = tl.constexpr(1)
GELU_TANH: Any = tl.constexpr(2)
ACTIVATIONS = {None: 0, "silu": 1, "gelu_tanh": 2}

#: Up to so many outputs: outputs of one program, inputs that it reads at once, and its warps; as measured on an H200.
SHAPES = ((3584, (2, 1024, 4)), (4608, (4, 1024, 4)), (16384, (8, 512, 4)), (1 << 40, (4, 1024, 4)))


@triton.jit
def activate(value, activation: tl.constexpr):
    """`value` float32 through an activation."""
    if activation == SILU:
        value = value / (1.0 + tl.exp(-value))
    elif activation == GELU_TANH:
        inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value = value / (1.0 + tl.exp(-2.0 * inner))
    return value


@triton.jit
def _embed(table, token, out, size, scale, block: tl.constexpr, dependent: tl.constexpr):
    """The first kernel of a step lets the next one begin only when the step before has ended."""
    wait_and_hold(dependent)
    lane = tl.arange(0, block)
    row = tl.load(token + tl.program_id(0)).to(tl.int64)
    value = tl.load(table + row * size + lane, mask=lane < size, other=0.0).to(tl.float32)
    tl.store(out + tl.program_id(0) * size + lane, value * scale, mask=lane < size)


@triton.jit
def _add_norm(hidden, delta, gain, out, size, eps, has_delta: tl.constexpr, block: tl.constexpr, dependent: tl.constexpr):
    lane = tl.arange(0, block)
    inside = lane < size
    weight = tl.load(gain + lane, mask=inside, other=0.0)
    wait_for_inputs(dependent)
    here = tl.program_id(0) * size + lane
    value = tl.load(hidden + here, mask=inside, other=0.0).to(tl.float32)
    if has_delta:
        value += tl.load(delta + here, mask=inside, other=0.0).to(tl.float32)
        value = value.to(hidden.dtype.element_ty)
        tl.store(hidden + here, value, mask=inside)
        value = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / size + eps)
    tl.store(out + here, value * scale * weight, mask=inside)


@triton.jit
def _gate(both, out, size, activation: tl.constexpr, block: tl.constexpr, dependent: tl.constexpr):
    wait_for_inputs(dependent)
    lane = tl.program_id(1) * block + tl.arange(0, block)
    inside = lane < size
    start = both + tl.program_id(0) * 2 * size
    gate = tl.load(start + lane, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + size + lane, mask=inside, other=0.0).to(tl.float32)
    gate = activate(gate, activation).to(both.dtype.element_ty).to(tl.float32)
    tl.store(out + tl.program_id(0) * size + lane, gate * up, mask=inside)


@triton.jit
def _row_product(
    x, weight, gain, bias, residual, out, outputs, inputs, eps, has_gain: tl.constexpr, has_bias: tl.constexpr,
    has_residual: tl.constexpr, activation: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, dependent: tl.constexpr,
):  # fmt: skip
    """With an activation the weight is `[2 · outputs, inputs]`: the activated rows, then those that multiply them."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    lane = tl.arange(0, width)
    inside = (row < outputs)[:, None]
    start = weight + row[:, None].to(tl.int64) * inputs + lane[None, :]
    second = start + outputs.to(tl.int64) * inputs
    tile = tl.load(start, mask=inside & (lane < inputs)[None, :], other=0.0, eviction_policy="evict_first")
    other = tile
    if activation != NONE:
        other = tl.load(second, mask=inside & (lane < inputs)[None, :], other=0.0, eviction_policy="evict_first")
    wait_for_inputs(dependent)
    total = tl.zeros([rows, width // 8], dtype=tl.float32)
    beside = tl.zeros([rows, width // 8], dtype=tl.float32)
    squares = tl.zeros([width], dtype=tl.float32)
    for begin in range(0, inputs, width):
        here = begin + lane
        value = tl.load(x + here, mask=here < inputs, other=0.0).to(tl.float32)
        if has_gain:
            squares += value * value
            value *= tl.load(gain + here, mask=here < inputs, other=0.0)
        ahead = inside & (here + width < inputs)[None, :]
        following = tl.load(start + begin + width, mask=ahead, other=0.0, eviction_policy="evict_first")
        total += tl.sum(tl.reshape(tile.to(tl.float32) * value[None, :], [rows, width // 8, 8]), axis=2)
        tile = following
        if activation != NONE:
            following = tl.load(second + begin + width, mask=ahead, other=0.0, eviction_policy="evict_first")
            beside += tl.sum(tl.reshape(other.to(tl.float32) * value[None, :], [rows, width // 8, 8]), axis=2)
            other = following
    result = tl.sum(total, axis=1)
    multiplier = tl.sum(beside, axis=1)
    if has_gain:
        scale = tl.rsqrt(tl.sum(squares, axis=0) / inputs + eps)
        result *= scale
        multiplier *= scale
    if has_bias:
        result += tl.load(bias + row, mask=row < outputs, other=0.0).to(tl.float32)
        if activation != NONE:
            multiplier += tl.load(bias + outputs + row, mask=row < outputs, other=0.0).to(tl.float32)
    if activation != NONE:
        result = activate(result, activation) * multiplier
    if has_residual:
        result += tl.load(residual + row, mask=row < outputs, other=0.0).to(tl.float32)
    tl.store(out + row, result, mask=row < outputs)


def embed(table: Tensor, token: Tensor, scale: float, out: Tensor) -> Tensor:
    """As `featherweight.kernels.reference.decode_rows.embed`."""
    size = table.shape[1]
    _embed[(len(token),)](
        table, token, out, size, scale, triton.next_power_of_2(size), num_warps=4, **launch_options(out.device)
    )
    return out


def add_norm(hidden: Tensor, delta: Tensor | None, gain: Tensor, eps: float, out: Tensor) -> Tensor:
    """As `featherweight.kernels.reference.decode_rows.add_norm`."""
    size = hidden.shape[1]
    _add_norm[(len(hidden),)](
        hidden, hidden if delta is None else delta, gain, out, size, eps, delta is not None, triton.next_power_of_2(size),
        num_warps=8, **launch_options(out.device),
    )  # fmt: skip
    return out


def gate(both: Tensor, activation: str, out: Tensor) -> Tensor:
    """As `featherweight.kernels.reference.decode_rows.gate`."""
    batch, size = out.shape
    _gate[(batch, triton.cdiv(size, 512))](
        both, out, size, ACTIVATIONS[activation], 512, num_warps=4, **launch_options(out.device)
    )
    return out


def row_product(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    gain: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    shape: tuple[int, int, int] | None = None,
) -> Tensor:
    """As `featherweight.kernels.reference.decode_rows.row_product`; `shape` is one of `SHAPES`.

    The sum of squares of the norm comes out of the same walk over `x`, and scales the finished sums.
    """
    outputs, inputs = out.shape[1], x.shape[1]
    rows, width, warps = shape or next(shape for most, shape in SHAPES if outputs <= most)
    absent = x
    _row_product[(triton.cdiv(outputs, rows),)](
        x, weight, absent if gain is None else gain, absent if bias is None else bias, absent if residual is None else residual,
        out, outputs, inputs, eps, gain is not None, bias is not None, residual is not None, ACTIVATIONS[activation], rows,
        min(width, triton.next_power_of_2(inputs)), num_warps=warps, **launch_options(x.device),
    )  # fmt: skip
    return out
