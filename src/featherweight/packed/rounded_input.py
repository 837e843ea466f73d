"""A weight whose input is rounded to integers or FP8, token by token, as it is multiplied (W8A8 where the weight is 8-bit)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.grids.floating import E4M3
from featherweight.kernels.registry import choose
from featherweight.packed.base import Layout, PackedWeight, from_tensors, layout_of
from featherweight.packed.integer import Integer

PREFIX = "inner_"


@dataclass(frozen=True, eq=False)
class RoundedInput(PackedWeight):
    """`inner` times `x̂`, where each token's `x̂ = s · round(x / s)` with `s = max |x| / (2^(bits−1) − 1)`, found as it comes.

    With `grid` "fp8" `x / s` is rounded to the nearest E4M3 number instead, `s = max |x| / 448`.

    The only storage whose product is not `x · dequantize()ᵀ`. Over an 8-bit symmetric `Integer` with one scale a row the
    product runs in integers, exactly, and is scaled once; over anything else `x̂` is multiplied as any input.

    Attributes:
        inner: any storage.
        bits: of the input's integers.
        grid: "integer" or "fp8".
    """

    kind: ClassVar[str] = "rounded_input"

    inner: PackedWeight
    bits: int = 8
    grid: str = "integer"

    @staticmethod
    def describe(inner: Mapping[str, Any], bits: int = 8, grid: str = "integer") -> dict[str, Any]:
        """Description of a so described `inner` with a rounded input."""
        rounding = {"input_bits": bits, "input_grid": grid}
        return {"kind": "rounded_input", "shape": list(inner["shape"]), **rounding, "inner": dict(inner)}

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        return self.inner.shape

    def description(self) -> dict[str, Any]:
        """As `describe` writes it."""
        return self.describe(self.inner.description(), self.bits, self.grid)

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """The tensors of `inner`, prefixed; rounding stores nothing."""
        return {PREFIX + name: entry for name, entry in layout_of(description["inner"]).items()}

    def tensors(self) -> dict[str, Tensor]:
        """As `layout`."""
        return {PREFIX + name: tensor for name, tensor in self.inner.tensors().items()}

    @classmethod
    def from_tensors(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> RoundedInput:
        """The weight of these stored tensors."""
        inner = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
        return cls(
            from_tensors(description["inner"], inner), description["input_bits"], description.get("input_grid", "integer")
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight's values, `[out, in]`."""
        return self.inner.dequantize(dtype)

    @property
    def is_linear(self) -> bool:
        """The input is rounded first."""
        return False

    @property
    def support(self) -> Tensor | None:
        """That of `inner`."""
        return self.inner.support

    def as_read(self, x: Tensor) -> Tensor:
        """`x̂ [..., in]`, in the dtype of `x`."""
        if self.grid == "fp8":
            return round_tokens_to_fp8(x)
        codes, scale = round_tokens(x, self.bits)
        return (codes.to(torch.float32) * scale).to(x.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """`x̂ · Wᵀ`, `[..., out]` in the dtype of `x`."""
        inner = self.inner
        whole = isinstance(inner, Integer) and inner.bits == 8 and inner.group_size is None and inner.zeros is None
        if self.grid != "integer" or not isinstance(inner, Integer) or not whole:
            return inner.matmul(self.as_read(x))
        codes, scale = round_tokens(x, self.bits)
        tokens = codes.reshape(-1, codes.shape[-1])
        weight = (inner.codes.to(torch.int16) - 128).to(torch.int8)
        signature = {"tokens": len(tokens), "outputs": weight.shape[0], "inputs": weight.shape[1]}
        product = choose("int8_matmul", signature, x.device)(tokens, weight)
        scaled = product.to(torch.float32) * scale.reshape(-1, 1) * inner.scales.to(torch.float32).flatten()
        return scaled.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> RoundedInput:
        """What `inner` can cut."""
        return RoundedInput(self.inner.take(outputs, inputs), self.bits, self.grid)


def round_tokens(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers `[..., in]` int8 and scales `[..., 1]` float32 of every token; a token of zeros gives zeros."""
    values, largest = x.to(torch.float32), 2 ** (bits - 1) - 1
    scale = values.abs().amax(-1, keepdim=True) / largest
    codes = (values / torch.where(scale > 0, scale, 1.0)).round().clamp(-largest, largest)
    return codes.to(torch.int8), scale


def round_tokens_to_fp8(x: Tensor) -> Tensor:
    """Each token's nearest multiples of E4M3 numbers, its largest value at 448; `[..., in]` in the dtype of `x`."""
    values = x.to(torch.float32)
    scale = values.abs().amax(-1, keepdim=True) / E4M3.largest
    return (E4M3.nearest(values / torch.where(scale > 0, scale, 1.0)) * scale).to(x.dtype)
