"""Steps on weights that hold a smaller or a rotated one: a step sees what is inside, as a weight of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Compressed, Method, Problem
from featherweight.packed.base import PackedWeight
from featherweight.packed.rotated import Rotated
from featherweight.packed.sliced import Sliced

_WHOLE = {
    "sliced": ("a step before that dropped whole inputs or outputs", "put the structured step last"),
    "rotated": ("a step before that mixes inputs and outputs", "put the step that rotates last"),
}


def storage_after(method: Method, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """What `method` makes of a described `current`, inside the part that is left of it, or between its maps."""
    if current["kind"] == "rounded_input":
        raise FeatherweightError(
            "nothing can follow round-input", found=f"{method.name} after it", expected="it as the last step",
            fix=f"put {method.name} before it",
        )  # fmt: skip
    if current["kind"] not in _WHOLE:
        return method.storage(current, dtype)
    found, fix = _WHOLE[current["kind"]]
    if method.tunes:
        raise FeatherweightError(
            f"{method.name} learns on whole linears", found=found, expected="it as an earlier step", fix=fix
        )
    rows, columns = current["shape"]
    inner = storage_after(method, current["inner"], dtype)
    if current["kind"] == "rotated":
        return Rotated.describe(inner, current["input"], current["output"])
    return Sliced.describe((rows, columns), inner)


def compress_inside(method: Method, problem: Problem) -> dict[str, Compressed]:
    """`method.compress`; each sliced or rotated linear becomes a problem of its own, in what `inner` reads and gives."""
    held = {name: weight for name, weight in problem.current.items() if isinstance(weight, Sliced | Rotated)}
    whole = problem.current.keys() - held.keys()
    done: dict[str, Compressed] = {}
    if whole:
        done.update(
            method.compress(
                replace(
                    problem,
                    weights={name: weight for name, weight in problem.weights.items() if name in whole},
                    current={name: weight for name, weight in problem.current.items() if name in whole},
                )
            )
        )
    for name, weight in held.items():
        part = _part_left(problem, name, weight) if isinstance(weight, Sliced) else _between_maps(problem, name, weight)
        compressed = compress_inside(method, part)[name]
        done[name] = replace(compressed, weight=_around(weight, compressed.weight))
    return {name: done[name] for name in problem.current}


def _part_left(problem: Problem, name: str, weight: Sliced) -> Problem:
    outputs, inputs = weight.kept(0), weight.kept(1)
    return replace(
        problem,
        weights={name: problem.weights[name][outputs][:, inputs]},
        current={name: weight.inner},
        statistics=None if problem.statistics is None else problem.statistics.take(inputs),
    )


def _between_maps(problem: Problem, name: str, weight: Rotated) -> Problem:
    """`O W T⁻¹`, and the statistics of `T x`."""
    before, after, statistics = weight.input, weight.output, problem.statistics
    reference = problem.weights[name]
    if before is not None:
        reference = before.contragredient().apply(reference)
        statistics = None if statistics is None else statistics.transformed(before)
    if after is not None:
        reference = after.apply(reference.t()).t()
    return replace(problem, weights={name: reference}, current={name: weight.inner}, statistics=statistics)


def _around(weight: Sliced | Rotated, inner: PackedWeight) -> PackedWeight:
    """`inner` in the place of the one that `weight` holds."""
    return replace(weight, inner=inner) if isinstance(weight, Sliced) else weight.around(inner)
