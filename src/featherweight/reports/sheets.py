"""Tables as data: raw records for JSON and CSV, shown columns for Markdown and the terminal."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from featherweight.packed.files import write_text

Record = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column: its title, what it shows of a record, and whether it is words, which stand left."""

    title: str
    shown: Callable[[Record], str]
    words: bool = False


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        name: of its CSV file.
        title: above it.
        columns: as shown.
        records: one per row; plain values, nested as they were measured.
        notes: below it: how the numbers were taken.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"name": self.name, "title": self.title, "rows": list(self.records), "notes": list(self.notes)}

    def cells(self) -> list[list[str]]:
        """Every row as it is shown."""
        return [[column.shown(record) for column in self.columns] for record in self.records]


def markdown(sheet: Sheet) -> str:
    """Heading, table and notes."""
    rule = ["---" if column.words else "---:" for column in sheet.columns]
    lines = [[column.title for column in sheet.columns], rule, *sheet.cells()]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    notes = "".join(f"\n{note}  " for note in sheet.notes)
    return f"## {sheet.title}\n\n{table}\n{notes}\n"


def terminal_table(sheet: Sheet) -> Table:
    """For a console."""
    table = Table(box=None, header_style="bold", title=sheet.title, title_justify="left")
    for column in sheet.columns:
        table.add_column(column.title, justify="left" if column.words else "right")
    for row in sheet.cells():
        table.add_row(*row)
    return table


def write_sheets(folder: Path, name: str, sheets: Sequence[Sheet]) -> list[Path]:
    """`NAME.md` and `NAME.json` with all sheets, and a CSV of raw values for each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.md", folder / f"{name}.json", *(folder / f"{sheet.name}.csv" for sheet in sheets)]
    write_text(paths[0], "\n".join(map(markdown, sheets)))
    write_text(paths[1], json.dumps({"table": name, "sheets": [sheet.as_dict() for sheet in sheets]}, indent=1) + "\n")
    for path, sheet in zip(paths[2:], sheets, strict=True):
        flat = [_flat(record) for record in sheet.records]
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(dict.fromkeys(key for record in flat for key in record)), lineterminator="\n")
            table.writeheader()
            table.writerows(flat)
    return paths


def _flat(record: Record, before: str = "") -> Record:
    """Nested dictionaries as dotted keys; lists as JSON."""
    flat: Record = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[before + key] = json.dumps(value) if isinstance(value, list) else value
    return flat
