"""The config of a model with fewer blocks or other widths, found by trying: no family is listed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from featherweight.errors import FeatherweightError
from featherweight.models.skeleton import build_skeleton

Shapes = Mapping[str, tuple[int, ...]]


def resized_config(config: Any, old: int, new: int, wanted: Shapes, what: str) -> dict[str, Any]:
    """Which settings make transformers build exactly these parameters.

    One integer setting of value `old` becomes `new`, lists of `old` entries (one per block) are not touched; a setting that
    is null may stand for `old` too.

    Args:
        config: a transformers config.
        old, new: the size that changes.
        wanted: shapes of all parameters and persistent buffers of the resized model, by name.
        what: for the error.

    Returns:
        Changed settings of `config`.

    Raises:
        FeatherweightError: no single setting does it; the family cannot be resized this way.
    """
    text = config.get_text_config(decoder=True)
    settings = text.to_dict()
    tried = [name for name, value in settings.items() if type(value) is int and value == old]
    tried += [name for name, value in settings.items() if value is None]
    for name in tried:
        changes = {name: new}
        candidate = copy.deepcopy(config)
        apply_settings(candidate, changes)
        try:
            built = build_skeleton(candidate)
        except Exception:  # a setting that only happens to have this value may break the family's own checks
            continue
        if {key: tuple(tensor.shape) for key, tensor in built.state_dict().items()} == dict(wanted):
            return changes
    raise FeatherweightError(
        f"this family cannot have another {what}",
        found=f"{type(config).__name__}: no setting of {old} that makes it {new}",
        expected="a config with one setting for it",
        fix="use the method structured, which keeps the model's shapes",
    )


def apply_settings(config: Any, changes: Mapping[str, Any]) -> None:
    """Set them on the part of `config` that describes the decoder."""
    text = config.get_text_config(decoder=True)
    for name, value in changes.items():
        setattr(text, name, value)


def lists_per_block(config: Any, blocks: int, kept: list[int]) -> dict[str, Any]:
    """Settings that hold one entry per block (kinds of layers), with those of the kept blocks."""
    settings = config.get_text_config(decoder=True).to_dict()
    return {
        name: [value[index] for index in kept]
        for name, value in settings.items()
        if isinstance(value, list) and len(value) == blocks
    }
