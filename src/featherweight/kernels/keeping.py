"""What a block kernel is told, and what it writes, where some weights are kept beside their codes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

#: Largest magnitude of a residual, by whether it is a float8_e5m2 or a float16 number.
LIMITS = {True: 57344.0, False: 65504.0}


@dataclass(frozen=True)
class Keeping:
    """A weight `t` is kept where `r_jj² (t − ŵ)² > threshold`: as the code of 0 plus the residual `t − ŵ(0)`.

    Attributes:
        threshold: absolute.
        narrow: whether residuals are rounded to float8_e5m2 numbers; else to float16.
        kept: written, `[columns, rows]` bool.
        residual: written, `[columns, rows]` float16, of every weight, kept or not.
    """

    threshold: float
    narrow: bool
    kept: Tensor
    residual: Tensor

    def of(self, columns: slice) -> Keeping:
        """That of some columns."""
        return Keeping(self.threshold, self.narrow, self.kept[columns], self.residual[columns])
