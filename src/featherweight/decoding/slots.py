"""The step's static cache as transformers sees it, so that a model's own forward fills it. Importing this imports transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class Slots(CacheLayerMixin):  # type: ignore[misc]
    """One layer whose tokens are written in place; a forward sees the tokens held, and no room that is still free.

    Args:
        keys, values: `[batch, heads, length, dim]`.
        held: tokens that they hold.
    """

    is_croppable = True

    def __init__(self, keys: Tensor, values: Tensor, held: int) -> None:
        super().__init__()
        self.keys, self.values, self.held, self.is_initialized = keys, values, held, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the tensors are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens behind those held, and return all."""
        end = self.held + key_states.shape[-2]
        self.keys[:, :, self.held : end] = key_states
        self.values[:, :, self.held : end] = value_states
        self.held = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens that a query of so many new ones sees, and the first of them."""
        return self.held + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.held

    def get_max_length(self) -> int:
        """Tokens that there is room for."""
        return int(self.keys.shape[2])

    get_max_cache_shape = get_max_length


def slots(keys: list[Tensor], values: list[Tensor], held: int) -> Cache:
    """A cache of transformers over these tensors."""
    return Cache(layers=[Slots(*each, held) for each in zip(keys, values, strict=True)])
