"""Prefill and decode of one model shape, random weights, in every storage: what the packed forms cost or save today.

    python benchmarks/forms.py [--shape llama-3b|tiny] [--device cuda] [--batch 1 16] [--context 128] [--json FILE]

Each distinct shape is compressed once and copied to every block, so that no two blocks share memory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from featherweight.evaluation.speed import measure_speed
from featherweight.methods.base import Method, Problem
from featherweight.methods.inside import compress_inside
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.rtn import RTN
from featherweight.methods.spqr import SpQR
from featherweight.methods.structured import Structured
from featherweight.packed.base import PackedWeight, from_tensors
from featherweight.packed.dense import Dense
from featherweight.packed.linear import PackedLinear
from featherweight.statistics.inputs import InputStatistics

SHAPES = {
    "llama-3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
                 "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True},
    "tiny": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096, "tie_word_embeddings": True},
}  # fmt: skip
FORMS: dict[str, tuple[Method, ...]] = {
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


def packed(weight: torch.Tensor, chain: tuple[Method, ...]) -> PackedWeight:
    """`weight` after the chain, on a Hessian of independent inputs."""
    eye = torch.eye(weight.shape[1], device=weight.device)
    statistics = InputStatistics(1, eye.diagonal().clone(), eye)
    problem = Problem({"w": weight.float()}, {"w": Dense(weight)}, statistics, weight.dtype)
    for method in chain:
        done = compress_inside(method, problem)
        problem = Problem(problem.weights, {"w": done["w"].weight}, statistics, weight.dtype)
    return problem.current["w"]


@torch.no_grad()
def put(model: torch.nn.Module, chain: tuple[Method, ...]) -> None:
    """Packed weights in the place of every linear of the blocks."""
    templates: dict[tuple[int, int], PackedWeight] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and ".layers." in f".{name}":
            shape = tuple(module.weight.shape)
            if shape not in templates:
                templates[shape] = packed(module.weight.data, chain)
            copied = {key: tensor.clone() for key, tensor in templates[shape].tensors().items()}
            weight = from_tensors(templates[shape].description(), copied)
            model.set_submodule(name, PackedLinear(weight, dtype=module.weight.dtype))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--context", type=int, nargs="*", default=[128])
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = LlamaConfig(**SHAPES[options.shape], max_position_embeddings=4096)
    results = {}
    print(
        "| form | weights read, MB | batch | prefill ms | decode ms | tokens/s | of copy rate | |\n|---|---|---|---|---|---|---|---|"
    )
    for name, chain in FORMS.items():
        torch.manual_seed(0)
        with torch.device(options.device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        if chain:
            put(model, chain)
        results[name] = measure_speed(model, batches=options.batch, contexts=options.context, tokens=options.tokens, repeats=2)
        for timing in results[name]["timings"]:
            bound = "waits for launches" if timing["launch_bound"] else ""
            print(
                f"| {name} | {results[name]['weight_bytes'] / 1e6:.0f} | {timing['batch']} | {1e3 * timing['prefill']['median']:.1f} "
                f"| {1e3 * timing['decode']['median']:.1f} | {timing['tokens_per_second']:.1f} "
                f"| {timing['bandwidth_fraction']:.1%} | {bound} |",
                flush=True,
            )
        del model
        if options.device == "cuda":
            torch.cuda.empty_cache()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
