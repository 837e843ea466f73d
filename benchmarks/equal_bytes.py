"""The plot of quality against real bytes: one panel for each comparison, the front as a line.

    fw compare MODEL --sweep -o compared                  # once for each model
    python benchmarks/equal_bytes.py compared/table.csv … -o docs/images/equal-bytes.svg

The tables of the published figure lie in `benchmarks/equal-bytes/`; panels are named after the files.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

#: Families by what their recipes' names begin with, with colour (safe for the colour-blind) and marker.
FAMILIES = {
    "rtn": ("#0072B2", "o", "round to nearest"),
    "gptq": ("#D55E00", "s", "GPTQ"),
    "spqr": ("#009E73", "D", "SpQR, fitted codes"),
    "alps": ("#CC79A7", "^", "ALPS, then GPTQ"),
    "sparsegpt": ("#56B4E9", "v", "SparseGPT, joint"),
    "repair": ("#E69F00", "P", "learned, repaired, GPTQ"),
    "structured": ("#8C564B", "X", "inputs dropped, GPTQ"),
    "": ("#999999", ".", "other scores and learned masks"),
}


def draw(axis: Any, title: str, rows: list[dict[str, str]]) -> None:
    """One panel: bits a weight against divergence, logarithmic."""
    points = [(float(row["bits"]), float(row["kl"]), row) for row in rows if row["kl"]]
    front = sorted((bits, kl) for bits, kl, row in points if row["on_front"] == "True")
    axis.plot(*zip(*front, strict=True), color="#888888", linewidth=1, linestyle="--", zorder=1)
    for start, (colour, marker, _) in FAMILIES.items():
        mine = [point for point in points if _family(point[2]["recipe"]) == start]
        if mine:
            axis.scatter([bits for bits, _, _ in mine], [kl for _, kl, _ in mine], c=colour, marker=marker, s=34, zorder=2)
    axis.set_yscale("log")
    axis.set_title(title, fontsize=10)
    axis.grid(color="#8883", linewidth=0.5)


def _family(recipe: str) -> str:
    return next(start for start in FAMILIES if recipe.startswith(start))


def main() -> None:
    """Draw the tables that are named."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    figure, axes = pyplot.subplots(1, len(options.tables), figsize=(3.4 * len(options.tables), 3.6), sharex=True, squeeze=False)
    for axis, path in zip(axes[0], options.tables, strict=True):
        with path.open(encoding="utf-8") as file:
            draw(axis, path.stem, list(csv.DictReader(file)))
        axis.set_xlabel("stored bits per compressed weight", fontsize=9)
    axes[0][0].set_ylabel("KL divergence from dense, nats a token", fontsize=9)
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=label) for colour, marker, label in FAMILIES.values()
    ]
    figure.legend(handles=handles, loc="lower center", ncol=4, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    pyplot.rcParams["svg.hashsalt"] = "featherweight"
    figure.savefig(options.output, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
