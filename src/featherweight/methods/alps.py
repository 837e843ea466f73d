"""ALPS: pruning as one problem over which weights stay and what they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Compressed, Problem, Steps
from featherweight.methods.scored import Patterned
from featherweight.packed.dense import Dense
from featherweight.packed.masked import Masked
from featherweight.solvers.admm import select_and_solve
from featherweight.solvers.damping import factorise
from featherweight.solvers.refit import STEPS


@dataclass(frozen=True)
class ALPS(Patterned):
    """Minimise `tr((W − Ŵ) H (W − Ŵ)ᵀ)` over the mask and the kept values together.

    SparseGPT decides column by column, each time for good, and only later columns make up for a drop. Here all weights of
    a linear are decided together, again and again, and all kept ones make up for what went: see `select_and_solve`.
    Round afterwards with a second step (`gptq` holds the mask); since the kept values are then optimal, what rounding
    adds to the error is all that is left to minimise.

    Settings: `ratio` and `pattern` ("layer", "row" or "N:M"), and

    Attributes:
        damping: λ ≥ 0, added to the diagonal relative to its mean.
        iterations: at most; most linears stop after 30 to 40 because nothing moves any more.
        refit: steps of conjugate gradients on the kept values.

    Raises:
        FeatherweightError: a setting outside these, or what `Patterned` refuses.
    """

    name: ClassVar[str] = "alps"
    summary: ClassVar[str] = "second-order pruning that decides all weights of a linear together and refits those it keeps"
    source: ClassVar[str] = "Meng et al. 2024, arXiv:2406.07831, algorithm 1"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    points: ClassVar[Mapping[str, Steps]] = {
        "60": ({"ratio": 0.6},),
        "2of4-4bit": ({"pattern": "2:4"}, {"method": "gptq", "bits": 4, "group_size": 128}),
        **{f"50-{bits}bit": ({"ratio": 0.5}, {"method": "gptq", "bits": bits, "group_size": 128}) for bits in (4, 8)},
    }

    damping: float = 0.01
    iterations: int = 300
    refit: int = STEPS

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        for setting, least in (("damping", 0), ("iterations", 1), ("refit", 0)):
            if not getattr(self, setting) >= least:
                raise FeatherweightError(
                    f"{setting} out of range", found=getattr(self, setting), expected=f"{least} or more", fix="leave it out"
                )

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """Dense values beneath a mask.

        Raises:
            FeatherweightError: `current` is not dense, or N:M does not divide the inputs.
        """
        if current["kind"] not in ("dense", "masked"):
            raise FeatherweightError(
                "alps starts from dense weights", found=f"weights stored as {current['kind']}", expected="dense",
                fix="make alps the first step",
            )  # fmt: skip
        return super().storage(current, dtype)

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Solve all linears of the input on one Hessian, each with its own budget of weights.

        Raises:
            FeatherweightError: no Hessian, or one that cannot be factorised; what `storage` refuses.
        """
        names, pattern = list(problem.current), self._pattern()
        described = {name: self.storage(current.description(), problem.dtype) for name, current in problem.current.items()}
        stacked = torch.cat([problem.weights[name] for name in names])
        hessian, count = problem.hessian(self.name, "magnitude")
        factor = factorise(hessian, self.damping, name=" and ".join(names), samples=count)
        rows = [len(problem.weights[name]) for name in names]
        alive = stacked.masked_fill(factor.dead, 0.0)
        solution, kept, iterations = select_and_solve(alive, factor.damped(hessian), rows, pattern, self.iterations, self.refit)
        errors, energies = factor.row_energy(stacked - solution), factor.row_energy(stacked)
        compressed = {}
        for name, values, mask, error, energy in zip(
            names, solution.split(rows), kept.split(rows), errors.split(rows), energies.split(rows), strict=True
        ):
            facts = {
                "solver": "admm",
                "iterations": iterations,
                "relative_error": float(error.sum() / energy.sum()) if float(energy.sum()) > 0 else 0.0,
                "damping": factor.damping_used,
                "dead_columns": int(factor.dead.sum()),
            }
            compressed[name] = Compressed(Masked.of(Dense(values.to(problem.dtype)), mask, described[name]), facts)
        return compressed
