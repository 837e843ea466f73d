"""The statistics of a whole model, gathered once for every method that will ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from featherweight.data.windows import Windows
from featherweight.engine.block import gather
from featherweight.engine.compress import agree, calibration_tokens, compute_dtype, pick_device
from featherweight.engine.outside import place_outside
from featherweight.engine.progress import Event, silent
from featherweight.engine.ranks import Ranks
from featherweight.engine.task import BlockResult, BlockTask
from featherweight.errors import FeatherweightError
from featherweight.models.cache import cache_folder
from featherweight.models.replay import capture
from featherweight.models.skeleton import build_skeleton, materialize
from featherweight.planning.plan import Plan
from featherweight.statistics.inputs import KINDS, InputStatistics
from featherweight.statistics.store import StatisticsStore

#: What is gathered unless something else is asked for; "samples" take more room than all the others.
USUAL = frozenset({"sum_sq", "hessian", "abs_max"})


@dataclass(frozen=True)
class Gathered:
    """One axis's input, and what is kept of it.

    Attributes:
        block, axis: where.
        linears: that read it.
        inputs: its columns.
        tokens: seen.
        bytes: on disk.
    """

    block: str
    axis: str
    linears: tuple[str, ...]
    inputs: int
    tokens: int
    bytes: int


@torch.no_grad()
def gather_statistics(
    plan: Plan,
    *,
    needs: frozenset[str] = USUAL,
    device: str | None = None,
    offline: bool = False,
    statistics: Path | None = None,
    report: Callable[[Event], None] = silent,
) -> list[Gathered]:
    """Keep the statistics of every axis of every block, taken behind the original blocks before it.

    A run of any recipe with `engine.inputs: dense` and the same calibration then reads no tokens for them, nor does a second
    call of this; a killed one goes on with the blocks that are missing.

    Args:
        plan: names the model, the calibration and the engine's settings; its methods play no part.
        needs: which statistics.
        device, offline, statistics, report: as `compress`.

    Raises:
        FeatherweightError: unknown statistics, inputs that are not dense, or bad calibration data.
    """
    if not needs or needs - KINDS or plan.recipe.engine.inputs != "dense":
        raise FeatherweightError(
            "no such statistics", found=f"{', '.join(sorted(needs)) or 'none'} of {plan.recipe.engine.inputs} inputs",
            expected=f"some of {', '.join(sorted(KINDS))}, and engine.inputs: dense",
        )  # fmt: skip
    windows = calibration_tokens(plan, offline=offline)
    store = StatisticsStore(statistics or cache_folder() / "statistics")
    with Ranks.started(pick_device(device)) as ranks:
        return _gathered(plan, needs, windows, ranks, store, report if ranks.first else silent)


def _gathered(
    plan: Plan, needs: frozenset[str], windows: Windows, ranks: Ranks, store: StatisticsStore, report: Callable[[Event], None]
) -> list[Gathered]:
    dtype = compute_dtype(plan, ranks.device)
    agree(ranks, plan, windows, dtype)
    model = build_skeleton(plan.source.config())
    place_outside(model, plan, {}, dtype, ranks.device)
    tokens, batch_size = ranks.share(windows.tokens, plan.recipe.calibration.batch_size, whole_batches=True)
    spill = store.room if plan.recipe.engine.activations == "disk" else None
    inputs = capture(model, plan.structure, tokens.to(ranks.device), batch_size, spill)
    kept = []
    for done, block in enumerate(plan.structure.blocks, 1):
        materialize(model, block, plan.weights, dtype, ranks.device)
        task = BlockTask(plan, model, block, inputs, "dense", windows.sha256, store, True, report, dtype, ranks=ranks)
        kept += _block(task, needs)
        inputs.advance(inputs.run(model, block, index) for index in range(len(inputs.hidden)))
        model.get_submodule(block).to("meta")
        report(Event("block written", block, done=done, total=len(plan.structure.blocks)))
    return kept


def _block(task: BlockTask, needs: frozenset[str]) -> list[Gathered]:
    axes = task.plan.axes[task.block]
    found = gather(task, axes, {axis.name: needs for axis in axes}, BlockResult())
    return [
        Gathered(task.block, axis.name, axis.consumers, axis.size, found[axis.name].count, _stored_bytes(found[axis.name]))
        for axis in axes
    ]


def _stored_bytes(sums: InputStatistics) -> int:
    size = 0
    for name, tensor in sums.tensors().items():
        numbers = len(tensor) * (len(tensor) + 1) // 2 if name == "hessian" else tensor.numel()
        size += numbers * tensor.element_size()
    return size
