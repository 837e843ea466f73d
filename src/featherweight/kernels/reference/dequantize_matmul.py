"""`x · Wᵀ` by making the whole weight dense first."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Dequantizable(Protocol):
    """Anything that can say its values."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The values, `[out, in]`."""

    def matmul(self, x: Tensor) -> Tensor:
        """`x · Wᵀ`, `[..., out]`."""


def dequantize_matmul(x: Tensor, weight: Dequantizable) -> Tensor:
    """`x [..., in]` times the transposed weight, `[..., out]`, in the dtype of `x`: the weight's own composition."""
    return weight.matmul(x)
