"""What the methods with low-rank terms have in common: rank, grids and storage of the factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.e8 import E8Grid
from featherweight.grids.normal import NormalGrid
from featherweight.grids.uniform import Fit, UniformGrid
from featherweight.methods.base import Method, Problem
from featherweight.models.transforms import Hadamard
from featherweight.packed.base import PackedWeight, described_bytes
from featherweight.packed.dense import Dense
from featherweight.packed.integer import Integer
from featherweight.packed.lattice import Lattice
from featherweight.packed.low_rank import LowRank
from featherweight.packed.normal_float import NormalFloat
from featherweight.packed.sum import Sum
from featherweight.solvers.low_rank import Fitted, Metric, Rounded, Rounding, best_factors, check_rank, fit_factors
from featherweight.solvers.nearest import round_to_nearest

FactorGrid = Literal["uniform", "clipped", "normal", "lattice"]
RankRotation = Literal["none", "hadamard", "haar"]

#: In which factors of 16 bits, and all scales, are stored.
DTYPE = torch.float16


@dataclass(frozen=True)
class Format:
    """How a factor `[rank, features]` is stored.

    Attributes:
        bits: of a code; 16 for none.
        grid: of the codes; "clipped" is uniform and cuts the range at 2.5 standard deviations, "lattice" has one scale for all.
        group_size: consecutive features that share a scale; None for all of a rank.

    Raises:
        FeatherweightError: bits that the grid does not have.
    """

    bits: int
    grid: FactorGrid
    group_size: int | None

    def __post_init__(self) -> None:
        """Refuse bits that the grid does not have."""
        if self.bits != 16:
            self.rule()

    def rule(self) -> UniformGrid | NormalGrid | E8Grid:
        """The rounding rule."""
        if self.grid == "lattice":
            return E8Grid(self.bits)
        if self.grid == "normal":
            return NormalGrid(self.bits, DTYPE)
        fit: Fit = "clipped" if self.grid == "clipped" else "weighted"
        return UniformGrid(self.bits, symmetric=True, fit_by=fit, scale_dtype=DTYPE)

    def describe(self, shape: tuple[int, int]) -> dict[str, Any]:
        """Description of a factor so stored."""
        if self.bits == 16:
            return Dense.describe(shape, DTYPE)
        if self.grid == "lattice":
            return Lattice.describe(shape, self.bits)
        if self.grid == "normal":
            return NormalFloat.describe(shape, self.bits, self.group_size, DTYPE)
        return Integer.describe(shape, self.bits, self.group_size, symmetric=True, scale_dtype=DTYPE)

    def pack(self, values: Tensor, importance: Tensor | None) -> PackedWeight:
        """Round and store; `importance [features]` weighs squared errors where the grid searches its range."""
        if self.bits == 16:
            return Dense(values.to(DTYPE))
        if self.grid == "lattice":
            return self._pack_vectors(values)
        solved = round_to_nearest(values, self.rule(), self.group_size, importance)
        scales = solved.scales.to(DTYPE)
        if self.grid == "normal":
            return NormalFloat.from_codes(solved.codes, scales, self.bits, self.group_size)
        return Integer.from_codes(solved.codes, scales, None, self.bits, self.group_size)

    def _pack_vectors(self, values: Tensor) -> Lattice:
        grid, features = self.rule(), values.shape[1]
        parameters = grid.fit(values)
        codes = grid.encode(torch.nn.functional.pad(values, (0, -features % grid.vector_size)), parameters)
        return Lattice.from_codes(codes, parameters.scale[0], features, self.bits)


@dataclass(frozen=True)
class Strips:
    """A factor whose leading ranks may be stored in more bits than the rest; `parts` are runs of its rows."""

    parts: tuple[PackedWeight, ...]

    def dequantize(self) -> Tensor:
        """`[rank, features]`."""
        return torch.cat([part.dequantize() for part in self.parts])


def low_rank_terms(fitted: Rounded) -> list[LowRank]:
    """One `LowRank` for each strip."""
    assert isinstance(fitted, Fitted) and isinstance(fitted.left, Strips) and isinstance(fitted.right, Strips)
    return [LowRank(left, right) for left, right in zip(fitted.left.parts, fitted.right.parts, strict=True)]


@dataclass(frozen=True)
class Factored(Method):
    """Settings of a low-rank term `L R`.

    Attributes:
        rank: of the product; several numbers for strips of the rank, the leading directions first.
        rank_bits: without `rank`, the largest rank whose factors take at most so many bits per weight of the linear.
        left_bits, right_bits: of a code of `L` and `R`, 16 for float16; one number, or one for each strip.
        factor_grid: "uniform" (symmetric, searched range), "clipped" (the range cut at 2.5 standard deviations), "normal"
            (normal-float levels), "lattice" (E8, 2 to 4 bits, one scale for a whole factor).
        factor_group_size: consecutive outputs (of `L`) or inputs (of `R`) that share a scale; None for all of a rank.
        factor_iterations: of alternating least squares, where factors are rounded.
        rank_rotation: rotate the ranks of each strip by a random orthogonal Θ before they are rounded, `L Θ` and `Θᵀ R`, so that
            none stands out: "hadamard" (signed), "haar" (uniformly random), or "none". Leading ranks then lead no longer.
        activation_aware: minimise the error of the outputs rather than that of the weights.
        randomized: find the leading directions by random projections; else by a whole decomposition in float64.
        damping: λ ≥ 0, added to the diagonal of `H` relative to its mean.

    Raises:
        FeatherweightError: a setting outside these.
    """

    rank: int | tuple[int, ...] | None = None
    rank_bits: float = 0.2
    left_bits: int | tuple[int, ...] = 4
    right_bits: int | tuple[int, ...] = 4
    factor_grid: FactorGrid = "uniform"
    factor_group_size: int | None = 64
    factor_iterations: int = 5
    rank_rotation: RankRotation = "none"
    activation_aware: bool = True
    randomized: bool = True
    damping: float = 0.01

    def __post_init__(self) -> None:
        """Check the settings."""
        limits = {
            "rank": (self.rank, "1 or more", self.rank is None or all(each >= 1 for each in _several(self.rank))),
            "rank_bits": (self.rank_bits, "above 0", self.rank_bits > 0),
            "factor_grid": (self.factor_grid, ", ".join(get_args(FactorGrid)), self.factor_grid in get_args(FactorGrid)),
            "rank_rotation": (
                self.rank_rotation,
                ", ".join(get_args(RankRotation)),
                self.rank_rotation in get_args(RankRotation),
            ),
            "factor_group_size": (self.factor_group_size, "1 or more, or null", (self.factor_group_size or 1) >= 1),
            "factor_iterations": (self.factor_iterations, "0 or more", self.factor_iterations >= 0),
            "damping": (self.damping, "0 or more", self.damping >= 0),
        }
        for setting, (found, expected, fits) in limits.items():
            if not fits:
                raise FeatherweightError(f"{self.name}: {setting} out of range", found=found, expected=expected)
        self.formats()

    def formats(self) -> list[tuple[Format, Format]]:
        """Left and right format of each strip.

        Raises:
            FeatherweightError: bits that the grid does not have, or not one number for each strip.
        """
        count = 1 if self.rank is None else len(_several(self.rank))
        sides = []
        for setting in ("left_bits", "right_bits"):
            bits = _several(getattr(self, setting))
            if len(bits) not in (1, count):
                raise FeatherweightError(
                    f"{self.name}: {setting} does not fit the strips of the rank", found=f"{len(bits)} numbers of bits",
                    expected=f"one, or one for each of the {count} strips of rank: {self.rank}",
                )  # fmt: skip
            every = bits if len(bits) == count else bits * count
            sides.append([Format(each, self.factor_grid, self.factor_group_size) for each in every])
        return list(zip(*sides, strict=True))

    @property
    def requires(self) -> frozenset[str]:
        """The Hessian, if activation-aware."""
        return self.needs if self.activation_aware else frozenset()

    def ranks(self, shape: tuple[int, int], name: str = "") -> tuple[int, ...]:
        """Of each strip in a linear of this shape.

        Raises:
            FeatherweightError: a rank above the smaller side, or bits that do not pay for one rank.
        """
        if self.rank is not None:
            check_rank(sum(_several(self.rank)), shape, name)
            return _several(self.rank)
        (left, right), (out, inputs) = self.formats()[0], shape
        each = 8 * (described_bytes(left.describe((1, out))) + described_bytes(right.describe((1, inputs))))
        affordable = int(self.rank_bits * out * inputs / each)
        if affordable < 1:
            raise FeatherweightError(
                f"{self.name}: rank_bits does not pay for one rank of {name or f'a linear of {out} x {inputs}'}",
                found=self.rank_bits, expected=f"at least {each / (out * inputs):.3f} bits per weight", fix="set rank: 1",
            )  # fmt: skip
        return (min(affordable, *shape),)

    def describe_terms(self, shape: tuple[int, int]) -> list[dict[str, Any]]:
        """Descriptions of the low-rank terms of a linear of this shape."""
        return [
            LowRank.describe(left.describe((rank, shape[0])), right.describe((rank, shape[1])))
            for rank, (left, right) in zip(self.ranks(shape), self.formats(), strict=True)
        ]

    def hessian(self, problem: Problem, without_data: str) -> Tensor | None:
        """Mean of `x xᵀ [in, in]`; None if only the weights count.

        Raises:
            FeatherweightError: activation-aware without statistics.
        """
        return problem.hessian(self.name, f"{without_data}, activation_aware: false")[0] if self.activation_aware else None

    def metric(self, hessian: Tensor | None) -> Metric:
        """The norm that is minimised."""
        if hessian is None:
            return Metric()
        shift = self.damping * float(hessian.diagonal().mean())
        return Metric(hessian + torch.diag(torch.full_like(hessian[0], shift)))

    def fit(
        self, target: Tensor, metric: Metric, generator: torch.Generator, name: str = "", left: Tensor | None = None
    ) -> Fitted:
        """The rounded factors of `target [out, in]`, by least squares from `left` or from the best unrounded factors."""
        ranks, weighed = self.ranks((target.shape[0], target.shape[1]), name), metric.weigh(target)
        if left is None:
            left = best_factors(target, metric, sum(ranks), generator if self.randomized else None, weighed).left
            left = torch.cat([_rotated(part, self.rank_rotation, generator) for part in left.split(list(ranks))])
        formats = self.formats()
        exact = all(format.bits == 16 for strip in formats for format in strip)
        round_left, round_right = (_rounding([strip[side] for strip in formats], ranks) for side in (0, 1))
        return fit_factors(target, metric, left, round_left, round_right, 1 if exact else self.factor_iterations, weighed)


def _rounding(formats: Sequence[Format], ranks: Sequence[int]) -> Rounding:
    """Rounds a factor strip by strip."""

    def rounded(values: Tensor, importance: Tensor | None) -> Strips:
        strips = zip(formats, values.split(list(ranks)), strict=True)
        return Strips(tuple(format.pack(part, importance) for format, part in strips))

    return rounded


def _rotated(strip: Tensor, rotation: RankRotation, generator: torch.Generator) -> Tensor:
    """`Θ strip [rank, features]`."""
    rank = len(strip)
    if rotation == "none":
        return strip
    if rotation == "hadamard":
        signs = 1.0 - 2.0 * torch.randint(0, 2, (rank,), generator=generator)
        return Hadamard(signs, rank).apply(strip.T).T.contiguous()
    gaussian = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return (q * r.diagonal().sign()).to(strip) @ strip


def _several(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def sum_of(terms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Description of a sum, or of its only term."""
    return dict(terms[0]) if len(terms) == 1 else Sum.describe([dict(term) for term in terms])


def must_be_dense(method: str, current: Mapping[str, Any]) -> None:
    """Refuse what a step before did.

    Raises:
        FeatherweightError: `current` is stored otherwise than dense.
    """
    if current["kind"] != "dense":
        raise FeatherweightError(
            f"{method} starts from dense weights", found=f"a step before stored them as {current['kind']}", expected="dense",
            fix=f"make {method} the first step; to correct what is stored use method: low-rank",
        )  # fmt: skip
