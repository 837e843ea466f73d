"""Seconds by phase of compressing one model on one rank and on all of a launch, and how far the outputs lie apart.

    torchrun --nproc-per-node 2 benchmarks/ranks.py --model demo --device cpu --windows 16 --output results        # gloo
    torchrun --nproc-per-node 2 benchmarks/ranks.py --shape llama-3.1-8b --blocks 2 --output results               # NCCL, random weights

By each recipe the first rank compresses alone while the others wait, then all together, each first on few tokens to warm up (kernels,
NCCL); together `--repeats` times. Statistics are neither kept nor reused. `linears` is the slowest rank's; of `reduce` and
`broadcast` the last to come counts, which waits for nobody; `rest` is reading, the last layers and the proof. `differing` is the
share of dequantized weights that are not those of one rank, `difference` the relative difference of all of them, `error` the mean
over linears of their relative output errors; `repeats` says whether all runs wrote the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

import featherweight as fw
from featherweight.engine.compress import Result, compress, pick_device
from featherweight.engine.launch import launched, leads
from featherweight.packed.base import from_tensors

SHAPES = {
    "llama-3.1-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "num_key_value_heads": 2},
}
PHASES = ("statistics", "reduce", "linears", "broadcast", "forward", "write")
COLUMNS = ("recipe", "ranks", *PHASES, "rest", "seconds", "speed-up", "differing", "difference", "error", "kl", "repeats")
#: Recipes with a setting changed.
CHANGED = {"quip-2bit-tuned": ("quip-2bit", {"steps.0.tune_block": 8})}


def random_model(shape: str, blocks: int, folder: Path, device: torch.device) -> Path:
    """A Llama checkpoint of random bfloat16 weights, made on the device."""
    from transformers import LlamaConfig

    sizes = SHAPES[shape]
    config = LlamaConfig(**sizes, num_hidden_layers=blocks, vocab_size=1024, max_position_embeddings=4096, dtype="bfloat16")
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    keys = width // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    linears = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }  # fmt: skip
    torch.manual_seed(0)
    tensors = {name: torch.randn(1024, width, device=device) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    tensors["model.norm.weight"] = torch.ones(width)
    for block in range(blocks):
        place = f"model.layers.{block}."
        tensors |= {f"{place}{norm}_layernorm.weight": torch.ones(width) for norm in ("input", "post_attention")}
        for name, (rows, columns) in linears.items():
            tensors[f"{place}{name}.weight"] = torch.randn(rows, columns, device=device) / columns**0.5
    folder.mkdir(parents=True)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    save_file({name: each.bfloat16().cpu() for name, each in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def settings(options: argparse.Namespace, samples: int) -> dict[str, Any]:
    changes = {"calibration.samples": samples, "calibration.length": options.length, "engine.keep_statistics": "none"}
    changes["calibration.batch_size"] = options.batch_size
    return changes | ({"calibration.source": options.tokens} if options.tokens else {})


def run(options: argparse.Namespace, recipe: str, folder: Path, samples: int) -> tuple[Result, list[dict[str, float]]]:
    """A run of all ranks that are told of, and the phases of each."""
    name, further = CHANGED.get(recipe, (recipe, {}))
    plan = fw.plan(options.model, name, changes={**settings(options, samples), **further}, offline=True)
    with tempfile.TemporaryDirectory() as statistics:
        result = compress(plan, folder, device=options.device, statistics=Path(statistics), offline=True)
    told: list[Any] = [dict(result.phases)] * launched()
    if launched() > 1:
        dist.all_gather_object(told, dict(result.phases))
    if leads():
        print(f"{folder.name}: {result.seconds:.2f} s", flush=True)
    return result, told


def measure(options: argparse.Namespace, recipe: str) -> list[dict[str, Any]]:
    """Rows of the first rank alone and of all together; every rank comes here."""
    count, few, rows = launched(), min(options.samples, 2 * options.batch_size * launched()), []
    for ranks in (1, count):
        folders = [
            options.output / f"{recipe}-{ranks}-{repeat}" for repeat in range(options.repeats[recipe] if ranks > 1 else 1)
        ]
        os.environ["WORLD_SIZE"] = str(ranks)
        if ranks == 1 and os.environ["RANK"] != "0":
            wait_for(folders[0] / "ledger.json")
        else:
            run(options, recipe, options.output / f"{recipe}-{ranks}-warm", few)
            found = [run(options, recipe, folder, options.samples) for folder in folders]
            rows.append({"recipe": recipe, "ranks": ranks, **timed(*found[0])})
            rows[-1] |= {"repeats": same_bytes(folders)} if leads() and len(folders) > 1 else {}
    return rows


def wait_for(path: Path) -> None:
    """Until the first rank has written it."""
    while not path.is_file():
        time.sleep(0.05)


def timed(result: Result, told: list[dict[str, float]]) -> dict[str, float]:
    seconds = {phase: max(each.get(phase, 0.0) for each in told) for phase in PHASES}
    seconds |= {phase: min(each.get(phase, 0.0) for each in told) for phase in ("reduce", "broadcast")}
    return {**seconds, "rest": result.seconds - sum(told[0].values()), "seconds": result.seconds}


def values(folder: Path, device: torch.device) -> dict[str, tuple[torch.Tensor, float]]:
    """Dequantized weights and relative output errors by linear."""
    tensors = {name: each for path in sorted(folder.glob("model-*")) for name, each in load_file(path, str(device)).items()}
    errors = {row["module"]: row["relative_error"] for row in json.loads((folder / "plan.json").read_text())["rows"]}
    found = {}
    for module, description in json.loads((folder / "config.json").read_text())["quantization_config"]["modules"].items():
        own = {name[len(module) + 1 :]: each for name, each in tensors.items() if name.startswith(f"{module}.")}
        found[module] = (from_tensors(description, own).dequantize(), errors[module])
    return found


@torch.no_grad()
def apart(first: Path, second: Path, device: torch.device) -> dict[str, float]:
    """How far two outputs lie apart."""
    one, two = values(first, device), values(second, device)
    different = sum(float((one[name][0] != two[name][0]).sum()) for name in one)
    squares = sum(float((one[name][0] - two[name][0]).double().square().sum()) for name in one)
    total = sum(float(each.double().square().sum()) for each, _ in one.values())
    errors = [error for _, error in two.values() if error is not None]
    return {
        "differing": different / sum(each.numel() for each, _ in one.values()),
        "difference": (squares / total) ** 0.5,
        "error": sum(errors) / max(1, len(errors)),
    }


def same_bytes(folders: list[Path]) -> bool:
    files = [json.loads((folder / "ledger.json").read_text())["files"] for folder in folders]
    return all(each == files[0] for each in files)


def compared(options: argparse.Namespace, rows: list[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """The rows of one recipe with what their outputs are worth."""
    folders = [options.output / f"{row['recipe']}-{row['ranks']}-0" for row in rows]
    for row, folder in zip(rows, folders, strict=True):
        row |= {"speed-up": rows[0]["seconds"] / row["seconds"], **apart(folders[0], folder, device)}
        if options.windows:
            told = fw.evaluate(folder, against=options.model, windows=options.windows, device=options.device, offline=True)
            row |= {each.name: each.value for each in told if each.name == "kl"}
    return rows


def write(rows: list[dict[str, Any]], folder: Path) -> None:
    with (folder / "ranks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(row.get(column, "")) for column in COLUMNS) + " |" for row in rows]
    (folder / "ranks.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights of this shape instead, on random tokens")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--recipes", nargs="+", default=["gptq-4bit"])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument(
        "--repeats", nargs="+", type=int, default=[1], help="of each recipe; the last is that of all further ones"
    )
    parser.add_argument("--windows", type=int, help="measure the divergence from the dense model on so many held-out windows")
    parser.add_argument("--device", help="GPUs if there are any")
    parser.add_argument("--output", type=Path, required=True, help="new folder for outputs, ranks.csv and ranks.md")
    options = parser.parse_args()
    device, options.tokens, rows = pick_device(options.device), None, []
    options.repeats = dict(zip(options.recipes, options.repeats + options.repeats[-1:] * len(options.recipes), strict=False))
    if options.shape:
        options.model, options.tokens = str(options.output / "model"), str(options.output / "tokens.safetensors")
        if leads():
            random_model(options.shape, options.blocks, Path(options.model), device)
            drawn = torch.randint(0, 1024, (options.samples * 2, options.length), generator=torch.Generator().manual_seed(0))
            save_file({"tokens": drawn}, options.tokens + ".partial")
            Path(options.tokens + ".partial").rename(options.tokens)
        wait_for(Path(options.tokens))
    for recipe in options.recipes:
        found = measure(options, recipe)
        if leads():
            rows += compared(options, found, device)
            write(rows, options.output)


if __name__ == "__main__":
    main()
