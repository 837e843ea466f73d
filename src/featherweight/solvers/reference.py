"""GPTQ as its paper writes it: column by column, with the inverse Hessian. Slow; what the sweep is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.grids.base import GridParameters
from featherweight.grids.uniform import UniformGrid
from featherweight.solvers.result import Solved


def gptq(
    weight: Tensor,
    hessian: Tensor,
    grid: UniformGrid,
    group_size: int | None = None,
    *,
    damping: float = 0.01,
    order: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Solved:
    """`H⁻¹ = Uᵀ U`; for each column `e = (w − q) / U_jj`, then `W_{:, j+1:} −= e U_{j, j+1:}` (Frantar et al. 2022, alg. 1).

    Groups are formed in the order of the walk and fitted on the up-to-date weights, weighed by `1 / U_jj²`.

    Args:
        weight: `[rows, in]`.
        hessian: `[in, in]`.
        grid: the rounding rule.
        group_size: walked columns that share a grid; None for whole rows.
        damping: λ, relative to the mean diagonal.
        order: in which columns are walked.
        dtype: of the arithmetic.
    """
    width, diagonal = weight.shape[1], hessian.diagonal()
    order = torch.arange(width, device=weight.device) if order is None else order
    size = width if group_size is None else group_size
    damped = hessian.to(dtype) + torch.diag((diagonal == 0).to(dtype))
    damped.diagonal().add_(damping * damped.diagonal().mean())
    work = torch.where(diagonal == 0, 0.0, weight.to(dtype))[:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    codes, decoded = torch.empty_like(work), torch.empty_like(work)
    fitted: list[GridParameters] = []
    for column in range(width):
        if column % size == 0:
            columns = slice(column, column + size)
            fitted.append(grid.fit(work[:, columns], upper.diagonal()[columns].to(torch.float32) ** -2))
        codes[:, column] = grid.encode(work[:, column, None], fitted[-1])[:, 0]
        decoded[:, column] = grid.decode(codes[:, column, None], fitted[-1])[:, 0]
        error = (work[:, column] - decoded[:, column]) / upper[column, column]
        work[:, column:] -= error[:, None] * upper[column, column:]
    back = order.argsort()
    return Solved(
        codes[:, back].to(torch.uint8),
        torch.cat([each.scale for each in fitted], 1),
        torch.cat([each.zero for each in fitted], 1),
        decoded[:, back].to(torch.float32),
        (torch.arange(width, device=weight.device) // size)[back],
    )
