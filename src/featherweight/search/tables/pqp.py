"""PQP's table: pruning and 4-bit rounding together, by every method of its comparison, on one calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featherweight import api
from featherweight.engine.compress import pick_device
from featherweight.errors import FeatherweightError
from featherweight.integrations.lm_eval import find_tasks
from featherweight.masks.patterns import Pattern
from featherweight.models.source import ModelSource
from featherweight.planning.recipe import Recipe, load_recipe
from featherweight.reports.sheets import Record, Sheet, write_sheets
from featherweight.search.cells import Cells
from featherweight.search.tables.frame import Line, Measure, Workshop, require_models
from featherweight.search.tables.pqp_sheets import task_name, tasks_sheet, text_sheet

NAME, CELLS = "pqp", "cells.json"

#: The table's rows in its order, PQP's own last; and ours, which it does not have.
BASELINES = {
    "SparseGPT": "sparsegpt-50-4bit",
    "Wanda": "wanda-50-4bit",
    "RIA": "ria-50-4bit",
    "BESA": "besa-50-4bit",
    "BaWA-style": "bawa-50-4bit",
    "JSQ": "jsq-50-4bit",
}
PQP_ROWS = {"PQP (layer-wise)": "pqp-50-4bit-layer", "PQP (row-wise)": "pqp-50-4bit-row"}
OURS = {
    "BESA, joint": "besa-50-4bit-clip",
    "learned, repaired": "learned-50-4bit",
    "ALPS": "alps-50-4bit",
    "ALPS, learned": "alps-learned-50-4bit",
}

#: Methods that learn how much each row loses: under N:M all rows lose equally much.
LEARNED = ("besa", "pqp")


@dataclass(frozen=True)
class Settings:
    """What the table is made with.

    Attributes:
        texts: to measure on, as in `evaluate`.
        windows, length: of each text; all windows, and the protocol's length, if None.
        dtype: of activations in measuring; None is float32 on a CPU and the checkpoint's elsewhere.
        ratio: fraction dropped; None for 0.5, or for what N:M says.
        pattern: "N:M" for every row that can have it; None for each recipe's own.
        bits: of codes.
        group_size: inputs that share a scale; None for whole rows, as the published table has it.
        ours: whether rows that the published table does not have are added.
        rows: names of rows to make, part of a name is enough; all if empty.
        tasks: questions to answer besides, as in `answer`; each model's mean of a set is among the columns.
        questions: of each task at most.
        changes: further dotted settings to replace in every recipe.
    """

    texts: tuple[str, ...] = ("wikitext2",)
    windows: int | None = None
    length: int | None = None
    dtype: str | None = None
    ratio: float | None = None
    pattern: str | None = None
    bits: int = 4
    group_size: int | None = None
    ours: bool = True
    rows: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    questions: int | None = None
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check them."""
        if not self.texts:
            raise FeatherweightError("there is nothing to measure on", expected="one text or more", fix="--data heldout")
        if self.questions is not None and not self.tasks:
            raise FeatherweightError(
                "there are no questions to limit", found="--questions", expected="--task", fix="--task pqp"
            )
        if self.pattern is not None and not Pattern.parse(self.pattern, self.ratio).of:
            raise FeatherweightError(
                "the rows have patterns of their own", found=f"pattern {self.pattern}", expected="N:M, such as 2:4",
                fix="leave --pattern out",
            )  # fmt: skip


