"""A cache codec: what becomes of the keys, or the values, of tokens that are no longer among the newest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from featherweight.kernels.registry import choose

Part = Literal["keys", "values"]

#: Stored tensors by name, each `[batch, heads, entries, ...]`: an entry is a token, or a group of tokens coded together.
Codes = Mapping[str, Tensor]

#: What a layer's codec draws once and never stores with the tokens: projections, rotations, tables.
Constants = Mapping[str, Tensor]


@dataclass(frozen=True)
class CacheCodec(ABC):
    """Settings are the frozen dataclass's fields, with their defaults; checked in `__post_init__`.

    Tokens are coded once, in groups counted from the first token, and never again; what a token is coded as depends on its own
    group alone. So the codes of a sequence are the same however it arrived, and a forward over the whole sequence can select,
    for each query, between the exact and the coded form of every earlier token.

    Class attributes:
        name: as written in a recipe.
        summary: one line for tables.
        source: paper and equation.
        serves: what it can store.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str] = ""
    serves: ClassVar[frozenset[Part]] = frozenset({"keys", "values"})

    @property
    def group(self) -> int:
        """Tokens coded together; 1 where each is coded alone."""
        return 1

    @abstractmethod
    def settled(self, total: int) -> int:
        """How many of the oldest of `total` tokens are in code; the others are exact. A multiple of `group` that never falls."""

    def check(self, head_dim: int) -> None:
        """Raise a `FeatherweightError` for a head dimension that cannot be served."""
        return None

    def constants(self, head_dim: int, generator: torch.Generator) -> dict[str, Tensor]:
        """What one layer draws, float32 on the CPU; the same for the same state of the generator."""
        return {}

    @abstractmethod
    def layout(self, head_dim: int, dtype: torch.dtype) -> dict[str, tuple[int, tuple[int, ...], torch.dtype]]:
        """Of every tensor of codes: tokens in an entry, shape of an entry, and its dtype; `dtype` is the model's."""

    @abstractmethod
    def encode(self, exact: Tensor, constants: Constants) -> dict[str, Tensor]:
        """Codes of `exact [batch, heads, tokens, head_dim]`; tokens are whole groups."""

    @abstractmethod
    def decode(self, codes: Codes, constants: Constants, dtype: torch.dtype) -> Tensor:
        """The values that the codes stand for, `[batch, heads, tokens, head_dim]`."""

    def scores(self, query: Tensor, codes: Codes, constants: Constants) -> Tensor:
        """`⟨q, k̂⟩ [batch, query heads, queries, tokens]` for `query [batch, query heads, queries, head_dim]`, unscaled.

        Query heads are `heads` times a whole number, those of one key head next to each other. The reference decodes.
        """
        return choose("cache_scores", self._signature(query, codes), query.device)(query, self, codes, constants)

    def mix(self, weights: Tensor, codes: Codes, constants: Constants) -> Tensor:
        """`Σ_t p_t v̂_t [batch, query heads, queries, head_dim]` for `weights [batch, query heads, queries, tokens]`."""
        return choose("cache_mix", self._signature(weights, codes), weights.device)(weights, self, codes, constants)

    def _signature(self, asked: Tensor, codes: Codes) -> dict[str, Any]:
        """What a kernel is asked about: the codec, its settings, and how many queries meet one head of the cache."""
        heads = next(iter(codes.values())).shape[1]
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"codec": self.name, "queries": asked.shape[1] // heads * asked.shape[2], **settings}

    def stored_bits(self, head_dim: int, dtype: torch.dtype) -> float:
        """Stored bits of one coded value, scales, norms and indices included."""
        entries = self.layout(head_dim, dtype).values()
        return sum(8 * torch.Size(shape).numel() * kind.itemsize / tokens for tokens, shape, kind in entries) / head_dim
