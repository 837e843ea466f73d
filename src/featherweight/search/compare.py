"""Many recipes on one model, measured on the same windows; every finished cell is kept, so that a stopped comparison goes on."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featherweight import api
from featherweight.errors import FeatherweightError
from featherweight.evaluation.protocol import Measurement
from featherweight.models.source import ModelSource
from featherweight.planning.plan import Plan
from featherweight.planning.recipe import shipped_recipes
from featherweight.reports.compare import Entry, require_one_protocol, write_page

CELLS, PAGE, TABLE = "cells.json", "index.html", "table.csv"


def compare(
    source: ModelSource,
    recipes: Sequence[str],
    output: Path,
    *,
    data: str = "heldout",
    length: int | None = None,
    windows: int | None = None,
    changes: dict[str, Any] | None = None,
    device: str | None = None,
    offline: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[list[Entry], dict[str, str]]:
    """Compress a model by every recipe, score each against it, and write a page and a table.

    Args:
        source: the dense model.
        recipes: shipped names or YAML files; none for all that are shipped.
        output: folder: one compressed model per recipe, `cells.json`, `table.csv`, `index.html`.
        data, length, windows: as in `evaluate`.
        changes: dotted settings to replace in every recipe.
        report: called with a line per step.

    Returns:
        One entry per model, the dense one first, and the reasons of the recipes that do not suit this model.

    Raises:
        FeatherweightError: no recipe suits the model, or an unknown recipe or text.
    """
    api.check_texts([data], offline=offline)
    plans, refused = _plans(source, recipes or list(shipped_recipes()), changes or {}, offline)
    for name, reason in refused.items():
        report(f"{name} left out: {reason}")
    cells = _Cells(output / CELLS)
    protocol = {"data": data, "length": length, "windows": windows, "device": device}

    trial = _Trial(source, output, protocol, offline, report)
    fingerprint = next(iter(plans.values())).fingerprint
    first = next(iter(plans.values()))
    entries = [cells.get({"model": fingerprint, **protocol}, lambda: trial.dense(first))]
    for name, plan in plans.items():
        cell = {"model": fingerprint, "recipe": plan.recipe.as_dict(), **protocol}
        entries.append(cells.get(cell, lambda name=name, plan=plan: trial.compressed(name, plan)))  # type: ignore[misc]
    require_one_protocol(entries)
    entries = mark_front(entries)
    write_page(output / PAGE, f"{source.name}, made light", entries)
    write_csv(output / TABLE, entries)
    return entries, refused


@dataclass(frozen=True)
class _Trial:
    """How models are made and measured.

    Attributes:
        source: the dense model.
        output: folder of the comparison.
        protocol: data, length, windows and device of every measurement.
        offline, report: as in `compare`.
    """

    source: ModelSource
    output: Path
    protocol: Mapping[str, Any]
    offline: bool
    report: Callable[[str], None]

    def dense(self, plan: Plan) -> Entry:
        """The model itself; any plan knows its size."""
        self.report("measuring the dense model")
        size = sum(path.stat().st_size for path in self.source.folder.glob("*.safetensors"))
        bits = 8 * plan.totals.original_bytes / sum(row.weights for row in plan.rows)
        return Entry("dense", bits, bits, size, self._measured(self.source.folder, None))

    def compressed(self, name: str, plan: Plan) -> Entry:
        """A finished output, made now or before."""
        self.report(f"compressing by {name}")
        device = self.protocol["device"]
        result = api.compress(plan, self.output / Path(name).stem, device=device, offline=self.offline)
        measured = self._measured(result.folder, self.source.folder)
        kept = {key: value for key, value in measured.items() if key in _COLUMNS}
        totals = result.totals
        return Entry(name, totals.linear_bits, totals.model_bits, totals.file_bytes, kept, nominal_bits=totals.nominal_bits)

    def _measured(self, folder: Path, against: Path | None) -> dict[str, Measurement]:
        found = api.evaluate(folder, against=against, offline=self.offline, **self.protocol)
        return {measurement.name: measurement for measurement in found}


_COLUMNS = ("perplexity", "kl", "top1_agreement")


def mark_front(entries: list[Entry]) -> list[Entry]:
    """The same entries; `on_front` where no other has fewer bytes and no larger KL, or as many bytes and a smaller one."""

    def beaten(entry: Entry) -> bool:
        mine = (entry.file_bytes, entry.measurements["kl"].value)
        others = [(other.file_bytes, other.measurements["kl"].value) for other in entries if "kl" in other.measurements]
        return any(theirs != mine and theirs[0] <= mine[0] and theirs[1] <= mine[1] for theirs in others)

    return [replace(entry, on_front="kl" in entry.measurements and not beaten(entry)) for entry in entries]


def write_csv(path: Path, entries: Sequence[Entry]) -> None:
    """One line per model."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        columns = [f"{name}{part}" for name in _COLUMNS for part in ("", "_stderr")]
        table.writerow(["recipe", "nominal_bits", "bits", "model_bits", "file_bytes", *columns, "on_front"])
        for entry in entries:
            found = [entry.measurements.get(name) for name in _COLUMNS]
            numbers = [value for each in found for value in ((each.value, each.stderr) if each else ("", ""))]
            nominal = "" if entry.nominal_bits is None else entry.nominal_bits
            table.writerow([entry.name, nominal, entry.bits, entry.model_bits, entry.file_bytes, *numbers, entry.on_front])


class _Cells:
    """Finished entries by what they were made from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def get(self, made_from: dict[str, Any], make: Callable[[], Entry]) -> Entry:
        """The entry, made now unless it is known; kept before it is returned."""
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
        if key in self.known:
            return Entry.from_dict(self.known[key])
        entry = make()
        self.known[key] = entry.as_dict()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
        partial.replace(self.path)
        return entry


def _plans(
    source: ModelSource, recipes: Sequence[str], changes: dict[str, Any], offline: bool
) -> tuple[dict[str, Plan], dict[str, str]]:
    """A plan per recipe, and why others cannot be planned on this model. A name that is no recipe is an error."""
    plans: dict[str, Plan] = {}
    refused: dict[str, str] = {}
    shipped = shipped_recipes()
    for name in recipes:
        try:
            plans[name] = api.plan(source, name, changes=changes, offline=offline)
        except FeatherweightError as problem:
            if name not in shipped:
                raise
            refused[name] = str(problem).splitlines()[0]
    if not plans:
        raise FeatherweightError(
            "no recipe suits this model", found="; ".join(f"{name}: {reason}" for name, reason in refused.items())
        )
    return plans, refused
