"""Seconds and peak memory of one block by every method of PQP's table, against Wanda and one dense forward of the block.

    python benchmarks/blocks.py                                             # the packaged model on the CPU, in a minute or two
    python benchmarks/blocks.py --shape llama-7b --dtype bfloat16           # a random block of 4096 / 11008, on a GPU if there is one
    python benchmarks/blocks.py --model FOLDER --samples 128 --length 2048 --rows wanda besa pqp

A chain of the table is run as the engine runs it on a block: statistics, learning, every step. The dense forward goes over the same
calibration tokens. Without --model a checkpoint of that shape with random weights is written into a temporary folder, and tokens are
drawn at random. `--pruning` leaves the steps that round out, where a chain prunes first. Prints Markdown, and writes it and JSON into
--output after every row.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import featherweight as fw
from featherweight.engine.block import compress_block
from featherweight.engine.compress import calibration_tokens, pick_device
from featherweight.engine.outside import compress_outside, place_outside
from featherweight.engine.progress import silent
from featherweight.engine.task import BlockTask
from featherweight.models.replay import BlockInputs, capture
from featherweight.models.skeleton import build_skeleton, materialize
from featherweight.planning.plan import Plan
from featherweight.planning.recipe import Recipe
from featherweight.search.tables.pqp import BASELINES, OURS, PQP_ROWS, Settings, table_recipe
from featherweight.statistics.store import StatisticsStore

SHAPES = {
    "llama-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32},
    "llama-3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8},
    "tiny": {"hidden_size": 128, "intermediate_size": 344, "num_attention_heads": 4, "num_key_value_heads": 2},
}
ROUNDING = ("gptq", "rtn")


def random_model(shape: str, folder: Path) -> Path:
    """A checkpoint of one random block in bfloat16, and a small vocabulary."""
    config = LlamaConfig(**SHAPES[shape], num_hidden_layers=1, vocab_size=256, max_position_embeddings=4096)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def changed(recipe: Recipe, pruning: bool) -> Recipe:
    """Without the steps that round after one that prunes, if asked."""
    first_prunes = recipe.steps[0].method not in ROUNDING
    if not pruning or not first_prunes:
        return recipe
    return recipe.model_copy(update={"steps": tuple(step for step in recipe.steps if step.method not in ROUNDING)})


def prepared(plan: Plan, tokens: torch.Tensor, device: torch.device, dtype: torch.dtype) -> tuple[torch.nn.Module, BlockInputs]:
    """A fresh model with its first block in place, and that block's inputs."""
    model, block = build_skeleton(plan.source.config()), plan.structure.blocks[0]
    place_outside(model, plan, compress_outside(plan)[0], dtype, device)
    inputs = capture(model, plan.structure, tokens.to(device), plan.recipe.calibration.batch_size)
    materialize(model, block, plan.weights, dtype, device)
    return model, inputs


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, float | None]:
    """Seconds of `work`, and the most memory meanwhile in GB: of the GPU, or this process's where the system tells."""
    peak = Path("/proc/self/clear_refs")
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    elif peak.exists():
        peak.write_text("5")  # the peak starts again from what is held now
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter() - started, torch.cuda.max_memory_allocated() / 1e9
    seconds = time.perf_counter() - started
    if not peak.exists():
        return seconds, None
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return seconds, int(line.split()[1]) * 1024 / 1e9


