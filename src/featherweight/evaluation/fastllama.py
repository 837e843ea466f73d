"""The FastLlama seed's protocol of speed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from featherweight.evaluation.forward import device_of, dtype_of
from featherweight.evaluation.timing import (
    Quantiles,
    check_counts,
    device_name,
    generate_eagerly,
    peak_memory,
    random_tokens,
    reset_peak,
)


def fastllama_protocol(model: Any, *, prompts: int = 20, context: int = 128, long: int = 101) -> dict[str, Any]:
    """Latency of one token, and `(long − 1) / (time for long − latency)` tokens a second.

    One warm-up, then `prompts` prompts, greedy, end tokens disregarded; medians with 20th and 80th percentile. Its peak is
    that of five generations of `long` tokens.

    Raises:
        FeatherweightError: more tokens than the model has positions.
    """
    check_counts(model, [1], [context + long], long, prompts)
    device = device_of(model)
    one: list[float] = []
    many: list[float] = []
    generate_eagerly(model, random_tokens(model, 1, context, device), 1)
    for prompt in range(prompts):
        ids = random_tokens(model, 1, context, device, seed=prompt)
        for count, times in ((1, one), (long, many)):
            prefill, steps, _ = generate_eagerly(model, ids, count - 1)
            times.append(prefill + sum(steps))
    reset_peak(device)
    for prompt in range(min(5, prompts)):
        generate_eagerly(model, random_tokens(model, 1, context, device, seed=prompt), long - 1)
    speeds = [(long - 1) / (whole - first) for first, whole in zip(one, many, strict=True)]
    return {
        "protocol": "fastllama",
        "device": device_name(device),
        "dtype": dtype_of(model),
        "prompts": prompts,
        "context": context,
        "latency": asdict(Quantiles.of(one)),
        "tokens_per_second": asdict(Quantiles.of(speeds)),
        "peak_bytes": peak_memory(device),
    }
