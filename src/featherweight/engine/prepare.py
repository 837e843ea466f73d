"""The maps that a step draws before it compresses: folded into what makes the inputs, or kept beside the weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from featherweight.engine.part import Part
from featherweight.engine.task import BlockResult, BlockTask, put_parameter, stored_parameter
from featherweight.errors import FeatherweightError
from featherweight.models.axis import DIAGONAL, PERMUTATION
from featherweight.models.folding import check_foldable, fold_rows, folded_tensors
from featherweight.models.transforms import Diagonal, Permutation, Transform
from featherweight.packed.maps import as_stored, describe_map, description_of
from featherweight.planning.maps import PlannedMap


@torch.no_grad()
def prepare_step(task: BlockTask, parts: Sequence[Part], index: int, result: BlockResult) -> list[Part]:
    """Draw and apply the maps of one step, input by input in the order of execution; later ones see the earlier ones.

    A folded map changes the model's modules too, which go on computing what the original block computes.

    Returns:
        The parts; linears that have a map of their own beside them make a part of their own.
    """
    parts = list(parts)
    for planned in task.plan.maps.get(task.block, ()):
        if planned.step != index:
            continue
        started = time.perf_counter()
        part = next(part for part in parts if planned.linears[0] in part.chains)
        drawn = _draw(task, part, planned)
        part.seconds += time.perf_counter() - started
        if drawn is not None and planned.folds:
            _fold(task, parts, part, planned, drawn, result)
        elif drawn is not None:
            parts = [other for other in parts if other is not part] + _with_map_beside(part, planned, drawn)
    return parts


def _draw(task: BlockTask, part: Part, planned: PlannedMap) -> Transform | None:
    """What the method returns, of the kind and size that were planned; None where nothing is to be done."""
    axis, method = planned.axis, planned.method
    problem = part.problem(planned.linears, task.plan.recipe.seed, planned.step)
    if planned.folds:
        problem = replace(problem, shared=axis.shared, groups=axis.groups)
    drawn = task.ranks.on(task.owners[planned.linears[0]], lambda: method.prepare(problem))
    if drawn is None:
        return None if planned.folds else _identity(planned)
    expected, found = describe_map(method.map_kind, axis.size, problem.dtype), description_of(drawn, problem.dtype)
    sizes = ("map", "size") if planned.folds else tuple(expected)
    if any(found.get(name) != expected[name] for name in sizes):
        raise FeatherweightError(f"{method.name} maps {axis.name} otherwise than planned", found=found, expected=expected)
    return drawn


def _identity(planned: PlannedMap) -> Transform:
    """What changes nothing, stored where a map was planned, so that bytes are as planned."""
    size, kind = planned.axis.size, planned.method.map_kind
    if kind == DIAGONAL:
        return Diagonal(torch.ones(size, dtype=torch.float64))
    if kind == PERMUTATION:
        return Permutation(torch.arange(size))
    raise FeatherweightError(f"{planned.method.name} drew no rotation for {planned.axis.name}", expected="a signed Hadamard")


def _with_map_beside(part: Part, planned: PlannedMap, drawn: Transform) -> list[Part]:
    """The linears with the map beside them, and the others of the part, if there are any."""
    inside, outside = part.split(planned.linears)
    transform = as_stored(drawn, inside.dtypes[planned.linears[0]])
    inside.map_input(transform)
    inside.beside = (*inside.beside, transform)
    return [inside, outside] if outside.chains else [inside]


def _fold(
    task: BlockTask, parts: Sequence[Part], part: Part, planned: PlannedMap, drawn: Transform, result: BlockResult
) -> None:
    """Into the producers; the consumers take the map back out, and so does the model in memory."""
    transform = _fitted(task, planned, drawn, result)
    check_foldable(planned.axis, transform)
    owners = {name: owner for owner in parts for name in owner.chains}
    raw = {
        name: tensor
        for producer in planned.producers
        for name in (f"{producer.name}.weight", f"{producer.name}.bias")
        if not (producer.name in owners and name.endswith(".weight"))
        and (tensor := stored_parameter(task, name, result)) is not None
    }
    changed = folded_tensors(task.model, replace(planned.axis, consumers=()), transform, raw)
    for name, tensor in changed.items():
        result.folded[name] = tensor.to(raw[name].dtype)
        put_parameter(task, name, result.folded[name])
    part.map_input(transform)
    for name in part.chains:
        part.take_back(name, transform.transpose().apply)
    for producer in planned.producers:
        if producer.name in owners:
            owner, inverse = owners[producer.name], transform.inverse()
            owner.change(producer.name, partial(fold_rows, producer=producer, transform=transform))
            owner.take_back(producer.name, partial(fold_rows, producer=producer, transform=inverse))
    touched = {*part.chains, *(producer.name for producer in planned.producers)}
    for linear in task.plan.linears(task.block):
        if linear.name in touched and linear.name in owners:
            owner = owners[linear.name]
            weight = owner.outside(owner.weights[linear.name])
            put_parameter(task, linear.weight_name, weight.t() if linear.transposed else weight)


def _fitted(task: BlockTask, planned: PlannedMap, drawn: Transform, result: BlockResult) -> Transform:
    """A diagonal as its producers can take it up: alike where one row makes several columns, rounded where a norm stores it."""
    if not isinstance(drawn, Diagonal):
        return drawn
    fitted = drawn if planned.axis.shared is None else drawn.alike(planned.axis.shared)
    for producer in planned.producers:
        if producer.kind != "norm":
            continue
        stored = stored_parameter(task, f"{producer.name}.weight", result)
        assert stored is not None  # it scales the axis
        scale = stored.double() + producer.offset
        wanted = fitted.values.to(scale.device, torch.float64)
        rounded = (scale * wanted - producer.offset).to(stored.dtype).double() + producer.offset
        factors = torch.where(scale == 0, wanted, rounded / scale)
        sound = torch.isfinite(factors) & (factors > 0)
        fitted = Diagonal(torch.where(sound, factors, torch.ones_like(factors)))
    return fitted
