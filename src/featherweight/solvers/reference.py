"""The walk as the papers write it: column by column, with the inverse Hessian. Slow; what the sweep is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.grids.base import Grid, GridParameters
from featherweight.grids.two_level import TwoLevelGrid
from featherweight.kernels.keeping import LIMITS
from featherweight.solvers.outliers import replace_likely_outliers
from featherweight.solvers.result import Solved


@dataclass(frozen=True)
class Drops:
    """What SparseGPT drops.

    Attributes:
        span: columns that are selected together.
        select: of what dropping each weight costs, `[rows, columns]`, to True where it goes.
        fits: whether a grid is fitted on what is kept, once that makes up for what its group drops.
    """

    span: int
    select: Callable[[Tensor], Tensor]
    fits: bool = True


@dataclass(frozen=True)
class Keeps:
    """What SpQR keeps: weights whose rounding costs more than `threshold`, as float16 or `narrow` residuals."""

    threshold: float
    narrow: bool = False


def textbook(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    group_size: int | None = None,
    *,
    damping: float = 0.01,
    order: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    drops: Drops | None = None,
    keeps: Keeps | None = None,
) -> Solved:
    """`H⁻¹ = Uᵀ U`; for each column `e = (w − q) / U_jj`, then `W_{:, j+1:} −= e U_{j, j+1:}`.

    Groups are formed in the order of the walk and fitted on the up-to-date weights, weighed by `1 / U_jj²`. Sources: Frantar et al.
    2022, alg. 1 (GPTQ); Frantar and Alistarh 2023, alg. 1 (SparseGPT); Dettmers et al. 2023, alg. 1 (SpQR).

    Args:
        weight: `[rows, in]`.
        hessian: `[in, in]`.
        grid: the rounding rule; a `TwoLevelGrid` for `keeps`.
        group_size: walked columns that share a grid; None for whole rows.
        damping: λ, relative to the mean diagonal.
        order: in which columns are walked.
        dtype: of the arithmetic.
        drops, keeps: as SparseGPT, or SpQR; GPTQ without.
    """
    width, diagonal = weight.shape[1], hessian.diagonal()
    order = torch.arange(width, device=weight.device) if order is None else order
    size = width if group_size is None else group_size
    work = torch.where(diagonal == 0, 0.0, weight.to(dtype))[:, order]
    upper = _inverse_root(hessian.to(dtype), damping, order)
    importance = upper.diagonal() ** -2
    codes, decoded, dropped = torch.empty_like(work), torch.empty_like(work), torch.zeros_like(work, dtype=torch.bool)
    fitted: list[GridParameters] = []
    for column in range(width):
        if drops is not None and column % drops.span == 0:
            span = slice(column, column + drops.span)
            dropped[:, span] = drops.select(work[:, span].square() * importance[span])
        if column % size == 0:
            group = slice(column, column + size)
            values = work[:, group]
            if drops is not None and drops.fits:
                chosen = -(-(column + 1) // drops.span) * drops.span - column
                values = _made_up(values, dropped[:, group], chosen, upper[group, group], drops)
            if keeps is not None and isinstance(grid, TwoLevelGrid):
                values = replace_likely_outliers(grid, values, importance[group], keeps.threshold)
            fitted.append(grid.fit(values, importance[group].to(torch.float32)))
        value, gone = work[:, column, None], dropped[:, column, None]
        codes[:, column] = grid.encode(value, fitted[-1])[:, 0]
        rounded = grid.decode(codes[:, column, None], fitted[-1]).masked_fill(gone, 0.0)
        rounded = rounded if keeps is None else _kept(value, rounded, importance[column], grid, fitted[-1], keeps)
        decoded[:, column] = rounded[:, 0]
        error = (work[:, column] - decoded[:, column]) / upper[column, column]
        work[:, column:] -= error[:, None] * upper[column, column:]
    back = order.argsort()
    return Solved(
        codes[:, back].to(torch.uint8),
        torch.cat([each.scale for each in fitted], 1),
        torch.cat([each.zero for each in fitted], 1),
        decoded[:, back].to(torch.float32),
        (torch.arange(width, device=weight.device) // size)[back],
    )


def _inverse_root(hessian: Tensor, damping: float, order: Tensor) -> Tensor:
    """`U` of the damped Hessian of walked columns; inputs that were never active get a diagonal of 1."""
    damped = hessian + torch.diag((hessian.diagonal() == 0).to(hessian.dtype))
    damped.diagonal().add_(damping * damped.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order])), upper=True)


def _made_up(values: Tensor, dropped: Tensor, chosen: int, upper: Tensor, drops: Drops) -> Tensor:
    """A group's `values [rows, width]` once what it drops is made up for; what is not chosen yet as it would be now."""
    if chosen < values.shape[1]:
        later = drops.select(values[:, chosen:].square() * upper.diagonal()[chosen:] ** -2)
        dropped = torch.cat((dropped[:, :chosen], later), 1)
    values = values.clone()
    for column in range(values.shape[1]):
        error = values[:, column].where(dropped[:, column], 0.0) / upper[column, column]
        values[:, column:] -= error[:, None] * upper[column, column:]
    return values.masked_fill(dropped, 0.0)


def _kept(value: Tensor, rounded: Tensor, importance: Tensor, grid: Grid, fitted: GridParameters, keeps: Keeps) -> Tensor:
    """`rounded [rows, 1]`, or the level of 0 and a residual where rounding costs too much."""
    level = grid.decode(grid.encode(torch.zeros_like(value), fitted), fitted)
    residual = (value - level).clamp(-LIMITS[keeps.narrow], LIMITS[keeps.narrow]).to(torch.float16)
    if keeps.narrow:
        residual = residual.to(torch.float8_e5m2).to(torch.float16)
    return torch.where(importance * (value - rounded).square() > keeps.threshold, level + residual, rounded)
