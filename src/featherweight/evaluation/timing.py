"""What every measurement of speed shares: clocks, percentiles, peaks, prompts, one eager generation."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.evaluation.forward import context_of, measuring, vocabulary_of
from featherweight.kv_cache import new_cache


@dataclass(frozen=True)
class Quantiles:
    """Seconds: the median and the 20th and 80th percentile over repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        """Of at least one value."""
        found = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64))
        return cls(*found.tolist())


def generate_eagerly(model: Any, ids: Tensor, steps: int) -> tuple[float, list[float], int]:
    """Seconds of the prefill and of each greedy decode step, and the bytes of the cache at the end."""
    device, times = ids.device, []
    with measuring(model):
        started = now(device)
        output = model(input_ids=ids, past_key_values=new_cache(model), use_cache=True, logits_to_keep=1)
        prefill = now(device) - started
        for _ in range(steps):
            chosen = output.logits[:, -1].argmax(-1, keepdim=True)
            started = now(device)
            output = model(input_ids=chosen, past_key_values=output.past_key_values, use_cache=True)
            times.append(now(device) - started)
    if isinstance(stored := getattr(output.past_key_values, "nbytes", None), int):
        return prefill, times, stored
    layers = getattr(output.past_key_values, "layers", [])
    cached = [tensor for layer in layers for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    return prefill, times, sum(tensor.numel() * tensor.element_size() for tensor in cached if isinstance(tensor, Tensor))


def random_tokens(model: Any, batch: int, context: int, device: torch.device, seed: int = 0) -> Tensor:
    """`[batch, context]` token ids, the same for every model of a vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary_of(model) or 2, (batch, context), generator=generator).to(device)


def now(device: torch.device) -> float:
    """Seconds, once all work handed to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Count the most memory from here on, where the device counts it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes allocated on the accelerator since `reset_peak`; on a CPU the process's largest resident set so far."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name(device: torch.device | str) -> str:
    """A GPU by its own name, a CPU by the threads it computes with."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def check_counts(model: Any, batches: Sequence[int], contexts: Sequence[int], tokens: int, repeats: int) -> None:
    """Refuse counts below 1 and contexts without positions.

    Raises:
        FeatherweightError: it says which, and what would fit.
    """
    counts = {"batch": min(batches), "context": min(contexts), "tokens": tokens, "repeats": repeats}
    for name, count in counts.items():
        if count < 1:
            raise FeatherweightError(f"{name} is too small", found=count, expected="1 or more")
    positions = context_of(model)
    if positions is not None and max(contexts) + tokens > positions:
        raise FeatherweightError(
            "context and new tokens exceed the model's positions",
            found=f"{max(contexts)} + {tokens} tokens",
            expected=f"at most {positions}",
            fix=f"use a context of at most {positions - tokens}",
        )
