"""What a kernel needs to know to fit SpQR's two-level grid, and where it writes the second level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

#: Columns of a group, as kernels hold them at once.
GROUP = 16


@dataclass(frozen=True)
class SecondLevel:
    """Scales and zeros of groups as they are stored; of some groups, or of all.

    Attributes:
        scale_codes, zero_codes: `[groups, rows]` uint8.
        scale_grids, zero_grids: scale and zero of every `second` rows, `[groups, ⌈rows / second⌉, 2]` float16.
    """

    scale_codes: Tensor
    zero_codes: Tensor
    scale_grids: Tensor
    zero_grids: Tensor

    def of(self, groups: slice) -> SecondLevel:
        """That of some groups."""
        return SecondLevel(self.scale_codes[groups], self.zero_codes[groups], self.scale_grids[groups], self.zero_grids[groups])

    def take(self, other: SecondLevel) -> None:
        """Copy what `other` holds."""
        for name, tensor in vars(self).items():
            tensor.copy_(getattr(other, name))


@dataclass(frozen=True)
class TwoLevelFitting:
    """A two-level grid with real zeros; see `featherweight.grids.two_level`.

    Attributes:
        largest_code: codes run from 0 to this.
        scale_levels, zero_levels: largest code of a scale, and of a zero.
        second: consecutive rows that share a second grid.
        weighted: whether ranges and codes are searched; else the extremes tell.
        gain: values that gain more than this by being left out of the fit are left out; None for none.
        apply: scales and zeros `[rows]` of `values [rows, width]`, `importance [width]`, then the second level of this one
            group: the definition, in plain torch.
    """

    largest_code: int
    scale_levels: int
    zero_levels: int
    second: int
    weighted: bool
    gain: float | None
    apply: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, SecondLevel]]
