"""Integer codes made dense first, in plain torch."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Values(Protocol):
    """Anything that decodes itself with torch's operations."""

    def decoded(self) -> Tensor:
        """The values, `[out, in]` float32."""


def integer_values(weight: Values, dtype: torch.dtype) -> Tensor:
    """The values, `[out, in]`: float32 arithmetic, then rounded to `dtype`."""
    return weight.decoded().to(dtype)


def integer_matmul(x: Tensor, weight: Values) -> Tensor:
    """`x [..., in]` times the transposed values in the dtype of `x`, `[..., out]`."""
    return torch.nn.functional.linear(x, integer_values(weight, x.dtype))
