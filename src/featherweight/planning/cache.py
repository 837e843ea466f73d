"""What a recipe's section `kv_cache` means for a model: codecs of every layer, and bytes of a token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from featherweight.kv_cache.presets import read_settings
from featherweight.kv_cache.settings import CacheSettings
from featherweight.kv_cache.shapes import LayerShape, cache_shapes, check_shapes
from featherweight.planning.recipe import Recipe


@dataclass(frozen=True)
class CachePlan:
    """The cache of a model, as it will be.

    Attributes:
        settings: which codec stores what.
        shapes: of every layer.
        dtype: in which tokens that are not in code are kept.
    """

    settings: CacheSettings
    shapes: tuple[LayerShape, ...]
    dtype: torch.dtype

    @cached_property
    def key_bits(self) -> float:
        """Stored bits of a coded key's value, mean over all layers."""
        return self._mean("key_dim", 0)

    @cached_property
    def value_bits(self) -> float:
        """Stored bits of a coded value, mean over all layers."""
        return self._mean("value_dim", 1)

    def _mean(self, dim: str, part: int) -> float:
        sizes = [shape.heads * getattr(shape, dim) for shape in self.shapes]
        bits = [
            self.settings.codecs(layer)[part].stored_bits(getattr(shape, dim), self.dtype)
            for layer, shape in enumerate(self.shapes)
        ]
        return sum(size * each for size, each in zip(sizes, bits, strict=True)) / sum(sizes)

    @property
    def token_bytes(self) -> float:
        """Of one token in code, all layers."""
        return sum(shape.nbytes(self.settings, layer, self.dtype) for layer, shape in enumerate(self.shapes))

    @property
    def exact_token_bytes(self) -> int:
        """Of one token in a stock cache."""
        return sum(shape.heads * (shape.key_dim + shape.value_dim) for shape in self.shapes) * self.dtype.itemsize

    def bytes_of(self, tokens: int) -> int:
        """Of a sequence of so many tokens: what is settled in code, the others exact, and the first ones as well."""
        held = 0.0
        for layer, shape in enumerate(self.shapes):
            for codec, dim in zip(self.settings.codecs(layer), (shape.key_dim, shape.value_dim), strict=True):
                coded = codec.settled(tokens)
                exact = tokens - coded + min(coded, self.settings.exact_first)
                bits = coded * codec.stored_bits(dim, self.dtype) + exact * 8 * self.dtype.itemsize
                held += shape.heads * dim * bits / 8
        return round(held)

    def as_dict(self) -> dict[str, Any]:
        """The `--json` form."""
        return {
            "settings": self.settings.as_dict(),
            "key_bits": self.key_bits,
            "value_bits": self.value_bits,
            "token_bytes": self.token_bytes,
            "exact_token_bytes": self.exact_token_bytes,
            "tokens_per_gib": int(2**30 / self.token_bytes),
        }


def plan_cache(recipe: Recipe, config: Any, dtype: torch.dtype) -> CachePlan | None:
    """The cache that `recipe` asks for on a model of `config`, None if it says nothing.

    Raises:
        FeatherweightError: a model whose cache cannot be compressed, or a head dimension that a codec cannot serve.
    """
    if recipe.kv_cache is None:
        return None
    shapes = cache_shapes(config)
    settings = read_settings(recipe.kv_cache, shapes[0].key_dim)
    check_shapes(settings, shapes)
    return CachePlan(settings, shapes, dtype)
