"""Recipe + model -> the table that says which method, storage and bytes everything stored gets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError
from featherweight.models.axes import Axis, find_axes
from featherweight.models.described import DescribedWeights
from featherweight.models.producers import find_all_producers
from featherweight.models.skeleton import build_skeleton
from featherweight.models.source import ModelSource, config_alone, resolve_model
from featherweight.models.structure import Linear, Structure, find_structure
from featherweight.models.weights import Weights, open_weights
from featherweight.packed.base import Layout
from featherweight.packed.files import file_bytes
from featherweight.planning.cache import CachePlan, plan_cache
from featherweight.planning.chains import Chains
from featherweight.planning.layout import head_axis, own_head, plan_rows, row_layout, storages_of
from featherweight.planning.maps import PlannedMap
from featherweight.planning.recipe import OUTSIDE_THE_RESULT, Recipe, load_recipe
from featherweight.planning.rows import Row, Totals

#: Bytes by which a header may grow for each linear whose share of a block's budget is not known before the run: numbers of
#: more digits.
_HEADER_SLACK = 32


@dataclass(frozen=True)
class Plan:
    """What will happen, row by row. Immutable; made by `make_plan`.

    Attributes:
        source: the model.
        recipe: resolved: every default filled in, the window length settled.
        structure, axes, chains: the model as we see it, and the methods of each linear.
        rows: one per stored thing, in file order.
        weights: reader of the original tensors.
        maps: by stage, what its steps draw before they compress.
        head: the output head where it has a chain of its own; it then comes after the blocks, as one more of them.
        cache: how the output stores keys and values, where the recipe says so.
    """

    source: ModelSource
    recipe: Recipe
    structure: Structure
    axes: Mapping[str, tuple[Axis, ...]]
    chains: Chains
    rows: tuple[Row, ...]
    weights: Weights
    maps: Mapping[str, tuple[PlannedMap, ...]]
    head: Linear | None = None
    cache: CachePlan | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """What is compressed and written in turn: "" (outside the blocks), each block, and the head if it has a chain."""
        return ("", *self.structure.blocks, *([self.head.name] if self.head else []))

    @property
    def untied(self) -> bool:
        """Whether the head, tied in the original, gets a weight of its own."""
        return self.structure.tied and self.head is not None

    def linears(self, stage: str) -> tuple[Linear, ...]:
        """The linears of a block, or the head."""
        return (self.head,) if self.head and stage == self.head.name else self.structure.linears[stage]

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the model's files."""
        return self.weights.fingerprint()

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result but the tokens; a run resumes only on an equal one."""
        recipe = self.recipe.as_dict()
        described = {name: recipe.pop(name) for name in ("name", "description", "source")}
        del described
        for name in OUTSIDE_THE_RESULT:
            recipe["engine"].pop(name)
        if self.cache is None:
            recipe.pop("kv_cache")
        return {
            "model": self.fingerprint,
            "recipe": recipe,
            "storage": {row.module: row.storage for row in self.rows if row.chain},
        }

    @cached_property
    def hash(self) -> str:
        """Short name of `identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def lineage(self, count: int) -> dict[str, Any]:
        """Everything but tokens and machine that decides the files of the first `count` stages."""
        recipe = self.recipe
        linears = [linear.name for stage in self.stages[1:count] for linear in self.linears(stage)]
        return {
            "model": self.fingerprint,
            "embedding": repr(self.chains.embedding),
            "chains": {name: repr(self.chains.linears[name]) for name in linears},
            "engine": recipe.engine.model_dump(mode="json", exclude=set(OUTSIDE_THE_RESULT)),
            "batch_size": recipe.calibration.batch_size,
            "seed": recipe.seed,
        }

    @property
    def needs_data(self) -> bool:
        """Whether any method gathers statistics."""
        return any(map(self.gathers, self.stages))

    def gathers(self, stage: str) -> bool:
        """Whether a method of this stage gathers statistics."""
        chains = (self.chains.linears[linear.name] for linear in self.linears(stage)) if stage else ()
        return any(method.requires for chain in chains for method in chain)

    def shard_names(self) -> list[str]:
        """Weight files in writing order: one a stage."""
        count = len(self.stages)
        return [f"model-{index + 1:05d}-of-{count:05d}.safetensors" for index in range(count)]

    def shard_layouts(self) -> dict[str, Layout]:
        """Tensors of every weight file, by file name."""
        groups: dict[str, Layout] = {stage: {} for stage in self.stages}
        for row in self.rows:
            groups[row.block].update(row_layout(row, self.weights))
        return dict(zip(self.shard_names(), groups.values(), strict=True))

    @cached_property
    def totals(self) -> Totals:
        """Bytes and bits of the whole."""
        slack = _HEADER_SLACK * sum(row.shared for row in self.rows)
        return Totals.of(self.rows, sum(file_bytes(layout) for layout in self.shard_layouts().values()) + slack)

    @property
    def original_bits(self) -> float:
        """Stored bits per weight of the original model."""
        return 8 * self.totals.original_bytes / sum(row.weights for row in self.rows if not row.untied)

    def as_dict(self) -> dict[str, Any]:
        """The `--json` form."""
        return {
            "model": self.source.name,
            "recipe": self.recipe.as_dict(),
            "hash": self.hash,
            "rows": [row.as_dict() for row in self.rows],
            "total": vars(self.totals),
            **({"kv_cache": self.cache.as_dict()} if self.cache else {}),
        }


def make_plan(model: str | Path | ModelSource, recipe: str | Path | dict[str, Any] | Recipe, *, offline: bool = False) -> Plan:
    """The plan of `recipe` on `model`; reads shard headers, no weights, and of a `ModelSource` with config.json alone not even these.

    Raises:
        FeatherweightError: unknown model, recipe, setting or method; a glob that matches nothing.
    """
    source = model if isinstance(model, ModelSource) else resolve_model(model, offline=offline)
    settled = _settled(load_recipe(recipe), source)
    config = source.config()
    skeleton = build_skeleton(config)
    cache = plan_cache(settled, config, skeleton.dtype)
    if cache is not None:
        settled = settled.model_copy(update={"kv_cache": cache.settings.as_dict()})
    structure = find_structure(skeleton)
    described = config_alone(source.folder) is not None
    weights = DescribedWeights(source.folder, skeleton) if described else open_weights(source.folder, skeleton)
    chains = Chains.resolve(settled, structure)
    _check_blockwise(settled, chains, structure)
    axes = find_all_producers(skeleton, structure) if chains.prepare else find_axes(skeleton, structure)
    head = own_head(structure, chains, weights)
    storages = storages_of(structure, axes, chains, weights, head)
    rows = tuple(plan_rows(structure, chains, weights, head, storages))
    axes = axes if head is None else {**axes, head.name: (head_axis(head),)}
    return Plan(source, settled, structure, axes, chains, rows, weights, storages.maps, head, cache)


def _check_blockwise(recipe: Recipe, chains: Chains, structure: Structure) -> None:
    """Refuse what needs all linears of a block at once where there are not all at once."""
    tuned = {name: method.name for name, chain in chains.linears.items() for method in chain if method.tunes}
    if structure.head in tuned:
        raise FeatherweightError(
            f"{tuned[structure.head]} learns on a block's outputs, and the head is in no block", found="a scope with the head",
            expected="scope: decoder", fix="leave the scope out, or give the head a step of its own",
        )  # fmt: skip
    if recipe.engine.reference == "dense" and not tuned:
        raise FeatherweightError(
            "nothing here learns on a block's outputs", found="engine.reference: dense", expected="a step such as besa, pqp or clip",
            fix="leave engine.reference out",
        )  # fmt: skip
    prepared = {name: method.name for name, chain in chains.linears.items() for method in chain if method.prepares}
    for names, does in ((tuned, "learns on a whole block"), (prepared, "changes what makes the inputs of a whole block")):
        if names and recipe.engine.true_sequential:
            raise FeatherweightError(
                f"{next(iter(names.values()))} {does}", found="engine.true_sequential, which compresses a block part by part",
                expected="all linears of a block at once", fix="--set engine.true_sequential=false",
            )  # fmt: skip


def _settled(recipe: Recipe, source: ModelSource) -> Recipe:
    limit = source.max_length()
    length = recipe.calibration.length or min(2048, limit)
    if length > limit:
        raise FeatherweightError(
            "calibration windows are longer than the model reads",
            found=f"length {length}",
            expected=f"at most {limit}",
            fix=f"--length {limit}",
        )
    return recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update={"length": length})})
