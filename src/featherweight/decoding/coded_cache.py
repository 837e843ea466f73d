"""A compressed cache to which a decode step adds tokens in place: prompts go through transformers' interface, steps do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels import registry
from featherweight.kernels.coded_layer import CodedLayer, CodedSide
from featherweight.kernels.cuda.cache_append import unsupported
from featherweight.kv_cache import CacheSettings, new_cache
from featherweight.kv_cache.part import StoredPart
from featherweight.kv_cache.registry import codec_settings

#: Entries of the smallest ring.
LEAST = 32

FIRST = "a step of ours keeps no first tokens exact"


class CodedCache:
    """The cache of a model that codecs are attached to, with room for a number of tokens.

    Between `enter` and `leave` its layers are what steps read and change, and the cache itself is behind.

    Args:
        model: with `attach_cache`.
        length: tokens there is room for.

    Attributes:
        cache: as transformers sees it.
        layers: as steps see it; none before the first `enter`.

    Raises:
        FeatherweightError: first tokens that stay exact.
    """

    def __init__(self, model: Any, length: int) -> None:
        cache = new_cache(model)
        assert cache is not None
        if cache.settings.exact_first:
            raise FeatherweightError(
                FIRST, found=f"exact_first: {cache.settings.exact_first}", fix="none is needed: transformers' own step runs"
            )
        for codec in (codec for layer in range(len(cache.layers)) for codec in cache.settings.codecs(layer)):
            if not hasattr(codec, "window"):
                raise FeatherweightError(
                    "a step of ours keeps only the newest tokens exact beside codes", found=codec.name, expected="codecs with a window",
                    fix="none is needed: transformers' own step runs",
                )  # fmt: skip
        self.cache, self.length = cache, length
        self.layers: list[CodedLayer] = []
        self._addresses: list[int] = []

    def enter(self) -> bool:
        """Hand the tokens to steps; whether tensors have moved since the last time, so that graphs are of no use any more."""
        self.cache.settle()
        for layer in self.cache.layers:
            for part in layer.parts:
                part.reserve(self.length)
        addresses = [
            tensor.data_ptr() for layer in self.cache.layers for part in layer.parts for tensor in part.buffers.values()
        ]
        moved = addresses != self._addresses
        if moved:
            self._addresses = addresses
            self.layers = [_layer(*layer.parts) for layer in self.cache.layers]
        for layer, held in zip(self.cache.layers, self.layers, strict=True):
            for part, side in zip(layer.parts, (held.keys, held.values), strict=True):
                places = torch.arange(part.coded, part.total, device=side.ring.device) % side.ring.shape[2]
                side.ring[:, :, places] = part.exact
        return moved

    def leave(self, held: int) -> None:
        """Bring the cache to the `held` tokens that steps have left."""
        for layer, steps in zip(self.cache.layers, self.layers, strict=False):
            for part, side in zip(layer.parts, (steps.keys, steps.values), strict=True):
                exact = torch.arange(side.settled(held), held, device=side.ring.device) % side.ring.shape[2]
                part.resume(side.settled(held), side.ring[:, :, exact])

    def crop(self, held: int, count: int) -> None:
        """Leave `count` of the `held` tokens."""
        self.leave(held)
        if held:
            self.cache.crop(count - held)


def _layer(key_part: StoredPart, value_part: StoredPart) -> CodedLayer:
    keys, values = _side(key_part, key_part.codec.scores), _side(value_part, value_part.codec.mix)
    return CodedLayer(keys, values, torch.zeros(3, dtype=torch.int32, device=keys.ring.device))


def _side(part: StoredPart, method: Callable[..., Tensor]) -> CodedSide:
    exact, codec, constants = part.exact, part.codec, part.constants
    window = int(getattr(codec, "window", 0))
    size = max(LEAST, 1 << window.bit_length())
    ring = exact.new_zeros(*exact.shape[:2], size, exact.shape[3])

    return CodedSide(
        codec_settings(codec), constants, part.buffers, part.entry_tokens, ring, codec.settled, partial(codec.encode, constants=constants),
        partial(method, constants=constants),
    )  # fmt: skip


def coded_kernel(layer: CodedLayer, dtype: torch.dtype, head_dim: int, device: torch.device) -> Any:
    """The op `attend_coded` for a layer.

    Raises:
        FeatherweightError: only the reference runs it, which no graph can record.
    """
    signature = {
        "keys": layer.keys.settings, "values": layer.values.settings, "head_dim": head_dim,
        "dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    if device.type == "cuda" and registry.accelerated("attend_coded", signature, device) is None:
        reason = registry.explain("attend_coded", signature, device)[0][2]
        raise FeatherweightError(
            "no kernel adds to this cache", found=reason, expected="codecs that one serves",
            fix="none is needed: transformers' own step runs",
        )  # fmt: skip
    return registry.choose("attend_coded", signature, device)


def why_not_coded(settings: CacheSettings, layers: int, head_dim: int, dtype: str = "bfloat16") -> str:
    """Why on a GPU no step of ours adds to a cache of these settings; empty if one does."""
    told = [map(codec_settings, settings.codecs(layer)) for layer in {0, layers - 1}]
    reasons = [unsupported(keys, values, head_dim, dtype) for keys, values in told]
    return FIRST if settings.exact_first else next((f"the cache's kernel {reason}" for reason in reasons if reason), "")