def pqp_table(
    sources: Sequence[ModelSource],
    output: Path,
    settings: Settings,
    *,
    device: str | None = None,
    offline: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[list[Sheet], list[Path]]:
    """One sheet per text and one of tasks, models as columns, and their files; finished cells are kept, so that the same call goes on.

    Args:
        report: called with a line per step.

    Returns:
        The sheets, and the files written.

    Raises:
        FeatherweightError: unknown settings or texts, or a model the recipes do not suit.
    """
    require_models(sources)
    cells, lines = Cells(output / CELLS), [Line("dense", None), *_lines(settings)]
    api.check_texts(settings.texts, offline=offline)
    if settings.tasks:
        find_tasks(settings.tasks, offline=offline)
    place = str(pick_device(device))
    shops = [Workshop(source, output, cells, place, offline, report) for source in sources]
    for shop in shops:
        for line in lines[1:]:
            assert line.recipe is not None
            shop.plan(line.recipe)  # what does not suit a model is refused before any work
    found = {(shop.source.name, line.name): _measured(shop, line, settings) for shop in shops for line in lines}
    names, rows = [shop.source.name for shop in shops], [line.name for line in lines]
    notes = _left_out(settings)
    sheets = [text_sheet(text, names, rows, BASELINES, found, notes) for text in settings.texts]
    if settings.tasks:
        sheets.append(tasks_sheet(names, rows, found, notes))
    sheets = [replace(sheet, name=NAME if index == 0 else f"{NAME}-{index + 1}") for index, sheet in enumerate(sheets)]
    return sheets, write_sheets(output, NAME, sheets)


def _lines(settings: Settings) -> list[Line]:
    rows = {**BASELINES, **PQP_ROWS, **(OURS if settings.ours else {})}
    for part in settings.rows:
        if not any(part.lower() in name.lower() for name in rows):
            raise FeatherweightError("the table has no such row", found=part, expected=", ".join(rows))
    chosen = [name for name in rows if not settings.rows or any(part.lower() in name.lower() for part in settings.rows)]
    lines = [Line(name, _recipe(rows[name], settings)) for name in chosen if not (settings.pattern and _learns(rows[name]))]
    if not lines:
        raise FeatherweightError(
            "no row that was chosen can have this pattern", found=f"{settings.pattern}, {', '.join(chosen)}",
            expected="rows that do not learn how much each output loses", fix="--rows sparsegpt,wanda,ria,bawa,jsq,alps",
        )  # fmt: skip
    return lines


def _learns(recipe: str) -> bool:
    """Whether a shipped recipe learns how much rows lose."""
    return any(step.method in LEARNED or step.settings.get("ratios") == "learned" for step in load_recipe(recipe).steps)


def _left_out(settings: Settings) -> tuple[str, ...]:
    """What to say of rows that are not there."""
    if settings.pattern is None:
        return ()
    names = [name for name, recipe in {**PQP_ROWS, **BASELINES, **(OURS if settings.ours else {})}.items() if _learns(recipe)]
    why = f"they learn how much each output or linear loses, and {settings.pattern} takes as much of every output"
    return (f"Pattern {settings.pattern}, masks in their smallest form. Not there: {', '.join(names)}; {why}.",)


def _recipe(name: str, settings: Settings) -> Recipe:
    """The shipped recipe with the table's ratio, bits and groups in the steps that have them, and the user's changes."""
    recipe = load_recipe(name)
    wanted: dict[str, Any] = {"bits": settings.bits, "group_size": settings.group_size}
    wanted["ratio"] = Pattern.parse(settings.pattern or "layer", settings.ratio).ratio
    changes = {
        f"steps.{index}.{key}": value
        for index, step in enumerate(recipe.steps)
        for key, value in wanted.items()
        if key in step.settings
    }
    if settings.pattern:
        changes |= {f"steps.{i}.pattern": settings.pattern for i, step in enumerate(recipe.steps) if "ratio" in step.settings}
    return recipe.with_changes({**changes, **settings.changes})


def _measured(shop: Workshop, line: Line, settings: Settings) -> Record:
    """Sizes and seconds, on every text perplexity and divergence, and what the tasks say."""

    def run(folder: Path, text: str) -> dict[str, Any]:
        against = None if line.recipe is None else shop.source.folder
        found = api.evaluate(
            folder, text, against=against, windows=settings.windows, length=settings.length, device=shop.device,
            dtype=settings.dtype, offline=shop.offline,
        )  # fmt: skip
        return {measurement.name: measurement.as_dict() for measurement in found}

    def answer(folder: Path) -> dict[str, Any]:
        found = api.answer(
            folder, settings.tasks, limit=settings.questions, device=shop.device, dtype=settings.dtype, offline=shop.offline
        )
        return {task_name(measurement): measurement.as_dict() for measurement in found}

    asked = {"windows": settings.windows, "length": settings.length, "dtype": settings.dtype}
    texts = {
        text: shop.get(line, Measure("quality", {**asked, "text": text}, lambda folder, text=text: run(folder, text)))  # type: ignore[misc]
        for text in settings.texts
    }
    size = shop.size(line)
    if not settings.tasks:
        return {**size, "texts": texts}
    of_tasks = {"tasks": list(settings.tasks), "limit": settings.questions, "dtype": settings.dtype}
    return {**size, "texts": texts, "tasks": shop.get(line, Measure("tasks", of_tasks, answer))}
