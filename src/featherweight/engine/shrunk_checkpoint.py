"""The files of a shrunk model: small tensors under new names, a config that fits them, the tokenizer, the proof."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from featherweight.engine.save import LEDGER, copy_tokenizer
from featherweight.engine.shrink_task import Task
from featherweight.engine.smaller import Smaller
from featherweight.engine.verify import PROBE, compare_logits, reload_logits
from featherweight.integrations.config import quantization_config
from featherweight.models.resize import changed_raw
from featherweight.models.structure import Linear
from featherweight.models.weights import PER_LAYER, Weights
from featherweight.packed.dense import Dense
from featherweight.packed.files import write, write_text

if TYPE_CHECKING:
    from featherweight.engine.shrink_walk import ShrinkWalk


@dataclass(frozen=True)
class BlockFile:
    """What the file of one block holds.

    Attributes:
        weights: of the original.
        smaller: what stays.
        block: old path; "" for what lies outside the blocks.
        packed: whether linears that lost something are stored as packed weights, so that each may have its own shape.
        kept: by kind, the units that stay, int64.
        changed: tensors with other values, cut already, by their old names; all others are copied.
    """

    weights: Weights
    smaller: Smaller
    block: str
    packed: bool
    kept: Mapping[str, Tensor]
    changed: Mapping[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """By their new names."""
        found: dict[str, Tensor] = {}
        own = self.smaller.own(self.weights.names(), self.block)
        packed = packed_linears(self.smaller, self.block) if self.packed else {}
        for old, new in self.smaller.names(own).items():
            tensor = self.changed[old] if old in self.changed else self._cut(old)
            linear = packed.get(old)
            if linear is None:
                found[new] = tensor
            else:
                found[f"{new.removesuffix('.weight')}.values"] = tensor.t() if linear.transposed else tensor
        return found

    def _cut(self, name: str) -> Tensor:
        tensor = self.weights.read(name)
        for units in self.smaller.units[self.block] if self.block else ():
            tensor = units.cut(name, tensor, self.kept[units.kind])
        return tensor


def shard_names(blocks: int) -> list[str]:
    """Weight files in writing order: what lies outside the blocks, then one a block."""
    return [f"model-{index + 1:05d}-of-{blocks + 1:05d}.safetensors" for index in range(blocks + 1)]


def packed_linears(smaller: Smaller, block: str) -> dict[str, Linear]:
    """The linears of a block that lose rows or columns, by the old name of their weight."""
    cut = {name for units in (smaller.units[block] if block else ()) for name in units.tensors}
    return {linear.weight_name: linear for linear in smaller.structure.linears.get(block, ()) if linear.weight_name in cut}


def weight_of(tensors: Mapping[str, Tensor], smaller: Smaller, linear: Linear, *, packed: bool) -> Tensor:
    """The weight `[out, in]` of a linear, by its old name, in a written file."""
    name = next(iter(smaller.names([linear.weight_name]).values()))
    if packed:
        return tensors[f"{name.removesuffix('.weight')}.values"]
    return tensors[name].t() if linear.transposed else tensors[name]


def finish_checkpoint(walk: ShrinkWalk, tokens: Tensor, logits: Tensor) -> dict[str, Any]:
    """Write index, configuration, tokenizer, probe and ledger; reload from disk and compare.

    Returns:
        The proof: largest difference of the probe's logits, its bound, the dtype.

    Raises:
        FeatherweightError: the reloaded logits lie beyond the bound; the folder then holds no `config.json`.
    """
    folder, task = walk.output, walk.task
    placed: dict[str, str] = {}
    for entry in walk.journal.entries:
        with safe_open(folder / entry.shard, framework="pt") as file:
            placed |= dict.fromkeys(file.keys(), entry.shard)
    size = sum((folder / entry.shard).stat().st_size for entry in walk.journal.entries)
    index = {"metadata": {"total_size": size}, "weight_map": placed}
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=1))
    copy_tokenizer(task.source.folder, folder)
    write(folder / PROBE, {"tokens": tokens, "logits": logits[:, 7::8].contiguous()})
    write_text(folder / "config.json", json.dumps(_config(task, walk.smaller), indent=2))
    try:
        proof = compare_logits(logits, _reloaded(folder, tokens, task.cut.per_layer), torch.float32)
    except Exception:
        (folder / "config.json").unlink()
        raise
    ledger = {
        "format_version": 1,
        "model": {"name": task.source.name, "fingerprint": task.weights.fingerprint()},
        "shrink": vars(task.cut),
        "calibration": {**walk.windows.description, "sha256": walk.windows.sha256},
        "compute": {"device": walk.device.type, "dtype": "torch.float32"},
        "files": {entry.shard: entry.sha256 for entry in walk.journal.entries},
        "total": {"file_bytes": size},
        "proof": proof,
    }
    write_text(folder / LEDGER, json.dumps(ledger, indent=1))
    return proof


def _config(task: Task, smaller: Smaller) -> dict[str, Any]:
    changed = changed_raw(task.raw, smaller.settings(task.config, task.raw, blocks_only=task.cut.per_layer))
    if task.cut.per_layer:
        changed["quantization_config"] = quantization_config(dict(_descriptions(task, smaller)), PER_LAYER)
    return changed


def _descriptions(task: Task, smaller: Smaller) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every packed linear by its new path."""
    for block in smaller.kept:
        for old, linear in packed_linears(smaller, block).items():
            shape = smaller.shape(old, task.weights.shape(old))
            rows, columns = reversed(shape) if linear.transposed else shape
            name = next(iter(smaller.names([old]).values()))
            yield name.removesuffix(".weight"), Dense.describe((rows, columns), task.weights.dtype(old))


def _reloaded(folder: Path, tokens: Tensor, packed: bool) -> Tensor:
    """Logits of the checkpoint as a user loads it: with no plug-in of ours taking part, unless it is packed."""
    if packed:
        return reload_logits(folder, {"tokens": tokens}, torch.device("cpu"), torch.float32)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits.float()
