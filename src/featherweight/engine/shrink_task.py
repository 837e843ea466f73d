"""What a shrink asks for, checked against the model before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from featherweight.engine.smaller import Smaller, last
from featherweight.errors import FeatherweightError
from featherweight.models.heads import find_heads, runs_without
from featherweight.models.skeleton import build_skeleton
from featherweight.models.source import ModelSource
from featherweight.models.structure import Structure, find_structure
from featherweight.models.units import KV_GROUPS, QUERY_HEADS, Units, find_channels
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
        per_layer: share the channels and KV groups that go unevenly over the blocks, in all as many.
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
                "there are no widths to share over the blocks", found="--per-layer alone", fix="add --mlp 0.25 or --heads 0.25"
            )


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
    model = build_skeleton(config)
    structure = find_structure(model)
    if not 0 <= cut.blocks < len(structure.blocks):
        raise FeatherweightError(
            "this would empty the model" if cut.blocks > 0 else "a number of blocks is below 0",
            found=f"{cut.blocks} of {len(structure.blocks)} blocks",
            expected="less than all",
            fix="use --blocks 1",
        )
    raw = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    weights = open_weights(source.folder, model)
    channels = find_channels(model, structure) if cut.mlp else {}
    heads = find_heads(model, structure) if cut.heads else {}
    refused = None
    for kind in _head_kinds(cut, heads) if cut.heads else [""]:
        units = {
            block: (*([heads[block][kind]] if kind else ()), *([channels[block]] if cut.mlp else ())) for block in structure.blocks
        }
        drop = {block: {each.kind: _share(cut, each) for each in mine} for block, mine in units.items()}
        kept = structure.blocks[: len(structure.blocks) - cut.blocks]
        smaller = Smaller(structure, kept, units, drop)
        try:
            _check_sizes(cut, smaller)
            smaller.settings(config, raw, blocks_only=cut.per_layer)
            if cut.per_layer and kind:
                _check_code(model, structure, units[kept[0]][0])
        except FeatherweightError as problem:
            refused = refused or problem
            continue
        return Task(source, cut, config, raw, model, structure, weights, smaller)
    assert refused is not None  # there is at least one kind to try
    raise refused


def _head_kinds(cut: Cut, heads: Mapping[str, Mapping[str, Units]]) -> list[str]:
    """Kinds of units to try, the preferred first, of which at least one would go.

    Raises:
        FeatherweightError: the fraction makes up none.
    """
    units = next(iter(heads.values()))
    wanted = {"auto": (KV_GROUPS, QUERY_HEADS), "group": (KV_GROUPS,), "query": (QUERY_HEADS, KV_GROUPS)}[cut.head_unit]
    if cut.head_unit == "query" and QUERY_HEADS in units:
        wanted = (QUERY_HEADS,)  # where no group has several, a head is a group
    kinds = [kind for kind in wanted if kind in units and _share(cut, units[kind])]
    if not kinds:
        held = [units[kind] for kind in wanted if kind in units]
        least = min(1 / each.in_class() for each in held)
        raise FeatherweightError(
            "this fraction of the heads makes up none",
            found=f"--heads {cut.heads} of "
            + " or ".join(
                f"{each.count} KV groups" if each.kind == KV_GROUPS else f"{each.in_class()} query heads of every group"
                for each in held
            ),
            expected="at least one, and at least one left",
            fix=f"use --heads {least + 0.005:.2f}" if least < 1 else "use --mlp or --blocks: this model has one head",
        )
    return kinds


def _share(cut: Cut, units: Units) -> int:
    """How many of every class go."""
    return int(units.in_class() * (cut.heads if units.kind in (KV_GROUPS, QUERY_HEADS) else cut.mlp))


def _check_sizes(cut: Cut, smaller: Smaller) -> None:
    mine = smaller.drop[smaller.kept[0]]
    if not cut.blocks and not any(mine.values()):
        raise FeatherweightError(
            "there is nothing to prune",
            found=f"the fraction is less than one of {', '.join(mine)}",
            expected="something to remove",
            fix="use a larger fraction",
        )


def _check_code(model: Any, structure: Structure, units: Units) -> None:
    """Whether the block's code takes its number of heads from its tensors, all of which belong to linears."""
    linears = {f"{linear.name}.{leaf}" for group in structure.linears.values() for linear in group for leaf in ("weight", "bias")}
    others = sorted(units.tensors.keys() - linears)
    if others or units.kind != KV_GROUPS or not runs_without(model, structure, units, last(units, units.count - 1), model):
        raise FeatherweightError(
            "this family's attention cannot have another number of heads in every block",
            found=f"{', '.join(others)}: sizes beside the linears" if others else "code that takes it from the config",
            expected="attention whose number of heads follows from its weights",
            fix="leave out --heads, or --per-layer",
        )
