"""RIA: relative importance and activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.masks.scores import ria
from featherweight.methods.base import Problem, Steps
from featherweight.methods.permuted import Permuted


@dataclass(frozen=True)
class RIA(Permuted):
    """Drop by a weight's share of its input and of its output, times the activation: `(|w_ij|/Σ_i|w_ij| + |w_ij|/Σ_j|w_ij|) (√E[x_j²])^a`.

    An input or output whose weights are all 0 scores 0 (the authors' code divides by 0 there).

    Attributes:
        power: a ≥ 0, of the activation; 0 disregards it.

    Raises:
        FeatherweightError: a negative power; what `Permuted` refuses.
    """

    name: ClassVar[str] = "ria"
    summary: ClassVar[str] = "drop by a weight's share of its input and output, times the activation"
    source: ClassVar[str] = "Zhang et al. 2024, Plug-and-Play: an efficient post-training pruning method for LLMs, eq. 4"
    needs: ClassVar[frozenset[str]] = frozenset({"sum_sq"})
    points: ClassVar[Mapping[str, Steps]] = {"50-4bit": ({"ratio": 0.5}, {"method": "gptq", "bits": 4, "group_size": 128})}

    power: float = 0.5

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not self.power >= 0:
            raise FeatherweightError("power is negative", found=self.power, expected="0 or more", fix="use power: 0.5")

    def score(self, name: str, values: Tensor, problem: Problem) -> Tensor:
        """See the class."""
        return ria(values, problem.input_rms(self.name, "magnitude"), self.power)
