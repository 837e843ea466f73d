"""Half of a symmetric matrix, as it is kept on disk."""

from __future__ import annotations

import torch
from torch import Tensor

_TILE = 512  # rows and columns transposed at once: whole matrices are read against the grain


def mirror_(matrix: Tensor) -> Tensor:
    """`matrix [n, n]`, what lies below its diagonal overwritten by what lies above, which a product may round otherwise."""
    for start in range(0, len(matrix), _TILE):
        rows = matrix[start : start + _TILE]
        inside = rows[:, start : start + _TILE]
        inside.copy_(inside.triu() + inside.triu(1).T)
        for below in range(start + _TILE, len(matrix), _TILE):
            matrix[below : below + _TILE, start : start + _TILE] = rows[:, below : below + _TILE].T
    return matrix


def upper_half(matrix: Tensor) -> Tensor:
    """The rows of the upper triangle one after the other, `[n (n + 1) / 2]`."""
    return torch.cat([row[index:] for index, row in enumerate(matrix)])


def from_upper_half(half: Tensor) -> Tensor:
    """The symmetric matrix `[n, n]` whose `upper_half` this is."""
    size = int((8 * half.numel() + 1) ** 0.5 - 1) // 2
    matrix = half.new_empty(size, size)
    for index, part in enumerate(half.split(list(range(size, 0, -1)))):
        matrix[index, index:] = part
    return mirror_(matrix)
