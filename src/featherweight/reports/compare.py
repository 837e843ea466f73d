"""Several compressed models of one dense model: quality against real bytes, as a table, a page and JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from featherweight.evaluation.protocol import Measurement, MeasurementTable


@dataclass(frozen=True)
class Entry:
    """One model of a comparison.

    Attributes:
        name: recipe, or "dense".
        bits: stored bits per compressed weight.
        model_bits: stored bits per weight of the whole model.
        file_bytes: of the weight files.
        measurements: by name: perplexity, kl, top1_agreement.
        text: a continuation it wrote.
    """

    name: str
    bits: float
    model_bits: float
    file_bytes: int
    measurements: dict[str, Measurement]
    text: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "name": self.name,
            "bits_per_weight": self.bits,
            "model_bits_per_weight": self.model_bits,
            "file_bytes": self.file_bytes,
            "measurements": [measurement.as_dict() for measurement in self.measurements.values()],
            "text": self.text,
        }


def require_one_protocol(entries: Iterable[Entry]) -> None:
    """Numbers of one column must have been taken in one way.

    Raises:
        FeatherweightError: naming the fields in which two protocols differ.
    """
    table = MeasurementTable()
    for entry in entries:
        table.add(entry.name, entry.measurements.values())


def comparison_table(entries: list[Entry]) -> Table:
    """One line per model."""
    require_one_protocol(entries)
    table = Table(box=None, header_style="bold")
    table.add_column("recipe")
    for column in ("bits/weight", "whole model", "file bytes", "perplexity", "KL (nats/token)", "same top token"):
        table.add_column(column, justify="right")
    for entry in entries:
        table.add_row(
            entry.name,
            f"{entry.bits:.3f}",
            f"{entry.model_bits:.3f}",
            f"{entry.file_bytes:,}",
            _shown(entry, "perplexity", ".3f"),
            _shown(entry, "kl", ".4f"),
            _shown(entry, "top1_agreement", ".1%"),
        )
    return table


def write_page(path: Path, title: str, entries: list[Entry], prompt: str = "") -> None:
    """One self-contained HTML page: the plot of quality against real bytes, the table, the texts; no network needed."""
    import plotly.graph_objects as graph
    from jinja2 import Environment, StrictUndefined

    require_one_protocol(entries)
    measured = [entry for entry in entries if "kl" in entry.measurements]
    figure = graph.Figure(
        graph.Scatter(
            x=[entry.file_bytes for entry in measured],
            y=[entry.measurements["kl"].value for entry in measured],
            error_y={"array": [entry.measurements["kl"].stderr or 0 for entry in measured]},
            text=[f"{entry.name}<br>{entry.bits:.2f} bits" for entry in measured],
            mode="markers+text",
            textposition="top center",
            marker={"size": 11},
        )
    )
    figure.update_layout(
        xaxis_title="bytes of the weight files", yaxis_title="KL divergence from dense, nats per token", yaxis_type="log",
        template="plotly_white", height=520,
    )  # fmt: skip
    plot = figure.to_html(full_html=False, include_plotlyjs=True)
    rows = [
        {
            "name": entry.name,
            "bits": f"{entry.bits:.3f}",
            "model_bits": f"{entry.model_bits:.3f}",
            "bytes": f"{entry.file_bytes:,}",
            "perplexity": _shown(entry, "perplexity", ".3f"),
            "kl": _shown(entry, "kl", ".4f"),
            "agreement": _shown(entry, "top1_agreement", ".1%"),
            "text": entry.text,
        }
        for entry in entries
    ]
    protocols = sorted({m.protocol.describe() for entry in entries for m in entry.measurements.values()})
    page = Environment(undefined=StrictUndefined, autoescape=True).from_string(_PAGE)
    path.write_text(page.render(title=title, plot=plot, rows=rows, prompt=prompt, protocols=protocols), encoding="utf-8")


def _shown(entry: Entry, name: str, form: str) -> str:
    measurement = entry.measurements.get(name)
    return "" if measurement is None else format(measurement.value, form)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% } th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } blockquote { border-left: 3px solid #ccc; margin: .5rem 0; padding-left: 1rem }
</style></head><body>
<h1>{{ title }}</h1>
{{ plot|safe }}
<table><tr><th>recipe</th><th>bits per weight</th><th>whole model</th><th>file bytes</th><th>perplexity</th><th>KL</th>
<th>same top token</th></tr>
{% for row in rows %}<tr><td>{{ row.name }}</td><td>{{ row.bits }}</td><td>{{ row.model_bits }}</td><td>{{ row.bytes }}</td>
<td>{{ row.perplexity }}</td><td>{{ row.kl }}</td><td>{{ row.agreement }}</td></tr>
{% endfor %}</table>
<p>How the numbers were taken:</p><ul>{% for protocol in protocols %}<li>{{ protocol }}</li>{% endfor %}</ul>
{% if prompt %}<h2>&ldquo;{{ prompt }}&rdquo;</h2>
{% for row in rows %}{% if row.text %}<h3>{{ row.name }}</h3><blockquote>{{ row.text }}</blockquote>{% endif %}{% endfor %}{% endif %}
</body></html>
"""
