"""Rounding again, vector by vector, with everything else as it stands: coordinate descent on codes and scale."""

from __future__ import annotations

from collections.abc import Sequence
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
        scale: of the grid, `[rows, 1]`.
        objectives: `tr(E H Eᵀ)` before the first pass, with the best scale, and after each.
    """

    codes: Tensor
    decoded: Tensor
    scale: Tensor
    objectives: tuple[float, ...]


def descend(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    codes: Tensor,
    decoded: Tensor,
    scale: Tensor,
    passes: int = 10,
    rows: Sequence[int] | None = None,
) -> Descended:
    """Lower `tr((W − Ŵ) H (W − Ŵ)ᵀ)` by rounding each vector of columns anew to what suits the others as they stand.

    Before the first pass and after each the scale becomes that which fits the codes best, `⟨W, V⟩ / ⟨V, V⟩` in the norm of `H`.

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
        rows: of each linear, whose rows have one scale; None for one linear.

    Raises:
        FeatherweightError: a width that vectors of the grid do not fill.
    """
    size, width = grid.vector_size, weight.shape[1]
    if width % size:
        raise FeatherweightError("vectors of this grid do not fill the inputs", found=width, expected=f"a multiple of {size}")
    state = _State(weight, hessian, grid, codes, decoded, GridParameters(scale, torch.zeros_like(scale)))
    linears = [len(weight)] if rows is None else list(rows)
    objectives = [float((state.error * (hessian @ state.error)).sum(dtype=torch.float64)) - float(state.refit_scale(linears))]
    for _ in range(passes):
        gain = float(state.run_pass() + state.refit_scale(linears))
        objectives.append(objectives[-1] - gain)
        if gain <= SMALLEST_GAIN * objectives[-2]:
            break
    return Descended(state.codes.T.contiguous(), state.decoded.T.contiguous(), state.parameters.scale, tuple(objectives))


class _State:
    """Everything held transposed, `[in, rows]`."""

    def __init__(
        self, weight: Tensor, hessian: Tensor, grid: Grid, codes: Tensor, decoded: Tensor, parameters: GridParameters
    ) -> None:
        self.hessian, self.grid, self.parameters = hessian, grid, parameters
        self.codes, self.decoded = codes.T.clone(), decoded.T.clone()
        self.weight = weight.T.contiguous()
        self.error = self.weight - self.decoded
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

    def refit_scale(self, rows: Sequence[int]) -> Tensor:
        """The best scale of each linear's codes; what it lowered the objective by, a float64 scalar."""
        pulled = self.hessian @ self.decoded
        cross, energy = (
            torch.stack([part.sum() for part in (each * pulled).sum(0, dtype=torch.float64).split(list(rows))])
            for each in (self.error, self.decoded)
        )
        usable = (energy > 0) & (cross > -energy)
        ratio = torch.where(usable, 1 + cross / torch.where(usable, energy, 1.0), 1.0)
        spread = ratio.repeat_interleave(torch.tensor(list(rows), device=ratio.device))[:, None]
        scale = (self.parameters.scale * spread).to(torch.float32)
        self.parameters = GridParameters(scale, self.parameters.zero)
        self.decoded = self.grid.decode(self.codes.T, self.parameters).T.contiguous()
        self.error = self.weight - self.decoded
        return torch.where(usable, cross.square() / torch.where(usable, energy, 1.0), 0.0).sum()

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
