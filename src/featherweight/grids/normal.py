"""Normal-float grids: levels at quantiles of a normal distribution, on a scale that is the group's largest magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.base import GridParameters, Rounding
from featherweight.grids.uniform import SCALE_DTYPES, store_scale

BITS = (2, 3, 4, 8)
CPU = torch.device("cpu")

#: Probability beyond the outermost levels (bitsandbytes' constant, made for 4 bits and kept for all).
TAIL = 0.5 * (1 / 30 + 1 / 32)


@cache
def normal_levels(bits: int, device: torch.device = CPU) -> Tensor:
    """The `2^bits` levels in rising order, from −1 to 1 with 0 among them, `[2^bits]` float32; copied to a device once.

    Quantiles of N(0, 1) divided by the largest: at `2^(bits−1)` evenly spaced probabilities from `TAIL` to ½, the last of which
    is 0, and at `2^(bits−1)` more up to `1 − TAIL`. Dettmers et al. 2023, arXiv:2305.14314, equation 4.
    """
    half = 2 ** (bits - 1)
    below = torch.linspace(TAIL, 0.5, half, dtype=torch.float64)
    above = torch.linspace(0.5, 1 - TAIL, half + 1, dtype=torch.float64)
    quantiles = torch.special.ndtri(torch.cat([below[:-1], above]))
    levels = quantiles / torch.special.ndtri(torch.tensor(1 - TAIL, dtype=torch.float64))
    levels[half - 1] = 0.0
    return levels.to(device, torch.float32)


def decode_normal(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """`ŵ = s · level[q]` in float32, for solver, file and reload alike."""
    return normal_levels(bits, codes.device)[codes.long()] * scale


@dataclass(frozen=True)
class NormalGrid:
    """`2^bits` levels, dense around 0: `ŵ = s · level[q]`, `s = max |w|` of the group.

    Attributes:
        bits: of a code: 2, 3, 4 or 8.
        scale_dtype: in which scales are stored; `fit` rounds to it before anything is encoded.

    Raises:
        FeatherweightError: bits that the grid does not have.
    """

    bits: int
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        """Refuse settings that the grid does not have."""
        if self.bits not in BITS:
            raise FeatherweightError(
                "bits that the normal-float grid does not have", found=self.bits, expected=", ".join(map(str, BITS)),
                fix="use 4, or the uniform grid",
            )  # fmt: skip
        if self.scale_dtype not in SCALE_DTYPES:
            raise FeatherweightError(
                "scales cannot be stored in this dtype", found=self.scale_dtype, expected="float16, bfloat16 or float32"
            )

    @property
    def vector_size(self) -> int:
        """Every value has its own code."""
        return 1

    @property
    def rounding(self) -> Rounding | None:
        """Block kernels know equal steps only."""
        return None

    @property
    def largest_code(self) -> int:
        """`2^bits − 1`."""
        return 2**self.bits - 1

    def fit(self, values: Tensor, importance: Tensor | None = None) -> GridParameters:
        """Largest magnitude of every row of `values [rows, width]`, and the code of 0; `importance` is not used."""
        scale = store_scale(values.abs().amax(-1, keepdim=True), self.scale_dtype)
        return GridParameters(scale, torch.full_like(scale, 2 ** (self.bits - 1) - 1))

    def encode(self, values: Tensor, parameters: GridParameters) -> Tensor:
        """Codes of the nearest levels, in the dtype of `values`."""
        levels = normal_levels(self.bits, values.device)
        middles = (levels[1:] + levels[:-1]) / 2
        return torch.bucketize((values / parameters.scale).contiguous(), middles).to(values.dtype)

    def decode(self, codes: Tensor, parameters: GridParameters) -> Tensor:
        """The values of `codes`, float32."""
        return decode_normal(codes, parameters.scale, self.bits)
