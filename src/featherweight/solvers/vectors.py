"""Rounding the linears of one input to a vector grid: one walk over all rows, then passes of descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from featherweight.grids.base import Grid, GridParameters
from featherweight.solvers.damping import Factor
from featherweight.solvers.decision import Decision
from featherweight.solvers.descent import descend
from featherweight.solvers.sweep import sweep


@dataclass(frozen=True)
class VectorSolved:
    """One linear.

    Attributes:
        codes: `[rows, ⌈in / vector_size⌉]` int32.
        decoded: `[rows, in]` float32.
        scale: one number.
        objectives: `tr(E H Eᵀ)` of all linears together after the walk, and after each pass.
    """

    codes: Tensor
    decoded: Tensor
    scale: Tensor
    objectives: tuple[float, ...]


class FixedScale(Decision):
    """Rounds everything on grids of given scales.

    Args:
        scale: `[rows, 1]` float32.
    """

    def __init__(self, scale: Tensor) -> None:
        self.parameters = GridParameters(scale, torch.zeros_like(scale))

    def start_group(self, grid: Grid, values: Tensor, importance: Tensor) -> GridParameters:
        """The given ones."""
        return self.parameters


def solve_vectors(
    weights: Sequence[Tensor], hessian: Tensor, factor: Factor, grid: Grid, passes: int = 0
) -> list[VectorSolved]:
    """Minimise `tr((W − Ŵ) H (W − Ŵ)ᵀ)` over a vector grid: block LDLQ (`sweep`), then `descend`.

    Each linear has one scale, which the grid fits to it for the walk, and `descend` to the codes. Inputs are filled up to whole
    vectors with ones that are never active.

    Args:
        weights: `[rows, in]` float32 each, of one input.
        hessian: `[in, in]`.
        factor: of the same Hessian, damped, in the stored order.
        grid: the rounding rule.
        passes: of descent, at most.
    """
    width = len(hessian)
    fill = -width % grid.vector_size
    stacked, scale = pad(torch.cat(list(weights)), (0, fill)), torch.cat([grid.fit(weight).scale for weight in weights])
    wider = _filled(factor, fill)
    swept = sweep(stacked, wider, grid, decision=FixedScale(scale))
    damped = wider.damped(pad(hessian, (0, fill, 0, fill)))
    rows = [len(weight) for weight in weights]
    done = descend(stacked, damped, grid, swept.codes, swept.decoded, scale, passes, rows)
    return [
        VectorSolved(codes, decoded[:, :width], own[0], done.objectives)
        for codes, decoded, own in zip(*(each.split(rows) for each in (done.codes, done.decoded, done.scale)), strict=True)
    ]


def polish_vectors(
    weight: Tensor, hessian: Tensor, factor: Factor, grid: Grid, codes: Tensor, scale: Tensor, passes: int
) -> tuple[Tensor, Tensor]:
    """Codes and scale of one linear after `passes` of `descend` more; arguments as of `solve_vectors`."""
    fill = -len(hessian) % grid.vector_size
    scale = scale.reshape(1, 1).expand(len(weight), 1)
    damped = _filled(factor, fill).damped(pad(hessian, (0, fill, 0, fill)))
    decoded = grid.decode(codes, GridParameters(scale, torch.zeros_like(scale)))
    done = descend(pad(weight, (0, fill)), damped, grid, codes, decoded, scale, passes)
    return done.codes, done.scale[0]


def _filled(factor: Factor, fill: int) -> Factor:
    """The factor with `fill` more inputs, dead, walked last."""
    if fill == 0:
        return factor
    count = len(factor.order)
    upper = pad(factor.upper, (0, fill, 0, fill))
    upper.diagonal()[count:] = (1.0 + factor.shift) ** 0.5
    order = torch.arange(count, count + fill, device=factor.order.device)
    dead = torch.ones(fill, dtype=torch.bool, device=factor.dead.device)
    joined = {"order": torch.cat((factor.order, order)), "dead": torch.cat((factor.dead, dead))}
    return Factor(
        upper, joined["order"], joined["dead"], factor.shift, factor.damping, factor.damping_used, factor.attempts, factor.dtype,
        factor.in_order,
    )  # fmt: skip
