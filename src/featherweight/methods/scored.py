"""Pruning to a pattern, and by a score of every weight at once: what these methods share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.masks.patterns import Pattern, smallest
from featherweight.methods.base import Compressed, Method, Problem
from featherweight.methods.block_run import BlockRun
from featherweight.packed.masked import Masked
from featherweight.solvers.allocation import move_to_whole_bytes


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
class Share:
    """How many weights a linear loses where all of a block compete, and `facts` for the ledger."""

    count: int
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Scored(Patterned):
    """Drop the weights of smallest score, of dense or rounded values.

    Beside the patterns of `Patterned` there is "block": all weights of a block's linears compete, and the block loses exactly what
    its linears would lose one by one. Scores are compared as they are, whatever their scale in each linear.

    To let the kept weights make up for what went, add a step after it: `sparsegpt` with `mask_from: current` (the walk's
    update), with `refit: 20` besides (least squares), or `gptq` (the update while it rounds). Each holds the mask.
    """

    @property
    def budget(self) -> Literal["linear", "block"]:
        """Of the block where all of it competes."""
        return "block" if self.pattern == "block" else "linear"

    @property
    def tunes(self) -> bool:
        """Where all of a block competes; nothing runs through it for that."""
        return self.pattern == "block"

    @abstractmethod
    def score(self, name: str, values: Tensor, problem: Problem) -> Tensor:
        """Scores `[out, in]` of the current `values [out, in]` of the linear `name`."""

    def tune(self, run: BlockRun) -> Mapping[str, Any]:
        """What each linear loses, a `Share`, if the smallest scores of all go."""
        scores, budgets = [], []
        for name, current in run.current.items():
            weight = run.weights[name]
            alone = Problem({name: weight}, {name: current}, run.statistics.get(name), weight.dtype, run.seed)
            scores.append(self.score(name, current.dequantize().to(weight.device), alone).flatten())
            budgets.append(weight.numel() - self._pattern().kept(current.shape))
        sizes = [len(each) for each in scores]
        dropped = smallest(torch.cat(scores)[None], sum(budgets))[0].split(sizes)
        counts = [each.sum(dtype=torch.int64)[None].cpu() for each in dropped]
        move_to_whole_bytes(counts, sizes, budgets)
        shares = zip(run.current, counts, sizes, strict=True)
        return {name: Share(int(count), {"ratio": int(count) / size}) for name, count, size in shares}

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Drop by the current values of every linear.

        Raises:
            FeatherweightError: N:M does not divide a linear's inputs; no statistics where the score needs some.
        """
        compressed = {}
        for name, current in problem.current.items():
            self._pattern().check(current.shape[1], name)
            found, described = problem.settings.get(name), self.storage(current.description(), problem.dtype)
            scores = self.score(name, current.dequantize(), problem)
            if isinstance(found, Share):
                dropped = smallest(scores.reshape(1, -1), found.count).view_as(scores)
                described = Masked.describe(current.description(), scores.numel() - found.count)
            else:
                dropped = self._pattern().dropped(scores)
            compressed[name] = Compressed(Masked.of(current, ~dropped, described), {} if found is None else found.facts)
        return compressed

    def refuse_block(self, because: str) -> None:
        """Refuse the pattern "block".

        Raises:
            FeatherweightError: it is set.
        """
        if self.pattern == "block":
            raise FeatherweightError(
                f"{self.name} cannot let a block's linears compete: {because}", found="pattern block",
                expected='layer, row, or "N:M"', fix="use pattern: layer, or wanda",
            )  # fmt: skip

    def _pattern(self) -> Pattern:
        """Of one linear, an even share where the block competes."""
        return Pattern.parse("layer" if self.pattern == "block" else self.pattern, self.ratio)
