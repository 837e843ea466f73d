"""What stays of a model: which blocks, how many channels and heads of each, and the settings that say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from featherweight.models.heads import follows_weights, runs_without
from featherweight.models.resize import lists_per_block, resized_settings
from featherweight.models.skeleton import build_skeleton
from featherweight.models.structure import Structure
from featherweight.models.units import CHANNELS, KV_GROUPS, Units, last

#: The way out of a config that has no setting for a width.
OWN_FORMAT = "add --per-layer, whose format needs no setting, or use the method structured"

#: Units that go from every class of one kind, by kind.
Drop = Mapping[str, int]


@dataclass(frozen=True)
class Smaller:
    """Which blocks stay, and how many units of each kind.

    Attributes:
        structure: of the original.
        kept: blocks that stay, in order.
        units: by block of the original, what can go, in the order of the walk.
        drop: by block, how many units go from every class, by kind.
    """

    structure: Structure
    kept: tuple[str, ...]
    units: Mapping[str, tuple[Units, ...]]
    drop: Mapping[str, Drop]

    def left(self, block: str, units: Units) -> int:
        """How many of these units stay in a block."""
        return units.count - len(set(units.classes)) * self.drop[block][units.kind]

    def widths(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """By kind, the units of a block before, and those left in every kept block."""
        kinds = {units.kind: units.count for units in self.units[self.kept[0]]}
        left = {block: {units.kind: self.left(block, units) for units in self.units[block]} for block in self.kept}
        return {kind: (count, tuple(left[block][kind] for block in self.kept)) for kind, count in kinds.items()}

    def own(self, names: Sequence[str], block: str) -> list[str]:
        """Those of some tensors, by old name, that belong to a block; "" for all that belong to none."""
        if block:
            return [name for name in names if name.startswith(f"{block}.")]
        inside = tuple(f"{each}." for each in self.structure.blocks)
        return [name for name in names if not name.startswith(inside)]

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

    def shape(self, name: str, shape: tuple[int, ...], kinds: Sequence[str] | None = None) -> tuple[int, ...]:
        """What becomes of a tensor's shape, by its old name, when units of some kinds (None: all) go."""
        block = next((block for block in self.kept if name.startswith(f"{block}.")), None)
        for units in self.units[block] if block else ():
            if kinds is None or units.kind in kinds:
                shape = units.shape(name, shape, self.left(str(block), units))
        return shape

    def parameters(self, model: Any) -> tuple[int, int]:
        """Parameters before and after, tied ones counted once."""
        shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
        after = sum(prod(self.shape(name, shapes[name])) for name in self.names(list(shapes)))
        return sum(map(prod, shapes.values())), after

    def settings(self, config: Any, raw: Mapping[str, Any], *, blocks_only: bool = False) -> dict[str, Any]:
        """What must change in `config.json`; transformers then expects exactly what is left.

        Args:
            config: of the original.
            raw: its `config.json`.
            blocks_only: leave widths as they are, which the config then does not tell.

        Raises:
            FeatherweightError: no settings do it for this family.
        """
        original = build_skeleton(config, fused_experts=True)
        state = {name: tuple(tensor.shape) for name, tensor in original.state_dict().items()}
        names, done = self.names(list(state)), list[str]()
        changes: dict[str, Any] = {}

        def shapes() -> dict[str, tuple[int, ...]]:
            return {new: self.shape(old, state[old], done) for old, new in names.items()}

        count = len(self.structure.blocks)
        if len(self.kept) < count:
            lists = lists_per_block(config, count, [self.structure.blocks.index(block) for block in self.kept])
            sizes = [(count, len(self.kept))]
            changes = resized_settings(config, raw, sizes, shapes(), "number of blocks", always=lists)
        for units in () if blocks_only else self.units[self.kept[0]]:  # heads first: then the rest is still as wide
            done.append(units.kind)
            left = self.left(self.kept[0], units)
            if units.kind == CHANNELS:
                sizes = [(units.count, left)]
                changes = resized_settings(config, raw, sizes, shapes(), "MLP width", always=changes, fix=lambda: OWN_FORMAT)
            else:
                changes = self._heads(config, raw, original, units, shapes(), changes)
        return changes

    def _heads(
        self, config: Any, raw: Mapping[str, Any], original: Any, units: Units, wanted: Any, always: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Settings for another number of attention heads; the block must then do as if the gone ones gave zeros."""
        left, text = self.left(self.kept[0], units), config.get_text_config(decoder=True)
        heads = int(text.num_attention_heads)
        sizes = [(heads, heads * left // units.count)]
        if units.kind == KV_GROUPS:
            sizes.append((units.count, left))
        return resized_settings(
            config,
            raw,
            sizes,
            wanted,
            "number of attention heads",
            always=always,
            besides={"head_dim": len(units.columns) // heads},
            accepts=lambda smaller: runs_without(original, self.structure, units, last(units, left), smaller),
            fix=lambda: self._instead_of(units, original),
        )

    def _instead_of(self, units: Units, original: Any) -> str:
        """What else can be done where no settings are found for another number of heads."""
        return OWN_FORMAT if follows_weights(original, self.structure, units) else "use --mlp and --blocks without --heads"
