"""Tokens that our own step makes over a coded cache, against those that transformers' step makes over the same codecs.

    python benchmarks/kv_steps.py --steps 192 --caches none,int8,kivi-4,kivi-2,qjl

The packaged model, greedy, with its heads of 64 spread over 128 channels (the same function, in exact arithmetic), as the kernels
that put tokens into code want it. Both paths round differently, so tokens may part where two of them are nearly as likely: the
first difference is printed with the margin between the two largest logits there, in standard deviations of the logits.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import featherweight
from featherweight.decoding import open_runner
from featherweight.kv_cache import CompressedCache, attach_cache, detach_cache
from featherweight.kv_cache.presets import read_settings

FOLDER = Path(featherweight.__file__).parent / "assets" / "llama-4m"
TEXT = (
    "Once upon a time there was a little girl who lived in a village near the forest. She loved to walk among the trees and "
    "listen to the birds. One day her mother asked her to bring some bread to her grandmother, who was ill. "
)


def wide_model(device: str) -> Any:
    """The packaged model with heads of 128: channel i becomes 2 i, and i + 32 becomes 2 i + 64, so that angles stay."""
    from transformers import AutoModelForCausalLM

    narrow = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16)
    config = copy.deepcopy(narrow.config)
    config.head_dim = 128
    wide = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    places = torch.cat([torch.arange(32) * 2, torch.arange(32) * 2 + 64])
    weights = {name: value.clone() for name, value in narrow.state_dict().items()}
    for name, value in wide.state_dict().items():
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj", "v_proj"):
            spread = torch.zeros(len(value) // 128, 128, value.shape[1], dtype=value.dtype)
            spread[:, places] = weights[name].view(len(value) // 128, 64, -1) * (2**0.5 if kind == "q_proj" else 1)
            weights[name] = spread.view_as(value)
        elif kind == "o_proj":
            spread = torch.zeros(len(value), value.shape[1] // 128, 128, dtype=value.dtype)
            spread[:, :, places] = weights[name].view(len(value), -1, 64)
            weights[name] = spread.view_as(value)
    wide.load_state_dict(weights)
    return wide.to(device).eval()


def eager(model: Any, cache: Any, ids: Tensor, steps: int) -> tuple[Tensor, list[float]]:
    """Tokens `[batch, steps]`, and the least margin of each."""
    made, margins = [], []
    for _ in range(steps):
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        top = logits.topk(2).values
        ids = logits.argmax(-1, keepdim=True)
        made.append(ids)
        margins.append(float(((top[:, 0] - top[:, 1]) / logits.std(-1)).min()))
    return torch.cat(made, 1), margins


def compare(model: Any, name: str, ids: Tensor, steps: int) -> str:
    """What is said of one cache."""
    from transformers import DynamicCache

    detach_cache(model)
    if name != "none":
        attach_cache(model, read_settings(name, 128))
    cache = DynamicCache(config=model.config) if name == "none" else CompressedCache.from_model(model)
    expected, margins = eager(model, cache, ids, steps)
    runner, why = open_runner(model, ids, ids.shape[1] + steps + 8)
    if runner is None:
        return f"{name}: no step of ours: {why}"
    found = torch.tensor(list(runner.tokens(steps)), device=ids.device).T.view_as(expected)
    first = f"first logits differ by {runner.difference:.1e}"
    apart = (found != expected).any(0).nonzero().flatten().tolist()
    if not apart:
        return f"{name}: {steps} tokens after {ids.shape[1]} are equal, least margin {min(margins):.3f}; {first}"
    return f"{name}: tokens part at step {apart[0]} of {steps}, margin {margins[apart[0]]:.3f}; {first}"


def main() -> None:
    """Every cache."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caches", default="none,int8,kivi-4,kivi-2,qjl", help="as `--kv-cache` takes them, comma separated")
    parser.add_argument("--steps", type=int, default=192)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    tokenizer, model = AutoTokenizer.from_pretrained(FOLDER), wide_model(options.device)
    ids = tokenizer(TEXT * 4, return_tensors="pt").input_ids.to(options.device)
    with torch.inference_mode():
        for name in options.caches.split(","):
            print(compare(model, name, ids, options.steps), flush=True)


if __name__ == "__main__":
    main()
