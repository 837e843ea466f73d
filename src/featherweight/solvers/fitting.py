"""What kernels are told of grids; fitting by the kernel that does it in one launch, where there is one."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.grids.base import Grid, GridParameters
from featherweight.grids.e8 import RESIDUAL_SCALE, E8Grid
from featherweight.grids.e8_codebook import base_by_key
from featherweight.grids.uniform import UniformGrid
from featherweight.kernels.fitting import Fitting
from featherweight.kernels.registry import choose
from featherweight.kernels.vectors import Vectors


def fitting_of(grid: Grid) -> Fitting | None:
    """How kernels fit this grid; None if they cannot."""
    if not isinstance(grid, UniformGrid) or grid.fit_by == "clipped":
        return None

    def apply(values: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
        fitted = grid.fit(values, importance)
        return fitted.scale[:, 0], fitted.zero[:, 0]

    return Fitting(grid.fit_by, grid.symmetric, grid.largest_code, grid.scale_dtype, apply)


def vectors_of(grid: Grid, device: torch.device) -> Vectors | None:
    """How kernels round to this grid of vectors; None if they cannot."""
    if not isinstance(grid, E8Grid):
        return None

    def apply(values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        parameters = GridParameters(scale[:, None], torch.zeros_like(scale)[:, None])
        codes = grid.encode(values, parameters)
        return codes[:, 0], grid.decode(codes, parameters)

    return Vectors(grid.bits, RESIDUAL_SCALE.get(grid.bits, 1.0), base_by_key(device), apply)


def fit_grid(grid: Grid, values: Tensor, importance: Tensor | None = None) -> GridParameters:
    """`grid.fit`, for every row of `values [rows, width]`; `importance` is `[width]`."""
    fitting = fitting_of(grid)
    if fitting is None:
        return grid.fit(values, importance)
    scale, zero = fit_groups(values, importance, values.shape[1], fitting)
    return GridParameters(scale, zero)


def fit_runs(weight: Tensor, importance: Tensor | None, size: int, grid: Grid) -> GridParameters:
    """The grids of all runs of `size` columns of `weight [rows, in]`, `[rows · groups, 1]`; `importance` is `[in]`, `size` divides it."""
    (rows, width), fitting = weight.shape, fitting_of(grid)
    groups = width // size
    if fitting is not None:
        scale, zero = fit_groups(weight, importance, size, fitting)
        return GridParameters(scale.view(-1, 1), zero.view(-1, 1))
    if importance is not None and groups > 1:
        importance = importance.view(groups, size).repeat(rows, 1)
    return grid.fit(weight.reshape(rows * groups, size), importance)


def fit_groups(weight: Tensor, importance: Tensor | None, size: int, fitting: Fitting) -> tuple[Tensor, Tensor]:
    """Scales and zeros `[rows, groups]` of all groups of `size` columns; `size` divides the columns of `weight [rows, in]`."""
    signature = {"rows": len(weight), "columns": weight.shape[1], "group_size": size, "fit": fitting.by}
    run = choose("fit_groups", signature, weight.device)
    importance = None if importance is None else importance.to(torch.float32).contiguous()
    scale, zero = run(weight.to(torch.float32), importance, size, fitting)
    return scale, zero
