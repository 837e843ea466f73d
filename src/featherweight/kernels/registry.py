"""Ops and their implementations: the first that supports a signature on a device runs, the reference comes last."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from featherweight.errors import FeatherweightError, nearest

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
    """

    name: str
    module: str
    function: str
    supports: Support

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        return getattr(importlib.import_module(self.module), self.function)


def _always(signature: Signature, device: torch.device) -> tuple[bool, str]:
    return True, "plain torch: the reference, on every device"


def _triton_sweep(signature: Signature, device: torch.device) -> tuple[bool, str]:
    if device.type != "cuda":
        return False, f"written for CUDA, not for {device.type}"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    if signature.get("columns", 0) > 128:
        return False, f"at most 128 columns to a block, not {signature['columns']}"
    return True, "one launch per block of columns"


def _triton_groups(signature: Signature, device: torch.device) -> tuple[bool, str]:
    size = signature.get("group_size", 0)
    if not 0 < size <= 128 or size % 16:
        return False, f"groups of a multiple of 16 columns up to 128, not {size}"
    return _triton_sweep(signature, device)


def _triton_two_level(signature: Signature, device: torch.device) -> tuple[bool, str]:
    second = signature.get("second_group_size", 0)
    if signature.get("group_size") != 16 or signature.get("inputs", 0) % 16:
        return False, f"groups of 16 columns, not {signature.get('group_size')}, and inputs in sixteens"
    if second not in (1, 2, 4, 8, 16, 32, 64, 128):
        return False, f"second groups of a power of two of rows up to 128, not {second}"
    return _triton_sweep(signature, device)


def _triton_fit(signature: Signature, device: torch.device) -> tuple[bool, str]:
    runs, reason = _triton_sweep({}, device)
    return runs, "one launch for all groups" if runs else reason


def _int_mm(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """What `torch._int_mm` takes on CUDA: more than 16 tokens, inputs and outputs in eights; on a CPU anything."""
    if device.type not in ("cpu", "cuda"):
        return False, f"torch's int8 product is for CPU and CUDA, not for {device.type}"
    whole = signature.get("inputs", 0) % 8 == 0 and signature.get("outputs", 0) % 8 == 0
    if device.type == "cuda" and not (signature.get("tokens", 0) > 16 and whole):
        return False, "on CUDA torch's int8 product needs more than 16 tokens, and sizes in eights"
    return True, "torch's int8 product"


_ROOM = "featherweight.kernels"
OPS: dict[str, tuple[Kernel, ...]] = {
    "sweep_block": (
        Kernel("triton", f"{_ROOM}.triton.sweep_block", "sweep_block", _triton_sweep),
        Kernel("reference", f"{_ROOM}.reference.sweep_block", "sweep_block", _always),
    ),
    "sweep_groups": (
        Kernel("triton", f"{_ROOM}.triton.sweep_groups", "sweep_groups", _triton_groups),
        Kernel("reference", f"{_ROOM}.reference.sweep_groups", "sweep_groups", _always),
    ),
    "sweep_two_level": (
        Kernel("triton", f"{_ROOM}.triton.sweep_two_level", "sweep_two_level", _triton_two_level),
        Kernel("reference", f"{_ROOM}.reference.sweep_two_level", "sweep_two_level", _always),
    ),
    "fit_groups": (
        Kernel("triton", f"{_ROOM}.triton.sweep_groups", "fit_groups", _triton_fit),
        Kernel("reference", f"{_ROOM}.reference.fit_groups", "fit_groups", _always),
    ),
    "sweep_vectors": (
        Kernel("triton", f"{_ROOM}.triton.sweep_vectors", "sweep_vectors", _triton_sweep),
        Kernel("reference", f"{_ROOM}.reference.sweep_vectors", "sweep_vectors", _always),
    ),
    "descend_vectors": (
        Kernel("triton", f"{_ROOM}.triton.sweep_vectors", "descend_vectors", _triton_sweep),
        Kernel("reference", f"{_ROOM}.reference.sweep_vectors", "descend_vectors", _always),
    ),
    "int8_matmul": (
        Kernel("torch", f"{_ROOM}.reference.int8_matmul", "torch_int8_matmul", _int_mm),
        Kernel("reference", f"{_ROOM}.reference.int8_matmul", "int8_matmul", _always),
    ),
    "dequantize_matmul": (Kernel("reference", f"{_ROOM}.reference.dequantize_matmul", "dequantize_matmul", _always),),
    "cache_attention": (Kernel("reference", f"{_ROOM}.reference.cache_attention", "cache_attention", _always),),
    "cache_scores": (Kernel("reference", f"{_ROOM}.reference.cached", "cache_scores", _always),),
    "cache_mix": (Kernel("reference", f"{_ROOM}.reference.cached", "cache_mix", _always),),
    "qjl_encode": (Kernel("reference", f"{_ROOM}.reference.qjl", "qjl_encode", _always),),
    "qjl_decode": (Kernel("reference", f"{_ROOM}.reference.qjl", "qjl_decode", _always),),
    "qjl_scores": (Kernel("reference", f"{_ROOM}.reference.qjl", "qjl_scores", _always),),
    "rotated_scores": (Kernel("reference", f"{_ROOM}.reference.rotated", "rotated_scores", _always),),
    "rotated_mix": (Kernel("reference", f"{_ROOM}.reference.rotated", "rotated_mix", _always),),
}


def explain(op: str, signature: Signature, device: torch.device | str) -> list[tuple[str, bool, str]]:
    """`(kernel, runs, reason)` of every implementation of `op`, in the order in which they are offered the work."""
    device = torch.device(device)
    return [(kernel.name, *kernel.supports(signature, device)) for kernel in _implementations(op)]


def choose(op: str, signature: Signature, device: torch.device | str) -> Callable[..., Any]:
    """The first implementation of `op` that supports `signature` on `device`.

    Raises:
        FeatherweightError: an op that nobody registered, or no implementation (with the reasons).
    """
    device = torch.device(device)
    for kernel in _implementations(op):
        if kernel.supports(signature, device)[0]:
            return kernel.load()
    raise FeatherweightError(
        f"no kernel runs {op} on {device}",
        found=dict(signature),
        expected="; ".join(f"{name}: {reason}" for name, _, reason in explain(op, signature, device)),
    )


def accelerated(op: str, signature: Signature, device: torch.device | str) -> Callable[..., Any] | None:
    """The first implementation of `op` that supports `signature` on `device` and is not plain torch; None if there is none."""
    device = torch.device(device)
    found = next((kernel for kernel in _implementations(op) if kernel.supports(signature, device)[0]), None)
    return None if found is None or found.name == "reference" else found.load()


def _implementations(op: str) -> tuple[Kernel, ...]:
    if op not in OPS:
        raise FeatherweightError("unknown op", found=op, expected=", ".join(OPS), fix=f"did you mean {nearest(op, OPS, 1)[0]}?")
    return OPS[op]
