"""Activations rounded to integers or FP8 as they are multiplied: the second half of W8A8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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
        grid: "integer", or "fp8" for E4M3 numbers, the largest value of a token at 448; products then run in the input's dtype.

    Raises:
        FeatherweightError: bits outside 2 to 8, or other than 8 with "fp8".
    """

    name: ClassVar[str] = "round-input"
    summary: ClassVar[str] = "round activations to integers or FP8, token by token, as they are multiplied (W8A8)"
    source: ClassVar[str] = "per-token dynamic quantization, Yao et al. 2022, arXiv:2206.01861"
    points: ClassVar[Mapping[str, Steps]] = {
        "w8a8": ({"method": "rtn", "bits": 8, "group_size": None, "symmetric": True}, {}),
        "w4a8": ({"method": "gptq", "bits": 4, "group_size": 128}, {}),
    }

    bits: int = 8
    grid: Literal["integer", "fp8"] = "integer"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.bits not in range(2, 9):
            raise FeatherweightError("round-input cannot round so", found=self.bits, expected="2 to 8 bits", fix="use bits: 8")
        if self.grid not in ("integer", "fp8") or (self.grid == "fp8" and self.bits != 8):
            raise FeatherweightError(
                "round-input has no such grid", found=f"grid: {self.grid}, bits: {self.bits}", expected="integer, or fp8 of 8 bits",
                fix="leave bits or grid out",
            )  # fmt: skip

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """`current` with a rounded input; no byte more."""
        return RoundedInput.describe(current, self.bits, self.grid)

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Wrap every linear of the input."""
        return {name: Compressed(RoundedInput(current, self.bits, self.grid)) for name, current in problem.current.items()}
