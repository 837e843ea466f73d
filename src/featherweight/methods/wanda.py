"""Wanda: the weights that add least to their outputs go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.masks.scores import cumulative_share, wanda
from featherweight.methods.base import Problem, Steps
from featherweight.methods.permuted import Permuted


@dataclass(frozen=True)
class Wanda(Permuted):
    """Drop the weights of smallest `|w_ij| √E[x_j²]`, in every output as many.

    Attributes:
        variant: let rows keep different numbers: of each goes what makes up less than the same share of its total score
            (`use_variant` of the authors' code, with an exact count in the place of its tolerance); pattern "layer" then.

    Raises:
        FeatherweightError: the variant with another pattern; what `Permuted` refuses.
    """

    name: ClassVar[str] = "wanda"
    summary: ClassVar[str] = "drop the weights that add least to their outputs: size times activation"
    source: ClassVar[str] = "Sun et al. 2023, arXiv:2306.11695"
    needs: ClassVar[frozenset[str]] = frozenset({"sum_sq"})
    points: ClassVar[Mapping[str, Steps]] = {"50-4bit": ({"ratio": 0.5}, {"method": "gptq", "bits": 4, "group_size": 128})}

    pattern: str = "row"
    variant: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.variant and self.pattern != "layer":
            raise FeatherweightError(
                "wanda's variant decides over a whole linear how many weights a row loses",
                found=f"pattern {self.pattern}",
                expected="pattern layer",
                fix="use pattern: layer, or leave variant out",
            )

    def score(self, name: str, values: Tensor, problem: Problem) -> Tensor:
        """`|w_ij| √E[x_j²]`; of the variant its share of the row."""
        scores = wanda(values, problem.input_rms(self.name, "magnitude"))
        return cumulative_share(scores) if self.variant else scores
