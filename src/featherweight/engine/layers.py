"""Some linears of a model, each compressed by several chains and measured on its own; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featherweight.engine.block import gather, needed
from featherweight.engine.compress import calibration_tokens, compute_dtype, pick_device
from featherweight.engine.outside import place_outside
from featherweight.engine.progress import Event, silent
from featherweight.engine.task import BlockResult, BlockTask
from featherweight.errors import FeatherweightError
from featherweight.evaluation.linears import relative_output_error
from featherweight.methods.base import Method, Problem
from featherweight.methods.factors import Factored
from featherweight.methods.inside import compress_inside
from featherweight.methods.registry import METHODS, method_from
from featherweight.methods.shared import share, shared_format
from featherweight.models.cache import cache_folder
from featherweight.models.replay import capture
from featherweight.models.skeleton import build_skeleton, materialize
from featherweight.models.source import ModelSource
from featherweight.packed.dense import Dense
from featherweight.planning.plan import Plan, make_plan
from featherweight.planning.recipe import load_recipe
from featherweight.statistics.inputs import InputStatistics
from featherweight.statistics.store import StatisticsStore

#: The statistics that are gathered; those of methods that look at more than single linears are not.
GATHERED = frozenset({"hessian", "sum_sq"})


@dataclass(frozen=True)
class Candidate:
    """A chain to try.

    Attributes:
        name: for tables and plots.
        rank: of its low-rank terms, where it was given.
        chain: the methods in order.
    """

    name: str
    rank: int | None
    chain: tuple[Method, ...]

    @classmethod
    def of(cls, recipe: str, rank: int | None = None) -> Candidate:
        """The chain of a recipe, or of one method with its defaults; `rank` replaces that of every step that has one.

        Raises:
            FeatherweightError: no such recipe or method, or a method that looks at more than single linears.
        """
        steps = load_recipe({"steps": [{"method": recipe}]} if recipe in METHODS else recipe).steps
        chain = tuple(method_from(step.method, step.settings) for step in steps)
        for method in chain:
            if method.tunes or method.prepares or not method.requires <= GATHERED:
                raise FeatherweightError(
                    f"{method.name} looks at more than single linears", found=recipe,
                    expected="methods that need a Hessian, norms of the inputs, or no data",
                )  # fmt: skip
        if rank is None:
            return cls(recipe, None, chain)
        return cls(f"{recipe} rank {rank}", rank, tuple(_with_rank(method, rank) for method in chain))

    @property
    def has_rank(self) -> bool:
        """Whether a rank can be given."""
        return any(isinstance(method, Factored) for method in self.chain)


@dataclass(frozen=True)
class Sharing:
    """One rounded matrix for all chosen linears of one shape in a block, to try.

    Attributes:
        bits: of its codes.
        rank: of the product beside it, one for each linear; None takes a sixteenth of the inputs.

    Raises:
        FeatherweightError: bits that no grid has.
    """

    bits: int
    rank: int | None

    def __post_init__(self) -> None:
        """Refuse the bits before anything is calibrated."""
        shared_format(self.bits)


@dataclass(frozen=True)
class Attempt:
    """One linear by one chain.

    Attributes:
        linear, candidate, rank: which.
        bits: stored, per weight.
        error: `tr(E H Eᵀ) / tr(W H Wᵀ)` of what is stored.
        path: that error by iteration, of chains whose last method says so; else the error alone.
        seconds: of the chain.
    """

    linear: str
    candidate: str
    rank: int | None
    bits: float
    error: float
    path: tuple[float, ...]
    seconds: float


@torch.no_grad()
def try_layers(
    source: ModelSource,
    patterns: Sequence[str],
    candidates: Sequence[Candidate],
    *,
    changes: Mapping[str, Any] | None = None,
    device: str | None = None,
    offline: bool = False,
    statistics: Path | None = None,
    sharing: Sequence[Sharing] = (),
    report: Callable[[Event], None] = silent,
) -> list[Attempt]:
    """Every candidate on every chosen linear, behind the dense model's blocks.

    Args:
        patterns: globs over full names.
        candidates: chains.
        changes: dotted settings of the calibration, as for `plan`.
        device: "cpu", "cuda", ...; None takes a GPU if there is one.
        offline: never ask the network for calibration data.
        statistics: folder of kept statistics; None takes the user's cache.
        sharing: one matrix for several linears, beside the candidates.
        report: progress sink.

    Raises:
        FeatherweightError: a glob that matches nothing, bad calibration data, or what a method raises.
    """
    step = {"method": "gptq", "group_size": None, "scope": list(patterns)}  # its chain marks the linears, and asks for Hessians
    recipe = load_recipe({"steps": [step], "engine": {"inputs": "dense"}}).with_changes(dict(changes or {}))
    plan = make_plan(source, recipe, offline=offline)
    windows = calibration_tokens(plan, offline=offline)
    place = pick_device(device)
    dtype = compute_dtype(plan, place)
    model = build_skeleton(source.config())
    place_outside(model, plan, {}, dtype, place)
    store = StatisticsStore(statistics or cache_folder() / "statistics")
    spill = store.room if recipe.engine.activations == "disk" else None
    inputs = capture(model, plan.structure, windows.tokens.to(place), recipe.calibration.batch_size, spill)
    wanted = [block for block in plan.structure.blocks if plan.gathers(block)]
    attempts: list[Attempt] = []
    for block in plan.structure.blocks:
        materialize(model, block, plan.weights, dtype, place)
        if block in wanted:
            task = BlockTask(plan, model, block, inputs, "dense", windows.sha256, store, False, report, dtype)
            attempts += _try_block(task, candidates, sharing)
        if block == wanted[-1]:
            break
        inputs.advance(inputs.run(model, block, index) for index in range(len(inputs.hidden)))
        model.get_submodule(block).to("meta")
    return attempts


def _try_block(task: BlockTask, candidates: Sequence[Candidate], sharing: Sequence[Sharing]) -> list[Attempt]:
    linears = {linear.name: linear for linear in task.plan.linears(task.block) if task.plan.chains.linears[linear.name]}
    axes = [axis for axis in task.plan.axes[task.block] if linears.keys() & set(axis.consumers)]
    statistics = gather(task, axes, needed(task.plan, axes), BlockResult())
    attempts = []
    alike: dict[tuple[int, ...], dict[str, tuple[Tensor, Tensor | None]]] = {}
    for axis in axes:
        for name in (consumer for consumer in axis.consumers if consumer in linears):
            weight = linears[name].read(task.model).to(torch.float32)
            alike.setdefault(tuple(weight.shape), {})[name] = weight, statistics[axis.name].hessian
            stored = task.plan.weights.dtype(linears[name].weight_name)
            for candidate in candidates:
                attempts.append(_try(task.plan, name, weight, statistics[axis.name], stored, candidate))
                task.report(Event("tried", task.block, detail=f"{name}, {candidate.name}: {attempts[-1].error:.4g}"))
    for wanted in sharing:
        for together in (each for each in alike.values() if len(each) > 1):
            attempts += _try_shared(together, wanted, task.plan.recipe.seed)
            task.report(Event("tried", task.block, detail=f"{', '.join(together)}, {attempts[-1].candidate}"))
    return attempts


def _try_shared(together: Mapping[str, tuple[Tensor, Tensor | None]], wanted: Sharing, seed: int) -> list[Attempt]:
    weights, hessians = [weight for weight, _ in together.values()], [hessian for _, hessian in together.values()]
    rank = wanted.rank or max(1, weights[0].shape[1] // 16)
    started, generator = time.perf_counter(), torch.Generator(weights[0].device).manual_seed(seed)
    made = share(
        weights,
        wanted.bits,
        rank,
        lambda index, values: relative_output_error(weights[index], values, hessians[index]),
        generator,
    )
    seconds = (time.perf_counter() - started) / len(weights)
    name = f"one {wanted.bits}-bit Q for {len(weights)}, rank {rank}"
    return [
        Attempt(linear, name, rank, made.bits, min(path), path, seconds)
        for linear, path in zip(together, made.paths, strict=True)
    ]


def _try(
    plan: Plan, name: str, weight: Tensor, statistics: InputStatistics, dtype: torch.dtype, candidate: Candidate
) -> Attempt:
    problem = Problem({name: weight}, {name: Dense(weight.to(dtype))}, statistics, dtype, plan.recipe.seed)
    started, facts = time.perf_counter(), {}
    for step, method in enumerate(candidate.chain):
        compressed = compress_inside(method, replace(problem, step=step))[name]
        problem, facts = replace(problem, current={name: compressed.weight}), dict(compressed.facts)
    seconds = time.perf_counter() - started
    packed = problem.current[name]
    error = relative_output_error(weight, packed.dequantize(), statistics.hessian)
    path = tuple(facts.get("error_by_iteration", (error,)))
    return Attempt(name, candidate.name, candidate.rank, 8 * packed.nbytes / weight.numel(), error, path, seconds)


def _with_rank(method: Method, rank: int) -> Method:
    return replace(method, rank=rank) if isinstance(method, Factored) else method
