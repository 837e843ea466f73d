"""PQP's table: pruning and 4-bit rounding together, by every method of its comparison, on one calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featherweight import api
from featherweight.engine.compress import pick_device
from featherweight.errors import FeatherweightError
from featherweight.evaluation.protocol import Measurement
from featherweight.models.source import ModelSource
from featherweight.planning.recipe import Recipe, load_recipe
from featherweight.reports.sheets import Column, Record, Sheet, write_sheets
from featherweight.search.cells import Cells
from featherweight.search.tables.frame import Line, Measure, Workshop, require_models

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
OURS = {"learned, repaired": "learned-50-4bit", "ALPS": "alps-50-4bit"}


@dataclass(frozen=True)
class Settings:
    """What the table is made with.

    Attributes:
        texts: to measure on, as in `evaluate`.
        windows, length: of each text; all windows, and the protocol's length, if None.
        dtype: of activations in measuring; None is float32 on a CPU and the checkpoint's elsewhere.
        ratio: fraction dropped.
        bits: of codes.
        group_size: inputs that share a scale; None for whole rows, as the published table has it.
        ours: whether rows that the published table does not have are added.
        rows: names of rows to make, part of a name is enough; all if empty.
        changes: further dotted settings to replace in every recipe.
    """

    texts: tuple[str, ...] = ("wikitext2",)
    windows: int | None = None
    length: int | None = None
    dtype: str | None = None
    ratio: float = 0.5
    bits: int = 4
    group_size: int | None = None
    ours: bool = True
    rows: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check them."""
        if not self.texts:
            raise FeatherweightError("there is nothing to measure on", expected="one text or more", fix="--data heldout")


def pqp_table(
    sources: Sequence[ModelSource],
    output: Path,
    settings: Settings,
    *,
    device: str | None = None,
    offline: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[list[Sheet], list[Path]]:
    """One sheet per text, models as columns, and their files; finished cells are kept, so that the same call goes on.

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
    place = str(pick_device(device))
    shops = [Workshop(source, output, cells, place, offline, report) for source in sources]
    for shop in shops:
        for line in lines[1:]:
            assert line.recipe is not None
            shop.plan(line.recipe)  # what does not suit a model is refused before any work
    found = {(shop.source.name, line.name): _measured(shop, line, settings) for shop in shops for line in lines}
    names = [shop.source.name for shop in shops]
    sheets = [_sheet(index, text, names, [line.name for line in lines], found) for index, text in enumerate(settings.texts)]
    return sheets, write_sheets(output, NAME, sheets)


def _lines(settings: Settings) -> list[Line]:
    rows = {**BASELINES, **PQP_ROWS, **(OURS if settings.ours else {})}
    for part in settings.rows:
        if not any(part.lower() in name.lower() for name in rows):
            raise FeatherweightError("the table has no such row", found=part, expected=", ".join(rows))
    chosen = [name for name in rows if not settings.rows or any(part.lower() in name.lower() for part in settings.rows)]
    return [Line(name, _recipe(rows[name], settings)) for name in chosen]


def _recipe(name: str, settings: Settings) -> Recipe:
    """The shipped recipe with the table's ratio, bits and groups in the steps that have them, and the user's changes."""
    recipe = load_recipe(name)
    wanted = {"ratio": settings.ratio, "bits": settings.bits, "group_size": settings.group_size}
    changes = {
        f"steps.{index}.{key}": value
        for index, step in enumerate(recipe.steps)
        for key, value in wanted.items()
        if key in step.settings
    }
    return recipe.with_changes({**changes, **settings.changes})


def _measured(shop: Workshop, line: Line, settings: Settings) -> Record:
    """Sizes, and on every text perplexity and divergence."""

    def run(folder: Path, text: str) -> dict[str, Any]:
        against = None if line.recipe is None else shop.source.folder
        found = api.evaluate(
            folder, text, against=against, windows=settings.windows, length=settings.length, device=shop.device,
            dtype=settings.dtype, offline=shop.offline,
        )  # fmt: skip
        return {measurement.name: measurement.as_dict() for measurement in found}

    asked = {"windows": settings.windows, "length": settings.length, "dtype": settings.dtype}
    texts = {
        text: shop.get(line, Measure("quality", {**asked, "text": text}, lambda folder, text=text: run(folder, text)))  # type: ignore[misc]
        for text in settings.texts
    }
    return {**shop.size(line), "texts": texts}


def _sheet(index: int, text: str, models: list[str], rows: list[str], found: dict[tuple[str, str], Record]) -> Sheet:
    records = []
    for row in rows:
        columns: Record = {}
        for model in models:
            cell = found[model, row]
            quality = cell["texts"][text]
            best = min((_perplexity(found[model, name], text) for name in BASELINES if name in rows), default=None)
            compared = best is not None and row not in BASELINES and row != "dense"
            change = _perplexity(cell, text) / best - 1 if compared and best else None
            columns[model] = {**{key: cell[key] for key in cell if key != "texts"}, **quality, "change": change}
        records.append({"row": row, **columns})
    shown = [Column("method", lambda record: str(record["row"]), words=True)]
    for model in models:
        shown.append(Column(model, lambda record, model=model: _shown(record[model])))  # type: ignore[misc]
        shown.append(Column("KL", lambda record, model=model: _divergence(record[model])))  # type: ignore[misc]
        shown.append(Column("bits", lambda record, model=model: f"{record[model]['bits_per_weight']:.3f}"))  # type: ignore[misc]
    protocol = Measurement.from_dict(records[0][models[0]]["perplexity"]).protocol.describe()
    notes = (
        f"Perplexity, {protocol}; ↓ and ↑: against the column's best of {', '.join(BASELINES)}. KL to the dense model, nats a token.",
        "Bits: everything stored, masks and scales too, over the compressed weights. The dense row's are the checkpoint's.",
    )
    return Sheet(
        NAME if index == 0 else f"{NAME}-{index + 1}", f"Pruned and rounded: {text}", tuple(shown), tuple(records), notes
    )


def _perplexity(cell: Record, text: str) -> float:
    return float(cell["texts"][text]["perplexity"]["value"])


def _shown(cell: Record) -> str:
    change = cell["change"]
    arrow = "" if change is None else f" ({'↓' if change < 0 else '↑'}{abs(change):.1%})"
    found = Measurement.from_dict(cell["perplexity"])
    return f"{found.value:.2f} ± {found.stderr or 0:.2f}{arrow}"


def _divergence(cell: Record) -> str:
    return f"{cell['kl']['value']:.4f} ± {cell['kl']['stderr'] or 0:.4f}" if "kl" in cell else ""
