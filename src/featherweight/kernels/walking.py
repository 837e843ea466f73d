"""What a kernel is told that walks whole blocks of columns: the walk's own tensors, its grid, and what is dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from featherweight.kernels.fitting import Fitting
from featherweight.kernels.keeping import Keeping
from featherweight.kernels.two_level import SecondLevel, TwoLevelFitting

#: Columns of a block, at most; those that are selected together where all of a linear's weights compete.
MOST = 128


@dataclass(frozen=True)
class Walking:
    """All columns of a walk in walked order; see `featherweight.kernels.reference.sweep_block`.

    Attributes:
        target, original: `[in, rows]` float32.
        feedback: `Ũ [in, in]`.
        importance: `r_jj² [in]`.
        scale, zero: written, `[groups, rows]` float32; read where there is a `group_index`.
        codes: written, `[in, rows]` uint8.
        loss: added to, `[rows]`.
        size: columns of a group.
        fitting: of every group; None where values are rounded to `dtype` and there is no grid.
        dtype: of the values.
        group_index: of every column, `[in]` int32, where groups are not runs of columns; their grids are then given.
        second_level: written, where `fitting` is of two levels.
        keeping: which weights are kept beside their codes; only with two levels.
    """

    target: Tensor
    original: Tensor
    feedback: Tensor
    importance: Tensor
    scale: Tensor
    zero: Tensor
    codes: Tensor
    loss: Tensor
    size: int
    fitting: Fitting | TwoLevelFitting | None
    dtype: torch.dtype
    group_index: Tensor | None = None
    second_level: SecondLevel | None = None
    keeping: Keeping | None = None


@dataclass(frozen=True)
class Dropping:
    """Which weights become 0.

    Attributes:
        dropped: `[in, rows]` bool, in walked order; read if `how` is "given", else written.
        how: "given"; "n of m": all but `keep` of every `of` columns of a row; "least": of every block so many of each linear.
        fitted: on what grids are fitted: "all" weights, those "kept", or those kept once they have "made up" for what goes.
        keep, of: as above.
        linears: rows of each linear.
        counts: how many weights of each linear go in a block of so many columns.
        apply: what goes of values `[columns, rows]`, importance `[columns]`: the definition, in plain torch.
    """

    dropped: Tensor
    how: Literal["given", "n of m", "least"]
    fitted: Literal["all", "kept", "made up"]
    keep: int = 0
    of: int = 0
    linears: Sequence[int] = ()
    counts: Callable[[int], list[int]] | None = None
    apply: Callable[[Tensor, Tensor], Tensor] | None = None


#: Columns `first … last` are decided: their errors as sums of two bfloat16 numbers, the upper halves twice, `[3 · columns, rows]`.
WalkBlock = Callable[[int, int], Tensor]
