"""The best product of two thin matrices, in the norm of a linear's output; exact or rounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.split import pays, row_of_halves, stacked_halves

#: Rounds of subspace iteration, and least columns beyond the rank, of the randomised decomposition.
POWERS, OVERSAMPLING = 4, 8

#: What is added to the diagonal of normal equations, relative to its mean; and to that of a Gram matrix in float64.
RIDGE, SHIFT = 1e-6, 1e-12


class Rounded(Protocol):
    """What a factor was rounded to."""

    def dequantize(self) -> Tensor:
        """The values, float32."""


#: Rounds a factor `[rank, features]`; the second argument weighs squared errors by feature, `[features]`, or is None.
Rounding = Callable[[Tensor, Tensor | None], Rounded]


@dataclass(frozen=True)
class Metric:
    """The norm `‖E‖² = tr(E H Eᵀ)` of an error `E [out, in]` in a linear's output; without `H` the sum of squares.

    Attributes:
        hessian: mean of `x xᵀ [in, in]`, float32; None for the identity.
    """

    hessian: Tensor | None = None

    def weigh(self, values: Tensor) -> Tensor:
        """`A H [rows, in]`."""
        if self.hessian is None:
            return values
        if pays(values, len(self.hessian)):
            return torch.mm(row_of_halves(values), self._split, out_dtype=torch.float32)
        return values @ self.hessian

    def energy(self, values: Tensor) -> float:
        """`tr(A H Aᵀ)`, summed in float64."""
        return max(0.0, float((values * self.weigh(values)).sum(dtype=torch.float64)))

    @property
    def importance(self) -> Tensor | None:
        """`diag H [in]`."""
        return None if self.hessian is None else self.hessian.diagonal()

    @cached_property
    def _split(self) -> Tensor:
        assert self.hessian is not None
        return stacked_halves(self.hessian)

    @cached_property
    def root(self) -> Tensor:
        """`P Λ½ [in, in]` of `H = P Λ Pᵀ` in float64; eigenvalues that are not positive count as 0."""
        values, vectors = self._spectrum
        return vectors * values.clamp_min(0.0).sqrt()

    @property
    def repaired(self) -> int:
        """Eigenvalues of `H` that were not positive."""
        return int((self._spectrum[0] <= 0).sum())

    def repairs(self) -> dict[str, float]:
        """For the ledger, where the eigenvalues of `H` were needed: how many counted as 0, and the smallest of all."""
        if "_spectrum" not in vars(self):
            return {}
        return {"eigenvalues_repaired": self.repaired, "smallest_eigenvalue": float(self._spectrum[0].min())}

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        assert self.hessian is not None
        values, vectors = torch.linalg.eigh(self.hessian.to(torch.float64))
        return values, vectors


@dataclass(frozen=True)
class Factors:
    """`A ≈ leftᵀ right`, `left [rank, out]`, `right [rank, in]`; float32, the rows of both of like magnitude."""

    left: Tensor
    right: Tensor


def check_rank(rank: int, shape: tuple[int, int], name: str = "") -> None:
    """Refuse a rank that the product cannot have.

    Raises:
        FeatherweightError: it names the linear where that is known.
    """
    side = min(shape)
    if not 1 <= rank <= side:
        where = name or f"a linear of {shape[0]} x {shape[1]}"
        says = f"rank {rank} exceeds the smaller side {side} of {where}" if rank > side else f"rank {rank} of {where}"
        raise FeatherweightError(says, found=rank, expected=f"1 to {side}", fix=f"use at most {side}" if rank > side else "")


def best_factors(
    target: Tensor, metric: Metric, rank: int, generator: torch.Generator | None = None, weighed: Tensor | None = None
) -> Factors:
    """`argmin ‖A − L R‖` over all products of this rank: `L` the leading left singular vectors of `A H½`, `R = Lᵀ A`.

    For `L` with independent columns `argmin_R ‖A − L R‖` is `L⁺ A` whatever `H`, so nothing is divided by `H½` and a singular
    `H` is no obstacle. (Saha et al. 2024, arXiv:2405.18886, lemma 4.2, write `R = Σ Vᵀ H^(−½)`, which is the same.)

    Args:
        target: `A [out, in]` float32.
        metric: the norm.
        rank: of the product, at most the smaller side.
        generator: for a randomised range finder with subspace iteration on `A H Aᵀ` (Halko et al. 2011, arXiv:0909.4061), in
            `O(out · in · rank)` beside one product with `H`; None for the decomposition itself, in float64.
        weighed: `A H`, where it is at hand.

    Raises:
        FeatherweightError: a rank that the product cannot have.
    """
    check_rank(rank, (target.shape[0], target.shape[1]))
    if generator is None:
        leading = _leading(target, metric, rank)
    else:
        leading = _leading_randomized(target, metric.weigh(target) if weighed is None else weighed, rank, generator)
    return balanced(leading.T, leading.T @ target)


def balanced(left: Tensor, right: Tensor) -> Factors:
    """The same product with rows of like root mean square in both factors."""
    sizes = [side.square().mean(1, keepdim=True).sqrt() for side in (left, right)]
    usable = (sizes[0] > 0) & (sizes[1] > 0)
    ratio = torch.where(usable, sizes[1] / torch.where(usable, sizes[0], 1.0), 1.0).sqrt()
    return Factors(left * ratio, right / ratio)


def _leading(target: Tensor, metric: Metric, rank: int) -> Tensor:
    exact = target.to(torch.float64)
    weighed = exact if metric.hessian is None else exact @ metric.root
    return torch.linalg.svd(weighed, full_matrices=False).U[:, :rank].to(torch.float32)


def _leading_randomized(target: Tensor, weighed: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    out, inputs = target.shape
    width = min(2 * rank + OVERSAMPLING, out, inputs)
    if target.device.type != "cpu":  # drawn there: nothing is copied
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(target.device).manual_seed(seed)
    basis = weighed @ torch.randn(inputs, width, generator=generator, device=target.device)
    for _ in range(POWERS):
        basis = weighed @ (target.T @ orthonormal(basis, rounds=1))
    basis = orthonormal(basis)
    core = ((basis.T @ weighed) @ (target.T @ basis)).to(torch.float64)
    vectors = torch.linalg.eigh((core + core.T) / 2).eigenvectors
    return basis @ vectors[:, -rank:].flip(1).to(torch.float32)


def orthonormal(basis: Tensor, rounds: int = 2) -> Tensor:
    """A basis `[rows, columns]` of the same span, orthonormal to float32 after two rounds of a shifted Cholesky factorisation.

    Far faster on a GPU than Householder reflections, and nothing waits for the device (Fukaya et al. 2020, arXiv:1809.11085).
    Columns beyond the rank become arbitrary directions, or 0 where all are 0.
    """
    exact = basis.to(torch.float64)
    for _ in range(rounds):
        gram = exact.T @ exact
        gram.diagonal().add_((SHIFT * gram.diagonal().mean()).clamp_min(torch.finfo(torch.float64).tiny))
        lower = torch.linalg.cholesky_ex(gram).L
        exact = torch.linalg.solve_triangular(lower, exact.T, upper=False).T
    return exact.to(basis.dtype)


@dataclass(frozen=True)
class Fitted:
    """Rounded factors.

    Attributes:
        left, right: `Lᵀ` and `R` as they were rounded.
        error: `‖A − L R‖²`, of the rounded ones.
        path: that error at first, and after each update of `L`.
    """

    left: Rounded
    right: Rounded
    error: float
    path: tuple[float, ...]

    def dequantize(self) -> Tensor:
        """`L R [out, in]`."""
        return self.left.dequantize().T @ self.right.dequantize()


def fit_factors(
    target: Tensor,
    metric: Metric,
    left: Tensor,
    round_left: Rounding,
    round_right: Rounding,
    iterations: int,
    weighed: Tensor | None = None,
) -> Fitted:
    """Rounded factors by alternating least squares; the best pair is kept.

    With one factor fixed as it is rounded, the other's optimum is computed and rounded: `R = (Lᵀ L)⁻¹ Lᵀ A` and
    `L = A H Rᵀ (R H Rᵀ)⁻¹` (Saha et al. 2024, algorithm 2), by normal equations in float64. Only `L` knows of `H`, so the pair
    is also judged when `L` was fitted last.

    Args:
        target: `A [out, in]` float32.
        metric: the norm.
        left: `Lᵀ [rank, out]` to begin with, not rounded.
        round_left, round_right: of `Lᵀ` and `R`.
        iterations: updates of both after the first fit of `R`; with 0 `L` stays as it was given.
        weighed: `A H`, where it is at hand.
    """
    weighed = metric.weigh(target) if weighed is None else weighed
    total = (target * weighed).sum(dtype=torch.float64)
    pairs: list[tuple[Rounded, Rounded]] = []
    errors: list[Tensor] = []

    def fit_right(left: Tensor) -> tuple[Rounded, Tensor, Tensor]:
        exact = left.to(torch.float64)
        stored = round_right(_solve(exact @ exact.T, (left @ target).to(torch.float64)), metric.importance)
        return stored, *_normal(stored.dequantize(), metric, weighed)

    def judge(stored_left: Rounded, left: Tensor, stored_right: Rounded, gram: Tensor, cross: Tensor) -> None:
        pairs.append((stored_left, stored_right))
        errors.append(_error(total, left, gram, cross))

    stored_left = round_left(left, None)
    left = stored_left.dequantize()
    stored_right, gram, cross = fit_right(left)
    judge(stored_left, left, stored_right, gram, cross)
    for _ in range(iterations):
        stored_left = round_left(_solve(gram, cross), None)
        left = stored_left.dequantize()
        judge(stored_left, left, stored_right, gram, cross)
        stored_right, gram, cross = fit_right(left)
        judge(stored_left, left, stored_right, gram, cross)
    found = torch.stack(errors).tolist()  # the only wait for the device
    best = min(range(len(found)), key=found.__getitem__)
    return Fitted(*pairs[best], found[best], (found[0], *found[1::2]))


def _normal(right: Tensor, metric: Metric, weighed: Tensor) -> tuple[Tensor, Tensor]:
    """`R H Rᵀ [rank, rank]` and `R (A H)ᵀ [rank, out]`, float64."""
    gram = metric.weigh(right) @ right.T
    return ((gram + gram.T) / 2).to(torch.float64), (right @ weighed.T).to(torch.float64)


def _solve(gram: Tensor, cross: Tensor) -> Tensor:
    """`(G + RIDGE · mean diag G)⁻¹ C`, float32; a `G` of zeros gives zeros."""
    ridge = (RIDGE * gram.diagonal().mean()).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.linalg.solve_ex(gram + torch.diag(ridge.expand(len(gram))), cross).result.to(torch.float32)


def _error(total: Tensor, left: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """`‖A‖² − 2 ⟨Lᵀ, R (A H)ᵀ⟩ + ⟨Lᵀ, R H Rᵀ Lᵀ⟩`, a float64 scalar."""
    exact = left.to(torch.float64)
    return (total - (exact * (2 * cross - gram @ exact)).sum()).clamp_min(0.0)
