"""A dense checkpoint with the values that the packed weights stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.export.base import Format
from featherweight.export.codes import rounds_input
from featherweight.packed.base import PackedWeight


class DenseValues(Format):
    """`weight` of every module, decoded and rounded to the model's dtype."""

    name: ClassVar[str] = "dense"
    readers: ClassVar[str] = "whatever reads the original"
    linears_only: ClassVar[bool] = False
    experts: ClassVar[bool] = True

    def refusal(self, module: str, description: Mapping[str, Any]) -> str | None:
        """Only rounded inputs: values cannot express them."""
        return "its inputs are rounded, which values cannot express" if rounds_input(description) else None

    def tensors(self, module: str, weight: PackedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """The values."""
        return {f"{module}.weight": weight.dequantize(dtype)}

    def section(self, modules: Mapping[str, Mapping[str, Any]], others: tuple[str, ...]) -> None:
        """None."""
        return
