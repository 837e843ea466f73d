"""One way to time kernels, and what the card itself does in it.

    python benchmarks/card.py --output FOLDER      # the card's own figures

Sibling scripts import it (`from card import Case, measure, measure_card, rotated, write_page`):

    card = measure_card("cuda")
    weights = rotated(lambda index: make_weight(index), weight_bytes)       # copies beyond 256 MB, so that no cache holds them
    cases = [Case("bf16", [partial(linear, x, each) for each in weights], weight_bytes, flops, reference), ...]
    rows = measure(cases, card, {"n": n, "k": k, "m": m})                   # the first case is what ratios refer to
    write_page(folder, "multiply", "Products", card, rows)

How: a CUDA graph walks through the copies, at least 50 calls and 1 ms long; its replays are timed by events, those of all cases in
alternating order; a call's time is the median over replays. Outputs are filled with NaN before the run whose error is computed.
Single launches on a cold cache are timed apart. On a CPU the same walk is timed by the clock, so scripts can be tried there.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timed import (
    LONGEST,
    Call,
    Case,
    Timing,
    cold_time,
    graph_time,
    relative_error,
    rotated,
    run_poisoned,
    time_together,
    workspace,
)
from torch import Tensor

__all__ = [
    "Card", "Case", "Timing", "card_lines", "cold_time", "describe", "graph_time", "measure", "measure_card", "relative_error",
    "rotated", "run_poisoned", "time_together", "workspace", "write_page",
]  # fmt: skip
READS = (1, 4.3, 8.7, 13, 22.9, 30, 46, 60.9, 121, 242, 1000)  # MB


@dataclass(frozen=True)
class Card:
    """Where a measurement was taken, and what that place can do.

    Attributes:
        device: "cuda" or "cpu".
        environment: names and versions.
        figures: by name, with the unit in it.
        reads: bytes and microseconds of kernels that only read, ascending.
    """

    device: str
    environment: Mapping[str, str]
    figures: Mapping[str, float] = field(default_factory=dict)
    reads: Sequence[tuple[float, float]] = ()

    def floor(self, size: float) -> float:
        """Microseconds to only read `size` bytes, interpolated between sizes measured."""
        points = list(self.reads)
        if len(points) < 2:
            return float("nan")
        right = next((index for index, (bytes_, _) in enumerate(points) if bytes_ >= size), len(points) - 1)
        (a, low), (b, high) = points[max(right, 1) - 1], points[max(right, 1)]
        return low + (high - low) * (size - a) / (b - a)


def measure(
    cases: Sequence[Case], card: Card, about: Mapping[str, Any], replays: int = 30, cold: bool = True
) -> list[dict[str, Any]]:
    """One row per case, printed: time, ratio to the first case (above 1 is faster), floor, rates, error; a failure is a row, too."""
    rows, sound = [], {}
    for case in cases:
        row: dict[str, Any] = {**about, "case": case.name, "note": ""}
        try:
            output = run_poisoned(case.calls[0])
            row["error"] = None if case.reference is None else relative_error(output, case.reference)
            row["workspace_mb"] = workspace(case.calls[0]) if card.device == "cuda" else None
            row["cold_us"] = cold_time(case.calls[0]).median if cold and card.device == "cuda" else None
            graph_time(case.calls[:1], 1, card.device)  # what cannot be recorded fails here, alone
            sound[case.name] = case
        except Exception as error:
            traceback.print_exc()
            row["note"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        rows.append(row)
    times = time_together({name: case.calls for name, case in sound.items()}, replays, card.device)
    first = times.get(cases[0].name)
    for row in rows:
        if row["case"] in times:
            row.update(_figures(times[row["case"]], first, sound[row["case"]], card))
        print("  ".join(f"{name} {_text(value)}" for name, value in row.items() if value not in (None, "")), flush=True)
    return rows


def _figures(timing: Timing, first: Timing | None, case: Case, card: Card) -> dict[str, float | int | None]:
    us = timing.median
    floor = card.floor(case.bytes) if case.bytes else None
    return {
        "us": us, "us_q25": timing.low, "us_q75": timing.high, "ratio": None if first is None else first.median / us,
        "floor_us": floor, "over_floor": None if floor is None else us / floor,
        "tb_s": case.bytes / us / 1e6 if case.bytes else None, "tflop_s": case.flops / us / 1e6 if case.flops else None,
        "calls": timing.calls, "replays": timing.replays,
    }  # fmt: skip


def describe(device: str) -> Card:
    """The place without its figures: nothing is timed."""
    import importlib.metadata

    found = {"date": datetime.now(UTC).date().isoformat(), "python": sys.version.split()[0], "torch": torch.__version__}
    try:
        found["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        found["triton"] = "none"
    if device == "cuda":
        name, driver = query("name,driver_version").split(", ")
        return Card(device, {"card": name, "driver": driver, "cuda": str(torch.version.cuda), **found})
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return Card(device, {"card": processor, "threads": str(torch.get_num_threads()), **found})


def query(fields: str) -> str:
    """What nvidia-smi says of the card."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def measure_card(device: str = "cuda") -> Card:
    """Copy and read rates, products, launches, clocks: about 5 s on an H200; on a CPU only reads, of few sizes."""
    told, sizes = describe(device), READS if device == "cuda" else READS[:6]
    buffer = torch.randint(
        -(2**31), 2**31 - 1, (1_100_000_000 // 4,) if device == "cuda" else (1 << 26,), device=device, dtype=torch.int32
    )
    reads = []
    for megabytes in sizes:
        count = int(megabytes * 1e6 / 8192) * 2048
        parts = [buffer[at : at + count] for at in range(0, buffer.numel() - count + 1, count)][:LONGEST]
        reads.append((4.0 * count, graph_time([_reader(part) for part in parts], device=device).median))
    figures: dict[str, float] = {"read TB/s, largest": reads[-1][0] / reads[-1][1] / 1e6}
    if device == "cuda":
        figures |= _cuda_figures(buffer)
    card = Card(device, told.environment, figures, tuple(reads))
    print("\n".join(card_lines(card)), flush=True)
    return card


def _reader(part: Tensor) -> Call:
    if part.device.type != "cuda":
        return part.view(torch.float32).nan_to_num_().max
    from card_kernels import CHUNK, read

    return partial(read, part, torch.empty(part.numel() // CHUNK, dtype=torch.int32, device=part.device))


def _cuda_figures(buffer: Tensor) -> dict[str, float]:
    from card_kernels import nothing

    copy = torch.empty_like(buffer)
    found = {"copy TB/s, read + written": 8e-6 * buffer.numel() / graph_time([partial(torch.neg, buffer, out=copy)]).median}
    found["SM clock MHz, copying"] = _clock_under(partial(torch.neg, buffer, out=copy))
    for blocks in (1, 132, 528):
        found[f"empty kernel of {blocks} blocks in a graph, us"] = graph_time([partial(nothing, blocks)]).median
    del copy
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product, flops = partial(torch.mm, a, b, out=out), 2 * 8192**3
    product()
    time.sleep(0.5)
    found["bf16 TFLOP/s, 10 products of 8192³ after a rest"] = flops / _event_us(product, 10) / 1e6
    found["SM clock MHz, multiplying"] = _clock_under(product)
    found["bf16 TFLOP/s, sustained"] = flops / _event_us(product, 300) / 1e6
    return found


def _event_us(call: Call, count: int) -> float:
    """Microseconds of a call among `count` in a row."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * start.elapsed_time(end) / count


def _clock_under(call: Call) -> float:
    """MHz of the SMs while another thread keeps the card at `call`."""
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            for _ in range(20):
                call()
            torch.cuda.synchronize()

    thread = threading.Thread(target=load)
    thread.start()
    try:
        time.sleep(0.2)
        return float(query("clocks.sm").split()[0])
    finally:
        stop.set()
        thread.join()


def card_lines(card: Card) -> list[str]:
    """Markdown: the place, its figures, its reads."""
    lines = [", ".join(f"{name} {value}" for name, value in card.environment.items()), ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {_text(value)} |" for name, value in card.figures.items()), ""]
    if card.reads:
        lines += _table(
            ["only reading, MB", *(f"{size / 1e6:.1f}" for size, _ in card.reads)], [["us", *(us for _, us in card.reads)]]
        )
    return lines


def write_page(folder: Path, name: str, heading: str, card: Card, rows: Sequence[Mapping[str, Any]], text: str = "") -> None:
    """`name.csv` with every column, `name.md` with the card's figures above the rows, `name-card.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if rows:
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    hidden = ("us_q25", "us_q75", "calls", "replays")
    shown = [column for column in columns if column not in hidden and any(row.get(column) not in (None, "") for row in rows)]
    table = _table(shown, [[row.get(column) for column in shown] for row in rows]) if rows else []
    lines = [f"# {heading}", "", *([text, ""] if text else []), *card_lines(card), "", *table]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / f"{name}-card.json").write_text(json.dumps(asdict(card), indent=1), encoding="utf-8")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    return [
        f"| {' | '.join(map(str, each))} |"
        for each in (head, ["---"] * len(head), *([_text(cell) for cell in row] for row in rows))
    ]


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.2e}" if value and abs(value) < 0.01 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def main() -> None:
    """Only the card's figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("card"))
    options = parser.parse_args()
    card = measure_card(options.device)
    write_page(options.output, "card", "The card", card, [])


if __name__ == "__main__":
    main()
