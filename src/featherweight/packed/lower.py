"""From a packed weight to the code that multiplies by it on a device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels import registry
from featherweight.packed.base import PackedWeight
from featherweight.packed.dtypes import dtype_name

OP = "dequantize_matmul"
INTEGER = "integer_matmul"


def lower(weight: PackedWeight, device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> Callable[[Tensor], Tensor]:
    """`x [..., in] → x · Wᵀ [..., out]` by the best kernel there is for this weight on `device` and activations of `dtype`.

    A storage without a kernel of its own lowers to its composition (`matmul`).
    """
    weight = weight.to(device)
    return prepare(weight, dtype) or weight.matmul


def prepare(weight: PackedWeight, dtype: torch.dtype) -> registry.Prepared | None:
    """The weight in the layout of the best kernel that has one, where it lies; None if the composition is best.

    A kernel that cannot be compiled or loaded is passed over, with a warning that says why.

    Args:
        dtype: of the activations.
    """
    signature = {**weight.description(), "activations": dtype_name(dtype)}
    for kernel in registry.supporting(OP, signature, next(iter(weight.tensors().values())).device):
        if not kernel.prepares:
            break
        try:
            prepared: registry.Prepared = kernel.load()(weight)
            return prepared
        except FeatherweightError as problem:
            warnings.warn(f"the {kernel.name} kernel is not used: {problem}", RuntimeWarning, stacklevel=2)
    return None


def explain(weight: PackedWeight, device: torch.device | str) -> list[tuple[str, bool, str]]:
    """`(kernel, runs, reason)` of every kernel that could multiply by `weight` on `device`, in order of preference.

    The last is the composition; it says by which kernel integer codes inside the weight are multiplied.
    """
    description = weight.description()
    *fused, (name, runs, reason) = registry.explain(OP, description, device)
    chosen = {
        f"{part['bits']}-bit integers inside by {next(kernel for kernel, does, _ in offered if does)}"
        for part in _parts(description)
        if part["kind"] == "integer" and (offered := registry.explain(INTEGER, part, device))
    }
    return [*fused, (name, runs, "; ".join((reason, *sorted(chosen))))]


def _parts(description: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The descriptions inside one."""
    for value in description.values():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Mapping) and "kind" in each:
                yield each
                yield from _parts(each)