@torch.no_grad()
def dense(plan: Plan, tokens: torch.Tensor, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The block's forward over all batches, the second time."""
    model, inputs = prepared(plan, tokens, device, dtype)

    def forward() -> None:
        for batch in range(len(inputs.hidden)):
            inputs.run(model, plan.structure.blocks[0], batch)

    forward()
    seconds, memory = timed(forward, device)
    return {"row": "dense forward", "seconds": seconds, "peak_gb": memory, "steps": ""}


@torch.no_grad()
def compressed(name: str, plan: Plan, tokens: torch.Tensor, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """One chain on the block, from statistics to packed weights."""
    model, inputs = prepared(plan, tokens, device, dtype)
    task = BlockTask(
        plan=plan, model=model, block=plan.structure.blocks[0], inputs=inputs, prefix="dense", tokens="",
        store=StatisticsStore(None), keep=False, report=silent, dtype=dtype,
    )  # fmt: skip
    seconds, memory = timed(lambda: compress_block(task), device)
    steps = " → ".join(step.method for step in plan.recipe.steps)
    return {"row": name, "seconds": seconds, "peak_gb": memory, "steps": steps}


def markdown(results: list[dict[str, Any]]) -> str:
    """The rows so far, against the dense forward and Wanda where they are there."""
    by_name = {each["row"]: each["seconds"] for each in results}
    lines = ["| method | steps | seconds | × dense forward | × Wanda | peak GB |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for each in results:
        ratios = [f"{each['seconds'] / by_name[name]:.1f}" if by_name.get(name) else "" for name in ("dense forward", "Wanda")]
        memory = "" if each["peak_gb"] is None else f"{each['peak_gb']:.2f}"
        cells = [each["row"], each["steps"], f"{each['seconds']:.3f}", *ratios, memory]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def rows_for(options: argparse.Namespace) -> dict[str, Recipe]:
    """The table's recipes with its settings and the calibration's size; Wanda first, since all are compared with it."""
    changes = {
        "calibration.samples": options.samples, "calibration.length": options.length,
        "calibration.batch_size": options.batch_size, "engine.compute": options.dtype,
    }  # fmt: skip
    settings = Settings(ratio=options.ratio, group_size=options.group_size, changes=changes)
    names = {**{"Wanda": BASELINES["Wanda"]}, **BASELINES, **PQP_ROWS, **OURS}
    wanted = [part.lower() for part in options.rows or []]
    chosen = {name: recipe for name, recipe in names.items() if not wanted or any(part in name.lower() for part in wanted)}
    return {name: changed(table_recipe(recipe, settings), options.pruning) for name, recipe in chosen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or packaged model; its first block")
    parser.add_argument("--shape", choices=list(SHAPES), help="a random block instead")
    parser.add_argument("--device", help="a GPU if there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="in which the block runs")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, help="2048 for a random block, 256 otherwise")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--group-size", type=int, help="whole rows if not given")
    parser.add_argument("--rows", nargs="*", help="parts of names; all if not given")
    parser.add_argument("--pruning", action="store_true", help="no rounding after pruning")
    parser.add_argument("--output", type=Path, help="folder for blocks.json and blocks.md")
    options = parser.parse_args()
    options.length = options.length or (2048 if options.shape else 256)
    device, dtype = pick_device(options.device), getattr(torch, options.dtype)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = str(random_model(options.shape, Path(folder))) if options.shape else options.model or "demo"
        for name, recipe in rows_for(options).items():
            plan = fw.plan(model, recipe)
            if options.shape:
                generator = torch.Generator().manual_seed(0)
                tokens = torch.randint(0, 256, (options.samples, options.length), generator=generator)
            else:
                tokens = calibration_tokens(plan, offline=False).tokens
            if not results:
                results.append(dense(plan, tokens, device, dtype))
                compressed(name, plan, tokens, device, dtype)  # libraries and kernels are loaded once
            try:
                results.append(compressed(name, plan, tokens, device, dtype))
            except (torch.OutOfMemoryError, fw.FeatherweightError) as problem:
                print(f"{name}: {problem}", flush=True)
                continue
            print(markdown(results).splitlines()[-1], flush=True)
            if options.output:
                options.output.mkdir(parents=True, exist_ok=True)
                (options.output / "blocks.json").write_text(
                    json.dumps({"options": vars(options) | {"output": None}, "rows": results})
                )
                (options.output / "blocks.md").write_text(markdown(results))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    told = options.shape or options.model or "demo"
    print(f"\n{told}, {options.samples} x {options.length} tokens, {options.dtype}, {where}, torch {torch.__version__}\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
