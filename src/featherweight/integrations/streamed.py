"""A model of which one block at a time is in memory: each is read from its file for every forward, and dropped behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.integrations.config import LINEARS, METHOD
from featherweight.kv_cache.attach import attach_cache
from featherweight.kv_cache.settings import CacheSettings
from featherweight.models.freed import return_freed_memory
from featherweight.models.shards import model_shards, read_headers
from featherweight.models.skeleton import build_skeleton, put_tensor
from featherweight.models.source import ModelSource
from featherweight.models.structure import find_structure
from featherweight.models.weights import open_weights, tied_names
from featherweight.packed.base import empty
from featherweight.packed.linear import PackedModule
from featherweight.packed.placing import place

#: The attribute of a model that says that its blocks are on disk.
STREAMED = "reads_blocks_from_disk"

#: From a tensor's name to its stored values, in a mapped file.
Read = Callable[[str], Tensor]


def load_streamed(folder: Path, *, device: str | None = None, dtype: torch.dtype | str = "auto") -> Any:
    """The model in `folder`, an output of ours or dense, in eval mode; the embedding and the norms are loaded, blocks and head are not.

    It computes what the loaded model does, once through the files for every forward: for models that do not fit, not for speed.
    `state_dict()` gives the stored tensors.

    Raises:
        FeatherweightError: no complete model there, one of a newer format, or one without plain decoder blocks.
    """
    source = ModelSource(str(folder), folder)
    config = source.config()
    section = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config") or {}
    ours = section.get("quant_method") == METHOD
    if ours:
        config.quantization_config = None
    chosen = None if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model = build_skeleton(config, chosen, fused_experts=ours and section.get("experts") != LINEARS)
    structure = find_structure(model)
    read = open_weights(folder, model).read if not ours else _place_packed(model, section["modules"], folder)
    own_head = [structure.head] if structure.head and not structure.tied else []
    paths = [*structure.blocks, *own_head]
    outside = StreamedModule.of(model, "", read, model.dtype, device or "cpu", leave_out=paths)
    streamed = [StreamedModule.of(model, path, read, model.dtype, device or "cpu") for path in paths]
    outside.load()
    for path, part in zip(paths, streamed, strict=True):
        module = model.get_submodule(path)
        module.register_forward_pre_hook(lambda *_, part=part: part.load())
        module.register_forward_hook(lambda *_, part=part: part.drop(), always_call=True)
    model.register_state_dict_post_hook(lambda _, state, *__: _fill(state, read))
    setattr(model, STREAMED, True)
    if section.get("kv_cache") and model.can_generate():
        attach_cache(model, CacheSettings.from_dict(section["kv_cache"]["settings"]), section["kv_cache"]["constants"])
    return model


@dataclass(frozen=True)
class StreamedModule:
    """Tensors of a module that come and go together.

    Attributes:
        model, path: whose.
        tensors: by the first name, all names, and the empty tensor that stands there meanwhile.
        read: by name.
        dtype, device: that they are brought to; packed tensors keep their dtype.
    """

    model: nn.Module
    path: str
    tensors: Mapping[str, tuple[tuple[str, ...], Tensor]]
    read: Read
    dtype: torch.dtype
    device: str

    @classmethod
    def of(
        cls, model: nn.Module, path: str, read: Read, dtype: torch.dtype, device: str, leave_out: list[str] | None = None
    ) -> StreamedModule:
        """All tensors below `path`, those below `leave_out` excepted."""
        state = model.state_dict(keep_vars=True)
        tensors = {
            name: (names, state[name])
            for name, names in tied_names(model).items()
            if _below(name, path) and not any(_below(name, other) for other in leave_out or ())
        }
        return cls(model, path, tensors, read, dtype, device)

    def load(self) -> None:
        """Read them, and bring buffers that no file holds to the device."""
        for name, (names, _) in self.tensors.items():
            owner = self.model.get_submodule(name.rpartition(".")[0])
            values, packed = self.read(name), isinstance(owner, PackedModule) and name.rpartition(".")[2] in owner._buffers
            converted = values if packed or not values.is_floating_point() else values.to(self.dtype)
            put_tensor(self.model, names, converted.to(self.device))
        for owner in self.model.get_submodule(self.path).modules():
            for leaf in owner._non_persistent_buffers_set:
                buffer = owner._buffers.get(leaf)
                if buffer is not None and buffer.device.type != "meta":
                    owner._buffers[leaf] = buffer.to(self.device)

    def drop(self) -> None:
        """Put the empty ones back."""
        for module in self.model.get_submodule(self.path).modules():
            if isinstance(module, PackedModule):
                module.release_dense()
                module.release_prepared()
        for names, stand_in in self.tensors.values():
            put_tensor(self.model, names, stand_in)
        return_freed_memory()


def _below(name: str, path: str) -> bool:
    return not path or name.startswith(path + ".")


def _place_packed(model: nn.Module, modules: Mapping[str, dict[str, Any]], folder: Path) -> Read:
    """Empty packed modules in their places; returns the reader of the folder's files."""
    structure = find_structure(model)
    tied = structure.head if structure.tied else None
    for name, description in modules.items():
        place(model, name, empty(description), tied_head=tied)
    stored = read_headers(model_shards(folder))

    def read(name: str) -> Tensor:
        if name not in stored:
            raise FeatherweightError(
                "config.json does not describe the weight files", found=f"no tensor {name} in {folder}",
                expected="the files as `fw compress` wrote them", fix="run the same `fw compress` again",
            )  # fmt: skip
        with safe_open(stored[name].shard, framework="pt") as file:
            return file.get_tensor(name)

    return read


def _fill(state: dict[str, Tensor], read: Read) -> None:
    """Stored tensors, mapped, in the place of those that are not loaded."""
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.device.type == "meta":
            state[name] = read(name)
