"""What happens to each weight during the walk: round it, drop it, or keep it exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from featherweight.grids.base import Grid, GridParameters
from featherweight.kernels.fitting import Fitting
from featherweight.kernels.keeping import Keeping
from featherweight.kernels.registry import accelerated
from featherweight.kernels.two_level import SecondLevel, TwoLevelFitting
from featherweight.kernels.walking import Dropping, Walking
from featherweight.solvers.fitting import fit_grid, fitting_of
from featherweight.solvers.groups import Groups


@dataclass(frozen=True)
class Block:
    """Columns of a walk that are decided together, as the walk holds them; see `featherweight.kernels.reference.sweep_block`.

    Attributes:
        first: walked position of the first.
        target, original, error: `[columns, rows]`.
        feedback: `[columns, columns]`.
        importance: `[columns]`.
        scale, zero: of the groups of the block, written, `[groups, rows]`.
        codes: written, `[columns, rows]`.
        loss: added to, `[rows]`.
    """

    first: int
    target: Tensor
    original: Tensor
    feedback: Tensor
    importance: Tensor
    scale: Tensor
    zero: Tensor
    codes: Tensor
    error: Tensor
    loss: Tensor


class Decision:
    """Rounds everything; the base of the decisions that drop or keep some weights.

    The sweep calls `start_span`, `start_group` and `column` in the order of the walk; all values are up to date with
    the feedback of every column before. A subclass overrides what it needs and may gather what it must store.
    Tensors are transposed as the sweep holds them: columns first, `[columns, rows]`.

    Attributes:
        span: columns handed to `start_span` at once, counted from the first one walked; None if it is not to be called.
        looks_at_columns: whether `column` does anything; without it whole blocks run in one kernel.
        in_blocks: whether `dropping` says all that it decides, so that one kernel can fit and decide whole blocks.
    """

    span: int | None = None
    looks_at_columns: bool = False
    in_blocks: bool = False

    def start_span(self, first: int, values: Tensor, importance: Tensor) -> Tensor | None:
        """Choose what to drop among the next columns.

        Args:
            first: walked position of the first of them.
            values: `[columns, rows]`, at most `span` columns.
            importance: `r_jj² [columns]`; `values² · importance` is what dropping each one costs (OBS).

        Returns:
            True where the weight becomes exactly 0, `[columns, rows]`, or None.
        """
        return None

    def start_group(self, grid: Grid, values: Tensor, importance: Tensor) -> GridParameters:
        """Fit the grid of a group.

        Args:
            grid: to fit.
            values: `[rows, width]` (rows first, as grids take them).
            importance: `r_jj² [width]`.
        """
        return fit_grid(grid, values, importance)

    def fitted_on(self, values: Tensor) -> Tensor | None:
        """Of the original `values [rows, in]`, as stored, what grids are fitted on; None where `start_group` does more than fit."""
        return None

    def dropping(self) -> Dropping | None:
        """What is dropped, as block kernels are told; None for nothing."""
        return None

    def two_levels(self, groups: Groups) -> tuple[TwoLevelFitting, SecondLevel] | None:
        """How kernels fit a grid of two levels, and where they write the second one; None for other grids."""
        return None

    def walked_by_kernel(self, walking: Walking) -> None:
        """Learn that a kernel will walk all blocks, and write what `walking` names."""

    def whole_blocks(self, grid: Grid, groups: Groups, block: int) -> Callable[[Block], None] | None:
        """What fits and decides the groups of a whole block at once, where a kernel does; None for one after the other.

        Asked once, before the walk. `groups` are runs of walked columns; no block of at most `block` columns cuts one.
        """
        return None

    def keeping(self, first: int, last: int) -> Keeping | None:
        """What the block kernel needs to keep weights of columns `first … last` beside their codes; None rounds all."""
        return None

    def column(self, first: int, values: Tensor, decoded: Tensor, importance: Tensor) -> Tensor:
        """The values that columns `first …` get, `[vector_size, rows]`.

        Args:
            first: walked position.
            values: what the columns should be, `[vector_size, rows]`.
            decoded: what rounding and dropping made of them; returned unchanged where nothing is kept exact.
            importance: `r_jj² [vector_size]`.
        """
        return decoded


class Round(Decision):
    """Round every weight: GPTQ, LDLQ."""

    in_blocks = True

    def fitted_on(self, values: Tensor) -> Tensor | None:
        """All of them."""
        return values

    def whole_blocks(self, grid: Grid, groups: Groups, block: int) -> Callable[[Block], None] | None:
        """By the kernel for uniform grids."""
        fitting = fitting_of(grid)
        if fitting is None:
            return None
        signature = {"columns": block, "rows": groups.scale.shape[1], "group_size": groups.size}
        kernel = accelerated("sweep_groups", signature, groups.scale.device)
        return None if kernel is None else partial(_round_block, kernel, groups.size, fitting)


def _round_block(kernel: Callable[..., None], size: int, fitting: Fitting, block: Block) -> None:
    kernel(
        block.target, block.original, block.feedback, block.importance, block.scale, block.zero, size, fitting, block.codes,
        block.error, block.loss,
    )  # fmt: skip
