"""Grids of groups whose columns are not walked one after the other: fitted before the walk, on the original weights."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.grids.base import Grid
from featherweight.solvers.damping import Factor
from featherweight.solvers.decision import Decision
from featherweight.solvers.fitting import fit_runs
from featherweight.solvers.groups import Groups


def fit_scattered(weight: Tensor, walked: Tensor, factor: Factor, grid: Grid, groups: Groups, decision: Decision) -> None:
    """Fit every group of stored columns, all at once where the decision needs no more; into `groups`.

    Args:
        weight: `[rows, in]` as stored.
        walked: the same in walked order, dead inputs zeroed, `[in, rows]`.
    """
    order, importance, (numbers, rows) = factor.order, factor.importance(), groups.scale.shape
    values = decision.fitted_on(torch.where(factor.dead, 0.0, weight))
    if values is not None and len(order) % groups.size == 0:
        stored = torch.empty_like(importance).index_copy_(0, order, importance)
        fitted = fit_runs(values, stored, groups.size, grid)
        groups.scale.copy_(fitted.scale.view(rows, numbers).T)
        groups.zero.copy_(fitted.zero.view(rows, numbers).T)
        return
    for group in range(len(groups.scale)):
        members = groups.members(group)
        part = walked[members].T.contiguous()
        groups.put(group, decision.start_group(grid, part, importance[members]))
