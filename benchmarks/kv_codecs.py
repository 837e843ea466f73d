"""Cache codecs on a model's own keys and values: real bits, and what each costs the attention output.

    python benchmarks/kv_codecs.py MODEL [--length 512] [--queries 128] [--dtype bfloat16] [--codec '{codec: qjl, ratio: 1.0}' ...]

One window of held-out text runs through the model; queries (after rotary positions), keys and values of every layer are kept. Then
every token's keys, or values, or both are coded, without a window, and the last queries attend again. Errors are relative,
`‖x̂ − x‖ / ‖x‖` over all heads of a layer, averaged over layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import featherweight as fw
from featherweight.data.corpora import load_corpus
from featherweight.data.windows import evaluation_windows
from featherweight.kv_cache import CacheCodec, make_codec
from featherweight.models.source import resolve_model
from featherweight.reports.sheets import Column, Sheet, markdown

CODECS = [
    *({"codec": "integer", "axis": axis, "bits": bits} for bits in (2, 3, 4, 8) for axis in ("channel", "token")),
    {"codec": "qjl"},
    {"codec": "qjl", "constant": "gaussian"},
    {"codec": "qjl", "projection": "gaussian"},
    {"codec": "qjl", "outliers": 0},
    {"codec": "qjl", "ratio": 1.0},
    {"codec": "qjl", "ratio": 1.0, "outliers": 0},
    *({"codec": "rotated", "bits": bits} for bits in (1, 2, 3, 4)),
    {"codec": "rotated", "bits": 2, "lattice": True},
    *({"codec": "rotated", "bits": bits, "group_size": 128} for bits in (1, 2, 3, 4)),
    *({"codec": "rotated", "bits": bits, "group_size": 128, "balance": True} for bits in (1, 2, 3, 4)),
    {"codec": "rotated", "bits": 2, "lattice": True, "group_size": 128, "balance": True},
]
Layer = tuple[Tensor, Tensor, Tensor, float]


@contextmanager
def captured(model: Any) -> Iterator[list[Layer]]:
    """Query, keys, values and scaling of every attention that runs inside, in the model's dtype."""
    layers: list[Layer] = []
    plain = AttentionInterface()["sdpa"]

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **rest: Any) -> Any:
        layers.append((query, key, value, scaling or query.shape[-1] ** -0.5))
        return plain(module, query, key, value, mask, scaling=scaling, **rest)

    AttentionInterface.register("captured", attend)
    AttentionMaskInterface.register("captured", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("captured")
    yield layers
    model.set_attn_implementation(before)


def capture(name: str, length: int, dtype: torch.dtype) -> list[Layer]:
    """What the attentions of the model see of held-out text."""
    source = resolve_model(name)
    model = fw.load(source.folder, dtype=dtype)
    text = load_corpus("heldout", split="evaluation", offline=True)
    tokens = evaluation_windows(text, source.tokenizer(), length=length, windows=1).tokens
    with torch.no_grad(), captured(model) as layers:
        model(tokens)
    return layers


def attend(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """`softmax(q Kᵀ) V` of the last queries, causal, in float32."""
    grouped = query.unflatten(1, (keys.shape[1], -1))
    scores = grouped @ keys.unsqueeze(2).transpose(-1, -2) * scaling
    queries, tokens = scores.shape[-2:]
    hidden = torch.ones(queries, tokens, dtype=torch.bool).triu(tokens - queries + 1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values.unsqueeze(2)


def error(found: Tensor, exact: Tensor) -> float:
    """`‖x̂ − x‖ / ‖x‖`."""
    return float((found - exact).norm() / exact.norm())


def measure(codec: CacheCodec, layers: list[Layer], queries: int) -> dict[str, float]:
    """Mean errors over the layers, by column."""
    sums: dict[str, float] = {}
    for index, (query, keys, values, scaling) in enumerate(layers):
        codec.check(keys.shape[-1])
        constants = codec.constants(keys.shape[-1], torch.Generator().manual_seed(index))
        asked, exact = query[:, :, -queries:].float(), {"keys": keys.float(), "values": values.float()}
        coded = {
            part: codec.decode(codec.encode(tensor, constants), constants, torch.float32)
            for part, tensor in (("keys", keys), ("values", values))
            if part in codec.serves
        }
        plain = attend(asked, exact["keys"], exact["values"], scaling)
        found = {part: error(tensor, exact[part]) for part, tensor in coded.items()}
        for part, tensor in coded.items():
            found[f"by {part}"] = error(attend(asked, **exact | {part: tensor}, scaling=scaling), plain)
        if len(coded) == 2:
            found["by both"] = error(attend(asked, **coded, scaling=scaling), plain)
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value / len(layers)
    return sums


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--codec", action="append", help="YAML; instead of the whole list")
    asked = parser.parse_args()
    dtype = getattr(torch, asked.dtype)
    layers = capture(asked.model, asked.length, dtype)
    head_dim = layers[0][1].shape[-1]
    records = []
    for settings in [yaml.safe_load(text) for text in asked.codec or ()] or CODECS:
        codec = make_codec(settings)
        name = " ".join(str(value) if key in ("codec", "axis") else f"{key}={value}" for key, value in settings.items())
        records.append({"codec": name, "bits": codec.stored_bits(head_dim, dtype), **measure(codec, layers, asked.queries)})
    names = ("bits", "keys", "values", "by keys", "by values", "by both")
    columns = (
        Column("codec", lambda record: record["codec"], words=True),
        *(Column(name, lambda record, name=name: f"{record[name]:.3f}" if name in record else "") for name in names),
    )
    heads = f"{layers[0][0].shape[1]} query heads, {layers[0][1].shape[1]} key heads of {head_dim}"
    print(
        markdown(
            Sheet("codecs", f"{asked.model}: {len(layers)} layers, {heads}, {asked.length} tokens", columns, tuple(records))
        )
    )


if __name__ == "__main__":
    main()
