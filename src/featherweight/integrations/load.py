"""Loading an output, or any dense model, as a transformers model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from featherweight.errors import FeatherweightError
from featherweight.integrations.config import METHOD, check_version


def load(folder: str | Path, *, device: str | None = None, dtype: torch.dtype | str = "auto") -> Any:
    """The model in `folder`, in eval mode, on `device` (CPU if None), packed weights kept packed.

    Raises:
        FeatherweightError: no complete output there, or one of a newer format.
    """
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    config = folder / "config.json"
    if not config.is_file():
        unfinished = (folder / "journal.json").is_file()
        raise FeatherweightError(
            "no model here",
            found=f"{folder} {'holds an unfinished run' if unfinished else 'has no config.json'}",
            expected="a folder made by `fw compress`, or a model folder",
            fix="run the same `fw compress` again to finish it" if unfinished else "check the path",
        )
    section = json.loads(config.read_text(encoding="utf-8")).get("quantization_config") or {}
    if section.get("quant_method") == METHOD:
        check_version(int(section.get("format_version", 1)))
        _check_tensors(folder, section.get("modules") or {})
    with _no_loading_bar():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device)
    return model.eval()


def _check_tensors(folder: Path, modules: dict[str, dict[str, Any]]) -> None:
    """The files must hold the tensors that the configuration describes; transformers' own error is hard to read."""
    from safetensors import safe_open

    from featherweight.packed.base import layout_of

    stored: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for module, description in modules.items():
        for part, (shape, _) in layout_of(description).items():
            found = stored.get(f"{module}.{part}")
            if found != tuple(shape):
                raise FeatherweightError(
                    "config.json does not describe the weight files",
                    found=f"{module}.{part} of shape {found}" if found else f"no tensor {module}.{part}",
                    expected=f"shape {tuple(shape)}, from {description}",
                    fix="restore config.json, or run the same `fw compress` again",
                )


@contextmanager
def _no_loading_bar() -> Iterator[None]:
    """Without transformers' own progress bar, which would run into ours; the user's setting is put back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_modules(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Descriptions of the packed modules of an output, by name; empty for a dense model."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return dict((config.get("quantization_config") or {}).get("modules") or {})
