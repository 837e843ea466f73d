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
    """What `kernels/cuda` reads of plain integer codes."""
    if signature.get("kind") != "integer":
        return False, f"for integer codes, not for {signature.get('kind')}"
    return _on_hopper("integer", signature, device)


def _in_chunks(storage: str) -> Support:
    """Weights that a module of `kernels/cuda` reads in chunks."""
    return lambda signature, device: _on_hopper(storage, signature, device)


def _on_hopper(storage: str, signature: Signature, device: torch.device) -> tuple[bool, str]:
    """What a module of `kernels/cuda` reads, on Hopper and later, where a compiler is at hand."""
    if against := importlib.import_module(f"{_ROOM}.cuda.{storage}").reason_against(signature):
        return False, against
    if device.type != "cuda":
        return False, f"written for CUDA, not for {device.type}"
    if (activations := signature.get("activations", "bfloat16")) not in ("bfloat16", "float16"):
        return False, f"for bfloat16 and float16 activations, not {activations}"
    from featherweight.kernels.cuda.compiler import missing

    if not torch.cuda.is_available():
        return False, "there is no CUDA device here"
    if (capability := torch.cuda.get_device_capability(device)) < (9, 0):
        return False, f"for compute capability 9.0 and later, not {capability[0]}.{capability[1]}"
    if absent := missing():
        return False, absent
    many = "by slabs" if storage == "integer" else "from dense values"
    return True, f"16-bit activations without gradients: codes go straight to the matrix unit, or {many} for many tokens"


def _inside(kind: str, part: str, how: str) -> Support:
    """Weights of a kind that run through the kernel of a part of theirs."""

    def supports(signature: Signature, device: torch.device) -> tuple[bool, str]:
        if signature.get("kind") != kind:
            return False, f"for {kind} weights, not for {signature.get('kind')}"
        inner = {**signature[part], "activations": signature.get("activations", "bfloat16")}
        best = supporting("dequantize_matmul", inner, device)[0]
        return best.prepares, f"{how}: {best.name}" if best.prepares else "what it holds has no kernel of its own"

    return supports


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


