"""From what a user says about the cache to its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from featherweight.errors import FeatherweightError
from featherweight.kv_cache import CacheSettings

#: What a user may say: nothing for the model's own, "none" for the exact cache, a YAML file, or the settings.
CacheChoice = str | Path | Mapping[str, Any] | CacheSettings | None

NONE = "none"


def choose_cache(folder: Path, choice: CacheChoice) -> CacheSettings | None:
    """The settings that `choice` means for the model in `folder`; None for the exact cache.

    Raises:
        FeatherweightError: no such preset or file, or settings that do not exist.
    """
    if choice is None:
        section = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("kv_cache")
        return CacheSettings.from_dict(section) if section else None
    if isinstance(choice, CacheSettings):
        return choice
    if isinstance(choice, Mapping):
        return CacheSettings.from_dict(choice)
    if str(choice) == NONE:
        return None
    return _read(Path(choice))


def _read(path: Path) -> CacheSettings:
    if not path.is_file():
        raise FeatherweightError("no such cache", found=path, expected=f"{NONE}, or a YAML file with keys and values")
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise FeatherweightError("the cache file is not readable YAML", found=f"{path}: {problem}", expected="YAML") from None
    if not isinstance(told, dict):
        raise FeatherweightError("the cache file is no mapping", found=type(told).__name__, expected="`keys: {codec: ...}`")
    return CacheSettings.from_dict(told.get("kv_cache", told))
