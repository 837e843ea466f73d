"""What `fw plan --fit` predicts against what a process takes: compress random weights of a shape, load, read, decode.

    python benchmarks/fit.py [--model demo | --shape llama-1b|llama-8b|tiny] [--recipe gptq-4bit ...] [--device cuda]
                             [--context 4096 ...] [--batch 1 ...] [--folder FOLDER] [--json FILE]

On a GPU the measured bytes are `torch.cuda.memory_allocated` after loading and `max_memory_allocated` at the end, and the
prediction leaves the process out (cuBLAS's workspace too, tens of MB that are measured all the same). On a CPU they are the
largest resident set, and the process is counted. Every measurement is a process of its own. Models go into FOLDER (a temporary
one if not given), which needs room for the dense weights and the compressed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from featherweight import api
from featherweight.models.source import ModelSource, resolve_model
from featherweight.planning.fit import fit
from featherweight.search.running import run_apart

_LLAMA = {"rope_theta": 500000.0, "vocab_size": 128256, "max_position_embeddings": 131072}
SHAPES = {
    "llama-8b": {**_LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "tie_word_embeddings": False},
    "llama-1b": {**_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
    "tiny": {**_LLAMA, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 8192, "tie_word_embeddings": True},
}  # fmt: skip


def random_model(shape: str, folder: Path, device: str) -> ModelSource:
    """A checkpoint of random bfloat16 weights."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[shape]), dtype=torch.bfloat16)
        model.save_pretrained(folder)
        del model
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return ModelSource(shape, folder)


def compressed(source: ModelSource, recipe: str, folder: Path, device: str) -> Path:
    """The model by `recipe`, calibrated on a few random tokens: bytes do not depend on them."""
    if recipe == "dense":
        return source.folder
    tokens = folder.parent / "tokens.npy"
    vocabulary = source.config().get_text_config(decoder=True).vocab_size
    np.save(tokens, np.random.default_rng(0).integers(0, vocabulary, (16, 256)))
    changes = {"calibration.source": str(tokens), "calibration.samples": 16, "calibration.length": 256}
    return api.compress(api.plan(source, recipe, changes=changes), folder, device=device, offline=True).folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--recipe", nargs="*", default=["dense", "gptq-4bit"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--context", type=int, nargs="*", default=[4096])
    parser.add_argument("--batch", type=int, nargs="*", default=[1])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp())
    root.mkdir(parents=True, exist_ok=True)
    source = (
        resolve_model(options.model) if options.model else random_model(options.shape, root / options.shape, options.device)
    )
    rows = []
    print(
        "| recipe | batch | context | weights MB, predicted | loaded | peak MB, predicted | measured | predicted / measured |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for recipe in options.recipe:
        folder = compressed(source, recipe, root / f"{source.name}-{recipe}", options.device)
        for batch in options.batch:
            for context in options.context:
                kind = options.device.split(":")[0]
                needs, _ = fit(
                    source, [recipe] if recipe != "dense" else ["rtn-8bit"], 2**50, context=context, batch=batch, device=kind
                )
                need = next(need for need in needs if need.recipe == recipe)
                ran = run_apart(folder, device=options.device, batch=batch, context=context, tokens=4, repeats=1)
                process = need.process if kind == "cpu" else 0
                rows.append(
                    {"recipe": recipe, "batch": batch, "context": context, "predicted": need.as_dict(), "measured": ran}
                )
                weights, peak = need.weights + process, need.total - need.process + process
                print(
                    f"| {recipe} | {batch} | {context} | {weights / 1e6:.1f} | {ran['loaded_bytes'] / 1e6:.1f} | {peak / 1e6:.1f} "
                    f"| {ran['peak_bytes'] / 1e6:.1f} | {peak / ran['peak_bytes']:.3f} |",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
