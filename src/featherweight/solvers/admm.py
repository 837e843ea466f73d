"""Which weights to keep, by alternating between the layer's objective and the pattern (ADMM)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from featherweight.solvers.refit import refit_kept

#: Penalty to begin with, and iterations between two changes of it.
PENALTY, PATIENCE = 0.1, 3

#: The penalty grows by the first factor whose share of kept weights changed place since the last change.
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


def select_and_solve(
    weight: Tensor, hessian: Tensor, largest: Callable[[Tensor], Tensor], iterations: int, refits: int
) -> tuple[Tensor, Tensor, int]:
    """Minimise `tr((W − X) H (W − X)ᵀ)` over which entries of `X` may stay, and their values.

    With inputs scaled such that `H` has a unit diagonal, the augmented Lagrangian is minimised in turn over `X` (a linear
    system) and over its sparse copy `D` (the largest entries of `X + V/ρ`), and ρ grows until the same weights are chosen
    again and again; then the chosen ones are refitted. Source: ALPS (Meng et al. 2024, arXiv:2406.07831, algorithm 1).

    Args:
        weight: `W [rows, in]` float32, linears of one input stacked.
        hessian: `H [in, in]`, damped.
        largest: from sizes `[rows, in]` to the weights that would stay, `[rows, in]` bool.
        iterations: at most.
        refits: steps of the refit.

    Returns:
        `X [rows, in]`, what it keeps (`[rows, in]` bool), and the iterations taken.
    """
    scale = hessian.diagonal().sqrt()
    unit = hessian / scale / scale[:, None]
    target = weight * scale
    goal, penalty = target @ unit, PENALTY
    kept = largest(target.abs())
    sparse, dual = torch.where(kept, target, 0.0), torch.zeros_like(target)
    inverse, before, taken = _inverse(unit, penalty), kept, 0
    for taken in range(1, iterations + 1):
        full = (goal - dual).add_(sparse, alpha=penalty) @ inverse
        wanted = full + dual / penalty
        kept = largest(wanted.abs())
        sparse = torch.where(kept, wanted, 0.0)
        dual.add_(full.sub_(sparse), alpha=penalty)
        if taken % PATIENCE:
            continue
        moved = int((kept & ~before).sum()) / max(1, int(kept.sum()))
        if moved == 0:
            break
        before = kept
        penalty *= next(factor for share, factor in GROWTH if moved >= share)
        inverse = _inverse(unit, penalty)
    return refit_kept(weight, sparse / scale, kept, hessian, refits), kept, taken


def _inverse(hessian: Tensor, penalty: float) -> Tensor:
    """`(H + ρ I)⁻¹`."""
    shifted = hessian.clone()
    shifted.diagonal().add_(penalty)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted))
