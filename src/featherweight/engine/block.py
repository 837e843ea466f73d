"""One decoder block, or the head: gather what the methods asked for, and hand it to them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from featherweight.engine.dealing import deal, jobs_of
from featherweight.engine.merging import merge_statistics
from featherweight.engine.progress import Event
from featherweight.engine.steps import compress_axes
from featherweight.engine.task import BlockResult, BlockTask
from featherweight.methods.base import Method
from featherweight.models.axes import Axis
from featherweight.models.experts import all_tokens_for
from featherweight.models.freed import return_freed_memory
from featherweight.packed.base import PackedWeight
from featherweight.planning.plan import Plan
from featherweight.statistics.collector import Collector
from featherweight.statistics.inputs import InputStatistics
from featherweight.statistics.store import content_key


def compress_block(task: BlockTask) -> BlockResult:
    """Compress every linear of the block that has a chain; the model holds `PackedLinear`s afterwards."""
    result = BlockResult()
    axes = [axis for axis in task.plan.axes[task.block] if _needs_or_chain(task.plan, axis)]
    groups = _in_turn(axes) if task.plan.recipe.engine.true_sequential else [axes]
    for group in groups:
        task = replace(task, owners=deal(jobs_of(task.plan, task.block, group), task.ranks.count))
        with task.phases.timed("statistics"):
            statistics = gather(task, group, needed(task.plan, group), result)
        together = task.ranks.count > 1 or any(method.tunes or method.prepares for method in _methods(task.plan, group))
        for part in [group] if together else [[axis] for axis in group]:
            with task.phases.timed("linears"):
                compress_axes(task, part, statistics, result)
            return_freed_memory()
    return result


def _in_turn(axes: Sequence[Axis]) -> list[list[Axis]]:
    """The axes one by one; those of all experts of a mixture that stand at the same place in each together."""
    groups: dict[tuple[str, str], list[Axis]] = {}
    for axis in axes:
        bank = axis.expert.rpartition(".")[0]
        groups.setdefault((bank, axis.name.removeprefix(axis.expert)), []).append(axis)
    return list(groups.values())


def gather(
    task: BlockTask, axes: Sequence[Axis], needs: Mapping[str, frozenset[str]], done: BlockResult
) -> dict[str, InputStatistics]:
    """Statistics `needs` of the axes, by name: from the store if it has them, else by running the block on every batch.

    Of several ranks each runs its batches, and gets the statistics of the linears that it will compress; all of them where a
    method learns on the block's outputs, or where they are kept.
    """
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
        **({"ranks": task.ranks.count} if task.ranks.count > 1 else {}),  # sums of another order
        **({"expert_tokens": settings.engine.expert_tokens} if any(axis.expert for axis in axes) else {}),
    )
    holders = _holders(task, axes)
    stored = task.store.load(key, needs)
    if all(task.ranks.gather(stored is not None)) and stored is not None:
        task.report(Event("statistics reused", task.block, detail="no token was read for them"))
        return {
            axis: each if task.ranks.rank in holders[axis] else InputStatistics(each.count) for axis, each in stored.items()
        }
    watched = [axis for axis in axes if axis.name in needs]
    sums = _merged(task, watched, needs, holders)
    sums |= _of_all_tokens(task, watched, needs, sums, holders)
    for axis in watched:
        if sums[axis.name].count < axis.size:
            tokens = sums[axis.name].count
            task.report(
                Event("warning", task.block, detail=f"{tokens} tokens for the {axis.size} inputs of {axis.consumers[0]}")
            )
    if task.keep and task.ranks.first:
        task.store.save(key, sums)
    return sums


def _merged(
    task: BlockTask, axes: Sequence[Axis], needs: Mapping[str, frozenset[str]], holders: Mapping[str, Sequence[int]]
) -> dict[str, InputStatistics]:
    """What comes by on all ranks, where it is held."""
    sums = _sums(task, axes, needs)
    if task.ranks.count > 1:  # one rank may see an expert's tokens that another does not
        dtype = getattr(torch, task.plan.recipe.engine.accumulate)
        for axis in axes:
            if axis.name not in sums:
                sums[axis.name] = InputStatistics.zeros(axis.size, needs[axis.name], dtype, task.ranks.device).finished()
    with task.phases.timed("reduce"):
        return merge_statistics(task.ranks, {axis.name: sums[axis.name] for axis in axes if axis.name in sums}, holders)


def _sums(task: BlockTask, axes: Sequence[Axis], needs: Mapping[str, frozenset[str]]) -> dict[str, InputStatistics]:
    """What comes by when the block runs on every batch of this rank; no entry for an expert to which nothing comes."""
    assert task.inputs is not None  # the caller looked
    accumulate = getattr(torch, task.plan.recipe.engine.accumulate)
    collector = Collector({axis.name: axis.consumers[0] for axis in axes}, needs, accumulate)
    with collector.attached(task.model), torch.no_grad():
        for index in range(len(task.inputs.hidden)):
            task.inputs.run(task.model, task.block, index)
            task.report(Event("gather", task.block, done=index + 1, total=len(task.inputs.hidden)))
    return collector.sums


def _holders(task: BlockTask, axes: Sequence[Axis]) -> dict[str, Sequence[int]]:
    """The ranks that need an axis's statistics."""
    if task.keep or any(method.tunes for method in _methods(task.plan, axes)):
        return {axis.name: range(task.ranks.count) for axis in axes}
    return {axis.name: sorted({task.owners[name] for name in axis.consumers if name in task.owners}) or [0] for axis in axes}


def _of_all_tokens(
    task: BlockTask,
    axes: Sequence[Axis],
    needs: Mapping[str, frozenset[str]],
    sums: Mapping[str, InputStatistics],
    holders: Mapping[str, Sequence[int]],
) -> dict[str, InputStatistics]:
    """For experts that saw too few tokens, the statistics of all tokens of the block as these experts would see them."""
    seen = {axis.name: sums[axis.name].count if axis.name in sums else 0 for axis in axes if axis.expert}
    least = task.plan.recipe.engine.expert_tokens
    starved = {axis.expert for axis in axes if axis.expert and seen[axis.name] < max(1.0, least * axis.size)}
    if not starved:
        return {}
    counts = [count for axis, count in ((axis, seen[axis.name]) for axis in axes if axis.expert in starved)]
    detail = f"{len(starved)} experts saw {min(counts)} to {max(counts)} tokens: calibrated on all tokens instead"
    task.report(Event("note", task.block, detail=detail))
    with all_tokens_for(task.model, starved):
        found = _merged(task, [axis for axis in axes if axis.expert in starved], needs, holders)
    return {name: replace(each, routed=seen[name]) for name, each in found.items()}


def needed(plan: Plan, axes: Sequence[Axis]) -> dict[str, frozenset[str]]:
    """The statistics that the methods of these axes ask for, by the axis's name; axes that need none are left out."""
    needs = {axis.name: frozenset().union(*(method.requires for method in _methods(plan, [axis]))) for axis in axes}
    return {name: kinds for name, kinds in needs.items() if kinds}


def _methods(plan: Plan, axes: Sequence[Axis]) -> list[Method]:
    return [method for axis in axes for name in axis.consumers for method in plan.chains.linears.get(name, ())]


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
