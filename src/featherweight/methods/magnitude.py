"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from featherweight.methods.base import Problem, Steps
from featherweight.methods.permuted import Permuted


@dataclass(frozen=True)
class Magnitude(Permuted):
    """Drop the weights of smallest `|w|`; no data. The baseline of all pruning.

    The original code drops everything up to a threshold; here weights go by rank, so that counts are exact.
    """

    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = "drop the smallest weights; needs no data"
    source: ClassVar[str] = "Han et al. 2015, arXiv:1506.02626; per layer as in the `gmp` flag of SparseGPT's code"

    points: ClassVar[Mapping[str, Steps]] = {
        "60": ({"ratio": 0.6},),
        **{f"50-{bits}bit": ({"ratio": 0.5}, {"method": "rtn", "bits": bits, "group_size": 128}) for bits in (4, 8)},
    }

    def score(self, name: str, values: Tensor, problem: Problem) -> Tensor:
        """`|w|`."""
        return values.abs()
