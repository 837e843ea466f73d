"""Random orthogonal matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A rotation or reflection `[size, size]`, float32, uniform among all: QR of a normal matrix, signs by R's diagonal."""
    basis, triangle = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return (basis * triangle.diagonal().sign()).to(torch.float32)


def hadamard(size: int, generator: torch.Generator) -> Tensor:
    """`H diag(±1) / √size [size, size]`, float32, with random signs; `size` is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(0, 2, (size,), generator=generator) * 2 - 1
    return matrix * signs / size**0.5
