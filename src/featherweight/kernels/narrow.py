"""What a block kernel needs to know of a narrow floating-point format."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Narrow(Protocol):
    """Sign, exponent, mantissa, without infinities; see `featherweight.grids.base.FloatFormat`."""

    @property
    def bits(self) -> int:
        """Of a code."""

    @property
    def mantissa(self) -> int:
        """Bits of the mantissa."""

    @property
    def smallest_exponent(self) -> int:
        """Of a normal number."""

    @property
    def largest(self) -> float:
        """Number of the format."""

    def nearest(self, values: Tensor) -> Tensor:
        """The nearest numbers of the format, float32."""

    def encode(self, numbers: Tensor) -> Tensor:
        """Their bit patterns, integers held in float32."""
