"""Decisions that drop weights in the walk: those of a given mask, or those that cost least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from featherweight.grids.base import Grid, GridParameters
from featherweight.grids.exact import Exact
from featherweight.grids.uniform import UniformGrid
from featherweight.kernels.registry import choose
from featherweight.kernels.walking import MOST, Dropping
from featherweight.masks.patterns import Pattern
from featherweight.packed.base import PackedWeight
from featherweight.solvers.damping import Factor
from featherweight.solvers.decision import Decision
from featherweight.solvers.fitting import fit_grid
from featherweight.solvers.result import Solved
from featherweight.solvers.sweep import sweep

#: Columns between two products in `drop_exactly`.
BLOCK = 128


class Hold(Decision):
    """Drops a given mask, and fits grids on the weights that are kept.

    Args:
        dropped: `[in, rows]` bool, columns as walked.
        grouped: the same, columns as groups are formed, where that is another order.
        fit_on_kept: whether a grid's fit leaves out what is dropped.
        feedback: `Ũ [in, in]` of the walk; with it, grids are fitted on what kept weights become once they make up for
            what their own group drops. For groups of consecutive walked columns.
    """

    span: int
    in_blocks = True

    def __init__(
        self,
        dropped: Tensor,
        grouped: Tensor | None = None,
        fit_on_kept: bool = True,
        feedback: Tensor | None = None,
    ) -> None:
        self.dropped, self.fit_on_kept, self.feedback = dropped, fit_on_kept, feedback
        self.grouped = dropped if grouped is None else grouped
        self.span = len(dropped)
        self.fitted = 0

    def fitted_on(self, values: Tensor) -> Tensor | None:
        """Those kept, or all."""
        return values.masked_fill(self.grouped.T, 0.0) if self.fit_on_kept else values

    def dropping(self) -> Dropping | None:
        """The mask."""
        return Dropping(self.dropped.contiguous(), "given", self._fitted_on())

    def _fitted_on(self) -> Literal["all", "kept", "made up"]:
        return "all" if not self.fit_on_kept else "kept" if self.feedback is None else "made up"

    def start_span(self, first: int, values: Tensor, importance: Tensor) -> Tensor | None:
        """The mask."""
        return self.dropped[first : first + len(values)]

    def start_group(self, grid: Grid, values: Tensor, importance: Tensor) -> GridParameters:
        """Fit with 0 in the place of what is dropped: every grid has that level, so it costs the fit nothing."""
        first, self.fitted = self.fitted, self.fitted + values.shape[1]
        if not self.fit_on_kept or isinstance(grid, Exact):
            return fit_grid(grid, values, importance)
        dropped = self.expected(first, values.T, importance)
        if self.feedback is None:
            return fit_grid(grid, values.masked_fill(dropped.T, 0.0), importance)
        inside = self.feedback[first : self.fitted, first : self.fitted]
        return fit_grid(grid, drop_exactly(values.T, dropped, inside).T.contiguous(), importance)

    def expected(self, first: int, values: Tensor, importance: Tensor) -> Tensor:
        """What of a group's columns will be dropped, `[width, rows]`."""
        return self.grouped[first : first + len(values)]


class Select(Hold):
    """Drops what costs least, `w² r_jj²`, among the next columns as they stand; each linear by itself.

    Args:
        pattern: of one span: "layer" lets all of its weights compete.
        span: columns that are selected together; M for N:M.
        linears: rows of each linear.
        width: inputs.
        device: of the weights.
        fit_on_kept, feedback: as in `Hold`.

    A grid that is fitted before some of its columns are selected takes the selection that their present values give.
    """

    def __init__(
        self,
        pattern: Pattern,
        span: int,
        linears: Sequence[int],
        width: int,
        device: torch.device,
        fit_on_kept: bool = True,
        feedback: Tensor | None = None,
    ) -> None:
        nothing = torch.zeros(width, sum(linears), dtype=torch.bool, device=device)
        super().__init__(nothing, None, fit_on_kept, feedback)
        self.pattern, self.span, self.linears = pattern, span, list(linears)
        self.selected = 0
        self.in_blocks = bool(pattern.of) or (pattern.name == "layer" and span == MOST)

    def dropping(self) -> Dropping | None:
        """N of M, or the least of a block."""
        pattern = self.pattern

        def counts(columns: int) -> list[int]:
            return [rows * columns - pattern.kept((rows, columns)) for rows in self.linears]

        how: Literal["n of m", "least"] = "n of m" if pattern.of else "least"
        return Dropping(self.dropped, how, self._fitted_on(), pattern.keep, pattern.of, self.linears, counts, self._select)

    def start_span(self, first: int, values: Tensor, importance: Tensor) -> Tensor | None:
        """Select among these columns."""
        self.selected = first + len(values)
        self.dropped[first : self.selected] = self._select(values, importance)
        return self.dropped[first : self.selected]

    def expected(self, first: int, values: Tensor, importance: Tensor) -> Tensor:
        """What was selected, and for columns not yet reached what would be now."""
        start = min(max(self.selected - first, 0), len(values))
        parts = [self.dropped[first : first + start]]
        while start < len(values):
            left = len(values) - start
            size = left if self.pattern.of else min(self.span - (first + start) % self.span, left)
            parts.append(self._select(values[start : start + size], importance[start : start + size]))
            start += size
        return torch.cat(parts)

    def _select(self, values: Tensor, importance: Tensor) -> Tensor:
        """`[columns, rows]`, True where a weight goes."""
        scores = (values.square() * importance[:, None]).T.split(self.linears)
        return torch.cat([self.pattern.dropped(each) for each in scores]).T


