"""How fast a model answers, against what its machine's memory allows."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.evaluation.forward import context_of, device_of, dtype_of, measuring, vocabulary_of

#: Bytes of each of the two tensors that a copy measures the memory's rate with: far beyond every cache.
COPIED_ON_CPU, COPIED_ELSEWHERE = 2**26, 2**32

#: A decode step that takes this many times its share of the memory's rate, on an accelerator, waits for launches.
LAUNCH_BOUND = 4.0


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


@dataclass(frozen=True)
class Timing:
    """One batch size and one context.

    Attributes:
        batch: sequences at once.
        context: tokens of each before decoding.
        prefill: seconds to read the contexts.
        decode: seconds of one step, which gives every sequence one token.
        tokens_per_second: of all sequences together, `batch / decode`.
        bytes_per_step: stored bytes that a step reads: weights once, and the caches.
        bandwidth_fraction: of the machine's measured copy rate that reading those bytes in that time is.
        launch_bound: whether, on an accelerator, a step waits for launches rather than for memory.
        peak_bytes: most memory allocated on the accelerator; on a CPU the process's largest resident set so far.
    """

    batch: int
    context: int
    prefill: Quantiles
    decode: Quantiles
    tokens_per_second: float
    bytes_per_step: int
    bandwidth_fraction: float
    launch_bound: bool
    peak_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def measure_speed(
    model: Any,
    *,
    batches: Sequence[int] = (1,),
    contexts: Sequence[int] = (128,),
    tokens: int = 16,
    repeats: int = 3,
    report: Callable[[Timing], None] = lambda timing: None,
) -> dict[str, Any]:
    """Prefill and decode apart, eagerly and from the packed weights, for every batch and context.

    Args:
        model: a transformers causal model with a key-value cache.
        batches, contexts: what to measure; one warm-up each.
        tokens: decode steps of a repeat; the median is over all steps of all repeats.
        repeats: of each measurement.
        report: called with each timing.

    Returns:
        `{device, dtype, copy_bytes_per_second, weight_bytes, timings}`.

    Raises:
        FeatherweightError: a context that the model has no positions for, or counts below 1.
    """
    _check(model, batches, contexts, tokens, repeats)
    device = device_of(model)
    rate, weights = copy_rate(device), weight_bytes_read(model)
    timings = []
    for batch in batches:
        for context in contexts:
            ids = _random_tokens(model, batch, context, device)
            _reset_peak(device)
            _run(model, ids, min(tokens, 2))
            runs = [_run(model, ids, tokens) for _ in range(repeats)]
            prefill, decode = Quantiles.of([run[0] for run in runs]), Quantiles.of([step for run in runs for step in run[1]])
            read = weights + runs[-1][2]
            fraction = read / decode.median / rate
            bound = device.type != "cpu" and fraction < 1 / LAUNCH_BOUND
            timing = Timing(batch, context, prefill, decode, batch / decode.median, read, fraction, bound, _peak(device))
            timings.append(timing)
            report(timing)
    return {
        "device": device_name(device),
        "dtype": dtype_of(model),
        "copy_bytes_per_second": rate,
        "weight_bytes": weights,
        "timings": [timing.as_dict() for timing in timings],
    }


def fastllama_protocol(model: Any, *, prompts: int = 20, context: int = 128, long: int = 101) -> dict[str, Any]:
    """The FastLlama seed's protocol: latency of one token, and `(long − 1) / (time for long − latency)` tokens a second.

    One warm-up, then `prompts` prompts, greedy, end tokens disregarded; medians with 20th and 80th percentile. Its peak is
    that of five generations of `long` tokens.

    Raises:
        FeatherweightError: more tokens than the model has positions.
    """
    _check(model, [1], [context + long], long, prompts)
    device = device_of(model)
    one: list[float] = []
    many: list[float] = []
    _run(model, _random_tokens(model, 1, context, device), 1)
    for prompt in range(prompts):
        ids = _random_tokens(model, 1, context, device, seed=prompt)
        for count, times in ((1, one), (long, many)):
            prefill, steps, _ = _run(model, ids, count - 1)
            times.append(prefill + sum(steps))
    _reset_peak(device)
    for prompt in range(min(5, prompts)):
        _run(model, _random_tokens(model, 1, context, device, seed=prompt), long - 1)
    speeds = [(long - 1) / (whole - first) for first, whole in zip(one, many, strict=True)]
    return {
        "protocol": "fastllama",
        "device": device_name(device),
        "dtype": dtype_of(model),
        "prompts": prompts,
        "context": context,
        "latency": asdict(Quantiles.of(one)),
        "tokens_per_second": asdict(Quantiles.of(speeds)),
        "peak_bytes": _peak(device),
    }


def copy_rate(device: torch.device, repeats: int = 5) -> float:
    """Bytes a second, read and written, of a copy between tensors that no cache holds; the best of some runs."""
    size = COPIED_ON_CPU if device.type == "cpu" else COPIED_ELSEWHERE
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(repeats):
        started = _now(device)
        target.copy_(source)
        best = min(best, _now(device) - started)
    return 2 * size / best


def weight_bytes_read(model: nn.Module) -> int:
    """Stored bytes of all weights that one decode step reads: everything but the table of an untied embedding."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    table = _stored(embedding)
    tied = table.keys() & _stored(head).keys() or getattr(head, "_embedding", (None,))[0] is embedding
    read = {key: size for key, size in _stored(model).items() if tied or key not in table}
    return sum(read.values())


def _stored(module: nn.Module | None) -> dict[int, int]:
    """Bytes of every tensor below a module, by address; a shared one counts once."""
    if module is None:
        return {}
    tensors = [*module.parameters(), *module.buffers()]
    return {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}


def _run(model: Any, ids: Tensor, steps: int) -> tuple[float, list[float], int]:
    """Seconds of the prefill and of each greedy decode step, and the bytes of the cache at the end."""
    device, times = ids.device, []
    with measuring(model):
        started = _now(device)
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        prefill = _now(device) - started
        for _ in range(steps):
            chosen = output.logits[:, -1].argmax(-1, keepdim=True)
            started = _now(device)
            output = model(input_ids=chosen, past_key_values=output.past_key_values, use_cache=True)
            times.append(_now(device) - started)
    layers = getattr(output.past_key_values, "layers", [])
    cached = [tensor for layer in layers for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    return prefill, times, sum(tensor.numel() * tensor.element_size() for tensor in cached if isinstance(tensor, Tensor))


def _random_tokens(model: Any, batch: int, context: int, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary_of(model) or 2, (batch, context), generator=generator).to(device)


def _now(device: torch.device) -> float:
    """Seconds, once all work handed to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name(device: torch.device | str) -> str:
    """A GPU by its own name, a CPU by the threads it computes with."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _check(model: Any, batches: Sequence[int], contexts: Sequence[int], tokens: int, repeats: int) -> None:
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
