"""Rounding a block input by input, the weights that are still dense and the vectors of rotations trained in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from featherweight.methods.base import Compressed, Problem
from featherweight.methods.block_run import BlockRun
from featherweight.packed.base import PackedWeight, from_tensors
from featherweight.packed.dense import Dense
from featherweight.packed.signs import SIGN_DTYPE, sign_vectors
from featherweight.packed.signs import real_signs as with_real_signs

#: Highest rates of Adam: of real vectors (which begin as signs) and of norms' factors; of dense weights, relative to their RMS.
VECTOR_RATE, WEIGHT_RATE = 2e-3, 2.5e-3

#: Of the batches, held out to judge by; and how often a training is judged.
HELD_OUT, JUDGED = 8, 4


@dataclass
class _Rounded:
    """A rounded weight `diag(v) M diag(s)` between rotations.

    Attributes:
        packed: with real vectors where these are trained.
        middle: `M [out, in]`.
        vectors: by name, float32.
    """

    packed: PackedWeight
    middle: Tensor
    vectors: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, weight: PackedWeight, sides: Sequence[str]) -> _Rounded:
        """That of a weight as `compress` returns it; the signs of these sides' rotations are trained."""
        packed = with_real_signs(weight, sides)
        names = sign_vectors(packed.description())
        tensors = packed.tensors()
        plain = {**tensors, **{name: torch.ones_like(tensors[name]) for name in names}}
        middle = from_tensors(packed.description(), plain).dequantize()
        return cls(packed, middle, {name: tensors[name].float().requires_grad_() for name in names})

    def values(self) -> Tensor:
        """`[out, in]`, as a function of the vectors."""
        values = self.middle
        for name, vector in self.vectors.items():
            values = values * (vector if name.endswith("input_factors") else vector[:, None])
        return values

    def stored(self) -> PackedWeight:
        """With the vectors as they are now."""
        tensors = self.packed.tensors() | {name: each.detach().to(SIGN_DTYPE) for name, each in self.vectors.items()}
        return from_tensors(self.packed.description(), tensors)


@dataclass
class _Norm:
    """A norm's weight, as a factor on each channel."""

    stored: Tensor
    factors: Tensor

    @classmethod
    def of(cls, stored: Tensor) -> _Norm:
        """That of a weight `[size]` as it is stored."""
        return cls(stored, torch.ones_like(stored, dtype=torch.float32).requires_grad_())

    def values(self, rounded: bool) -> Tensor:
        """`[size]` float32, as a function of the factors; or `rounded` as it would be stored."""
        values = self.stored.float() * self.factors
        return values.detach().to(self.stored.dtype).float() if rounded else values


@torch.enable_grad()
def tune_block(
    run: BlockRun,
    solve: Callable[[Problem], dict[str, Compressed]],
    steps: int,
    method: str,
    *,
    sides: Sequence[str],
    norms: bool,
) -> dict[str, Any]:
    """Round the linears of one input after the other; after each, train the rest of the block to make up for it.

    After every input `steps` steps of Adam lower the block's output error over the weights that are still dense, over the
    norms, and over the signs of the rotations of those that are rounded. Some batches are held out, and the state with the
    lowest error on these is kept, so that no training raises it. (Tseng et al. 2024, section 5, which trains to a patience.)

    Args:
        solve: the method's `compress`, without tuning.
        steps: after each input.
        method: for the error.
        sides: whose rotations' signs are trained, "input" and "output"; they are then stored as real vectors.
        norms: train those too.

    Returns:
        By linear what is stored; by name the norms' weights, where they are trained.

    Raises:
        FeatherweightError: a block that returns no gradients.
    """
    trained = {name: _Norm.of(stored) for name, stored in run.norms.items()} if norms else {}
    dense = {name: current.dequantize().to(run.weights[name].device).clone() for name, current in run.current.items()}
    rounded: dict[str, _Rounded] = {}
    found: dict[str, Compressed] = {}
    loss, left = 0.0, 1.0
    for names in _groups(run):
        current = {name: Dense(dense.pop(name).detach()) for name in names}
        dtype = next(iter(run.current[names[0]].tensors().values())).dtype
        weights = {name: run.weights[name] for name in names}
        with torch.no_grad():
            solved = solve(Problem(weights, current, run.statistics.get(names[0]), dtype, run.seed))
        found |= solved
        rounded |= {name: _Rounded.of(each.weight, sides) for name, each in solved.items()}
        before, loss = _train(run, rounded, dense, trained, steps, method)
        left *= loss / before if before > 0 else 1.0
    facts = {"block_loss": loss, "tuning_gain": 1 - left}
    stored = {name: replace(each, weight=rounded[name].stored(), facts={**each.facts, **facts}) for name, each in found.items()}
    return {**stored, **{name: each.values(rounded=True).to(each.stored.dtype) for name, each in trained.items()}}


