"""Steps on weights of which whole inputs or outputs were dropped: a step sees the part that is left, as a weight of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Compressed, Method, Problem
from featherweight.packed.sliced import Sliced


def storage_after(method: Method, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """What `method` makes of a described `current`, inside the part that is left of it."""
    if current["kind"] == "rounded_input":
        raise FeatherweightError(
            "nothing can follow round-input", found=f"{method.name} after it", expected="it as the last step",
            fix=f"put {method.name} before it",
        )  # fmt: skip
    if current["kind"] != "sliced":
        return method.storage(current, dtype)
    if method.tunes:
        raise FeatherweightError(
            f"{method.name} learns on whole linears", found="a step before that dropped whole inputs or outputs",
            expected="it as an earlier step", fix="put the structured step last",
        )  # fmt: skip
    rows, columns = current["shape"]
    return Sliced.describe((rows, columns), storage_after(method, current["inner"], dtype))


def compress_inside(method: Method, problem: Problem) -> dict[str, Compressed]:
    """`method.compress`; each sliced linear becomes a problem of its own, with the statistics of the inputs that are left."""
    sliced = {name: weight for name, weight in problem.current.items() if isinstance(weight, Sliced)}
    whole = problem.current.keys() - sliced.keys()
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
    for name, weight in sliced.items():
        outputs, inputs = weight.kept(0), weight.kept(1)
        part = replace(
            problem,
            weights={name: problem.weights[name][outputs][:, inputs]},
            current={name: weight.inner},
            statistics=None if problem.statistics is None else problem.statistics.take(inputs),
        )
        compressed = compress_inside(method, part)[name]
        done[name] = replace(compressed, weight=replace(weight, inner=compressed.weight))
    return {name: done[name] for name in problem.current}
