"""The clock of card.py: copies, walks through them in CUDA graphs, cold launches, poisoned outputs, errors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]
ROTATION = 256 << 20  # bytes that copies must exceed together
LONGEST = 512  # copies and calls at most


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: median and quartiles over replays."""

    median: float
    low: float
    high: float
    calls: int
    replays: int

    @classmethod
    def of(cls, milliseconds: Sequence[float], calls: int) -> Timing:
        """From the time of each replay of so many calls."""
        each = sorted(1e3 * value / calls for value in milliseconds)
        low, middle, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
        return cls(middle, low, high, calls, len(each))


@dataclass(frozen=True)
class Case:
    """One way to compute something.

    Attributes:
        name: in the table.
        calls: one per copy of what it reads; each returns its output, the first on the data of `reference`.
        bytes: that a call must move at least; 0 if unknown.
        flops: of a call; 0 if unknown.
        reference: what the first call should return, float64 or float32.
    """

    name: str
    calls: Sequence[Call]
    bytes: int = 0
    flops: float = 0
    reference: Tensor | None = None


def rotated(make: Callable[[int], Any], size: int) -> list[Any]:
    """`make(0)`, `make(1)`, … so often that `size` bytes each exceed 256 MB together (512 at most)."""
    return [make(index) for index in range(min(LONGEST, ROTATION // max(1, size) + 1))]


def graph_time(calls: Sequence[Call], replays: int = 30, device: str = "cuda") -> Timing:
    """Time of a call among many that walk through `calls`."""
    return time_together({"": calls}, replays, device)[""]


def time_together(cases: Mapping[str, Sequence[Call]], replays: int = 30, device: str = "cuda") -> dict[str, Timing]:
    """The same for several cases whose replays alternate, every other round in reversed order."""
    walks = {name: _Walk(calls, replays, device) for name, calls in cases.items()}
    if device == "cuda":
        torch.cuda._sleep(4_000_000)  # the host gets ahead of the card
    for turn in range(replays):
        for name in list(walks)[:: -1 if turn % 2 else 1]:
            walks[name].replay(turn)
    return {name: walk.timing() for name, walk in walks.items()}


class _Walk:
    """Calls recorded once and replayed. Slow calls are walked fewer times, at least every copy once and 6 replays."""

    def __init__(self, calls: Sequence[Call], replays: int, device: str) -> None:
        for call in (*calls[:1] * 2, *calls):
            call()
        self.device, seconds = device, min(_clock(calls[0], device) for _ in range(3))
        wanted = max(50, min(240, int(4e-3 / seconds) + 1)) if seconds < 2e-4 else int(10e-3 / seconds) + 1
        self.count = max(len(calls), wanted)
        self.replays = max(6, min(replays, int(0.2 / (seconds * self.count)) + 1))
        self.work = [calls[index % len(calls)] for index in range(self.count)]
        self.times: list[Any] = []
        if device == "cuda":
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                for call in self.work:
                    call()
            self.graph.replay()

    def replay(self, turn: int) -> None:
        if turn >= self.replays:
            return
        if self.device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            self.graph.replay()
            end.record()
            self.times.append((start, end))
        else:
            start = time.perf_counter()
            for call in self.work:
                call()
            self.times.append(1e3 * (time.perf_counter() - start))

    def timing(self) -> Timing:
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.times = [start.elapsed_time(end) for start, end in self.times]
        return Timing.of(self.times, self.count)


def _clock(call: Call, device: str) -> float:
    """Seconds of one call, launch included."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def cold_time(call: Call, repeats: int = 15) -> Timing:
    """A single launch by events, after the cache was flushed and the card was idle; mostly the cost of the launch."""
    flush, times = torch.empty(ROTATION, dtype=torch.uint8, device="cuda"), []
    for _ in range(repeats):
        flush.fill_(1)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return Timing.of(times, 1)


def run_poisoned(call: Call) -> Tensor:
    """Its output, whose memory held NaN before, whether it was given or comes from torch's allocator."""
    call().fill_(float("nan"))
    return call()


def relative_error(output: Tensor, reference: Tensor) -> float:
    """`‖output − reference‖ / ‖reference‖` in float64; NaN if anything is."""
    expected = reference.to(output.device, torch.float64)
    return float((output.to(torch.float64).view_as(expected) - expected).norm() / expected.norm())


def workspace(call: Call) -> float:
    """MB that a call allocates at most, its output included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
