"""The grids of all groups of a weight, in plain torch."""

from __future__ import annotations

from torch import Tensor

from featherweight.kernels.fitting import Fitting


def fit_groups(weight: Tensor, importance: Tensor | None, size: int, fitting: Fitting) -> tuple[Tensor, Tensor]:
    """Scales and zeros `[rows, groups]` of runs of `size` columns of `weight [rows, in]`; `size` divides `in`.

    Args:
        importance: weighs squared errors, `[in]`; None weighs all alike.
        fitting: of each group.
    """
    rows, groups = len(weight), weight.shape[1] // size
    if importance is not None and groups > 1:
        importance = importance.view(groups, size).repeat(rows, 1)
    scale, zero = fitting.apply(weight.reshape(rows * groups, size), importance)
    return scale.view(rows, groups), zero.view(rows, groups)
