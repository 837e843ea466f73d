"""Sign sketches of keys, and what a query scores against them, in plain torch.

`S [head_dim, m]` is the projection, σ = ±1 a sketched sign, stored as bit 1 where σ = 1. In every group of tokens a few channels,
the outliers O, have a sketch of their own by the first `m_o` columns of S. All arithmetic is in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from featherweight.kernels.bits import pack, unpack

Codes = Mapping[str, Tensor]


def qjl_encode(keys: Tensor, projection: Tensor, outliers: int, outlier_sketch: int, group: int) -> dict[str, Tensor]:
    """Signs of `Sᵀ k`, packed lowest bit first, and norms in the dtype of the keys.

    Args:
        keys: `[batch, heads, tokens, head_dim]`, whole groups.
        projection: `S [head_dim, m]`.
        outliers: how many channels of a group, those of largest norm over its tokens, are sketched apart.
        outlier_sketch: `m_o`.
        group: tokens that share outliers.

    Returns:
        `signs [batch, heads, tokens, m / 8]` and `norm [batch, heads, tokens]` of the keys without their outliers; with outliers
        `outlier_signs`, `outlier_norm` likewise of these alone, and their indices `outliers [batch, heads, groups, count]` uint8.
    """
    inlier = keys.to(torch.float32)
    if not outliers:
        return {"signs": _signs(inlier, projection), "norm": _norm(inlier, keys.dtype)}
    chosen = inlier.unflatten(2, (-1, group)).norm(dim=3).topk(outliers, dim=-1).indices.sort(-1).values
    apart = _mask(chosen, keys.shape[-1]).repeat_interleave(group, 2)
    outlier, inlier = inlier * apart, inlier.masked_fill(apart, 0.0)
    return {
        "signs": _signs(inlier, projection),
        "norm": _norm(inlier, keys.dtype),
        "outlier_signs": _signs(outlier, projection[:, :outlier_sketch]),
        "outlier_norm": _norm(outlier, keys.dtype),
        "outliers": chosen.to(torch.uint8),
    }


def qjl_decode(codes: Codes, projection: Tensor, constant: float, dtype: torch.dtype) -> Tensor:
    """The keys whose product with any query is its score: `c/m ‖k_i‖ (S σ_i) ⊙ 1_∉O + c/m_o ‖k_o‖ (S σ_o) ⊙ 1_∈O`."""
    decoded = _spread(codes["signs"], codes["norm"], constant) @ projection.T
    if "outliers" not in codes:
        return decoded.to(dtype)
    signs = _spread(codes["outlier_signs"], codes["outlier_norm"], constant)
    outlier = signs @ projection[:, : signs.shape[-1]].T
    group = decoded.shape[2] // max(1, codes["outliers"].shape[2])
    apart = _mask(codes["outliers"].long(), decoded.shape[-1]).repeat_interleave(group, 2)
    return torch.where(apart, outlier, decoded).to(dtype)


def qjl_scores(query: Tensor, codes: Codes, projection: Tensor, constant: float) -> Tensor:
    """`c/m ‖k_i‖ ⟨Sᵀ(q − q_O), σ_i⟩ + c/m_o ‖k_o‖ ⟨Sᵀ q_O, σ_o⟩`, `[batch, query heads, queries, tokens]`; no key is decoded.

    Args:
        query: `[batch, query heads, queries, head_dim]`; heads that share a key head lie next to each other.
        codes: as `qjl_encode` returns.
        projection: `S [head_dim, m]`.
        constant: `c = 1 / E|s₁|`, which makes the mean over projections the exact product.
    """
    heads, tokens = codes["signs"].shape[1:3]
    rows = query.to(torch.float32).unflatten(1, (heads, -1)).flatten(2, 3)  # [batch, heads, rows, head_dim]
    sketch = rows @ projection
    signs = _spread(codes["signs"], codes["norm"], constant)
    scores = sketch @ signs.transpose(-1, -2)
    if "outliers" in codes and tokens:
        scores += _outlier_scores(rows, signs, codes, projection, constant)
    return scores.view(*query.shape[:3], tokens).to(query.dtype)


def _outlier_scores(rows: Tensor, signs: Tensor, codes: Codes, projection: Tensor, constant: float) -> Tensor:
    """`⟨Sᵀ q_O, c/m_o ‖k_o‖ σ_o⟩ − ⟨Sᵀ q_O, c/m ‖k_i‖ σ_i⟩`, with `Sᵀ q_O` from each group's own rows of S."""
    chosen = codes["outliers"].long()  # [batch, heads, groups, count]
    batch, heads, groups, count = chosen.shape
    picked = rows.unsqueeze(2).expand(-1, -1, groups, -1, -1)
    picked = picked.gather(-1, chosen.unsqueeze(3).expand(-1, -1, -1, rows.shape[2], -1))
    sketch = picked @ projection[chosen.flatten()].view(batch, heads, groups, count, -1)  # [.., groups, rows, m]
    apart = _spread(codes["outlier_signs"], codes["outlier_norm"], constant)
    scores = sketch[..., : apart.shape[-1]] @ apart.unflatten(2, (groups, -1)).transpose(-1, -2)
    scores -= sketch @ signs.unflatten(2, (groups, -1)).transpose(-1, -2)
    return scores.transpose(2, 3).flatten(3)


def _signs(values: Tensor, projection: Tensor) -> Tensor:
    """Packed bits of `Sᵀ x > 0`."""
    return pack((values @ projection > 0).to(torch.uint8), 1)


def _norm(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`‖x‖` in `dtype`, at most its largest number."""
    return values.norm(dim=-1).clamp_(max=torch.finfo(dtype).max).to(dtype)


def _spread(signs: Tensor, norm: Tensor, constant: float) -> Tensor:
    """`c/m ‖x‖ σ [..., m]`, σ = ±1."""
    length = signs.shape[-1] * 8
    unit = unpack(signs, 1, length).to(torch.float32).mul_(2).sub_(1)
    return unit.mul_(norm.to(torch.float32).unsqueeze(-1) * (constant / length))


def _mask(indices: Tensor, size: int) -> Tensor:
    """`[..., size]`, True at `indices [..., count]`."""
    return torch.zeros(*indices.shape[:-1], size, dtype=torch.bool, device=indices.device).scatter_(-1, indices, True)
