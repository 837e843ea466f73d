"""One training in one process, or in several that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from featherweight.engine.compress import pick_device


class Processes:
    """The processes that train together, each on its share of every batch; one of them writes.

    Args:
        device: as asked for; of several processes on GPUs each takes its own.
    """

    def __init__(self, device: str | None) -> None:
        self._asked = device

    @cached_property
    def _state(self) -> Any:
        from accelerate import PartialState

        return PartialState(cpu=pick_device(self._asked).type == "cpu")

    @property
    def count(self) -> int:
        """How many."""
        return int(self._state.num_processes)

    @property
    def writes(self) -> bool:
        """Whether this is the one that writes and reports."""
        return bool(self._state.is_main_process)

    @cached_property
    def device(self) -> torch.device:
        """Where this one computes."""
        alone = pick_device(self._asked)
        return torch.device("cuda", self._state.local_process_index) if self.count > 1 and alone.type == "cuda" else alone

    def share(self, batch: Tensor) -> Tensor:
        """This one's rows of a batch; may be none."""
        return batch[self._state.process_index :: self.count]

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give every parameter the sum of its gradients, in one exchange."""
        if self.count == 1:
            return
        owners = list(parameters)
        flat = torch.cat([torch.zeros_like(each).flatten() if each.grad is None else each.grad.flatten() for each in owners])
        for each, part in zip(owners, self.sum(flat).split([each.numel() for each in owners]), strict=True):
            each.grad = part.view_as(each)

    def wait(self) -> None:
        """Until all are here."""
        self._state.wait_for_everyone()
