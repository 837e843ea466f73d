"""An integer weight ready to be multiplied on a CUDA device, for any number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from featherweight.kernels.cuda.batch import multiply_batch, runs_on
from featherweight.kernels.cuda.choices import FEWEST_KEPT, MOST_BATCHED, choose_batch, choose_kept, choose_shape
from featherweight.kernels.cuda.driver import processors
from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.kept import multiply_kept
from featherweight.kernels.cuda.layout import ROWS
from featherweight.kernels.cuda.multiply import ACTIVATIONS, MOST_TOKENS, dequantize, multiply

#: Bytes of the dense values made at a time for many tokens: fewer cost more launches than the second-level cache saves.
SLAB_BYTES = 128 << 20

#: Tokens up to which reading the codes once for every sixteen of them is faster than that, where `batch` does not run.
MOST_STREAMED = 64


class Stored(Protocol):
    """A packed weight, as far as the kernels ask."""

    def description(self) -> dict[str, Any]:
        """Plain settings."""

    def tensors(self) -> Mapping[str, Tensor]:
        """What is stored, by name."""


class PreparedInteger:
    """Codes in the kernels' layout; what is stored can be had back from them bit for bit."""

    def __init__(self, weight: DeviceCodes) -> None:
        self.weight = weight

    def runs(self, x: Tensor) -> bool:
        """Whether `x` can be multiplied: bf16 or fp16, no gradients wanted."""
        return x.dtype in ACTIVATIONS and not (torch.is_grad_enabled() and x.requires_grad)

    def stored(self) -> dict[str, Tensor]:
        """The stored tensors of the packed weight, rebuilt."""
        return self.weight.stored()

    def tensors(self) -> dict[str, Tensor]:
        """What lies on the device in their place."""
        return self.weight.tensors()

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x [..., in]` to `x · Wᵀ + bias`, `[..., out]`, in the dtype of `x`."""
        if torch.compiler.is_compiling():
            made = self.weight
            return _product(x, bias, made.codes, made.scales, made.zeros, made.rows, made.bits, made.group)
        return multiply_any(x, bias, self.weight)


def multiply_any(x: Tensor, bias: Tensor | None, weight: DeviceCodes) -> Tensor:
    """`x · Wᵀ + bias` by the kernel that suits the number of tokens."""
    flat = x.reshape(-1, x.shape[-1])
    if flat.stride(-1) != 1 or flat.stride(0) % 8 or flat.data_ptr() % 16:
        flat = flat.clone(memory_format=torch.contiguous_format)
    bias = None if bias is None else bias.to(x.dtype)
    y = torch.empty(len(flat), weight.rows, dtype=x.dtype, device=x.device)
    if MOST_TOKENS < len(flat) <= MOST_BATCHED and runs_on(x.device):
        multiply_batch(flat, weight, bias, y, choose_batch(weight, len(flat), processors(x.device)))
    elif len(flat) <= MOST_STREAMED:
        for first in range(0, len(flat), MOST_TOKENS):
            _multiply_few(flat[first : first + MOST_TOKENS], weight, bias, y[first : first + MOST_TOKENS])
    else:
        multiply_dense(flat, bias, weight, y)
    return y.view(*x.shape[:-1], weight.rows)


def _multiply_few(x: Tensor, weight: DeviceCodes, bias: Tensor | None, y: Tensor) -> None:
    kept = choose_kept(weight, len(x), processors(x.device)) if len(x) >= FEWEST_KEPT and runs_on(x.device) else None
    if kept is not None:
        multiply_kept(x, weight, bias, y, kept)
    else:
        multiply(x, weight, bias, y, choose_shape(weight, len(x), processors(x.device)))


def multiply_dense(x: Tensor, bias: Tensor | None, weight: DeviceCodes, y: Tensor, slab_bytes: int | None = None) -> Tensor:
    """`multiply` for any number of tokens: some rows' values at a time, dense, then torch's own product."""
    rows = max(ROWS, (slab_bytes or SLAB_BYTES) // (2 * weight.inputs) // 256 * 256)
    slab = torch.empty(min(rows, weight.rows), weight.inputs, dtype=x.dtype, device=x.device)
    for first in range(0, weight.rows, rows):
        part = slab[: min(rows, weight.rows - first)]
        dequantize(weight, part, first)
        torch.mm(x, part.T, out=y[:, first : first + rows])
    return y if bias is None else y.add_(bias)


@torch.library.custom_op("featherweight::integer_product", mutates_args=())
def _product(
    x: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    rows: int,
    bits: int,
    group: int,
) -> Tensor:
    """`multiply_any` as an operator that torch's compiler takes as a whole."""
    return multiply_any(x, bias, DeviceCodes(rows, x.shape[-1], bits, group, codes, scales, zeros))


@_product.register_fake
def _(x: Tensor, bias: Tensor | None, codes: Tensor, scales: Tensor, zeros: Tensor | None, rows: int, *_: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


def prepare_integer(weight: Stored) -> PreparedInteger:
    """The weight in the kernels' layout on the device of its tensors; the kernel for one token is compiled, as a proof.

    Raises:
        FeatherweightError: the compiler or the driver refuses.
    """
    prepared = PreparedInteger(DeviceCodes.from_stored(weight.description(), weight.tensors()))
    device = prepared.weight.codes.device
    x = torch.zeros(1, prepared.weight.inputs, dtype=torch.bfloat16, device=device)
    prepared(x)
    return prepared
