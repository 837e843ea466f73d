"""Ops and their implementations: the first that supports a signature on a device runs, the reference comes last."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

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


def _cuda_integer(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """What `kernels/cuda` reads: plain integer codes, on Hopper and later, where a compiler is at hand."""
    if signature.get("kind") != "integer":
        return False, f"for integer codes, not for {signature.get('kind')}"
    if device.type != "cuda":
        return False, f"written for CUDA, not for {device.type}"
    from featherweight.kernels.cuda.compiler import missing
    from featherweight.kernels.cuda.integer import reason_against

    if (activations := signature.get("activations", "bfloat16")) not in ("bfloat16", "float16"):
        return False, f"for bfloat16 and float16 activations, not {activations}"
    if against := reason_against(signature):
        return False, against
    if not torch.cuda.is_available():
        return False, "there is no CUDA device here"
    if (capability := torch.cuda.get_device_capability(device)) < (9, 0):
        return False, f"for compute capability 9.0 and later, not {capability[0]}.{capability[1]}"
    if absent := missing():
        return False, absent
    return True, "16-bit activations without gradients: codes go straight to the matrix unit, or by slabs for many tokens"


def _cuda_lattice(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Codes of the E8 lattice between Hadamard rotations, on Hopper and later, where a compiler is at hand."""
    if device.type != "cuda":
        return False, f"written for CUDA, not for {device.type}"
    from featherweight.kernels.cuda.compiler import missing

    against: str = importlib.import_module(_LATTICE.replace("prepared", "device")).unsupported(signature)
    if (activations := signature.get("activations", "bfloat16")) not in ("bfloat16", "float16"):
        against = f"for bfloat16 and float16 activations, not {activations}"
    elif not against and not torch.cuda.is_available():
        against = "there is no CUDA device here"
    elif not against and (capability := torch.cuda.get_device_capability(device)) < (9, 0):
        against = f"for compute capability 9.0 and later, not {capability[0]}.{capability[1]}"
    against = against or missing()
    return (
        not against,
        against or "16-bit activations without gradients: rotated, then multiplied from codes; by values if many",
    )


def _int_mm(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """What `torch._int_mm` takes on CUDA: more than 16 tokens, inputs and outputs in eights; on a CPU anything."""
    if device.type not in ("cpu", "cuda"):
        return False, f"torch's int8 product is for CPU and CUDA, not for {device.type}"
    whole = signature.get("inputs", 0) % 8 == 0 and signature.get("outputs", 0) % 8 == 0
    if device.type == "cuda" and not (signature.get("tokens", 0) > 16 and whole):
        return False, "on CUDA torch's int8 product needs more than 16 tokens, and sizes in eights"
    return True, "torch's int8 product"


_ROOM = "featherweight.kernels"
_LATTICE = "featherweight.packed.lattice_prepared"  # beside the storages of which it puts together what it stored
OPS: dict[str, tuple[Kernel, ...]] = {
    "sweep_block": (
        Kernel("triton", f"{_ROOM}.triton.sweep_block", "sweep_block", _triton_sweep),
        Kernel("reference", f"{_ROOM}.reference.sweep_block", "sweep_block", _always),
    ),
    "int8_matmul": (
        Kernel("torch", f"{_ROOM}.reference.int8_matmul", "torch_int8_matmul", _int_mm),
        Kernel("reference", f"{_ROOM}.reference.int8_matmul", "int8_matmul", _always),
    ),
    "dequantize_matmul": (
        Kernel("cuda", f"{_ROOM}.cuda.prepared", "prepare_integer", _cuda_integer, prepares=True),
        Kernel("cuda lattice", _LATTICE, "prepare_lattice", _cuda_lattice, prepares=True),
        Kernel("reference", f"{_ROOM}.reference.dequantize_matmul", "dequantize_matmul", _always),
    ),
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
    """The function of the first implementation of `op` that supports `signature` on `device`.

    Raises:
        FeatherweightError: an op that nobody registered, or no implementation (with the reasons).
    """
    return supporting(op, signature, device)[0].load()


def supporting(op: str, signature: Signature, device: torch.device | str) -> list[Kernel]:
    """The implementations of `op` that support `signature` on `device`, at least one, the best first.

    Raises:
        FeatherweightError: an op that nobody registered, or no implementation (with the reasons).
    """
    device = torch.device(device)
    if found := [kernel for kernel in _implementations(op) if kernel.supports(signature, device)[0]]:
        return found
    raise FeatherweightError(
        f"no kernel runs {op} on {device}",
        found=dict(signature),
        expected="; ".join(f"{name}: {reason}" for name, _, reason in explain(op, signature, device)),
    )


def _implementations(op: str) -> tuple[Kernel, ...]:
    if op not in OPS:
        raise FeatherweightError("unknown op", found=op, expected=", ".join(OPS), fix=f"did you mean {nearest(op, OPS, 1)[0]}?")
    return OPS[op]
