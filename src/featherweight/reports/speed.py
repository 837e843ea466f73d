"""What `fw bench` measured: for a terminal, as Markdown, as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from featherweight.errors import FeatherweightError
from featherweight.packed.files import write_text
from featherweight.reports.html import render
from featherweight.reports.tables import human_bytes, wide_console

#: By context or batch; eager, graph and the memory's rate share a colour and differ in their line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = {"eager": ("solid", "-"), "graph": ("dash", "--"), "memory's rate": ("dot", ":")}


def print_speed(model: str, result: Mapping[str, Any]) -> None:
    """The table, how it was taken, and which kernels ran."""
    console = wide_console()
    lines = [f"{model}: {_conditions(result)}"]
    if "timings" in result:
        console.print(lines[0], highlight=False)
        headings, rows = speed_rows(result)
        table = Table(box=None, header_style="bold")
        for heading in headings:
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        lines = []
    else:
        lines += [f"  {name:22}{value}" for name, value in _fastllama(result).items()]
    console.print("\n".join([*lines, *(f"  {line}" for line in notes(result))]), highlight=False)


def speed_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: prefill, decode as transformers runs it, and by a graph where one was recorded."""
    graphs = any(timing["graph"] for timing in result["timings"])
    headings = ["batch", "context", "prefill ms", "decode ms", "20th to 80th", "tokens/s", "of copy rate"]
    headings += ["graph ms", "graph tokens/s", "of copy rate ", "graph of", "graph peak"] if graphs else []
    headings += ["MB a step", "peak", ""]
    rows = []
    for timing in result["timings"]:
        decode, graph = timing["decode"], timing["graph"]
        row = [
            str(timing["batch"]),
            str(timing["context"]),
            f"{1e3 * timing['prefill']['median']:.1f}",
            f"{1e3 * decode['median']:.2f}",
            f"{1e3 * decode['low']:.2f} to {1e3 * decode['high']:.2f}",
            f"{timing['tokens_per_second']:.1f}",
            f"{timing['bandwidth_fraction']:.1%}",
        ]
        if graphs:
            row += [""] * 5 if graph is None else [
                f"{1e3 * graph['median']:.3f}", f"{timing['graph_tokens_per_second']:.1f}",
                f"{timing['graph_bandwidth_fraction']:.1%}", f"{timing['graph_path']} step", human_bytes(timing["graph_peak_bytes"]),
            ]  # fmt: skip
        row += [f"{timing['bytes_per_step'] / 1e6:.1f}", human_bytes(timing["peak_bytes"])]
        rows.append([*row, "waits for launches" if timing["launch_bound"] else ""])
    return headings, rows


def notes(result: Mapping[str, Any]) -> list[str]:
    """Why there is no graph, batch by batch where reasons differ, and the kernel of every storage."""
    reasons: dict[tuple[bool, str], list[str]] = {}
    for timing in result.get("timings", ()):
        if timing["graph_note"]:
            reasons.setdefault((timing["graph"] is None, timing["graph_note"]), []).append(
                f"{timing['batch']}x{timing['context']}"
            )
    lines = []
    for (none, reason), places in reasons.items():
        where = "" if len(places) == len(result["timings"]) else " at " + ", ".join(places)
        lines.append(f"{'no CUDA graph' if none else 'a CUDA graph of another step'}{where}: {reason}")
    for weight in result.get("kernels", ()):
        ran = next(entry for entry in weight["kernels"] if entry["runs"])
        lines.append(f"{weight['storage']}: {ran['kernel']}, {ran['reason']}")
    return lines


def write_markdown(path: Path, model: str, result: Mapping[str, Any]) -> None:
    """The same as a Markdown file."""
    if "timings" in result:
        headings, rows = speed_rows(result)
    else:
        told = _fastllama(result)
        headings, rows = list(told), [list(told.values())]
    lines = [f"# Speed of {model}", "", _conditions(result), "", *markdown_table(headings, rows)]
    lines += ["", *(f"* {line}" for line in notes(result))] if notes(result) else []
    write_text(path, "\n".join(lines) + "\n")


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in [headings, ["---"] * len(headings), *rows]]


def check_plot(path: Path) -> None:
    """Refuse, before anything is measured, a plot that cannot be written.

    Raises:
        FeatherweightError: another ending, or a picture without matplotlib.
    """
    if path.suffix not in (".html", ".png", ".svg"):
        raise FeatherweightError(
            "no such kind of plot", found=path.name, expected=".html, .png or .svg", fix="--plot speed.html"
        )
    if path.suffix != ".html":
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise FeatherweightError(
                "pictures need matplotlib", found="matplotlib is not installed", expected="matplotlib for .png and .svg",
                fix="pip install matplotlib, or --plot speed.html",
            ) from None  # fmt: skip


