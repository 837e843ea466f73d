"""Scores of single weights: how much it would matter to drop one. The least go first.

Each takes `weight [out, in]` and returns finite scores of that shape, 0 or more. `rms [in]` is `√E[x_j²]` of the linear's input.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wanda(weight: Tensor, rms: Tensor) -> Tensor:
    """`|w_ij| √E[x_j²]`: what a weight adds to its output on average (Sun et al. 2023, arXiv:2306.11695, eq. 1)."""
    return weight.abs() * rms


def relative_importance(weight: Tensor) -> Tensor:
    """`|w_ij| / Σ_i |w_ij| + |w_ij| / Σ_j |w_ij|`: a weight's share of its input and of its output; 0 where those are 0."""
    size = weight.abs()
    return _share(size, size.sum(0, keepdim=True)) + _share(size, size.sum(1, keepdim=True))


def ria(weight: Tensor, rms: Tensor, power: float = 0.5) -> Tensor:
    """`relative_importance · rms^power` (Zhang et al. 2024, "Plug-and-Play", eq. 4)."""
    return relative_importance(weight) * rms.pow(power)


def balanced(weight: Tensor, rms: Tensor, exponents: tuple[float, float, float]) -> Tensor:
    """`(|w_ij| / ‖w_:j‖₂^θ₁ + |w_ij| / ‖w_i:‖₂^θ₂) · rms_j^θ₃`, BaWA-style: after its published description, not its code.

    `(0, 0, 1)` ranks exactly as `wanda`; `(1, 1, 0.5)` is `ria` with the Euclidean norm in the place of the sum.
    """
    column, row, power = exponents
    size = weight.abs()
    shares = _share(size, size.norm(dim=0, keepdim=True).pow(column)) + _share(size, size.norm(dim=1, keepdim=True).pow(row))
    return shares * rms.pow(power)


def saliency(weight: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """`w_ij² / [H⁻¹]_jj`: the loss of dropping one weight if all others of its row make up for it (Optimal Brain Surgeon).

    Args:
        weight: `[out, in]`.
        inverse_diagonal: diagonal of `H⁻¹ [in]`, positive.
    """
    return weight.square() / inverse_diagonal


def output_range(weight: Tensor, inputs: Tensor, elements: int = 2**25) -> Tensor:
    """Range of each output over some tokens once one weight is gone: `max_t − min_t` of `y_ti − x_tj w_ij`, `[out, in]`.

    JSQ's sensitivity (Guo et al. 2024, "Compressing large language models by joint sparsification and quantization", eq. 4).
    The outputs are computed once; the original multiplies anew for every column.

    Args:
        weight: `[out, in]`.
        inputs: `x [tokens, in]`.
        elements: of the largest intermediate tensor, `tokens · rows · in` for some rows at a time.
    """
    rows = max(1, elements // inputs.numel())
    parts = []
    for part in weight.split(rows):
        left = (inputs @ part.T)[:, :, None] - inputs[:, None, :] * part
        parts.append(left.amax(0) - left.amin(0))
    return torch.cat(parts)


def cumulative_share(scores: Tensor) -> Tensor:
    """Of every weight the share of its row's total score that lies at or below it, `[out, in]`, 0 to 1.

    The smallest shares of a whole linear are what Wanda's variant drops: in every row as many as together stay below one
    fraction α of the row's total, α found such that the count is right (its code searches for α by bisection).
    """
    ordered, order = scores.sort(dim=1, stable=True)
    shares = _share(ordered.cumsum(1), ordered.sum(1, keepdim=True))
    return torch.empty_like(scores).scatter_(1, order, shares)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, 0 where nothing is there to share."""
    return torch.where(whole > 0, part / whole, torch.zeros((), device=part.device))
