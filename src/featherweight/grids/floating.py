"""Floating grids: levels lie denser around 0, as narrow floating-point formats have them (FP8, FP4, NVFP4, MXFP4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.base import FloatFormat, GridParameters, Rounding, power_of_two
from featherweight.grids.search import NORM, Best, by_chunks
from featherweight.grids.uniform import Fit, store_scale

#: The element formats by name: FP8 as OCP 8-bit floating point (no infinities), FP4 as OCP Microscaling v1.0, table 5.
E4M3 = FloatFormat("e4m3", bits=8, mantissa=3, smallest_exponent=-6, largest=448.0)
E2M1 = FloatFormat("e2m1", bits=4, mantissa=1, smallest_exponent=0, largest=6.0)
FORMATS = {"e4m3": E4M3, "e2m1": E2M1}

#: In which scales can be stored; float8_e4m3fn beside one float32 scale of the whole weight.
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e8m0fnu)

#: Scales that a search tries, relative to the one that maps the largest value to the largest level: 1.5 maps it to 4 in FP4.
FACTORS = tuple(0.5 + 0.05 * step for step in range(23))

#: Where the largest scale of a weight lies in E4M3. Half of the format's range stays free for weights that grow in a walk.
LARGEST_STORED_SCALE = 224.0


@dataclass(frozen=True)
class FloatingGrid:
    """`ŵ = s · f` with `f` the nearest number of a narrow floating-point format, ties to the even mantissa; 0 is a level.

    A code is the format's own bit pattern (sign, exponent, mantissa); negative zero is written as zero.

    Attributes:
        element: the format of `f`, "e4m3" or "e2m1".
        scale_dtype: in which scales are stored; `fit` rounds to it before anything is encoded. float8_e4m3fn: to a multiple
            of `tensor_scale` (NVFP4). float8_e8m0fnu: to a power of two.
        fit_by: how `fit` chooses the scale. "minmax": the largest value becomes the largest level; a power of two is
            `2^(⌊log2 max |w|⌋ − ⌊log2 largest level⌋)`, as OCP Microscaling v1.0, section 6.3, which clips values above the
            largest level. "mse": of 23 scales around that the one that minimises `Σ |ŵ − w|^2.4`. "weighted": likewise
            `Σ importance · (ŵ − w)²`.
        tensor_scale: of the whole weight, a float32 number; 1 unless scales are float8_e4m3fn.

    Raises:
        FeatherweightError: a setting outside these.
    """

    element: str
    scale_dtype: torch.dtype = torch.bfloat16
    fit_by: Fit = "minmax"
    tensor_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings outside their ranges."""
        checks = {
            "floating format": (self.element, tuple(FORMATS)),
            "dtype for scales of a floating grid": (self.scale_dtype, SCALE_DTYPES),
            "way to fit a grid": (self.fit_by, get_args(Fit)),
        }
        for what, (found, expected) in checks.items():
            if found not in expected:
                raise FeatherweightError(f"unknown {what}", found=found, expected=", ".join(map(str, expected)))

    @property
    def format(self) -> FloatFormat:
        """The format of `f`."""
        return FORMATS[self.element]

    @property
    def vector_size(self) -> int:
        """Every value has its own code."""
        return 1

    @property
    def rounding(self) -> Rounding:
        """To the format."""
        return self.format

    @property
    def largest_code(self) -> int:
        """`2^bits − 1`; the smallest is 0."""
        return 2**self.format.bits - 1

    def over(self, weight: Tensor) -> FloatingGrid:
        """The grid with the tensor scale that `weight`, of any shape, asks for: its largest scale is stored as 224."""
        if self.scale_dtype != torch.float8_e4m3fn:
            return self
        largest = weight.detach().to(torch.float32).abs().amax() / (self.format.largest * LARGEST_STORED_SCALE)
        return replace(self, tensor_scale=float(largest.clamp(torch.finfo(torch.float32).smallest_normal)))

    def fit(self, values: Tensor, importance: Tensor | None = None) -> GridParameters:
        """The scale of every row of `values [rows, width]`, in float32; `zero` is 0.

        `importance`, `[width]` or `[rows, width]` and non-negative, is used by `fit_by="weighted"` only (None: all ones). A
        row of zeros gets some positive scale.
        """
        values = values.to(torch.float32)
        exact = values.abs().amax(-1, keepdim=True) / self.format.largest
        if self.fit_by == "minmax":
            return self.with_scale(exact)
        weights = importance if self.fit_by == "weighted" else None
        factors = torch.tensor(FACTORS, device=values.device)[:, None, None]

        def search(values: Tensor, exact: Tensor, _: Tensor, importance: Tensor | None) -> GridParameters:
            best = Best(values)
            for several in (torch.ones_like(factors[:1]), factors):  # of equals the first
                parameters = self.with_scale(several * exact)
                error = self.nearest(values / parameters.scale).mul_(parameters.scale).sub_(values)
                error = error.abs_().pow_(NORM) if self.fit_by == "mse" else error.square_()
                best.offer(parameters, (error if importance is None else error.mul_(importance)).sum(-1, keepdim=True))
            return best.parameters

        return by_chunks(search, values, exact, exact, weights)

    def with_scale(self, scale: Tensor) -> GridParameters:
        """The grid of this scale, rounded as it is stored; any shape, not negative."""
        if self.scale_dtype == torch.float8_e8m0fnu:
            limits = torch.finfo(torch.float32)
            largest = (scale * self.format.largest).clamp(limits.smallest_normal * 2**10, limits.max)
            stored = power_of_two(largest) / power_of_two(torch.full_like(largest, self.format.largest))
        elif self.scale_dtype == torch.float8_e4m3fn:
            relative = (scale / self.tensor_scale).clamp(E4M3.smallest, E4M3.largest)
            stored = E4M3.nearest(relative) * self.tensor_scale
        else:
            stored = store_scale(scale, self.scale_dtype)
        return GridParameters(stored, torch.zeros_like(stored))

    def stored_scale(self, scale: Tensor) -> Tensor:
        """Fitted scales as they are written, in `scale_dtype`."""
        return (scale / self.tensor_scale).to(self.scale_dtype)

    def nearest(self, values: Tensor) -> Tensor:
        """The nearest numbers of the format."""
        return self.format.nearest(values)

    def encode(self, values: Tensor, parameters: GridParameters) -> Tensor:
        """Codes of the nearest levels, integers held in float32; shapes broadcast."""
        return self.format.encode(self.nearest(values / parameters.scale))

    def decode(self, codes: Tensor, parameters: GridParameters) -> Tensor:
        """The values of `codes`, float32; shapes broadcast."""
        return self.format.decode(codes) * parameters.scale
