"""`x · Wᵀ` for up to 16 tokens straight from codes of the E8 lattice, with a low-rank term of 4-bit factors."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.kernels.cuda import driver
from featherweight.kernels.cuda.hadamard import (
    DTYPES,
    MOST_SHARED,
    DeviceRight,
    DeviceRotation,
    Rotated,
    rotate,
    rotate_for_product,
)

#: Tokens of one launch.
MOST_TOKENS = 16

#: Where the kernel puts its tables in shared memory, and how large they are.
TABLE = 65536


@dataclass(frozen=True, eq=False)
class DeviceLeft:
    """A factor `Lᵀ [rank, out]` in 4-bit codes.

    Attributes:
        rank: in whole loads.
        group: outputs that share a scale.
        codes, scales: from `encode_left`, `encode_left_scales` (float16).
    """

    rank: int
    group: int
    codes: Tensor
    scales: Tensor


@dataclass(frozen=True, eq=False)
class DeviceLattice:
    """A lattice weight as the kernel reads it.

    Attributes:
        rows, inputs, bits: of the weight.
        codes: from `encode_codes`.
        tables: from `tables`.
        scale: `[1]` float32, of the codewords.
        residual: what the second codeword is divided by.
        left: the low-rank term's outer factor.
    """

    rows: int
    inputs: int
    bits: int
    codes: Tensor
    tables: Tensor
    scale: Tensor
    residual: float = 1.0
    left: DeviceLeft | None = None


@dataclass(frozen=True, eq=False)
class DeviceRotated:
    """A lattice weight between rotations, with a low-rank term beside it.

    Attributes:
        inner: the lattice.
        input: rotation of the input.
        output: of the product; None for none.
        right: the low-rank term's inner factor.
    """

    inner: DeviceLattice
    input: DeviceRotation
    output: DeviceRotation | None = None
    right: DeviceRight | None = None


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "codes", "tables", "scale", "planes", "steps", "left", "left_scales", "projected", "output"
        )),
        *((name, ctypes.c_int) for name in (
            "tiles", "slices", "rows", "tokens", "group_tiles", "output_type", "most_tiles", "sums_at"
        )),
        ("residual", ctypes.c_float),
    )  # fmt: skip


class _Values(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "tables", "scale", "output")),
        *((name, ctypes.c_int) for name in ("slices", "rows", "inputs", "first_tile", "tiles", "type")),
        ("per_residual", ctypes.c_float),
    )


@dataclass(frozen=True)
class Shape:
    """How the work is cut.

    Attributes:
        blocks: across the outputs.
        splits: of the inputs, whose sums the output's rotation adds.
        warps: of a block.
        depth: loads of a warp in flight, each of `bits` times 512 bytes.
    """

    blocks: int
    splits: int
    warps: int
    depth: int


def shape_for(weight: DeviceLattice, tokens: int, processors: int, may_split: bool) -> Shape:
    """The cut with the least work for the busiest block; a split must gain a tenth."""
    (tiles, slices), bits = weight.codes.shape[:2], weight.bits

    def busiest(splits: int) -> float:
        return -(-tiles // max(1, processors // splits)) * -(-slices // splits) * (1 + 0.1 * (splits > 1))

    splits = min(range(1, 5 if may_split else 2), key=busiest)
    blocks = min(tiles, max(1, processors // splits))
    room = max(TABLE - 1024, MOST_SHARED - TABLE * (3 if bits == 3 else 2))
    while blocks < tiles and _sum_bytes(-(-tiles // blocks), tokens, bits, weight.left) > room:
        blocks = min(tiles, blocks + processors)
    return Shape(blocks, splits, 16 if tokens <= 8 else 12, 2 if tokens <= 8 else 1)


def _columns(tokens: int) -> int:
    return 1 if tokens <= 4 else 2 if tokens <= 8 else 4


def _sum_bytes(tiles: int, tokens: int, bits: int, left: DeviceLeft | None) -> int:
    """Shared memory of the sums of so many tiles, of the low-rank term and what it multiplies."""
    columns = _columns(tokens)
    sums = tiles * 16 * columns * 16 * (5 if bits > 2 else 3)
    groups = 0 if left is None else (tiles - 1) // (left.group // 16) + 2
    return sums + groups * tokens * (12 + 2 * (0 if left is None else left.rank))


def multiply_rotated(
    x: Rotated, weight: DeviceLattice, dtype: torch.dtype, shape: Shape | None = None, overlapped: bool = True
) -> Tensor:
    """The products of up to 16 tokens, `[splits, tokens, out]`; of several splits the sum is meant."""
    tiles, slices = weight.codes.shape[:2]
    tokens, device = x.steps.shape[0], x.planes.device
    if shape is None:
        shape = shape_for(weight, tokens, driver.processors(device), dtype == torch.float32)
    output = torch.empty(shape.splits, tokens, weight.rows, dtype=dtype, device=device)
    arguments, rank = _Arguments(group_tiles=1), 0
    for name, tensor in (
        ("codes", weight.codes), ("tables", weight.tables), ("scale", weight.scale), ("planes", x.planes),
        ("steps", x.steps), ("output", output),
    ):  # fmt: skip
        setattr(arguments, name, tensor.data_ptr())
    if weight.left is not None and x.projected is not None:
        left = weight.left
        arguments.left, arguments.left_scales = left.codes.data_ptr(), left.scales.data_ptr()
        arguments.projected, arguments.group_tiles, rank = x.projected.data_ptr(), left.group // 16, left.rank
    arguments.tiles, arguments.slices, arguments.rows, arguments.tokens = tiles, slices, weight.rows, tokens
    arguments.output_type, arguments.most_tiles = DTYPES[dtype], -(-tiles // shape.blocks)
    arguments.residual = weight.residual
    columns, end = _columns(tokens), TABLE * (3 if weight.bits == 3 else 2)
    sums = _sum_bytes(arguments.most_tiles, tokens, weight.bits, weight.left)
    if sums > TABLE - 1024:
        arguments.sums_at = end
        end += sums
    constants = {"BITS": weight.bits, "COLUMNS": columns, "RANK": rank, "WARPS": shape.warps, "DEPTH": shape.depth}
    function = driver.load("lattice.cu", "lattice_multiply", driver.constants_of(constants), device)
    function.launch((shape.blocks, shape.splits, 1), (32 * shape.warps, 1, 1), end, [arguments], overlapped=overlapped)
    return output


def values(weight: DeviceLattice, output: Tensor, first: int) -> None:
    """Rows from `first` on (a multiple of 16) into `output [rows, in]`, bf16 or fp16; inputs are a multiple of 16."""
    tiles, slices = -(-len(output) // 16), weight.codes.shape[1]
    arguments = _Values(
        weight.codes.data_ptr(), weight.tables.data_ptr(), weight.scale.data_ptr(), output.data_ptr(), slices,
        first + len(output), weight.inputs, first // 16, tiles, DTYPES[output.dtype], 1 / weight.residual,
    )  # fmt: skip
    constants = {"BITS": weight.bits, "COLUMNS": 1, "RANK": 0, "WARPS": 8}
    function = driver.load("lattice_values.cu", "lattice_values", driver.constants_of(constants), output.device)
    function.launch((-(-tiles * slices // 8), 1, 1), (256, 1, 1), 3072, [arguments])


def multiply(x: Tensor, weight: DeviceRotated, overlapped: bool = True) -> Tensor:
    """`x · Wᵀ [tokens, out]` for `x [tokens, in]` of up to 16 tokens, in its dtype."""
    rotated = rotate_for_product(x, weight.input, weight.right, overlapped)
    if weight.output is None:
        return multiply_rotated(rotated, weight.inner, x.dtype, overlapped=overlapped)[0]
    product = multiply_rotated(rotated, weight.inner, torch.float32, overlapped=overlapped)
    return rotate(product, weight.output, x.dtype, product.shape[0], overlapped)
