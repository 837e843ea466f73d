"""Products of int8 matrices, exact: by torch's int8 product, or by float32 products short enough to lose nothing."""

from __future__ import annotations

import torch
from torch import Tensor

#: Inputs whose products of two int8 numbers sum to less than 2^24, which float32 holds exactly.
EXACT = 1024


def int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`x [tokens, in]` times the transposed `weight [out, in]`, both int8, `[tokens, out]` int32 or int64; exact."""
    sums = torch.zeros(len(x), len(weight), dtype=torch.int64, device=x.device)
    for part, columns in zip(x.split(EXACT, 1), weight.split(EXACT, 1), strict=True):
        sums += (part.to(torch.float32) @ columns.to(torch.float32).T).to(torch.int64)
    return sums


def torch_int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """The same by `torch._int_mm`, int32."""
    return torch._int_mm(x, weight.T)
