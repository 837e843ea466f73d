"""The `quantization_config` of an output's `config.json`: versioned, readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featherweight.errors import FeatherweightError

METHOD = "featherweight"
FORMAT_VERSION = 1


def quantization_config(modules: Mapping[str, Mapping[str, Any]], recipe: str) -> dict[str, Any]:
    """The section for packed modules: `{module: description}`."""
    return {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "recipe": recipe,
        "modules": {name: dict(description) for name, description in modules.items()},
    }


def check_version(found: int) -> None:
    """Refuse a checkpoint of a newer format.

    Raises:
        FeatherweightError: with the fix.
    """
    if found > FORMAT_VERSION:
        raise FeatherweightError(
            "the checkpoint is of a newer format",
            found=f"format_version {found}",
            expected=f"at most {FORMAT_VERSION}",
            fix="pip install --upgrade featherweight",
        )
