"""What lies outside the blocks: embedding, norms, a head without a chain of its own; first of all, and without data."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from featherweight.evaluation.linears import relative_output_error
from featherweight.methods.base import Problem
from featherweight.models.skeleton import materialize, release
from featherweight.packed.base import PackedWeight
from featherweight.packed.dense import Dense
from featherweight.packed.placing import place
from featherweight.planning.plan import Plan


def compress_outside(plan: Plan) -> tuple[dict[str, PackedWeight], dict[str, dict[str, Any]]]:
    """The packed embedding where the recipe asks for it, with its ledger columns."""
    method = plan.chains.embedding
    packed: dict[str, PackedWeight] = {}
    measured: dict[str, dict[str, Any]] = {}
    for row in plan.rows:
        if method is None or row.kind != "embedding":
            continue
        started = time.perf_counter()
        weight = plan.weights.read(f"{row.module}.weight").float()
        dtype = plan.weights.dtype(f"{row.module}.weight")
        problem = Problem({row.module: weight}, {row.module: Dense(weight.to(dtype))}, None, dtype, plan.recipe.seed)
        compressed = method.compress(problem)[row.module]
        packed[row.module] = compressed.weight
        measured[row.module] = {
            **compressed.facts,
            "stored_bytes": compressed.weight.nbytes,
            "relative_error": None,
            "relative_weight_error": relative_output_error(weight, compressed.weight.dequantize()),
            "seconds": time.perf_counter() - started,
        }
    return packed, measured


def place_outside(
    model: nn.Module, plan: Plan, packed: Mapping[str, PackedWeight], dtype: torch.dtype, device: torch.device
) -> None:
    """Materialise everything outside the blocks in `model`, with packed weights in their places."""
    tied_head = plan.structure.head if plan.structure.tied and not plan.untied else None
    for module, weight in packed.items():
        place(model, module, weight.to(device), tied_head=tied_head, dtype=dtype)
    materialize_outside(model, plan, packed, dtype, device)
    for owner in model.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.device.type != "meta":
                owner.register_buffer(name, buffer.to(device), persistent=name not in owner._non_persistent_buffers_set)


def materialize_outside(
    model: nn.Module, plan: Plan, packed: Collection[str], dtype: torch.dtype, device: torch.device
) -> None:
    """Load what lies outside the blocks and is not `packed` (again)."""
    for module in _dense_modules(plan, packed):
        materialize(model, module, plan.weights, dtype, device)


def release_outside(model: nn.Module, plan: Plan, packed: Collection[str]) -> None:
    """Drop what `materialize_outside` loads: the blocks do not need it."""
    for module in _dense_modules(plan, packed):
        release(model, module)


def _dense_modules(plan: Plan, packed: Collection[str]) -> list[str]:
    """Modules outside the blocks with parameters that are left alone; none that shares a packed weight."""
    tied_head = plan.structure.head if plan.structure.tied and not plan.untied else None
    replaced = {*packed, *([tied_head] if packed else [])}
    names = [row.module for row in plan.rows if not row.block and row.description is None]
    modules = dict.fromkeys(name.rpartition(".")[0] for name in names)
    return [module for module in modules if module not in replaced]
