"""Settings of the cache under a short name, in a file, or in a line of text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from featherweight.errors import FeatherweightError, nearest
from featherweight.kv_cache.settings import CacheSettings


def _integer(bits: int) -> dict[str, Any]:
    """KIVI's: keys by channel, values by token, groups of 32, the newest tokens exact."""
    shared = {"codec": "integer", "bits": bits, "group_size": 32, "window": 128}
    return {"keys": {**shared, "axis": "channel"}, "values": {**shared, "axis": "token"}}


def _rotated(bits: int) -> dict[str, Any]:
    """Keys around the means of their channels over 128 tokens, values by themselves; 2 bits on E8, the channels balanced.

    The first four tokens stay exact: one of them, whose key and value are like no other's, can take most of the attention.
    """
    values = {"codec": "rotated", "bits": bits, "lattice": bits == 2}
    return {"keys": {**values, "group_size": 128, "balance": bits == 2}, "values": values, "exact_first": 4}


def _qjl(head_dim: int) -> dict[str, Any]:
    """m = 2d signs a key, 4d in the first 15 layers; 8 outlier channels with 2d signs, d in the first layers; 2-bit values."""
    keys = {"codec": "qjl", "outliers": 8, "group_size": 32, "window": 128}
    general, first = _signs(2 * head_dim), _signs(4 * head_dim)
    return {
        "keys": {**keys, "sketch": general, "outlier_sketch": general},
        "values": _integer(2)["values"],
        "first_layers": 15,
        "first_keys": {**keys, "sketch": first, "outlier_sketch": _signs(head_dim)},
    }


def _signs(length: int) -> int:
    return 32 * max(1, round(length / 32))


_INT8 = {"codec": "integer", "bits": 8, "axis": "token", "group_size": 64, "window": 0}

#: What each preset is; `preset` makes it.
PRESETS: dict[str, str] = {
    "exact": "as they are",
    "int8": "8-bit integers by token in groups of 64, every token",
    "kivi-4": "4-bit integers, keys by channel, values by token, groups of 32, the newest 128 exact",
    "kivi-2": "the same at 2 bits",
    "rotated-4": "4 bits after a random rotation, keys around their channels' means, the first 4 and newest 128 exact",
    "rotated-3": "the same at 3 bits",
    "rotated-2": "2 bits, eight values at once on the E8 lattice, the channels of keys balanced",
    "qjl": "keys as signs of projections, 2 to a channel, 4 in the first 15 layers; 2-bit values",
}


def preset(name: str, head_dim: int) -> CacheSettings:
    """The settings of that name, scaled to a model's head dimension.

    Raises:
        FeatherweightError: no such preset.
    """
    if name not in PRESETS:
        raise FeatherweightError(
            "no such cache preset", found=name, expected=", ".join(PRESETS),
            fix=f"did you mean {nearest(name, PRESETS, 1)[0]}? A file ends in .yaml; a line reads keys=integer:bits=4",
        )  # fmt: skip
    made: dict[str, Any] = {"exact": {}, "int8": {"keys": _INT8, "values": _INT8}}.get(name, {})
    if name.startswith("kivi-"):
        made = _integer(int(name.removeprefix("kivi-")))
    elif name.startswith("rotated-"):
        made = _rotated(int(name.removeprefix("rotated-")))
    elif name == "qjl":
        made = _qjl(head_dim)
    return CacheSettings.from_dict(made)


def read_settings(told: str | Mapping[str, Any], head_dim: int) -> CacheSettings:
    """Settings from a preset's name, a `.yaml` file, a line like `keys=integer:bits=4,axis=channel;seed=1`, or a mapping.

    Raises:
        FeatherweightError: no such preset, file, codec or setting.
    """
    if isinstance(told, Mapping):
        return CacheSettings.from_dict(told)
    if "=" in told:
        return CacheSettings.from_dict(dict(map(_read_part, told.split(";"))))
    if told.endswith((".yaml", ".yml")):
        return CacheSettings.from_dict(_read_file(Path(told)))
    return preset(told, head_dim)


def _read_part(part: str) -> tuple[str, Any]:
    name, equals, value = part.strip().partition("=")
    if not equals:
        raise FeatherweightError(
            "a part of the cache's settings has no value", found=part, expected="keys=CODEC:SETTING=VALUE,...;values=..."
        )
    if not name.endswith(("keys", "values")):
        return name, _read_value(value)
    codec, _, rest = value.partition(":")
    pairs = (pair.partition("=") for pair in rest.split(",") if pair)
    return name, {"codec": codec, **{key.strip(): _read_value(text) for key, _, text in pairs}}


def _read_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise FeatherweightError("a setting of the cache is not readable", found=text, expected="a number or a word") from None


def _read_file(path: Path) -> dict[str, Any]:
    """The file's mapping, or its section `kv_cache`: a recipe will do."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise FeatherweightError("no settings of a cache there", found=f"{path}: {problem}", expected="a YAML file") from None
    data = data.get("kv_cache", data) if isinstance(data, dict) else data
    if not isinstance(data, dict):
        raise FeatherweightError("the file is no mapping", found=f"{path}: {data!r}"[:200], expected="keys: {codec: integer}")
    return data
