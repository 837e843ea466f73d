"""Several compressed models of one dense model: quality against real bytes, as a table, a page and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
        nominal_bits: per compressed weight as its paper counts, where that differs.
        on_front: whether no other model is smaller and no worse.
    """

    name: str
    bits: float
    model_bits: float
    file_bytes: int
    measurements: dict[str, Measurement]
    text: str = ""
    nominal_bits: float | None = None
    on_front: bool = False

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Entry:
        """The inverse of `as_dict`."""
        measured = [Measurement.from_dict(each) for each in stored["measurements"]]
        return cls(
            stored["name"],
            stored["bits_per_weight"],
            stored["model_bits_per_weight"],
            stored["file_bytes"],
            {measurement.name: measurement for measurement in measured},
            stored["text"],
            stored["nominal_bits"],
            stored["on_front"],
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "name": self.name,
            "bits_per_weight": self.bits,
            "model_bits_per_weight": self.model_bits,
            "file_bytes": self.file_bytes,
            "measurements": [measurement.as_dict() for measurement in self.measurements.values()],
            "text": self.text,
            "nominal_bits": self.nominal_bits,
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


def comparison_table(entries: list[Entry]) -> Table:
    """One line per model."""
    require_one_protocol(entries)
    table = Table(box=None, header_style="bold")
    table.add_column("recipe")
    for column in ("bits/weight", "whole model", "file bytes", "perplexity", "KL (nats/token)", "same top token"):
        table.add_column(column, justify="right")
    for entry in entries:
        table.add_row(
            f"{entry.name} *" if entry.on_front else entry.name,
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
    figure = graph.Figure(list(_traces(entries)))
    figure.update_layout(
        xaxis_title="bytes of the weight files", yaxis_title="KL divergence from dense, nats per token", yaxis_type="log",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font_color="#888", height=520,
        margin={"l": 60, "r": 10, "t": 30}, legend={"orientation": "h", "y": -0.2},
    )  # fmt: skip
    figure.update_xaxes(gridcolor="#8884")
    figure.update_yaxes(gridcolor="#8884")
    plot = figure.to_html(full_html=False, include_plotlyjs=True)
    rows = [
        {
            "name": f"{entry.name} *" if entry.on_front else entry.name,
            "nominal": "" if entry.nominal_bits is None else f"{entry.nominal_bits:.3f}",
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
    front = any(entry.on_front for entry in entries)
    text = page.render(title=title, plot=plot, rows=rows, prompt=prompt, protocols=protocols, front=front)
    path.write_text(text, encoding="utf-8")


def _traces(entries: list[Entry]) -> Iterator[Any]:
    """The front as a line, and every model as a point with its error."""
    import plotly.graph_objects as graph

    measured = [entry for entry in entries if "kl" in entry.measurements]
    front = sorted((entry for entry in measured if entry.on_front), key=lambda entry: entry.file_bytes)
    for name, part, mode in (("front: nothing is smaller and better", front, "lines"), ("models", measured, "markers+text")):
        if part:
            yield graph.Scatter(
                name=name,
                x=[entry.file_bytes for entry in part],
                y=[entry.measurements["kl"].value for entry in part],
                error_y={"array": [entry.measurements["kl"].stderr or 0 for entry in part], "visible": mode != "lines"},
                text=[entry.name for entry in part],
                hovertext=[f"{entry.name}<br>{entry.bits:.3f} bits, {entry.file_bytes:,} bytes" for entry in part],
                hoverinfo="text+y",
                mode=mode,
                textposition="top center",
                textfont={"size": 10},
                marker={"size": 9},
            )


def _shown(entry: Entry, name: str, form: str) -> str:
    measurement = entry.measurements.get(name)
    return "" if measurement is None else format(measurement.value, form)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{{ title }}</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap }
th:first-child, td:first-child { text-align: left } blockquote { border-left: 3px solid #ccc; margin: .5rem 0; padding-left: 1rem }
</style></head><body>
<h1>{{ title }}</h1>
{{ plot|safe }}
<div class="wide"><table><tr><th>recipe</th><th>nominal bits</th>
<th>bits per weight</th><th>whole model</th><th>file bytes</th><th>perplexity</th><th>KL</th>
<th>same top token</th></tr>
{% for row in rows %}<tr><td>{{ row.name }}</td><td>{{ row.nominal }}</td>
<td>{{ row.bits }}</td><td>{{ row.model_bits }}</td><td>{{ row.bytes }}</td>
<td>{{ row.perplexity }}</td><td>{{ row.kl }}</td><td>{{ row.agreement }}</td></tr>
{% endfor %}</table></div>
{% if front %}<p>* no other model here is smaller and no worse.</p>{% endif %}
<p>How the numbers were taken:</p><ul>{% for protocol in protocols %}<li>{{ protocol }}</li>{% endfor %}</ul>
{% if prompt %}<h2>&ldquo;{{ prompt }}&rdquo;</h2>
{% for row in rows %}{% if row.text %}<h3>{{ row.name }}</h3><blockquote>{{ row.text }}</blockquote>{% endif %}{% endfor %}{% endif %}
</body></html>
"""
