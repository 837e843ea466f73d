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


#: What a setting of this annotation may be, and how that is called.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"), "float": ((int, float), "a number"), "bool": ((bool,), "true or false"),
}  # fmt: skip


def make_codec(settings: Mapping[str, Any]) -> CacheCodec:
    """The codec of `{"codec": name, setting: value}`.

    Raises:
        FeatherweightError: no mapping, no such codec or setting, a value of another type, or what the codec refuses.
    """
    if not isinstance(settings, Mapping):
        raise FeatherweightError(
            "a codec comes with its settings", found=repr(settings), expected="a mapping", fix=f"{{codec: {settings}}}"
        )
    name = str(settings.get("codec", ""))
    if name not in CODECS:
        raise FeatherweightError(
            "unknown cache codec", found=name or dict(settings), expected=", ".join(CODECS),
            fix=f"did you mean {nearest(name, CODECS, 1)[0]}?",
        )  # fmt: skip
    kind = CODECS[name]
    given = {key: value for key, value in settings.items() if key != "codec"}
    known = {field.name: field for field in fields(kind)}
    for key, value in given.items():
        if key not in known:
            raise FeatherweightError(
                f"the cache codec {name} has no such setting", found=key, expected=", ".join(known) or "no settings",
                fix=f"did you mean {nearest(key, known, 1)[0]}?" if known else "remove it",
            )  # fmt: skip
        check_kind(f"{name}: {key}", value, str(known[key].type), known[key].default)
    return kind(**given)


def check_kind(what: str, value: object, annotation: str, default: object) -> None:
    """Raise the error of a value that is no whole number, number, boolean or None where the annotation asks for one."""
    wanted, _, optional = annotation.partition(" | ")
    if wanted not in _KINDS or (optional and value is None):
        return
    types, words = _KINDS[wanted]
    if not isinstance(value, types) or (isinstance(value, bool) and wanted != "bool"):
        raise FeatherweightError(
            f"{what} has another type", found=repr(value), expected=words, fix=f"leave it out for {default}"
        )


def codec_settings(codec: CacheCodec) -> dict[str, Any]:
    """The inverse of `make_codec`, defaults included."""
    return {"codec": codec.name, **{field.name: getattr(codec, field.name) for field in fields(codec)}}
