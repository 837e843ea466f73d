"""Where the seconds of a run go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Phases:
    """Seconds by phase; on a GPU each begins and ends with the device idle.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._inner = device, 0.0
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds inside to `phase`, but for those of phases inside this one."""
        outer, self._inner, started = self._inner, 0.0, self._now()
        try:
            yield
        finally:
            taken = self._now() - started
            self.seconds[phase] = self.seconds.get(phase, 0.0) + taken - self._inner
            self._inner = outer + taken

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
