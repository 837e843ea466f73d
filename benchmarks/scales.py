"""What models of 1B to 405B weights take, by recipe: stored bytes, memory of the compression, cards for serving, seconds; from shapes.

    python benchmarks/scales.py -o benchmarks/scales                     # minutes; no weights, no GPU, no network

Bytes come from the plan of a config without weights, as `fw plan` makes it; memory from `fw plan`'s own prediction and from
`fw plan --fit`. Seconds are computed: the parts that benchmarks/solver measured on one H200, put together as `seconds` says.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import torch
from solver import markdown_table

from featherweight.models.source import ModelSource
from featherweight.planning.estimate import activation_bytes, host_bytes, working_bytes
from featherweight.planning.fit import PROCESS, Need, fit
from featherweight.planning.plan import Plan, make_plan
from featherweight.planning.recipe import load_recipe

#: hidden, intermediate, blocks, heads, key-value heads, vocabulary, tied, positions.
MODELS = {
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, 128256, True, 131072),
    "Llama-3.2-3B": (3072, 8192, 28, 24, 8, 128256, True, 131072),
    "Llama-2-7B": (4096, 11008, 32, 32, 32, 32000, False, 4096),
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128256, False, 131072),
    "Llama-3.1-70B": (8192, 28672, 80, 64, 8, 128256, False, 131072),
    "Llama-3.1-405B": (16384, 53248, 126, 128, 8, 128256, False, 131072),
}
RECIPES = ("gptq-4bit", "spqr-3bit", "quip-2bit", "caldera-2bit", "joint-2of4-4bit")
SAMPLES, LENGTH, CONTEXT = 128, 2048, 4096
CARDS = (24, 48, 80, 141)  # GB
ROOM = 0.95  # of a card that is used
COLUMNS = (
    "model", "recipe", "bits", "stored_gb", "device_gb", "host_gb", "disk_gb", "minutes", "serving_gb",
    *(f"cards_{size}" for size in CARDS),
)  # fmt: skip
#: One H200 in bfloat16: floating-point operations a second of a block's forward at best (docs/speed-of-compression.md), and
#: seconds to sum the Hessian of a token's 4096 inputs.
FORWARD, HESSIAN = 785e12, 0.32e-3 / 8192


#: What `solver.csv` calls the chains of recipes.
CASES = {"gptq-4bit": "gptq 4-bit g128 minmax", "spqr-3bit": "spqr 3-bit g16", "quip-2bit": "quip 2-bit"}


def config_folder(name: str, folder: Path) -> Path:
    """A folder with nothing but the config."""
    from transformers import LlamaConfig

    hidden, inside, blocks, heads, pairs, vocabulary, tied, positions = MODELS[name]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inside, num_hidden_layers=blocks, num_attention_heads=heads,
        num_key_value_heads=pairs, vocab_size=vocabulary, tie_word_embeddings=tied, max_position_embeddings=positions,
        architectures=["LlamaForCausalLM"], dtype=torch.bfloat16,
    )  # fmt: skip
    config.save_pretrained(folder / name)
    return folder / name


class Solver:
    """Milliseconds of a linear on one H200, from `solver.csv`.

    GPTQ was measured at three shapes, which settle `a + b · out · in + c · in³`. Other chains take that times their own ratio to
    GPTQ at 4096 x 4096, where they were measured.
    """

    def __init__(self, path: Path) -> None:
        with path.open(newline="") as file:
            rows = {(row["shape"], row["case"]): float(row["total"]) for row in csv.DictReader(file)}
        gptq = CASES["gptq-4bit"]
        shapes = [(4096, 4096), (14336, 4096), (4096, 14336)]
        matrix = torch.tensor([[1.0, rows_ * columns, float(columns) ** 3] for rows_, columns in shapes], dtype=torch.float64)
        measured = torch.tensor([rows[f"{rows_}x{columns}", gptq] for rows_, columns in shapes], dtype=torch.float64)
        self.terms = torch.linalg.solve(matrix, measured).tolist()
        base = rows["4096x4096", gptq]
        self.ratios = {recipe: rows["4096x4096", case] / base for recipe, case in CASES.items() if ("4096x4096", case) in rows}

    def milliseconds(self, recipe: str, outputs: int, inputs: int) -> float | None:
        """Of all linears of one input together; None where the chain was not measured."""
        if recipe not in self.ratios:
            return None
        constant, by_weight, by_factor = self.terms
        return self.ratios[recipe] * (constant + by_weight * outputs * inputs + by_factor * float(inputs) ** 3)


def seconds(plan: Plan, recipe: str, solver: Solver) -> float | None:
    """Of one H200: all blocks' solves, Hessians, and two forwards; files and the first reading come on top."""
    tokens, total = SAMPLES * LENGTH, 0.0
    block = plan.structure.blocks[0]
    sizes = {linear.name: linear.shape for linear in plan.linears(block)}
    for axis in plan.axes[block]:
        shapes = [sizes[name] for name in axis.consumers if name in sizes]
        solved = solver.milliseconds(recipe, sum(shape[0] for shape in shapes), axis.size)
        if solved is None:
            return None
        total += solved / 1e3 + HESSIAN * tokens * (axis.size / 4096) ** 2
    weights = sum(shape[0] * shape[1] for shape in sizes.values())
    return len(plan.structure.blocks) * (total + 2 * 2.0 * weights * tokens / FORWARD)


