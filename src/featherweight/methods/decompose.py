"""A weight as rounded plus sparse plus low-rank, from the weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Compressed, Problem, Steps
from featherweight.methods.caldera import path_facts
from featherweight.methods.factors import Factored, FactorGrid, Format, low_rank_terms, must_be_dense
from featherweight.packed.base import PackedWeight
from featherweight.packed.sparse_rows import SparseRows
from featherweight.packed.sum import Sum
from featherweight.solvers.alternate import Update, alternate
from featherweight.solvers.low_rank import Metric

Part = Literal["rounded", "low-rank", "sparse"]


@dataclass(frozen=True)
class Decompose(Factored):
    """`W ≈ Q + L R + S`: rounded to nearest, low-rank, and the largest entries of what these leave; each fitted in turn.

    With factors of 16 bits and no sparse term this is LoftQ (Li et al. 2023, arXiv:2310.08659). Of all states in which every
    part had been fitted the best is kept.

    Attributes:
        bits: of a code of `Q`.
        grid: of `Q`, as `factor_grid`.
        group_size: consecutive inputs that share a scale of `Q`; None for whole rows.
        sparse_share: share of the weights that `S` holds, in float16; 0 for no `S`.
        first: the part that is fitted to the whole weight; the others follow in the order rounded, low-rank, sparse.
        iterations: updates of every part.

    Other settings: those of `Factored`. With `activation_aware` the low-rank part is fitted, and states are compared, by the
    error of the outputs.

    Raises:
        FeatherweightError: a setting outside these.
    """

    name: ClassVar[str] = "decompose"
    summary: ClassVar[str] = "rounded plus sparse plus low-rank, each fitted in turn; needs no data"
    source: ClassVar[str] = "the data-agnostic decompositions of LPLR-Q; LoftQ, Li et al. 2023, arXiv:2310.08659"
    needs: ClassVar[frozenset[str]] = frozenset()
    points: ClassVar[Mapping[str, Steps]] = {f"{bits}bit": ({"bits": bits, "sparse_share": 0.005},) for bits in (2, 3, 4)}

    bits: int = 4
    grid: FactorGrid = "uniform"
    group_size: int | None = 64
    sparse_share: float = 0.0
    first: Part = "rounded"
    iterations: int = 10
    activation_aware: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self.rounding()
        limits = {
            "group_size": (self.group_size, "1 or more, or null", (self.group_size or 1) >= 1),
            "sparse_share": (self.sparse_share, "0 to below 0.5", 0 <= self.sparse_share < 0.5),
            "first": (self.first, ", ".join(self.parts()), self.first in self.parts()),
            "iterations": (self.iterations, "1 or more", self.iterations >= 1),
        }
        for setting, (found, expected, fits) in limits.items():
            if not fits:
                raise FeatherweightError(f"decompose: {setting} out of range", found=found, expected=expected)

    @property
    def requires(self) -> frozenset[str]:
        """The Hessian, if activation-aware."""
        return frozenset({"hessian"}) if self.activation_aware else frozenset()

    def parts(self) -> list[Part]:
        """Those there are, in the order of updates."""
        every = [part for part in get_args(Part) if part != "sparse" or self.sparse_share > 0]
        return sorted(every, key=lambda part: part != self.first)

    def rounding(self) -> Format:
        """How `Q` is stored."""
        return Format(self.bits, self.grid, self.group_size)

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The sum of an `Integer` (or as the grid is stored), `SparseRows` if there are any, and a `LowRank` for each strip.

        Raises:
            FeatherweightError: a step before stored `current` otherwise than dense; a rank above the smaller side.
        """
        must_be_dense(self.name, current)
        rows, columns = current["shape"]
        shape = (rows, columns)
        sparse = [SparseRows.describe(shape, self._entries(shape))] if self.sparse_share else []
        return Sum.describe([self.rounding().describe(shape), *sparse, *self.describe_terms(shape)])

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Decompose each linear.

        Raises:
            FeatherweightError: activation-aware without a Hessian; a rank above the smaller side.
        """
        hessian = self.hessian(problem, self.name)
        metric, plain = self.metric(hessian), Metric(hessian)
        return {name: self._decomposed(name, problem, metric, plain) for name in problem.current}

    def _decomposed(self, name: str, problem: Problem, metric: Metric, plain: Metric) -> Compressed:
        weight, generator = problem.current[name].dequantize(), problem.generator(name)
        updates: dict[Part, Update] = {
            "rounded": lambda rest, parts: self.rounding().pack(rest, metric.importance),
            "low-rank": lambda rest, parts: self.fit(rest, metric, generator, name),
            "sparse": lambda rest, parts: self._largest(rest),
        }
        found = alternate(weight, {part: updates[part] for part in self.parts()}, plain.energy, self.iterations)
        terms = low_rank_terms(found.parts["low-rank"])
        stored = [part for key in ("rounded", "sparse") if isinstance(part := found.parts.get(key), PackedWeight)]
        facts = {"rank": sum(term.rank for term in terms), **path_facts(found, plain.energy(weight)), **metric.repairs()}
        return Compressed(Sum((*stored, *terms)), facts)

    def _largest(self, rest: Tensor) -> SparseRows:
        """Exactly so many entries of largest magnitude."""
        kept = rest.abs().flatten().topk(self._entries((rest.shape[0], rest.shape[1]))).indices
        mask = torch.zeros(rest.numel(), dtype=torch.bool, device=rest.device)
        mask[kept] = True
        return SparseRows.from_dense(rest, mask.view(rest.shape))

    def _entries(self, shape: tuple[int, int]) -> int:
        return round(self.sparse_share * shape[0] * shape[1])
