"""Prefill and decode of one model shape, random weights, in every storage: what the packed forms cost or save.

    python benchmarks/decode.py --shape llama-3b --device cuda --output speed
    python benchmarks/decode.py                          # a tiny shape on the CPU, in seconds

Decoding is timed as transformers runs it and by a CUDA graph. Each distinct shape is compressed once, on a Hessian of independent
inputs, and copied to every block, so that no two blocks share memory. A storage that no form here has is measured by the first
point of a registered method that makes it. Writes `decode.json` and `decode.md` into the output folder, after every form.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from featherweight.engine.forms import Chain, all_forms, pack_by
from featherweight.evaluation.speed import measure_speed
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.rtn import RTN
from featherweight.methods.spqr import SpQR
from featherweight.methods.structured import Structured
from featherweight.packed.base import PackedWeight, from_tensors
from featherweight.packed.linear import PackedLinear
from featherweight.packed.lower import explain
from featherweight.reports.speed import markdown_table

SHAPES = {
    "llama-3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
                 "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True},
    "tiny": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096, "tie_word_embeddings": True},
}  # fmt: skip
FORMS: dict[str, Chain] = {
    "dense": (),
    "8-bit g128": (RTN(bits=8, group_size=128),),
    "4-bit g128": (RTN(bits=4, group_size=128),),
    "3-bit g128": (RTN(bits=3, group_size=128),),
    "50 % masked": (Magnitude(),),
    "2:4 masked + 4-bit": (Magnitude(pattern="2:4"), RTN(bits=4, group_size=128)),
    "spqr 3-bit, 1 % outliers": (SpQR(outlier_threshold=0.3, max_outlier_share=0.2),),
    "25 % of inputs sliced": (Structured(ratio=0.25),),
    "25 % sliced + 4-bit": (Structured(ratio=0.25), RTN(bits=4, group_size=128)),
}


@torch.no_grad()
def put(model: torch.nn.Module, chain: Chain) -> list[PackedWeight]:
    """Packed weights in the place of every linear of the blocks; returns one of each shape."""
    templates: dict[tuple[int, int], PackedWeight] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and ".layers." in f".{name}":
            shape = tuple(module.weight.shape)
            if shape not in templates:
                templates[shape] = pack_by(chain, module.weight.data)
            copied = {key: tensor.clone() for key, tensor in templates[shape].tensors().items()}
            weight = from_tensors(templates[shape].description(), copied)
            model.set_submodule(name, PackedLinear(weight, dtype=module.weight.dtype))
    return list(templates.values())


def measured(config: LlamaConfig, chain: Chain, options: argparse.Namespace) -> dict[str, Any]:
    """Speed of one form, the kernel of each shape, and the seconds all of it took."""
    started = time.perf_counter()
    torch.manual_seed(0)
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    weights = put(model, chain) if chain else []
    kernels = sorted({next(name for name, runs, _ in explain(weight, options.device) if runs) for weight in weights})
    result = measure_speed(
        model, batches=options.batch, contexts=options.context, tokens=options.tokens, repeats=options.repeats
    )
    del model, weights
    if options.device != "cpu":
        torch.cuda.empty_cache()
    return {**result, "kernels": kernels or ["dense"], "seconds": time.perf_counter() - started}


HEADINGS = (
    "form", "weights read, MB", "batch", "context", "prefill ms", "decode ms", "tokens/s", "of copy rate", "graph ms",
    "graph tokens/s", "of copy rate", "kernels", "",
)  # fmt: skip


def table_rows(name: str, result: Mapping[str, Any]) -> Iterator[list[str]]:
    """One line per batch and context."""
    for timing in result["timings"]:
        graph = timing["graph"]
        eager = [
            f"{1e3 * timing['decode']['median']:.2f}",
            f"{timing['tokens_per_second']:.1f}",
            f"{timing['bandwidth_fraction']:.1%}",
        ]
        replayed = ["", "", ""] if graph is None else [
            f"{1e3 * graph['median']:.2f}", f"{timing['graph_tokens_per_second']:.1f}", f"{timing['graph_bandwidth_fraction']:.1%}"
        ]  # fmt: skip
        where = [str(timing["batch"]), str(timing["context"]), f"{1e3 * timing['prefill']['median']:.1f}"]
        remark = timing["graph_note"] or ("waits for launches" if timing["launch_bound"] else "")
        yield [name, f"{result['weight_bytes'] / 1e6:.0f}", *where, *eager, *replayed, ", ".join(result["kernels"]), remark]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--forms", nargs="*", help="names of forms; all if not given")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--context", type=int, nargs="*", default=[128])
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, help="folder for decode.json and decode.md")
    options = parser.parse_args()
    config = LlamaConfig(**SHAPES[options.shape], max_position_embeddings=4096)
    forms, results, rows = all_forms(FORMS), {}, []
    for name in options.forms or forms:
        results[name] = measured(config, forms[name], options)
        rows += table_rows(name, results[name])
        print(f"{name}: {results[name]['seconds']:.0f} s", flush=True)
        print("\n".join(markdown_table(HEADINGS, rows)[-len(options.batch) * len(options.context) :]), flush=True)
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            about = {"shape": options.shape, "tokens": options.tokens, "repeats": options.repeats}
            (options.output / "decode.json").write_text(json.dumps({**about, "forms": results}, indent=1))
            head = (
                f"{results[name]['device']}, {options.shape}, copy rate {results[name]['copy_bytes_per_second'] / 1e9:.0f} GB/s"
            )
            (options.output / "decode.md").write_text("\n".join([head, "", *markdown_table(HEADINGS, rows)]) + "\n")


if __name__ == "__main__":
    main()
