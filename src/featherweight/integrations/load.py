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
from featherweight.models.shards import DTYPES, model_shards, read_headers
from featherweight.packed.base import layout_of


def load(folder: str | Path, *, device: str | None = None, dtype: torch.dtype | str = "auto", stream: bool = False) -> Any:
    """The model in `folder`, in eval mode, on `device` (CPU if None), packed weights kept packed.

    Args:
        stream: keep one block in memory at a time and read it anew for every forward, see `load_streamed`.

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
    if stream:
        from featherweight.integrations.streamed import load_streamed

        return load_streamed(folder, device=device, dtype=dtype)
    with _no_loading_bar():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device)
    return model.eval()


def _check_tensors(folder: Path, modules: dict[str, dict[str, Any]]) -> None:
    """The files must hold the tensors that the configuration describes; transformers' own error is hard to read."""
    from safetensors import safe_open

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


def fits(folder: Path, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the loaded model leaves a tenth of the free memory of `device`; on a CPU, tensors that keep their dtype stay in their
    files, mapped. True where the system does not tell."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else []
        free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 0)
    packed = {f"{name}.{part}" for name, told in read_modules(folder).items() for part in layout_of(told)}
    needed = 0
    for name, stored in read_headers(model_shards(folder)).items():
        kept = DTYPES.get(stored.dtype)
        changes = name not in packed and kept is not None and kept.is_floating_point and kept != dtype
        if changes or device.type == "cuda":
            needed += torch.Size(stored.shape).numel() * dtype.itemsize if changes else stored.nbytes
    return not free or needed < 0.9 * free


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