def finished(
    problem: Problem, solve: Callable[[Problem], dict[str, Compressed]], *, sides: Sequence[str]
) -> dict[str, Compressed]:
    """What `compress` returns of a method that may tune the block: what was found there, or solved now.

    Args:
        sides: whose rotations' signs are stored as real vectors.
    """
    if all(name in problem.settings for name in problem.current):
        return {name: problem.settings[name] for name in problem.current}
    solved = solve(problem)
    return {name: replace(each, weight=with_real_signs(each.weight, sides)) for name, each in solved.items()}


def _groups(run: BlockRun) -> list[list[str]]:
    """The linears by their input, in order of execution."""
    groups: dict[int | str, list[str]] = {}
    for name in run.current:
        groups.setdefault(id(run.statistics[name]) if name in run.statistics else name, []).append(name)
    return list(groups.values())


def _train(
    run: BlockRun,
    rounded: Mapping[str, _Rounded],
    dense: Mapping[str, Tensor],
    norms: Mapping[str, _Norm],
    steps: int,
    method: str,
) -> tuple[float, float]:
    """Train what is free, in place; the held-out losses before and after."""

    def weights(judged: bool = False) -> dict[str, Tensor]:
        scales = {name: each.values(rounded=judged) for name, each in norms.items()}
        return {**{name: each.values() for name, each in rounded.items()}, **dense, **scales}

    held = list(range(run.batches))[-max(1, run.batches // HELD_OUT) :]
    batches = cycle([batch for batch in range(run.batches) if batch not in held] or held)
    first = best = _loss(run, held, weights(judged=True))
    vectors = [vector for each in rounded.values() for vector in each.vectors.values()]
    vectors += [each.factors for each in norms.values()]
    free = [*vectors, *(weight.requires_grad_() for weight in dense.values())]
    if not free:
        return first, first
    rates = [VECTOR_RATE] * len(vectors)
    rates += [WEIGHT_RATE * float(each.detach().square().mean().sqrt()) for each in dense.values()]
    adam = torch.optim.Adam([{"params": [each], "lr": rate} for each, rate in zip(free, rates, strict=True)])
    kept = [each.detach().clone() for each in free]
    for step in range(steps):
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / steps)
        loss = run.loss(next(batches), weights())
        run.check_gradients(loss, method)
        adam.zero_grad()
        loss.backward()
        adam.step()
        if (step + 1) % max(1, steps // JUDGED) == 0 or step + 1 == steps:
            now = _loss(run, held, weights(judged=True))
            if isfinite(now) and now < best:
                best, kept = now, [each.detach().clone() for each in free]
    with torch.no_grad():
        for each, value in zip(free, kept, strict=True):
            each.copy_(value)
    return first, best


@torch.no_grad()
def _loss(run: BlockRun, batches: list[int], weights: Mapping[str, Tensor]) -> float:
    return sum(float(run.loss(batch, weights)) for batch in batches) / len(batches)
