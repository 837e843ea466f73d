"""Which codec stores which layer's keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from featherweight.errors import FeatherweightError, nearest
from featherweight.kv_cache.codec import CacheCodec
from featherweight.kv_cache.exact import Exact
from featherweight.kv_cache.registry import check_kind, codec_settings, make_codec

Prefill = Literal["chunked", "exact"]
PREFILLS: tuple[str, ...] = get_args(Prefill)


@dataclass(frozen=True)
class CacheSettings:
    """The section `kv_cache:` of a recipe, and of an output's configuration.

    Attributes:
        keys, values: codecs of all layers but the first ones.
        first_layers: how many layers at the bottom take `first_keys` and `first_values` instead.
        first_keys, first_values: their codecs; None for the same as the others.
        exact_first: how many tokens at the beginning stay exact, of all layers' keys and values. Positions of the cache are
            counted: padding on the left is among them.
        seed: of the projections; every layer draws its own.
        prefill: a prompt that comes in one forward is read exactly. One that comes in several: "chunked" codes after every forward,
            so a later part reads the code of the earlier ones; "exact" codes nothing before the first token that comes alone, so
            the whole prompt is held exact in all layers meanwhile.

    Raises:
        FeatherweightError: a codec that cannot store what it is asked to, or a negative number of layers or tokens.
    """

    keys: CacheCodec = field(default_factory=Exact)
    values: CacheCodec = field(default_factory=Exact)
    first_layers: int = 0
    first_keys: CacheCodec | None = None
    first_values: CacheCodec | None = None
    exact_first: int = 0
    seed: int = 0
    prefill: Prefill = "chunked"

    def __post_init__(self) -> None:
        """Check the settings."""
        for part, codec in (
            ("keys", self.keys), ("values", self.values), ("keys", self.first_keys), ("values", self.first_values)
        ):  # fmt: skip
            if codec is not None and part not in codec.serves:
                raise FeatherweightError(
                    f"{codec.name} stores no {part}", found=f"{part}: {codec.name}", expected=f"a codec for {part}",
                    fix=f"use it for {' and '.join(sorted(codec.serves))}",
                )  # fmt: skip
        for name, count in (("first_layers", self.first_layers), ("exact_first", self.exact_first)):
            if count < 0:
                raise FeatherweightError(f"{name} is negative", found=count, expected="0 or more")
        if self.prefill not in PREFILLS:
            raise FeatherweightError(
                "prefill is unknown", found=self.prefill, expected=" or ".join(PREFILLS),
                fix=f"did you mean {nearest(str(self.prefill), PREFILLS, 1)[0]}?",
            )  # fmt: skip
        if (self.first_keys or self.first_values) and not self.first_layers:
            raise FeatherweightError(
                "the first layers have a codec of their own, but there are none", found="first_layers: 0",
                expected="first_layers: 1 or more",
            )  # fmt: skip

    def codecs(self, layer: int) -> tuple[CacheCodec, CacheCodec]:
        """Codecs of the keys and the values of layer `layer`."""
        if layer < self.first_layers:
            return self.first_keys or self.keys, self.first_values or self.values
        return self.keys, self.values

    def generator(self, layer: int) -> torch.Generator:
        """Of the layer's projections."""
        return torch.Generator().manual_seed((self.seed << 16) + layer)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them."""
        told: dict[str, Any] = {"keys": codec_settings(self.keys), "values": codec_settings(self.values), "seed": self.seed}
        told["prefill"] = self.prefill
        if self.exact_first:
            told["exact_first"] = self.exact_first
        if self.first_layers:
            told["first_layers"] = self.first_layers
            for name, codec in (("first_keys", self.first_keys), ("first_values", self.first_values)):
                if codec is not None:
                    told[name] = codec_settings(codec)
        return told

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> CacheSettings:
        """The settings of a recipe's or a configuration's section.

        Raises:
            FeatherweightError: an unknown key, codec or setting, or a value of another type.
        """
        known = ("keys", "values", "first_layers", "first_keys", "first_values", "exact_first", "seed", "prefill")
        for key in told:
            if key not in known:
                raise FeatherweightError(
                    "kv_cache has no such setting", found=key, expected=", ".join(known),
                    fix=f"did you mean {nearest(key, known, 1)[0]}?",
                )  # fmt: skip
        numbers = {key: told.get(key, 0) for key in ("first_layers", "exact_first", "seed")}
        for key, value in numbers.items():
            check_kind(key, value, "int", 0)
        codecs = {key: make_codec(told[key]) for key in known if key.endswith(("keys", "values")) and told.get(key)}
        return cls(
            **codecs, first_layers=numbers["first_layers"], exact_first=numbers["exact_first"], seed=numbers["seed"],
            prefill=told.get("prefill", "chunked"),
        )  # fmt: skip
