"""What a shrink asks for, checked against the model before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Literal

from featherweight.engine.smaller import Smaller
from featherweight.errors import FeatherweightError
from featherweight.models.heads import find_heads, follows_weights
from featherweight.models.producers import find_all_producers
from featherweight.models.skeleton import build_skeleton
from featherweight.models.source import ModelSource
from featherweight.models.structure import Structure, find_structure
from featherweight.models.units import CHANNELS, KV_GROUPS, QUERY_HEADS, Units, find_channels
from featherweight.models.weights import Weights, open_weights

HeadUnit = Literal["auto", "group", "query"]


@dataclass(frozen=True)
class Cut:
    """What is to go.

    Attributes:
        mlp: fraction of the MLP channels of a block, rounded down.
        heads: fraction of the attention heads of a block, rounded down.
        blocks: number of blocks.
        head_unit: "group": whole KV groups; "query": as many query heads of every group; "auto": groups if the fraction makes
            up one and the family can express it, else query heads.
        per_layer: share the channels that go unevenly over the blocks, and write our own format, which no setting of the config
            limits.
        repair: whether what stays makes up for what goes, by least squares.

    Raises:
        FeatherweightError: a fraction outside 0 to 1, or nothing to do.
    """

    mlp: float = 0.0
    heads: float = 0.0
    blocks: int = 0
    head_unit: HeadUnit = "auto"
    per_layer: bool = False
    repair: bool = True

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        for name in ("mlp", "heads"):
            if not 0 <= getattr(self, name) < 1:
                raise FeatherweightError(
                    "this would empty every layer" if getattr(self, name) >= 1 else "a fraction is below 0",
                    found=f"--{name} {getattr(self, name)}",
                    expected="at least 0, less than 1",
                    fix=f"use --{name} 0.25 to remove a quarter",
                )
        if self.head_unit not in ("auto", "group", "query"):
            raise FeatherweightError("unknown unit of heads", found=self.head_unit, expected="auto, group or query")
        if not (self.mlp or self.heads or self.blocks):
            raise FeatherweightError(
                "there is nothing to prune",
                found="no channels, no heads, no blocks",
                expected="something to remove",
                fix="use --mlp 0.25, --heads 0.25 or --blocks 1",
            )
        if self.per_layer and not (self.mlp or self.heads):
            raise FeatherweightError(
                "there are no widths to share over the blocks", found="--per-layer without them", fix="add --mlp 0.25"
            )
        if self.per_layer and self.head_unit == "query":
            raise FeatherweightError(
                "the number of query heads of a group is in the config alone",
                found="--per-layer with --head-unit query",
                expected="whole KV groups, whose number follows from the weights",
                fix="use --head-unit group",
            )

    def of_class(self, units: Units) -> int:
        """How many go of every class where all blocks are alike."""
        return int(units.in_class() * (self.mlp if units.kind == CHANNELS else self.heads))


@dataclass(frozen=True)
class Task:
    """A cut of one model.

    Attributes:
        source, cut: what and how.
        config, raw: of the model: as transformers holds it, and `config.json`.
        model: a skeleton.
        structure, weights: of the model.
        smaller: what will stay: as many blocks and units; which, is not known yet.
    """

    source: ModelSource
    cut: Cut
    config: Any
    raw: Mapping[str, Any]
    model: Any
    structure: Structure
    weights: Weights
    smaller: Smaller

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to go on, but for the tokens."""
        return {"shrink": asdict(self.cut), "model": self.weights.fingerprint()}


def make_task(source: ModelSource, cut: Cut) -> Task:
    """Everything that can be refused before a weight is read.

    Raises:
        FeatherweightError: nothing left; a family without channels or heads that can go, or without settings that say so.
    """
    config = source.config()
    model = build_skeleton(config, fused_experts=True)
    structure = find_structure(model)
    _check_blocks(cut, len(structure.blocks))
    raw = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    weights = open_weights(source.folder, model)
    axes = find_all_producers(model, structure) if cut.mlp or cut.heads else {}
    channels = find_channels(structure, axes) if cut.mlp else {}
    heads = find_heads(model, structure, axes) if cut.heads else {}
    kept = structure.blocks[: len(structure.blocks) - cut.blocks]
    if channels and not cut.of_class(channels[kept[0]]):
        raise _too_few(f"--mlp {cut.mlp}", f"{channels[kept[0]].count} channels of a block", 1 / channels[kept[0]].count)
    refused = None
    for kind in _head_kinds(cut, heads[kept[0]]) if heads else ("",):
        units = {block: tuple(each for each in (heads.get(block, {}).get(kind), channels.get(block)) if each)
                 for block in structure.blocks}  # fmt: skip
        drop = {block: {each.kind: cut.of_class(each) for each in mine} for block, mine in units.items()}
        smaller = Smaller(structure, kept, units, drop)
        try:
            smaller.settings(config, raw, blocks_only=cut.per_layer)
            if cut.per_layer and kind:
                _check_code(model, structure, units[kept[0]][0])
        except FeatherweightError as problem:
            refused = refused or problem
            continue
        return Task(source, cut, config, raw, model, structure, weights, smaller)
    assert refused is not None  # there is at least one kind to try
    raise refused


def _check_blocks(cut: Cut, blocks: int) -> None:
    if not 0 <= cut.blocks < blocks:
        raise FeatherweightError(
            "this would empty the model" if cut.blocks > 0 else "a number of blocks is below 0",
            found=f"{cut.blocks} of {blocks} blocks",
            expected="less than all",
            fix="use --blocks 1",
        )


def _head_kinds(cut: Cut, units: Mapping[str, Units]) -> list[str]:
    """Kinds of units to try, the preferred first, of which at least one would go.

    Raises:
        FeatherweightError: the fraction makes up none.
    """
    kinds = [KV_GROUPS, QUERY_HEADS] if cut.head_unit == "auto" else [KV_GROUPS]
    if cut.head_unit == "query" and QUERY_HEADS in units:  # where no group has several, a head is a group
        kinds = [QUERY_HEADS]
    kinds = [kind for kind in kinds if kind in units and not (cut.per_layer and kind == QUERY_HEADS)]
    enough = [kind for kind in kinds if cut.of_class(units[kind])]
    if not enough:
        sizes = {kind: units[kind].in_class() for kind in kinds}
        found = " or ".join(f"{size} {kind.replace('_', ' ')}" for kind, size in sizes.items())
        raise _too_few(
            f"--heads {cut.heads}", found + (" of every group" if QUERY_HEADS in sizes else ""), 1 / max(sizes.values())
        )
    return enough


def _too_few(option: str, found: str, least: float) -> FeatherweightError:
    name = option.split()[0]
    return FeatherweightError(
        "this fraction makes up none",
        found=f"{option} of {found}",
        expected="at least one that goes, and one that stays",
        fix=f"use {name} {ceil(100 * least) / 100:.2g}" if least < 1 else "prune something else: there is only one",
    )


def _check_code(model: Any, structure: Structure, units: Units) -> None:
    if not follows_weights(model, structure, units):
        raise FeatherweightError(
            "this family's attention cannot have another number of heads in every block",
            found="code or tensors beside the linears that take it from the config",
            expected="attention whose number of heads follows from its weights",
            fix="leave out --heads, or --per-layer",
        )
