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
from featherweight.kernels.cuda.lattice_blocks import LANE_BITS, DeviceBlocks, turn

#: Tokens of one launch.
MOST_TOKENS = 16

#: Where the kernel puts its tables in shared memory, and how large they are.
TABLE = 65536

#: Blocks of a cluster, which share R; warps that multiply by L.
CLUSTER, HELPERS = 8, 4


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
class DeviceRanks:
    """A factor `R [rank, in]` in 4-bit codes, multiplied where the lattice is.

    Attributes:
        group: inputs that share a scale, a multiple of 64.
        codes, scales: from `encode_ranks`, `encode_left_scales` (float16).
    """

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
        ranks: its inner factor, where blocks multiply by it.
        blocks: the output's rotation, where blocks begin it; rows then stand in the order of blocks.
    """

    rows: int
    inputs: int
    bits: int
    codes: Tensor
    tables: Tensor
    scale: Tensor
    residual: float = 1.0
    left: DeviceLeft | None = None
    ranks: DeviceRanks | None = None
    blocks: DeviceBlocks | None = None


@dataclass(frozen=True, eq=False)
class DeviceRotated:
    """A lattice weight between rotations, with a low-rank term beside it.

    Attributes:
        inner: the lattice.
        input: rotation of the input.
        output: of the product; None for none. Blocks of the product may begin it.
        right: the low-rank term's inner factor, where the rotation of the input multiplies by it.
    """

    inner: DeviceLattice
    input: DeviceRotation
    output: DeviceRotation | None = None
    right: DeviceRight | None = None


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "codes", "tables", "scale", "planes", "steps", "left", "left_scales", "projected", "right", "right_scales", "factor",
            "output",
        )),
        *((name, ctypes.c_int) for name in (
            "tiles", "slices", "rows", "tokens", "left_group", "output_type", "most_tiles", "sums_at", "right_group",
            "right_groups", "twos", "near",
        )),
        ("input", ctypes.c_void_p), ("input_signs", ctypes.c_void_p),
        ("input_scale", ctypes.c_float), ("residual", ctypes.c_float),
    )  # fmt: skip


class _Values(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "tables", "scale", "output")),
        *(
            (name, ctypes.c_int)
            for name in ("slices", "rows", "inputs", "first_tile", "tiles", "type", "factor", "twos", "near")
        ),
        ("per_residual", ctypes.c_float),
    )


@dataclass(frozen=True, eq=False)
class Unrotated:
    """One token's input `x [1, size]`, which blocks rotate, each for itself."""

    x: Tensor
    rotation: DeviceRotation


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
    """The cut with the least work for the busiest block; a split must gain a tenth. Blocks that begin a rotation are given."""
    (tiles, slices), bits = weight.codes.shape[:2], weight.bits
    warps, depth = (16, 2) if tokens <= 8 else (12, 1)
    if weight.blocks is not None:
        return Shape(weight.rows // weight.blocks.rows, 1, warps, depth)

    def busiest(splits: int) -> float:
        return -(-tiles // max(1, processors // splits)) * -(-slices // splits) * (1 + 0.1 * (splits > 1))

    splits = min(range(1, 5 if may_split else 2), key=busiest)
    blocks = min(tiles, max(1, processors // splits))
    while blocks < tiles and _sum_bytes(-(-tiles // blocks), tokens, weight, warps) > _room(bits):
        blocks = min(tiles, blocks + processors)
    return Shape(blocks, splits, warps, depth)


def _room(bits: int) -> int:
    return max(TABLE - 1024, MOST_SHARED - TABLE * (3 if bits == 3 else 2))


def _columns(tokens: int) -> int:
    return 1 if tokens <= 4 else 2 if tokens <= 8 else 4


def _sum_bytes(tiles: int, tokens: int, weight: DeviceLattice, warps: int) -> int:
    """Shared memory of the sums of so many tiles, of the low-rank term, of what it multiplies, and of the rotation's factor."""
    sums = tiles * 16 * _columns(tokens) * 16 * (5 if weight.bits > 2 else 3) + 96
    sums += 0 if weight.blocks is None else 4 * weight.blocks.factor.numel()
    rank = 0 if weight.left is None else weight.left.rank
    shared = 0 if weight.ranks is None else tokens * 4 * (rank + 16 * warps * -(-rank // (16 * CLUSTER)))
    return sums + shared + (HELPERS * tokens * (2 * rank + 16) if rank else 0)


def most_tokens(weight: DeviceLattice) -> int:
    """Tokens of one launch."""
    if weight.blocks is None:
        return MOST_TOKENS
    tiles = weight.blocks.rows // 16
    return next(each for each in (16, 8, 4, 1) if _sum_bytes(tiles, each, weight, 16) <= _room(weight.bits))


def multiply_rotated(
    x: Rotated | Unrotated, weight: DeviceLattice, dtype: torch.dtype, shape: Shape | None = None, overlapped: bool = True
) -> Tensor:
    """The products of up to 16 tokens, `[splits, tokens, out]`; of several splits the sum is meant."""
    (tiles, slices), device = weight.codes.shape[:2], weight.codes.device
    tokens = 1 if isinstance(x, Unrotated) else x.steps.shape[0]
    if shape is None:
        shape = shape_for(weight, tokens, driver.processors(device), dtype == torch.float32)
    output = torch.empty(shape.splits, tokens, weight.rows, dtype=dtype, device=device)
    arguments = _Arguments(left_group=1, right_group=1)
    for name, tensor in (("codes", weight.codes), ("tables", weight.tables), ("scale", weight.scale), ("output", output)):
        setattr(arguments, name, tensor.data_ptr())
    arguments.tiles, arguments.slices, arguments.rows, arguments.tokens = tiles, slices, weight.rows, tokens
    arguments.output_type, arguments.most_tiles = DTYPES[dtype], -(-tiles // shape.blocks)
    arguments.residual = weight.residual
    constants = {"BITS": weight.bits, "COLUMNS": _columns(tokens), "WARPS": shape.warps, "DEPTH": shape.depth}
    constants |= _low_rank(arguments, weight, None if isinstance(x, Unrotated) else x.projected)
    constants |= _rotation(arguments, weight.blocks) | _input(arguments, x)
    end = TABLE * (3 if weight.bits == 3 else 2)
    sums = _sum_bytes(arguments.most_tiles, tokens, weight, shape.warps)
    if sums > TABLE - 1024:
        arguments.sums_at = end
        end += sums
    cluster, threads = constants["CLUSTER"], 32 * (shape.warps + constants["HELPERS"])
    function = driver.load("lattice.cu", "lattice_multiply", driver.constants_of(constants), device)
    grid = (shape.blocks // cluster, cluster, 1) if cluster > 1 else (shape.blocks, shape.splits, 1)
    function.launch(grid, (threads, 1, 1), end, [arguments], cluster=cluster, overlapped=overlapped)
    return output


def blocks_rotate(x: Tensor, weight: DeviceRotated) -> bool:
    """Whether blocks of the product can rotate `x [tokens, in]`: one token of 4096 or 8192."""
    rotation, inner = weight.input, weight.inner
    if (
        len(x) > 1
        or rotation.factor is not None
        or rotation.inverted
        or rotation.twos not in (12, 13)
        or weight.right is not None
    ):
        return False
    shape = shape_for(inner, 1, driver.processors(x.device), weight.output is not None)
    sums = _sum_bytes(-(-inner.codes.shape[0] // shape.blocks), 1, inner, shape.warps)
    return shape.warps == 16 and sums + 6 * rotation.size <= TABLE - 1024


def _input(arguments: _Arguments, x: Rotated | Unrotated) -> dict[str, int]:
    """The input's arguments and constants."""
    if isinstance(x, Rotated):
        arguments.planes, arguments.steps = x.planes.data_ptr(), x.steps.data_ptr()
        return {"INPUT": 0, "IN": 1}
    arguments.input, arguments.input_signs = x.x.data_ptr(), x.rotation.signs.data_ptr()
    arguments.input_scale = x.rotation.size**-0.5
    return {"INPUT": x.rotation.twos, "IN": DTYPES[x.x.dtype]}


def _low_rank(arguments: _Arguments, weight: DeviceLattice, projected: Tensor | None) -> dict[str, int]:
    """The low-rank term's arguments and constants."""
    left, ranks = weight.left, weight.ranks
    if left is None or (projected is None and ranks is None):
        return {"RANK": 0, "HELPERS": 0, "UNIT": 16, "CLUSTER": 1}
    arguments.left, arguments.left_scales, arguments.left_group = left.codes.data_ptr(), left.scales.data_ptr(), left.group
    near = 4 if weight.blocks is None else min(4, weight.blocks.near)
    constants = {"RANK": left.rank, "HELPERS": HELPERS, "UNIT": 1 << near, "CLUSTER": 1 if ranks is None else CLUSTER}
    if ranks is not None:
        arguments.right, arguments.right_scales = ranks.codes.data_ptr(), ranks.scales.data_ptr()
        arguments.right_group, arguments.right_groups = ranks.group, len(ranks.scales)
    elif projected is not None:
        arguments.projected = projected.data_ptr()
    return constants


def _rotation(arguments: _Arguments, blocks: DeviceBlocks | None) -> dict[str, int]:
    """Those of the part of the output's rotation that blocks do."""
    if blocks is None:
        return {"FACTOR": 0, "TWOS": 0}
    arguments.factor, arguments.twos, arguments.near = blocks.factor.data_ptr(), blocks.twos, blocks.near
    return {"FACTOR": len(blocks.factor), "TWOS": min(blocks.near, LANE_BITS)}


def values(weight: DeviceLattice, output: Tensor, first: int) -> None:
    """Rows from `first` on (a multiple of 16) into `output [rows, in]`, bf16 or fp16; inputs are a multiple of 16.

    They come in the weight's own order, whatever that of blocks.
    """
    tiles, slices = -(-len(output) // 16), weight.codes.shape[1]
    blocks = weight.blocks
    order = (1, 31, 31) if blocks is None else (blocks.size >> blocks.twos, blocks.twos, blocks.near)
    arguments = _Values(
        weight.codes.data_ptr(), weight.tables.data_ptr(), weight.scale.data_ptr(), output.data_ptr(), slices,
        first + len(output), weight.inputs, first // 16, tiles, DTYPES[output.dtype], *order, 1 / weight.residual,
    )  # fmt: skip
    constants = {"BITS": weight.bits, "COLUMNS": 1, "RANK": 0, "UNIT": 16, "HELPERS": 0, "WARPS": 8}
    function = driver.load("lattice_values.cu", "lattice_values", driver.constants_of(constants), output.device)
    function.launch((-(-tiles * slices // 8), 1, 1), (256, 1, 1), 3072, [arguments])


def multiply(x: Tensor, weight: DeviceRotated, overlapped: bool = True) -> Tensor:
    """`x · Wᵀ [tokens, out]` for `x [tokens, in]` of up to `most_tokens`, in its dtype."""
    rotated: Rotated | Unrotated = Unrotated(x, weight.input)
    if not blocks_rotate(x, weight):
        rotated = rotate_for_product(x, weight.input, weight.right, overlapped)
    if weight.output is None:
        return multiply_rotated(rotated, weight.inner, x.dtype, overlapped=overlapped)[0]
    product = multiply_rotated(rotated, weight.inner, torch.float32, overlapped=overlapped)
    if weight.inner.blocks is not None:
        return turn(product[0], weight.inner.blocks, x.dtype, overlapped)
    return rotate(product, weight.output, x.dtype, product.shape[0], overlapped)
