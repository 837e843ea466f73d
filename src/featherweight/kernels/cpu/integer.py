"""Products with integer codes, and their values, by `integer.c`: the stored bytes are read as they are, no copy is kept."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.cpu.compiler import library

#: Tokens up to which weights are decoded on the way into the product; above, rows are decoded and multiplied by torch.
MOST_TOKENS = 16

#: Decoded bytes that are multiplied at once: they stay in a core's second cache.
SLAB = 1 << 20

#: Weights times tokens that a thread is worth waking for.
THREAD_WORK = 1 << 18

LEVELS = ("plain C", "AVX2", "AVX-512 VNNI")
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Codes(Protocol):
    """An integer weight as `featherweight.packed.integer.Integer` stores it."""

    inputs: int
    bits: int
    group_size: int | None
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None


class _Job(ctypes.Structure):
    """`Job` of `common.h`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "zeros", "x", "y", "parallel")),
        *(
            (name, ctypes.c_int64)
            for name in (
                "rows", "columns", "tokens", "groups", "group_size", "code_bytes", "zero_bytes", "block", "bits", "scale_kind",
                "kind", "level", "threads",
            )
        ),
    )  # fmt: skip


def integer_matmul(x: Tensor, weight: Codes) -> Tensor:
    """`x [..., in]` times the transposed weight, `[..., out]` in the dtype of `x`, to the accuracy of that dtype.

    Up to 16 tokens are multiplied as fixed-point integers of 24 bits (16 for bfloat16) with a scale for each block of inputs, sums
    exact within a block; more by torch, from the decoded weight, some rows at a time.
    """
    tokens = x.reshape(-1, x.shape[-1])
    dtype = x.dtype if x.dtype in (torch.float32, torch.bfloat16) else torch.float32
    if len(tokens) <= MOST_TOKENS and block_size(weight.inputs, weight.group_size):
        y = _multiply(tokens.to(dtype).contiguous(), weight)
    else:
        y = torch.empty(len(tokens), weight.codes.shape[0], dtype=dtype)
        step = max(64, SLAB // (weight.inputs * dtype.itemsize))
        for first in range(0, y.shape[1], step):
            values = integer_values(weight, dtype, slice(first, first + step))
            y[:, first : first + step] = torch.nn.functional.linear(tokens.to(dtype), values)
    return y.to(x.dtype).view(*x.shape[:-1], y.shape[1])


def integer_values(weight: Codes, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
    """Values of some rows, `[rows, in]`, bit for bit those of the reference: float32 arithmetic, rounded to `dtype`."""
    kept = dtype if dtype in (torch.float32, torch.bfloat16) else torch.float32
    stored = _stored(weight, rows)
    values = torch.empty(len(stored[0]), weight.inputs, dtype=kept)
    _run("featherweight_decode", _job(weight, stored, values, values.numel()))
    return values.to(dtype)


def block_size(inputs: int, group_size: int | None) -> int:
    """Inputs that are summed as integers: 256 to 64 where groups and inputs are in 64s, else 16, else 0 (not supported)."""
    common = math.gcd(inputs, group_size or inputs)
    return next((size for size in (256, 192, 128, 64, 16) if common % size == 0), 0)


def told(signature: Mapping[str, Any]) -> str:
    """How a weight so described is multiplied, in words."""
    if not block_size(signature.get("shape", (0, 0))[1], signature.get("group_size")):
        return f"rows decoded by {level()}, multiplied by torch (sums of codes need groups and inputs in 16s)"
    return f"{level()} from the stored bytes up to {MOST_TOKENS} tokens; above, rows decoded and multiplied by torch"


def level() -> str:
    """The instructions that are used here."""
    return LEVELS[_level()]


def _multiply(x: Tensor, weight: Codes) -> Tensor:
    y = torch.empty(len(x), weight.codes.shape[0], dtype=x.dtype)
    stored = _stored(weight)
    job = _job(weight, stored, y, len(x) * y.shape[1] * weight.inputs)
    job.x, job.tokens = x.data_ptr(), len(x)
    job.block = block_size(weight.inputs, weight.group_size)
    _run("featherweight_multiply", job)
    return y


def _stored(weight: Codes, rows: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor | None]:
    zeros = None if weight.zeros is None else weight.zeros[rows].contiguous()
    return weight.codes[rows].contiguous(), weight.scales[rows].contiguous(), zeros


def _job(weight: Codes, stored: tuple[Tensor, Tensor, Tensor | None], target: Tensor, work: int) -> _Job:
    codes, scales, zeros = stored
    threads = max(1, min(torch.get_num_threads(), work // THREAD_WORK)) if _parallel() else 1
    return _Job(
        codes.data_ptr(), scales.data_ptr(), None if zeros is None else zeros.data_ptr(), None, target.data_ptr(), _parallel(),
        codes.shape[0], weight.inputs, 0, scales.shape[1], weight.group_size or weight.inputs, codes.shape[1],
        0 if zeros is None else zeros.shape[1], 0, weight.bits, KINDS[scales.dtype], KINDS[target.dtype], _level(), threads,
    )  # fmt: skip


def _run(function: str, job: _Job) -> None:
    if getattr(library(), function)(ctypes.byref(job)):
        raise FeatherweightError("a kernel found no memory", found=function)


@cache
def _level() -> int:
    return int(library().featherweight_level())


@cache
def _parallel() -> int:
    """Address of the function by which torch's own OpenMP runs something in its threads; 0 where it has none."""
    found = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return 0 if found is None else ctypes.cast(found, ctypes.c_void_p).value or 0
