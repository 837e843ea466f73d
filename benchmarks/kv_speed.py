"""Time of a decoding step and bytes of the cache against the context: the exact cache and coded ones.

    python benchmarks/kv_speed.py --shape llama-3.1-8b --layers 4 --contexts 1024,2048,4096,8192 --caches none,kivi-4,qjl -o kv-speed.csv

Weights are random and the cache is filled with random keys and values: neither changes the time. With fewer layers than the model
has, multiply: a step's time is linear in the layers but for the head, which is left out by `--vocabulary`.

A step is transformers' own, eager; with `--fused` also ours, replayed as a CUDA graph, its context read from random tokens.

Every cache takes the same steps twice, and the second time counts: what is built once for a length of keys and kept (cuDNN's plans
of attention, which torch may choose on a GPU for the exact cache; kernels; autotuning) is paid in the first, `first_ms`.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from featherweight.kv_cache import CompressedCache, attach_cache
from featherweight.kv_cache.presets import read_settings
from featherweight.kv_cache.shapes import cache_shapes

SHAPES: dict[str, dict[str, int]] = {
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 32,
    },
    "small": {
        "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 8,
    },
}  # fmt: skip
COLUMNS = (
    "shape", "layers", "device", "dtype", "batch", "context", "cache", "path", "step_ms", "step_ms_q25", "step_ms_q75", "first_ms",
    "cache_bytes", "allocated_bytes", "exact_bytes", "steps",
)  # fmt: skip


def make_model(options: argparse.Namespace) -> Any:
    """A Llama with random weights of the asked shape."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    told = {**SHAPES[options.shape], "vocab_size": options.vocabulary, "max_position_embeddings": 1 << 20}
    if options.layers:
        told["num_hidden_layers"] = options.layers
    config = LlamaConfig(**told, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    with torch.device(options.device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype)).eval()


def fill(model: Any, cache: Any, tokens: int, batch: int) -> None:
    """Random keys and values of so many tokens, layer by layer."""
    parameter = next(model.parameters())
    for layer, shape in enumerate(cache_shapes(model.config)):
        size = (batch, shape.heads, tokens)
        keys = torch.randn(*size, shape.key_dim, dtype=parameter.dtype, device=parameter.device)
        values = torch.randn(*size, shape.value_dim, dtype=parameter.dtype, device=parameter.device)
        cache.update(keys, values, layer)
    if isinstance(cache, CompressedCache):
        cache.settle()


def time_steps(model: Any, cache: Any, batch: int, steps: int, warm: int = 3) -> list[float]:
    """Milliseconds of each step of one token, the device waited for."""
    parameter = next(model.parameters())
    token = torch.zeros(batch, 1, dtype=torch.int64, device=parameter.device)
    found = []
    for step in range(warm + steps):
        _wait(parameter.device)
        start = time.perf_counter()
        model(input_ids=token, past_key_values=cache, use_cache=True)
        _wait(parameter.device)
        if step >= warm:
            found.append(1e3 * (time.perf_counter() - start))
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(model: Any, name: str, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """One line."""
    from transformers import DynamicCache

    from featherweight.kv_cache import detach_cache

    detach_cache(model)
    if name != "none":
        attach_cache(model, read_settings(name, cache_shapes(model.config)[0].key_dim))
    cache, rounds = None, []
    for _ in range(2):
        del cache  # the first is not held beside the second
        cache = DynamicCache(config=model.config) if name == "none" else CompressedCache.from_model(model)
        fill(model, cache, tokens, options.batch)
        rounds.append(time_steps(model, cache, options.batch, options.steps))
    first, times = rounds
    size = next(model.parameters()).element_size()
    shapes = cache_shapes(model.config)
    exact = (
        sum(shape.heads * (shape.key_dim + shape.value_dim) for shape in shapes) * cache.get_seq_length() * options.batch * size
    )
    held = (cache.nbytes, cache.allocated_nbytes) if isinstance(cache, CompressedCache) else (exact, exact)
    low, middle, high = statistics.quantiles(times, n=4)
    return {
        "shape": options.shape, "layers": len(shapes), "device": options.device, "dtype": options.dtype, "batch": options.batch,
        "context": tokens, "cache": name, "path": "transformers", "step_ms": middle, "step_ms_q25": low, "step_ms_q75": high,
        "first_ms": statistics.median(first), "cache_bytes": held[0],
        "allocated_bytes": held[1], "exact_bytes": exact, "steps": len(times),
    }  # fmt: skip


def measure_fused(model: Any, name: str, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """One line of our own step."""
    from featherweight.decoding import open_runner
    from featherweight.kv_cache import detach_cache

    detach_cache(model)
    if name != "none":
        attach_cache(model, read_settings(name, cache_shapes(model.config)[0].key_dim))
    ids = torch.randint(0, options.vocabulary, (options.batch, tokens), device=options.device)
    runner, why = open_runner(model, ids, tokens + 4 * options.steps + 8)
    if runner is None:
        raise SystemExit(f"{name}: {why}")
    for _ in range(4):
        runner.advance()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2 * options.steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        runner.advance()
        mark.record()
    torch.cuda.synchronize()
    low, middle, high = statistics.quantiles([a.elapsed_time(b) for a, b in pairwise(marks)], n=4)
    cache = runner.compressed
    held = (runner.nbytes, runner.nbytes) if cache is None else (cache.nbytes, cache.allocated_nbytes)
    return {
        "shape": options.shape, "layers": len(cache_shapes(model.config)), "device": options.device, "dtype": options.dtype,
        "batch": options.batch, "context": tokens, "cache": name, "path": "fused", "step_ms": middle, "step_ms_q25": low,
        "step_ms_q75": high, "first_ms": None, "cache_bytes": held[0], "allocated_bytes": held[1], "exact_bytes": None,
        "steps": 2 * options.steps,
    }  # fmt: skip


def main() -> None:
    """Every cache at every context."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--layers", type=int, default=0, help="all if not given")
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--contexts", default="1024,2048,4096,8192")
    parser.add_argument("--caches", default="none,int8,kivi-4,kivi-2,qjl", help="as `--kv-cache` takes them, comma separated")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--fused", action="store_true", help="our own step as well; on a GPU, for models that it runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("kv-speed.csv"))
    options = parser.parse_args()
    model = make_model(options)
    with torch.inference_mode(), options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for tokens in map(int, options.contexts.split(",")):
            for name in options.caches.split(","):
                for path in (measure, measure_fused)[: 1 + options.fused]:
                    try:
                        row = path(model, name, tokens, options)
                    except SystemExit as problem:
                        print(problem, flush=True)
                        continue
                    size = row["cache_bytes"] / 2**20
                    print(f"{tokens:>7} {name:>9} {row['path']:>12} {row['step_ms']:9.3f} ms {size:9.1f} MiB", flush=True)
                    writer.writerow(row)
                    file.flush()


if __name__ == "__main__":
    main()
