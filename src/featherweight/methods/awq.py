"""AWQ: inputs that matter are made smaller and their weights larger, so that rounding hurts them less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Compressed, Problem, Steps
from featherweight.methods.integers import IntegerMethod
from featherweight.models.transforms import Diagonal
from featherweight.packed.base import PackedWeight
from featherweight.packed.dense import Dense
from featherweight.packed.masked import Masked
from featherweight.solvers.nearest import round_to_nearest

#: Exponents tried, `0, 1/20 … 19/20`; and how far ranges shrink when they are clipped, `1, 19/20 … 11/20`: as the authors.
STEPS, SHRINKS = 20, 10


@dataclass(frozen=True)
class AWQ(IntegerMethod):
    """Scale input `j` by `1/s_j` and its weights by `s_j = a_j^α / √(max a^α · min a^α)`, before a step that rounds.

    α is searched on a grid of 20 for the smallest `Σ tr((W − Ŵ) H (W − Ŵ)ᵀ)` over all linears of the input, where
    `Ŵ_j = Q(W s)_j / s_j` and Q rounds to nearest as the settings say: those of the step that follows. α = 0, no scaling, is
    the first candidate, so the error of rounding to nearest never rises. Against the authors' code: `a_j = √E[x_j²]` in the
    place of `E|x_j|`; the error is that of the linears' outputs in closed form over all tokens, not that of the attention's
    or MLP's outputs on one batch; every input is scaled, beside its weights where nothing before it takes the factors up.
    Inputs that were never active keep their factor 1.

    Settings: those of `IntegerMethod`, and

    Attributes:
        clip: afterwards shrink the range of each group, by up to 45 %, to what minimises `e H_gg eᵀ` of its rounding error `e`.
            The authors do so on 512 tokens, and not for queries and keys.

    Raises:
        FeatherweightError: a setting outside these.
    """

    name: ClassVar[str] = "awq"
    summary: ClassVar[str] = "scale inputs by a power of their size so that rounding spares what matters; before rtn or gptq"
    source: ClassVar[str] = "Lin et al. 2023, arXiv:2306.00978, equations 4 and 5"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    points: ClassVar[Mapping[str, Steps]] = {
        label: (settings, {"method": "rtn", **settings})
        for label, settings in {
            "3bit": {"bits": 3, "group_size": 128},
            "4bit": {"bits": 4, "group_size": 128},
        }.items()
    }

    clip: bool = False

    @property
    def prepares(self) -> bool:
        """Always."""
        return True

    def prepare(self, problem: Problem) -> Diagonal | None:
        """The factors `1/s` of the best α; None for α = 0.

        Raises:
            FeatherweightError: no Hessian; weights or statistics that are not finite.
        """
        hessian, _ = problem.hessian(self.name, "rtn")
        size = hessian.diagonal().clamp(min=0).sqrt()
        weights = [current.dequantize() for current in problem.current.values()]
        best, least = None, self._error(weights, torch.ones_like(size), hessian)
        if not least < torch.inf:
            raise FeatherweightError(
                f"awq cannot scale the input of {' and '.join(problem.current)}", found="weights or statistics that are not finite",
                expected="finite weights and activations", fix="check the checkpoint and the calibration tokens",
            )  # fmt: skip
        for step in range(1, STEPS):
            tried = scale_by_size(size, step / STEPS)
            if problem.shared is not None:
                tried = Diagonal(tried).alike(problem.shared).values.to(tried.dtype)
            error = self._error(weights, tried, hessian)
            if error < least:
                best, least = tried, error
        return None if best is None else Diagonal(1 / best)

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """What `current` is."""
        self.check_groups((current["shape"][0], current["shape"][1]))
        return dict(current)

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """The weights as they are, scaled already; with `clip` those beyond their group's range are moved to its end.

        Raises:
            FeatherweightError: `clip` without a Hessian.
        """
        if not self.clip:
            return {name: Compressed(current) for name, current in problem.current.items()}
        hessian, _ = problem.hessian(self.name, "rtn")
        return {name: self._clipped(current, hessian, problem.dtype) for name, current in problem.current.items()}

    def _error(self, weights: list[Tensor], scale: Tensor, hessian: Tensor) -> float:
        """The objective of one scaling."""
        total = 0.0
        for weight in weights:
            scaled = weight * scale
            error = round_to_nearest(scaled, self.grid_over(scaled), self.group_size).decoded.div_(scale).sub_(weight)
            total += float(((error @ hessian) * error).sum(dtype=torch.float64))
        return total

    def _clipped(self, current: PackedWeight, hessian: Tensor, dtype: torch.dtype) -> Compressed:
        weight = current.dequantize()
        grid, clipped = self.grid_over(weight), torch.empty_like(weight)
        size = self.group_size or weight.shape[1]
        for start in range(0, weight.shape[1], size):
            group = slice(start, start + size)
            values, inside = weight[:, group], hessian[group, group]
            largest = values.abs().amax(1, keepdim=True)
            least, best = torch.full_like(largest, torch.inf), largest
            for step in range(SHRINKS):
                limit = largest * (1 - step / STEPS)
                tried = values.clamp(-limit, limit)
                error = round_to_nearest(tried, grid, None).decoded.sub_(values)
                cost = ((error @ inside) * error).sum(1, keepdim=True)
                least, best = torch.minimum(cost, least), torch.where(cost < least, limit, best)
            clipped[:, group] = values.clamp(-best, best)
        packed: PackedWeight = Dense(clipped.to(dtype))
        if current.support is not None:
            described = Masked.describe_like(current.description(), packed.description())
            packed = Masked.of(packed, current.support, described)
        return Compressed(packed, {"clipped": float((clipped != weight).float().mean())})


def scale_by_size(size: Tensor, power: float) -> Tensor:
    """`s = size^power / √(max · min)` over the sizes `[in]` that are not 0; 1 for the others."""
    active = size > 0
    raised = torch.where(active, size, 1.0).pow(power).clamp(min=1e-4)
    ends = raised[active]
    return torch.where(active, raised / (ends.max() * ends.min()).sqrt(), 1.0) if bool(active.any()) else torch.ones_like(size)
