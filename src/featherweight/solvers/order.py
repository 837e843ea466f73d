"""Weights between the order in which they are stored and that in which they are walked."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.solvers.damping import Factor


def to_walked(weight: Tensor, factor: Factor) -> Tensor:
    """`weight [rows, in]` in walked order, `[in, rows]`, dead inputs zeroed; a copy."""
    weight = weight if factor.in_order else weight.index_select(1, factor.order)
    walked = weight.new_empty(weight.shape[::-1])
    alive = ~(factor.dead if factor.in_order else factor.dead[factor.order])
    return torch.where(alive[:, None], weight.T, weight.new_zeros(()), out=walked)


def to_stored(walked: Tensor, factor: Factor) -> Tensor:
    """`[in, rows]` in walked order to `[rows, in]` as stored."""
    return (walked if factor.in_order else walked.index_select(0, factor.order.argsort())).T.contiguous()
