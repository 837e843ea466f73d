"""Recipe + model -> the table that says which method, storage and bytes everything stored gets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Method
from featherweight.methods.inside import storage_after
from featherweight.models.axes import Axis, find_axes
from featherweight.models.skeleton import build_skeleton
from featherweight.models.source import ModelSource, resolve_model
from featherweight.models.structure import Structure, find_structure
from featherweight.models.weights import Weights, open_weights
from featherweight.packed.base import Layout, described_bytes, layout_bytes, layout_of
from featherweight.packed.files import file_bytes
from featherweight.planning.chains import Chains
from featherweight.planning.recipe import Recipe, load_recipe
from featherweight.planning.rows import Row, Totals


@dataclass(frozen=True)
class Plan:
    """What will happen, row by row. Immutable; made by `make_plan`.

    Attributes:
        source: the model.
        recipe: resolved: every default filled in, the window length settled.
        structure, axes, chains: the model as we see it, and the methods of each linear.
        rows: one per stored thing, in file order.
        weights: reader of the original tensors.
    """

    source: ModelSource
    recipe: Recipe
    structure: Structure
    axes: Mapping[str, tuple[Axis, ...]]
    chains: Chains
    rows: tuple[Row, ...]
    weights: Weights

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the model's files."""
        return self.weights.fingerprint()

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result but the tokens; a run resumes only on an equal one."""
        recipe = self.recipe.as_dict()
        described = {name: recipe.pop(name) for name in ("name", "description", "source")}
        del described
        recipe["engine"].pop("keep_statistics")
        return {
            "model": self.fingerprint,
            "recipe": recipe,
            "storage": {row.module: row.storage for row in self.rows if row.chain},
        }

    @cached_property
    def hash(self) -> str:
        """Short name of `identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def needs_data(self) -> bool:
        """Whether any method gathers statistics."""
        return any(method.requires for chain in self.chains.linears.values() for method in chain)

    def shard_names(self) -> list[str]:
        """Weight files in writing order: what lies outside the blocks, then one a block."""
        count = len(self.structure.blocks) + 1
        return [f"model-{index + 1:05d}-of-{count:05d}.safetensors" for index in range(count)]

    def shard_layouts(self) -> dict[str, Layout]:
        """Tensors of every weight file, by file name."""
        groups: dict[str, Layout] = {block: {} for block in ("", *self.structure.blocks)}
        for row in self.rows:
            groups[row.block].update(row_layout(row, self.weights))
        return dict(zip(self.shard_names(), groups.values(), strict=True))

    @cached_property
    def totals(self) -> Totals:
        """Bytes and bits of the whole."""
        return Totals.of(self.rows, sum(file_bytes(layout) for layout in self.shard_layouts().values()))

    def as_dict(self) -> dict[str, Any]:
        """The `--json` form."""
        return {
            "model": self.source.name,
            "recipe": self.recipe.as_dict(),
            "hash": self.hash,
            "rows": [row.as_dict() for row in self.rows],
            "total": vars(self.totals),
        }


def make_plan(model: str | Path | ModelSource, recipe: str | Path | dict[str, Any] | Recipe, *, offline: bool = False) -> Plan:
    """The plan of `recipe` on `model`; reads shard headers, no weights.

    Raises:
        FeatherweightError: unknown model, recipe, setting or method; a glob that matches nothing.
    """
    source = model if isinstance(model, ModelSource) else resolve_model(model, offline=offline)
    settled = _settled(load_recipe(recipe), source)
    skeleton = build_skeleton(source.config())
    structure = find_structure(skeleton)
    weights = open_weights(source.folder, skeleton)
    axes = find_axes(skeleton, structure)
    chains = Chains.resolve(settled, structure)
    rows = tuple(plan_rows(structure, chains, weights))
    return Plan(source, settled, structure, axes, chains, rows, weights)


def row_layout(row: Row, weights: Weights) -> Layout:
    """The stored tensors of one row under their names in the file."""
    if row.description is None:
        return {row.module: (weights.shape(row.module), weights.dtype(row.module))}
    return {f"{row.module}.{name}": tensor for name, tensor in layout_of(row.description).items()}


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


def plan_rows(structure: Structure, chains: Chains, weights: Weights) -> Iterator[Row]:
    """Rows in file order: outside the blocks first, then block by block."""
    packed = {linear.weight_name: linear for linears in structure.linears.values() for linear in linears}
    outside = chains.outside(structure)
    names = weights.names()
    for block in ("", *structure.blocks):
        for name in names:
            if _block_of(name, structure) != block:
                continue
            shape, dtype = weights.shape(name), weights.dtype(name)
            if name in packed and chains.linears[packed[name].name]:
                linear = packed[name]
                yield _packed_row(linear.name, "linear", block, chains.linears[linear.name], linear.shape, dtype, "")
            elif name in outside:
                module, kind, chain, reason = outside[name]
                yield _packed_row(module, kind, block, chain, (shape[0], shape[1]), dtype, reason)
            else:
                reason = "left alone by an override" if name in packed else structure.parameters.get(name, "no linear")
                size = layout_bytes({name: (shape, dtype)})
                yield Row(name, "parameter", block, (), None, shape, size, size, reason=reason)


def _packed_row(
    module: str, kind: str, block: str, chain: tuple[Method, ...], shape: tuple[int, int], dtype: torch.dtype, reason: str
) -> Row:
    from featherweight.packed.dense import Dense

    description: dict[str, Any] = Dense.describe(shape, dtype)
    original = described_bytes(description)
    for method in chain:
        description = storage_after(method, description, dtype)
    return Row(
        module, kind, block, tuple(method.name for method in chain), description, shape, original,
        described_bytes(description), at_most=not all(method.exact for method in chain), reason=reason,
    )  # fmt: skip


def _block_of(name: str, structure: Structure) -> str:
    return next((block for block in structure.blocks if name.startswith(block + ".")), "")
