"""Patterns: from scores and a ratio to the weights that are dropped, exact in number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError

#: The ratio of patterns that do not fix it.
DEFAULT_RATIO = 0.5


@dataclass(frozen=True)
class Pattern:
    """Which weights compete with each other, and how many of them go.

    The smallest scores go, by rank: of equal scores the first in row-major order, so that counts are exact.

    Attributes:
        name: "layer" (all weights of a linear compete), "row" (those of one output), or "N:M" (N of every M
            consecutive inputs are kept, the field's convention).
        ratio: fraction that is dropped, rounded down to whole weights.
        keep, of: N and M; 0 where the pattern is not N:M.
    """

    name: str
    ratio: float
    keep: int = 0
    of: int = 0

    @classmethod
    def parse(cls, name: str, ratio: float | None = None) -> Pattern:
        """The pattern as a recipe writes it.

        Args:
            name: "layer", "row" or "N:M".
            ratio: fraction dropped; None for 0.5, or for what N:M says.

        Raises:
            FeatherweightError: an unknown pattern, a ratio outside [0, 1), or one that contradicts N:M.
        """
        if ratio is not None and not (isinstance(ratio, (int, float)) and 0 <= ratio < 1):
            raise FeatherweightError(
                "this fraction of the weights cannot be dropped",
                found=ratio,
                expected="a ratio of at least 0 and less than 1",
                fix="use ratio: 0.5 to drop half of the weights",
            )
        if name in ("layer", "row"):
            return cls(name, DEFAULT_RATIO if ratio is None else float(ratio))
        keep, of = _read(name)
        implied = 1 - keep / of
        if ratio is not None and not math.isclose(ratio, implied, abs_tol=1e-6):
            raise FeatherweightError(
                "pattern and ratio contradict each other",
                found=f"pattern {name}, ratio {ratio}",
                expected=f"ratio {implied:g}: {name} keeps {keep} of every {of} weights",
                fix="leave the ratio out",
            )
        return cls(f"{keep}:{of}", implied, keep, of)

    @property
    def per_row(self) -> bool:
        """Whether every row keeps the same number of weights."""
        return self.name != "layer"

    def check(self, inputs: int, name: str = "") -> None:
        """Refuse inputs that N:M does not divide.

        Raises:
            FeatherweightError: it names the linear and what would fit.
        """
        if not self.of or inputs % self.of == 0:
            return
        fitting = [size for size in (32, 16, 8, 4, 2) if inputs % size == 0 and size < self.of]
        raise FeatherweightError(
            f"{self.name} does not fit {name or 'this linear'}",
            found=f"{inputs} inputs, remainder {inputs % self.of} after groups of {self.of}",
            expected=f"a multiple of {self.of} inputs",
            fix=(
                f'use groups of {fitting[0]}, such as pattern: "{max(fitting[0] // 2, 1)}:{fitting[0]}", or ' if fitting else ""
            )
            + "skip this linear with an override",
        )

    def kept(self, shape: tuple[int, int]) -> int:
        """How many weights of an `[out, in]` matrix are kept."""
        rows, inputs = shape
        if self.of:
            return rows * (inputs // self.of) * self.keep
        if self.name == "row":
            return rows * (inputs - _count(inputs, self.ratio))
        return rows * inputs - _count(rows * inputs, self.ratio)

    def dropped(self, scores: Tensor) -> Tensor:
        """True where a weight goes, `[out, in]`, for `scores [out, in]`.

        Raises:
            FeatherweightError: inputs that N:M does not divide.
        """
        rows, inputs = scores.shape
        self.check(inputs)
        if self.of:
            return smallest(scores.reshape(-1, self.of), self.of - self.keep).view(rows, inputs)
        if self.name == "row":
            return smallest(scores, _count(inputs, self.ratio))
        return smallest(scores.reshape(1, -1), _count(rows * inputs, self.ratio)).view(rows, inputs)


def smallest(scores: Tensor, count: int) -> Tensor:
    """True at the `count` smallest of every row of `scores [rows, n]`; of equal ones the first go first."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if scores.is_cuda and len(scores) == 1:  # one long row: its kthvalue runs on a single processor
        threshold = scores.sort(dim=-1).values[:, count - 1 : count]
    else:
        threshold = scores.kthvalue(count, dim=-1, keepdim=True).values
    below, equal = scores < threshold, scores == threshold
    missing = count - below.sum(-1, keepdim=True)
    return below | (equal & (equal.cumsum(-1) <= missing))


def _count(total: int, ratio: float) -> int:
    """`⌊ratio · total⌋`, safe from the last bit of the product (0.29 · 100)."""
    return math.floor(ratio * total + 1e-9 * max(total, 1) ** 0.5)


def _read(name: object) -> tuple[int, int]:
    """N and M of "N:M"."""
    parts = name.split(":") if isinstance(name, str) else []
    if len(parts) == 2 and all(part.strip().isdecimal() for part in parts):
        keep, of = int(parts[0]), int(parts[1])
        if 0 < keep < of:
            return keep, of
    raise FeatherweightError(
        "unknown pattern",
        found=repr(name),
        expected='layer, row, or "N:M" in quotes with 0 < N < M: N of every M weights are kept',
        fix='use pattern: "2:4", quotes included',
    )
