"""Round to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from featherweight.methods.base import Compressed, Problem
from featherweight.methods.integers import IntegerMethod
from featherweight.solvers.nearest import round_to_nearest


@dataclass(frozen=True)
class RTN(IntegerMethod):
    """Every weight to the nearest level of its group's grid, of integers `ŵ = s (clamp(round(w/s) + z) − z)`; no data.

    Weights that a step before dropped stay exactly 0.

    Settings: those of `IntegerMethod`.
    """

    name: ClassVar[str] = "rtn"
    summary: ClassVar[str] = "round to nearest on a grid per group (integers, FP8, FP4); needs no data"
    source: ClassVar[str] = "the min-max quantiser of GPTQ's code; baseline of Frantar et al. 2022, arXiv:2210.17323"

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Round the current values of every linear.

        Raises:
            FeatherweightError: `tails` is off and the group size does not divide a linear's inputs.
        """
        compressed = {}
        for name, current in problem.current.items():
            self.check_groups(current.shape, name)
            weight = current.dequantize()
            grid = self.grid_over(weight)
            solved = round_to_nearest(weight, grid, self.group_size)
            packed = self.masked_like(current, self.pack(solved, slice(None), grid))
            compressed[name] = Compressed(packed, {"solver": "rtn"})
        return compressed
