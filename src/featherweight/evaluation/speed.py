"""How fast a model answers, against what its machine's memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from featherweight.evaluation.forward import device_of, dtype_of
from featherweight.evaluation.graphs import time_graph
from featherweight.evaluation.timing import (
    Quantiles,
    check_counts,
    device_name,
    generate_eagerly,
    now,
    peak_memory,
    random_tokens,
    reset_peak,
)

#: Bytes of each of the two tensors that a copy measures the memory's rate with: far beyond every cache.
COPIED_ON_CPU, COPIED_ELSEWHERE = 2**26, 2**32

#: A step waits for launches that takes this many times the graph's; without a graph, this many times its share of the rate.
SLOWER_THAN_GRAPH, SLOWER_THAN_RATE = 1.25, 4.0


@dataclass(frozen=True)
class Timing:
    """One batch size and one context.

    Attributes:
        batch: sequences at once.
        context: tokens of each before decoding.
        prefill: seconds to read the contexts.
        decode: seconds of one step, which gives every sequence one token, as transformers runs it.
        tokens_per_second: of all sequences together, `batch / decode`.
        bytes_per_step: stored bytes that a step reads: weights once, and the caches.
        bandwidth_fraction: of the machine's measured copy rate that reading those bytes in that time is.
        launch_bound: whether, on an accelerator, a step waits for launches rather than for memory.
        peak_bytes: most memory allocated on the accelerator; on a CPU the process's largest resident set so far.
        graph: seconds of one step replayed from a CUDA graph; None where there is none.
        graph_tokens_per_second, graph_bandwidth_fraction: as above, of that.
        graph_note: why there is no graph, or why it is not of our own step.
        graph_path: whose step was recorded, "fused" (ours) or "transformers".
        graph_peak_bytes: most memory allocated while it was, static cache and recorded buffers included.
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
    graph: Quantiles | None = None
    graph_tokens_per_second: float | None = None
    graph_bandwidth_fraction: float | None = None
    graph_note: str = ""
    graph_path: str = ""
    graph_peak_bytes: int | None = None

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
    """Prefill and decode apart, from the packed weights, for every batch and context; on a GPU also decode by a graph.

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
    check_counts(model, batches, contexts, tokens, repeats)
    device = device_of(model)
    rate, weights = copy_rate(device), weight_bytes_read(model)
    timings = []
    for batch in batches:
        for context in contexts:
            timing = _timed(model, (batch, context), tokens, repeats, rate, weights)
            timings.append(timing)
            report(timing)
    return {
        "device": device_name(device),
        "dtype": dtype_of(model),
        "copy_bytes_per_second": rate,
        "weight_bytes": weights,
        "timings": [timing.as_dict() for timing in timings],
    }


def _timed(model: Any, shape: tuple[int, int], tokens: int, repeats: int, rate: float, weights: int) -> Timing:
    """One batch and context on a machine that copies `rate` bytes a second."""
    device, batch = device_of(model), shape[0]
    ids = random_tokens(model, *shape, device)
    reset_peak(device)
    generate_eagerly(model, ids, min(tokens, 2))
    runs = [generate_eagerly(model, ids, tokens) for _ in range(repeats)]
    peak = peak_memory(device)
    prefill, decode = Quantiles.of([run[0] for run in runs]), Quantiles.of([step for run in runs for step in run[1]])
    read = weights + runs[-1][2]
    fraction = read / decode.median / rate
    reset_peak(device)
    replayed = time_graph(model, ids, tokens, repeats)
    graph = Quantiles.of(replayed.seconds) if replayed.seconds else None
    bound = decode.median > SLOWER_THAN_GRAPH * graph.median if graph else fraction < 1 / SLOWER_THAN_RATE
    return Timing(
        *shape, prefill, decode, batch / decode.median, read, fraction, bound and device.type != "cpu", peak, graph,
        batch / graph.median if graph else None, read / graph.median / rate if graph else None, replayed.note,
        replayed.path, peak_memory(device) if graph else None,
    )  # fmt: skip


def copy_rate(device: torch.device, repeats: int = 5) -> float:
    """Bytes a second, read and written, of a copy between tensors that no cache holds; the best of some runs."""
    size = COPIED_ON_CPU if device.type == "cpu" else COPIED_ELSEWHERE
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(repeats):
        started = now(device)
        target.copy_(source)
        best = min(best, now(device) - started)
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
