"""Launches of the integer kernels: `x · Wᵀ` for few tokens straight from the codes, and values of some rows."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.kernels.cuda import driver
from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.layout import BLOCK, ROWS

#: Tokens of one launch.
MOST_TOKENS = 16

#: Shared memory of a multiprocessor that blocks can use, each 1 KB less.
SHARED_BYTES = 227 << 10

#: Dtypes of activations, as the sources number them.
ACTIVATIONS = {torch.bfloat16: 0, torch.float16: 1}

#: Activations of half the outputs, as the sources number them.
GATES = {None: 0, "silu": 1, "gelu_tanh": 2}

#: Inputs and warps of a block of `dequantize`.
_UNIT, _WARPS = 256, 4


@dataclass(frozen=True)
class Shape:
    """How the work is cut.

    Attributes:
        unit: inputs of a warp in one phase.
        tiles: of 16 outputs to a warp.
        row_warps, input_warps: of a block.
        resident: blocks that registers must leave room for on a multiprocessor.
        splits: blocks that share the inputs of the same outputs, as a cluster.
        blocks: of the grid, or clusters, at most; each takes one group of outputs after the other.
        held: units that a warp has registers for, 1 or 2.
        arranged: activations are brought into the kernel's form once, by a launch of their own, instead of in every block.
    """

    unit: int = 512
    tiles: int = 1
    row_warps: int = 1
    input_warps: int = 8
    resident: int = 3
    splits: int = 1
    blocks: int = 264
    held: int = 1
    arranged: bool = False


class WeightsArgument(ctypes.Structure):
    """`Weights` of `tiles.cuh`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "zeros")),
        *((name, ctypes.c_int) for name in ("tiles", "units", "scale_blocks")),
    )

    @classmethod
    def of(cls, weight: DeviceCodes, unit: int) -> WeightsArgument:
        """Of a weight, for units of so many inputs."""
        units = weight.codes.shape[1] * 2 // (weight.bits * unit)
        return cls(*map(address, (weight.codes, weight.scales, weight.zeros)), len(weight.codes), units, weight.scales.shape[1])


