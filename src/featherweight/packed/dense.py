"""A weight stored as its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.packed.base import Layout, PackedWeight
from featherweight.packed.dtypes import dtype_from, dtype_name


@dataclass(frozen=True, eq=False)
class Dense(PackedWeight):
    """The values themselves.

    Attributes:
        values: `[out, in]`, any floating dtype.

    Raises:
        FeatherweightError: values that are not a floating matrix.
    """

    kind: ClassVar[str] = "dense"

    values: Tensor

    def __post_init__(self) -> None:
        """Refuse anything but a floating matrix."""
        if self.values.ndim != 2 or not self.values.dtype.is_floating_point:
            raise FeatherweightError(
                "a dense weight is a floating matrix",
                found=f"shape {tuple(self.values.shape)}, {self.values.dtype}",
                expected="[out, in] in a floating dtype",
            )

    @staticmethod
    def describe(shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Any]:
        """Description of an `[out, in]` weight in `dtype`."""
        return {"kind": "dense", "shape": list(shape), "dtype": dtype_name(dtype)}

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        return (self.values.shape[0], self.values.shape[1])

    def description(self) -> dict[str, Any]:
        """`kind`, `shape`, `dtype`."""
        return self.describe(self.shape, self.values.dtype)

    @classmethod
    def layout(cls, description: Mapping[str, Any]) -> Layout:
        """One tensor, `values`."""
        rows, columns = description["shape"]
        return {"values": ((rows, columns), dtype_from(description["dtype"]))}

    def tensors(self) -> dict[str, Tensor]:
        """`{"values": [out, in]}`."""
        return {"values": self.values}

    @classmethod
    def from_tensors(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Dense:
        """The weight of `tensors["values"]`."""
        return cls(tensors["values"])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values in `dtype`; not a copy where they are stored so."""
        return self.values.to(dtype)

    def rows(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Some rows, `[*indices.shape, in]`."""
        return torch.nn.functional.embedding(indices, self.values).to(dtype)

    def take(self, outputs: slice | Tensor | None = None, inputs: slice | Tensor | None = None) -> Dense:
        """Any outputs and inputs."""
        values = self.values if outputs is None else self.values[outputs]
        return Dense((values if inputs is None else values[:, inputs]).contiguous())
