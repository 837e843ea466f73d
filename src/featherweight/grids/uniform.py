"""Uniform grids: equally spaced levels, with 0 always among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.base import GridParameters, Rounding
from featherweight.grids.search import search_mse, search_weighted

Fit = Literal["minmax", "mse", "weighted", "clipped"]
#: Standard deviations from the mean at which "clipped" cuts the range.
DEVIATIONS = 2.5
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def decode_uniform(codes: Tensor, scale: Tensor, zero: Tensor | float) -> Tensor:
    """`ŵ = s · (q − z)` in float32: the one place where codes become values, for solver, file and reload alike."""
    return (codes - zero).mul_(scale)


def store_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`scale` rounded to `dtype` and back to float32, its magnitude clamped to the positive finite numbers of `dtype`.

    float16 keeps its subnormals (down to 2⁻²⁴): narrow groups at 8 bits need them. The other dtypes stop at their
    smallest normal, because devices may flush what lies below.
    """
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal * (limits.eps if dtype == torch.float16 else 1.0)
    magnitude = scale.abs().to(torch.float32).clamp(smallest, limits.max).to(dtype).to(torch.float32)
    return torch.where(scale < 0, -magnitude, magnitude)


@dataclass(frozen=True)
class UniformGrid:
    """`2^bits` equally spaced levels per row: `q = clamp(round(w/s) + z, 0, 2^bits − 1)`, `ŵ = s (q − z)`.

    `round` is half-to-even. `z` is an integer in the range of the codes, so that 0 is a level. With `symmetric` it is
    the middle code `2^(bits−1)` and is not stored.

    Attributes:
        bits: of a code, 2 to 8.
        symmetric: whether the range is widened to `[−a, a]` and the zero point fixed.
        fit_by: how `fit` chooses the range. "minmax": the extremes (GPTQ, §2.5 of its code's quantiser). "mse": the
            authors' search, one shrink factor for both ends that minimises `Σ |ŵ − w|^2.4`. "weighted": ours,
            `Σ importance · (ŵ − w)²` over both ends separately, then a least-squares refit of the scale; a symmetric
            grid may get a negative scale. "clipped": the extremes, but no further than 2.5 standard deviations from the mean.
        scale_dtype: in which scales are stored; `fit` rounds to it before anything is encoded.

    Raises:
        FeatherweightError: a setting outside these ranges.
    """

    bits: int
    symmetric: bool = False
    fit_by: Fit = "minmax"
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        """Refuse settings outside their ranges."""
        if self.bits not in range(2, 9):
            raise FeatherweightError("bits outside the integer grids", found=self.bits, expected="2 to 8", fix="use bits=4")
        if self.fit_by not in get_args(Fit):
            raise FeatherweightError(
                "unknown way to fit a grid", found=self.fit_by, expected=", ".join(get_args(Fit)), fix="use fit='minmax'"
            )
        if self.scale_dtype not in SCALE_DTYPES:
            raise FeatherweightError(
                "scales cannot be stored in this dtype", found=self.scale_dtype, expected="float16, bfloat16 or float32"
            )

    @property
    def vector_size(self) -> int:
        """Every value has its own code."""
        return 1

    @property
    def rounding(self) -> Rounding:
        """Zero points are integers."""
        return "integer"

    @property
    def largest_code(self) -> int:
        """`2^bits − 1`; the smallest is 0."""
        return 2**self.bits - 1

    def fit(self, values: Tensor, importance: Tensor | None = None) -> GridParameters:
        """Scale and zero point of every row of `values [rows, width]`, in float32.

        `importance`, `[width]` or `[rows, width]` and non-negative, is used by `fit_by="weighted"` only (None: all ones).
        A row of zeros gets the range `[−1, 1]`; any grid fitted here decodes its zeros to exactly 0.
        """
        values = values.to(torch.float32)
        low, high = self.ends(values)
        if self.fit_by == "mse":
            return search_mse(self, values, low, high)
        if self.fit_by == "weighted":
            return search_weighted(self, values, low, high, importance)
        return self.between(low, high)

    def ends(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value per row, `[rows, 1]`, widened to hold 0 and, if symmetric, to `[−a, a]`."""
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        if self.fit_by == "clipped":
            mean, spread = values.mean(-1, keepdim=True), DEVIATIONS * values.std(-1, keepdim=True, correction=0)
            low, high = torch.maximum(low, mean - spread), torch.minimum(high, mean + spread)
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = torch.where(low < 0, -high, low)
        empty = (low == 0) & (high == 0)
        return torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)

    def between(self, low: Tensor, high: Tensor) -> GridParameters:
        """The grid whose levels span `[low, high]`, with `low ≤ 0 ≤ high`; any equal shapes."""
        return self.with_scale((high - low) / self.largest_code, low)

    def with_scale(self, scale: Tensor, low: Tensor) -> GridParameters:
        """The grid of this scale, rounded as it is stored, whose first level lies nearest to `low`."""
        scale = store_scale(scale, self.scale_dtype)
        if self.symmetric:
            zero = torch.full_like(scale, (self.largest_code + 1) / 2)
        else:
            zero = torch.round(-low / scale).clamp(0, self.largest_code)
        return GridParameters(scale, zero)

    def encode(self, values: Tensor, parameters: GridParameters) -> Tensor:
        """Codes `0 … 2^bits − 1` of the nearest levels, integers held in float32; shapes broadcast."""
        codes = torch.round(values / parameters.scale).add_(parameters.zero)
        return codes.clamp_(0, self.largest_code)

    def decode(self, codes: Tensor, parameters: GridParameters) -> Tensor:
        """The values of `codes`, float32; shapes broadcast."""
        return decode_uniform(codes, parameters.scale, parameters.zero)
