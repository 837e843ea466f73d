"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from featherweight.errors import FeatherweightError
from featherweight.masks.patterns import Pattern
from featherweight.methods.base import Compressed, Method, Problem, Steps
from featherweight.packed.masked import Masked


@dataclass(frozen=True)
class Magnitude(Method):
    """Drop the weights of smallest `|w|`; no data, and no other weight changes. The baseline of all pruning.

    The original code drops everything up to a threshold; here weights go by rank, so that counts are exact.

    Attributes:
        ratio: fraction dropped; None for 0.5, or for what N:M says.
        pattern: "layer" (all weights of a linear compete), "row", or "N:M" (N of every M inputs are kept).

    Raises:
        FeatherweightError: an unknown pattern, a ratio outside [0, 1) or one that contradicts N:M.
    """

    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = "drop the smallest weights; needs no data"
    source: ClassVar[str] = "Han et al. 2015, arXiv:1506.02626; per layer as in the `gmp` flag of SparseGPT's code"

    points: ClassVar[Mapping[str, Steps]] = {
        "60": ({"ratio": 0.6},),
        **{f"50-{bits}bit": ({"ratio": 0.5}, {"method": "rtn", "bits": bits, "group_size": 128}) for bits in (4, 8)},
    }

    ratio: float | None = None
    pattern: str = "layer"

    def __post_init__(self) -> None:
        """Check the settings."""
        self._pattern()

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The values of `current` beneath a mask.

        Raises:
            FeatherweightError: `current` is masked already or cannot hold a mask, or N:M does not divide the inputs.
        """
        if current["kind"] == "masked":
            raise FeatherweightError(
                f"{self.name} drops from weights that are all there",
                found="a step before dropped some",
                expected="one step that prunes",
                fix="remove one of them",
            )
        rows, inputs = current["shape"]
        pattern = self._pattern()
        pattern.check(inputs)
        return Masked.describe(current, pattern.kept((rows, inputs)), "unstructured" if not pattern.per_row else pattern.name)

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Drop by the current values of every linear.

        Raises:
            FeatherweightError: N:M does not divide a linear's inputs.
        """
        compressed = {}
        for name, current in problem.current.items():
            self._pattern().check(current.shape[1], name)
            dropped = self._pattern().dropped(current.dequantize().abs())
            compressed[name] = Compressed(Masked.of(current, ~dropped, self.storage(current.description(), problem.dtype)))
        return compressed

    def _pattern(self) -> Pattern:
        return Pattern.parse(self.pattern, self.ratio)
