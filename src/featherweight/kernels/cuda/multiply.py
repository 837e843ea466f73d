"""`x · Wᵀ` for up to 16 tokens straight from integer codes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.kernels.cuda import driver
from featherweight.kernels.cuda.layout import BLOCK, ROWS, encode_codes, encode_groups

#: Tokens of one launch.
MOST_TOKENS = 16

#: Of shared memory that the activations of a block may fill to stay there.
RESIDENT_BYTES = 64 << 10

SCALES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
ACTIVATIONS = {torch.bfloat16: 0, torch.float16: 1}


@dataclass(frozen=True, eq=False)
class DeviceCodes:
    """An integer weight as the kernels read it.

    Attributes:
        rows, inputs: of the weight.
        bits: of a code.
        group: inputs that share a scale; 0 for whole rows.
        codes: from `encode_codes`.
        scales, zeros: from `encode_groups`; zeros uint8, or None on a symmetric grid.
    """

    rows: int
    inputs: int
    bits: int
    group: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    @classmethod
    def of(cls, codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group: int) -> DeviceCodes:
        """From codes `[out, in]` uint8, scales and zeros `[out, groups]`."""
        width = group or codes.shape[1] + BLOCK
        return cls(
            *codes.shape, bits, group, encode_codes(codes, bits), encode_groups(scales, width, codes.shape[1]),
            None if zeros is None else encode_groups(zeros.to(torch.uint8), width, codes.shape[1]),
        )  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How the work is cut.

    Attributes:
        unit: inputs of a warp in one phase.
        tiles: of 16 outputs to a warp.
        row_warps, input_warps: of a block.
        resident: blocks that registers must leave room for on a multiprocessor.
        splits: blocks that share the inputs of the same outputs, as a cluster.
        rounds: groups of outputs that a block takes one after the other.
    """

    unit: int = 512
    tiles: int = 1
    row_warps: int = 1
    input_warps: int = 8
    resident: int = 3
    splits: int = 1
    rounds: int = 1


class _Weights(ctypes.Structure):
    _fields_ = (
        ("codes", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("zeros", ctypes.c_void_p), ("tiles", ctypes.c_int),
        ("units", ctypes.c_int), ("scale_blocks", ctypes.c_int),
    )  # fmt: skip


def multiply(x: Tensor, weight: DeviceCodes, bias: Tensor | None, y: Tensor, shape: Shape, overlapped: bool = True) -> Tensor:
    """`y[t, o] = Σ_i x[t, i] W[o, i] + bias[o]` for up to 16 tokens.

    Args:
        x: `[tokens, in]` bf16 or fp16, rows contiguous and 16 bytes aligned.
        bias: `[out]` in the dtype of `x`.
        y: `[tokens, out]`, written.
        overlapped: let the launch begin before the kernel ahead of it is done.
    """
    tokens, tiles = x.shape[0], weight.codes.shape[0]
    threads = 32 * shape.row_warps * shape.input_warps
    constants = {
        "BITS": weight.bits, "ACTIVATION": ACTIVATIONS[x.dtype], "SCALE": SCALES[weight.scales.dtype],
        "ZEROS": int(weight.zeros is not None), "GROUP": min(weight.group or BLOCK, BLOCK),
        "WIDE": 0 if weight.group == 0 else max(1, weight.group // BLOCK), "UNIT": shape.unit,
        "TILES": shape.tiles, "COLUMNS": 1 if tokens <= 8 else 2, "THREADS": threads, "RESIDENT": shape.resident,
    }  # fmt: skip
    function = driver.load("multiply.cu", "multiply", driver.constants_of(constants), x.device)
    block_rows = shape.row_warps * shape.tiles * ROWS
    units = weight.codes.shape[1] * 2 // (weight.bits * shape.unit)
    phases = -(-units // (shape.input_warps * shape.splits))
    resident = phases <= 2 or phases * shape.input_warps * tokens * (shape.unit + 32) * 2 <= RESIDENT_BYTES
    stages = phases if resident else 2
    buffers = min(shape.rounds, 2)
    shared = shape.input_warps * tokens * (stages * 2 * (shape.unit + 32) + buffers * 4 * block_rows)
    description = _Weights(
        weight.codes.data_ptr(), weight.scales.data_ptr(), 0 if weight.zeros is None else weight.zeros.data_ptr(),
        tiles, units, weight.scales.shape[1],
    )  # fmt: skip
    pointers = [ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_void_p(0 if bias is None else bias.data_ptr())]
    numbers = (
        weight.rows, weight.inputs, tokens, x.stride(0), y.stride(0), block_rows.bit_length() - 1, shape.rounds, int(resident)
    )  # fmt: skip
    grid = (-(-weight.rows // (block_rows * shape.rounds)), shape.splits, 1)
    function.launch(
        grid, (32, shape.row_warps, shape.input_warps), shared, [description, *pointers, *map(ctypes.c_int, numbers)],
        cluster=shape.splits, overlapped=overlapped,
    )  # fmt: skip
    return y
