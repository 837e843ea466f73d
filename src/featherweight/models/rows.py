"""Which rows of a linear make the columns of an axis: read off from a few runs with scaled outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: From factors `[rows]` on a linear's outputs to the axis's columns `[tokens, size]`.
Run = Callable[[Tensor], Tensor]

_EXACT = 1e-9  # relative agreement of a column with its scaled self
_ROUNDS = 64  # of random halves of the rows; each decodes a quarter of the columns that are left
_STEP = 1e-4  # of the central differences; their error is its square


def following_rows(run: Run, plain: Tensor, rows: int) -> tuple[int, ...] | None:
    """For each column the row whose factor it is multiplied by, `[size]`; None if some column follows no row.

    All rows get different factors at once. If columns also depend on other rows of the same linear in other ways (a gate
    fused with what it gates), random halves of the rows are scaled until every column has once followed its row alone.

    Args:
        run: see `Run`.
        plain: the columns with all factors 1, `[tokens, size]`.
        rows: of the linear.
    """
    size = plain.shape[1]
    generator = torch.Generator().manual_seed(2)
    factors = torch.exp2(torch.linspace(-1, 1, rows, dtype=torch.float64))[torch.randperm(rows, generator=generator)]
    factors = torch.where((factors - 1).abs() < 1e-6, 1.5 * factors, factors)
    found = torch.full((size,), -1)
    active = torch.ones(rows, dtype=torch.bool)
    for trial in range(_ROUNDS):
        scaled = run(torch.where(active, factors, torch.ones_like(factors)))
        ratios, constant = _ratios(scaled, plain)
        nearest = _nearest(ratios, factors)
        hit = constant & (found < 0) & ((ratios - factors[nearest]).abs() < 1e-8) & active[nearest]
        found[hit] = nearest[hit]
        if bool((found >= 0).all()):
            return tuple(found.tolist())
        varies = ~constant & (found < 0)
        hopeless = rows <= size or not bool(varies.any()) if trial == 0 else trial == 12 and not bool((found >= 0).any())
        if hopeless:
            return None
        active = torch.rand(rows, generator=generator) < 0.5
        active[found[found >= 0]] = False
    return None


def moving_rows(run: Run, rows: int, still: tuple[int, ...]) -> tuple[int, ...] | None:
    """For each column the one row that it depends on, in whatever way, `[size]`; None if some column has none or several.

    The derivatives to all rows together, once with weight 1 and once with weight 1 + row/rows, have the ratio that names
    the row.

    Args:
        run: see `Run`.
        rows: of the linear.
        still: rows to leave alone, because their part is known.
    """
    weights = torch.ones(rows, dtype=torch.float64)
    weights[list(still)] = 0.0
    if not bool(weights.any()):
        return None
    ramp = weights * (1 + torch.arange(rows, dtype=torch.float64) / rows)
    slopes = [(run(1 + _STEP * step) - run(1 - _STEP * step)) / (2 * _STEP) for step in (weights, ramp)]
    size = slopes[0].abs().amax(0)
    if bool((size <= 1e-7 * max(1e-30, float(run(torch.ones_like(weights)).abs().max()))).any()):
        return None
    ratios = (slopes[0] * slopes[1]).sum(0) / slopes[0].square().sum(0)
    found = ((ratios - 1) * rows).round()
    exact = 1 + found / rows
    if bool(((slopes[1] - exact * slopes[0]).abs().amax(0) > 0.05 / rows * size).any()):
        return None
    return tuple(int(row) for row in found.tolist())


def _ratios(scaled: Tensor, plain: Tensor) -> tuple[Tensor, Tensor]:
    """Each column's factor, and whether it is the same for all tokens, `[size]` both; columns of zeros have none."""
    energy = plain.square().sum(0)
    ratios = (scaled * plain).sum(0) / energy.clamp_min(1e-300)
    apart = (scaled - ratios * plain).abs().amax(0)
    return ratios, (apart <= _EXACT * plain.abs().amax(0)) & (energy > 0)


def _nearest(values: Tensor, factors: Tensor) -> Tensor:
    """Index of the factor nearest to each value."""
    ordered, index = factors.sort()
    place = torch.searchsorted(ordered, values.contiguous()).clamp(1, len(ordered) - 1) if len(ordered) > 1 else None
    if place is None:
        return torch.zeros(values.shape, dtype=torch.long)
    lower = (values - ordered[place - 1]).abs() <= (ordered[place] - values).abs()
    return index[torch.where(lower, place - 1, place)]
