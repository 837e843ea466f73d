"""CALDERA: a rounded weight and a low-rank term, each fitted in turn to what the other leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.uniform import UniformGrid
from featherweight.methods.base import Compressed, Problem, Steps
from featherweight.methods.factors import DTYPE, Factored, low_rank_terms, must_be_dense
from featherweight.packed.base import PackedWeight
from featherweight.packed.integer import Integer
from featherweight.packed.sum import Sum
from featherweight.solvers.alternate import Alternated, Update, alternate
from featherweight.solvers.damping import Factor, factorise
from featherweight.solvers.downdate import downdated
from featherweight.solvers.low_rank import Fitted, Metric
from featherweight.solvers.sweep import sweep

Order = Literal["low-rank first", "rounded first"]


@dataclass(frozen=True)
class CALDERA(Factored):
    """Minimise `tr((W − Q − L R) H (W − Q − L R)ᵀ)` over a rounded `Q` and rounded factors.

    In every iteration `L R` is fitted to `W − Q`, and `Q` to `W − L R` by the column walk (LDLQ). Of all states in which both
    had been fitted the best is kept; the authors' early code could return one without a `Q`.

    Attributes:
        bits: of a code of `Q`, 2 to 8.
        group_size: consecutive inputs that share a scale of `Q`; None for whole rows.
        iterations: updates of both.
        order: of the two in an iteration.
        downdate: fit `Q` in the norm that is left once `L` is free to make up for errors that `R` can reach: the share of that
            which is believed. 1 as the authors; rounded factors make up for less. 0 for the plain norm.

    Other settings: those of `Factored`. Without `activation_aware` both are fitted to the weights alone.

    Raises:
        FeatherweightError: a setting outside these.
    """

    name: ClassVar[str] = "caldera"
    summary: ClassVar[str] = "rounded weight plus low-rank term, each fitted in turn to what the other leaves"
    source: ClassVar[str] = "Saha et al. 2024, arXiv:2405.18886, algorithm 1"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    points: ClassVar[Mapping[str, Steps]] = {f"{bits}bit": ({"bits": bits},) for bits in (2, 3, 4)}

    bits: int = 2
    group_size: int | None = 128
    iterations: int = 10
    order: Order = "rounded first"
    downdate: float = 0.9

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self.rule()
        if self.order not in get_args(Order):
            raise FeatherweightError("unknown order", found=self.order, expected=", ".join(get_args(Order)))
        if self.iterations < 1 or (self.group_size or 1) < 1 or not 0 <= self.downdate <= 1:
            raise FeatherweightError(
                "caldera cannot work so", fix="leave them out",
                found=f"iterations {self.iterations}, group_size {self.group_size}, downdate {self.downdate}",
                expected="iterations and group_size 1 or more, downdate 0 to 1",
            )  # fmt: skip

    def rule(self) -> UniformGrid:
        """The rounding rule of `Q`."""
        return UniformGrid(self.bits, symmetric=True, fit_by="weighted", scale_dtype=DTYPE)

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The sum of an `Integer` and a `LowRank`, one for each strip.

        Raises:
            FeatherweightError: a step before stored `current` otherwise than dense; a rank above the smaller side.
        """
        must_be_dense(self.name, current)
        rows, columns = current["shape"]
        rounded = Integer.describe((rows, columns), self.bits, self.group_size, symmetric=True, scale_dtype=DTYPE)
        return Sum.describe([rounded, *self.describe_terms((rows, columns))])

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Solve linear by linear on the shared Hessian.

        Raises:
            FeatherweightError: activation-aware without a Hessian, or one that cannot be factorised; a rank above the smaller side.
        """
        hessian = self.hessian(problem, "decompose")
        metric, plain = self.metric(hessian), Metric(hessian)
        return {name: self._compressed(name, problem, metric, plain) for name in problem.current}

    def _compressed(self, name: str, problem: Problem, metric: Metric, plain: Metric) -> Compressed:
        weight = problem.current[name].dequantize()
        generator = problem.generator(name)
        walk = _Walk(self, metric, weight, name)
        updates: dict[str, Update] = {
            "low-rank": lambda rest, parts: self.fit(rest, metric, generator, name),
            "rounded": walk.round,
        }
        if self.order == "rounded first":
            updates = dict(reversed(updates.items()))
        found = alternate(weight, updates, plain.energy, self.iterations)
        rounded, factors = found.parts["rounded"], found.parts["low-rank"]
        assert isinstance(rounded, PackedWeight)
        terms = low_rank_terms(factors)
        energy = plain.energy(weight)
        facts = {"rank": sum(term.rank for term in terms), "damping": walk.damping, **path_facts(found, energy)}
        return Compressed(Sum((rounded, *terms)), facts)


def path_facts(found: Alternated, energy: float) -> dict[str, Any]:
    """How the error fell, round by round, relative to the weight's own `energy`."""
    ratio = 1 / energy if energy > 0 else 0.0
    return {
        "relative_error": found.error * ratio,
        "best_iteration": found.round,
        "error_by_iteration": [error * ratio for error in found.path],
    }


class _Walk:
    """Rounds what the low-rank term leaves; the factor of the Hessian is kept while that is not downdated."""

    def __init__(self, method: CALDERA, metric: Metric, weight: Tensor, name: str) -> None:
        self.method, self.metric, self.name = method, metric, name
        width = weight.shape[1]
        self.hessian = metric.hessian if metric.hessian is not None else torch.eye(width, device=weight.device)
        self.factor: Factor | None = None
        self.damping = 0.0

    def round(self, rest: Tensor, parts: Mapping[str, Any]) -> Integer:
        """`Q` for `rest [out, in]`."""
        fitted = parts.get("low-rank")
        if self.factor is None or self.method.downdate:
            hessian = self.hessian
            if self.method.downdate and isinstance(fitted, Fitted):
                hessian = downdated(hessian, fitted.right.dequantize(), self.method.downdate)
            order = hessian.diagonal().argsort(descending=True, stable=True)
            self.factor = factorise(hessian, self.method.damping, order=order, name=self.name)
            self.damping = self.factor.damping_used
        method = self.method
        solved = sweep(rest, self.factor, method.rule(), method.group_size, static_groups=True)
        return Integer.from_codes(solved.codes, solved.scales.to(DTYPE), None, method.bits, method.group_size)
