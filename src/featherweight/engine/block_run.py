"""Running a block with other weights in the place of its own, for the methods that look at its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from featherweight.engine.ranks import Ranks
from featherweight.engine.task import BlockResult, BlockTask, put_parameter, stored_parameter
from featherweight.errors import FeatherweightError
from featherweight.methods.block_run import BlockRun
from featherweight.models.replay import BlockInputs
from featherweight.models.structure import Linear
from featherweight.packed.base import PackedWeight
from featherweight.statistics.inputs import InputStatistics


def block_run(
    task: BlockTask,
    names: Sequence[str],
    weights: Mapping[str, Tensor],
    current: Mapping[str, PackedWeight],
    statistics: Mapping[str, InputStatistics],
    outside: Mapping[str, Callable[[Tensor], Tensor]],
    done: BlockResult,
) -> BlockRun:
    """The task's block, whose modules still hold the original weights, for a method that compresses the linears `names`.

    Args:
        weights, current, statistics: of all linears of the block that have a chain.
        outside: for each, from weights as methods see them to weights as the block reads them.
        done: what was made of the block so far.

    Without calibration inputs it has no batches, and running it is an error.
    """
    module = task.model.get_submodule(task.block)
    linears = {linear.name: linear for linear in task.plan.linears(task.block)}
    stored = {name: weight.dequantize().to(weights[name].device) for name, weight in current.items()}

    @cache
    def reference(batch: int) -> Tensor:
        if (kept := task.reference or done.reference) is not None:
            return kept[batch]
        with torch.no_grad():
            return _inputs(task).run(task.model, task.block, batch)

    norms = {
        name: tensor
        for name, word in task.plan.structure.parameters.items()
        if word == "norm" and name.startswith(f"{task.block}.") and (tensor := stored_parameter(task, name, done)) is not None
    }

    def run(batch: int, overrides: Mapping[str, Tensor]) -> Tensor:
        used = {**stored, **_share_gradients(task.ranks, overrides)}
        scales = {name[len(task.block) + 1 :]: used.pop(name).to(task.dtype) for name in norms if name in used}
        replaced = scales | dict(_parameter(task, linears[name], outside[name](weight)) for name, weight in used.items())
        inputs = _inputs(task)
        call = inputs.calls[task.block][batch]
        return call.run(
            lambda *args, **kwargs: torch.func.functional_call(module, replaced, args, kwargs), inputs.hidden[batch]
        )

    def chosen(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values[name] for name in names}

    return BlockRun(
        task.block,
        chosen(weights),
        {name: current[name] for name in names},
        {name: statistics[name] for name in names if name in statistics},
        0 if task.inputs is None else len(task.inputs.hidden),
        reference,
        run,
        task.plan.recipe.seed,
        partial(_summed, task.ranks),
        {name: tensor.to(next(module.parameters()).device) for name, tensor in norms.items()},
    )


class _Sum(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """The sum over ranks; what all ranks make of it is alike, and so is its gradient."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        return ranks.sum_(tensor.clone())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _SumGradients(torch.autograd.Function):  # type: ignore[misc]
    """Tensors that all ranks have alike, and whose gradients are summed over ranks: all in one node, so in one order."""

    @staticmethod
    def forward(context: Any, ranks: Ranks, *tensors: Tensor) -> tuple[Tensor, ...]:
        context.ranks = ranks
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, *(context.ranks.sum_(gradient.clone(memory_format=torch.contiguous_format)) for gradient in gradients)


def _summed(ranks: Ranks, tensor: Tensor) -> Tensor:
    return _Sum.apply(tensor, ranks) if ranks.count > 1 else tensor


def _share_gradients(ranks: Ranks, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if ranks.count == 1 or not torch.is_grad_enabled():
        return weights
    return dict(zip(weights, _SumGradients.apply(ranks, *weights.values()), strict=True))


def put_norms(task: BlockTask, run: BlockRun, found: Mapping[str, Any], done: BlockResult) -> dict[str, Any]:
    """Write the norms among what a method found into the block, and what it was before to the side; what else was found."""
    changed = {name: found[name] for name in run.norms if name in found}
    if changed and task.reference is None and done.reference is None:
        done.reference = [run.reference(batch) for batch in range(run.batches)]
    for name, tensor in changed.items():
        done.folded[name] = tensor
        put_parameter(task, name, tensor)
    return {name: each for name, each in found.items() if name not in changed}


def _inputs(task: BlockTask) -> BlockInputs:
    if task.inputs is None:
        raise FeatherweightError(
            f"nothing runs through {task.block}", found="a recipe without calibration data", expected="calibration windows"
        )
    return task.inputs


def _parameter(task: BlockTask, linear: Linear, weight: Tensor) -> tuple[str, Tensor]:
    """Name of a linear's weight within the block, and the weight as its module stores it."""
    weight = weight.to(task.dtype)
    return linear.weight_name[len(task.block) + 1 :], weight.t() if linear.transposed else weight
