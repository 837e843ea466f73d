"""N:M pruning by scores, of inputs in a better order: what these methods share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from featherweight.errors import FeatherweightError
from featherweight.masks.permutation import best_order
from featherweight.methods.base import Problem
from featherweight.methods.scored import Scored
from featherweight.models.axis import PERMUTATION
from featherweight.models.transforms import Permutation


@dataclass(frozen=True)
class Permuted(Scored):
    """A score that needs nothing but the statistics, so that inputs can be put in order before weights are dropped.

    Attributes:
        permute: find an order of the inputs, one for all linears that read them, in which N:M keeps more of the score. It is
            folded into what makes them, or stored beside each weight as indices.

    Raises:
        FeatherweightError: `permute` with another pattern than N:M; what `Scored` refuses.
    """

    map_kind: ClassVar[str] = PERMUTATION

    permute: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.permute and not self._pattern().of:
            raise FeatherweightError(
                "only N:M depends on the order of inputs", found=f"permute with pattern {self.pattern}",
                expected='a pattern such as "2:4"', fix='use pattern: "2:4", or leave permute out',
            )  # fmt: skip

    @property
    def prepares(self) -> bool:
        """Where inputs are permuted."""
        return self.permute

    def prepare(self, problem: Problem) -> Permutation:
        """The order found on the scores of all linears; within attention heads, alike for shared rows, where these are given."""
        pattern = self._pattern()
        scores = torch.cat([self.score(name, current.dequantize(), problem) for name, current in problem.current.items()])
        indices = torch.arange(scores.shape[1], device=scores.device)
        for columns in (each.to(scores.device) for each in _movable(problem, len(indices))):
            if _holds_groups(columns, pattern.of):
                order = best_order(scores[:, columns].flatten(0, 1), pattern)
                indices[columns] = columns[:, order]
        return Permutation(indices)


def _holds_groups(columns: torch.Tensor, of: int) -> bool:
    """Whether heads consist of whole groups of M."""
    side_by_side = bool((columns.diff(dim=1) == 1).all())
    return side_by_side and columns.shape[1] % of == 0 and not bool((columns[:, 0] % of).any())


def _movable(problem: Problem, size: int) -> Iterator[torch.Tensor]:
    """Columns that may change places, `[alike, columns]`: rows of it are heads that must be permuted alike."""
    classes = torch.arange(size) if problem.shared is None else torch.tensor(problem.shared)
    groups = torch.zeros(size, dtype=torch.long) if problem.groups is None else torch.tensor(problem.groups)
    heads: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for group in groups.unique():
        columns = (groups == group).nonzero()[:, 0]
        ordered, order = classes[columns].sort()
        heads.setdefault(tuple(ordered.tolist()), []).append(columns[order])
    for key, alike in heads.items():
        if len(set(key)) == len(key):
            yield torch.stack(alike)
