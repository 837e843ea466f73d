"""What the run will cost: peak memory, disk and time, from shapes and one short measurement of this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from featherweight.planning.plan import Plan

#: Resident bytes of a process that has imported torch and transformers and built an empty model.
PROCESS_BYTES = 490 * 10**6
#: Of these the anonymous ones, which no file backs.
ANONYMOUS_BYTES = 370 * 10**6
#: Resident bytes that tokenising a byte of text in one piece takes (measured with the tokenizers library).
_TOKENIZING = 155
#: Bytes that a step holds of each weight of one input's linears, with a Hessian and without; and of each entry of that. Measured:
#: 28 to 48 with GPTQ, SpQR and QuIP# on a GPU, of which the entries 16 (benchmarks/solver).
_SOLVED, _ROUNDED, _FACTORED = 40, 16, 18
#: By how much allocators' gaps raise what is held.
_GAPS = 1.25


@dataclass(frozen=True)
class Estimate:
    """Predicted cost of a run.

    Attributes:
        host_bytes: peak anonymous memory of the process: tokenising a local calibration text, or the walk. Files that are only
            mapped come on top in what the system shows as resident, and give way when memory is short.
        device_bytes: peak on a GPU; 0 where blocks run on the CPU.
        disk_bytes: of the output's weight files.
        spill_bytes: of activations on disk, while it runs.
        operations: floating-point operations of forwards, statistics and solves.
        seconds: operations over the matrix rate measured now; a floor, not a promise.
    """

    host_bytes: int
    device_bytes: int
    disk_bytes: int
    spill_bytes: int
    operations: float
    seconds: float


def estimate(plan: Plan, device: str = "cpu") -> Estimate:
    """Predicted cost of `plan` with blocks on `device`."""
    on_gpu = device != "cpu"
    itemsize = 2 if on_gpu else 4
    operations = _operations(plan)
    return Estimate(
        host_bytes=host_bytes(plan, on_gpu=on_gpu),
        device_bytes=working_bytes(plan, itemsize) if on_gpu else 0,
        disk_bytes=plan.totals.file_bytes,
        spill_bytes=spilled_bytes(plan, itemsize),
        operations=operations,
        seconds=operations / _matrix_rate(device),
    )


def host_bytes(plan: Plan, *, on_gpu: bool) -> int:
    """See `Estimate`; a GPU leaves the host one weight file on its way, and the original tensor that is being read."""
    working = _written_bytes(plan) if on_gpu else working_bytes(plan, 4)
    return ANONYMOUS_BYTES + max(working, _TOKENIZING * _text_bytes(plan))


def working_bytes(plan: Plan, itemsize: int) -> int:
    """The most that the walk holds where blocks run: what lies outside the blocks, or one block with its statistics and solves;
    and beside either the activations, unless they are on disk.

    Args:
        itemsize: of the dtype that blocks run in.
    """
    stages = _weights_by_stage(plan)
    outside = stages.pop("")
    recipe = plan.recipe
    text = plan.source.config().get_text_config(decoder=True)
    batch = min(recipe.calibration.batch_size * int(recipe.calibration.length or 0), _tokens(plan)) if plan.needs_data else 64
    widest = max((axis.size for stage in plan.stages[1:] for axis in plan.axes[stage]), default=0)
    transient = 4 * batch * widest * itemsize
    held = 0 if recipe.engine.activations == "disk" else activation_bytes(plan, itemsize)
    blocks = max((_stage_bytes(plan, stage, stages[stage], itemsize) for stage in plan.structure.blocks), default=0)
    last = outside * itemsize + 2 * 64 * int(text.vocab_size) * 4
    if plan.head is not None:
        last += _stage_bytes(plan, plan.head.name, stages[plan.head.name], itemsize)
    return int(_GAPS * (max(blocks, last) + transient) + held)


def activation_bytes(plan: Plan, itemsize: int) -> int:
    """Hidden states of all calibration tokens between two blocks, as often as they are held at once."""
    if not plan.needs_data:
        return 0
    hidden = int(plan.source.config().get_text_config(decoder=True).hidden_size)
    engine = plan.recipe.engine
    sets = 1 + (engine.inputs == "dense") + 2 * (engine.reference == "dense" and engine.inputs == "compressed")
    if plan.head is not None and plan.gathers(plan.head.name):
        sets = max(sets, 2)
    return sets * _tokens(plan) * hidden * itemsize


def spilled_bytes(plan: Plan, itemsize: int) -> int:
    """Those of them that lie on disk."""
    return activation_bytes(plan, itemsize) if plan.recipe.engine.activations == "disk" else 0


def statistics_bytes(plan: Plan) -> int:
    """Bytes of the statistics that a run keeps: half a Hessian of each input where one is asked for."""
    kept = {"none": 0, "first": 1, "all": len(plan.stages)}[plan.recipe.engine.keep_statistics]
    size = {"float32": 4, "float64": 8}[plan.recipe.engine.accumulate]
    total = 0
    for stage in plan.stages[1 : 1 + kept]:
        for axis in plan.axes[stage] if plan.gathers(stage) else ():
            chains = (plan.chains.linears.get(name, ()) for name in axis.consumers)
            needs = frozenset().union(*(method.requires for chain in chains for method in chain))
            total += size * axis.size * ((axis.size + 1) // 2 * ("hessian" in needs) + len(needs))
    return total


def _stage_bytes(plan: Plan, stage: str, weights: int, itemsize: int) -> int:
    """A block or the head on its way: its weights; its Hessians; what solving the linears of one input takes; and all linears' values
    where methods look at the whole block at once."""
    solving, summed, values = 0, 0, 0
    sizes = {linear.name: linear.shape[0] * linear.shape[1] for linear in plan.linears(stage)}
    for axis in plan.axes[stage]:
        chains = {name: plan.chains.linears[name] for name in axis.consumers if plan.chains.linears.get(name)}
        methods = [method for chain in chains.values() for method in chain]
        entries = axis.size**2 * any("hessian" in method.requires for method in methods)
        count = sum(sizes[name] for name in chains)
        summed += 4 * entries
        solving = max(solving, count * (_SOLVED if entries else _ROUNDED) + _FACTORED * entries)
        values += 8 * count * any(method.tunes or method.prepares for method in methods)
    return weights * itemsize + summed + solving + values


def _weights_by_stage(plan: Plan) -> dict[str, int]:
    weights = dict.fromkeys(plan.stages, 0)
    for row in plan.rows:
        weights[row.block] += row.weights
    return weights


def _written_bytes(plan: Plan) -> int:
    """The largest weight file, on its way through the host."""
    stored = dict.fromkeys(plan.stages, 0)
    for row in plan.rows:
        stored[row.block] += row.predicted_bytes
    return max(stored.values())


def _tokens(plan: Plan) -> int:
    wanted = plan.recipe.calibration
    return wanted.samples * int(wanted.length or 0) if plan.needs_data else 64


def _text_bytes(plan: Plan) -> int:
    """Size of the calibration text where it is a local file."""
    path = Path(plan.recipe.calibration.source)
    return path.stat().st_size if plan.needs_data and path.is_file() else 0


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
