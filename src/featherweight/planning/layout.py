"""The rows of a plan in file order: what is compressed as its chain stores it, all else as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from featherweight.methods.base import Method
from featherweight.models.axis import Axis
from featherweight.models.structure import Linear, Structure
from featherweight.models.weights import Weights
from featherweight.packed.base import Layout, described_bytes, layout_bytes, layout_of
from featherweight.packed.dense import Dense
from featherweight.planning.chains import Chains
from featherweight.planning.maps import PlannedMap, Storages
from featherweight.planning.rows import Row


def own_head(structure: Structure, chains: Chains, weights: Weights) -> Linear | None:
    """The head, if it has a chain."""
    name = structure.head
    if name is None or not chains.linears.get(name):
        return None
    rows, columns = weights.shape(f"{name}.weight")
    return Linear(name, (rows, columns), bias=f"{name}.bias" in weights.names())


def head_axis(head: Linear) -> Axis:
    """The head's input, which nothing makes that could change."""
    return Axis(f"{head.name}.input", head.name, head.shape[1], (head.name,))


def storages_of(
    structure: Structure, axes: Mapping[str, Sequence[Axis]], chains: Chains, weights: Weights, head: Linear | None
) -> Storages:
    """What the chains make of the blocks' linears, and of the head."""
    linears = structure.linears if head is None else {**structure.linears, head.name: (head,)}
    axes = axes if head is None else {**axes, head.name: (head_axis(head),)}
    return Storages.of(linears, axes, chains.linears, lambda linear: weights.dtype(linear.weight_name))


def row_layout(row: Row, weights: Weights) -> Layout:
    """The stored tensors of one row under their names in the file."""
    if row.description is None:
        return {row.module: (weights.shape(row.module), weights.dtype(row.module))}
    return {f"{row.module}.{name}": tensor for name, tensor in layout_of(row.description).items()}


def plan_rows(structure: Structure, chains: Chains, weights: Weights, head: Linear | None, storages: Storages) -> Iterator[Row]:
    """Rows in file order: outside the blocks first, then block by block, then the head if it has a chain."""
    packed = {linear.weight_name: linear for linears in structure.linears.values() for linear in linears}
    maps = [each for planned in storages.maps.values() for each in planned]
    folded = _folded(maps, chains, weights)
    told, tuned = _told(maps), _tuned(structure, chains)
    for block, names in _names_by_block(weights, structure).items():
        for name in names:
            if head and name == head.weight_name:
                continue
            shape, dtype = weights.shape(name), weights.dtype(name)
            if name in packed and chains.linears[packed[name].name]:
                linear = packed[name].name
                yield _packed_row(
                    linear, "linear", block, chains.linears[linear], storages.descriptions[linear], dtype, told.get(linear, "")
                )
            elif name == f"{structure.embedding}.weight" and chains.embedding:
                shared = f"shared with the tied head {structure.head}" if structure.tied and not head else ""
                stored = chains.embedding.storage(Dense.describe((shape[0], shape[1]), dtype), dtype)
                yield _packed_row(str(structure.embedding), "embedding", block, (chains.embedding,), stored, dtype, shared)
            else:
                reason = structure.parameters.get(name, "no linear")
                reason = chains.reasons.get(packed[name].name, reason) if name in packed else reason
                size = layout_bytes({name: (shape, dtype)})
                kind = "folded" if name in folded else "tuned" if name in tuned else "parameter"
                told_of = "; ".join(filter(None, (folded.get(name, ""), tuned.get(name, "")))) or reason
                yield Row(name, kind, block, (), None, shape, size, size, reason=told_of)
    if head:
        dtype = weights.dtype(head.weight_name)
        untied = f"untied from {structure.embedding}, which is stored for itself" if structure.tied else ""
        reason = "; ".join(filter(None, (untied, told.get(head.name))))
        row = _packed_row(
            head.name, "head", head.name, chains.linears[head.name], storages.descriptions[head.name], dtype, reason
        )
        yield replace(row, untied=True, original_bytes=0) if structure.tied else row


def _folded(maps: Sequence[PlannedMap], chains: Chains, weights: Weights) -> dict[str, str]:
    """By name the parameters that take up maps and are stored as they are, with what they take up."""
    taken: dict[str, list[str]] = {}
    for planned in maps:
        for producer in planned.producers:
            leaves = ("bias",) if chains.linears.get(producer.name) else ("weight", "bias")
            for name in (f"{producer.name}.{leaf}" for leaf in leaves):
                if name in weights.names() and planned.name not in taken.setdefault(name, []):
                    taken[name].append(planned.name)
    return {name: f"takes up {' and '.join(names)}" for name, names in taken.items() if names}


def _tuned(structure: Structure, chains: Chains) -> dict[str, str]:
    """By name the norms that methods of their block train, with by whom."""
    tuned = {}
    for block, linears in structure.linears.items():
        every = [method for linear in linears for method in chains.linears.get(linear.name, ()) if method.tunes_norms]
        for name, word in structure.parameters.items():
            if every and word == "norm" and name.startswith(f"{block}."):
                tuned[name] = f"norm, trained by {every[0].name}"
    return tuned


def _packed_row(
    module: str,
    kind: str,
    block: str,
    chain: tuple[Method, ...],
    description: Mapping[str, Any],
    dtype: torch.dtype,
    reason: str,
) -> Row:
    rows, columns = description["shape"]
    original = described_bytes(Dense.describe((rows, columns), dtype))
    return Row(
        module, kind, block, tuple(method.name for method in chain), description, (rows, columns), original,
        described_bytes(description), at_most=not all(method.exact for method in chain),
        shared=any(method.budget == "block" for method in chain), reason=reason,
    )  # fmt: skip


def _told(maps: Sequence[PlannedMap]) -> dict[str, str]:
    """The maps that the input of each linear takes, in words."""
    found: dict[str, list[str]] = {}
    for each in maps:
        described = each.describe()
        for name in each.linears:
            found.setdefault(name, []).append(described)
    return {name: "; ".join(words) for name, words in found.items()}


def _names_by_block(weights: Weights, structure: Structure) -> dict[str, list[str]]:
    """Names of all tensors by the block that holds them, in the model's order; "" first, for those outside."""
    groups: dict[str, list[str]] = {block: [] for block in ("", *structure.blocks)}
    for name in weights.names():
        parts = name.split(".")
        paths = (".".join(parts[:count]) for count in range(1, len(parts)))
        groups[next((path for path in paths if path in groups), "")].append(name)
    return groups
