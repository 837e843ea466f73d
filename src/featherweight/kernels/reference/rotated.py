"""Attention with keys and values in rotated codes, in plain torch: the query is rotated, or the mixture, never the tokens.

A token is `x̂ = s ⊙ (R c) g + μ`: levels `c` by its codes, a gain `g`; the mean `μ` and the scale `s` of its group are there or not.
All arithmetic is in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from featherweight.kernels.bits import unpack_across

Codes = Mapping[str, Tensor]
Constants = Mapping[str, Tensor]


def rotated_levels(packed: Tensor, constants: Constants) -> Tensor:
    """`c [..., head_dim]` of packed codes `[..., bytes]`.

    Scalar: a code of b bits picks one of `levels [2^b]`, by `levels_by_code`, and lies as `pack_across` has it. Lattice: of two
    bytes for eight values the second picks a row of `levels [256, 8]`, the first a row of `signs [256, 8]` that it is multiplied
    by and one of `shift [256, 1]` that is added.
    """
    levels = constants["levels"]
    if levels.ndim == 2:
        pairs = packed.unflatten(-1, (-1, 2)).int()
        signs, shift = constants["signs"][pairs[..., 0]], constants["shift"][pairs[..., 0]]
        return levels[pairs[..., 1]].mul_(signs).add_(shift).flatten(-2)
    bits = len(levels).bit_length() - 1
    return levels_by_code(levels)[unpack_across(packed, bits, packed.shape[-1] * 8 // bits).int()]


def levels_by_code(levels: Tensor) -> Tensor:
    """Ascending levels in the order of their codes: the same, but of 16 the positive ones first, then the others falling.

    So the highest bit is the sign, and both signs share a table of eight.
    """
    return torch.cat([levels[8:], levels[:8].flip(0)]) if len(levels) == 16 else levels


def _coded(codes: Codes, constants: Constants) -> Tensor:
    """`g c [batch, heads, tokens, head_dim]`: the tokens as they are coded, still rotated."""
    return rotated_levels(codes["codes"], constants).mul_(codes["gain"].to(torch.float32).unsqueeze(-1))


def rotated_decode(codes: Codes, constants: Constants, dtype: torch.dtype) -> Tensor:
    """The tokens, `[batch, heads, tokens, head_dim]`."""
    values = _coded(codes, constants) @ constants["rotation"].T
    if "mean" in codes and values.shape[2]:
        grouped = values.unflatten(2, (codes["mean"].shape[2], -1))
        if "scale" in codes:
            grouped = grouped * codes["scale"].to(torch.float32).unsqueeze(3)
        values = (grouped + codes["mean"].to(torch.float32).unsqueeze(3)).flatten(2, 3)
    return values.to(dtype)


def rotated_scores(query: Tensor, codes: Codes, constants: Constants) -> Tensor:
    """`g ⟨Rᵀ (s ⊙ q), c⟩ + ⟨q, μ⟩ [batch, query heads, queries, tokens]` for `query [batch, query heads, queries, head_dim]`."""
    heads, tokens = codes["codes"].shape[1:3]
    rows = query.to(torch.float32).unflatten(1, (heads, -1)).flatten(2, 3)  # [batch, heads, rows, head_dim]
    coded, rotation = _coded(codes, constants), constants["rotation"]
    if "mean" not in codes or not tokens:
        scores = rows @ rotation @ coded.transpose(-1, -2)
    else:
        mean, rows = codes["mean"].to(torch.float32), rows.unsqueeze(2)
        scaled = rows * codes["scale"].to(torch.float32).unsqueeze(3) if "scale" in codes else rows
        grouped = coded.unflatten(2, (mean.shape[2], -1))
        scores = scaled @ rotation @ grouped.transpose(-1, -2) + rows @ mean.unsqueeze(-1)  # [.., groups, rows, tokens]
        scores = scores.transpose(2, 3).flatten(3)
    return scores.view(*query.shape[:3], tokens).to(query.dtype)


def rotated_mix(weights: Tensor, codes: Codes, constants: Constants) -> Tensor:
    """`R Σ_t p_t g_t c_t`, scaled and with the mean's share, `[batch, query heads, queries, head_dim]`."""
    heads, tokens = codes["codes"].shape[1:3]
    rows = weights.to(torch.float32).unflatten(1, (heads, -1)).flatten(2, 3)  # [batch, heads, rows, tokens]
    coded, rotation = _coded(codes, constants), constants["rotation"]
    if "mean" not in codes or not tokens:
        mixed = rows @ coded @ rotation.T
    else:
        mean = codes["mean"].to(torch.float32)
        shares = rows.unflatten(3, (mean.shape[2], -1)).transpose(2, 3)  # [.., groups, rows, tokens]
        parts = shares @ coded.unflatten(2, (mean.shape[2], -1)) @ rotation.T
        if "scale" in codes:
            parts = parts * codes["scale"].to(torch.float32).unsqueeze(3)
        mixed = parts.sum(2) + shares.sum(-1).transpose(2, 3) @ mean
    return mixed.view(*weights.shape[:3], len(rotation)).to(weights.dtype)
