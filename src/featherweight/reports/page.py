"""The page of one compressed model: where the error, the bits and the time went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from featherweight.packed.files import write_text
from featherweight.reports.heatmap import SCALE, Quantity, heatmap
from featherweight.reports.html import render
from featherweight.reports.ledger import Told
from featherweight.reports.tables import human_bytes

REPORT = "report.html"

QUANTITIES = (
    Quantity("relative_error", "Error of the outputs, ‖(W − Ŵ)X‖² / ‖WX‖²", "e", logarithmic=True, worst=True),
    Quantity("relative_weight_error", "Error of the weights, ‖W − Ŵ‖² / ‖W‖²", "e", logarithmic=True, worst=True),
    Quantity("bits_per_weight", "Stored bits a weight", ".2f"),
    Quantity("sparsity", "Share of weights that are 0", ".0%"),
    Quantity("outlier_share", "Share of weights kept as outliers", ".2%"),
    Quantity("tokens", "Tokens sent to an expert, mean", ",.0f", logarithmic=True),
    Quantity("damping", "Damping, relative to the mean of the Hessian's diagonal", ".3g", logarithmic=True),
)


def write_report(folder: Path) -> Path:
    """`report.html` in the folder of a finished output: self-contained, without script; returns its path."""
    told = Told.of(folder)
    ledger = told.ledger
    maps = [found for quantity in QUANTITIES if (found := heatmap(quantity, told.compressed))]
    values = {
        "title": f"{ledger['model']['name']} by {ledger['recipe']['name']}",
        "ledger": ledger,
        "totals": _totals(told),
        "quality": told.quality_lines(),
        "maps": [found for found in maps if not found.uniform],
        "uniform": [found for found in maps if found.uniform],
        "scale": ", ".join(SCALE),
        "times": _times(told),
        "components": [(name.replace("_", " "), f"{bits:.4f}") for name, bits in told.components().items()],
        "left_alone": [(reason, count, human_bytes(size)) for reason, (count, size) in told.left_alone().items()],
        "recipe": yaml.safe_dump(ledger["recipe"], sort_keys=False, allow_unicode=True),
        "rows": told.compressed,
    }
    path = folder / REPORT
    write_text(path, render("report.html", values))
    return path


def _totals(told: Told) -> list[tuple[str, str, str]]:
    """What, as planned, as stored."""
    planned, stored, bound = told.predicted, told.ledger["total"], "≤\u00a0" if told.at_most else ""
    lines = [
        ("bits a compressed weight", f"{bound}{planned['linear_bits']:.4f}", f"{stored['linear_bits']:.4f}"),
        ("bits a weight, whole model", f"{bound}{planned['model_bits']:.4f}", f"{stored['model_bits']:.4f}"),
        ("bytes of the tensors", f"{bound}{planned['predicted_bytes']:,}", f"{stored['predicted_bytes']:,}"),
        ("bytes of the weight files", f"{bound}{planned['file_bytes']:,}", f"{stored['file_bytes']:,}"),
        ("of the original tensors", "", f"{stored['predicted_bytes'] / stored['original_bytes']:.1%}"),
    ]
    if stored["nominal_bits"] is not None:
        lines.insert(1, ("nominal bits, as the paper counts", "", f"{stored['nominal_bits']:.4f}"))
    return lines


def _times(told: Told) -> list[dict[str, Any]]:
    """Seconds that the methods took by layer, and the share of the slowest layer's."""
    seconds: dict[str, float] = {}
    for row in told.compressed:
        parts = row["module"].split(".")
        number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
        layer = "outside the layers" if number is None else parts[number]
        seconds[layer] = seconds.get(layer, 0.0) + (row["seconds"] or 0.0)
    longest = max(seconds.values(), default=0.0) or 1.0
    return [{"layer": layer, "seconds": f"{each:.2f}", "share": 100 * each / longest} for layer, each in seconds.items()]
