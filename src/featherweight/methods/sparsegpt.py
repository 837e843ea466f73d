"""SparseGPT: pruning inside the walk with error feedback, alone or together with rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from featherweight.errors import FeatherweightError
from featherweight.grids.base import Grid
from featherweight.grids.exact import Exact
from featherweight.grids.floating import FloatingGrid
from featherweight.grids.uniform import Fit, UniformGrid
from featherweight.masks.patterns import Pattern
from featherweight.methods.base import Compressed, Method, Problem, Steps
from featherweight.methods.dropping import Hold, Select, hold_dropped
from featherweight.methods.grid_settings import GridName, completed
from featherweight.methods.rtn import RTN
from featherweight.packed.base import PackedWeight
from featherweight.packed.dense import Dense
from featherweight.packed.masked import Masked
from featherweight.solvers.damping import Factor, factorise
from featherweight.solvers.refit import refit_kept
from featherweight.solvers.result import Solved
from featherweight.solvers.sweep import sweep


class _Rounding(RTN):
    """The integer settings of a joint run: their checks, grid and storage."""

    name: ClassVar[str] = "sparsegpt"


@dataclass(frozen=True)
class SparseGPT(Method):
    """Minimise `tr((W − Ŵ) H (W − Ŵ)ᵀ)` greedily where some weights must be 0; with `bits`, the others on a grid.

    Column by column, the error of what is dropped (and of rounding, in the same walk) is made up for by the columns not
    yet reached. What goes is chosen by `w² r_jj²`, the cost of dropping it (OBS), on the weights as they stand: block
    by block over all rows of a linear, or M by M inputs. Against the authors' code: exact counts (by rank, not by
    threshold); scales in groups, fitted on what is kept, at the values it takes once its group's drops are made up for
    (`fit_on="dense"` with `fit="minmax"` and `group_size=None` is theirs); kept weights are rounded to the checkpoint's
    dtype inside the walk. A scale that is fitted before all of its columns are selected expects the selection that
    their values of that moment give.

    Attributes:
        ratio: fraction dropped; None for 0.5, or for what N:M says.
        pattern: "block" (all weights of `block_size` columns compete), "row" (those of one output in these columns), or
            "N:M" (N of every M inputs are kept).
        block_size: columns selected together.
        damping: λ ≥ 0, added to the diagonal relative to its mean.
        bits: of a code; None keeps values in the checkpoint's dtype.
        group_size, symmetric, fit, grid: as in `IntegerMethod`; only with `bits`, which a floating grid brings along.
        fit_on: "kept" or "dense": whether a grid is fitted on the weights that are kept or on all.
        mask_from: None selects; "current" holds the mask of the step before and solves anew for the weights it keeps,
            starting from the original ones (`ratio` and `pattern` are then not used).
        refit: steps of conjugate gradients that afterwards let all kept weights make up for what went, not only later
            ones (`refit_kept`; 20 suffice). The authors have none. Not with `bits`: let a second step round instead.

    Raises:
        FeatherweightError: a setting outside these.
    """

    name: ClassVar[str] = "sparsegpt"
    summary: ClassVar[str] = "second-order pruning with error feedback; with bits, rounding in the same walk"
    source: ClassVar[str] = "Frantar and Alistarh 2023, arXiv:2301.00774, algorithm 1"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    points: ClassVar[Mapping[str, Steps]] = {
        "60": ({"ratio": 0.6},),
        "2of4-4bit": ({"pattern": "2:4", "bits": 4, "group_size": 128},),
        **{f"50-{bits}bit-g128": ({"ratio": 0.5, "bits": bits, "group_size": 128},) for bits in (4, 8)},
    }

    ratio: float | None = None
    pattern: str = "block"
    block_size: int = 128
    damping: float = 0.01
    bits: int | None = None
    group_size: int | None = 128
    symmetric: bool = False
    fit: Fit = "weighted"
    fit_on: Literal["kept", "dense"] = "kept"
    mask_from: Literal["current"] | None = None
    refit: int = 0
    grid: GridName = "integer"

    @classmethod
    def completed(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """With what the grid settles, see `grid_settings`."""
        return completed(cls, settings)

    def __post_init__(self) -> None:
        """Check the settings; a group size of -1 means whole rows."""
        if self.group_size == -1:
            object.__setattr__(self, "group_size", None)
        if self.fit_on not in ("kept", "dense"):
            raise FeatherweightError("unknown fit_on", found=self.fit_on, expected="kept, dense", fix="use fit_on: kept")
        if self.mask_from not in (None, "current"):
            raise FeatherweightError("unknown mask_from", found=self.mask_from, expected="null, current")
        if not self.damping >= 0:
            raise FeatherweightError("damping is negative", found=self.damping, expected="0 or more", fix="use damping: 0.01")
        if not isinstance(self.block_size, int) or self.block_size < 1:
            raise FeatherweightError(
                "columns cannot be selected in these blocks",
                found=self.block_size,
                expected="1 or more",
                fix="use block_size: 128",
            )
        if self.refit < 0 or (self.refit and self.bits is not None):
            raise FeatherweightError(
                "refit moves weights off their grid" if self.bits is not None else "refit is a number of steps",
                found=f"refit {self.refit}, bits {self.bits}",
                expected="0 or more, without bits",
                fix="leave bits out and add a second step, method: gptq",
            )
        if self.pattern == "layer":
            raise FeatherweightError(
                "sparsegpt selects while it walks",
                found="pattern layer",
                expected='block, row or "N:M"',
                fix="use pattern: block",
            )
        of, rounding = self._pattern().of, self._rounding()
        sizes = {"block_size": self.block_size, "group_size": rounding.group_size if rounding else None}
        for setting, size in sizes.items():
            if of and size and size % of:
                raise FeatherweightError(
                    f"{self.pattern} does not fit {setting}",
                    found=f"{setting} {size}, remainder {size % of}",
                    expected=f"a multiple of {of}",
                    fix=f"use {setting}: {-(-size // of) * of}",
                )

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The values kept, dense or `Integer`, beneath a mask whose count the recipe fixes.

        Raises:
            FeatherweightError: `current` is not dense, or not masked where `mask_from` asks for its mask; N:M does not
                divide the inputs.
        """
        self._check_current(current)
        rows, inputs = current["shape"]
        rounding = self._rounding()
        plain = {"kind": "dense", "shape": [rows, inputs]}
        values = Dense.describe((rows, inputs), dtype) if rounding is None else rounding.storage(plain, dtype)
        if self.mask_from == "current":
            return Masked.describe_like(current, values)
        pattern = self._pattern()
        pattern.check(inputs)
        widths = [min(self.block_size, inputs - start) for start in range(0, inputs, self.block_size)]
        kept = sum(pattern.kept((rows, width)) for width in widths)
        return Masked.describe(values, kept, pattern.name if pattern.per_row else "unstructured")

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Solve all linears of the input in one walk; what competes for being kept stays within its linear.

        Raises:
            FeatherweightError: no Hessian, or one that cannot be factorised; what `storage` refuses.
        """
        names = list(problem.current)
        for name, current in problem.current.items():
            self._check_current(current.description(), name)
            self._pattern().check(current.shape[1], name)
        stacked = torch.cat([problem.weights[name] for name in names])
        hessian, count = problem.hessian(self.name, "magnitude")
        factor = factorise(hessian, self.damping, name=" and ".join(names), samples=count)
        rounding = self._rounding()
        grid = None if rounding is None else rounding.grid_over(stacked)
        decision = self._decision(problem, names, factor)
        exact: Grid = Exact(problem.dtype)
        solved = sweep(stacked, factor, grid or exact, None if grid is None else self.group_size, decision=decision)
        if self.refit:
            alive, kept = stacked.masked_fill(factor.dead, 0.0), ~decision.dropped.T
            solved = replace(solved, decoded=refit_kept(alive, solved.decoded, kept, factor.damped(hessian), self.refit))
        error, energy = factor.row_energy(stacked - solved.decoded), factor.row_energy(stacked)
        compressed, start = {}, 0
        for name in names:
            rows = slice(start, start + problem.weights[name].shape[0])
            start = rows.stop
            total = float(energy[rows].sum())
            facts = {
                "solver": "sweep",
                "relative_error": float(error[rows].sum()) / total if total > 0 else 0.0,
                "damping": factor.damping_used,
                "dead_columns": int(factor.dead.sum()),
                "cholesky_attempts": factor.attempts,
                "cholesky_dtype": str(factor.dtype).removeprefix("torch."),
            }
            kept = ~decision.dropped[:, rows].T
            described = self.storage(problem.current[name].description(), problem.dtype)
            compressed[name] = Compressed(Masked.of(self._values(solved, rows, grid, problem.dtype), kept, described), facts)
        return compressed

    def _values(self, solved: Solved, rows: slice, grid: UniformGrid | FloatingGrid | None, dtype: torch.dtype) -> PackedWeight:
        rounding = self._rounding()
        if rounding is None or grid is None:
            return Dense(solved.decoded[rows].to(dtype))
        return rounding.pack(solved, rows, grid)

    def _decision(self, problem: Problem, names: list[str], factor: Factor) -> Hold:
        on_kept, feedback = self.fit_on == "kept", None if self.bits is None else factor.feedback()
        if self.mask_from == "current":
            held = hold_dropped([problem.current[name] for name in names], factor.order)
            assert held is not None  # `_check_current` saw the masks
            return Hold(held.dropped, None, on_kept, feedback)
        pattern, rows = self._pattern(), [problem.weights[name].shape[0] for name in names]
        span = pattern.of or self.block_size
        return Select(pattern, span, rows, len(factor.order), factor.order.device, on_kept, feedback)

    def _pattern(self) -> Pattern:
        return Pattern.parse("layer" if self.pattern == "block" else self.pattern, self.ratio)

    def _rounding(self) -> _Rounding | None:
        if self.bits is None and self.grid == "integer":
            return None
        given = {"bits": self.bits, "group_size": self.group_size, "symmetric": self.symmetric, "fit": self.fit}
        return _Rounding(**_Rounding.completed({**given, "grid": self.grid}))

    def _check_current(self, current: Mapping[str, Any], name: str = "") -> None:
        held = self.mask_from == "current"
        if current["kind"] == ("masked" if held else "dense"):
            return
        masked = current["kind"] == "masked"
        raise FeatherweightError(
            f"sparsegpt cannot start from this{' in ' + name if name else ''}",
            found=f"weights stored as {current['kind']}",
            expected="a mask from a step before" if held else "dense weights",
            fix="set mask_from: current, to hold its mask"
            if masked
            else "let a step before it prune, or leave mask_from out"
            if held
            else "make sparsegpt the first step",
        )
