"""Measure the embedded model at 8, 4, 3 and 2 bits by both methods, and draw the picture of the README.

    python benchmarks/overview.py --output docs/images/overview.svg

Left the way of a model through the package, right KL divergence from the dense model against the bytes of the weight files.
Every number is measured here: 64 x 512 calibration tokens, 8 held-out windows of 1024 tokens. Both methods fit their grids in
the same way (`weighted`), so that the curves show the methods alone. Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import FuncFormatter, NullLocator

import featherweight as fw
from featherweight.models.source import resolve_model

WIDTHS = {8: 128, 4: 128, 3: 128, 2: 32}  # bits: group size, as in the shipped recipes
CALIBRATION = {"samples": 64, "length": 512, "batch_size": 8}
INK, SOFT, LINE, PAPER, CARD = "#1f2933", "#66727f", "#d5dbe1", "#ffffff", "#f3f6f8"
COLOURS = {"rtn": "#c2702d", "gptq": "#0f766e"}
PALE = "#c9e4df"
NAMES = {"rtn": "round to nearest", "gptq": "GPTQ"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "featherweight",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Segoe UI", "Helvetica", "Arial"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}


def measure(method: str, bits: int, folder: Path) -> dict[str, Any]:
    """Bytes of the weight files and KL of one recipe on the embedded model."""
    step = {"method": method, "bits": bits, "group_size": WIDTHS[bits], "fit": "weighted"}
    recipe = {"name": f"{method}-{bits}", "steps": [step], "calibration": CALIBRATION}
    result = fw.compress(fw.plan("demo", recipe), folder / f"{method}-{bits}")
    measured = {m.name: m for m in fw.evaluate(result.folder, against="demo", length=1024, windows=8)}
    kl = measured["kl"]
    print(f"{method} {bits} bits: {result.totals.file_bytes:,} bytes, KL {kl.value:.5f} ± {kl.stderr:.5f}", flush=True)
    return {"method": method, "bits": bits, "bytes": result.totals.file_bytes, "kl": kl.value, "stderr": kl.stderr}


def draw(points: list[dict[str, Any]], dense_bytes: int, path: Path) -> None:
    """The whole picture, 900 x 400 px, text as text, the same bytes for the same points."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(9.0, 4.0), dpi=100)
        background = figure.add_axes((0, 0, 1, 1))
        _canvas(background, 900, 400)
        _box(background, 2, 2, 896, 396, face=PAPER, edge=LINE, radius=14)
        _pipeline(background)
        _plot(figure.add_axes((0.602, 0.165, 0.37, 0.64)), points, dense_bytes)
        background.text(510, 367, "Quality against real bytes", fontsize=11.5, weight="bold", va="center")
        note = "KL from dense, nats per token; embedded 4M model, equal fits"
        background.text(510, 346, note, fontsize=8.5, color=SOFT, va="center")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None}, transparent=True)
        plt.close(figure)


def _canvas(axes: Axes, width: int, height: int) -> None:
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, *, face: str, edge: str, radius: float = 8, line: float = 1.1
) -> None:
    style = f"round,pad=0,rounding_size={radius}"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=line))


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=11, color=SOFT, linewidth=1.3, connectionstyle=f"arc3,rad={bend}"
        )
    )


def _card(axes: Axes, x: float, y: float, width: float, title: str, detail: str, *, height: float = 58) -> None:
    _box(axes, x, y, width, height, face=CARD, edge=LINE)
    axes.text(x + width / 2, y + height - 21, title, ha="center", va="center", fontsize=10, weight="bold")
    axes.text(x + width / 2, y + 18, detail, ha="center", va="center", fontsize=8.2, color=SOFT)


