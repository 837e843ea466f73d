"""The grid of weights that are not rounded to levels, only to the dtype in which they are stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.grids.base import GridParameters, Rounding


@dataclass(frozen=True)
class Exact:
    """Every number of `dtype` is a level, and its own code."""

    dtype: torch.dtype

    @property
    def vector_size(self) -> int:
        """Every value by itself."""
        return 1

    @property
    def largest_code(self) -> int:
        """No codes are stored."""
        return 0

    @property
    def rounding(self) -> Rounding:
        """To the dtype."""
        return self.dtype

    def fit(self, values: Tensor, importance: Tensor | None = None) -> GridParameters:
        """Nothing to fit: scale 1, zero 0."""
        return GridParameters(torch.ones_like(values[:, :1]), torch.zeros_like(values[:, :1]))

    def encode(self, values: Tensor, parameters: GridParameters) -> Tensor:
        """The nearest numbers of `dtype`, in float32."""
        return values.to(self.dtype).to(values.dtype)

    def decode(self, codes: Tensor, parameters: GridParameters) -> Tensor:
        """The same."""
        return codes