def _cuda_lattice(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Codes of the E8 lattice between Hadamard rotations, on Hopper and later, where a compiler is at hand."""
    if device.type != "cuda":
        return False, f"written for CUDA, not for {device.type}"
    from featherweight.kernels.cuda.compiler import missing

    against: str = importlib.import_module(f"{_LATTICE}_device").unsupported(signature)
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


def _triton_step(signature: Signature, device: torch.device) -> tuple[bool, str]:
    if device.type != "cuda":
        return False, f"written for CUDA, not for {device.type}"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    if signature.get("rows", 1) > 1:
        return False, f"for one row, not for {signature['rows']}"
    if signature.get("dtype") not in ("bfloat16", "float16", "float32"):
        return False, f"not for {signature.get('dtype')}"
    return True, "part of a fused decode step"


def _cpu_integer(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Any bits, groups and sizes, wherever there is a C compiler; compiles when first asked."""
    from featherweight.kernels.cpu.compiler import missing

    if signature.get("kind") != "integer":
        return False, f"for integer codes, not for {signature.get('kind')}"
    if device.type != "cpu":
        return False, f"written for CPUs, not for {device.type}"
    if signature.get("activations") == "float64":
        return False, "for activations of 16 or 32 bits, not float64"
    if signature.get("group_index"):
        return False, "it does not read groups with a stored index"
    if reason := missing():
        return False, reason
    from featherweight.kernels.cpu.integer import told

    return True, told(signature)


def _cuda_cache(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """What `kernels/cuda/cache_attention.py` reads: one query over codes of its codecs, on Hopper and later."""
    if device.type != "cuda":
        return False, f"written for CUDA, not for {device.type}"
    if torch.cuda.get_device_capability(device) < (9, 0):
        return False, "for compute capability 9.0 and later"
    if signature["queries"] != 1 or signature["dtype"] not in ("bfloat16", "float16"):
        return False, f"for one query of 16 bits, not for {signature['queries']} of {signature['dtype']}"
    from featherweight.kernels.cuda.cache_layout import unsupported
    from featherweight.kernels.cuda.compiler import missing

    reason = missing() or unsupported(signature["keys"], signature["values"], signature["head_dim"])
    return not reason, reason or "one launch for all query heads of a key head, tokens read in code"


_ROOM = "featherweight.kernels"


def _step_kernels(file: str, function: str) -> tuple[Kernel, ...]:
    """The Triton kernel and its reference of one part of a decode step."""
    return (
        Kernel("triton", f"{_ROOM}.triton.{file}", function, _triton_step),
        Kernel("reference", f"{_ROOM}.reference.{file}", function, _always),
    )


_LATTICE = "featherweight.packed.lattice"  # beside the storages of which it puts together what it stored
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
    "integer_matmul": (
        Kernel("cpu", f"{_ROOM}.cpu.integer", "integer_matmul", _cpu_integer),
        Kernel("reference", f"{_ROOM}.reference.integer_matmul", "integer_matmul", _always),
    ),
    "integer_values": (
        Kernel("cpu", f"{_ROOM}.cpu.integer", "integer_values", _cpu_integer),
        Kernel("reference", f"{_ROOM}.reference.integer_matmul", "integer_values", _always),
    ),
    "dequantize_matmul": (
        Kernel("cuda", f"{_ROOM}.cuda.prepared", "prepare_integer", _cuda_integer, prepares=True),
        Kernel("cpu", f"{_ROOM}.cpu.integer", "IntegerProduct", _cpu_integer, prepares=True),
        Kernel("cuda, two levels", "featherweight.packed.chunked", "prepare_two_level", _in_chunks("two_level"), prepares=True),
        Kernel("cuda, 2:4", "featherweight.packed.chunked", "prepare_two_of_four", _in_chunks("two_of_four"), prepares=True),
        Kernel("cuda, bitmap", "featherweight.packed.chunked", "prepare_bitmap", _in_chunks("bitmap"), prepares=True),
        Kernel(
            "masked codes",
            "featherweight.packed.around",
            "prepare_masked_codes",
            _inside("masked", "values", "all codes, dropped ones on their zero point"),
            prepares=True,
        ),
        Kernel(
            "sliced",
            "featherweight.packed.around",
            "prepare_sliced",
            _inside("sliced", "inner", "kept inputs gathered once"),
            prepares=True,
        ),
        Kernel("cuda lattice", f"{_LATTICE}_prepared", "prepare_lattice", _cuda_lattice, prepares=True),
        Kernel("reference", f"{_ROOM}.reference.dequantize_matmul", "dequantize_matmul", _always),
    ),
    "embed": _step_kernels("decode_rows", "embed"),
    "add_norm": _step_kernels("decode_rows", "add_norm"),
    "gate": _step_kernels("decode_rows", "gate"),
    "row_product": _step_kernels("decode_rows", "row_product"),
    "attend": _step_kernels("decode_attention", "attend"),
    "attend_scratch": _step_kernels("decode_attention", "make_scratch"),
    "choose_token": _step_kernels("decode_choice", "choose_token"),
    "cache_attention": (
        Kernel("cuda", f"{_ROOM}.cuda.cache_attention", "cache_attention", _cuda_cache),
        Kernel("reference", f"{_ROOM}.reference.cache_attention", "cache_attention", _always),
    ),
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


def accelerated(op: str, signature: Signature, device: torch.device | str) -> Callable[..., Any] | None:
    """The first implementation of `op` that supports `signature` on `device` and is not plain torch; None if there is none."""
    device = torch.device(device)
    found = next((kernel for kernel in _implementations(op) if kernel.supports(signature, device)[0]), None)
    return None if found is None or found.name == "reference" else found.load()


def _implementations(op: str) -> tuple[Kernel, ...]:
    if op not in OPS:
        raise FeatherweightError("unknown op", found=op, expected=", ".join(OPS), fix=f"did you mean {nearest(op, OPS, 1)[0]}?")
    return OPS[op]
