"""Microseconds of choosing one token from logits on a GPU, by graph replays: the largest, a draw, and draws cut by top-k and top-p.

    python benchmarks/choice.py --output FOLDER          # writes choice.csv and choice.md

`normal` logits have a standard deviation of 2, `equal` ones are all 1: every program then counts one digit alone. A replay holds
`STEPS` choices one behind another, as kernels of a step follow each other; the median of `REPEATS` replays is divided by their number.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
from pathlib import Path
from typing import Any

import torch
from solver import markdown_table
from torch import Tensor

from featherweight.decoding.sampling import Sampling
from featherweight.kernels.decoding import Chosen
from featherweight.kernels.registry import choose

STEPS, REPEATS = 20, 30
SETTINGS = {
    "largest": Sampling(), "drawn": Sampling(0.8), "top-k 50": Sampling(0.8, 50), "top-p 0.95": Sampling(0.8, 0, 0.95),
    "top-k 50, top-p 0.95": Sampling(0.8, 50, 0.95),
}  # fmt: skip
#: Sequences, vocabulary, dtype, how logits are made.
INPUTS = [
    *itertools.product([1], [32000, 128256], [torch.bfloat16], ["normal"]), (1, 128256, torch.float32, "normal"),
    (1, 128256, torch.bfloat16, "equal"), (8, 128256, torch.bfloat16, "normal"),
]  # fmt: skip


def microseconds(logits: Tensor, sampling: Sampling) -> float:
    """Of one choice."""
    chosen = Chosen.make(len(logits), (REPEATS + 3) * STEPS, logits.shape[1], logits.device)
    pairs = ((chosen.temperature, sampling.temperature), (chosen.top_k, sampling.top_k), (chosen.top_p, sampling.top_p))
    for tensor, value in pairs:
        tensor.fill_(value)
    run = choose("choose_token", {"dtype": str(logits.dtype).removeprefix("torch.")}, logits.device)
    run(logits, chosen, sampling.cuts)
    torch.cuda.synchronize()
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for _ in range(STEPS):
            run(logits, chosen, sampling.cuts)
    for repeat in range(REPEATS + 1):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        marks[0].record()
        graph.replay()
        marks[1].record()
        torch.cuda.synchronize()
        times += [1e3 * marks[0].elapsed_time(marks[1]) / STEPS] if repeat else []
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", type=int, help="the number of one of the inputs")
    output, only = (options := parser.parse_args()).output, options.only
    rows: list[dict[str, Any]] = []
    for sequences, vocabulary, dtype, made in INPUTS if only is None else INPUTS[only : only + 1]:
        logits = torch.randn(sequences, vocabulary, device="cuda").mul_(2) if made == "normal" else None
        logits = torch.ones(sequences, vocabulary, device="cuda") if logits is None else logits
        row = {"sequences": sequences, "vocabulary": vocabulary, "dtype": str(dtype).removeprefix("torch."), "logits": made}
        rows.append(row | {name: microseconds(logits.to(dtype), sampling) for name, sampling in SETTINGS.items()})
        print(rows[-1], flush=True)
    table = markdown_table(rows, list(rows[0]))
    print(table)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        with (output / "choice.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        about = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, microseconds of one choice"
        (output / "choice.md").write_text(f"# Choosing a token\n\n{about}\n\n{table}")


if __name__ == "__main__":
    main()