def cards(need: Need, size: int) -> int | None:
    """How many of so many GB serve it tensor-parallel, weights and cache cut alike: a power of two, at most 16."""
    for count in (1, 2, 4, 8, 16):
        if (need.weights + need.cache) / count + need.work + PROCESS["cuda"] <= ROOM * size * 1e9:
            return count
    return None


def rows_of(name: str, folder: Path, solver: Solver) -> list[dict[str, Any]]:
    """One row a recipe, and the dense model's serving."""
    changes = {
        "calibration.samples": SAMPLES,
        "calibration.length": LENGTH,
        "calibration.batch_size": 1,
        "engine.activations": "disk",
    }
    source = ModelSource(name, config_folder(name, folder))
    needs, refused = fit(source, list(RECIPES), 10**15, context=CONTEXT, changes=changes)
    rows = []
    for need in sorted(needs, key=lambda need: -need.weights):
        bounded = False
        row: dict[str, Any] = {"model": name, "recipe": need.recipe, "bits": need.bits, "stored_gb": need.weights / 1e9}
        row |= {"serving_gb": need.total / 1e9, **{f"cards_{size}": cards(need, size) for size in CARDS}}
        if need.recipe in RECIPES:
            plan = make_plan(source, load_recipe(need.recipe).with_changes(changes))
            stored, spent = plan.totals.file_bytes, seconds(plan, need.recipe, solver)
            row |= {"stored_gb": stored / 1e9, "device_gb": working_bytes(plan, 2) / 1e9}
            row |= {"host_gb": host_bytes(plan, on_gpu=True) / 1e9, "disk_gb": (stored + activation_bytes(plan, 2)) / 1e9}
            row |= {"minutes": spent and spent / 60}
            bounded |= any(each.at_most for each in plan.rows)
        told = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in row.items()}
        rows.append(told | {key: f"≤ {told[key]}" for key in ("bits", "stored_gb") if bounded})
    for recipe, reason in refused.items():
        print(f"{name}, {recipe}: {reason}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--solver", type=Path, default=Path(__file__).parent / "solver" / "solver.csv")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for scales.csv and scales.md")
    options = parser.parse_args()
    solver, rows = Solver(options.solver), []
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            rows += rows_of(name, Path(folder), solver)
            with (options.output / "scales.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            (options.output / "scales.md").write_text(markdown_table(rows, COLUMNS))
            print(markdown_table(rows[-len(RECIPES) - 1 :], COLUMNS), flush=True)


if __name__ == "__main__":
    main()
