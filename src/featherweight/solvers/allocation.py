"""How many weights each row loses, learned under a budget: soft masks by rank, and counts that meet the budget exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Candidate ratios 1.00, 0.99, …, 0.00, as BESA has them.
CANDIDATES = 101

#: Kept values of a linear move by multiples of this between linears, so that codes of 2 to 8 bits fill whole bytes.
PACKED_TOGETHER = 8

#: Added before rounding down, so that float steps of 0.01 lose no weight.
_SAFE = 1e-6


@dataclass(frozen=True, eq=False)
class SoftMask:
    """Keep-probabilities of a linear's weights as a differentiable function of candidate probabilities.

    With `β [rows or 1, D]` over ratios `p_d`, a weight of rank r among the n of its row is dropped with probability
    `Σ_d β_d · 1[r < ⌊n p_d⌋]`: a cumulative sum of β, gathered by rank. Source: BESA (Xu et al. 2024, arXiv:2402.16880,
    eq. 4 to 6).

    Attributes:
        rank: of every weight in its row by score, `[out, in]` int32, 0 goes first.
        reached: how many candidates, the largest first, drop a weight of that rank, `[out, in]` int16.
    """

    rank: Tensor
    reached: Tensor

    @classmethod
    def of(cls, scores: Tensor) -> SoftMask:
        """From `scores [out, in]`; of equal ones the first go first."""
        rank, inputs = ranks(scores), scores.shape[1]
        counts = (inputs * candidates(scores.device) + _SAFE).floor()
        reached = (counts[:, None] > torch.arange(inputs, device=scores.device)).sum(0).to(torch.int16)
        return cls(rank, reached[rank.long()])

    def keep(self, probabilities: Tensor) -> Tensor:
        """`[out, in]`: exactly 0 or 1 going forward, the gradient of the keep-probability going back (straight through).

        Args:
            probabilities: `β [out or 1, D]`, rows sum to 1.
        """
        table = torch.nn.functional.pad(probabilities.cumsum(1), (1, 0))
        index = self.reached.long()
        soft = 1 - (table[0][index] if len(table) == 1 else table.gather(1, index))
        return self.hard(probabilities @ candidates(table.device)).to(soft.dtype) + (soft - soft.detach())

    def hard(self, ratios: Tensor) -> Tensor:
        """True where a weight stays, `[out, in]`, if each row loses `⌊ratio · in⌋`; `ratios [out or 1]`."""
        counts = (ratios.detach() * self.rank.shape[1] + _SAFE).floor()
        return self.rank >= counts[:, None]


def ranks(scores: Tensor) -> Tensor:
    """Place of every score in its row, the smallest 0, `[out, in]` int32; of equal ones the first come first."""
    order = scores.argsort(dim=1, stable=True)
    places = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device).expand_as(order)
    return torch.empty_like(order, dtype=torch.int32).scatter_(1, order, places)


def candidates(device: torch.device) -> Tensor:
    """Ratios from 1 down to 0, `[CANDIDATES]`."""
    return torch.linspace(1, 0, CANDIDATES, device=device)


def tilted_logits(ratio: float, rows: int, device: torch.device) -> Tensor:
    """Logits `[rows, CANDIDATES]`, linear in the candidates, whose softmax has the mean `ratio`; zeros at one half."""
    levels = candidates(torch.device("cpu")).double()
    low, high = -1e3, 1e3
    for _ in range(100):
        tilt = (low + high) / 2
        low, high = (tilt, high) if float(torch.softmax(tilt * levels, 0) @ levels) < ratio else (low, tilt)
    return (tilt * levels).float().to(device).expand(rows, -1).clone()


def project_counts(ratios: Sequence[Tensor], inputs: Sequence[int], budgets: Sequence[int]) -> list[Tensor]:
    """Whole numbers of dropped weights near the learned ratios whose sum is the budget's, exactly.

    All ratios are shifted by one number, found by bisection; what rounding leaves over goes to the rows nearest to one
    weight more. Between linears whole bytes of any packed code move (`PACKED_TOGETHER`).

    Args:
        ratios: of each linear, one a row `[out]`.
        inputs: of each linear.
        budgets: weights that each linear would lose alone; their sum is what all lose together.

    Returns:
        Dropped weights by row, `[out]` int64, for each linear.
    """
    wanted = torch.cat([each.double() * width for each, width in zip(ratios, inputs, strict=True)])
    widths = torch.cat(
        [torch.full((len(each),), width, dtype=torch.float64) for each, width in zip(ratios, inputs, strict=True)]
    )
    wanted, total = wanted.cpu(), sum(budgets)

    def shifted(shift: float) -> Tensor:
        return torch.minimum((wanted + shift * widths).clamp(min=0), widths)

    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if int(shifted(middle).floor().sum()) <= total else (low, middle)
    exact = shifted(low)
    counts = exact.floor()
    rest = torch.where(counts < widths, exact - counts, -1.0)
    counts[rest.argsort(descending=True, stable=True)[: total - int(counts.sum())]] += 1
    parts = list(counts.long().split([len(each) for each in ratios]))
    move_to_whole_bytes(parts, list(inputs), list(budgets))
    return parts


def move_to_whole_bytes(counts: list[Tensor], inputs: list[int], budgets: list[int]) -> None:
    """Pass what exceeds a multiple of `PACKED_TOGETHER` over a linear's own budget on to the next linear, in place.

    Where the next one has no room for it, what is missing to the next multiple comes from there instead.
    """
    for index, (part, budget) in enumerate(zip(counts[:-1], budgets, strict=False)):
        excess = (int(part.sum()) - budget) % PACKED_TOGETHER
        giver, taker, width = part, counts[index + 1], inputs[index + 1]
        if excess and int((width - taker).sum()) < excess:
            giver, taker, width, excess = taker, giver, inputs[index], PACKED_TOGETHER - excess
        for _ in range(excess):
            giver[giver.argmax()] -= 1
            taker[(width - taker).argmax()] += 1
