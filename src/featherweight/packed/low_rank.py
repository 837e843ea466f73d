"""A weight that is the product of two thin ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.packed.base import Layout, PackedWeight, from_tensors, layout_of

SIDES = ("left", "right")


@dataclass(frozen=True, eq=False)
class LowRank(PackedWeight):
    """`W = L R`, `L [out, r]` and `R [r, in]`, each stored in any way.

    `L` is stored transposed: the groups of both factors then run along outputs and inputs, not along the short rank.

    Attributes:
        left: `Lᵀ [r, out]`.
        right: `R [r, in]`.

    Raises:
        FeatherweightError: factors of different ranks.
    """

    kind: ClassVar[str] = "low_rank"

    left: PackedWeight
    right: PackedWeight

    def __post_init__(self) -> None:
        """Refuse different ranks."""
        if self.left.shape[0] != self.right.shape[0]:
            raise FeatherweightError(
                "factors have different ranks",
                found=f"left [rank, out] {self.left.shape}, right [rank, in] {self.right.shape}",
                expected="one rank; the left factor is given transposed",
            )

    @staticmethod
    def describe(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
        """Description of the product of a so described `Lᵀ` and `R`."""
        shape = [left["shape"][1], right["shape"][1]]
        return {"kind": "low_rank", "shape": shape, "rank": left["shape"][0], "left": dict(left), "right": dict(right)}

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        return (self.left.shape[1], self.right.shape[1])

    @property
    def rank(self) -> int:
        """`r`."""
        return self.left.shape[0]

    def description(self) -> dict[str, Any]:
        """As `describe` writes it."""
        return self.describe(self.left.description(), self.right.description())

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """The factors' tensors, prefixed `left_` and `right_`."""
        return {f"{side}_{name}": entry for side in SIDES for name, entry in layout_of(description[side]).items()}

    def tensors(self) -> dict[str, Tensor]:
        """As `layout`."""
        factors = {"left": self.left, "right": self.right}
        return {f"{side}_{name}": tensor for side in SIDES for name, tensor in factors[side].tensors().items()}

    @classmethod
    def from_tensors(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LowRank:
        """The product of the factors of these stored tensors."""
        parts = {
            side: from_tensors(description[side], {name: tensors[f"{side}_{name}"] for name in layout_of(description[side])})
            for side in SIDES
        }
        return cls(parts["left"], parts["right"])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """`L R [out, in]`, multiplied in float32."""
        return (self.left.dequantize().T @ self.right.dequantize()).to(dtype)

    def rows(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Some rows, `[*indices.shape, in]`; the product is taken of these alone."""
        chosen = self.left.dequantize()[:, indices.reshape(-1)].T @ self.right.dequantize()
        return chosen.to(dtype).view(*indices.shape, self.shape[1])

    def matmul(self, x: Tensor) -> Tensor:
        """`(x Rᵀ) Lᵀ`, `[..., out]`: `r (out + in)` multiplications a token."""
        return self.right.matmul(x) @ self.left.dequantize(x.dtype)

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> LowRank:
        """The outputs that the left factor can cut of its inputs, and the inputs that the right one can."""
        return LowRank(self.left.take(inputs=outputs), self.right.take(inputs=inputs))
