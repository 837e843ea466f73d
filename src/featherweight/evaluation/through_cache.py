"""A causal model that reads keys and values from a coded cache, to be measured like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.evaluation.protocol import Measurement, Protocol
from featherweight.evaluation.replay import Replay, replaying
from featherweight.kv_cache import CacheCodec, CacheSettings
from featherweight.kv_cache.constants import DrawnConstants
from featherweight.kv_cache.exact import Exact
from featherweight.kv_cache.shapes import cache_shapes, check_shapes


class ThroughCache(nn.Module):  # type: ignore[misc]
    """`model(input_ids).logits` as decoding token by token through a coded cache gives them.

    Attributes:
        settings: which codec stores which layer.
        stepwise: feed the tokens one by one to the real cache, slowly; otherwise one forward selects for every query between
            the exact and the coded form of every earlier token, which is the same up to rounding.

    Raises:
        FeatherweightError: a model whose cache cannot be compressed, or a head dimension that a codec cannot serve.
    """

    def __init__(self, model: Any, settings: CacheSettings, *, stepwise: bool = False) -> None:
        super().__init__()
        self.model, self.settings, self.stepwise = model, settings, stepwise
        shapes = cache_shapes(model.config)
        check_shapes(settings, shapes)
        self._constants = DrawnConstants(settings, shapes)
        self.train(model.training)

    @property
    def config(self) -> Any:
        """Of the model."""
        return self.model.config

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        """Logits `[batch, tokens, vocabulary]` from an empty cache.

        Raises:
            FeatherweightError: so few tokens that none is ever read in code, an architecture that keeps its attention to
                itself, or a layer that never read a code.
        """
        check_length(self.settings, len(self._constants.shapes), input_ids.shape[1])
        if self.stepwise:
            return SimpleNamespace(logits=self._one_by_one(input_ids))
        replay = Replay(self._constants)
        with replaying(self.model, replay):
            logits = self.model(input_ids=input_ids, use_cache=False).logits
        self._check_read(replay.coded)
        return SimpleNamespace(logits=logits)

    def _one_by_one(self, input_ids: Tensor) -> Tensor:
        from featherweight.kv_cache.cache import CompressedCache

        cache = CompressedCache(self.config, self.settings, self._constants)
        logits = [
            self.model(input_ids=input_ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits
            for at in range(input_ids.shape[1])
        ]
        self._check_read({layer: [reads.coded_keys, reads.coded_values] for layer, reads in enumerate(cache.reads)})
        return torch.cat(logits, 1)

    def _check_read(self, coded: Mapping[int, list[int]]) -> None:
        """Every codec of every layer must have been read in this forward."""
        for layer in range(len(self._constants.shapes)):
            for index, (part, codec) in enumerate(zip(("keys", "values"), self.settings.codecs(layer), strict=True)):
                if not isinstance(codec, Exact) and not coded.get(layer, [0, 0])[index]:
                    raise FeatherweightError(
                        "a cache codec was never read", found=f"layer {layer}: no {part} in code",
                        expected=f"{part} by {codec.name} in every layer",
                        fix="this architecture's attention does not go through transformers' interface: use the exact cache",
                    )  # fmt: skip

    def bits(self) -> tuple[float, float]:
        """Stored bits of a number of a coded key, and of a coded value, norms and scales included, on average over the layers.

        Norms and scales have the model's dtype, so that measuring in float32 counts twice as much for them as float16.
        """
        dtype = next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())
        pairs = [
            (keys.stored_bits(shape.key_dim, dtype), values.stored_bits(shape.value_dim, dtype))
            for layer, shape in enumerate(self._constants.shapes)
            for keys, values in (self.settings.codecs(layer),)
        ]
        return sum(pair[0] for pair in pairs) / len(pairs), sum(pair[1] for pair in pairs) / len(pairs)

    def measurements(self, protocol: Protocol) -> list[Measurement]:
        """`bits`, and their mean."""
        keys, values = self.bits()
        found = {"key_bits": keys, "value_bits": values, "cache_bits": (keys + values) / 2}
        return [Measurement(name, value, None, protocol) for name, value in found.items()]


def check_length(settings: CacheSettings, layers: int, tokens: int) -> None:
    """Every codec must be read by a prediction inside a window of so many tokens.

    Raises:
        FeatherweightError: with the window that would do.
    """
    codecs = {codec for layer in range(layers) for codec in settings.codecs(layer) if not isinstance(codec, Exact)}
    for codec in codecs:
        if codec.settled(tokens - 1) > settings.exact_first:  # the last token predicts nothing inside the window
            continue
        enough = next((count for count in range(tokens, 1 << 20) if codec.settled(count - 1) > settings.exact_first), None)
        raise FeatherweightError(
            f"the window is so short that {codec.name} codes nothing that is read", found=f"{tokens} tokens",
            expected=f"{enough} tokens or more",
            fix=f"use longer windows (--length {enough}), a codec that keeps fewer exact, or the exact cache (--kv-cache none)",
        )  # fmt: skip


def cache_label(settings: CacheSettings | None) -> str:
    """How keys and values reach the attention, in one line that no two settings share; "none" for one forward without a cache."""
    if settings is None:
        return "none"
    parts = [f"keys {_codec(settings.keys)}, values {_codec(settings.values)}"]
    if settings.first_layers:
        first = settings.first_keys or settings.keys, settings.first_values or settings.values
        parts.append(f"first {settings.first_layers} layers keys {_codec(first[0])}, values {_codec(first[1])}")
    if settings.exact_first:
        parts.append(f"first {settings.exact_first} tokens exact")
    return "; ".join([*parts, f"seed {settings.seed}"] if settings.seed else parts)


def _codec(codec: CacheCodec) -> str:
    changed = [
        f"{field.name} {getattr(codec, field.name)}" for field in fields(codec) if getattr(codec, field.name) != field.default
    ]
    return f"{codec.name}({', '.join(changed)})" if changed else codec.name


def through_cache(model: Any, settings: CacheSettings | None, *, stepwise: bool = False) -> Any:
    """The model itself for no settings, else `ThroughCache`.

    Raises:
        FeatherweightError: stepwise without a cache.
    """
    if settings is not None:
        return ThroughCache(model, settings, stepwise=stepwise)
    if stepwise:
        raise FeatherweightError(
            "stepwise needs a cache", found="no cache codec", expected="a preset or a file", fix="--kv-cache"
        )
    return model
