"""One Cholesky factor of the damped Hessian, and the story of how it was obtained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.split import split_product

#: Damping grows by this factor from one failed attempt to the next, up to `LARGEST_DAMPING`.
ESCALATION, LARGEST_DAMPING, SMALLEST_ESCALATED = 10.0, 1.0, 1e-4

#: Columns multiplied at once by `Factor.row_energy`, on a CPU and elsewhere.
ENERGY_COLUMNS, ENERGY_COLUMNS_ELSEWHERE = 512, 2048


@dataclass(frozen=True)
class Factor:
    """`R` with `H + λ·mean(diag H)·I = R Rᵀ`, upper triangular, in the order in which columns are walked.

    `R⁻¹` is exactly the factor that GPTQ takes of `H⁻¹`; the walk uses `R` itself (LDLQ's form), so nothing is inverted:
    with `E = W − Ŵ` the objective is `tr(E R Rᵀ Eᵀ) = Σ_j r_jj² ‖t_j − ŵ_j‖²`, `t_j = w_j + Σ_{i<j} E_i R_ij / R_jj`.

    Attributes:
        upper: `R [in, in]`, float32.
        order: stored position of each walked column, `[in]` int64.
        dead: inputs that were never active (zero diagonal), `[in]` bool, in the stored order.
        shift: what was added to the diagonal, `λ · mean(diag H)`.
        damping: λ that was asked for.
        damping_used: λ that succeeded.
        attempts: factorisations tried, 1 if the first one succeeded.
        dtype: in which the successful one ran.
        in_order: whether columns are known to be walked as they are stored.
    """

    upper: Tensor
    order: Tensor
    dead: Tensor
    shift: float
    damping: float
    damping_used: float
    attempts: int
    dtype: torch.dtype
    in_order: bool = False

    def importance(self) -> Tensor:
        """`r_jj² [in]`: what one unit of squared rounding error in column `j` costs once all else is compensated; 0 if dead."""
        return self.upper.diagonal().square().masked_fill_(self.dead[self.order], 0.0)

    def inverse_diagonal(self) -> Tensor:
        """Diagonal of the inverse of what was factorised, `[in]`, in the stored order."""
        identity = torch.eye(len(self.order), dtype=self.upper.dtype, device=self.upper.device)
        inverse = torch.linalg.solve_triangular(self.upper, identity, upper=True)
        return torch.empty_like(inverse[0]).index_copy_(0, self.order, inverse.square().sum(0))

    def feedback(self, vector_size: int = 1) -> Tensor:
        """`Ũ [in, in]`, upper triangular with unit diagonal blocks: `t_j = w_j + Σ_{i<j} E_i Ũ_ij`.

        Args:
            vector_size: columns decided together, which divide the inputs; the blocks of this size on the diagonal are identities.
        """
        if vector_size == 1:
            return self.upper / self.upper.diagonal()
        parts = self.upper.unflatten(1, (-1, vector_size)).transpose(0, 1)  # [vectors, in, vector_size]
        own = parts.unflatten(1, (-1, vector_size)).diagonal(dim1=0, dim2=1).permute(2, 0, 1)
        identity = torch.eye(vector_size, dtype=own.dtype, device=own.device).expand_as(own)
        inverses = torch.linalg.solve_triangular(own, identity, upper=True)
        return (parts @ inverses).transpose(0, 1).reshape(self.upper.shape)

    def damped(self, hessian: Tensor) -> Tensor:
        """`hessian [in, in]` with what was added to it: `R Rᵀ`, in the stored order."""
        return hessian + torch.diag(self.dead.to(hessian.dtype) + self.shift)

    def row_energy(self, error: Tensor) -> Tensor:
        """`diag(E H Eᵀ) [rows]` of `error [rows, in]` in the stored order, damping taken out again; float64.

        The factor's zero half is skipped: `rows · in²` operations.
        """
        error = torch.where(self.dead, 0.0, error)[:, self.order]
        energy = torch.zeros(error.shape[0], dtype=torch.float64, device=error.device)
        columns = ENERGY_COLUMNS if error.device.type == "cpu" else ENERGY_COLUMNS_ELSEWHERE
        for start in range(0, error.shape[1], columns):
            stop = min(start + columns, error.shape[1])
            energy += split_product(error[:, :stop], self.upper[:stop, start:stop]).square_().sum(1, dtype=torch.float64)
        return self.without_damping(energy, error)

    def without_damping(self, energy: Tensor, error: Tensor) -> Tensor:
        """`energy [rows]` in the damped norm, less `λ·mean(diag H)·‖E‖²` per row, never below 0."""
        return (energy - self.shift * error.square().sum(1, dtype=torch.float64)).clamp_(min=0.0)


def factorise(
    hessian: Tensor, damping: float = 0.01, *, order: Tensor | None = None, name: str = "", samples: int | None = None
) -> Factor:
    """The upper Cholesky factor of the damped `hessian [in, in]`, by one factorisation of its index-reversed form.

    A zero on the diagonal marks a dead input and is replaced by 1. Then `λ · mean(diag H)` is added. If the Cholesky
    fails it is tried in float64, then with ten times the damping, up to λ = 1.

    Args:
        hessian: mean of `x xᵀ`; only scale-free quantities are taken from it.
        damping: λ ≥ 0, relative to the mean diagonal (GPTQ's `percdamp`).
        order: walk the columns in this order, `[in]`.
        name: of the linear, for the error.
        samples: tokens behind the Hessian, for the error.

    Raises:
        FeatherweightError: values that are not finite, or no factor even at λ = 1.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    mean = float(torch.where(dead, 1.0, diagonal).mean())
    if hessian.device.type != "meta" and not math.isfinite(mean) and not bool(torch.isfinite(diagonal).all()):
        raise FeatherweightError(
            f"the Hessian of {name or 'this linear'} is not finite",
            found=f"{int((~torch.isfinite(diagonal)).sum())} of {len(diagonal)} diagonal entries are NaN or Inf",
            expected="finite activations",
            fix="run the calibration in float32 or bfloat16",
        )
    in_order = order is None
    order = torch.arange(len(diagonal), device=hessian.device) if order is None else order
    backwards = order.flip(0)
    level, attempts = damping, 0
    while True:
        for dtype in (torch.float32, torch.float64):
            attempts += 1
            reversed_hessian = hessian.flip(0, 1) if in_order else hessian[backwards][:, backwards]
            lower = _cholesky(reversed_hessian.to(dtype), dead[backwards], level * mean)
            if lower is not None:
                upper = lower.flip(0, 1).to(torch.float32).contiguous()  # LAPACK and cuSOLVER leave columns contiguous
                return Factor(upper, order, dead, level * mean, damping, level, attempts, dtype, in_order)
        if level >= LARGEST_DAMPING:
            raise _not_positive(hessian, level * mean, name, samples, attempts)
        level = min(max(level * ESCALATION, SMALLEST_ESCALATED), LARGEST_DAMPING)


def _cholesky(damped: Tensor, dead: Tensor, shift: float) -> Tensor | None:
    """Lower factor of a symmetric matrix, which is damped in place, or None where it is not positive definite in its dtype."""
    damped.diagonal().add_(dead.to(damped.dtype)).add_(shift)
    lower, failed = torch.linalg.cholesky_ex(damped.mT)  # whose columns are contiguous, as the solver wants them
    diagonal = lower.diagonal()  # a row that is not finite leaves its mark there
    return lower if bool((failed == 0) & torch.isfinite(diagonal).all() & (diagonal > 0).all()) else None


def _not_positive(hessian: Tensor, shift: float, name: str, samples: int | None, attempts: int) -> FeatherweightError:
    damped = hessian.to(torch.float64) + shift * torch.eye(len(hessian), dtype=torch.float64, device=hessian.device)
    eigenvalues = torch.linalg.eigvalsh(damped) if bool(torch.isfinite(damped).all()) else torch.tensor([torch.nan])
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    condition = largest / smallest if smallest > 0 else float("inf")
    return FeatherweightError(
        f"the Hessian of {name or 'this linear'} has no Cholesky factor",
        found=(
            f"{samples if samples is not None else 'unknown'} samples for {len(hessian)} inputs, condition number "
            f"{condition:.3g}, smallest eigenvalue {smallest:.3g} at damping {LARGEST_DAMPING}, {attempts} attempts"
        ),
        expected="a positive semi-definite sum of x xᵀ over more samples than inputs",
        fix="calibrate on more tokens, or check the activations for NaN and Inf",
    )
