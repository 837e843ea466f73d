"""The chain of methods on the axes of a block: each step called, checked and measured; the result put in place."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from featherweight.engine.block_run import block_run, put_norms
from featherweight.engine.merging import merge_compressed
from featherweight.engine.part import Part
from featherweight.engine.prepare import prepare_step
from featherweight.engine.progress import Event
from featherweight.engine.task import BlockResult, BlockTask
from featherweight.errors import FeatherweightError
from featherweight.evaluation.linears import relative_output_error
from featherweight.methods.base import Compressed, Method, Problem
from featherweight.methods.inside import compress_inside, storage_after
from featherweight.models.axes import Axis
from featherweight.packed.base import PackedWeight, described_bytes
from featherweight.packed.placing import place
from featherweight.statistics.inputs import InputStatistics


def compress_axes(
    task: BlockTask, axes: Sequence[Axis], statistics: Mapping[str, InputStatistics], result: BlockResult
) -> None:
    """Every step on all these axes before the next one, since a step may look at what the block makes of the ones before."""
    parts = [Part.of(task, axis, statistics.get(axis.name)) for axis in axes]
    for index in range(max((len(chain) for part in parts for chain in part.chains.values()), default=0)):
        parts = prepare_step(task, parts, index, result)
        before = {name: compressed.weight for part in parts for name, compressed in part.current.items()}
        settings = _tune(task, parts, index, result)
        for part in parts:
            started = time.perf_counter()
            for method, names in part.step(index):
                own = [name for name in names if task.owns(name)]
                if own:
                    _run_step(task, part, index, method, own, settings)
            part.seconds += time.perf_counter() - started
        _share_step(task, parts, index)
        _check_budgets(task, parts, index, before)
    _put_in_place(task, parts, result)


def _tune(task: BlockTask, parts: Sequence[Part], index: int, result: BlockResult) -> dict[str, Any]:
    """Settings by linear of the methods of this step that look at the block's outputs."""
    tuned: dict[Method, list[str]] = {}
    for part in parts:
        for method, names in part.step(index):
            if method.tunes:
                tuned.setdefault(method, []).extend(names)
    if not tuned:
        return {}
    current = {name: compressed.weight for part in parts for name, compressed in part.current.items()}
    weights = {name: weight for part in parts for name, weight in part.weights.items()}
    sums = {name: part.statistics for part in parts for name in part.chains if part.statistics is not None}
    settings: dict[str, Any] = {}
    outside = {name: part.outside for part in parts for name in part.chains}
    for method, names in tuned.items():
        task.report(Event("tune", task.block, detail=f"{method.name}, {len(names)} linears"))
        run = block_run(task, names, weights, current, sums, outside, result)
        settings |= put_norms(task, run, method.tune(run), result)
    return settings


def _run_step(task: BlockTask, part: Part, index: int, method: Method, names: list[str], settings: Mapping[str, Any]) -> None:
    problem = part.problem(names, task.plan.recipe.seed, index, settings)
    for name, compressed in _solve(method, problem, task.block).items():
        _check(name, problem.current[name], compressed.weight, method, problem.dtype)
        part.current[name] = replace(compressed, facts={**part.current[name].facts, **compressed.facts})


def _share_step(task: BlockTask, parts: Sequence[Part], index: int) -> None:
    """What this step made of every linear, on every rank."""
    stepped = {name: part for part in parts for _, names in part.step(index) for name in names}
    with task.phases.timed("broadcast"):
        own = {name: part.current[name] for name, part in stepped.items() if task.owns(name)}
        for name, compressed in merge_compressed(task.ranks, own).items():
            stepped[name].current[name] = compressed


def _check_budgets(task: BlockTask, parts: Sequence[Part], index: int, before: Mapping[str, PackedWeight]) -> None:
    """Linears that share a budget may store together what the plan gives them together."""
    stored, planned = 0, 0
    for part in parts:
        for method, names in part.step(index):
            if method.budget == "block":
                stored += sum(part.current[name].weight.nbytes for name in names)
                planned += sum(
                    described_bytes(storage_after(method, before[name].description(), part.dtypes[name])) for name in names
                )
    if stored > planned:
        raise FeatherweightError(f"{task.block} stores more than it planned", found=f"{stored} bytes", expected=f"{planned}")


def _put_in_place(task: BlockTask, parts: Sequence[Part], result: BlockResult) -> None:
    own: dict[str, dict[str, Any]] = {}
    for part in parts:
        mine = [name for name in part.chains if task.owns(name)]
        for name in part.chains:
            weight = part.stored(name)
            place(task.model, name, weight, dtype=task.dtype)
            result.packed[name] = weight
        own |= {name: _measured(part, name, result.packed[name], part.seconds / len(mine)) for name in mine}
    measured = {name: each for told in task.ranks.gather(own) for name, each in told.items()}
    for name in (name for part in parts for name in part.chains):
        result.measured[name] = measured[name]
        error = measured[name]["relative_error"]
        task.report(Event("compressed", task.block, linear=name, error=error, measured=measured[name]))


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
    """What a step returns must be finite, as planned, and may drop weights but never bring one back, unless it only adds terms."""
    planned = storage_after(method, before.description(), dtype)
    alike = (after.kind, list(after.shape)) == (planned["kind"], planned["shape"])
    if method.budget == "block":  # its bytes are checked for the whole block
        same = alike
    else:
        same = after.description() == planned if method.exact else alike and after.nbytes <= described_bytes(planned)
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
    if method.adds_terms:
        _check_terms(name, before, after, method)
        return
    support = before.support
    if support is not None and bool(values[~support].count_nonzero()):
        raise FeatherweightError(
            f"{method.name} brought dropped weights of {name} back",
            found=int(values[~support].count_nonzero()),
            expected="every exact zero of the step before",
        )


def _check_terms(name: str, before: PackedWeight, after: PackedWeight, method: Method) -> None:
    """The terms that were there must be there, bit for bit."""
    kept = list(after.tensors().values())
    for part, tensor in before.tensors().items():
        if not any(tensor.dtype == other.dtype and torch.equal(tensor, other) for other in kept):
            raise FeatherweightError(
                f"{method.name} changed what was stored of {name}", found=f"another {part}", expected="new terms beside the old"
            )


def _measured(part: Part, name: str, stored: PackedWeight, seconds: float) -> dict[str, Any]:
    """The ledger's columns; errors are those of the original product, whatever maps were folded."""
    original, values = part.originals[name], stored.dequantize()
    restored = part.as_before(name, values.to(original.device))
    hessian = part.seen.hessian if part.seen is not None else None
    return {
        **part.current[name].facts,
        **_expert_facts(part),
        "stored_bytes": stored.nbytes,
        "component_bits": {part_name: 8 * tensor.nbytes / original.numel() for part_name, tensor in stored.tensors().items()},
        "relative_error": None if hessian is None else relative_output_error(original, restored, hessian),
        "relative_weight_error": relative_output_error(original, restored),
        "sparsity": float((values == 0).float().mean()),
        "seconds": seconds,
    }


def _expert_facts(part: Part) -> dict[str, Any]:
    """Of an expert, the tokens that were sent to it, and whether its statistics are of those."""
    if not part.axis.expert or part.seen is None:
        return {}
    if part.seen.routed is None:
        return {"tokens": part.seen.count, "calibrated_on": "its own tokens"}
    return {"tokens": part.seen.routed, "calibrated_on": "all tokens"}
