"""An integer weight ready to be multiplied on a CUDA device, for any number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from featherweight.kernels.cuda.choices import choose_shape
from featherweight.kernels.cuda.driver import processors
from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.layout import ROWS
from featherweight.kernels.cuda.multiply import ACTIVATIONS, MOST_TOKENS, dequantize, multiply

#: Bytes of the dense values made at a time for many tokens: they are multiplied from the second-level cache.
SLAB_BYTES = 24 << 20


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
        flat = x.reshape(-1, x.shape[-1])
        if flat.stride(-1) != 1 or flat.stride(0) % 8 or flat.data_ptr() % 16:
            flat = flat.clone(memory_format=torch.contiguous_format)
        bias = None if bias is None else bias.to(x.dtype)
        y = torch.empty(len(flat), self.weight.rows, dtype=x.dtype, device=x.device)
        if 0 < len(flat) <= MOST_TOKENS:
            multiply(flat, self.weight, bias, y, choose_shape(self.weight, len(flat), processors(x.device)))
        elif len(flat):
            self._multiply_slabs(flat, bias, y)
        return y.view(*x.shape[:-1], self.weight.rows)

    def _multiply_slabs(self, x: Tensor, bias: Tensor | None, y: Tensor) -> None:
        """Some rows' values at a time, dense, then torch's own product."""
        rows = max(ROWS, SLAB_BYTES // (2 * self.weight.inputs) // 256 * 256)
        slab = torch.empty(min(rows, self.weight.rows), self.weight.inputs, dtype=x.dtype, device=x.device)
        for first in range(0, self.weight.rows, rows):
            part = slab[: min(rows, self.weight.rows - first)]
            dequantize(self.weight, part, first)
            torch.mm(x, part.T, out=y[:, first : first + rows])
        if bias is not None:
            y += bias


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