class Fixed(Hold):
    """Drops a given mask, and rounds on grids that are given too.

    Args:
        dropped: as in `Hold`; columns walked as stored.
        scales, zeros: of every group, `[rows, groups]` float32, as they are stored.
    """

    def __init__(self, dropped: Tensor, scales: Tensor, zeros: Tensor) -> None:
        super().__init__(dropped)
        self.in_blocks = False
        self.scales, self.zeros, self.group = scales, zeros, 0

    def fitted_on(self, values: Tensor) -> Tensor | None:
        """Nothing is fitted."""
        return None

    def start_group(self, grid: Grid, values: Tensor, importance: Tensor) -> GridParameters:
        """The next group's."""
        group, self.group = slice(self.group, self.group + 1), self.group + 1
        return GridParameters(self.scales[:, group], self.zeros[:, group])


def drop_exactly(values: Tensor, dropped: Tensor, feedback: Tensor) -> Tensor:
    """What a walk without rounding makes of some columns: 0 where dropped, the others corrected for that.

    Args:
        values: as they stand before the first of these columns, `[columns, rows]`.
        dropped: bool, likewise.
        feedback: `Ũ [columns, columns]`.
    """
    values = values.contiguous()
    target, error = values.clone(), torch.empty_like(values)
    columns, rows = values.shape
    nothing = torch.zeros(1, rows, device=values.device)
    importance, group = (
        torch.zeros(columns, device=values.device),
        torch.zeros(columns, dtype=torch.int32, device=values.device),
    )
    codes = torch.empty(columns, rows, dtype=torch.uint8, device=values.device)
    run = choose("sweep_block", {"columns": min(columns, BLOCK), "rows": rows}, values.device)
    for start in range(0, columns, BLOCK):
        part = slice(start, min(start + BLOCK, columns))
        run(
            target[part], values[part], feedback[part, part], importance[part], nothing + 1, nothing, group[part],
            dropped[part].contiguous(), 0, codes[part], error[part], nothing[0].clone(), torch.float32,
        )  # fmt: skip
        target[part.stop :] += feedback[part, part.stop :].T @ error[part]
    return target


def hold_dropped(current: Sequence[PackedWeight], order: Tensor, static: bool = False) -> Hold | None:
    """The decision that keeps every zero of `current`, linears stacked by rows; None where nothing was dropped.

    Args:
        current: what the linears are stored as.
        order: stored position of every walked column, `[in]`.
        static: whether groups are runs of stored columns.
    """
    supports = [weight.support for weight in current]
    if all(support is None for support in supports):
        return None
    whole = [
        torch.zeros(weight.shape, dtype=torch.bool, device=order.device) if support is None else ~support
        for weight, support in zip(current, supports, strict=True)
    ]
    dropped = torch.cat(whole).T
    return Hold(dropped[order], dropped if static else None)


def better_walked(
    weight: Tensor, support: Tensor | None, solved: Solved, factor: Factor, grid: UniformGrid, group_size: int | None
) -> tuple[Solved, str]:
    """The walk of `weight [rows, in]` on the grids of `solved`, or `solved` itself where its damped objective is no larger.

    Args:
        weight: float32.
        support: what is kept, `[rows, in]`; None for all.
        solved: on consecutive groups of stored inputs.
        factor: of the inputs' Hessian, columns in the stored order.
        grid, group_size: of `solved`.

    Returns:
        The better one, and its name for the ledger: "sweep" or "nearest".
    """
    dropped = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device) if support is None else ~support
    walked = sweep(weight, factor, grid, group_size, decision=Fixed(dropped.T, solved.scales, solved.zeros))
    before, after = (float(factor.row_energy(weight - each.decoded).sum()) for each in (solved, walked))
    return (walked, "sweep") if after < before else (solved, "nearest")
