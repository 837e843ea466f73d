"""Products of float32 matrices on a GPU's tensor cores, without TF32: each factor as the sum of two bfloat16 numbers."""

from __future__ import annotations

import torch
from torch import Tensor

#: Multiplications from which on splitting both factors costs less than it gains.
LARGE = 2**32


def halves(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`matrix` as a sum of two bfloat16 matrices, to 2⁻¹⁷ of each entry."""
    high = matrix.to(torch.bfloat16)
    return high, torch.sub(matrix, high, out=torch.empty_like(high))


def row_of_halves(matrix: Tensor) -> Tensor:
    """The halves of `A [m, k]` in a row, `[m, 3 k]`: times `stacked_halves(B)` it is `A B` less the product of the low halves."""
    high, low = halves(matrix)
    return torch.cat((high, low, high), 1)


def pays(left: Tensor, columns: int) -> bool:
    """Whether the product of `left` with something of so many columns is large enough, on CUDA, to be split."""
    return left.is_cuda and left.dtype == torch.float32 and left.numel() * columns >= LARGE


def split_product(left: Tensor, right: Tensor) -> Tensor:
    """`A B` of `A [m, k]` and `B [k, n]`: in their dtype; of float32 on CUDA to about 2⁻¹⁶, at four times the rate.

    Three products of halves, exact in float32, in which they are added up; that of the two low halves is left out.
    """
    if not (left.is_cuda and left.dtype == right.dtype == torch.float32):
        return left @ right
    (high, low), (right_high, right_low) = halves(left), halves(right)
    total = torch.mm(high, right_high, out_dtype=torch.float32)
    torch.addmm(total, high, right_low, out_dtype=torch.float32, out=total)
    torch.addmm(total, low, right_high, out_dtype=torch.float32, out=total)
    return total


def stacked_halves(matrix: Tensor) -> Tensor:
    """The halves of `matrix [k, n]`, the upper one twice: `[3 k, n]`."""
    high, low = halves(matrix)
    return torch.cat((high, high, low))


def add_split_product_(total: Tensor, left: tuple[Tensor, Tensor], right: Tensor) -> None:
    """`total += Aᵀ B`, as `split_product`, in one pass over `total [m, n]`.

    Args:
        total: float32.
        left: the halves of `A [k, m]`.
        right: those of `B [k, n]`, stacked: `[3 k, n]`.
    """
    high, low = left
    factor = torch.cat((high, low, high))
    if total.is_cuda:
        torch.addmm(total, factor.t(), right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(factor.t().float(), right.float())
