"""Learned clipping: ranges of integer grids as parameters, and rounding that gradients pass through."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.grids.base import GridParameters
from featherweight.grids.uniform import UniformGrid
from featherweight.solvers.result import Solved

#: Logits that learning starts from: ends at `σ(4) = 0.982` of the extremes.
START = 4.0


@dataclass(frozen=True, eq=False)
class Ranges:
    """The range of every group of a weight, whose ends are learned shares `σ(γ), σ(β)` of its extremes.

    Logits are `[ends, rows, groups]`: γ of the largest and β of the smallest value, or one of both on a symmetric grid. Source:
    OmniQuant's learnable weight clipping (Shao et al. 2023, arXiv:2308.13137, eq. 2).

    Attributes:
        grid: the rounding rule.
        size: inputs of a group; the last one may be smaller.
        values: what is rounded, `[rows, in]` float32.
        low, high: extremes of every group, 0 between them, `[rows, groups]`.
    """

    grid: UniformGrid
    size: int
    values: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, values: Tensor, grid: UniformGrid, group_size: int | None) -> Ranges:
        """The ranges of `values [rows, in]` in groups of `group_size` inputs, None for whole rows."""
        width = values.shape[1]
        size = width if group_size is None else min(group_size, width)
        low, high = grid.ends(_grouped(values, size))
        return cls(grid, size, values, low[..., 0], high[..., 0])

    def start(self) -> Tensor:
        """Logits to begin with."""
        ends = 1 if self.grid.symmetric else 2
        return torch.full((ends, *self.low.shape), START, device=self.low.device)

    def parameters(self, logits: Tensor | None) -> GridParameters:
        """Scales and zero points `[rows, groups]`, as they are stored; without logits of the whole range."""
        low, high = self._clipped(logits)
        return self.grid.with_scale((high - low) / self.grid.largest_code, low)

    @torch.no_grad()
    def solve(self, logits: Tensor | None) -> Solved:
        """Every value to the nearest level of its clipped grid."""
        parameters = self.parameters(logits)
        scale, zero = self._spread(parameters.scale), self._spread(parameters.zero)
        codes = self.grid.encode(self.values, GridParameters(scale, zero))
        decoded = self.grid.decode(codes, GridParameters(scale, zero))
        return Solved(codes.to(torch.uint8), parameters.scale, parameters.zero, decoded)

    def rounded(self, logits: Tensor) -> Tensor:
        """The values of `solve`, bit for bit, whose gradient reaches the logits straight through the rounding, `[rows, in]`.

        Inside the range `∂ŵ/∂s = round(w/s) − w/s`; what is clipped moves with its end of the range.
        """
        solved = self.solve(logits)
        low, high = self._clipped(logits)
        scale = (high - low) / self.grid.largest_code
        zero = solved.zeros if self.grid.symmetric else -low / scale
        ends = -zero * scale, (self.grid.largest_code - zero) * scale
        shifted = torch.round(self.values / self._spread(solved.scales)) + self._spread(solved.zeros)
        ratio = (solved.decoded - self.values) / self._spread(solved.scales)
        inside = self._spread(scale) * ratio
        clipped = torch.where(shifted < 0, self._spread(ends[0]), self._spread(ends[1]))
        soft = torch.where((shifted < 0) | (shifted > self.grid.largest_code), clipped, inside)
        return solved.decoded + (soft - soft.detach())

    def _clipped(self, logits: Tensor | None) -> tuple[Tensor, Tensor]:
        if logits is None:
            return self.low, self.high
        shares = logits.sigmoid()
        return self.low * shares[-1], self.high * shares[0]

    def _spread(self, per_group: Tensor) -> Tensor:
        """One value a group, `[rows, groups]`, to one an input, or `[rows, 1]` with one group."""
        if per_group.shape[1] == 1:
            return per_group
        return per_group.repeat_interleave(self.size, 1)[:, : self.values.shape[1]]


def _grouped(values: Tensor, size: int) -> Tensor:
    """`[rows, groups, size]`; zeros, which every range holds, fill the last group."""
    missing = -values.shape[1] % size
    return torch.nn.functional.pad(values, (0, missing)).unflatten(1, (-1, size))
