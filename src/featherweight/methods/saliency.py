"""Optimal Brain Surgeon's saliency as a score: what dropping one weight costs once the others make up for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.masks.scores import saliency
from featherweight.methods.base import Problem, Steps
from featherweight.methods.permuted import Permuted
from featherweight.solvers.damping import factorise


@dataclass(frozen=True)
class Saliency(Permuted):
    """Drop the weights of smallest `w_ij² / [H⁻¹]_jj`, all at once and with no update.

    SparseGPT uses this score inside its walk, where every drop changes the weights that are still to be judged; alone it
    shows what the score is worth without that.

    Attributes:
        damping: λ ≥ 0, added to the diagonal relative to its mean.

    Raises:
        FeatherweightError: negative damping; what `Permuted` refuses.
    """

    name: ClassVar[str] = "saliency"
    summary: ClassVar[str] = "drop by Optimal Brain Surgeon's cost of each weight, without its update"
    source: ClassVar[str] = "Hassibi and Stork 1993; the score of SparseGPT, arXiv:2301.00774"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})
    points: ClassVar[Mapping[str, Steps]] = {"50-4bit": ({"ratio": 0.5}, {"method": "gptq", "bits": 4, "group_size": 128})}

    damping: float = 0.01

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not self.damping >= 0:
            raise FeatherweightError("damping is negative", found=self.damping, expected="0 or more", fix="use damping: 0.01")

    def score(self, name: str, values: Tensor, problem: Problem) -> Tensor:
        """`w_ij² / [H⁻¹]_jj`; 0 at inputs that were never active."""
        hessian, count = problem.hessian(self.name, "magnitude")
        factor = factorise(hessian, self.damping, name=name, samples=count)
        return saliency(values, factor.inverse_diagonal()).masked_fill(factor.dead, 0.0)
