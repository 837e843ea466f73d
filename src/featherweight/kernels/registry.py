"""Ops and their implementations: the first that supports a signature on a device runs, the reference comes last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from featherweight.errors import FeatherweightError, nearest
from featherweight.kernels import supports
from featherweight.kernels.kernel import Kernel, Prepared, Signature

__all__ = ["OPS", "Kernel", "Prepared", "accelerated", "choose", "explain", "supporting"]

_ROOM = "featherweight.kernels"


def _step_kernels(file: str, function: str) -> tuple[Kernel, ...]:
    """The Triton kernel and its reference of one part of a decode step."""
    return (
        Kernel("triton", f"{_ROOM}.triton.{file}", function, supports.triton_step),
        Kernel("reference", f"{_ROOM}.reference.{file}", function, supports.always),
    )


OPS: dict[str, tuple[Kernel, ...]] = {
    "walk_block": (
        Kernel("cuda", f"{_ROOM}.cuda.walk", "open_walk", supports.cuda_walk),
        Kernel("reference", f"{_ROOM}.reference.walk", "open_walk", supports.always),
    ),
    "sweep_block": (
        Kernel("triton", f"{_ROOM}.triton.sweep_block", "sweep_block", supports.triton_sweep),
        Kernel("reference", f"{_ROOM}.reference.sweep_block", "sweep_block", supports.always),
    ),
    "sweep_groups": (
        Kernel("triton", f"{_ROOM}.triton.sweep_groups", "sweep_groups", supports.triton_groups),
        Kernel("reference", f"{_ROOM}.reference.sweep_groups", "sweep_groups", supports.always),
    ),
    "sweep_two_level": (
        Kernel("triton", f"{_ROOM}.triton.sweep_two_level", "sweep_two_level", supports.triton_two_level),
        Kernel("reference", f"{_ROOM}.reference.sweep_two_level", "sweep_two_level", supports.always),
    ),
    "fit_groups": (
        Kernel("triton", f"{_ROOM}.triton.sweep_groups", "fit_groups", supports.triton_fit),
        Kernel("cpu", f"{_ROOM}.cpu.fit", "fit_groups", supports.cpu_fit),
        Kernel("reference", f"{_ROOM}.reference.fit_groups", "fit_groups", supports.always),
    ),
    "sweep_vectors": (
        Kernel("triton", f"{_ROOM}.triton.sweep_vectors", "sweep_vectors", supports.triton_sweep),
        Kernel("reference", f"{_ROOM}.reference.sweep_vectors", "sweep_vectors", supports.always),
    ),
    "descend_vectors": (
        Kernel("triton", f"{_ROOM}.triton.sweep_vectors", "descend_vectors", supports.triton_sweep),
        Kernel("reference", f"{_ROOM}.reference.sweep_vectors", "descend_vectors", supports.always),
    ),
    "int8_matmul": (
        Kernel("torch", f"{_ROOM}.reference.int8_matmul", "torch_int8_matmul", supports.int_mm),
        Kernel("reference", f"{_ROOM}.reference.int8_matmul", "int8_matmul", supports.always),
    ),
    "integer_matmul": (
        Kernel("cpu", f"{_ROOM}.cpu.integer", "integer_matmul", supports.cpu_integer),
        Kernel("reference", f"{_ROOM}.reference.integer_matmul", "integer_matmul", supports.always),
    ),
    "integer_values": (
        Kernel("cpu", f"{_ROOM}.cpu.integer", "integer_values", supports.cpu_integer),
        Kernel("reference", f"{_ROOM}.reference.integer_matmul", "integer_values", supports.always),
    ),
    "dequantize_matmul": (
        Kernel("cuda", f"{_ROOM}.cuda.prepared", "prepare_integer", supports.cuda_integer, prepares=True),
        Kernel("cpu", f"{_ROOM}.cpu.integer", "IntegerProduct", supports.cpu_integer, prepares=True),
        Kernel(
            "cuda, two levels",
            "featherweight.packed.chunked",
            "prepare_two_level",
            supports.in_chunks("two_level"),
            prepares=True,
        ),
        Kernel(
            "cuda, 2:4", "featherweight.packed.chunked", "prepare_two_of_four", supports.in_chunks("two_of_four"), prepares=True
        ),
        Kernel("cuda, bitmap", "featherweight.packed.chunked", "prepare_bitmap", supports.in_bits("bitmap"), prepares=True),
        Kernel(
            "cuda, bitmap codes",
            "featherweight.packed.chunked",
            "prepare_bitmap_codes",
            supports.in_little_room("bitmap_codes"),
            prepares=True,
        ),
        Kernel(
            "masked codes",
            "featherweight.packed.around",
            "prepare_masked_codes",
            supports.inside(
                "masked", "values", "all codes, dropped ones on their zero point, stay on the card beside the mask"
            ),
            prepares=True,
        ),
        Kernel(
            "sliced",
            "featherweight.packed.around",
            "prepare_sliced",
            supports.inside("sliced", "inner", "kept inputs gathered once"),
            prepares=True,
        ),
        Kernel("cuda lattice", f"{supports.LATTICE}_prepared", "prepare_lattice", supports.cuda_lattice, prepares=True),
        Kernel("reference", f"{_ROOM}.reference.dequantize_matmul", "dequantize_matmul", supports.always),
    ),
    "embed": _step_kernels("decode_rows", "embed"),
    "add_norm": _step_kernels("decode_rows", "add_norm"),
    "gate": _step_kernels("decode_rows", "gate"),
    "row_product": _step_kernels("decode_rows", "row_product"),
    "attend": _step_kernels("decode_attention", "attend"),
    "attend_scratch": _step_kernels("decode_attention", "make_scratch"),
    "choose_token": _step_kernels("decode_choice", "choose_token"),
    "cache_attention": (
        Kernel("cuda", f"{_ROOM}.cuda.cache_attention", "cache_attention", supports.cuda_cache),
        Kernel("reference", f"{_ROOM}.reference.cache_attention", "cache_attention", supports.always),
    ),
    "attend_coded": (
        Kernel("cuda", f"{_ROOM}.cuda.cache_append", "attend_coded", supports.cuda_coded_step),
        Kernel("reference", f"{_ROOM}.reference.coded_step", "attend_coded", supports.always),
    ),
    "integer_encode": (
        Kernel("cuda", f"{_ROOM}.cuda.cache_encode", "integer_encode", supports.cuda_encode),
        Kernel("reference", f"{_ROOM}.reference.integer_encode", "integer_encode", supports.always),
    ),
    "cache_scores": (Kernel("reference", f"{_ROOM}.reference.cached", "cache_scores", supports.always),),
    "cache_mix": (Kernel("reference", f"{_ROOM}.reference.cached", "cache_mix", supports.always),),
    "qjl_encode": (
        Kernel("cuda", f"{_ROOM}.cuda.cache_encode", "qjl_encode", supports.cuda_encode),
        Kernel("reference", f"{_ROOM}.reference.qjl", "qjl_encode", supports.always),
    ),
    "qjl_decode": (Kernel("reference", f"{_ROOM}.reference.qjl", "qjl_decode", supports.always),),
    "qjl_scores": (Kernel("reference", f"{_ROOM}.reference.qjl", "qjl_scores", supports.always),),
    "rotated_scores": (Kernel("reference", f"{_ROOM}.reference.rotated", "rotated_scores", supports.always),),
    "rotated_mix": (Kernel("reference", f"{_ROOM}.reference.rotated", "rotated_mix", supports.always),),
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
