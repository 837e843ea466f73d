"""What attention does with keys and values in code, by making them dense first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Decodable(Protocol):
    """Anything that can say what its codes stand for."""

    def decode(self, codes: Mapping[str, Tensor], constants: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The values, `[batch, heads, tokens, head_dim]`."""


def cache_scores(query: Tensor, codec: Decodable, codes: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Tensor:
    """`⟨q, k̂⟩ [batch, query heads, queries, tokens]` for `query [batch, query heads, queries, head_dim]`."""
    keys = codec.decode(codes, constants, query.dtype)
    grouped = query.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    return (grouped @ keys.transpose(-1, -2)).view(*query.shape[:3], keys.shape[2])


def cache_mix(weights: Tensor, codec: Decodable, codes: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Tensor:
    """`Σ_t p_t v̂_t [batch, query heads, queries, head_dim]` for `weights [batch, query heads, queries, tokens]`."""
    values = codec.decode(codes, constants, weights.dtype)
    grouped = weights.unflatten(1, (values.shape[1], -1)).flatten(2, 3)
    return (grouped @ values).view(*weights.shape[:3], values.shape[3])
