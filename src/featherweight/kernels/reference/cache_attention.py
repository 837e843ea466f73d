"""Attention over keys and values of which the oldest are in code."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.cache_part import CachePart

#: Scores `[batch, query heads, queries, tokens]` that are held at once, at most (one query at the least).
SCORES = 1 << 26


def cache_attention(query: Tensor, keys: CachePart, values: CachePart, mask: Tensor | None, scaling: float) -> Tensor:
    """`softmax(scaling ⟨q, k⟩ + mask) v`, the softmax in float32.

    Args:
        query: `[batch, query heads, queries, head_dim]`; the queries are the newest tokens.
        keys, values: of the same tokens; as many in code as each has.
        mask: `[batch, 1 or query heads, queries, tokens]`, True where a query sees a token, or added to the scores; None for
            causal.
        scaling: of the scores.

    Returns:
        `[batch, query heads, queries, head_dim]` of the values, in the query's dtype.
    """
    tokens = keys.coded + keys.exact.shape[2]
    count = query.shape[2]
    if mask is None and count > 1:
        mask = torch.ones(count, tokens, dtype=torch.bool, device=query.device).tril(tokens - count)[None, None]
    step = max(1, SCORES // max(1, query.shape[0] * query.shape[1] * tokens))
    parts = [
        _attend(
            query[:, :, first : first + step], keys, values, None if mask is None else mask[:, :, first : first + step], scaling
        )
        for first in range(0, count, step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _attend(query: Tensor, keys: CachePart, values: CachePart, mask: Tensor | None, scaling: float) -> Tensor:
    scores = grouped_product(query, keys.exact.transpose(-1, -2))
    if keys.coded:
        scores = torch.cat([keys.product(query).to(scores.dtype), scores], -1)
    scores = scores.float() * scaling
    if mask is not None:
        least = torch.finfo(torch.float32).min
        scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else scores + mask.clamp(min=least)
    weights = scores.softmax(-1).to(query.dtype)
    mixed = grouped_product(weights[..., values.coded :], values.exact)
    return mixed + values.product(weights[..., : values.coded]).to(mixed.dtype) if values.coded else mixed


def grouped_product(left: Tensor, right: Tensor) -> Tensor:
    """`left [batch, query heads, a, b]` times `right [batch, heads, b, c]`, query heads of one head next to each other."""
    product = left.unflatten(1, (right.shape[1], -1)).flatten(2, 3) @ right
    return product.view(*left.shape[:3], right.shape[-1])
