"""Round to nearest: every weight on its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from featherweight.grids.base import Grid, GridParameters
from featherweight.solvers.fitting import fit_runs
from featherweight.solvers.result import Solved


def round_to_nearest(weight: Tensor, grid: Grid, group_size: int | None = None, importance: Tensor | None = None) -> Solved:
    """Every weight to the nearest level of its group's grid.

    Args:
        weight: `[rows, in]` float32.
        grid: fitted on every group by itself.
        group_size: consecutive inputs that share a scale; None for whole rows. The last group may be smaller.
        importance: weighs squared errors in the fit, `[in]`; `fit_by="weighted"` uses it.
    """
    width = weight.shape[1]
    size = width if group_size is None else min(group_size, width)
    whole = width - width % size
    parts = [_round_groups(weight[:, :whole], grid, size, None if importance is None else importance[:whole])]
    if whole < width:
        parts.append(_round_groups(weight[:, whole:], grid, width - whole, None if importance is None else importance[whole:]))
    codes, scales, zeros, decoded = (torch.cat(each, 1) if len(parts) > 1 else each[0] for each in zip(*parts, strict=True))
    return Solved(codes, scales, zeros, decoded)


def round_dead(solved: Solved, weight: Tensor, dead: Tensor, grid: Grid, group_size: int | None) -> Solved:
    """`solved` with the columns of `dead` inputs, which a walk makes 0, on the nearest levels of their groups' grids.

    They cost no byte and change no objective: calibration never saw these inputs, other text may.

    Args:
        solved: of `weight [rows, in]`; what a mask dropped is 0 in it, and stays 0.
        dead: `[in]` bool.
        grid, group_size: of the solution.
    """
    if not bool(dead.any()):
        return solved
    columns = dead.nonzero().flatten()
    groups = columns // (group_size or weight.shape[1]) if solved.group_index is None else solved.group_index[columns]
    parameters = GridParameters(solved.scales[:, groups], solved.zeros[:, groups])
    codes, decoded = solved.codes.clone(), solved.decoded.clone()
    nearest = grid.encode(weight[:, columns], parameters)
    codes[:, columns], decoded[:, columns] = nearest.to(codes.dtype), grid.decode(nearest, parameters)
    return replace(solved, codes=codes, decoded=decoded)


def _round_groups(weight: Tensor, grid: Grid, size: int, importance: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes `[rows, in]`, scales and zeros `[rows, groups]`, values `[rows, in]`, where `size` divides the width."""
    rows, width = weight.shape
    groups = width // size
    values, parameters = weight.reshape(rows * groups, size), fit_runs(weight, importance, size, grid)
    codes = grid.encode(values, parameters)
    decoded = grid.decode(codes, parameters)
    scales, zeros = parameters.scale.view(rows, groups), parameters.zero.view(rows, groups)
    return codes.to(torch.uint8).view(rows, width), scales, zeros, decoded.view(rows, width)
