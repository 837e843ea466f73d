"""Gathering statistics: a hook on one consumer of each axis while a block runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.statistics.inputs import InputStatistics


class Collector:
    """Sums the inputs of some modules while it is attached; `sums` are whole and checked after that.

    Args:
        watched: a module path to hook, by axis name; one consumer stands for all since they read one tensor.
        needs: statistics to gather, by axis name.
        dtype: of the sums; float32, or float64 on request.
    """

    def __init__(self, watched: Mapping[str, str], needs: Mapping[str, frozenset[str]], dtype: torch.dtype) -> None:
        self._watched, self._needs, self._dtype = watched, needs, dtype
        self.sums: dict[str, InputStatistics] = {}

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[Collector]:
        """Hooks in place inside the `with`, always removed after it.

        Raises:
            FeatherweightError: NaN or Inf in an input, at the end: the device is not waited for before.
        """
        handles = [
            model.get_submodule(path).register_forward_pre_hook(self._hook(axis)) for axis, path in self._watched.items()
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
        for axis, found in self.sums.items():
            try:
                self.sums[axis] = found.finished()
            except FeatherweightError as problem:
                raise FeatherweightError(
                    f"{problem.error} at the input of {self._watched[axis]}",
                    found=problem.found,
                    expected=problem.expected,
                    fix=problem.fix,
                ) from None

    def _hook(self, axis: str):  # type: ignore[no-untyped-def]
        def add(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0]
            if axis not in self.sums:
                self.sums[axis] = InputStatistics.zeros(x.shape[-1], self._needs[axis], self._dtype, x.device)
            self.sums[axis] = self.sums[axis].add_(x)

        return add
