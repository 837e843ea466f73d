"""Every cache codec, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from featherweight.errors import FeatherweightError, nearest
from featherweight.kv_cache.codec import CacheCodec
from featherweight.kv_cache.exact import Exact
from featherweight.kv_cache.integer import Integer
from featherweight.kv_cache.qjl import QJL
from featherweight.kv_cache.rotated import Rotated

CODECS: dict[str, type[CacheCodec]] = {codec.name: codec for codec in (Exact, Integer, Rotated, QJL)}


def make_codec(settings: Mapping[str, Any]) -> CacheCodec:
    """The codec of `{"codec": name, setting: value}`.

    Raises:
        FeatherweightError: no such codec or setting, or what the codec refuses.
    """
    name = str(settings.get("codec", ""))
    if name not in CODECS:
        raise FeatherweightError(
            "unknown cache codec", found=name or dict(settings), expected=", ".join(CODECS),
            fix=f"did you mean {nearest(name, CODECS, 1)[0]}?",
        )  # fmt: skip
    kind = CODECS[name]
    given = {key: value for key, value in settings.items() if key != "codec"}
    known = [field.name for field in fields(kind)]
    for key in given:
        if key not in known:
            raise FeatherweightError(
                f"the cache codec {name} has no such setting", found=key, expected=", ".join(known) or "no settings",
                fix=f"did you mean {nearest(key, known, 1)[0]}?" if known else "remove it",
            )  # fmt: skip
    return kind(**given)


def codec_settings(codec: CacheCodec) -> dict[str, Any]:
    """The inverse of `make_codec`, defaults included."""
    return {"codec": codec.name, **{field.name: getattr(codec, field.name) for field in fields(codec)}}
