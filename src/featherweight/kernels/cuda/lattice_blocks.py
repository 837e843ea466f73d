"""The output's rotation in two halves: what lies within the rows of a block follows the product there, the rest is a kernel."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.kernels.cuda import driver
from featherweight.kernels.cuda.hadamard import DTYPES

#: Rows of a block at most, bits of neighbours that lanes add up, size of what is left beside them.
MOST_ROWS, LANE_BITS, MOST_FACTOR = 256, 5, 64


@dataclass(frozen=True, eq=False)
class DeviceBlocks:
    """`diag(signs) Hᵀ`, `H = A ⊗ Sylvester(2^twos) / √size`: blocks hold all of `A` and `2^near` neighbours.

    Attributes:
        size: of a row.
        twos: exponent of Sylvester's part.
        near: exponent of the neighbours.
        signs: `[size / 8]` uint8, a set bit for −1.
        factor: signs of `Aᵀ ⊗ Sylvester` beside those neighbours that lanes add up, from `encode_signs`.
    """

    size: int
    twos: int
    near: int
    signs: Tensor
    factor: Tensor

    @property
    def rows(self) -> int:
        """Of a block."""
        return self.size >> self.twos << self.near


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "signs", "output")),
        *((name, ctypes.c_int) for name in ("tokens", "rows", "twos", "near")),
        ("scale", ctypes.c_float),
    )


def near_bits(size: int, twos: int, processors: int) -> int | None:
    """`near`, with as many blocks as the largest power of two of multiprocessors; None where rows do not divide so."""
    near = twos - (processors.bit_length() - 1)
    rows = size >> twos << max(near, 0)
    possible = processors >= 8 and near >= 0 and rows % 16 == 0 and rows <= MOST_ROWS
    return near if possible and rows >> min(near, LANE_BITS) <= MOST_FACTOR else None


def turn(product: Tensor, blocks: DeviceBlocks, dtype: torch.dtype, overlapped: bool = True) -> Tensor:
    """What is left of the rotation, of `product [tokens, size]` float32 by blocks; in `dtype`."""
    tokens = len(product)
    output = torch.empty(tokens, blocks.size, dtype=dtype, device=product.device)
    arguments = _Arguments(
        product.data_ptr(), blocks.signs.data_ptr(), output.data_ptr(), tokens, blocks.rows, blocks.twos, blocks.near,
        blocks.size**-0.5,
    )  # fmt: skip
    constants = {"BLOCKS": blocks.twos - blocks.near, "OUT": DTYPES[dtype], "WARPS": 2}
    function = driver.load("lattice_turn.cu", "lattice_turn", driver.constants_of(constants), product.device)
    function.launch((-(-tokens * blocks.rows // 8), 1, 1), (64, 1, 1), 0, [arguments], overlapped=overlapped)
    return output
