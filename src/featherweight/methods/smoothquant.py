"""SmoothQuant: outliers among activations are moved into the weights, so that both can be rounded to 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from featherweight.errors import FeatherweightError
from featherweight.methods.base import Compressed, Method, Problem, Steps
from featherweight.models.transforms import Diagonal

#: No factor is made of smaller maxima than this.
FLOOR = 1e-5


@dataclass(frozen=True)
class SmoothQuant(Method):
    """Scale input `j` by `1/s_j` and its weights by `s_j = max|x_j|^α / max_i|w_ij|^(1−α)`, over all linears of the input.

    A step before those that round weights and `round-input`. Against the authors' code: every input is scaled, also those
    that no norm makes; inputs that were never active, or have no weights, keep the factor 1 (there 10⁻⁵ takes the place of
    their maxima). After a step that dropped weights it is the merge of JSQ, and zeros stay.

    Attributes:
        alpha: how much of the difficulty moves from activations to weights, 0 to 1.

    Raises:
        FeatherweightError: alpha outside 0 to 1.
    """

    name: ClassVar[str] = "smoothquant"
    summary: ClassVar[str] = "move outliers of activations into the weights; before rtn and round-input (W8A8)"
    source: ClassVar[str] = "Xiao et al. 2022, arXiv:2211.10438, equation 4"
    needs: ClassVar[frozenset[str]] = frozenset({"abs_max"})
    points: ClassVar[Mapping[str, Steps]] = {
        "w8a8": (
            {},
            {"method": "rtn", "bits": 8, "group_size": None, "symmetric": True},
            {"method": "round-input"},
        )
    }

    alpha: float = 0.5

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.alpha <= 1:
            raise FeatherweightError(
                "smoothquant cannot move this much", found=self.alpha, expected="0 to 1", fix="use alpha: 0.5"
            )

    @property
    def prepares(self) -> bool:
        """Always."""
        return True

    def prepare(self, problem: Problem) -> Diagonal:
        """The factors `1/s`.

        Raises:
            FeatherweightError: no statistics; weights or activations that are not finite.
        """
        activations = problem.calibrated("largest activations", self.name, "rtn").abs_max
        assert activations is not None  # it is in `needs`
        weights = torch.stack([each.dequantize().abs().amax(0) for each in problem.current.values()]).amax(0)
        activations = activations.to(weights.device, torch.float32)
        scale = activations.clamp(min=FLOOR).pow(self.alpha) / weights.clamp(min=FLOOR).pow(1 - self.alpha)
        scale = torch.where((activations > 0) & (weights > 0), scale, 1.0)
        if not bool(torch.isfinite(activations + weights).all()):
            raise FeatherweightError(
                f"smoothquant cannot scale the input of {' and '.join(problem.current)}",
                found="weights or activations that are not finite", expected="finite ones",
                fix="check the checkpoint and the calibration tokens",
            )  # fmt: skip
        return Diagonal(1 / scale)

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """What `current` is."""
        return dict(current)

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """The weights as they are, scaled already."""
        return {name: Compressed(current) for name, current in problem.current.items()}
