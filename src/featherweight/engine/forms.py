"""One weight of every storage that the registered methods make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from featherweight.methods.base import Method, Problem
from featherweight.methods.inside import compress_inside, storage_after
from featherweight.methods.registry import METHODS, method_from
from featherweight.packed.base import PackedWeight
from featherweight.packed.dense import Dense
from featherweight.statistics.inputs import InputStatistics

Chain = tuple[Method, ...]


def pack_by(chain: Chain, weight: torch.Tensor) -> PackedWeight:
    """`weight [out, in]` after the chain, on a Hessian of independent inputs, where the weight lies."""
    eye = torch.eye(weight.shape[1], device=weight.device)
    statistics = InputStatistics(1, eye.diagonal().clone(), eye)
    problem = Problem({"w": weight.float()}, {"w": Dense(weight)}, statistics, weight.dtype)
    for method in chain:
        done = compress_inside(method, problem)
        problem = Problem(problem.weights, {"w": done["w"].weight}, statistics, weight.dtype)
    return problem.current["w"]


def all_forms(known: Mapping[str, Chain]) -> dict[str, Chain]:
    """`known`, and for every further storage the first point of a method that makes it, by names."""
    forms, seen = dict(known), set[str]()
    for chain in forms.values():
        seen |= kinds(described(chain))
    for name, label, chain in _points():
        found = kinds(described(chain))
        if not found <= seen:
            forms[f"{name}-{label}"] = chain
            seen |= found
    return forms


def kinds(description: Mapping[str, Any]) -> set[str]:
    """Of a described weight and everything inside it."""
    inside = [each for value in description.values() for each in (value if isinstance(value, list | tuple) else [value])]
    nested = [kinds(each) for each in inside if isinstance(each, Mapping) and "kind" in each]
    return {description["kind"]}.union(*nested)


def described(chain: Chain, shape: tuple[int, int] = (1024, 1024)) -> Mapping[str, Any]:
    """What the chain stores of a weight of that shape in bfloat16."""
    description: dict[str, Any] = Dense.describe(shape, torch.bfloat16)
    for method in chain:
        description = storage_after(method, description, torch.bfloat16)
    return description


def _points() -> Iterator[tuple[str, str, Chain]]:
    for name, method in METHODS.items():
        for label, steps in method.points.items():
            settings = [{"method": name, **step} for step in steps]
            told = [(each["method"], {key: value for key, value in each.items() if key != "method"}) for each in settings]
            yield name, label, tuple(method_from(*each) for each in told)
