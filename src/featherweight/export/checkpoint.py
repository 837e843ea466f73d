"""An output of ours as the formats read it: descriptions, tensors, what each module is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.export.codes import leaf
from featherweight.models.shards import model_shards
from featherweight.models.skeleton import build_skeleton
from featherweight.models.source import ModelSource
from featherweight.packed.base import PackedWeight, from_tensors, layout_of
from featherweight.packed.dtypes import dtype_from


@dataclass(frozen=True)
class Checkpoint:
    """A folder made by `fw compress`.

    Attributes:
        folder: where it lies.
        config: its config.json, without the section of packed modules.
        modules: descriptions of the packed modules.
        skeleton: the dense model's modules, without weights.
        shards: its weight files.
        as_stored: whether tensors that are not packed keep their dtype, whatever that of the scales.
    """

    folder: Path
    config: dict[str, Any]
    modules: dict[str, dict[str, Any]]
    skeleton: Any
    shards: list[Path]
    as_stored: bool = False

    @classmethod
    def open(cls, folder: Path, *, as_stored: bool = False) -> Checkpoint:
        """Read everything but the weights.

        Raises:
            FeatherweightError: the folder is no finished output of ours.
        """
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        section = config.pop("quantization_config", None) or {}
        if section.get("quant_method") != "featherweight":
            raise FeatherweightError(
                "nothing to export here",
                found=f"{folder}: {'a checkpoint without packed weights of ours' if config else 'no config.json'}",
                expected="a folder made by `fw compress`",
                fix=f"fw compress {folder} -o OUT, then export OUT" if config else "check the path",
            )
        source = ModelSource(str(folder), folder).config()
        source.quantization_config = None
        skeleton = build_skeleton(source, fused_experts="experts" not in section)
        return cls(folder, config, section["modules"], skeleton, model_shards(folder), as_stored)

    @property
    def dtype(self) -> torch.dtype:
        """Of the exported model: that of its scales, since readers hold them in the model's, else as stored."""
        found = {told["scale_dtype"] for told in map(leaf, self.modules.values()) if "scale_dtype" in told}
        return self.stored_dtype if self.as_stored or len(found) != 1 else dtype_from(found.pop())

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of the tensors that are not packed."""
        name = self.config.get("dtype") or self.config.get("torch_dtype") or "float32"
        return getattr(torch, name)

    def module(self, name: str) -> nn.Module:
        """The dense module that a packed one stands for."""
        return self.skeleton.get_submodule(name)

    def unpacked_linears(self) -> tuple[str, ...]:
        """Linears that are stored as they were."""
        return tuple(
            name for name, module in self.skeleton.named_modules() if isinstance(module, nn.Linear) and name not in self.modules
        )

    def weights(self, shards: Sequence[Path] | None = None) -> Iterator[tuple[str, PackedWeight | Tensor]]:
        """Every packed module by its name, every other tensor by its own, of some shards or all; one shard is open at a time."""
        where = self._where()
        stored = {f"{module}.{part}": module for module, told in self.modules.items() for part in layout_of(told)}
        for shard in self.shards if shards is None else shards:
            with safe_open(shard, framework="pt") as file:
                seen: set[str] = set()
                for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    module = stored.get(name)
                    if module is None:
                        yield name, file.get_tensor(name)
                    elif module not in seen:
                        seen.add(module)
                        yield module, self._packed(module, where)

    def _packed(self, module: str, where: dict[str, Path]) -> PackedWeight:
        tensors = {}
        for part in layout_of(self.modules[module]):
            with safe_open(where[f"{module}.{part}"], framework="pt") as file:
                tensors[part] = file.get_tensor(f"{module}.{part}")
        return from_tensors(self.modules[module], tensors)

    def _where(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for shard in self.shards:
            with safe_open(shard, framework="pt") as file:
                found.update(dict.fromkeys(file.keys(), shard))
        return found
