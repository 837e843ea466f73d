"""What is left of a Hessian once a low-rank term makes up for errors in the directions it can reach."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.solvers.low_rank import RIDGE


def downdated(hessian: Tensor, right: Tensor, share: float = 1.0) -> Tensor:
    """`H' = H − H Rᵀ (R H Rᵀ)⁻¹ R H [in, in]`: `min_L tr((E − L R) H (E − L R)ᵀ) = tr(E H' Eᵀ)`.

    Saha et al. 2024, arXiv:2405.18886, subtract `M V Vᵀ Mᵀ` with `H = M Mᵀ` and the right singular vectors `V` of `L R M`:
    the same matrix, without the decomposition.

    Args:
        hessian: `H [in, in]`.
        right: `R [rank, in]`.
        share: of what is subtracted; below 1 where `L` will be rounded, and so cannot make up for all it could.
    """
    reach = (right @ hessian).to(torch.float64)
    gram = reach @ right.to(torch.float64).T
    gram = (gram + gram.T) / 2
    gram.diagonal().add_((RIDGE * gram.diagonal().mean()).clamp_min(torch.finfo(torch.float64).tiny))
    left = hessian.to(torch.float64) - share * reach.T @ torch.linalg.solve_ex(gram, reach).result
    return ((left + left.T) / 2).to(hessian.dtype)
