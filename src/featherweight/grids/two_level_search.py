"""Searches for a two-level grid that minimise the weighed squared error of what the stored codes decode to."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featherweight.grids.base import GridParameters
from featherweight.grids.search import CHUNK_ELSEWHERE, CHUNK_ON_CPU, Best, slices, squared_error

if TYPE_CHECKING:
    from featherweight.grids.two_level import Quantized, TwoLevelGrid

#: Shrink factors of the range around its middle, and rounds of the least-squares refit of scale and zero.
SHRINKS = tuple(1.0 - 0.075 * step for step in range(9))
REFITS = 4

#: Codes tried on either side of the nearest one, for scale and zero each.
NEAR = 2


def search_first_level(grid: TwoLevelGrid, values: Tensor, importance: Tensor | None) -> GridParameters:
    """Scale and zero per row of `values [rows, width]` before the second level: both ends shrink, then least squares.

    Codes fixed, the best line `w = s q − s z` through the pairs (code, value) has `s = cov(q, w) / var(q)` and
    `z = mean(q) − mean(w) / s`; with a fixed or an integer zero, `s = Σ i w c / Σ i c²`, `c = q − z`. Means are weighed by
    `importance [width]`.
    """
    weigh = torch.ones_like(values[0]) if importance is None else importance

    def search(values: Tensor) -> GridParameters:
        best = Best(values)
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        middle, shrinks = (low + high) / 2, torch.tensor(SHRINKS, device=values.device)[:, None, None]
        ranges = grid.between(middle + (low - middle) * shrinks, middle + (high - middle) * shrinks)
        best.offer(ranges, squared_error(grid, values, ranges, weigh))
        for _ in range(REFITS):
            refitted = _refit(grid, values, best.parameters, weigh)
            best.offer(
                GridParameters(refitted.scale[None], refitted.zero[None]), squared_error(grid, values, refitted, weigh)[None]
            )
        return best.parameters

    found = [search(values[chunk]) for chunk in _chunks(values, len(SHRINKS))]
    return GridParameters(torch.cat([each.scale for each in found]), torch.cat([each.zero for each in found]))


def search_codes(
    grid: TwoLevelGrid, values: Tensor, importance: Tensor | None, scales: list[Quantized], zeros: list[Quantized]
) -> tuple[Tensor, Tensor]:
    """Which stored scale and which stored zero suit each row of `values [rows, width]` best, together.

    A zero that suits a scale of its own suits the rounded scale less, so that pairs are tried, not one after the other.

    Args:
        grid: with which values are encoded.
        importance: `[width]`.
        scales, zeros: candidates, each `[rows, 1]`.

    Returns:
        Indices into `scales` and into `zeros`, `[rows, 1]` int64 each; of equal pairs the first.
    """
    pairs = list(product(range(len(scales)), range(len(zeros))))
    scale = torch.stack([scales[first].values for first, _ in pairs])
    zero = torch.stack([zeros[second].values for _, second in pairs])
    chosen = []
    for chunk in _chunks(values, len(pairs)):
        error = squared_error(grid, values[chunk], GridParameters(scale[:, chunk], zero[:, chunk]), importance)
        chosen.append(error.argmin(0))
    index = torch.cat(chosen)
    return index.div(len(zeros), rounding_mode="floor"), index % len(zeros)


def _refit(grid: TwoLevelGrid, values: Tensor, parameters: GridParameters, weigh: Tensor) -> GridParameters:
    """The grid that fits the present codes best; unchanged in rows where they determine none."""
    codes = grid.encode(values, parameters)
    zero_is_real = not (grid.symmetric or grid.round_zero)
    total = weigh.sum().clamp(min=torch.finfo(torch.float32).tiny)
    mean = (codes * weigh).sum(-1, keepdim=True) / total if zero_is_real else parameters.zero
    centre = (values * weigh).sum(-1, keepdim=True) / total if zero_is_real else 0.0
    levels = codes - mean
    above = (levels * (values - centre) * weigh).sum(-1, keepdim=True)
    below = (levels.square() * weigh).sum(-1, keepdim=True)
    usable = (below > 0) & (above > 0)
    scale = torch.where(usable, above / torch.where(usable, below, 1.0), parameters.scale)
    return GridParameters(scale, torch.where(usable, mean - centre / scale, parameters.zero) if zero_is_real else mean)


def _chunks(values: Tensor, candidates: int) -> list[slice]:
    """Rows that are searched at once: what fits a processor's cache, or fills an accelerator."""
    size = CHUNK_ON_CPU if values.device.type == "cpu" else CHUNK_ELSEWHERE
    return list(slices(len(values), max(1, size // (candidates * values.shape[1]))))
