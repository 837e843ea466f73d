"""One rounded matrix for several weights, `Wᵢ ≈ Q + Lᵢ Rᵢ`: an experiment; no model is stored so (docs/low-rank.md says why)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.methods.factors import Format
from featherweight.packed.base import PackedWeight
from featherweight.packed.low_rank import LowRank
from featherweight.solvers.low_rank import Metric, best_factors

#: Of the codes of `Q`, and of the products.
GROUP_SIZE, FACTOR_BITS, ROUNDS = 64, 16, 4


@dataclass(frozen=True)
class Shared:
    """What several weights `[out, in]` of one shape were made of.

    Attributes:
        common: `Q`.
        products: `Lᵢ Rᵢ`, one for each weight.
        paths: error of each weight by round, as `measure` says it.
    """

    common: PackedWeight
    products: tuple[LowRank, ...]
    paths: tuple[tuple[float, ...], ...]

    @property
    def bits(self) -> float:
        """Stored bits of a weight: one `Q`, all products."""
        rows, columns = self.common.shape
        stored = self.common.nbytes + sum(product.nbytes for product in self.products)
        return 8 * stored / (len(self.products) * rows * columns)


def shared_format(bits: int) -> Format:
    """How `Q` is rounded."""
    return Format(bits, "uniform", GROUP_SIZE)


def share(
    weights: Sequence[Tensor], bits: int, rank: int, measure: Callable[[int, Tensor], float], generator: torch.Generator
) -> Shared:
    """Rounded mean of what the products leave, and the best product of each weight for what that leaves, in turn; the best round.

    Args:
        weights: `[out, in]` float32 each, of one shape.
        bits: of the codes of `Q`; uniform, in groups of 64.
        rank: of each product, in float16.
        measure: error of weight number `i` by an approximation `[out, in]`.
        generator: of the search for directions.

    Raises:
        FeatherweightError: bits that no grid has, a rank that a product cannot have.

    Source: `SharedQWeightDecomposition` of LPLR-Q's code; no data is looked at.
    """
    rounding, factors = shared_format(bits), Format(FACTOR_BITS, "uniform", None)
    left = [torch.zeros_like(weight) for weight in weights]
    tried = []
    for _ in range(ROUNDS):
        mean = sum(weight - product for weight, product in zip(weights, left, strict=True)) / len(weights)
        common = rounding.pack(torch.as_tensor(mean), None)
        values, products = common.dequantize(), []
        for weight in weights:
            found = best_factors(weight - values, Metric(), rank, generator)
            products.append(LowRank(factors.pack(found.left, None), factors.pack(found.right, None)))
        left = [product.dequantize() for product in products]
        tried.append((common, tuple(products), [measure(index, values + each) for index, each in enumerate(left)]))
    common, chosen, _ = min(tried, key=lambda each: sum(each[2]))
    return Shared(common, chosen, tuple(zip(*(errors for _, _, errors in tried), strict=True)))
