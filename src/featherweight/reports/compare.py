"""Several compressed models of one dense model: the front, the table for a terminal, the table for a spreadsheet."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from featherweight.evaluation.protocol import Measurement, MeasurementTable
from featherweight.reports.tables import human_bytes, with_error


@dataclass(frozen=True)
class Entry:
    """One model of a comparison.

    Attributes:
        name: recipe, or "dense".
        bits: stored bits per compressed weight.
        model_bits: stored bits per weight of the whole model.
        file_bytes: of the weight files.
        measurements: by name: perplexity, kl, top1_agreement, accuracy.
        text: a continuation it wrote.
        nominal_bits: per compressed weight as its paper counts, where that differs.
        on_front: whether no other model is smaller and no worse.
        methods: of its recipe, in order; empty for the dense model.
        seconds: that compressing took.
        tokens_per_second: of decoding.
        peak_bytes: most memory that decoding took on an accelerator.
    """

    name: str
    bits: float
    model_bits: float
    file_bytes: int
    measurements: dict[str, Measurement]
    text: str = ""
    nominal_bits: float | None = None
    on_front: bool = False
    methods: tuple[str, ...] = ()
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak_bytes: int | None = None

    @property
    def kl(self) -> float | None:
        """The KL divergence from the dense model, None where it was not measured or is no number."""
        value = self.measurements["kl"].value if "kl" in self.measurements else math.nan
        return value if math.isfinite(value) else None

    @property
    def family(self) -> str:
        """The methods in words, each once: `magnitude + rtn`."""
        return " + ".join(dict.fromkeys(self.methods)) or "dense"

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "name": self.name,
            "methods": list(self.methods),
            "nominal_bits": self.nominal_bits,
            "bits_per_weight": self.bits,
            "model_bits_per_weight": self.model_bits,
            "file_bytes": self.file_bytes,
            "measurements": [measurement.as_dict() for measurement in self.measurements.values()],
            "tokens_per_second": self.tokens_per_second,
            "peak_bytes": self.peak_bytes,
            "seconds": self.seconds,
            "text": self.text,
            "on_front": self.on_front,
        }


def require_one_protocol(entries: Iterable[Entry]) -> None:
    """Numbers of one column must have been taken in one way.

    Raises:
        FeatherweightError: naming the fields in which two protocols differ.
    """
    table = MeasurementTable()
    for entry in entries:
        table.add(entry.name, entry.measurements.values())


def mark_front(entries: Sequence[Entry]) -> list[Entry]:
    """The same entries, `on_front` where `front` holds them by their bytes."""
    best = front(entries, lambda entry: entry.file_bytes)
    return [replace(entry, on_front=entry in best) for entry in entries]


def front(entries: Sequence[Entry], size: Callable[[Entry], float]) -> list[Entry]:
    """Those with a KL divergence of which no other is smaller and no worse, or as small and better; by size."""
    points = [(size(entry), entry.kl, entry) for entry in entries if entry.kl is not None]

    def beaten(mine: tuple[float, float, Entry]) -> bool:
        return any(other[:2] != mine[:2] and other[0] <= mine[0] and other[1] <= mine[1] for other in points)

    return [point[2] for point in sorted(points, key=lambda point: point[:2]) if not beaten(point)]


#: Columns of a measurement: its heading, and its form where no error rounds it.
_MEASURED = {
    "perplexity": ("perplexity", ".3f"),
    "kl": ("KL, nats/token", "#.3g"),
    "top1_agreement": ("same top token", ".1%"),
    "accuracy": ("accuracy", ".1%"),
}


def comparison_rows(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells in words; a column that no entry fills is left out, errors stand behind their number."""
    require_one_protocol(entries)
    columns: dict[str, list[str]] = {
        "recipe": [f"{entry.name} *" if entry.on_front else entry.name for entry in entries],
        "nominal": [_number(entry.nominal_bits, ".3f") for entry in entries],
        "bits": [f"{entry.bits:.3f}" for entry in entries],
        "model bits": [f"{entry.model_bits:.3f}" for entry in entries],
        "file bytes": [f"{entry.file_bytes:,}" for entry in entries],
    }
    for name, (heading, form) in _MEASURED.items():
        columns[heading] = [_measured(entry.measurements.get(name), form) for entry in entries]
    columns["tokens/s"] = [_number(entry.tokens_per_second, ".1f") for entry in entries]
    columns["peak"] = ["" if entry.peak_bytes is None else human_bytes(entry.peak_bytes) for entry in entries]
    columns["seconds"] = [_number(entry.seconds, ".1f") for entry in entries]
    filled = {heading: cells for heading, cells in columns.items() if any(cells)}
    return list(filled), [list(row) for row in zip(*filled.values(), strict=True)]


def comparison_table(entries: Sequence[Entry]) -> Table:
    """One line per model."""
    headings, rows = comparison_rows(entries)
    table = Table(box=None, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "recipe" else "right", no_wrap=heading == "recipe")
    for row in rows:
        table.add_row(*row)
    return table


def write_csv(path: Path, entries: Sequence[Entry]) -> None:
    """One line per model, every number in full."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        columns = [f"{name}{part}" for name in _MEASURED for part in ("", "_stderr")]
        head = ["recipe", "methods", "nominal_bits", "bits", "model_bits", "file_bytes"]
        table.writerow([*head, *columns, "tokens_per_second", "peak_bytes", "seconds", "on_front"])
        for entry in entries:
            found = [entry.measurements.get(name) for name in _MEASURED]
            numbers = [value for each in found for value in ((each.value, each.stderr) if each else (None, None))]
            sizes = [entry.nominal_bits, entry.bits, entry.model_bits, entry.file_bytes]
            rest = [entry.tokens_per_second, entry.peak_bytes, entry.seconds, entry.on_front]
            cells = [entry.name, "+".join(entry.methods), *sizes, *numbers, *rest]
            table.writerow(["" if cell is None else cell for cell in cells])


def _measured(measurement: Measurement | None, form: str) -> str:
    return "" if measurement is None else with_error(measurement.value, measurement.stderr, form)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
