"""Searches for the range of a uniform grid; memory stays bounded because rows are walked in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featherweight.grids.base import GridParameters

if TYPE_CHECKING:
    from featherweight.grids.two_level import TwoLevelGrid
    from featherweight.grids.uniform import UniformGrid

#: `Σ |ŵ − w|^NORM` over shrink factors `1 − i/STEPS`, `i < LARGEST_SHRINK · STEPS` (GPTQ's quantiser, `mse` flag).
NORM, STEPS, LARGEST_SHRINK = 2.4, 100, 0.8

#: The weighted search: shrink factors of both ends, moves of one end from there, rounds of the least-squares refit.
SHRINKS = tuple(1.0 - 0.08 * step for step in range(9))
MOVES = (-0.16, -0.08, 0.08, 0.16)
SMALLEST_SHRINK, REFITS = 0.05, 2

#: Candidates tried at once, at most.
AT_ONCE = 20

#: Values held by one chunk: fits the cache of a CPU, and is large enough to fill an accelerator.
CHUNK_ON_CPU, CHUNK_ELSEWHERE = 2**19, 2**25

Search = Callable[[Tensor, Tensor, Tensor, Tensor | None], GridParameters]


def search_mse(grid: UniformGrid, values: Tensor, low: Tensor, high: Tensor) -> GridParameters:
    """The authors' search: one shrink factor `p` for both ends, minimising `Σ |ŵ − w|^2.4` per row.

    Args:
        grid: whose bits, symmetry and scale dtype hold.
        values: `[rows, width]` float32.
        low: first end of the unshrunk range, `[rows, 1]`.
        high: other end, `[rows, 1]`.
    """
    shrinks = 1 - torch.arange(int(LARGEST_SHRINK * STEPS), device=values.device) / STEPS

    def search(values: Tensor, low: Tensor, high: Tensor, importance: Tensor | None) -> GridParameters:
        best = Best(values)
        for several in shrinks[:, None, None].split(AT_ONCE):
            parameters = grid.between(several * low, several * high)
            decoded = grid.decode(grid.encode(values, parameters), parameters)
            best.offer(parameters, decoded.sub_(values).abs_().pow_(NORM).sum(-1, keepdim=True))
        return best.parameters

    return by_chunks(search, values, low, high, None)


def search_weighted(grid: UniformGrid, values: Tensor, low: Tensor, high: Tensor, importance: Tensor | None) -> GridParameters:
    """Our search: minimises `Σ_j importance_j (ŵ_j − w_j)²` per row.

    First both ends shrink alike, then each on its own around the best (a symmetric grid instead tries the negative
    scale, which puts the one level more on the other side). Then the scale is refitted in closed form with the codes
    fixed, `s = Σ i w c / Σ i c²` with `c = q − z`, the values are encoded anew, and the better grid is kept.

    Args:
        grid: whose bits, symmetry and scale dtype hold.
        values: `[rows, width]` float32.
        low: first end of the unshrunk range, `[rows, 1]`.
        high: other end, `[rows, 1]`.
        importance: `[width]` or `[rows, width]`, non-negative; None weighs all alike.
    """
    shrinks = torch.tensor([*SHRINKS, *(-shrink for shrink in SHRINKS if grid.symmetric)], device=values.device)[:, None, None]
    moves = torch.tensor(MOVES, device=values.device)[:, None, None]

    def search(values: Tensor, low: Tensor, high: Tensor, importance: Tensor | None) -> GridParameters:
        best = Best(values)

        def pick(parameters: GridParameters, tried: Tensor, present: Tensor) -> Tensor:
            index, better = best.offer(parameters, squared_error(grid, values, parameters, importance))
            return torch.where(better, tried.expand_as(parameters.scale).gather(0, index[None])[0], present)

        width = (high - low) / grid.largest_code
        both = pick(grid.with_scale(shrinks * width, shrinks * low), shrinks, torch.ones_like(low))
        if not grid.symmetric:
            moved = (both + moves).clamp(SMALLEST_SHRINK, 1.0)
            shrink_low = pick(grid.between(moved * low, both * high), moved, both)
            pick(grid.between(shrink_low * low, moved * high), moved, both)
        for _ in range(REFITS):
            refitted = _refit(grid, values, best.parameters, importance)
            error = squared_error(grid, values, refitted, importance)
            best.offer(GridParameters(refitted.scale[None], refitted.zero[None]), error[None])
        return best.parameters

    return by_chunks(search, values, low, high, importance)


class Best:
    """The best grid offered so far, per row."""

    def __init__(self, values: Tensor) -> None:
        ones = torch.ones_like(values[:, :1])
        self.parameters = GridParameters(ones, torch.zeros_like(ones))
        self.error = torch.full_like(ones, torch.inf)

    def offer(self, parameters: GridParameters, error: Tensor) -> tuple[Tensor, Tensor]:
        """Take the best candidate in the rows where it is strictly better.

        Args:
            parameters: candidates, `[candidates, rows, 1]`.
            error: of each, `[candidates, rows, 1]`.

        Returns:
            The best candidate per row, `[rows, 1]` int64, and where it was taken, `[rows, 1]` bool.
        """
        least, index = error.min(0)
        better = least < self.error
        self.error = torch.where(better, least, self.error)
        scale, zero = parameters.scale.gather(0, index[None])[0], parameters.zero.gather(0, index[None])[0]
        self.parameters = GridParameters(
            torch.where(better, scale, self.parameters.scale), torch.where(better, zero, self.parameters.zero)
        )
        return index, better


def squared_error(
    grid: UniformGrid | TwoLevelGrid, values: Tensor, parameters: GridParameters, importance: Tensor | None
) -> Tensor:
    """`Σ importance (ŵ − w)²`, `[rows, 1]`, or `[candidates, rows, 1]`."""
    squares = grid.decode(grid.encode(values, parameters), parameters).sub_(values).square_()
    return (squares if importance is None else squares.mul_(importance)).sum(-1, keepdim=True)


def _refit(grid: UniformGrid, values: Tensor, parameters: GridParameters, importance: Tensor | None) -> GridParameters:
    """The scale that fits the present codes best, zero point unchanged."""
    levels = grid.encode(values, parameters).sub_(parameters.zero)
    weighed = levels if importance is None else levels * importance
    above, below = (weighed * values).sum(-1, keepdim=True), (weighed * levels).sum(-1, keepdim=True)
    usable = (below > 0) & (above != 0)
    scale = torch.where(usable, above / torch.where(usable, below, 1.0), parameters.scale)
    return GridParameters(grid.with_scale(scale, torch.zeros_like(scale)).scale, parameters.zero)


def by_chunks(search: Search, values: Tensor, low: Tensor, high: Tensor, importance: Tensor | None) -> GridParameters:
    """`search` over chunks of rows, joined."""
    size = CHUNK_ON_CPU if values.device.type == "cpu" else CHUNK_ELSEWHERE
    rows = max(1, size // max(1, AT_ONCE * values.shape[-1]))
    found = []
    for chunk in slices(values.shape[0], rows):
        weights = importance[chunk] if importance is not None and importance.ndim == 2 else importance
        found.append(search(values[chunk], low[chunk], high[chunk], weights))
    return GridParameters(torch.cat([each.scale for each in found]), torch.cat([each.zero for each in found]))


def slices(total: int, size: int) -> Iterator[slice]:
    """`0 … total` in runs of `size`."""
    return (slice(start, start + size) for start in range(0, total, size))
