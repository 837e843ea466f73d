"""What every rounding rule answers: fit its parameters, encode values, decode codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class GridParameters:
    """Where a grid lies, one per row of the fitted values.

    Attributes:
        scale: distance of neighbouring levels, `[rows, 1]` float32, already rounded to the dtype it is stored in.
        zero: code that stands for 0, `[rows, 1]`, an integer held in float32.
    """

    scale: Tensor
    zero: Tensor


#: How block kernels round: `round(t/s) + z` with an integer `z`, `round(t/s + z)` with a real one, or to a dtype.
Rounding: TypeAlias = Literal["integer", "real"] | torch.dtype


class Grid(Protocol):
    """A rounding rule for groups of weights.

    `vector_size` consecutive values share one code: 1 for integers, 8 for the E8 lattice.
    """

    @property
    def vector_size(self) -> int:
        """How many consecutive values are rounded together."""

    @property
    def rounding(self) -> Rounding | None:
        """How block kernels round to this grid; None if they cannot."""

    @property
    def largest_code(self) -> int:
        """The smallest is 0."""

    def fit(self, values: Tensor, importance: Tensor | None = None) -> GridParameters:
        """Parameters for every row of `values [rows, width]`.

        `importance`, `[width]` or `[rows, width]`, weighs the squared error of each value; a grid may ignore it.
        """

    def encode(self, values: Tensor, parameters: GridParameters) -> Tensor:
        """Codes of the nearest levels, integers `[rows, width / vector_size]`; vector grids' in int32, others' in the values' dtype."""

    def decode(self, codes: Tensor, parameters: GridParameters) -> Tensor:
        """The levels that `codes [rows, width / vector_size]` stand for, `[rows, width]`."""
