"""What every solver of one weight returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Solved:
    """Codes and values of one weight, or of several stacked by rows, in the stored order of inputs.

    Attributes:
        codes: `[rows, in / vector_size]`, uint8 on integer grids, int32 on vector grids (those in walked order).
        scales: `[rows, groups]` float32, already rounded to the dtype they are stored in.
        zeros: integer zero points, `[rows, groups]` float32.
        decoded: the values, `[rows, in]` float32, exactly those that the stored tensors give back.
        group_index: group of every input, `[in]` int64, where groups are not runs of consecutive inputs.
        loss: `Σ_j r_jj² (t_j − ŵ_j)²`, the damped objective of every row, `[rows]` float64; None without a Hessian.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    decoded: Tensor
    group_index: Tensor | None = None
    loss: Tensor | None = None
