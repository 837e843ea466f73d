"""CALDERA: a rounded weight and a low-rank term, each fitted in turn to what the other leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.e8 import E8Grid
from featherweight.grids.uniform import UniformGrid
from featherweight.methods.base import Compressed, Problem, Steps
from featherweight.methods.block_run import BlockRun
from featherweight.methods.block_tuning import finished, tune_block
from featherweight.methods.factors import DTYPE, Factored, low_rank_terms, must_be_dense
from featherweight.methods.incoherence import Incoherence, describe_rotation
from featherweight.methods.quip import RMS
from featherweight.packed.base import PackedWeight
from featherweight.packed.integer import Integer
from featherweight.packed.lattice import Lattice
from featherweight.packed.rotated import Rotated
from featherweight.packed.signs import describe_real_signs
from featherweight.packed.sum import Sum
from featherweight.solvers.alternate import Alternated, Update, alternate
from featherweight.solvers.damping import Factor, factorise
from featherweight.solvers.downdate import downdated
from featherweight.solvers.low_rank import Fitted, Metric, Rounded
from featherweight.solvers.sweep import sweep
from featherweight.solvers.vectors import polish_vectors, solve_vectors

Order = Literal["low-rank first", "rounded first", "best"]


@dataclass(frozen=True)
class CALDERA(Factored):
    """Minimise `tr((W − Q − L R) H (W − Q − L R)ᵀ)` over a rounded `Q` and rounded factors.

    In every iteration `L R` is fitted to `W − Q`, and `Q` to `W − L R` by the column walk (LDLQ). Of all states in which both
    had been fitted the best is kept; the authors' early code could return one without a `Q`.

    Attributes:
        bits: of a code of `Q`: 2, 3 or 4 on the lattice, 2 to 8 on the uniform grid.
        grid: of `Q`: "lattice" (E8, one scale for the linear) or "uniform".
        group_size: consecutive inputs that share a scale of `Q` on the uniform grid; None for whole rows.
        hadamard: rotate inputs and outputs by random-signed Hadamard matrices first, as QuIP# does.
        passes: of coordinate descent after each walk on the lattice, at most.
        polish: of these at the very end, with the low-rank term as it is and in the plain norm, at most; none raises the error.
        iterations: updates of both.
        order: of the two in an iteration; "best" runs both orders and takes the better result, in twice the time. None for what
            suits the weights of language models on the grid (measured): the low-rank term first on the lattice.
        downdate: fit `Q` in the norm that is left once `L` is free to make up for errors that `R` can reach: the share of that
            which is believed. 1 as the authors; rounded factors make up for less. 0 for the plain norm.
        tune_block: with `hadamard`: after the linears of each input are solved, so many gradient steps on the block's outputs
            train the weights that are still dense, and more as follows (`block_tuning`).
        tune_norms: train the block's norms too, which costs nothing.
        tune_signs: train the signs of the outputs' rotations too, which become real vectors of 16 bits. Those of the inputs are
            left: the norm, or the outputs, that make an input can scale it as well.

    Other settings: those of `Factored`. Without `activation_aware` both are fitted to the weights alone.

    Raises:
        FeatherweightError: a setting outside these.
    """

    name: ClassVar[str] = "caldera"
    summary: ClassVar[str] = "rounded weight plus low-rank term, each fitted in turn to what the other leaves"
    source: ClassVar[str] = "Saha et al. 2024, arXiv:2405.18886, algorithm 1"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    points: ClassVar[Mapping[str, Steps]] = {f"{bits}bit": ({"bits": bits, "rank_bits": 0.2},) for bits in (2, 3, 4)}

    bits: int = 2
    grid: Literal["lattice", "uniform"] = "lattice"
    group_size: int | None = 128
    hadamard: bool = True
    passes: int = 1
    polish: int = 10
    iterations: int = 5
    order: Order | None = None
    downdate: float = 0.9
    tune_block: int = 0
    tune_norms: bool = True
    tune_signs: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self.rule()
        if self.order is not None and self.order not in get_args(Order):
            raise FeatherweightError("unknown order", found=self.order, expected=", ".join(get_args(Order)))
        if self.tune_block < 0 or (self.tune_block and not self.hadamard):
            raise FeatherweightError(
                "caldera cannot tune so", found=f"tune_block {self.tune_block}, hadamard {self.hadamard}",
                expected="tune_block 0 or more, and hadamard: its signs are trained", fix="leave hadamard out",
            )  # fmt: skip
        counts = self.iterations < 1 or (self.group_size or 1) < 1 or min(self.passes, self.polish) < 0
        if counts or not 0 <= self.downdate <= 1:
            raise FeatherweightError(
                "caldera cannot work so", fix="leave them out",
                found=f"iterations {self.iterations}, group_size {self.group_size}, passes {self.passes}, polish {self.polish}, "
                f"downdate {self.downdate}",
                expected="iterations and group_size 1 or more, passes and polish 0 or more, downdate 0 to 1",
            )  # fmt: skip

    def rule(self) -> UniformGrid | E8Grid:
        """The rounding rule of `Q`."""
        if self.grid == "lattice":
            return E8Grid(self.bits, RMS.get(self.bits))
        return UniformGrid(self.bits, symmetric=True, fit_by="weighted", scale_dtype=DTYPE)

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The sum of a `Lattice` or `Integer` and a `LowRank`, one for each strip; between rotations if there are any.

        Raises:
            FeatherweightError: a step before stored `current` otherwise than dense; a rank above the smaller side.
        """
        must_be_dense(self.name, current)
        rows, columns = current["shape"]
        shape = (rows, columns)
        rounded = Lattice.describe(shape, self.bits)
        if self.grid == "uniform":
            rounded = Integer.describe(shape, self.bits, self.group_size, symmetric=True, scale_dtype=DTYPE)
        terms = Sum.describe([rounded, *self.describe_terms(shape)])
        if not self.hadamard:
            return terms
        rotated = Rotated.describe(terms, describe_rotation(columns), describe_rotation(rows))
        return describe_real_signs(rotated, self.real_sides)

    @property
    def tunes(self) -> bool:
        """Where the block is tuned."""
        return self.tune_block > 0

    @property
    def tunes_norms(self) -> bool:
        """Where the block is tuned, unless told otherwise."""
        return self.tunes and self.tune_norms

    @property
    def real_sides(self) -> tuple[str, ...]:
        """Whose rotations' signs are stored as real vectors."""
        return ("output",) if self.tunes and self.tune_signs else ()

    def tune(self, run: BlockRun) -> dict[str, Any]:
        """The finished weights of the block's linears, and its norms.

        Raises:
            FeatherweightError: as `compress`; a block that returns no gradients.
        """
        for current in run.current.values():
            must_be_dense(self.name, current.description())
        return tune_block(run, self._solve, self.tune_block, self.name, sides=self.real_sides, norms=self.tune_norms)

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Solve linear by linear on the shared Hessian.

        Raises:
            FeatherweightError: activation-aware without a Hessian, or one that cannot be factorised; a rank above the smaller side.
        """
        return finished(problem, self._solve, sides=self.real_sides)

    def _solve(self, problem: Problem) -> dict[str, Compressed]:
        weights = {name: current.dequantize() for name, current in problem.current.items()}
        hessian = self.hessian(problem, self.name)
        if not self.hadamard:
            metric, plain = self.metric(hessian), Metric(hessian)
            return {name: self._solved(name, weight, problem, metric, plain) for name, weight in weights.items()}
        any_weight = next(iter(weights.values()))
        drawn_for = torch.eye(any_weight.shape[1], device=any_weight.device) if hessian is None else hessian
        basis = Incoherence.draw({name: len(weight) for name, weight in weights.items()}, drawn_for, None, problem.generator)
        metric, plain = (
            (self.metric(None), Metric()) if hessian is None else (self.metric(basis.hessian), Metric(basis.hessian))
        )
        compressed = {}
        for name, weight in weights.items():
            solved = self._solved(name, basis.weight(name, weight), problem, metric, plain)
            compressed[name] = replace(solved, weight=Rotated.of(solved.weight, basis.input, basis.outputs[name]))
        return compressed

    def _solved(self, name: str, weight: Tensor, problem: Problem, metric: Metric, plain: Metric) -> Compressed:
        """One linear, in the basis of the metric."""
        first = "low-rank first" if self.grid == "lattice" else "rounded first"
        orders = ("low-rank first", "rounded first") if self.order == "best" else (self.order or first,)
        tried = [self._alternated(name, weight, problem, metric, plain, order) for order in orders]
        return min(tried, key=lambda each: float(each.facts["relative_error"]))

    def _alternated(self, name: str, weight: Tensor, problem: Problem, metric: Metric, plain: Metric, order: str) -> Compressed:
        generator = problem.generator(name)
        walk = _Walk(self, metric, weight, name)
        updates: dict[str, Update] = {
            "low-rank": lambda rest, parts: self.fit(rest, metric, generator, name),
            "rounded": walk.round,
        }
        if order == "rounded first":
            updates = dict(reversed(updates.items()))
        found = alternate(weight, updates, plain.energy, self.iterations)
        rounded, low_rank = found.parts["rounded"], found.parts["low-rank"]
        assert isinstance(rounded, PackedWeight)
        rounded, error = walk.polish(weight - low_rank.dequantize(), rounded, found.error, plain)
        terms, energy = low_rank_terms(low_rank), plain.energy(weight)
        facts = {"rank": sum(term.rank for term in terms), "order": order, "damping": walk.damping, **metric.repairs()}
        facts |= path_facts(replace(found, error=error), energy)
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
    """Rounds what the low-rank term leaves; the factor of the Hessian is kept while that is not downdated.

    The metric is damped already; a downdated one needs damping of its own, as the authors give it.
    """

    def __init__(self, method: CALDERA, metric: Metric, weight: Tensor, name: str) -> None:
        self.method, self.name = method, name
        width = weight.shape[1]
        self.full = metric.hessian if metric.hessian is not None else torch.eye(width, device=weight.device)
        self.hessian, self.factor = self.full, self._factor(self.full)

    @property
    def damping(self) -> float:
        """λ that the last factorisation needed."""
        return self.factor.damping_used

    def round(self, rest: Tensor, parts: Mapping[str, Rounded]) -> PackedWeight:
        """`Q` for `rest [out, in]`."""
        method, fitted = self.method, parts.get("low-rank")
        if method.downdate and isinstance(fitted, Fitted):
            self.hessian = downdated(self.full, fitted.right.dequantize(), method.downdate)
            self.factor = self._factor(self.hessian)
        if method.grid == "lattice":
            vectors = solve_vectors([rest], self.hessian, self.factor, method.rule(), method.passes)[0]
            return Lattice.from_codes(vectors.codes, vectors.scale, rest.shape[1], method.bits)
        solved = sweep(rest, self.factor, method.rule(), method.group_size, static_groups=True)
        return Integer.from_codes(solved.codes, solved.scales.to(DTYPE), None, method.bits, method.group_size)

    def polish(self, rest: Tensor, rounded: PackedWeight, error: float, plain: Metric) -> tuple[PackedWeight, float]:
        """`rounded` after the last passes, for `rest [out, in]`, and its error; both as given if that is smaller."""
        if not self.method.polish or not isinstance(rounded, Lattice):
            return rounded, error
        factor = self.factor if self.hessian is self.full else self._factor(self.full)
        scale, rule = rounded.stored["scale"], self.method.rule()
        codes, scale = polish_vectors(rest, self.full, factor, rule, rounded.codes, scale, self.method.polish)
        polished = Lattice.from_codes(codes, scale, rest.shape[1], self.method.bits)
        after = plain.energy(rest - polished.dequantize())
        return (polished, after) if after < error else (rounded, error)

    def _factor(self, hessian: Tensor) -> Factor:
        """In stored order for vectors of columns, else by falling diagonal."""
        order = None if self.method.grid == "lattice" else hessian.diagonal().argsort(descending=True, stable=True)
        return factorise(hessian, self.method.damping, order=order, name=self.name)
