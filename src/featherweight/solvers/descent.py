"""Rounding again, vector by vector, with everything else as it stands: coordinate descent on codes and scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.base import Grid, GridParameters
from featherweight.kernels.registry import choose
from featherweight.kernels.split import pays, row_of_halves, stacked_halves
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
    rule, width = vectors_of(grid, weight.device), weight.shape[1]
    if rule is None or width % SIZE:
        raise FeatherweightError("vectors of this grid do not fill the inputs", found=width, expected=f"a multiple of {SIZE}")
    state = _State(weight, hessian, rule, codes, decoded, scale[:, 0].contiguous())
    linears = [len(weight)] if rows is None else list(rows)
    before = (state.error * state.weigh(state.error)).sum(dtype=torch.float64)
    objectives = [float(before - state.refit_scale(linears))]
    for _ in range(passes):
        gain = float(state.run_pass() + state.refit_scale(linears))
        objectives.append(objectives[-1] - gain)
        if gain <= SMALLEST_GAIN * objectives[-2]:
            break
    done, scale = state.codes.T.contiguous(), state.scale[:, None]
    return Descended(done, grid.decode(done, GridParameters(scale, torch.zeros_like(scale))), scale, tuple(objectives))


class _State:
    """Everything held transposed, `[in, rows]`."""

    def __init__(self, weight: Tensor, hessian: Tensor, rule: Vectors, codes: Tensor, decoded: Tensor, scale: Tensor) -> None:
        self.hessian, self.rule, self.scale = hessian, rule, scale
        self.codes, self.decoded = codes.T.contiguous().clone(), decoded.T.contiguous().clone()
        self.weight = weight.T.contiguous()
        self.error = self.weight - self.decoded
        blocks = hessian.reshape(len(hessian) // SIZE, SIZE, -1, SIZE).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        self.inverses = torch.linalg.inv(blocks)
        self.run = choose("descend_vectors", {"columns": min(BLOCK, len(hessian)), "rows": len(scale)}, hessian.device)
        self.split = row_of_halves(hessian) if pays(hessian, len(scale)) else None
        self.halves = None if self.split is None else stacked_halves(self.error)

    def weigh(self, values: Tensor) -> Tensor:
        """`H V` of `values [in, rows]`."""
        return (
            self.hessian @ values
            if self.split is None
            else torch.mm(self.split, stacked_halves(values), out_dtype=torch.float32)
        )

    def pull(self, part: slice) -> Tensor:
        """The columns `part` of `(E H)ᵀ`, `[columns, rows]`."""
        if self.split is None or self.halves is None:
            return self.hessian[part] @ self.error
        return torch.mm(self.split[part], self.halves, out_dtype=torch.float32)

    def note(self, part: slice) -> None:
        """That the error of these columns is another."""
        if self.halves is not None:
            high, again, low = (each[part] for each in self.halves.chunk(3))
            torch.sub(self.error[part], high.copy_(self.error[part]), out=low)
            again.copy_(high)

    def run_pass(self) -> Tensor:
        """One pass over all vectors; what it lowered the objective by, a float64 scalar."""
        gain = torch.zeros_like(self.scale)
        for start in reversed(range(0, len(self.error), BLOCK)):
            part = slice(start, min(start + BLOCK, len(self.error)))
            vectors = slice(part.start // SIZE, part.stop // SIZE)
            pull = self.pull(part)
            self.run(
                pull, self.hessian[part, part], self.inverses[vectors], self.scale, self.rule, self.codes[vectors],
                self.decoded[part], self.error[part], gain,
            )  # fmt: skip
            self.note(part)
        return gain.sum(dtype=torch.float64)

    def refit_scale(self, rows: Sequence[int]) -> Tensor:
        """The best scale of each linear's codes; what it lowered the objective by, a float64 scalar."""
        pulled = self.weigh(self.decoded)
        cross, energy = (
            torch.stack([part.sum() for part in (each * pulled).sum(0, dtype=torch.float64).split(list(rows))])
            for each in (self.error, self.decoded)
        )
        usable = (energy > 0) & (cross > -energy)
        ratio = torch.where(usable, 1 + cross / torch.where(usable, energy, 1.0), 1.0)
        ratios = torch.cat([each.expand(count) for each, count in zip(ratio, rows, strict=True)])
        self.scale = (self.scale * ratios).to(torch.float32)
        self.decoded = self.decoded * ratios.to(torch.float32)
        self.error = self.weight - self.decoded
        self.halves = None if self.halves is None else stacked_halves(self.error)
        return torch.where(usable, cross.square() / torch.where(usable, energy, 1.0), 0.0).sum()
