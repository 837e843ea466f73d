"""The page of a comparison: the plot of quality against size, the table, how the numbers were taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from featherweight.packed.files import write_text
from featherweight.reports.compare import Entry, comparison_rows
from featherweight.reports.html import render
from featherweight.reports.scatter import interactive, legend, picture


def write_page(
    path: Path,
    title: str,
    entries: Sequence[Entry],
    *,
    prompt: str = "",
    left_out: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """One self-contained HTML page, which needs no network and, without script, shows a picture in the plot's place.

    Args:
        prompt: behind which the entries wrote their texts.
        left_out: recipes that are not shown, and why.
        notes: further lines on how the numbers were taken.

    Raises:
        FeatherweightError: numbers of one column were taken in different ways.
    """
    headings, rows = comparison_rows(entries)
    protocols = {m.protocol.describe(): None for entry in entries for m in entry.measurements.values()}
    values = {
        "title": title,
        "plot": interactive(entries),
        "picture": picture(entries),
        "legend": legend(entries),
        "headings": headings,
        "rows": rows,
        "front": any(entry.on_front for entry in entries),
        "protocols": [*protocols, *notes],
        "left_out": left_out or {},
        "prompt": prompt,
        "entries": entries,
    }
    write_text(path, render("compare.html", values))
