"""Coupled structured pruning: MLP channels, attention heads and blocks go, and what is written is a smaller checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featherweight.engine.compress import windows_for
from featherweight.engine.progress import Event, silent
from featherweight.engine.ranking import NAME as RANKING
from featherweight.engine.shrink_task import Cut, make_task
from featherweight.engine.shrink_walk import ShrinkWalk
from featherweight.engine.shrunk_checkpoint import finish_checkpoint
from featherweight.models.shards import model_shards
from featherweight.models.skeleton import build_skeleton
from featherweight.models.source import ModelSource
from featherweight.packed.files import write_text
from featherweight.planning.recipe import Calibration

REPORT = "shrink.json"
PROBE_SHAPE = (2, 32)


@dataclass(frozen=True)
class Shrunk:
    """What was made of a model.

    Attributes:
        folder: the checkpoint.
        ordinary: whether transformers loads it with no plug-in; otherwise after `import featherweight`.
        parameters: before and after.
        file_bytes: of the weight files, before and after.
        widths: by kind ("channels", "kv_groups", "query_heads") how many a block had, and how many each kept block has.
        removed: blocks that are gone, by their old paths.
        influence: of every old block, how far it turns its input (1 − cosine); empty where the model was not ranked.
        largest_difference: of the reloaded logits from those in memory, relative.
        seconds: of the call.
        resumed: files that an earlier call had finished.
    """

    folder: Path
    ordinary: bool
    parameters: tuple[int, int]
    file_bytes: tuple[int, int]
    widths: dict[str, tuple[int, tuple[int, ...]]]
    removed: tuple[str, ...]
    influence: dict[str, float]
    largest_difference: float
    seconds: float
    resumed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**vars(self), "folder": str(self.folder)}

    @classmethod
    def read(cls, folder: Path, resumed: int) -> Shrunk:
        """Of a finished output."""
        found = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        pairs = {name: tuple(found[name]) for name in ("parameters", "file_bytes", "removed")}
        widths = {kind: (before, tuple(left)) for kind, (before, left) in found["widths"].items()}
        return cls(**{**found, **pairs, "widths": widths, "folder": folder, "seconds": 0.0, "resumed": resumed})


def shrink(
    source: ModelSource,
    output: Path,
    cut: Cut,
    *,
    calibration: Calibration | None = None,
    device: str = "cpu",
    offline: bool = False,
    report: Callable[[Event], None] = silent,
) -> Shrunk:
    """Remove what `cut` says; uniform widths give a checkpoint that `AutoModelForCausalLM.from_pretrained` loads as it is.

    A channel's or head's score is what it adds to the block's output, `tr(W_u H_uu W_uᵀ)`; the least go. With `repair` the
    others make up for them by least squares on the calibration data (`absorb_dropped`). Blocks that turn their inputs least
    go (Men et al. 2024, arXiv:2403.03853). Statistics are taken behind what was pruned before. A killed run is gone on with
    by the same call.

    Args:
        source: a dense model.
        output: new or empty folder, or one of this run.
        cut: what goes.
        calibration: tokens; 128 windows of the shipped sample if not given.
        device: where blocks run, in float32.

    Raises:
        FeatherweightError: nothing left; a family without channels or heads that can go, or whose config has no setting for
            them; a folder in use; a saved model that does not repeat its logits.
    """
    started = time.perf_counter()
    task = make_task(source, cut)
    wanted = calibration or Calibration()
    wanted = wanted if wanted.length else wanted.model_copy(update={"length": min(2048, source.max_length())})
    windows = windows_for(source, wanted, offline=offline)
    walk = ShrinkWalk(task, output, windows, wanted.batch_size, torch.device(device), report)
    resumed = len(walk.journal.entries)
    if walk.journal.finished and (output / REPORT).is_file():
        report(Event("saved", detail=f"{output} is already complete"))
        return Shrunk.read(output, resumed)
    report(Event("start", total=len(task.smaller.kept), detail=f"shrink {source.name}, {device}"))
    vocabulary = task.config.get_text_config(decoder=True).vocab_size
    probe = torch.randint(0, vocabulary, PROBE_SHAPE, generator=torch.Generator().manual_seed(0))
    proof = finish_checkpoint(walk, probe, walk.run(probe))
    result = Shrunk(
        folder=output,
        ordinary=not cut.per_layer,
        parameters=walk.smaller.parameters(build_skeleton(task.config, fused_experts=True)),
        file_bytes=(
            sum(path.stat().st_size for path in model_shards(source.folder)),
            sum((output / entry.shard).stat().st_size for entry in walk.journal.entries),
        ),
        widths=walk.smaller.widths(),
        removed=tuple(block for block in task.structure.blocks if block not in walk.smaller.kept),
        influence=walk.ranking.influence,
        largest_difference=proof["largest_difference"],
        seconds=time.perf_counter() - started,
        resumed=resumed,
    )
    write_text(output / REPORT, json.dumps(result.as_dict(), indent=1))
    walk.journal.finish()
    (output / RANKING).unlink(missing_ok=True)
    return result