def _pipeline(axes: Axes) -> None:
    axes.text(28, 367, "From a model folder to a smaller one", fontsize=11.5, weight="bold", va="center")
    axes.text(28, 346, "that proves itself", fontsize=8.5, color=SOFT, va="center")
    _card(axes, 28, 264, 148, "model", "safetensors, GGUF, hub")
    _arrow(axes, (179, 293), (204, 293))
    _card(axes, 207, 264, 261, "plan", "a row per weight, bytes known before")
    _arrow(axes, (338, 262), (338, 234))
    _blocks(axes)
    _arrow(axes, (95, 126), (95, 95))
    _card(axes, 28, 34, 134, "packed files", "2 to 8 bits, hashed")
    _arrow(axes, (165, 63), (184, 63))
    _card(axes, 187, 34, 112, "verify", "logits repeat")
    _arrow(axes, (302, 63), (321, 63))
    _card(axes, 324, 34, 144, "eval, generate", "from packed weights")


def _blocks(axes: Axes) -> None:
    """The walk: finished blocks are small and coloured, one is being worked on, the rest wait."""
    _box(axes, 28, 129, 440, 102, face=PAPER, edge=COLOURS["gptq"], line=1.4)
    axes.text(44, 210, "block by block", fontsize=10, weight="bold", va="center")
    axes.text(452, 210, "gather · solve · pack · run on", fontsize=8.2, color=SOFT, va="center", ha="right")
    left, width, gap = 44, 58, 12
    for index in range(6):
        x = left + index * (width + gap)
        done, current = index < 2, index == 2
        height = 18 if done else 46
        face = COLOURS["gptq"] if done else PALE if current else CARD
        _box(axes, x, 146, width, height, face=face, edge=COLOURS["gptq"] if current else face if done else LINE, radius=5)
        label = "packed" if done else "now" if current else "waits"
        axes.text(
            x + width / 2, 146 + height / 2 - 0.5, label, ha="center", va="center", fontsize=8,
            color=PAPER if done else INK if current else SOFT,
        )  # fmt: skip


def _plot(axes: Axes, points: list[dict[str, Any]], dense_bytes: int) -> None:
    axes.set_facecolor("none")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value > 2e-4 else f"{value:.4f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(which="major", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8.5, which="both")
    for method, colour in COLOURS.items():
        line = sorted((p for p in points if p["method"] == method), key=lambda point: point["bytes"])
        x, y = [p["bytes"] / 1e6 for p in line], [p["kl"] for p in line]
        axes.errorbar(
            x, y, yerr=[p["stderr"] for p in line], color=colour, marker="o", markersize=6, linewidth=1.8, capsize=2.5,
            elinewidth=1, markeredgecolor=PAPER, markeredgewidth=0.9,
        )  # fmt: skip
        above = method == "rtn"
        for point, px, py in zip(line, x, y, strict=True):
            text = f"{point['bits']} bits" if above else f"{py:.2g}" if py > 1e-3 else f"{py:.5f}"
            axes.annotate(
                text, (px, py), xytext=(6, 5) if above else (-6, -5), textcoords="offset points", fontsize=8.2,
                color=SOFT if above else colour, ha="left" if above else "right", va="bottom" if above else "top",
            )  # fmt: skip
        middle = 0.6 * x[2] + 0.4 * x[3], y[2] ** 0.6 * y[3] ** 0.4  # on the line from 4 to 8 bits
        axes.annotate(
            NAMES[method], middle, xytext=(9, 9) if above else (-9, -9), textcoords="offset points", color=colour,
            fontsize=9.5, weight="bold", ha="left" if above else "right", va="bottom" if above else "top",
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    axes.margins(x=0.15, y=0.12)
    axes.set_xlabel(f"weight files, MB (dense: {dense_bytes / 1e6:.1f})", fontsize=8.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/images/overview.svg"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        points = [measure(method, bits, Path(folder)) for method in COLOURS for bits in WIDTHS]
    dense = resolve_model("demo").folder
    draw(points, sum(file.stat().st_size for file in dense.glob("*.safetensors")), options.output)


if __name__ == "__main__":
    main()
