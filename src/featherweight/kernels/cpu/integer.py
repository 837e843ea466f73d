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
from featherweight.kernels.cpu.compiler import library, parallel

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

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors, by name."""


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


class IntegerProduct:
    """An integer weight ready to be multiplied: its stored tensors, and where they lie told to `integer.c` once."""

    def __init__(self, weight: Codes) -> None:
        self.weight, self._held = weight, _stored(weight)
        self._rows = len(self._held[0])
        self._jobs = {dtype: _job(weight, self._held, dtype) for dtype in (torch.float32, torch.bfloat16)}
        self._multiply = library("integer").featherweight_multiply
        self._summed = block_size(weight.inputs, weight.group_size) > 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies find their own tensors."""
        return IntegerProduct, (self.weight,)

    def runs(self, x: Tensor) -> bool:
        """Whether `x` can be multiplied: memory of a CPU, no gradients wanted."""
        return (
            x.dtype in KINDS and type(x) in (Tensor, torch.nn.Parameter) and not (x.requires_grad and torch.is_grad_enabled())
        )

    def stored(self) -> dict[str, Tensor]:
        """The stored tensors: the same."""
        return self.weight.tensors()

    def tensors(self) -> dict[str, Tensor]:
        """What it holds: the stored tensors."""
        return self.weight.tensors()

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x [..., in]` to `x · Wᵀ + bias`, `[..., out]` in the dtype of `x`, to the accuracy of that dtype.

        Up to 16 tokens are multiplied as fixed-point integers of 24 bits (16 for bfloat16) with a scale for each block of inputs,
        sums exact within a block; more by torch, from the decoded weight, some rows at a time.
        """
        dtype = x.dtype if x.dtype in self._jobs else torch.float32
        tokens = x.reshape(-1, x.shape[-1]).to(dtype).contiguous()
        count = tokens.shape[0]
        y = torch.empty(count, self._rows, dtype=dtype)
        if self._summed and count <= MOST_TOKENS:
            job = _Job.from_buffer_copy(self._jobs[dtype])
            job.x, job.y, job.tokens, job.threads = (
                tokens.data_ptr(),
                y.data_ptr(),
                count,
                _threads(y.numel() * self.weight.inputs),
            )
            _check(self._multiply(ctypes.byref(job)))
        else:
            step = max(64, SLAB // (self.weight.inputs * dtype.itemsize))
            for first in range(0, self._rows, step):
                values = integer_values(self.weight, dtype, slice(first, first + step))
                torch.mm(tokens, values.T, out=y[:, first : first + step])
        y = y.view(*x.shape[:-1], self._rows).to(x.dtype)
        return y if bias is None else y.add_(bias)


def integer_matmul(x: Tensor, weight: Codes) -> Tensor:
    """`x [..., in]` times the transposed weight, as `IntegerProduct` does it; float64 by torch."""
    if x.dtype not in KINDS:
        return torch.nn.functional.linear(x, integer_values(weight, x.dtype))
    return IntegerProduct(weight)(x)


def integer_values(weight: Codes, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
    """Values of some rows, `[rows, in]`, bit for bit those of the reference: float32 arithmetic, rounded to `dtype`."""
    kept = dtype if dtype in (torch.float32, torch.bfloat16) else torch.float32
    stored = _stored(weight, rows)
    values = torch.empty(len(stored[0]), weight.inputs, dtype=kept)
    job = _job(weight, stored, kept)
    job.y, job.threads = values.data_ptr(), _threads(values.numel())
    _check(library("integer").featherweight_decode(ctypes.byref(job)))
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


def _stored(weight: Codes, rows: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor | None]:
    zeros = None if weight.zeros is None else weight.zeros[rows].contiguous()
    return weight.codes[rows].contiguous(), weight.scales[rows].contiguous(), zeros


def _job(weight: Codes, stored: tuple[Tensor, Tensor, Tensor | None], dtype: torch.dtype) -> _Job:
    """Everything but the tokens, where the result goes, and the threads."""
    codes, scales, zeros = stored
    return _Job(
        codes.data_ptr(), scales.data_ptr(), None if zeros is None else zeros.data_ptr(), None, None, parallel() or None,
        codes.shape[0], weight.inputs, 0, scales.shape[1], weight.group_size or weight.inputs, codes.shape[1],
        0 if zeros is None else zeros.shape[1], block_size(weight.inputs, weight.group_size), weight.bits, KINDS[scales.dtype],
        KINDS[dtype], _level(), 1,
    )  # fmt: skip


def _threads(work: int) -> int:
    """How many are worth their waking for so many weights times tokens."""
    return max(1, min(torch.get_num_threads(), work // THREAD_WORK))


def _check(status: int) -> None:
    if status:
        raise FeatherweightError("a kernel found no memory", fix="free some, or use fewer tokens at once")


@cache
def _level() -> int:
    return int(library("integer").featherweight_level())
