"""Seconds by phase of compressing one model on 1, 2, … ranks, and how far the outputs lie apart.

    python benchmarks/ranks.py --model demo --device cpu --ranks 1 2 4 --windows 16        # gloo
    python benchmarks/ranks.py --shape llama-3.1-8b --blocks 2 --ranks 1 2                 # NCCL, random weights

Every count of ranks is one launch of `torchrun`, which compresses by each recipe, on GPUs first on few tokens to warm up (kernels,
NCCL), and then `--repeats` times. Statistics are neither kept nor reused. `linears` is the slowest rank's; of `reduce` and
`broadcast` the last to come counts, which waits for nobody; `rest` is reading, the last layers and the proof. `differing` is the
share of dequantized weights that are not those of the first count, `difference` the relative difference of all of them, `error`
the mean over linears of their relative output errors; `repeats` says whether all runs of a count wrote the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
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


def work(options: argparse.Namespace) -> None:
    """One launch: every recipe, warm-up and repeats; the first rank writes what all ranks spent."""
    found: dict[str, Any] = {}
    device = pick_device(options.device)
    for recipe in options.recipes:
        name, further = CHANGED.get(recipe, (recipe, {}))
        for repeat in range(-1 if device.type == "cuda" else 0, options.repeats):
            samples = options.samples if repeat >= 0 else min(options.samples, 2 * options.batch_size * launched())
            plan = fw.plan(options.model, name, changes={**settings(options, samples), **further}, offline=True)
            folder = options.output / f"{recipe}-{launched()}-{repeat}"
            with tempfile.TemporaryDirectory() as statistics:
                result = compress(plan, folder, device=options.device, statistics=Path(statistics), offline=True)
            told: list[Any] = [dict(result.phases)]
            if launched() > 1:
                told = [None] * launched()
                dist.all_gather_object(told, dict(result.phases))
            if repeat == 0:
                found[recipe] = timed(result, told)
                if leads():
                    (options.output / f"times-{launched()}.json").write_text(json.dumps(found))
            if leads():
                print(f"{recipe}, {launched()} ranks, run {repeat}: {result.seconds:.2f} s", flush=True)


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


def rows_of(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    times = {count: json.loads((options.output / f"times-{count}.json").read_text()) for count in options.ranks}
    rows = []
    for recipe in [each for each in options.recipes if all(each in found for found in times.values())]:
        first = times[options.ranks[0]][recipe]["seconds"]
        for count in options.ranks:
            folders = [options.output / f"{recipe}-{count}-{repeat}" for repeat in range(options.repeats)]
            row: dict[str, Any] = {"recipe": recipe, "ranks": count, **times[count][recipe]}
            row |= apart(options.output / f"{recipe}-{options.ranks[0]}-0", folders[0], device)
            row |= {"speed-up": first / row["seconds"], "repeats": same_bytes(folders) if len(folders) > 1 else ""}
            if options.windows:
                told = fw.evaluate(
                    folders[0], against=options.model, windows=options.windows, device=options.device, offline=True
                )
                row["kl"] = next(each.value for each in told if each.name == "kl")
            rows.append(row)
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
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--windows", type=int, help="measure the divergence from the dense model on so many held-out windows")
    parser.add_argument("--device", help="GPUs if there are any")
    parser.add_argument("--tokens", help=argparse.SUPPRESS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, required=True, help="folder for outputs, ranks.csv and ranks.md")
    options = parser.parse_args()
    if options.work:
        return work(options)
    device = pick_device(options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.shape:
        options.model = str(random_model(options.shape, options.blocks, options.output / "model", device))
        options.tokens = str(options.output / "tokens.safetensors")
        drawn = torch.randint(0, 1024, (options.samples * 2, options.length), generator=torch.Generator().manual_seed(0))
        save_file({"tokens": drawn}, options.tokens)
    told = {
        key.replace("_", "-"): value for key, value in vars(options).items() if key not in ("work", "ranks", "shape", "windows")
    }
    words = [
        word for key, value in told.items() if value is not None
        for word in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
    ]  # fmt: skip
    for count in options.ranks:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        subprocess.run([*launcher, __file__, "--work", *words], check=False)
    write(rows_of(options, device), options.output)


if __name__ == "__main__":
    main()
