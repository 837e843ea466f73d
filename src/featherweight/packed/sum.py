"""A weight that is the sum of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.packed.base import Layout, PackedWeight, from_tensors, layout_of


@dataclass(frozen=True, eq=False)
class Sum(PackedWeight):
    """`W = W₀ + W₁ + …`, added in float32 from the left.

    Term `i` stands as `terms_i` in the description, its tensors begin with `terms_i_`.

    Attributes:
        terms: at least one, all of one shape.

    Raises:
        FeatherweightError: no term, or shapes that differ.
    """

    kind: ClassVar[str] = "sum"

    terms: tuple[PackedWeight, ...]

    def __post_init__(self) -> None:
        """Refuse shapes that differ."""
        if len({term.shape for term in self.terms}) != 1:
            raise FeatherweightError(
                "terms of a sum have one shape", found=[term.shape for term in self.terms], expected="one or more equal shapes"
            )

    @staticmethod
    def describe(terms: list[dict[str, Any]]) -> dict[str, Any]:
        """Description of the sum of so described terms."""
        return {"kind": "sum", "shape": terms[0]["shape"], **{f"terms_{index}": term for index, term in enumerate(terms)}}

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        return self.terms[0].shape

    def description(self) -> dict[str, Any]:
        """As `describe` writes it."""
        return self.describe([term.description() for term in self.terms])

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """The terms' tensors, prefixed."""
        return {
            f"{prefix}_{name}": tensor
            for prefix, term in _described(description).items()
            for name, tensor in layout_of(term).items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """The terms' tensors, prefixed."""
        return {f"terms_{i}_{name}": tensor for i, term in enumerate(self.terms) for name, tensor in term.tensors().items()}

    @classmethod
    def from_tensors(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Sum:
        """The sum of the terms of these stored tensors."""
        return cls(
            tuple(
                from_tensors(term, {name: tensors[f"{prefix}_{name}"] for name in layout_of(term)})
                for prefix, term in _described(description).items()
            )
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The sum of the terms' values, `[out, in]`, rounded to `dtype` once."""
        total = self.terms[0].dequantize()
        for term in self.terms[1:]:
            total = total + term.dequantize()
        return total.to(dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """The sum of the terms' products, `[..., out]`."""
        total = self.terms[0].matmul(x)
        for term in self.terms[1:]:
            total = total + term.matmul(x)
        return total

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> Sum:
        """What every term can cut."""
        return Sum(tuple(term.take(outputs, inputs) for term in self.terms))


def _described(description: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The terms' descriptions by prefix, in order."""
    count = sum(name.startswith("terms_") for name in description)
    return {f"terms_{index}": description[f"terms_{index}"] for index in range(count)}
