"""Pruning to a pattern, and by a score of every weight at once: what these methods share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.masks.patterns import Pattern
from featherweight.methods.base import Compressed, Method, Problem
from featherweight.packed.masked import Masked


@dataclass(frozen=True)
class Patterned(Method):
    """A method whose storage is what is there beneath a mask of a fixed count.

    Attributes:
        ratio: fraction dropped; None for 0.5, or for what N:M says.
        pattern: "layer" (all weights of a linear compete), "row" (those of one output), or "N:M" (N of every M inputs are
            kept).

    Raises:
        FeatherweightError: an unknown pattern, a ratio outside [0, 1) or one that contradicts N:M.
    """

    ratio: float | None = None
    pattern: str = "layer"

    def __post_init__(self) -> None:
        """Check the settings."""
        self._pattern()

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The values of `current` beneath a mask.

        Raises:
            FeatherweightError: `current` is masked already or cannot hold a mask, or N:M does not divide the inputs.
        """
        if current["kind"] == "masked":
            raise FeatherweightError(
                f"{self.name} drops from weights that are all there",
                found="a step before dropped some",
                expected="one step that prunes",
                fix="remove one of them",
            )
        rows, inputs = current["shape"]
        pattern = self._pattern()
        pattern.check(inputs)
        return Masked.describe(current, pattern.kept((rows, inputs)), "unstructured" if not pattern.per_row else pattern.name)

    def _pattern(self) -> Pattern:
        return Pattern.parse(self.pattern, self.ratio)


@dataclass(frozen=True)
class Scored(Patterned):
    """Drop the weights of smallest score, of dense or rounded values.

    To let the kept weights make up for what went, add a step after it: `sparsegpt` with `mask_from: current` (the walk's
    update), with `refit: 20` besides (least squares), or `gptq` (the update while it rounds). Each holds the mask.
    """

    @abstractmethod
    def score(self, name: str, values: Tensor, problem: Problem) -> Tensor:
        """Scores `[out, in]` of the current `values [out, in]` of the linear `name`."""

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Drop by the current values of every linear.

        Raises:
            FeatherweightError: N:M does not divide a linear's inputs; no statistics where the score needs some.
        """
        compressed = {}
        for name, current in problem.current.items():
            self._pattern().check(current.shape[1], name)
            dropped = self._pattern().dropped(self.score(name, current.dequantize(), problem))
            facts = problem.settings[name].facts if name in problem.settings else {}
            described = self.storage(current.description(), problem.dtype)
            compressed[name] = Compressed(Masked.of(current, ~dropped, described), facts)
        return compressed
