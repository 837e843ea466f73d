"""GPTQ: rounding column by column, each rounding error compensated by the columns not yet rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.floating import FloatingGrid
from featherweight.grids.uniform import Fit, UniformGrid
from featherweight.methods.base import Compressed, Problem, Steps
from featherweight.methods.dropping import hold_dropped
from featherweight.methods.integers import IntegerMethod
from featherweight.packed.base import PackedWeight
from featherweight.solvers.damping import Factor, factorise
from featherweight.solvers.nearest import round_dead, round_to_nearest
from featherweight.solvers.result import Solved
from featherweight.solvers.sweep import sweep

Order = Literal["none", "static", "dynamic"]


@dataclass(frozen=True)
class GPTQ(IntegerMethod):
    """Minimise `tr((W − Ŵ) H (W − Ŵ)ᵀ)` greedily on a grid; `H` is the mean of `x xᵀ`.

    All linears of one input are solved in one walk. Of the walk and round-to-nearest the one with the smaller objective
    is kept, linear by linear. Against the authors' code: groups are fitted on up-to-date weights (`stale_groups` restores
    theirs), and `fit` weighs each column's error by what it costs ("minmax" restores theirs). Columns of inputs that were
    never active are rounded to nearest (there: 0), since other text may reach them. Weights that a step before dropped
    stay exactly 0, and grids are fitted on the others.

    Settings: those of `IntegerMethod`, and

    Attributes:
        damping: λ ≥ 0, added to the diagonal relative to its mean.
        order: "none" walks the inputs as stored; "static" by falling diagonal of `H`, groups of stored inputs fitted on
            the original weights; "dynamic" likewise, but groups are formed as walked and every input's group is stored.
        stale_groups: fit a group without the feedback of its own block of 128 columns.

    Raises:
        FeatherweightError: a setting outside these.
    """

    name: ClassVar[str] = "gptq"
    summary: ClassVar[str] = "second-order rounding with error feedback on a grid per group (integers, FP8, FP4)"
    source: ClassVar[str] = "Frantar et al. 2022, arXiv:2210.17323, algorithm 1"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    points: ClassVar[Mapping[str, Steps]] = {
        "2bit": ({"bits": 2, "group_size": 32},),
        **{
            label: ({"bits": bits, "group_size": 128, "order": "static"},)
            for label, bits in {"3bit-g128": 3, "4bit": 4, "6bit": 6, "8bit": 8}.items()
        },
        **{grid: ({"grid": grid, "order": "static"},) for grid in ("fp8", "nvfp4", "mxfp4")},
    }

    fit: Fit = "weighted"
    damping: float = 0.01
    order: Order = "none"
    stale_groups: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.order not in get_args(Order):
            raise FeatherweightError(
                "unknown order of columns", found=self.order, expected=", ".join(get_args(Order)), fix="use order: none"
            )
        if not self.damping >= 0:
            raise FeatherweightError("damping is negative", found=self.damping, expected="0 or more", fix="use damping: 0.01")

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """An `Integer` or `Floating` in the place of dense values, beneath their mask where a step before dropped weights.

        Raises:
            FeatherweightError: `current` is neither dense nor dense beneath a mask.
        """
        self._check_dense(current)
        return super().storage(current, dtype)

    def indexed(self) -> bool:
        """With dynamic groups every input's group is stored."""
        return self.order == "dynamic"

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Solve all linears of the input at once.

        Raises:
            FeatherweightError: no Hessian, or one that cannot be factorised; groups that do not fit; a `current` that is
                neither dense nor dense beneath a mask.
        """
        for name, current in problem.current.items():
            self._check_dense(current.description(), name)
            self.check_groups(current.shape, name)
        names = list(problem.current)
        weights = [problem.current[name].dequantize() for name in names]
        stacked = torch.cat(weights) if len(weights) > 1 else weights[0]
        hessian, count = problem.hessian(self.name, "rtn")
        order = None if self.order == "none" else hessian.diagonal().argsort(descending=True, stable=True)
        factor = factorise(hessian, self.damping, order=order, name=" and ".join(names), samples=count)
        static, grid = self.order == "static", self.grid_over(stacked)
        swept = sweep(
            stacked,
            factor,
            grid,
            self.group_size,
            static_groups=static,
            stale_groups=self.stale_groups,
            decision=hold_dropped([problem.current[name] for name in names], factor.order, static),
        )
        swept = round_dead(swept, stacked, factor.dead, grid, self.group_size)
        index = self._index(swept, stacked)
        compressed, start = {}, 0
        for name, weight in zip(names, weights, strict=True):
            rows = slice(start, start + len(weight))
            better, facts = self._better(weight, swept, rows, grid, factor, hessian, index)
            compressed[name] = Compressed(self.masked_like(problem.current[name], better), facts)
            start += len(weight)
        return compressed

    def _better(
        self, weight: Tensor, swept: Solved, rows: slice, grid: UniformGrid | FloatingGrid, factor: Factor, hessian: Tensor,
        index: Tensor | None,
    ) -> tuple[PackedWeight, dict[str, Any]]:  # fmt: skip
        """The walk's rows or round-to-nearest, whichever has the smaller objective."""
        nearest = round_to_nearest(weight, grid, self.group_size, hessian.diagonal())
        objective = float(factor.row_energy(weight - swept.decoded[rows]).sum())
        nearest_objective = float(factor.row_energy(weight - nearest.decoded).sum())
        energy = float(factor.row_energy(weight).sum())
        wins = objective <= nearest_objective
        facts = {
            "solver": "sweep" if wins else "rtn",
            "relative_error": min(objective, nearest_objective) / energy if energy > 0 else 0.0,
            "rtn_relative_error": nearest_objective / energy if energy > 0 else 0.0,
            "damping": factor.damping_used,
            "dead_columns": int(factor.dead.sum()),
            "cholesky_attempts": factor.attempts,
            "cholesky_dtype": str(factor.dtype).removeprefix("torch."),
        }
        if wins:
            return self.pack(swept, rows, grid, index), facts
        return self.pack(nearest, slice(None), grid, self._index(nearest, weight)), facts

    def _index(self, swept: Solved, weight: Tensor) -> Tensor | None:
        """Group of every input, where it is stored."""
        if not self.indexed():
            return None
        if swept.group_index is not None:
            return swept.group_index
        return torch.arange(weight.shape[1], device=weight.device).div(
            self.group_size or weight.shape[1], rounding_mode="floor"
        )

    def _check_dense(self, current: Mapping[str, Any], name: str = "") -> None:
        stored = current["values"] if current["kind"] == "masked" else current
        if stored["kind"] != "dense":
            raise FeatherweightError(
                f"gptq starts from dense weights{' in ' + name if name else ''}",
                found=f"a step before stored them as {stored['kind']}",
                expected="dense, or dense beneath a mask",
                fix="make gptq the first step, or the first after pruning",
            )