def multiply(
    x: Tensor,
    weight: DeviceCodes,
    bias: Tensor | None,
    y: Tensor,
    shape: Shape,
    overlapped: bool = True,
    activation: str | None = None,
) -> Tensor:
    """`y[t, o] = Σ_i x[t, i] W[o, i] + bias[o]` for up to 16 tokens.

    Args:
        x: `[tokens, in]` bf16 or fp16, rows contiguous and 16 bytes aligned.
        bias: `[out]` in the dtype of `x`.
        y: `[tokens, out]`, written.
        overlapped: let the launch begin before the kernel ahead of it is done.
        activation: of the first half of the outputs, which the second half multiplies ("silu", "gelu_tanh"); two tiles to a warp.
    """
    tokens, block_rows = x.shape[0], shape.row_warps * shape.tiles * ROWS
    halves = 1 if activation is None else 2
    constants = {"TILES": shape.tiles, "COLUMNS": _columns(tokens), "SPLITS": shape.splits, "HELD": shape.held}
    constants |= {"THREADS": 32 * shape.row_warps * shape.input_warps, "RESIDENT": shape.resident}
    constants |= {"GATED": GATES[activation], "ARRANGED": int(shape.arranged)}
    source = arrange(x, weight, shape.unit) if shape.arranged else x
    function = load_kernel("multiply", weight, x.dtype, shape.unit, constants, x.device)
    phases, resident, shared = memory_of(weight, shape, tokens)
    groups = -(-weight.rows // block_rows)
    blocks = min(groups, shape.blocks)
    sizes = (weight.rows // halves, weight.inputs, tokens, x.stride(0), y.stride(0), block_rows.bit_length() - 1)
    numbers = (*sizes, groups // blocks, groups % blocks, phases, int(resident))
    function.launch(
        (blocks, shape.splits, 1),
        (32, shape.row_warps, shape.input_warps),
        shared,
        [
            WeightsArgument.of(weight, shape.unit),
            *(ctypes.c_void_p(address(each)) for each in (source, y, bias)),
            *map(ctypes.c_int, numbers),
        ],
        cluster=shape.splits,
        overlapped=overlapped,
    )
    return y


def arrange(x: Tensor, weight: DeviceCodes, unit: int) -> Tensor:
    """Activations as `multiply` wants them in shared memory, for units of so many inputs: bytes, a row to each unit."""
    units, tokens = weight.codes.shape[1] * 2 // (weight.bits * unit), len(x)
    stages = torch.empty(units, _stage_bytes(weight, unit, tokens), dtype=torch.uint8, device=x.device)
    constants = {"TILES": 1, "COLUMNS": _columns(tokens)}
    pointers = (ctypes.c_void_p(address(each)) for each in (x, stages))
    numbers = map(ctypes.c_int, (weight.inputs, tokens, x.stride(0)))
    load_kernel("arrange", weight, x.dtype, unit, constants, x.device).launch(
        (units, tokens, 1), (32, 1, 1), 0, [*pointers, *numbers]
    )
    return stages


def memory_of(weight: DeviceCodes, shape: Shape, tokens: int) -> tuple[int, bool, int]:
    """How often a warp takes a unit of the same rows, whether a block keeps all activations, and its bytes of shared memory."""
    units = weight.codes.shape[1] * 2 // (weight.bits * shape.unit)
    phases, block_rows = -(-units // (shape.input_warps * shape.splits)), shape.row_warps * shape.tiles * ROWS
    stage = _stage_bytes(weight, shape.unit, tokens)
    sums = 4 * (1 if weight.rows <= block_rows * shape.blocks else 2) * tokens * (block_rows + 4)
    resident = phases <= 2 or shape.input_warps * (phases * stage + sums) <= SHARED_BYTES // shape.resident - 1024
    return phases, resident, shape.input_warps * ((phases if resident else 2) * stage + sums)


def dequantize(weight: DeviceCodes, y: Tensor, first: int, blocks: int | None = None) -> Tensor:
    """The values of rows `first` and on, as many as `y [rows, in]` has; bf16 or fp16, `first` in sixteens.

    Args:
        blocks: of the launch at most, each of 128 threads.
    """
    function = load_kernel("dequantize", weight, y.dtype, _UNIT, {"TILES": 1, "THREADS": 32 * _WARPS}, y.device)
    description, tiles = WeightsArgument.of(weight, _UNIT), -(-len(y) // ROWS)
    numbers = (first + len(y), weight.inputs, first // ROWS, tiles)
    wanted = -(-tiles * description.units // _WARPS)
    function.launch(
        (min(wanted, blocks or wanted), 1, 1),
        (32, _WARPS, 1),
        _WARPS * ROWS * (2 * _UNIT + 64),
        [description, ctypes.c_void_p(address(y)), *map(ctypes.c_int, numbers)],
    )
    return y


def load_kernel(
    name: str,
    weight: DeviceCodes,
    dtype: torch.dtype,
    unit: int,
    constants: Mapping[str, int],
    device: torch.device,
    source: str | None = None,
) -> driver.Function:
    """Kernel `name` of a source file, its own unless another is named, for a weight and a dtype of activations."""
    every = {**weight.constants(), "ACTIVATION": ACTIVATIONS[dtype], "UNIT": unit, **constants}
    return driver.load(source or f"{name}.cu", name, driver.constants_of(every), device)


def _stage_bytes(weight: DeviceCodes, unit: int, tokens: int) -> int:
    """Shared memory of the activations of one unit."""
    return tokens * (unit + 32) * 2 + (unit // min(weight.group or BLOCK, BLOCK) + 1) * _columns(tokens) * 32


def _columns(tokens: int) -> int:
    """Eights of tokens that the kernel is compiled for."""
    return 1 if tokens <= 8 else 2


def address(tensor: Tensor | None) -> int:
    """Where a tensor lies; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
