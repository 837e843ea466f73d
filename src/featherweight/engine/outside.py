"""What lies outside the blocks: embedding, head, norms; compressed without data, first of all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from featherweight.evaluation.linears import relative_output_error
from featherweight.methods.base import Problem
from featherweight.models.skeleton import materialize
from featherweight.packed.base import PackedWeight
from featherweight.packed.dense import Dense
from featherweight.packed.placing import place
from featherweight.planning.plan import Plan
from featherweight.planning.rows import Row


def compress_outside(plan: Plan, rows: list[Row]) -> tuple[dict[str, PackedWeight], dict[str, dict[str, Any]]]:
    """Packed embedding and head where the recipe asks for them, with their ledger columns."""
    chains = {module: chain for module, _, chain, _ in plan.chains.outside(plan.structure).values()}
    packed: dict[str, PackedWeight] = {}
    measured: dict[str, dict[str, Any]] = {}
    for row in rows:
        if not row.chain:
            continue
        started = time.perf_counter()
        weight = plan.weights.read(f"{row.module}.weight").float()
        dtype = plan.weights.dtype(f"{row.module}.weight")
        method = chains[row.module][0]
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
    tied_head = plan.structure.head if plan.structure.tied else None
    for module, weight in packed.items():
        place(model, module, weight.to(device), tied_head=tied_head, dtype=dtype)
    replaced = {*packed, *([tied_head] if packed else [])}
    names = [row.module for row in plan.rows if not row.block and row.description is None]
    for module in dict.fromkeys(name.rpartition(".")[0] for name in names):
        if module not in replaced:
            materialize(model, module, plan.weights, dtype, device)
    for owner in model.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.device.type != "meta":
                owner.register_buffer(name, buffer.to(device), persistent=name not in owner._non_persistent_buffers_set)
