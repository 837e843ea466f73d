"""Tokens of context that fit into a GiB of cache, for the shapes of Llama-3.1-8B or any configuration, by layout and by measure.

    python benchmarks/kv_tokens.py [CONFIG_FOLDER] --caches none,int8,kivi-4,kivi-2,qjl --context 32768 -o kv-tokens.csv

Computed: `CacheSettings` and the layers' shapes alone. Measured: a cache filled with so many tokens on the meta device, whose
tensors have shapes and no memory; the two must agree, or the script fails.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch

from featherweight.kv_cache import CacheSettings, CompressedCache
from featherweight.kv_cache.presets import read_settings
from featherweight.kv_cache.shapes import cache_shapes
from featherweight.planning.cache import CachePlan

GIB = 2**30


def make_config(folder: str | None) -> Any:
    """Of a folder, or of Llama-3.1-8B."""
    from transformers import AutoConfig, LlamaConfig

    if folder:
        return AutoConfig.from_pretrained(folder)
    return LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=131072,
    )  # fmt: skip


def measure(config: Any, plan: CachePlan, tokens: int) -> int:
    """Bytes of a `CompressedCache` after so many tokens, on the meta device."""
    cache = CompressedCache(config, plan.settings)
    for layer, shape in enumerate(plan.shapes):
        keys, values = (
            torch.empty(1, shape.heads, tokens, dim, dtype=plan.dtype, device="meta")
            for dim in (shape.key_dim, shape.value_dim)
        )
        cache.update(keys, values, layer)
        cache.layers[layer].settle()
    return cache.nbytes


def main() -> None:
    """One line for each cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?")
    parser.add_argument("--caches", default="none,int8,kivi-4,kivi-2,qjl")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--output", type=Path, default=Path("kv-tokens.csv"))
    options = parser.parse_args()
    config = make_config(options.config)
    shapes, dtype, rows = cache_shapes(config), getattr(torch, options.dtype), []
    for name in options.caches.split(","):
        settings = CacheSettings() if name == "none" else read_settings(name, shapes[0].key_dim)
        plan = CachePlan(settings, shapes, dtype)
        computed, measured = plan.bytes_of(options.context), measure(config, plan, options.context)
        if computed != measured:
            raise SystemExit(f"{name}: computed {computed:,} bytes, measured {measured:,}")
        rows.append({
            "cache": name, "key_bits": plan.key_bits, "value_bits": plan.value_bits, "context": options.context, "bytes": measured,
            "bytes_a_token": measured / options.context, "tokens_per_gib": int(GIB * options.context / measured),
            "tokens_per_gib_in_code": int(GIB / plan.token_bytes),
        })  # fmt: skip
        print(", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in rows[-1].items()))
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
