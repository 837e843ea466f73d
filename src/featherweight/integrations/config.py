"""The `quantization_config` of an output's `config.json`: versioned, readable without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featherweight.errors import FeatherweightError

METHOD = "featherweight"
FORMAT_VERSION = 1
#: How experts are stored, where it is not as transformers holds them.
LINEARS = "linears"
#: Of the section `kv_cache`.
CACHE_VERSION = 1


def quantization_config(
    modules: Mapping[str, Mapping[str, Any]], recipe: str, kv_cache: Mapping[str, Any] | None = None, experts: bool = False
) -> dict[str, Any]:
    """The section for packed modules, `{module: description}`, and for the cache where it is compressed.

    Args:
        experts: whether the model has experts that are stored as linears, which transformers would fuse.
    """
    section = {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "recipe": recipe,
        "modules": {name: dict(description) for name, description in modules.items()},
    }
    section |= {"experts": LINEARS} if experts else {}
    return section if kv_cache is None else {**section, "kv_cache": dict(kv_cache)}


def cache_section(settings: Mapping[str, Any], constants: Sequence[Any]) -> dict[str, Any]:
    """The part `kv_cache`: the settings, and the fingerprint of what they draw."""
    return {"format_version": CACHE_VERSION, "settings": dict(settings), "constants": list(constants)}


def check_version(found: int, known: int = FORMAT_VERSION) -> None:
    """Refuse a checkpoint of a newer format.

    Raises:
        FeatherweightError: with the fix.
    """
    if found > known:
        raise FeatherweightError(
            "the checkpoint is of a newer format",
            found=f"format_version {found}",
            expected=f"at most {known}",
            fix="pip install --upgrade featherweight",
        )
