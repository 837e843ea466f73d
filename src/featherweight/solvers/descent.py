"""Rounding again, vector by vector, with everything else as it stands: coordinate descent on the rounded weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.base import Grid, GridParameters
from featherweight.kernels.registry import choose
from featherweight.kernels.vectors import SIZE, Vectors
from featherweight.solvers.fitting import vectors_of

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
    rule, width = vectors_of(grid, weight.device), weight.shape[1]
    if rule is None or width % SIZE:
        raise FeatherweightError("vectors of this grid do not fill the inputs", found=width, expected=f"a multiple of {SIZE}")
    state = _State(weight, hessian, rule, codes, decoded, scale[:, 0].contiguous())
    objectives = [float((state.error * (hessian @ state.error)).sum(dtype=torch.float64))]
    for _ in range(passes):
        gain = float(state.run_pass())
        objectives.append(objectives[-1] - gain)
        if gain <= SMALLEST_GAIN * objectives[-2]:
            break
    done = state.codes.T.contiguous()
    return Descended(done, grid.decode(done, GridParameters(scale, torch.zeros_like(scale))), tuple(objectives))


class _State:
    """Everything held transposed, `[in, rows]`."""

    def __init__(self, weight: Tensor, hessian: Tensor, rule: Vectors, codes: Tensor, decoded: Tensor, scale: Tensor) -> None:
        self.hessian, self.rule, self.scale = hessian, rule, scale
        self.codes, self.decoded = codes.T.contiguous().clone(), decoded.T.contiguous().clone()
        self.error = (weight - decoded).T.contiguous()
        blocks = hessian.reshape(len(hessian) // SIZE, SIZE, -1, SIZE).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        self.inverses = torch.linalg.inv(blocks)

    def run_pass(self) -> Tensor:
        """One pass over all vectors; what it lowered the objective by, a float64 scalar."""
        gain = torch.zeros_like(self.scale)
        for start in reversed(range(0, len(self.error), BLOCK)):
            part = slice(start, min(start + BLOCK, len(self.error)))
            vectors = slice(part.start // SIZE, part.stop // SIZE)
            pull = self.hessian[part] @ self.error  # (E H)ᵀ
            run = choose("descend_vectors", {"columns": len(pull), "rows": pull.shape[1]}, pull.device)
            run(
                pull, self.hessian[part, part], self.inverses[vectors], self.scale, self.rule, self.codes[vectors],
                self.decoded[part], self.error[part], gain,
            )  # fmt: skip
        return gain.sum(dtype=torch.float64)
