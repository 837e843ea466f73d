"""The best values of the weights that are kept: least squares under the Hessian, by conjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.solvers.damping import factorise

#: Steps after which the objective no longer moves on layers of language models.
STEPS = 20


def refit_kept(weight: Tensor, start: Tensor, kept: Tensor, hessian: Tensor, steps: int = STEPS) -> Tensor:
    """Minimise `tr((W − X) H (W − X)ᵀ)` over `X` that is 0 outside `kept`; every row is a problem of its own.

    Conjugate gradients on all rows at once, in the space of kept entries, preconditioned by the diagonal of `H`. Where the
    walk of SparseGPT lets only later columns make up for a drop, here all kept ones do. Rows whose objective would not
    fall keep `start`. Source: the second stage of ALPS (Meng et al. 2024, arXiv:2406.07831).

    Args:
        weight: `W [rows, in]` float32.
        start: a first guess, 0 where not kept, `[rows, in]`.
        kept: `[rows, in]` bool.
        hessian: `H [in, in]`, symmetric, positive definite (damped).
        steps: of conjugate gradients, `2 · rows · in²` operations each.

    Returns:
        `X [rows, in]`.
    """
    solution, zero = start.clone(), torch.zeros((), device=start.device)
    inverse = hessian.diagonal().reciprocal()
    residual = torch.where(kept, (weight - solution) @ hessian, zero)
    first = ((weight - solution) @ hessian * (weight - solution)).sum(1)
    search = residual * inverse
    energy = (residual * search).sum(1, keepdim=True)
    for _ in range(steps):
        product = torch.where(kept, search @ hessian, zero)
        curvature = (search * product).sum(1, keepdim=True)
        length = torch.where(curvature > 0, energy / curvature, zero)
        solution.addcmul_(length, search)
        residual.addcmul_(length, product, value=-1)
        scaled = residual * inverse
        following = (residual * scaled).sum(1, keepdim=True)
        search = scaled.addcmul_(torch.where(energy > 0, following / energy, zero), search)
        energy = following
    last = ((weight - solution) @ hessian * (weight - solution)).sum(1)
    return torch.where((last < first)[:, None], solution, start)


def absorb_dropped(
    weight: Tensor, kept: Tensor, hessian: Tensor, damping: float, *, name: str = "", samples: int | None = None
) -> Tensor:
    """`W H_·K (H_KK)⁻¹ [rows, kept]`: the kept inputs make up for the dropped ones, by least squares.

    Args:
        weight: `W [rows, in]` float32.
        kept: inputs that stay, `[kept]` int64.
        hessian: mean of `x xᵀ [in, in]`.
        damping: λ, relative to the mean diagonal of `H_KK`.
        name, samples: for the error.

    Raises:
        FeatherweightError: `H_KK` cannot be factorised.
    """
    factor = factorise(hessian[kept][:, kept], damping, name=name, samples=samples)
    dropped = torch.ones(len(hessian), dtype=torch.bool, device=kept.device).index_fill_(0, kept, False)
    owed = weight[:, dropped] @ hessian[dropped][:, kept]
    half = torch.linalg.solve_triangular(factor.upper.T, owed, upper=False, left=False)
    return weight[:, kept] + torch.linalg.solve_triangular(factor.upper, half, upper=True, left=False)
