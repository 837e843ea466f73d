"""Rounding again, vector by vector, with everything else as it stands: coordinate descent on the rounded weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.base import Grid, GridParameters

#: Columns whose share of `E H` is kept up to date while they are walked.
BLOCK = 128

#: A pass that lowers the objective by less than this part of it is the last one.
SMALLEST_GAIN = 5e-3


@dataclass(frozen=True)
class Descended:
    """What the passes made of one weight, or of several stacked by rows.

    Attributes:
        codes: `[rows, in / vector_size]`.
        decoded: `[rows, in]` float32.
        objectives: `tr(E H Eᵀ)` before the first pass and after each.
    """

    codes: Tensor
    decoded: Tensor
    objectives: tuple[float, ...]


def descend(
    weight: Tensor, hessian: Tensor, grid: Grid, codes: Tensor, decoded: Tensor, scale: Tensor, passes: int = 10
) -> Descended:
    """Lower `tr((W − Ŵ) H (W − Ŵ)ᵀ)` by rounding each vector of columns anew to what suits the others as they stand.

    From the last vector `k` to the first, `ŵ_k` becomes the rounded `ŵ_k + (E H)_k H_kk⁻¹`, `E = W − Ŵ` (QuIP#'s tuning). The
    nearest point of a lattice is not the best one in the norm of `H_kk`; a row takes it only where its own objective falls,
    so that no pass raises it. (The authors take all, and may end above where they were.)

    Args:
        weight: `[rows, in]` float32.
        hessian: `[in, in]`, positive definite (damped).
        grid: with which `codes` were found.
        codes, decoded: the weight as rounded so far, `[rows, in / vector_size]` and `[rows, in]`.
        scale: of the grid, `[rows, 1]`.
        passes: at most; fewer where a pass gains nothing.

    Raises:
        FeatherweightError: a width that vectors of the grid do not fill.
    """
    size, width = grid.vector_size, weight.shape[1]
    if width % size:
        raise FeatherweightError("vectors of this grid do not fill the inputs", found=width, expected=f"a multiple of {size}")
    state = _State(weight, hessian, grid, codes, decoded, GridParameters(scale, torch.zeros_like(scale)))
    objectives = [float((state.error * (hessian @ state.error)).sum(dtype=torch.float64))]
    for _ in range(passes):
        gain = float(state.run_pass())
        objectives.append(objectives[-1] - gain)
        if gain <= SMALLEST_GAIN * objectives[-2]:
            break
    return Descended(state.codes.T.contiguous(), state.decoded.T.contiguous(), tuple(objectives))


class _State:
    """Everything held transposed, `[in, rows]`."""

    def __init__(
        self, weight: Tensor, hessian: Tensor, grid: Grid, codes: Tensor, decoded: Tensor, parameters: GridParameters
    ) -> None:
        self.hessian, self.grid, self.parameters = hessian, grid, parameters
        self.codes, self.decoded = codes.T.clone(), decoded.T.clone()
        self.error = (weight - decoded).T.contiguous()
        size = grid.vector_size
        blocks = hessian.reshape(len(hessian) // size, size, -1, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        self.inverses = torch.linalg.inv(blocks)

    def run_pass(self) -> Tensor:
        """One pass over all vectors; what it lowered the objective by, a float64 scalar."""
        gain = torch.zeros((), dtype=torch.float64, device=self.error.device)
        for start in reversed(range(0, len(self.error), BLOCK)):
            stop = min(start + BLOCK, len(self.error))
            pull = self.hessian[start:stop] @ self.error  # (E H)ᵀ
            for first in reversed(range(start, stop, self.grid.vector_size)):
                gain += self._round(first, pull, start)
        return gain

    def _round(self, first: int, pull: Tensor, start: int) -> Tensor:
        """One vector of columns; `pull` is that of the columns from `start` on, and is kept up to date."""
        columns = slice(first, first + self.grid.vector_size)
        inside = slice(columns.start - start, columns.stop - start)
        index = first // self.grid.vector_size
        target = self.decoded[columns] + self.inverses[index] @ pull[inside]
        codes = self.grid.encode(target.T, self.parameters)[:, 0]
        rounded = self.grid.decode(codes[:, None], self.parameters).T
        step = rounded - self.decoded[columns]
        gain = (step * (2 * pull[inside] - self.hessian[columns, columns] @ step)).sum(0)
        better = gain > 0
        step = torch.where(better, step, 0.0)
        self.codes[index] = torch.where(better, codes, self.codes[index])
        self.decoded[columns] = torch.where(better, rounded, self.decoded[columns])
        self.error[columns] -= step
        pull.addmm_(self.hessian[start : start + len(pull), columns], step, alpha=-1)
        return torch.where(better, gain, 0.0).sum(dtype=torch.float64)
