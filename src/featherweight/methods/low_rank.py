"""Low-rank correction: a thin product beside whatever is stored, for what that got wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from featherweight.methods.base import Compressed, Problem, Steps
from featherweight.methods.factors import Factored, low_rank_terms
from featherweight.packed.base import PackedWeight
from featherweight.packed.sum import Sum
from featherweight.solvers.low_rank import Metric


@dataclass(frozen=True)
class LowRankCorrection(Factored):
    """Add `L R` to what is stored, to minimise `tr((W − Ŵ − L R) H (W − Ŵ − L R)ᵀ)`; after any method.

    The terms that are there stay bit for bit, zeros included; the sum has values where they are zero. If the rounded factors
    were worse than none, they are stored as zeros: this step never raises the error.

    Settings: those of `Factored`.
    """

    name: ClassVar[str] = "low-rank"
    summary: ClassVar[str] = "add a low-rank term for what the steps before got wrong; never raises the error"
    source: ClassVar[str] = "EoRA (Liu et al. 2024, arXiv:2410.21271); factors after Saha et al. 2024, arXiv:2405.18886"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    adds_terms: ClassVar[bool] = True
    points: ClassVar[Mapping[str, Steps]] = {
        f"gptq-{bits}bit": ({"method": "gptq", "bits": bits, "group_size": 128}, {}) for bits in (2, 3)
    }

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """A `Sum` of the terms of `current` and a `LowRank`, one for each strip.

        Raises:
            FeatherweightError: a rank above the smaller side.
        """
        rows, columns = current["shape"]
        count = sum(name.startswith("terms_") for name in current)
        terms = [dict(current[f"terms_{index}"]) for index in range(count)] or [dict(current)]
        return Sum.describe([*terms, *self.describe_terms((rows, columns))])

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Correct each linear of the input.

        Raises:
            FeatherweightError: activation-aware without a Hessian; a rank above the smaller side.
        """
        hessian = self.hessian(problem, self.name)
        metric, plain = self.metric(hessian), Metric(hessian)
        return {name: self._corrected(name, problem, metric, plain) for name in problem.current}

    def _corrected(self, name: str, problem: Problem, metric: Metric, plain: Metric) -> Compressed:
        weight, current = problem.weights[name], problem.current[name]
        error = weight - current.dequantize().to(weight.device)
        fitted = self.fit(error, metric, problem.generator(name), name)
        before, after = plain.energy(error), plain.energy(error - fitted.dequantize())
        terms, helps = low_rank_terms(fitted), after < before
        if not helps:
            formats = self.formats()
            terms = [
                replace(term, left=strip[0].pack(torch.zeros(term.left.shape, device=weight.device), None))
                for term, strip in zip(terms, formats, strict=True)
            ]
        ratio = 1 / energy if (energy := plain.energy(weight)) > 0 else 0.0
        facts = {
            "solver": "low-rank" if helps else "as before",
            "rank": sum(term.rank for term in terms),
            "relative_error": min(before, after) * ratio,
            "error_before_correction": before * ratio,
            **metric.repairs(),
        }
        stored: tuple[PackedWeight, ...] = current.terms if isinstance(current, Sum) else (current,)
        return Compressed(Sum((*stored, *terms)), facts)
