"""Which columns share a grid during the walk, and when each group's grid is fitted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.grids.base import GridParameters
from featherweight.kernels.walking import MOST


@dataclass(frozen=True)
class Groups:
    """Groups of columns by walked position.

    Attributes:
        size: columns of a group; the last one may be smaller.
        of_walked: group of every walked column, `[in]` int64.
        order: stored position of every walked column, `[in]` int64.
        scattered: whether a group's columns are not walked one after the other (static groups with an order).
        scale, zero: one grid per group and row, `[groups, rows]` float32, filled as groups are reached.
        in_order: whether `order` is known to be the stored one.
    """

    size: int
    of_walked: Tensor
    order: Tensor
    scattered: bool
    scale: Tensor
    zero: Tensor
    in_order: bool = False

    @classmethod
    def form(cls, order: Tensor, rows: int, group_size: int | None, static: bool, in_order: bool = False) -> Groups:
        """Groups of consecutive stored columns (`static`) or of consecutive walked ones."""
        width = len(order)
        size = width if group_size is None else min(group_size, width)
        positions = torch.arange(width, device=order.device)
        of_walked = (order if static else positions).div(size, rounding_mode="floor")
        scattered = static and not in_order and not torch.equal(order, positions)
        scale = torch.ones(-(-width // size), rows, device=order.device)
        return cls(size, of_walked, order, scattered, scale, torch.zeros_like(scale), in_order)

    @property
    def width(self) -> int:
        """Columns."""
        return len(self.order)

    @property
    def whole_rows(self) -> bool:
        """Whether all columns are one group, and more than a kernel holds at once."""
        return len(self.scale) == 1 and self.width > MOST

    def put(self, group: int, parameters: GridParameters) -> None:
        """Enter the fitted grid of a group."""
        self.scale[group] = parameters.scale[:, 0]
        self.zero[group] = parameters.zero[:, 0]

    def parameters(self, group: int) -> GridParameters:
        """The grid of a group, `[rows, 1]` each."""
        return GridParameters(self.scale[group, :, None], self.zero[group, :, None])

    def members(self, group: int) -> Tensor | slice:
        """Walked positions of a group's columns, in stored order."""
        if not self.scattered:
            return slice(group * self.size, min((group + 1) * self.size, self.width))
        walked = (self.of_walked == group).nonzero()[:, 0]
        return walked[self.order[walked].argsort()]

    def starts(self) -> list[int]:
        """Walked positions at which a group of consecutive columns begins; none where groups are scattered."""
        return [] if self.scattered else list(range(0, self.width, self.size))

    def stored_index(self) -> Tensor | None:
        """Group of every stored column, `[in]`; None where groups are runs of consecutive stored columns."""
        if self.in_order:
            return None
        index = self.of_walked[self.order.argsort()]
        consecutive = torch.arange(self.width, device=index.device).div(self.size, rounding_mode="floor")
        return None if torch.equal(index, consecutive) else index


def cut_blocks(width: int, block: int, views: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Blocks `[start, stop)` of at most `block` columns, such that no view begins inside a block and ends beyond it.

    A view is a run of columns that someone looks at when the first of them is reached (a group, a span of a decision);
    all of it must have received the feedback of everything before. Feedback beyond a block waits for the block's end.
    """
    blocks, start = [], 0
    while start < width:
        stop = min(start + block, width)
        crossing = [first for first, last in views if start < first < stop < last]
        stop = min(crossing, default=stop)
        blocks.append((start, stop))
        start = stop
    return blocks
