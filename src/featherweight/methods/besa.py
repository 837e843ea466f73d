"""BESA: how much each row or linear of a block loses is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from featherweight.masks.scores import ria, wanda
from featherweight.methods.base import Steps
from featherweight.methods.clipping import Clip
from featherweight.methods.learned import Learned


@dataclass(frozen=True)
class BESA(Learned):
    """Blockwise, differentiable sparsity allocation over any score; see `Learned` for objective and settings.

    Attributes:
        metric: "wanda", "ria" or "magnitude": which weights of a row go first.
        bits: of the codes on which what is kept is rounded in the same step, their ranges learned with the ratios as in `clip`
            (the joint form of the paper); None leaves values as they are.
        group_size, symmetric, scale_dtype: of those codes.

    Raises:
        FeatherweightError: what `Learned` and `clip` refuse.
    """

    name: ClassVar[str] = "besa"
    summary: ClassVar[str] = "learn how much each row or linear of a block loses; the least scores go"
    source: ClassVar[str] = "Xu et al. 2024, arXiv:2402.16880"
    points: ClassVar[Mapping[str, Steps]] = {"50-4bit": ({"ratio": 0.5}, {"method": "gptq", "bits": 4, "group_size": 128})}

    metric: Literal["wanda", "ria", "magnitude"] = "wanda"
    bits: int | None = None
    group_size: int | None = 128
    symmetric: bool = False
    scale_dtype: Literal["float16", "bfloat16"] = "float16"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self.rounding()

    def rounding(self) -> Clip | None:
        """On learned ranges, if `bits` are given."""
        if self.bits is None:
            return None
        return Clip(bits=self.bits, group_size=self.group_size, symmetric=self.symmetric, scale_dtype=self.scale_dtype)

    def score(self, weight: Tensor, values: Tensor, rms: Tensor) -> Tensor:
        """The metric of the current values."""
        if self.metric == "magnitude":
            return values.abs()
        return wanda(values, rms) if self.metric == "wanda" else ria(values, rms)
