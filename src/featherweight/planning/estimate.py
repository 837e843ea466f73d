"""What the run will cost: peak memory, disk and time, from shapes and one short measurement of this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from featherweight.planning.plan import Plan

#: Resident bytes of a process that has imported torch and transformers and built an empty model.
PROCESS_BYTES = 490 * 10**6
#: Resident bytes that tokenising a byte of text in one piece takes (measured with the tokenizers library).
_TOKENIZING = 155


@dataclass(frozen=True)
class Estimate:
    """Predicted cost of a run.

    Attributes:
        host_bytes: peak resident memory of the process: tokenising a local calibration text, or the walk.
        device_bytes: peak on a GPU; 0 where blocks run on the CPU.
        disk_bytes: of the output's weight files.
        operations: floating-point operations of forwards, statistics and solves.
        seconds: operations over the matrix rate measured now; a floor, not a promise.
    """

    host_bytes: int
    device_bytes: int
    disk_bytes: int
    operations: float
    seconds: float


def estimate(plan: Plan, device: str = "cpu") -> Estimate:
    """Predicted cost of `plan` with blocks on `device`."""
    working = _working_bytes(plan, 4 if device == "cpu" else 2)
    on_gpu = device != "cpu"
    shard = max((row_bytes for row_bytes in _block_bytes(plan).values()), default=0)
    operations = _operations(plan)
    return Estimate(
        host_bytes=PROCESS_BYTES + max(shard if on_gpu else working, _TOKENIZING * _text_bytes(plan)),
        device_bytes=working if on_gpu else 0,
        disk_bytes=plan.totals.file_bytes,
        operations=operations,
        seconds=operations / _matrix_rate(device),
    )


def _tokens(plan: Plan) -> int:
    wanted = plan.recipe.calibration
    return wanted.samples * int(wanted.length or 0) if plan.needs_data else 64


def _text_bytes(plan: Plan) -> int:
    """Size of the calibration text where it is a local file."""
    path = Path(plan.recipe.calibration.source)
    return path.stat().st_size if plan.needs_data and path.is_file() else 0


def _block_bytes(plan: Plan) -> dict[str, int]:
    sums: dict[str, int] = {}
    for row in plan.rows:
        sums[row.block] = sums.get(row.block, 0) + row.original_bytes
    return {block: size for block, size in sums.items() if block}


def _working_bytes(plan: Plan, itemsize: int) -> int:
    """One block, what lies outside the blocks, the activations twice, one block's Hessians and a factorisation, one batch.

    With the dense chain beside the compressed one, the activations four times.
    """
    weights = dict.fromkeys(plan.stages, 0)
    for row in plan.rows:
        weights[row.block] += row.weights
    outside = weights.pop("")
    blocks = ([axis.size for axis in plan.axes[block]] for block in plan.structure.blocks)
    widths = max(blocks, key=sum) + [row.shape[1] for row in plan.rows if row.kind == "head"]
    hidden = int(plan.source.config().get_text_config(decoder=True).hidden_size)
    streams = 4 if plan.recipe.engine.reference == "dense" and plan.recipe.engine.inputs == "compressed" else 2
    activations = streams * _tokens(plan) * hidden * itemsize
    batch = plan.recipe.calibration.batch_size * int(plan.recipe.calibration.length or 0)
    transient = 4 * batch * max(widths, default=0) * itemsize
    hessians = 4 * (sum(width**2 for width in widths) + 3 * max(widths, default=0) ** 2) if plan.needs_data else 0
    largest = max((row.weights for row in plan.rows if row.chain), default=0)
    return int((outside + max(weights.values(), default=0)) * itemsize + activations + transient + hessians + 16 * largest)


def _operations(plan: Plan) -> float:
    tokens = _tokens(plan)
    axes_a_block = [len(plan.axes[block]) for block in plan.structure.blocks]
    passes = 1 + (max(axes_a_block, default=1) if plan.recipe.engine.true_sequential else 1) * plan.needs_data
    share = _routed_share(plan)
    routed = tuple(f"{path}." for path in plan.structure.experts)
    linear = sum(row.weights * (share if row.module.startswith(routed) else 1.0) for row in plan.rows if row.block)
    total = 2.0 * tokens * linear * passes
    if plan.needs_data:
        axes = [axis for stage in plan.stages[1:] for axis in plan.axes[stage]]
        total += sum(2.0 * tokens * (share if axis.expert else 1.0) * axis.size**2 + axis.size**3 for axis in axes)
        total += sum(float(row.shape[0]) * row.shape[1] ** 2 for row in plan.rows if row.kind in ("linear", "head"))
    return total


def _routed_share(plan: Plan) -> float:
    """The share of all tokens that an expert sees on average; 1 where the config does not say."""
    axes = [axis for axis in plan.axes[plan.structure.blocks[-1]] if axis.expert]
    chosen = getattr(plan.source.config().get_text_config(decoder=True), "num_experts_per_tok", None)
    experts = len({axis.expert for axis in axes})
    return min(1.0, chosen / experts) if chosen and experts else 1.0


def _matrix_rate(device: str) -> float:
    """Floating-point operations a second of a square float32 product here."""
    size = 1024
    a = torch.rand(size, size, device=device)
    float((a @ a)[0, 0])
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        float((a @ a)[0, 0])
        rounds += 1
    return 2.0 * size**3 * rounds / (time.perf_counter() - started)
