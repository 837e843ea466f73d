"""LPLR: the weight itself as the product of two thin matrices of few bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Compressed, Problem, Steps
from featherweight.methods.factors import Factored, low_rank_terms, must_be_dense, sum_of
from featherweight.packed.sum import Sum
from featherweight.solvers.low_rank import Metric

Algorithm = Literal["alternating", "svd", "sketch"]


@dataclass(frozen=True)
class LPLR(Factored):
    """`W ≈ L R` with both factors rounded.

    Attributes:
        algorithm: "alternating": least squares from the best unrounded factors. "svd": `L` from these, rounded, then `R = L⁺ W`,
            rounded. "sketch": `L` is a rounded random projection of the columns of `W`, `R = L⁺ W`, rounded.

    Other settings: those of `Factored`.

    Raises:
        FeatherweightError: a setting outside these.
    """

    name: ClassVar[str] = "lplr"
    summary: ClassVar[str] = "low precision, low rank: the weight as a product of two thin rounded matrices"
    source: ClassVar[str] = "Saha, Srivastava and Pilanci 2023, arXiv:2310.11028"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    points: ClassVar[Mapping[str, Steps]] = {f"{bits}bit": ({"rank_bits": bits},) for bits in (2, 4)}

    rank_bits: float = 4.0
    algorithm: Algorithm = "alternating"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.algorithm not in get_args(Algorithm):
            raise FeatherweightError(
                "unknown algorithm", found=self.algorithm, expected=", ".join(get_args(Algorithm)), fix="leave it out"
            )

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """A `LowRank`, or the sum of one for each strip.

        Raises:
            FeatherweightError: a step before stored `current` otherwise than dense; a rank above the smaller side.
        """
        must_be_dense(self.name, current)
        rows, columns = current["shape"]
        return sum_of(self.describe_terms((rows, columns)))

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Factorise each linear of the input.

        Raises:
            FeatherweightError: activation-aware without a Hessian; a rank above the smaller side.
        """
        hessian = self.hessian(problem, self.name)
        metric, plain = self.metric(hessian), Metric(hessian)
        compressed = {}
        for name, current in problem.current.items():
            weight = current.dequantize()
            generator = problem.generator(name)
            left = self._sketch(weight, generator, name) if self.algorithm == "sketch" else None
            fitted = self.fitting().fit(weight, metric, generator, name, left)
            terms = low_rank_terms(fitted)
            energy = plain.energy(weight)
            facts = {
                "solver": self.algorithm,
                "rank": sum(term.rank for term in terms),
                "relative_error": plain.energy(weight - fitted.dequantize()) / energy if energy > 0 else 0.0,
                **metric.repairs(),
            }
            compressed[name] = Compressed(terms[0] if len(terms) == 1 else Sum(tuple(terms)), facts)
        return compressed

    def fitting(self) -> LPLR:
        """Itself, without iterations where the algorithm does not alternate."""
        return self if self.algorithm == "alternating" else replace(self, factor_iterations=0)

    def _sketch(self, weight: Tensor, generator: torch.Generator, name: str) -> Tensor:
        """`(W G)ᵀ [rank, out]` with Gaussian `G`, its rows of root mean square 1."""
        rank = sum(self.ranks((weight.shape[0], weight.shape[1]), name))
        gaussian = torch.randn(weight.shape[1], rank, generator=generator).to(weight.device)
        sketch = (weight @ gaussian).T
        return sketch / sketch.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
