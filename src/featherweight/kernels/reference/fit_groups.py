"""The grids of all groups of a weight, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.fitting import Fitting


def fit_groups(weight: Tensor, importance: Tensor | None, size: int, fitting: Fitting) -> tuple[Tensor, Tensor]:
    """Scales and zeros `[rows, groups]` of runs of `size` columns of `weight [rows, in]`; `size` divides `in`.

    Args:
        importance: weighs squared errors, `[in]`; None weighs all alike.
        fitting: of each group.
    """
    parts = weight.split(size, 1)
    weighs = [None] * len(parts) if importance is None else list(importance.split(size))
    fitted = [fitting.apply(part.contiguous(), weigh) for part, weigh in zip(parts, weighs, strict=True)]
    return torch.stack([scale for scale, _ in fitted], 1), torch.stack([zero for _, zero in fitted], 1)
