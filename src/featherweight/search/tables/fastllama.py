"""FastLlama's two tables: speed, memory and accuracy of quantized and pruned models, and how much pruning each stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from featherweight import api
from featherweight.data.choices import load_questions
from featherweight.engine.compress import pick_device
from featherweight.errors import FeatherweightError
from featherweight.evaluation.protocol import Measurement
from featherweight.models.source import ModelSource
from featherweight.planning.recipe import Recipe, load_recipe
from featherweight.reports.sheets import Record, Sheet, write_sheets
from featherweight.search.bisection import bisect
from featherweight.search.cells import Cells
from featherweight.search.tables.fastllama_sheets import limits_sheet, results_sheet
from featherweight.search.tables.frame import Line, Measure, Workshop, require_models
from featherweight.search.tables.speed import fastllama_speed

NAME, CELLS = "fastllama", "cells.json"


@dataclass(frozen=True)
class Settings:
    """What the tables are made with.

    Attributes:
        task: questions, see `load_questions`.
        scoring: "likelihood", or "letters" as the seed asked.
        questions: at most.
        prompts, context: of the speed protocol.
        dtype: of activations; None is float32 on a CPU and the checkpoint's elsewhere.
        bits: quantizations to show.
        floor: accuracy that the second table's pruning must not fall below; None leaves the second table out.
        floor_on: accuracy of "all" questions, or of the "answered" ones (letters only).
        highest, tolerance: of the ratios that are tried.
        changes: dotted settings to replace in every recipe.
    """

    task: str = "continuation"
    scoring: Literal["likelihood", "letters"] = "likelihood"
    questions: int | None = None
    prompts: int = 20
    context: int = 128
    dtype: str | None = None
    bits: tuple[int, ...] = (4, 8)
    floor: float | None = 0.5
    floor_on: Literal["all", "answered"] = "all"
    highest: float = 0.9
    tolerance: float = 0.01
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check them."""
        if not set(self.bits) <= {4, 8} or not self.bits:
            raise FeatherweightError("no recipe has these bits", found=self.bits, expected="4, 8, or both", fix="--bits 4,8")
        for name, value, most in (
            ("floor", self.floor, 1.0),
            ("highest", self.highest, 0.999),
            ("tolerance", self.tolerance, 1.0),
        ):
            if value is not None and not 0 < value <= most:
                raise FeatherweightError(f"{name} is out of range", found=value, expected=f"more than 0, at most {most}")
        if self.floor_on == "answered" and self.scoring != "letters":
            raise FeatherweightError(
                "by likelihood every question is answered", found="floor on answered", expected="scoring letters",
                fix="--scoring letters, or --floor-on all",
            )  # fmt: skip


def fastllama_table(
    sources: Sequence[ModelSource],
    output: Path,
    settings: Settings,
    *,
    device: str | None = None,
    offline: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[list[Sheet], list[Path]]:
    """Both tables for all models, and their files; finished cells are kept in `output`, so that the same call goes on.

    Args:
        report: called with a line per step.

    Returns:
        The sheets, and the files written.

    Raises:
        FeatherweightError: unknown settings, a task or text that is not there, or a model the recipes do not suit.
    """
    require_models(sources)
    device = str(pick_device(device))
    answers = _answers(settings, load_questions(settings.task, offline=offline).sha256, device, offline)
    cells, lines = Cells(output / CELLS), list(_lines(settings))
    shops = [Workshop(source, output, cells, device, offline, report) for source in sources]
    for shop in shops:
        for line in lines:
            if line.recipe is not None:
                shop.plan(line.recipe)  # what does not suit a model is refused before any work
    sheets = [results_sheet([_record(shop, line, settings, answers) for shop in shops for line in lines])]
    if settings.floor is not None:
        found = [
            _limit(shop, settings, answers, bits, dimension)
            for shop in shops
            for bits in settings.bits
            for dimension in ("input", "output")
        ]
        sheets.append(limits_sheet(found, settings.floor, settings.floor_on))
    return sheets, write_sheets(output, NAME, sheets)


def _recipe(settings: Settings, bits: int, dimension: str, ratio: float | None = None, pruned: bool = True) -> Recipe:
    """The shipped recipe with the user's changes; with its last step's ratio, or without that step."""
    recipe = load_recipe(f"fastllama-{bits}bit-{dimension}").with_changes(settings.changes)
    if not pruned:
        return recipe.model_copy(update={"steps": recipe.steps[:1]})
    last = len(recipe.steps) - 1
    return recipe if ratio is None else recipe.with_changes({f"steps.{last}.ratio": ratio})


def _lines(settings: Settings) -> Iterator[Line]:
    yield Line("dense", None)
    for bits in settings.bits:
        yield Line(f"{bits} bit", _recipe(settings, bits, "input", pruned=False))
        yield Line(f"{bits} bit pruned", _recipe(settings, bits, "input"))


def _answers(settings: Settings, sha256: str, device: str, offline: bool) -> Measure:
    def run(folder: Path) -> dict[str, Any]:
        letters = settings.scoring == "letters"
        found = api.answer(
            folder,
            settings.task,
            letters=letters,
            limit=settings.questions,
            device=device,
            dtype=settings.dtype,
            offline=offline,
        )
        return {measurement.name: measurement.as_dict() for measurement in found}

    told = {"task": sha256, "scoring": settings.scoring, "questions": settings.questions, "dtype": settings.dtype}
    return Measure("answers", told, run)


def _speed(settings: Settings, device: str) -> Measure:
    dtype = settings.dtype or ("float32" if device == "cpu" else "auto")
    told = {"prompts": settings.prompts, "context": settings.context, "device": device, "dtype": dtype}
    return Measure("speed", told, lambda folder: fastllama_speed(folder, told))


def _record(shop: Workshop, line: Line, settings: Settings, answers: Measure) -> Record:
    pruned = line.recipe is not None and len(line.recipe.steps) > 1
    ratio = line.recipe.steps[-1].settings.get("ratio") if line.recipe is not None and pruned else None
    size = shop.size(line)
    speed = shop.get(line, _speed(settings, shop.device))
    return {"model": shop.source.name, "row": line.name, "ratio": ratio, **size, **speed, **shop.get(line, answers)}


def _limit(shop: Workshop, settings: Settings, answers: Measure, bits: int, dimension: str) -> Record:
    """One search; each ratio tried is a kept cell, its model is not kept."""
    wanted = "accuracy_answered" if settings.floor_on == "answered" else "accuracy"
    tried: list[Record] = []

    def holds(ratio: float) -> bool:
        recipe = _recipe(settings, bits, dimension, ratio, pruned=ratio > 0)
        line = Line(f"{bits} bit {dimension} {ratio:g}" if ratio else f"{bits} bit", recipe)
        found = Measurement.from_dict(shop.get(line, answers, keep=not ratio)[wanted])
        good = settings.floor is not None and found.value >= settings.floor
        tried.append({"ratio": ratio, "accuracy": found.value, "stderr": found.stderr, "holds": good})
        return good

    largest, _ = bisect(0.0, settings.highest, holds, settings.tolerance)
    told = {"model": shop.source.name, "quantization": f"{bits} bit", "dimension": dimension}
    return {**told, "largest_ratio": largest, "tried": tried}
