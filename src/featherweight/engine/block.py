"""One decoder block: gather what the methods asked for, call them axis by axis, put the packed weights in place."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.engine.progress import Event
from featherweight.errors import FeatherweightError
from featherweight.evaluation.linears import relative_output_error
from featherweight.methods.base import Compressed, Method, Problem
from featherweight.methods.inside import compress_inside, storage_after
from featherweight.models.axes import Axis
from featherweight.models.replay import BlockInputs
from featherweight.packed.base import PackedWeight, described_bytes
from featherweight.packed.dense import Dense
from featherweight.packed.placing import place
from featherweight.planning.plan import Plan
from featherweight.statistics.collector import Collector
from featherweight.statistics.inputs import InputStatistics
from featherweight.statistics.store import StatisticsStore, content_key


@dataclass(frozen=True)
class BlockTask:
    """What compressing one block needs.

    Attributes:
        plan: the table.
        model: skeleton with this block materialised.
        block: its path.
        inputs: calibration inputs of the block; None for recipes without data.
        prefix: hash of everything compressed before, for the statistics' key.
        tokens: hash of the calibration tokens.
        store: where statistics are kept.
        keep: whether this block's statistics are kept.
        report: progress sink.
        dtype: in which the block runs.
    """

    plan: Plan
    model: nn.Module
    block: str
    inputs: BlockInputs | None
    prefix: str
    tokens: str
    store: StatisticsStore
    keep: bool
    report: Callable[[Event], None]
    dtype: torch.dtype


@dataclass
class BlockResult:
    """Packed weights and ledger columns, by linear."""

    packed: dict[str, PackedWeight] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)


def compress_block(task: BlockTask) -> BlockResult:
    """Compress every linear of the block that has a chain; the model holds `PackedLinear`s afterwards."""
    result = BlockResult()
    axes = [axis for axis in task.plan.axes[task.block] if _needs_or_chain(task.plan, axis)]
    groups = [[axis] for axis in axes] if task.plan.recipe.engine.true_sequential else [axes]
    for group in groups:
        statistics = gather(task, group, result)
        for axis in group:
            _compress_axis(task, axis, statistics.get(axis.name), result)
    return result


def gather(task: BlockTask, axes: list[Axis], done: BlockResult) -> dict[str, InputStatistics]:
    """Statistics of the axes that need any: from the store if it has them, else by running the block on every batch."""
    needs = {axis.name: needed for axis in axes if (needed := _needs(task.plan, axis))}
    if not needs or task.inputs is None:
        return {}
    settings = task.plan.recipe
    key = content_key(
        model=task.plan.fingerprint,
        tokens=task.tokens,
        batch_size=settings.calibration.batch_size,
        accumulate=settings.engine.accumulate,
        inputs=[str(task.inputs.hidden[0].dtype), task.inputs.hidden[0].device.type],
        block=task.block,
        prefix=[task.prefix, _digest(done.packed)],
    )
    stored = task.store.load(key, needs)
    if stored is not None:
        task.report(Event("statistics reused", task.block, detail="no token was read for them"))
        return stored
    watched = {axis.name: axis.consumers[0] for axis in axes if axis.name in needs}
    collector = Collector(watched, needs, getattr(torch, settings.engine.accumulate))
    with collector.attached(task.model), torch.no_grad():
        for index in range(len(task.inputs.hidden)):
            task.inputs.run(task.model, task.block, index)
            task.report(Event("gather", task.block, done=index + 1, total=len(task.inputs.hidden)))
    for axis in axes:
        if axis.name in needs and collector.sums[axis.name].count < axis.size:
            tokens = collector.sums[axis.name].count
            task.report(
                Event("warning", task.block, detail=f"{tokens} tokens for the {axis.size} inputs of {axis.consumers[0]}")
            )
    if task.keep:
        task.store.save(key, collector.sums)
    return collector.sums


def _compress_axis(task: BlockTask, axis: Axis, statistics: InputStatistics | None, result: BlockResult) -> None:
    linears = {linear.name: linear for linear in task.plan.structure.linears[task.block] if linear.name in axis.consumers}
    chains = {name: task.plan.chains.linears[name] for name in axis.consumers if task.plan.chains.linears.get(name)}
    weights = {name: linears[name].read(task.model).to(torch.float32) for name in chains}
    dtypes = {name: task.plan.weights.dtype(linears[name].weight_name) for name in chains}
    current: dict[str, Compressed] = {name: Compressed(Dense(weights[name].to(dtypes[name]))) for name in chains}
    started = time.perf_counter()
    for step, method, names in _steps(chains):
        problem = Problem(
            {name: weights[name] for name in names},
            {name: current[name].weight for name in names},
            statistics,
            dtypes[names[0]],
            task.plan.recipe.seed,
            step,
        )
        for name, compressed in _solve(method, problem, task.block).items():
            _check(name, problem.current[name], compressed.weight, method, problem.dtype)
            current[name] = replace(compressed, facts={**current[name].facts, **compressed.facts})
    seconds = time.perf_counter() - started
    for name, compressed in current.items():
        place(task.model, name, compressed.weight, dtype=task.dtype)
        result.packed[name] = compressed.weight
        result.measured[name] = _measured(compressed, weights[name], statistics, seconds / len(current))
        measured = result.measured[name]
        task.report(Event("compressed", task.block, linear=name, error=measured["relative_error"], measured=measured))


def _steps(chains: Mapping[str, tuple[Method, ...]]) -> Iterator[tuple[int, Method, list[str]]]:
    """Step by step, the linears that share a method and its settings together."""
    for step in range(max((len(chain) for chain in chains.values()), default=0)):
        together: dict[Method, list[str]] = {}
        for name, chain in chains.items():
            if step < len(chain):
                together.setdefault(chain[step], []).append(name)
        for method, names in together.items():
            yield step, method, names


def _solve(method: Method, problem: Problem, block: str) -> dict[str, Compressed]:
    try:
        return compress_inside(method, problem)
    except torch.OutOfMemoryError as error:
        raise FeatherweightError(
            f"{method.name} ran out of memory in {block}",
            found=str(error).splitlines()[0],
            expected="room for the block, its statistics and one factorisation (`fw plan` prints the peak)",
            fix="use --device cpu or a smaller calibration batch; the same command goes on from the last finished block",
        ) from None


def _check(name: str, before: PackedWeight, after: PackedWeight, method: Method, dtype: torch.dtype) -> None:
    """What a step returns must be finite, as planned, and may drop weights but never bring one back."""
    planned = storage_after(method, before.description(), dtype)
    same = after.description() == planned
    if not method.exact:
        same = (after.kind, list(after.shape)) == (planned["kind"], planned["shape"]) and after.nbytes <= described_bytes(
            planned
        )
    if not same:
        raise FeatherweightError(
            f"{method.name} stored {name} otherwise than it planned", found=after.description(), expected=planned
        )
    values = after.dequantize()
    if not bool(torch.isfinite(values).all()):
        raise FeatherweightError(
            f"{method.name} made NaN or Inf in {name}",
            found=f"{int((~torch.isfinite(values)).sum())} of {values.numel()} weights",
            expected="finite weights",
            fix="raise damping, or use more calibration tokens",
        )
    support = before.support
    if support is not None and bool(values[~support].count_nonzero()):
        raise FeatherweightError(
            f"{method.name} brought dropped weights of {name} back",
            found=int(values[~support].count_nonzero()),
            expected="every exact zero of the step before",
        )


def _measured(compressed: Compressed, weight: Tensor, statistics: InputStatistics | None, seconds: float) -> dict[str, Any]:
    values = compressed.weight.dequantize().to(weight.device)
    hessian = statistics.hessian if statistics is not None else None
    return {
        **compressed.facts,
        "stored_bytes": compressed.weight.nbytes,
        "component_bits": {name: 8 * part.nbytes / weight.numel() for name, part in compressed.weight.tensors().items()},
        "relative_error": None if hessian is None else relative_output_error(weight, values, hessian),
        "relative_weight_error": relative_output_error(weight, values),
        "sparsity": float((values == 0).float().mean()),
        "seconds": seconds,
    }


def _needs(plan: Plan, axis: Axis) -> frozenset[str]:
    chains = (plan.chains.linears.get(name, ()) for name in axis.consumers)
    return frozenset().union(*(method.requires for chain in chains for method in chain))


def _needs_or_chain(plan: Plan, axis: Axis) -> bool:
    return any(plan.chains.linears.get(name) for name in axis.consumers)


def _digest(packed: Mapping[str, PackedWeight]) -> str:
    """Hash of the weights compressed so far in this block."""
    digest = hashlib.sha256()
    for name, weight in sorted(packed.items()):
        for part, tensor in sorted(weight.tensors().items()):
            digest.update(f"{name}.{part}".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
