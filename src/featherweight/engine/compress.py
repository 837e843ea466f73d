"""The run of a plan: calibration tokens, the walk, the files around the shards, the proof."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from featherweight.data.corpora import load_corpus
from featherweight.data.windows import Windows, calibration_windows
from featherweight.engine.progress import Event, silent
from featherweight.engine.ranks import Ranks
from featherweight.engine.save import LEDGER, finish_output, read_ledger
from featherweight.engine.walk import Walk
from featherweight.errors import FeatherweightError
from featherweight.models.cache import cache_folder
from featherweight.models.source import ModelSource
from featherweight.planning.plan import Plan
from featherweight.planning.recipe import Calibration
from featherweight.planning.rows import Row, Totals
from featherweight.statistics.store import StatisticsStore
from featherweight.version import __version__


@dataclass(frozen=True)
class Result:
    """A finished output.

    Attributes:
        folder: where it lies.
        rows: the plan's rows with measured columns.
        totals: bytes and bits as written.
        proof: how far the reloaded logits lay from those in memory, and the bound.
        seconds: of this call.
        resumed: shards that an earlier call had finished.
        written: whether this process wrote it; of several ranks, the first.
        phases: seconds of this call by phase, as this rank spent them.
    """

    folder: Path
    rows: tuple[Row, ...]
    totals: Totals
    proof: dict[str, Any]
    seconds: float
    resumed: int = 0
    written: bool = True
    phases: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The `--json` form."""
        return {
            "output": str(self.folder),
            "rows": [row.as_dict() for row in self.rows],
            "total": {**vars(self.totals), "seconds": self.seconds, "resumed_shards": self.resumed},
            "proof": self.proof,
            "phases": dict(self.phases),
        }


def compress(
    plan: Plan,
    output: str | Path,
    *,
    device: str | None = None,
    offline: bool = False,
    statistics: Path | None = None,
    donors: Sequence[Path] = (),
    report: Callable[[Event], None] = silent,
) -> Result:
    """Run `plan` into the folder `output`; a killed run is gone on with by the same call.

    Processes that `torchrun` started share the work; the first of them reads and writes the folder, and reports.

    Args:
        device: "cpu", "cuda", ...; None takes a GPU if there is one, of several ranks each its own. Blocks run in float32 on a
            CPU and in the checkpoint's dtype elsewhere.
        offline: never ask the network for calibration data.
        statistics: folder of kept statistics; None takes the user's cache.
        donors: other outputs, whose first files are taken over as far as this run would write the same.
        report: progress sink.

    Raises:
        FeatherweightError: bad calibration data, a folder in use, no space, a saved model that does not repeat its logits;
            ranks that differ, or one that ended.
    """
    started = time.perf_counter()
    store = StatisticsStore(statistics or cache_folder() / "statistics")
    with Ranks.started(pick_device(device)) as ranks:
        dtype = compute_dtype(plan, ranks.device)
        windows = calibration_tokens(plan, offline=offline) if plan.needs_data else None
        agree(ranks, plan, windows, dtype)
        walk = Walk(plan, Path(output), windows, ranks, dtype, store, report if ranks.first else silent)
        walk.borrow(donors)
        result = _run(walk, started)
        return replace(result, written=ranks.first, phases=walk.phases.seconds)


def _run(walk: Walk, started: float) -> Result:
    folder, plan, ranks, resumed = walk.output, walk.plan, walk.ranks, len(walk.journal.entries)
    if ranks.on_first(lambda: walk.journal.finished and (folder / LEDGER).is_file()):
        walk.report(Event("saved", detail=f"{folder} is already complete"))
        return ranks.on_first(
            lambda: Result(folder, measured_rows(plan, walk), _totals(plan, walk), read_ledger(folder)["proof"], 0.0, resumed)
        )
    many = f" and {ranks.count - 1} more" if ranks.count > 1 else ""
    detail = f"{plan.source.name}, {plan.recipe.name}, {walk.device}{many}"
    walk.report(Event("start", total=len(plan.stages) - 1, detail=detail))
    for row in plan.rows:
        if row.untied:
            walk.report(Event("note", detail=f"{row.module}: {row.reason}, {row.predicted_bytes:,} bytes of its own"))
    tokens, logits = walk.run()

    def finished() -> Result:
        rows, totals, seconds = measured_rows(plan, walk), _totals(plan, walk), time.perf_counter() - started
        proof = finish_output(walk, rows, totals, tokens, logits, seconds)
        return Result(folder, rows, totals, proof, time.perf_counter() - started, resumed)

    return ranks.on_first(finished)


def agree(ranks: Ranks, plan: Plan, windows: Windows | None, dtype: torch.dtype) -> None:
    """Refuse ranks with other code, another recipe, model or tokens, or another kind of device."""
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ranks.device.type
    ranks.agree(
        {
            "featherweight": __version__,
            **{name: version(name) for name in ("torch", "transformers")},
            "model": plan.fingerprint,
            "recipe": plan.hash,
            "tokens": windows.sha256 if windows else None,
            "device": device,
            "dtype": str(dtype),
        }
    )


def calibration_tokens(plan: Plan, *, offline: bool) -> Windows:
    """The windows that the recipe's calibration section asks for."""
    return windows_for(plan.source, plan.recipe.calibration, offline=offline)


def windows_for(source: ModelSource, wanted: Calibration, *, offline: bool) -> Windows:
    """The windows that a calibration section with a length asks for, in a model's tokens."""
    assert wanted.length is not None
    corpus = load_corpus(wanted.source, split="calibration", offline=offline, variant=wanted.variant)
    vocabulary = range(source.config().get_text_config(decoder=True).vocab_size)
    tokenizer = vocabulary if corpus.samples else source.tokenizer()  # token ids need no tokenizer, only its size
    return calibration_windows(corpus, tokenizer, samples=wanted.samples, length=wanted.length, seed=wanted.seed)


def measured_rows(plan: Plan, walk: Walk) -> tuple[Row, ...]:
    """The plan's rows with what the journal knows of each."""
    known = {module: row for entry in walk.journal.entries for module, row in entry.rows.items()}

    def filled(row: Row) -> Row:
        if row.module in known:
            return replace(row, measured=known[row.module]["measured"], description=known[row.module]["description"])
        return replace(row, measured={"stored_bytes": row.predicted_bytes})

    return tuple(filled(row) for row in plan.rows)


def pick_device(name: str | None) -> torch.device:
    """The asked-for device, or a GPU if there is one, or the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise FeatherweightError(
            "no such device here", found=f"{name}: {str(problem).splitlines()[0]}", expected="cpu, or cuda where there is a GPU"
        ) from None
    return device


def compute_dtype(plan: Plan, device: torch.device) -> torch.dtype:
    """The dtype blocks run in: the recipe's, or float32 on a CPU and what most linears are stored in elsewhere."""
    wanted = plan.recipe.engine.compute
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type == "cpu":
        return torch.float32
    dtypes = [plan.weights.dtype(linear.weight_name) for linears in plan.structure.linears.values() for linear in linears]
    return max(set(dtypes), key=dtypes.count)


def _totals(plan: Plan, walk: Walk) -> Totals:
    size = sum((walk.output / entry.shard).stat().st_size for entry in walk.journal.entries)
    return Totals.of(measured_rows(plan, walk), size)
