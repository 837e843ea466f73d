"""Perplexity and divergence through the cache against the bits it really stores, codec by codec.

    python benchmarks/kv_quality.py MODEL … --data heldout --windows 8 --length 1024 -o kv-quality

Writes `kv-quality.csv`, a line for each model, text and codec, and `kv-quality.svg`, a panel for each model and text. Finished
lines are kept: the same command goes on. Bits count norms, scales and indices in the measured dtype, keys and values averaged.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from featherweight import api
from featherweight.errors import FeatherweightError
from featherweight.evaluation import evaluate
from featherweight.evaluation.forward import context_of
from featherweight.kv_cache import CacheSettings
from featherweight.kv_cache.qjl import sketch_length
from featherweight.kv_cache.shapes import cache_shapes
from featherweight.models.source import resolve_model

#: Families with colour (safe for the colour-blind) and marker.
FAMILIES = {
    "integer": ("#0072B2", "o", "integers, keys by channel (KIVI)"),
    "int8": ("#56B4E9", "s", "8-bit integers by token"),
    "qjl": ("#D55E00", "D", "QJL keys, 2-bit values"),
    "qjl-4": ("#E69F00", "P", "QJL keys, 4-bit values"),
    "rotated": ("#009E73", "^", "rotated, around means"),
}
COLUMNS = (
    "model", "data", "codec", "family", "key_bits", "value_bits", "cache_bits", "kl", "kl_error", "top1_agreement", "perplexity",
    "reference_perplexity", "protocol",
)  # fmt: skip


def codecs(head_dim: int, window: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, family and settings of every codec, the newest `window` tokens exact in all of them."""
    for bits in (2, 3, 4):
        yield f"integer-{bits}", "integer", {"keys": _integer(bits, window, "channel"), "values": _integer(bits, window)}
    yield "int8", "int8", {"keys": _integer(8, window), "values": _integer(8, window)}
    for ratio in (0.25, 0.5, 0.75, 1.0):
        sketch = sketch_length(ratio, head_dim)
        for outliers in (0, 8):
            keys = {"codec": "qjl", "sketch": sketch, "outliers": outliers, "window": window}
            for bits, family in ((2, "qjl"), (4, "qjl-4")):
                name = f"qjl-{sketch}{'-outliers' if outliers else ''}, {bits}-bit values"
                yield name, family, {"keys": keys, "values": _integer(bits, window)}
    for bits in (2, 3, 4):
        keys = {"codec": "rotated", "bits": bits, "group_size": window, "window": window}
        yield f"rotated-{bits}", "rotated", {"keys": keys, "values": {"codec": "rotated", "bits": bits, "window": window}}


def _integer(bits: int, window: int, axis: str = "token") -> dict[str, Any]:
    return {"codec": "integer", "bits": bits, "axis": axis, "group_size": 32, "window": window}


def measure(name: str, options: argparse.Namespace, known: list[dict[str, str]], save: Any) -> None:
    """Every codec on every text of one model."""
    source = resolve_model(name)
    dtype = getattr(torch, options.dtype)
    model, tokenizer = api.load(source.folder, device=options.device, dtype=dtype), source.tokenizer()
    length = min(options.length, context_of(model) or options.length)
    done = {(row["model"], row["data"], row["codec"]) for row in known}
    for data in options.data.split(","):
        for codec, family, told in codecs(cache_shapes(model.config)[0].key_dim, options.window):
            if (source.name, data, codec) in done or not any(part in codec for part in options.codecs.split(",")):
                continue
            try:
                settings = CacheSettings.from_dict({**told, "seed": options.seed})
                found = evaluate(
                    model, tokenizer, data=data, length=length, windows=options.windows, against=model, cache=settings
                )
            except FeatherweightError as problem:
                print(f"{source.name}, {data}, {codec}: left out, {str(problem).splitlines()[0]}", flush=True)
                continue
            value = {each.name: each for each in found}
            row = {"model": source.name, "data": data, "codec": codec, "family": family, "kl_error": value["kl"].stderr}
            row |= {column: value[column].value for column in COLUMNS if column in value}
            row["protocol"] = value["perplexity"].protocol.describe()
            print(
                ", ".join(f"{key} {row[key]}" for key in ("model", "data", "codec", "cache_bits", "kl", "perplexity")),
                flush=True,
            )
            save({key: str(text) for key, text in row.items()})


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """A panel for each model and text: bits a cached value against divergence, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    panels = list(dict.fromkeys((row["model"], row["data"]) for row in rows))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(max(4.8, 3.4 * len(panels)), 3.8), sharex=True, squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for family, (colour, marker, _) in FAMILIES.items():
            mine = [row for row in rows if (row["model"], row["data"]) == panel and row["family"] == family]
            bits, divergence = [float(row["cache_bits"]) for row in mine], [float(row["kl"]) for row in mine]
            axis.scatter(bits, divergence, c=colour, marker=marker, s=34, zorder=2)
        axis.set_yscale("log")
        axis.set_title(f"{Path(panel[0]).name}, {Path(panel[1]).stem}", fontsize=10)
        axis.grid(color="#8883", linewidth=0.5)
        axis.set_xlabel("stored bits per cached value", fontsize=9)
    axes[0][0].set_ylabel("KL divergence from the exact cache, nats a token", fontsize=9)
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=label) for colour, marker, label in FAMILIES.values()
    ]
    figure.legend(handles=handles, loc="lower center", ncol=2, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.17, 1, 1))
    pyplot.rcParams["svg.hashsalt"] = "featherweight"
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


def main() -> None:
    """Measure what is missing, then draw all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", default="heldout", help="texts, comma separated")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--window", type=int, default=128, help="newest tokens that stay exact")
    parser.add_argument("--codecs", default="", help="part of a name, comma separated; all if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("-o", "--output", type=Path, default=Path("kv-quality"))
    options = parser.parse_args()
    table = options.output.with_suffix(".csv")
    rows: list[dict[str, str]] = list(csv.DictReader(table.open(encoding="utf-8"))) if table.is_file() else []

    def save(row: dict[str, str]) -> None:
        rows.append(row)
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    for name in options.models:
        measure(name, options, rows, save)
    draw(rows, options.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
