"""Activations rounded to integers as they are multiplied: the second half of W8A8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Compressed, Method, Problem, Steps
from featherweight.packed.rounded_input import RoundedInput


@dataclass(frozen=True)
class RoundInput(Method):
    """Round each token's input to integers with a scale of its own, `max |x| / (2^(bits−1) − 1)`; the last step of a chain.

    After `rtn` or `gptq` with 8 bits, symmetric, `group_size: null`, products run in int8 (W8A8). Weights stay as they are.

    Attributes:
        bits: of the input's integers, 2 to 8.

    Raises:
        FeatherweightError: bits outside 2 to 8.
    """

    name: ClassVar[str] = "round-input"
    summary: ClassVar[str] = "round activations to integers, token by token, as they are multiplied (W8A8)"
    source: ClassVar[str] = "per-token dynamic quantization, Yao et al. 2022, arXiv:2206.01861"
    points: ClassVar[Mapping[str, Steps]] = {
        "w8a8": ({"method": "rtn", "bits": 8, "group_size": None, "symmetric": True}, {}),
        "w4a8": ({"method": "gptq", "bits": 4, "group_size": 128}, {}),
    }

    bits: int = 8

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.bits not in range(2, 9):
            raise FeatherweightError("round-input cannot round so", found=self.bits, expected="2 to 8 bits", fix="use bits: 8")

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """`current` with a rounded input; no byte more."""
        return RoundedInput.describe(current, self.bits)

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Wrap every linear of the input."""
        return {name: Compressed(RoundedInput(current, self.bits)) for name, current in problem.current.items()}
