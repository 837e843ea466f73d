"""ALPS: pruning as one problem over which weights stay and what they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Compressed, Problem, Steps
from featherweight.methods.besa import BESA
from featherweight.methods.block_run import BlockRun
from featherweight.methods.scored import Patterned
from featherweight.packed.dense import Dense
from featherweight.packed.masked import Masked
from featherweight.solvers.admm import select_and_solve
from featherweight.solvers.allocation import ranks
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
        ratios: "even", each linear loses its ratio; "learned", BESA learns on the block's output how much each row loses, and
            which weights go is still decided here (ours). The block's budget is exact; for pattern "layer".
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

    ratios: Literal["even", "learned"] = "even"
    damping: float = 0.01
    iterations: int = 300
    refit: int = STEPS

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.ratios == "learned":
            if self.pattern != "layer":
                raise FeatherweightError(
                    "learned ratios differ from row to row", found=f"pattern {self.pattern}", expected="pattern layer",
                    fix="leave pattern out, or use ratios: even",
                )  # fmt: skip
            self._allocation()
        for setting, least in (("damping", 0), ("iterations", 1), ("refit", 0)):
            if not getattr(self, setting) >= least:
                raise FeatherweightError(
                    f"{setting} out of range", found=getattr(self, setting), expected=f"{least} or more", fix="leave it out"
                )

    @property
    def requires(self) -> frozenset[str]:
        """The inputs' sums of squares besides, where ratios are learned."""
        return self.needs | ({"sum_sq"} if self.tunes else set())

    @property
    def budget(self) -> Literal["linear", "block"]:
        """Of the block where rows and linears trade weights."""
        return "block" if self.tunes else "linear"

    @property
    def tunes(self) -> bool:
        """Where ratios are learned."""
        return self.ratios == "learned"

    def tune(self, run: BlockRun) -> Mapping[str, Any]:
        """What each row loses."""
        return self._allocation().tune(run)

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
        names = list(problem.current)
        for current in problem.current.values():
            self.storage(current.description(), problem.dtype)
        stacked = torch.cat([problem.weights[name] for name in names])
        hessian, count = problem.hessian(self.name, "magnitude")
        factor = factorise(hessian, self.damping, name=" and ".join(names), samples=count)
        rows = [len(problem.weights[name]) for name in names]
        alive = stacked.masked_fill(factor.dead, 0.0)

        def largest(sizes: Tensor) -> Tensor:
            parts = zip(names, sizes.split(rows), strict=True)
            return torch.cat([~self._dropped(part, problem.settings.get(name)) for name, part in parts])

        solution, kept, iterations = select_and_solve(alive, factor.damped(hessian), largest, self.iterations, self.refit)
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
            compressed[name] = Compressed(
                self._masked(values.to(problem.dtype), mask), {**_learned_facts(problem, name), **facts}
            )
        return compressed

    def _masked(self, values: Tensor, mask: Tensor) -> Masked:
        form = self._pattern().name if self._pattern().per_row else "unstructured"
        return Masked.of(Dense(values), mask, Masked.describe(Dense(values).description(), int(mask.sum()), form))

    def _dropped(self, sizes: Tensor, learned: Any) -> Tensor:
        """The smallest of `sizes [rows, in]`, as many of each row as was learned if anything was."""
        if learned is None:
            return self._pattern().dropped(sizes)
        return ranks(sizes) < learned.counts.to(sizes.device)[:, None]

    def _allocation(self) -> BESA:
        return BESA(ratio=self._pattern().ratio)


def _learned_facts(problem: Problem, name: str) -> Mapping[str, Any]:
    """Of the learning: its losses are those of masks without any update."""
    found = problem.settings.get(name)
    return {} if found is None else {f"ratios_{key}": value for key, value in found.facts.items()}
