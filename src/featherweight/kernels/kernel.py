"""What an implementation of an op is, and a weight in a kernel's own layout."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

#: What a kernel is asked about: nested storage names, widths, sizes. Plain JSON values.
Signature = Mapping[str, Any]
Support = Callable[[Signature, torch.device], tuple[bool, str]]


@dataclass(frozen=True)
class Kernel:
    """One implementation of an op.

    Attributes:
        name: as `explain` prints it.
        module: where it lives; imported when it first runs, so that nothing is compiled at import.
        function: its name there.
        supports: whether it runs for a signature on a device, and the reason in words.
        prepares: its function takes a packed weight alone and returns a `Prepared`.
    """

    name: str
    module: str
    function: str
    supports: Support
    prepares: bool = False

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        return getattr(importlib.import_module(self.module), self.function)


class Prepared(Protocol):
    """A packed weight in a kernel's own layout, in the place of its stored tensors."""

    def runs(self, x: Tensor) -> bool:
        """Whether it multiplies such an `x`."""

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x [..., in]` to `x · Wᵀ + bias`, `[..., out]`, in the dtype of `x`."""

    def stored(self) -> dict[str, Tensor]:
        """The stored tensors, rebuilt bit for bit."""

    def tensors(self) -> dict[str, Tensor]:
        """What it holds in their place."""
