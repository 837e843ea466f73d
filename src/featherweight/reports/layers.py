"""Errors of single linears by iteration: one plot a linear, one line a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featherweight.packed.files import write_text
from featherweight.reports.html import render
from featherweight.reports.scatter import COLOURS, SHAPES

#: An `Attempt` as a dictionary: linear, candidate, bits, error, path, seconds.
Attempt = Mapping[str, Any]

HEADINGS = ("linear", "chain", "bits", "relative error", "best first reached", "seconds")


def layer_rows(attempts: Sequence[Attempt]) -> list[list[str]]:
    """Cells below `HEADINGS`."""
    return [
        [
            each["linear"], each["candidate"], f"{each['bits']:.3f}", f"{each['error']:.5f}",
            f"{each['path'].index(min(each['path'])) + 1} of {len(each['path'])}", f"{each['seconds']:.2f}",
        ]
        for each in attempts
    ]  # fmt: skip


def write_layers_page(path: Path, model: str, conditions: str, attempts: Sequence[Attempt]) -> None:
    """One self-contained page: a table, and a plot for each linear."""
    plots = [
        _plot(number, linear, attempts) for number, linear in enumerate(dict.fromkeys(each["linear"] for each in attempts))
    ]
    values = {"title": f"{model}: linears by chain", "conditions": conditions, "plots": plots}
    write_text(path, render("layers.html", {**values, "headings": HEADINGS, "rows": layer_rows(attempts)}))


def _plot(number: int, linear: str, attempts: Sequence[Attempt]) -> str:
    import plotly.graph_objects as graph

    figure = graph.Figure()
    for index, each in enumerate(each for each in attempts if each["linear"] == linear):
        path = list(each["path"])
        figure.add_trace(
            graph.Scatter(
                x=list(range(1, len(path) + 1)), y=path, name=f"{each['candidate']}, {each['bits']:.2f} bits",
                mode="lines+markers" if len(path) > 1 else "markers",
                line={"color": COLOURS[index % len(COLOURS)]}, marker={"symbol": SHAPES[index % len(SHAPES)], "size": 7},
            )
        )  # fmt: skip
    figure.update_layout(
        title=linear, xaxis_title="iteration", yaxis_title="tr(E H Eᵀ) / tr(W H Wᵀ)", yaxis_type="log", height=420,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"family": "system-ui, sans-serif"},
        margin={"l": 64, "r": 12, "t": 44, "b": 48}, legend={"orientation": "h", "y": -0.2},
    )  # fmt: skip
    figure.update_xaxes(gridcolor="#8883", dtick=1)
    figure.update_yaxes(gridcolor="#8883")
    settings = {"displaylogo": False, "displayModeBar": False, "responsive": True}
    page: str = figure.to_html(full_html=False, include_plotlyjs=number == 0, config=settings)
    return page
