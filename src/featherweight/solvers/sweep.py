"""The one column solver: a blocked walk with error feedback (Optimal Brain Surgeon, GPTQ, LDLQ)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import gcd

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.base import Grid
from featherweight.kernels.registry import choose
from featherweight.kernels.split import add_split_product_, halves, stacked_halves
from featherweight.kernels.vectors import Vectors
from featherweight.kernels.walking import MOST, WalkBlock, Walking
from featherweight.solvers.blocks import open_blocks
from featherweight.solvers.damping import Factor
from featherweight.solvers.decision import Block, Decision, Round
from featherweight.solvers.fitting import fitting_of, vectors_of
from featherweight.solvers.groups import Groups, cut_blocks
from featherweight.solvers.order import to_stored, to_walked
from featherweight.solvers.result import Solved
from featherweight.solvers.scattered import fit_scattered

#: Columns between two products with everything to the right.
BLOCK = 128

#: Weights to the right from which on a GPU that product is done in halves: below, its launches would take longer.
LARGE = 2**24


def sweep(
    weight: Tensor,
    factor: Factor,
    grid: Grid,
    group_size: int | None = None,
    *,
    static_groups: bool = False,
    stale_groups: bool = False,
    block: int = BLOCK,
    decision: Decision | None = None,
) -> Solved:
    """Minimise `tr((W − Ŵ) H (W − Ŵ)ᵀ)` greedily, column by column in the factor's order.

    `t_j = w_j + Σ_{i<j} (w_i − ŵ_i) Ũ_ij` with the unit upper triangular `Ũ` of `factor`, and `ŵ_j` is `t_j` rounded: GPTQ in
    LDLQ's form (Chee et al. 2023, arXiv:2307.13304, theorem 6), with the same codes and no inverse of `H`. Rows are
    independent: stack the linears of one input. Columns of dead inputs become 0.

    Differences from the authors' code: groups are fitted on weights that carry all feedback so far (their fit misses
    that of the same block, `stale_groups` reproduces it), weighed by `r_jj²`; the result does not depend on `block`.

    Args:
        weight: `[rows, in]` float32.
        factor: of the Hessian, with the order in which columns are walked.
        grid: the rounding rule; its parameters are fitted group by group.
        group_size: inputs that share a grid; None for whole rows.
        static_groups: with an order, groups are runs of stored columns, all fitted on the original weights; else runs of
            walked columns, and the result has a `group_index`.
        stale_groups: fit at the start of each block, as the authors' code does.
        block: columns between two products with everything to the right.
        decision: what is dropped or kept exact; rounds everything if not given.

    Raises:
        FeatherweightError: weight and factor of different widths, or a vector grid whose vectors groups would cut.
    """
    rows, width = weight.shape
    if factor.upper.shape[0] != width:
        raise FeatherweightError(
            "weight and Hessian do not fit",
            found=f"{width} inputs, Hessian of {factor.upper.shape[0]}",
            expected="the same inputs",
        )
    groups = Groups.form(factor.order, rows, group_size, static_groups, factor.in_order)
    if groups.size % grid.vector_size or width % grid.vector_size:
        raise FeatherweightError(
            "groups would cut the vectors of this grid",
            found=f"{width} inputs in groups of {groups.size}",
            expected=f"multiples of {grid.vector_size}",
        )
    return _Walk(weight, factor, grid, groups, decision or Round(), stale_groups, block).run()


@dataclass
class _Walk:
    """State of one sweep; every matrix of weights is held transposed and in walked order, `[in, rows]`."""

    weight: Tensor
    factor: Factor
    grid: Grid
    groups: Groups
    decision: Decision
    stale: bool
    block: int
    target: Tensor = field(init=False)
    codes: Tensor = field(init=False)
    loss: Tensor = field(init=False)
    split: tuple[Tensor, Tensor] | None = None
    at_once: Callable[[Block], None] | None = field(init=False)
    in_blocks: WalkBlock | None = field(init=False)
    vectors: Vectors | None = field(init=False)

    def run(self) -> Solved:
        """Walk all blocks, then put everything back in the stored order."""
        rows, width = self.weight.shape
        self.feedback = self.factor.feedback(self.grid.vector_size)
        self.importance = self.factor.importance()
        self.original = to_walked(self.weight, self.factor)
        self.target = self.original.clone()
        dtype = torch.uint8 if self.grid.vector_size == 1 else torch.int32
        self.codes = torch.empty(width // self.grid.vector_size, rows, dtype=dtype, device=self.weight.device)
        self.loss = torch.zeros(rows, device=self.weight.device)
        starts = self.groups.starts()
        runs = not (self.stale or self.groups.scattered)
        self.in_blocks = None
        if (runs or self.groups.scattered) and self.block == MOST:
            self.in_blocks = open_blocks(self.decision, self.grid, self._all())
            if self.in_blocks is not None and self.groups.whole_rows:
                self._fit(starts[:1], 0)
        sizes = [] if self.stale else [self.groups.size] * bool(starts)
        sizes += [] if self.decision.span is None else [self.decision.span]
        if self.in_blocks is not None:  # what fills blocks evenly cuts none
            sizes = [size for size in sizes if self.block % size]
        views = [(start, min(start + size, width)) for size in sizes for start in range(0, width, size)]
        whole = runs and self.groups.size <= self.block
        self.at_once = self.decision.whole_blocks(self.grid, self.groups, self.block) if whole and not self.in_blocks else None
        self.vectors = vectors_of(self.grid, self.weight.device)
        self.group_of = [] if self.in_blocks else self.groups.of_walked.tolist()
        if self.groups.scattered:
            fit_scattered(self.weight, self.target, self.factor, self.grid, self.groups, self.decision)
        for start, stop in cut_blocks(width, self.block, views):
            self._block(start, stop, sorted({view[0] for view in views if start < view[0] < stop}), starts)
        if self.vectors is not None:  # a kernel's values may differ from those of its codes in the last bit
            self.target = self.grid.decode(self.codes.T, self.groups.parameters(0)).T
        return Solved(
            to_stored(self.codes, self.factor) if self.grid.vector_size == 1 else self.codes.T.contiguous(),
            self.groups.scale.T.contiguous(),
            self.groups.zero.T.contiguous(),
            to_stored(self.target, self.factor),
            self.groups.stored_index(),
            self.loss.to(torch.float64),
        )

    def _block(self, start: int, stop: int, cuts: list[int], starts: list[int]) -> None:
        """Decide columns `start … stop`, then correct everything to the right by one product."""
        if self.in_blocks is not None:
            self._carry(start, stop, self.in_blocks(start, stop))
            return
        original = self.original[start:stop]
        error = torch.empty_like(original)
        if self.at_once is not None:
            self.at_once(self._cut_out(start, stop, error))
            self._carry(start, stop, error)
            return
        edges = [start, *cuts, stop]
        if self.stale:
            self._fit([group for group in starts if start <= group < stop], start)
        for first, last in pairwise(edges):
            self._start_span(first)
            if not self.stale and first in starts:
                self._fit([first], first)
            inside = slice(first - start, last - start)
            self._segment(first, last, original[inside], error[inside])
            if last < stop:
                self.target[last:stop].addmm_(self.feedback[first:last, last:stop].T, error[inside])
        self._carry(start, stop, error)

    def _carry(self, start: int, stop: int, error: Tensor) -> None:
        """Correct everything beyond a block for what it is off; `error` may come as `stacked_halves`."""
        after = self.target[stop:]
        whole = error.dtype == torch.float32
        if whole and not (error.is_cuda and after.numel() >= LARGE):
            after.addmm_(self.feedback[start:stop, stop:].T, error)
        elif len(after):
            self.split = halves(self.feedback) if self.split is None else self.split
            high, low = (half[start:stop, stop:] for half in self.split)
            add_split_product_(after, (high, low), stacked_halves(error) if whole else error)

    def _all(self) -> Walking:
        """All columns, as kernels of whole blocks see them."""
        dtype, groups = self.grid.rounding, self.groups
        fitting, second_level = self.decision.two_levels(groups) or (fitting_of(self.grid), None)
        known = groups.scattered or (groups.whole_rows and fitting is not None and second_level is None)  # before the walk
        return Walking(
            self.target, self.original, self.feedback, self.importance, groups.scale, groups.zero, self.codes, self.loss,
            groups.size, fitting, dtype if isinstance(dtype, torch.dtype) else torch.float32,
            groups.of_walked.to(torch.int32) if known else None, second_level,
            self.decision.keeping(0, len(self.target)),
        )  # fmt: skip

    def _cut_out(self, start: int, stop: int, error: Tensor) -> Block:
        """The block of columns `start … stop`, `[columns, rows]` each."""
        part, size = slice(start, stop), self.groups.size
        groups = slice(start // size, -(-stop // size))
        return Block(
            start, self.target[part], self.original[part], self.feedback[part, part], self.importance[part],
            self.groups.scale[groups], self.groups.zero[groups], self.codes[part], error, self.loss,
        )  # fmt: skip

    def _fit(self, starts: list[int], now: int) -> None:
        """Fit the grids of the groups that start at `starts`, on the weights as they stand before column `now`."""
        if not starts:
            return
        values = self._standing(now, min(starts[-1] + self.groups.size, len(self.target))).T
        for start in starts:
            members = slice(start, start + self.groups.size)
            part = values[:, start - now : start - now + self.groups.size].contiguous()
            self.groups.put(start // self.groups.size, self.decision.start_group(self.grid, part, self.importance[members]))

    def _standing(self, now: int, stop: int) -> Tensor:
        """Columns `now … stop` as they stand once all columns before `now` are decided, `[stop − now, rows]`.

        These are the weights that GPTQ holds: the best values given the errors made so far, if no more were made. The
        sums `P = t − w` count the errors before `now` alone, while every column that takes its correction makes an
        error itself; with no rounding `E Ũ = −P` inside, so the standing weights are `w + P Ũ⁻¹`.
        """
        values = self.target[now:stop]
        if now == 0:
            return values
        original = self.original[now:stop]
        inside = self.feedback[now:stop, now:stop].T
        return original + torch.linalg.solve_triangular(inside, values - original, upper=False, unitriangular=True)

    def _start_span(self, first: int) -> None:
        """Let the decision choose among the columns of a span that begins here."""
        if self.decision.span is not None and first % self.decision.span == 0:
            stop = min(first + self.decision.span, len(self.target))
            self.dropped = self.decision.start_span(first, self._standing(first, stop), self.importance[first:stop])
            self.span_start = first

    def _segment(self, first: int, last: int, original: Tensor, error: Tensor) -> None:
        """Decide columns between two cuts: in one kernel where no decision looks at single columns."""
        part = slice(first, last)
        chosen = None if self.decision.span is None else self.dropped
        dropped = None if chosen is None else chosen[first - self.span_start : last - self.span_start].contiguous()
        feedback = self.feedback[part, part]
        if self.vectors is not None and not self.decision.looks_at_columns:
            self._vectors(first, last, original, error, self.vectors)
            return
        if self.decision.looks_at_columns or self.grid.rounding is None:
            self._columns(first, original, feedback, dropped, error)
            return
        run = choose("sweep_block", {"columns": last - first, "rows": original.shape[1]}, original.device)
        run(
            self.target[part],
            original,
            feedback,
            self.importance[part],
            self.groups.scale,
            self.groups.zero,
            self.groups.of_walked[part].to(torch.int32),
            dropped,
            self.grid.largest_code,
            self.codes[part],
            error,
            self.loss,
            self.grid.rounding,
            self.decision.keeping(first, last),
            1 if self.groups.scattered else gcd(first, self.groups.size),
        )

    def _vectors(self, first: int, last: int, original: Tensor, error: Tensor, rule: Vectors) -> None:
        """Decide columns between two cuts in one kernel, eight at a time."""
        part, size = slice(first, last), self.grid.vector_size
        codes = self.codes[first // size : last // size]
        run = choose("sweep_vectors", {"columns": last - first, "rows": original.shape[1]}, original.device)
        root, scale = self.factor.upper[part, part], self.groups.scale[self.group_of[first]]
        run(self.target[part], original, self.feedback[part, part], root, scale, rule, codes, error, self.loss)

    def _columns(self, first: int, original: Tensor, feedback: Tensor, dropped: Tensor | None, error: Tensor) -> None:
        """As the kernel, one vector of columns after the other, asking grid and decision about each."""
        size = self.grid.vector_size
        for start in range(0, len(original), size):
            columns = slice(start, start + size)
            walked = slice(first + start, first + start + size)
            value = self.target[walked].addmm_(feedback[:start, columns].T, error[:start]) if start else self.target[walked]
            parameters = self.groups.parameters(self.group_of[first + start])
            codes = self.grid.encode(value.T, parameters)
            decoded = self.grid.decode(codes, parameters).T
            if dropped is not None:
                decoded = torch.where(dropped[columns], 0.0, decoded)
                codes = torch.where(dropped[columns].T, parameters.zero, codes) if size == 1 else codes
            decoded = self.decision.column(first + start, value, decoded, self.importance[walked])
            self.codes[(first + start) // size] = codes[:, 0]
            error[columns] = original[columns] - decoded
            self.loss += self._cost(walked, value - decoded)
            self.target[walked] = decoded

    def _cost(self, walked: slice, residual: Tensor) -> Tensor:
        """`‖R_bbᵀ r‖²` of the residual `[vector_size, rows]` of one vector of columns; `r_jj² r²` for single columns."""
        return (self.factor.upper[walked, walked].T @ residual).square().sum(0)
