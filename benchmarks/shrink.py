"""What `fw shrink` saves and costs: parameters, bytes, decode time on a CPU, perplexity and divergence from the dense model.

    python benchmarks/shrink.py [--model demo] [--samples 32] [--length 512] [--windows 8] [--rounds 5] [--cuts mlp=0.25 ...]

A cut is written as settings of `featherweight.shrink`, joined by commas. Decode: one sequence, float32, after 128 tokens; all
models are timed in turn, in rounds, on one thread, and each shows the median over its steps of the processor time, which other
work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import ast
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

import featherweight as fw
from featherweight.models.source import resolve_model

CUTS = [
    "mlp=0.25",
    "mlp=0.5",
    "mlp=0.25,per_layer=True",
    "heads=0.5",
    "heads=0.5,head_unit='query'",
    "blocks=1",
    "mlp=0.25,heads=0.5",
]


def settings(cut: str) -> dict[str, Any]:
    """`mlp=0.25,per_layer=True` as a dictionary."""
    return {name: ast.literal_eval(value) for name, value in (part.split("=") for part in cut.split(","))}


@torch.no_grad()
def step_times(model: Any, context: int = 128, steps: int = 24) -> list[float]:
    """Seconds of processor time of each greedy decode step after `context` random tokens."""
    ids = torch.randint(0, model.config.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
    output, times = model(input_ids=ids, use_cache=True, logits_to_keep=1), []
    for _ in range(steps):
        chosen = output.logits[:, -1].argmax(-1, keepdim=True)
        started = time.process_time()
        output = model(input_ids=chosen, past_key_values=output.past_key_values, use_cache=True)
        times.append(time.process_time() - started)
    return times


def decode_times(folders: dict[str, Path], rounds: int) -> dict[str, float]:
    """Seconds of a step, by model."""
    torch.set_num_threads(1)
    models = {name: fw.load(folder, device="cpu", dtype=torch.float32) for name, folder in folders.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            times[name] += step_times(model)
    return {name: median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cuts", nargs="*", default=CUTS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    work, rows, folders = Path(tempfile.mkdtemp()), dict[str, dict[str, Any]](), {}
    calibration = {"samples": options.samples, "length": options.length}
    for index, cut in enumerate(options.cuts):
        made = fw.shrink(options.model, work / str(index), **settings(cut), calibration=calibration, device="cpu", offline=True)
        scores = fw.evaluate(made.folder, against=options.model, length=options.length, windows=options.windows)
        found = {score.name: score.value for score in scores}
        rows.setdefault("dense", {"parameters": made.parameters[0], "bytes": made.file_bytes[0], "kl": 0.0,
                                  "perplexity": found["reference_perplexity"]})  # fmt: skip
        rows[cut] = {"parameters": made.parameters[1], "bytes": made.file_bytes[1], "kl": found["kl"],
                     "perplexity": found["perplexity"], "widths": made.widths}  # fmt: skip
        folders[cut] = made.folder
        print(f"{cut}: {rows[cut]}", flush=True)
    for name, seconds in decode_times({"dense": resolve_model(options.model).folder, **folders}, options.rounds).items():
        rows[name]["decode_seconds"] = seconds
    print("| cut | parameters, M | weight files, MB | decode, ms a token | perplexity | KL |\n|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['parameters'] / 1e6:.2f} | {row['bytes'] / 1e6:.2f} | {1e3 * row['decode_seconds']:.2f} "
            f"| {row['perplexity']:.2f} | {row['kl']:.3f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
