"""What a kernel needs to know to round vectors of eight columns to an E8 codebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

#: Columns that share a code.
SIZE = 8


@dataclass(frozen=True)
class Vectors:
    """A codebook of `featherweight.grids.e8`.

    Attributes:
        bits: of a value: 2, 3 or 4.
        residual_scale: what the first codeword's error is multiplied by before it is rounded; 1 at 2 bits.
        by_key: base vector of each key, see `featherweight.grids.e8_codebook`; int32, on the device of the weights.
        apply: codes `[rows]` and values `[rows, 8]` of `values [rows, 8]` on scales `[rows]`: the definition, in plain torch.
    """

    bits: int
    residual_scale: float
    by_key: Tensor
    apply: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
