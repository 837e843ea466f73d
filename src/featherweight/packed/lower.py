"""From a packed weight to the code that multiplies by it on a device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from featherweight.kernels import registry
from featherweight.packed.base import PackedWeight

OP = "dequantize_matmul"


def lower(weight: PackedWeight, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """`x [..., in] → x · Wᵀ [..., out]` by the best kernel there is for this weight on `device`.

    For now every storage lowers to its own composition (`matmul`), chosen through the registry; fused kernels enter
    there without a change here.
    """
    return partial(registry.choose(OP, weight.description(), device), weight=weight)


def explain(weight: PackedWeight, device: torch.device | str) -> list[tuple[str, bool, str]]:
    """`(kernel, runs, reason)` of every kernel that could multiply by `weight` on `device`, in order of preference."""
    return registry.explain(OP, weight.description(), device)
