"""What every rounding rule answers: fit its parameters, encode values, decode codes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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


@dataclass(frozen=True)
class FloatFormat:
    """A narrow floating-point format without infinities: sign, exponent, mantissa, subnormals.

    Attributes:
        name: as the field writes it.
        bits: of a code.
        mantissa: bits of the mantissa.
        smallest_exponent: of a normal number.
        largest: number of the format.
    """

    name: str
    bits: int
    mantissa: int
    smallest_exponent: int
    largest: float

    @property
    def smallest(self) -> float:
        """The smallest positive number of the format."""
        return 2.0 ** (self.smallest_exponent - self.mantissa)

    def nearest(self, values: Tensor) -> Tensor:
        """The nearest numbers of the format to float32 `values` of any shape, ties to the even mantissa, ends clamped."""
        size = values.abs().clamp_(max=self.largest)
        step = self._step(size)
        return size.div_(step).round_().mul_(step).copysign_(values)

    def encode(self, numbers: Tensor) -> Tensor:
        """Bit patterns of float32 `numbers` of the format, integers held in float32; that of −0 is 0."""
        size = numbers.abs()
        step = self._step(size)
        binade = (step.view(torch.int32) >> 23) - (self.smallest_exponent - self.mantissa + 127)
        codes = binade.to(torch.float32).mul_(2**self.mantissa).add_(size.div_(step))
        return codes.add_(numbers < 0, alpha=2 ** (self.bits - 1))

    def decode(self, codes: Tensor) -> Tensor:
        """The numbers of bit patterns of any shape and dtype, float32."""
        return _numbers(self, codes.device)[codes.to(torch.int32)]

    def _step(self, size: Tensor) -> Tensor:
        """The distance of neighbouring numbers around float32 `size`, not negative; exact on every device."""
        return power_of_two(size).clamp_(2.0**self.smallest_exponent).mul_(2.0**-self.mantissa)


def power_of_two(values: Tensor) -> Tensor:
    """`2^⌊log2 v⌋` of positive float32 values; 0 of 0 and of subnormals."""
    return (values.contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)


@cache
def _numbers(format: FloatFormat, device: torch.device) -> Tensor:
    """The number of every code, `[2^bits]` float32; a pattern above the largest number (NaN) stands for the largest."""
    patterns = torch.arange(2 ** (format.bits - 1))
    binade, fraction = patterns >> format.mantissa, patterns & (2**format.mantissa - 1)
    whole = fraction + torch.where(binade > 0, 2**format.mantissa, 0)
    numbers = whole * 2.0 ** (binade.clamp(min=1) - 1 + format.smallest_exponent - format.mantissa)
    numbers = numbers.to(torch.float32).clamp(max=format.largest)
    return torch.cat([numbers, -numbers]).to(device)


#: How block kernels round: `round(t/s) + z` with an integer `z`, `round(t/s + z)` with a real one, `t/s` to a narrow format,
#: or `t` to a dtype.
Rounding: TypeAlias = Literal["integer", "real"] | torch.dtype | FloatFormat


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
