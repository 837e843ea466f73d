"""Quality against size: one figure for a browser with script, one picture for one without."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from featherweight.reports.compare import Entry, front
from featherweight.reports.tables import with_error

#: Told apart by people who see colours otherwise (Okabe and Ito's, without those that vanish on black or white), and by shape.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7AE6", "#7F7F7F")
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star")


@dataclass(frozen=True)
class Size:
    """A horizontal axis: a label, a title, and what it takes of an entry."""

    label: str
    title: str
    of: Callable[[Entry], float]


SIZES = (
    Size("bytes", "bytes of the weight files", lambda entry: entry.file_bytes),
    Size("bits", "stored bits per compressed weight", lambda entry: entry.bits),
)


def families(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Entries with a KL divergence by the methods that made them, in order of appearance."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.kl is not None:
            found.setdefault(entry.family, []).append(entry)
    return found


def heights(entries: Sequence[Entry]) -> dict[str, float]:
    """Where each stands on a logarithmic axis, by name; what is not above 0 stands at half of the smallest that is."""
    values = {entry.name: entry.kl for entry in entries if entry.kl is not None}
    lowest = min((value for value in values.values() if value > 0), default=1.0)
    return {name: value if value > 0 else lowest / 2 for name, value in values.items()}


def ticks_between(low: float, high: float) -> list[float]:
    """Powers of ten; with their twofold and fivefold where there are few."""
    factors = (1, 2, 5) if high < 100 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for factor in factors if low <= (tick := factor * 10.0**power) <= high]


def interactive(entries: Sequence[Entry]) -> str:
    """A plotly figure as HTML, its script included: hover for a model, a switch from bytes to bits."""
    import plotly.graph_objects as graph

    high = heights(entries)
    best = [front(entries, size.of) for size in SIZES]
    line = graph.Scatter(
        name="front", mode="lines", line={"color": "#888", "dash": "dot"}, hoverinfo="skip",
        x=[SIZES[0].of(entry) for entry in best[0]], y=[high[entry.name] for entry in best[0]],
    )  # fmt: skip
    groups = families(entries)
    figure = graph.Figure([line, *(_markers(number, part, high) for number, part in enumerate(groups.items()))])
    buttons = []
    for size, part in zip(SIZES, best, strict=True):
        across = [[size.of(entry) for entry in part], *([size.of(entry) for entry in group] for group in groups.values())]
        up = [[high[entry.name] for entry in part], *([high[entry.name] for entry in group] for group in groups.values())]
        buttons.append(
            {"label": size.label, "method": "update", "args": [{"x": across, "y": up}, {"xaxis.title.text": size.title}]}
        )
    figure.update_layout(
        xaxis_title=SIZES[0].title, yaxis_type="log", height=480, hovermode="closest", showlegend=False,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", margin={"l": 48, "r": 12, "t": 44, "b": 56},
        font={"family": "system-ui, sans-serif"},
        updatemenus=[
            {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02,
             "yanchor": "bottom", "bgcolor": "#8883", "bordercolor": "#8886", "pad": {"b": 4}},
        ],
    )  # fmt: skip
    figure.update_xaxes(gridcolor="#8883", zeroline=False, linecolor="#8886", automargin=True)
    ticks = ticks_between(min(high.values(), default=1.0) / 1.5, max(high.values(), default=1.0) * 1.5)
    shown = {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    figure.update_yaxes(gridcolor="#8883", zeroline=False, automargin=True, **shown)
    settings = {"displaylogo": False, "displayModeBar": False, "responsive": True}
    page: str = figure.to_html(full_html=False, include_plotlyjs=True, config=settings)
    return page


def _markers(number: int, family: tuple[str, list[Entry]], high: dict[str, float]) -> Any:
    import plotly.graph_objects as graph

    name, entries = family
    errors = [entry.measurements["kl"].stderr or 0.0 for entry in entries]
    below = [min(error, 0.9 * high[entry.name]) for error, entry in zip(errors, entries, strict=True)]
    return graph.Scatter(
        name=name, mode="markers", x=[SIZES[0].of(entry) for entry in entries], y=[high[entry.name] for entry in entries],
        error_y={"type": "data", "array": errors, "arrayminus": below, "thickness": 1, "width": 2},
        hovertext=[hover(entry).replace("\n", "<br>") for entry in entries], hoverinfo="text",
        marker={"size": 11, "color": COLOURS[number % len(COLOURS)], "symbol": SHAPES[number % len(SHAPES)],
                "line": {"width": [2 if entry.on_front else 0 for entry in entries], "color": "#888"}},
    )  # fmt: skip


def hover(entry: Entry) -> str:
    """What a point says of itself, in lines."""
    kl = entry.measurements["kl"]
    lines = [entry.name, f"KL {with_error(kl.value, kl.stderr, '.4g')}", f"{entry.bits:.3f} bits, {entry.file_bytes:,} bytes"]
    if "perplexity" in entry.measurements:
        lines.append(f"perplexity {entry.measurements['perplexity'].value:.3f}")
    return "\n".join(lines)


#: Of the picture, in the units of its letters: few across, since a phone shows it 360 wide.
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 520.0, 340.0, 52.0, 8.0, 12.0, 44.0


def picture(entries: Sequence[Entry]) -> str:
    """The same as an SVG of its own, without script: points, their names on hover, the front, a legend; "" without points."""
    groups, size = families(entries), SIZES[0]
    if not groups:
        return ""
    high = heights(entries)
    sizes = [size.of(entry) for group in groups.values() for entry in group]
    span = (max(sizes) - min(sizes)) or max(sizes)
    first, last = min(sizes) - 0.05 * span, max(sizes) + 0.05 * span
    low, top = math.log10(min(high.values())) - 0.1, math.log10(max(high.values())) + 0.1

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - first) / (last - first)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - math.log10(value)) / (top - low)

    drawn = [_axes(first, last, low, top, x, y)]
    path = " ".join(f"{x(size.of(entry)):.1f},{y(high[entry.name]):.1f}" for entry in front(entries, size.of))
    drawn.append(f'<polyline points="{path}" fill="none" stroke="#888" stroke-dasharray="3 3"/>')
    for number, group in enumerate(groups.values()):
        for entry in group:
            mark = _mark(number, x(size.of(entry)), y(high[entry.name]))
            drawn.append(f"<g>{mark}<title>{html.escape(hover(entry))}</title></g>")
    style = 'font-size="13" style="width:100%;max-width:52rem;height:auto" role="img" aria-label="quality against size"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" {style}>{"".join(drawn)}</svg>'


def legend(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """The mark of every family, as an SVG, and its name."""
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="14" height="14" viewBox="-7 -7 14 14">'
    return [(f"{svg}{_mark(number, 0, 0)}</svg>", name) for number, name in enumerate(families(entries))]


def _axes(first: float, last: float, low: float, top: float, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    drawn = []
    step = 10 ** math.floor(math.log10((last - first) / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if (last - first) / (factor * step) <= 7)
    unit, name = next((each for each in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if step >= each[0] / 10), (1.0, "bytes"))
    for number in range(math.ceil(first / step), math.floor(last / step) + 1):
        at, label = x(number * step), f"{number * step / unit:g}"
        drawn.append(f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#8883"/>')
        drawn.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>')
    for value in ticks_between(10**low, 10**top):
        drawn.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#8883"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    middle = (LEFT + WIDTH) / 2
    drawn.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{name} of the weight files</text>')
    return "".join(drawn)


#: Corners of the shapes around 0, in the order of `SHAPES`; the circle is one by itself.
_CORNERS = {
    "square": "-5,-5 5,-5 5,5 -5,5",
    "diamond": "0,-7 7,0 0,7 -7,0",
    "triangle-up": "0,-6 6,5 -6,5",
    "cross": "-2,-6 2,-6 2,-2 6,-2 6,2 2,2 2,6 -2,6 -2,2 -6,2 -6,-2 -2,-2",
    "triangle-down": "0,6 6,-5 -6,-5",
    "star": "0,-7 2,-2 7,-2 3,1 4,6 0,3 -4,6 -3,1 -7,-2 -2,-2",
}


def _mark(number: int, x: float, y: float) -> str:
    colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="{colour}"/>'
    return f'<polygon transform="translate({x:.1f} {y:.1f})" points="{_CORNERS[shape]}" fill="{colour}"/>'
