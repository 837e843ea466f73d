"""From what a user says about the cache to its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featherweight.kv_cache import CacheSettings
from featherweight.kv_cache.presets import read_settings
from featherweight.kv_cache.shapes import cache_shapes

#: What a user may say: nothing for the model's own, "none" for the exact cache, what `read_settings` reads, or the settings.
CacheChoice = str | Path | Mapping[str, Any] | CacheSettings | None

NONE = "none"


def choose_cache(folder: Path, choice: CacheChoice) -> CacheSettings | None:
    """The settings that `choice` means for the model in `folder`; None for the exact cache.

    Raises:
        FeatherweightError: no such preset, file or setting, or a model whose cache cannot be compressed.
    """
    if isinstance(choice, CacheSettings):
        return choice
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if choice is None:
        section = (config.get("quantization_config") or {}).get("kv_cache")
        return CacheSettings.from_dict(section["settings"]) if section else None
    if isinstance(choice, Mapping) or str(choice) != NONE:
        from transformers import AutoConfig

        told = choice if isinstance(choice, Mapping) else str(choice)
        return read_settings(told, cache_shapes(AutoConfig.from_pretrained(folder))[0].key_dim)
    return None
