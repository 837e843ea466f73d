"""An ordinary checkpoint of a model that lost blocks or widths: renamed tensors, a config that fits them, the tokenizer."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from featherweight.engine.save import copy_tokenizer
from featherweight.models.axis import Axis
from featherweight.models.resize import apply_settings, lists_per_block, resized_config
from featherweight.models.skeleton import build_skeleton
from featherweight.models.source import ModelSource
from featherweight.models.structure import Structure
from featherweight.models.weights import Weights
from featherweight.packed.files import write, write_text


@dataclass(frozen=True)
class Smaller:
    """Which blocks stay, and how wide their MLPs are.

    Attributes:
        structure: of the original.
        kept: blocks that stay, in order.
        axes: by block, the MLP's channels; empty if they stay.
        channels: that stay in every MLP.
    """

    structure: Structure
    kept: tuple[str, ...]
    axes: Mapping[str, Axis]
    channels: int

    def names(self, names: Sequence[str]) -> dict[str, str]:
        """New names of the tensors that stay, by their old ones: blocks are numbered anew."""
        stem = self.structure.blocks[0].rpartition(".")[0]
        blocks = {f"{block}.": f"{stem}.{index}." for index, block in enumerate(self.kept)}
        gone = tuple(f"{block}." for block in self.structure.blocks if block not in self.kept)
        found = {}
        for name in names:
            prefix = next((prefix for prefix in blocks if name.startswith(prefix)), "")
            if not (gone and name.startswith(gone)):
                found[name] = blocks.get(prefix, "") + name.removeprefix(prefix)
        return found

    def shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What becomes of a tensor's shape, by its old name."""
        for axis in self.axes.values():
            module, _, leaf = name.rpartition(".")
            makes = [producer.name for producer in axis.producers].count(module)  # twice where gate and up are one linear
            if leaf not in ("weight", "bias") or not (makes or (module in axis.consumers and leaf == "weight")):
                continue
            side = 0 if makes else 1
            side = 1 - side if self.structure.linear(module).transposed and len(shape) == 2 else side
            gone = (axis.size - self.channels) * max(makes, 1)
            return tuple(size - gone if index == side else size for index, size in enumerate(shape))
        return shape

    def settings(self, config: Any) -> dict[str, Any]:
        """What must change in `config`; transformers then expects exactly what is left.

        Raises:
            FeatherweightError: no setting does it for this family.
        """
        state = {name: tuple(tensor.shape) for name, tensor in build_skeleton(config).state_dict().items()}
        names = self.names(list(state))
        smaller, changes = copy.deepcopy(config), dict[str, Any]()
        count = len(self.structure.blocks)
        if len(self.kept) < count:
            changes |= lists_per_block(config, count, [self.structure.blocks.index(block) for block in self.kept])
            apply_settings(smaller, changes)
            whole = {new: state[old] for old, new in names.items()}
            changes |= resized_config(smaller, count, len(self.kept), whole, "number of blocks")
            apply_settings(smaller, changes)
        if self.axes:
            shapes = {new: self.shape(old, state[old]) for old, new in names.items()}
            changes |= resized_config(smaller, next(iter(self.axes.values())).size, self.channels, shapes, "MLP width")
        return changes


def write_checkpoint(
    source: ModelSource, output: Path, smaller: Smaller, weights: Weights, changed: Mapping[str, Tensor]
) -> tuple[int, int]:
    """Write what is left.

    Args:
        source: the original.
        output: folder.
        smaller: what stays.
        weights: of the original.
        changed: tensors with other values, by their old names; all others are copied.

    Returns:
        Parameters before and after, tied ones counted once.
    """
    config = source.config()
    changes, original = smaller.settings(config), build_skeleton(config)
    _write_shards(output, weights, smaller.names(list(original.state_dict())), smaller.kept, changed)
    copy_tokenizer(source.folder, output)
    raw = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    raw.get("text_config", raw).update(changes)
    write_text(output / "config.json", json.dumps(raw, indent=2))
    after = ModelSource(str(output), output).config()
    before, left = (sum(each.numel() for each in model.parameters()) for model in (original, build_skeleton(after)))
    return before, left


def _write_shards(
    output: Path, weights: Weights, names: Mapping[str, str], kept: Sequence[str], changed: Mapping[str, Tensor]
) -> None:
    """One file for what lies outside the blocks, one per block, and the index."""
    output.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[str]] = {"": [], **{block: [] for block in kept}}
    for old in names.keys() & set(weights.names()):
        groups[next((block for block in kept if old.startswith(f"{block}.")), "")].append(old)
    placed: dict[str, Any] = {}
    for index, members in enumerate(groups.values()):
        shard = f"model-{index + 1:05d}-of-{len(groups):05d}.safetensors"
        tensors = {names[old]: changed[old] if old in changed else weights.read(old) for old in sorted(members)}
        write(output / shard, tensors)
        placed |= dict.fromkeys(tensors, shard)
    size = sum(path.stat().st_size for path in output.glob("model-*.safetensors"))
    index_file = {"metadata": {"total_size": size}, "weight_map": placed}
    write_text(output / "model.safetensors.index.json", json.dumps(index_file, indent=1))
