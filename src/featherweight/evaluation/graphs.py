"""Decoding by a CUDA graph: one recorded step, replayed for every token, so that no step waits for launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from featherweight.decoding.runner import open_runner
from featherweight.evaluation.forward import measuring
from featherweight.evaluation.timing import now
from featherweight.kv_cache import attached

#: Steps before a capture (compiling, choosing kernels), and steps whose logits are compared with eager ones after it.
WARM_UP, COMPARED = 3, 3

#: Relative to the largest logit, of a replayed step against the same step run eagerly.
BOUNDS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}

ON_A_CPU = "there are none on a CPU"


class StaticDecoder:
    """Greedy decoding whose every step reads and writes the same addresses, as a graph needs it.

    Args:
        model: a transformers causal model that can use a static cache.
        batch: sequences.
        length: tokens that the cache holds for each.
    """

    def __init__(self, model: Any, batch: int, length: int, device: torch.device) -> None:
        from transformers import StaticCache

        self.model, self.cache = model, StaticCache(config=model.config, max_cache_len=length)
        self.token = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.logits: Tensor | None = None

    def prefill(self, ids: Tensor) -> None:
        """Forget everything, read `ids [batch, context]` and choose the first token."""
        self.cache.reset()
        output = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.token.copy_(output.logits[:, -1].argmax(-1, keepdim=True))

    def step(self) -> None:
        """Read the chosen token and choose the next; nothing is handed to the host."""
        output = self.model(input_ids=self.token, past_key_values=self.cache, use_cache=True)
        self.logits = output.logits[:, -1]
        self.token.copy_(self.logits.argmax(-1, keepdim=True))


@dataclass(frozen=True)
class GraphTimes:
    """What replaying steps took.

    Attributes:
        seconds: of every replayed step, of all repeats; empty where there is no graph.
        path: whose step was recorded, "fused" (ours) or "transformers"; empty without a graph.
        note: why there is no graph; or, of transformers' step, why ours does not run this model.
    """

    seconds: list[float]
    path: str = ""
    note: str = ""


def time_graph(model: Any, ids: Tensor, tokens: int, repeats: int) -> GraphTimes:
    """Seconds of replayed decode steps, of our own fused step where it runs this model, of transformers' elsewhere.

    Args:
        ids: `[batch, context]` prompts.
        tokens: steps of a repeat.
    """
    if ids.device.type != "cuda":
        return GraphTimes([], "", ON_A_CPU)
    fused, why = time_fused(model, ids, tokens, repeats)
    if fused:
        return GraphTimes(fused, "fused")
    if attached(model) is not None:
        return GraphTimes(
            [], "", f"no fused step: {why}; through transformers a compressed cache grows, and a graph keeps its addresses"
        )
    stock, reason = time_stock(model, ids, tokens, repeats)
    note = f"no fused step: {why}" + (f"; no graph of transformers' step: {reason}" if reason else "")
    return GraphTimes(stock, "transformers" if stock else "", note)


def time_fused(model: Any, ids: Tensor, tokens: int, repeats: int) -> tuple[list[float], str]:
    """Seconds of every step of a `Runner`, queued one behind another, by the device's own clock; or none, and why."""
    device, times = ids.device, []
    try:
        with measuring(model), torch.cuda.device(device):
            runner, why = open_runner(model, ids, ids.shape[1] + tokens + 1)
            for _ in range(repeats if runner is not None else 0):
                assert runner is not None
                runner.crop(0)
                runner.read(ids)
                runner.advance()  # records, the first time
                marks = [torch.cuda.Event(enable_timing=True) for _ in range(tokens + 1)]
                marks[0].record()
                for mark in marks[1:]:
                    runner.advance()
                    mark.record()
                torch.cuda.synchronize(device)
                times += [1e-3 * before.elapsed_time(after) for before, after in pairwise(marks)]
    except Exception as problem:  # a kernel that cannot be compiled or recorded must not end the measurement
        return [], _reason(problem)
    return times, why


def time_stock(model: Any, ids: Tensor, tokens: int, repeats: int) -> tuple[list[float], str]:
    """Seconds of every replay of transformers' own step on its static cache; or none, and why no graph could be used.

    Returns:
        Seconds, and "" or the reason: an operation that waits for the host, a family without a static cache, or replayed
        logits that differ from eager ones.
    """
    device, times = ids.device, []
    try:
        with measuring(model), torch.cuda.device(device):
            decoder = StaticDecoder(model, ids.shape[0], ids.shape[1] + tokens, device)
            graph = capture(decoder, ids, min(WARM_UP, tokens))
            difference = replay_difference(decoder, graph.replay, ids, min(COMPARED, tokens))
            bound = BOUNDS[decoder.logits.dtype] if decoder.logits is not None else 0.0
            if not difference <= bound:
                return [], f"replayed logits differ from eager ones by {difference:.1e} of the largest"
            for _ in range(repeats):
                decoder.prefill(ids)
                for _ in range(tokens):
                    started = now(device)
                    graph.replay()
                    times.append(now(device) - started)
    except Exception as problem:  # whatever a model's own code does that cannot be recorded
        return [], _reason(problem)
    return times, ""


def capture(decoder: StaticDecoder, ids: Tensor, warm_up: int) -> torch.cuda.CUDAGraph:
    """One step of the decoder as a graph; the cache is spoilt afterwards, so prefill before replaying.

    A step that waits for the host is refused before recording begins, since a recording that breaks off leaves the
    device's random generator unusable.

    Raises:
        RuntimeError: a step waits for the host, or cannot be recorded for another reason.
    """
    device = ids.device
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    decoder.prefill(ids)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for number in range(warm_up):
            with _refusing_to_wait(number == warm_up - 1):
                decoder.step()
    current.wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        decoder.step()
    return graph


def replay_difference(decoder: StaticDecoder, replay: Callable[[], None], ids: Tensor, steps: int) -> float:
    """Largest difference between logits of replayed and of eager steps on the same tokens, relative to the largest logit."""
    recorded = decoder.logits  # what a graph writes to; eager steps put their own in its place
    decoder.prefill(ids)
    fed, expected = [], []
    for _ in range(steps):
        fed.append(decoder.token.clone())
        decoder.step()
        assert decoder.logits is not None
        expected.append(decoder.logits.float().clone())
    decoder.prefill(ids)
    decoder.logits, worst = recorded, 0.0
    for token, eager in zip(fed, expected, strict=True):
        decoder.token.copy_(token)
        replay()
        assert decoder.logits is not None
        worst = max(worst, float((decoder.logits.float() - eager).abs().max() / eager.abs().max()))
    return worst


@contextmanager
def _refusing_to_wait(wanted: bool) -> Iterator[None]:
    """Operations that wait for the device raise inside, if wanted."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error" if wanted else before)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _reason(problem: Exception) -> str:
    """The error's first line, and where in the code of a model or a storage it arose."""
    trace, place = problem.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/torch/" not in code.co_filename:
            place = f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    first = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    return f"{first} ({place})"
