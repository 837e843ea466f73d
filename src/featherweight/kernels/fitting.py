"""What a kernel needs to know to fit the uniform grid of a group of columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fitting:
    """A uniform grid with integer zero points, fitted group by group; see `featherweight.grids.uniform`.

    Attributes:
        by: "minmax", "weighted" or "mse".
        symmetric: whether the zero point is the middle code.
        largest_code: codes run from 0 to this.
        scale_dtype: in which scales are stored.
        apply: scale and zero `[rows]` of `values [rows, width]`, `importance [width]`: the definition, in plain torch.
    """

    by: Literal["minmax", "weighted", "mse"]
    symmetric: bool
    largest_code: int
    scale_dtype: torch.dtype
    apply: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]

    def scale_limits(self) -> tuple[float, float]:
        """The smallest and largest magnitude of a stored scale: float16 keeps its subnormals, the others do not."""
        limits = torch.finfo(self.scale_dtype)
        return limits.smallest_normal * (limits.eps if self.scale_dtype == torch.float16 else 1.0), limits.max