def write_plot(path: Path, model: str, result: Mapping[str, Any]) -> None:
    """Tokens a second against the batch (or the context, where more of these were measured), with what the memory allows."""
    timings = result["timings"]
    across, apart = "batch", "context"
    if len({timing["context"] for timing in timings}) > len({timing["batch"] for timing in timings}):
        across, apart = apart, across
    curves = list(_curves(timings, across, apart, result["copy_bytes_per_second"]))
    title = f"{model}: tokens a second, {result['device']}, {result['dtype']}"
    if path.suffix == ".html":
        headings, rows = speed_rows(result)
        values = {"title": f"Speed of {model}", "plot": _interactive(curves, across), "conditions": _conditions(result)}
        write_text(path, render("speed.html", {**values, "headings": headings, "rows": rows, "notes": notes(result)}))
    else:
        _picture(path, title, curves, across)


def _curves(
    timings: Sequence[Mapping[str, Any]], across: str, apart: str, rate: float
) -> Iterator[tuple[str, str, str, list[int], list[float]]]:
    """Name, colour, kind, x and y of each curve."""
    for number, value in enumerate(sorted({timing[apart] for timing in timings})):
        part = sorted((timing for timing in timings if timing[apart] == value), key=lambda timing: timing[across])
        found = {
            "eager": [(timing[across], timing["tokens_per_second"]) for timing in part],
            "graph": [(timing[across], timing["graph_tokens_per_second"]) for timing in part if timing["graph"]],
            "memory's rate": [(timing[across], timing["batch"] * rate / timing["bytes_per_step"]) for timing in part],
        }
        for kind, points in found.items():
            if points:
                x, y = zip(*points, strict=True)
                yield f"{apart} {value}, {kind}", COLOURS[number % len(COLOURS)], kind, list(x), list(y)


def _interactive(curves: Sequence[tuple[str, str, str, list[int], list[float]]], across: str) -> str:
    import plotly.graph_objects as graph

    figure = graph.Figure(
        [
            graph.Scatter(
                name=name, x=x, y=y, mode="lines+markers", marker_size=4 if kind == "memory's rate" else 7,
                line={"color": colour, "dash": LINES[kind][0]}, hovertemplate=f"{name}<br>{across} %{{x}}: %{{y:.4g}}<extra></extra>",
            )
            for name, colour, kind, x, y in curves
        ]
    )  # fmt: skip
    ticks = sorted({value for _, _, _, x, _ in curves for value in x})
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", margin={"l": 48, "r": 12, "t": 12, "b": 48}, height=420,
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"}, font={"family": "system-ui, sans-serif"}, showlegend=True,
    )  # fmt: skip
    shown = {"tickvals": ticks, "ticktext": [str(tick) for tick in ticks]}
    figure.update_xaxes(type="log", title=across, gridcolor="#8883", linecolor="#8886", automargin=True, **shown)
    figure.update_yaxes(type="log", gridcolor="#8883", automargin=True, dtick="D2")
    settings = {"displayModeBar": False, "responsive": True}
    page: str = figure.to_html(full_html=False, include_plotlyjs=True, config=settings)
    return page


def _picture(path: Path, title: str, curves: Sequence[tuple[str, str, str, list[int], list[float]]], across: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, colour, kind, x, y in curves:
        axes.plot(x, y, label=name, color=colour, linestyle=LINES[kind][1], marker="_" if kind == "memory's rate" else "o")
    ticks = sorted({value for _, _, _, x, _ in curves for value in x})
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel="tokens a second")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _conditions(result: Mapping[str, Any]) -> str:
    told = f"{result['device']}, {result['dtype']}"
    if "timings" not in result:
        return f"{told}, protocol {result['protocol']}, {result['prompts']} prompts of {result['context']} tokens"
    return (
        f"{told}, weights read by a step {human_bytes(result['weight_bytes'])}, "
        f"copy rate of this machine {result['copy_bytes_per_second'] / 1e9:.1f} GB/s"
    )


def _fastllama(result: Mapping[str, Any]) -> dict[str, str]:
    latency, speed = result["latency"], result["tokens_per_second"]
    return {
        "latency of one token": f"{1e3 * latency['median']:.1f} ms ({1e3 * latency['low']:.1f} to {1e3 * latency['high']:.1f})",
        "tokens a second": f"{speed['median']:.1f} ({speed['low']:.1f} to {speed['high']:.1f})",
        "peak memory": human_bytes(result["peak_bytes"]),
    }
