"""The order of inputs in which an N:M pattern keeps the most: whole columns of scores are moved between groups of M."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.masks.patterns import Pattern

#: Groups of M that are assigned to each other at once: time grows with their number, memory with its square.
GROUPS = 256


def best_order(scores: Tensor, pattern: Pattern, groups: int = GROUPS) -> Tensor:
    """The inputs in the order in which the pattern keeps the largest sum of scores found, `[in]` int64; never less than as given.

    First inputs are dealt out by their sums, the large apart from each other; then, place by place, the groups swap the inputs
    that they have there by a linear sum assignment (Zhang et al. 2024, "Plug-and-Play", section 4.3).

    Args:
        scores: `[rows, in]`, 0 or more; rows of several linears may be stacked.
        pattern: N:M, M dividing the inputs.
        groups: assigned to each other at once; every so many-th are taken together.
    """
    scores = scores.to(torch.float32)
    orders = [torch.arange(scores.shape[1], device=scores.device), _dealt(scores, pattern)]
    orders.append(_assigned(scores, orders[1], pattern, groups))
    return max(orders, key=lambda order: retained(scores[:, order], pattern))


def retained(scores: Tensor, pattern: Pattern) -> float:
    """Sum of the scores `[rows, in]` that the pattern keeps, in float64."""
    return float(scores.masked_fill(pattern.dropped(scores), 0.0).sum(dtype=torch.float64))


def _dealt(scores: Tensor, pattern: Pattern) -> Tensor:
    """Inputs by rising sum in M strips, every second one turned round; each group gets one of every strip."""
    strips = scores.sum(0, dtype=torch.float64).argsort(stable=True).view(pattern.of, -1)
    return torch.stack([strip.flip(0) if index % 2 else strip for index, strip in enumerate(strips)], 1).flatten()


def _assigned(scores: Tensor, order: Tensor, pattern: Pattern, groups: int) -> Tensor:
    """The order after one round of assignments at each of the M places."""
    from scipy.optimize import linear_sum_assignment

    places = order.clone().view(-1, pattern.of)
    parts = -(-len(places) // groups)
    for part in (torch.arange(first, len(places), parts, device=order.device) for first in range(parts)):
        for place in range(pattern.of):
            gain = _gains(scores[:, places[part]], place, pattern.keep)
            chosen = torch.as_tensor(linear_sum_assignment(gain.cpu().numpy(), maximize=True)[1], device=order.device)
            places[part, place] = places[part[chosen], place]
    return places.flatten()


def _gains(scores: Tensor, place: int, keep: int) -> Tensor:
    """What each group would keep more with another's input at `place`, `[groups, groups]`, for `scores [rows, groups, M]`.

    A row keeps `max(0, s − t)` more by a score s, t being the N-th largest of its others: `Σ max(0, s − t) = Σ (|s − t| + s − t) / 2`.
    """
    others = torch.cat((scores[..., :place], scores[..., place + 1 :]), -1)
    threshold = others.kthvalue(others.shape[-1] - keep + 1, -1).values
    offered = scores[..., place]
    apart = torch.cdist(threshold.T[None].contiguous(), offered.T[None].contiguous(), p=1.0)[0]
    return (apart.double() + offered.sum(0, dtype=torch.float64) - threshold.sum(0, dtype=torch.float64)[:, None]) / 2
