"""Weights that somebody else quantized, as the first step of a chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from featherweight.errors import FeatherweightError
from featherweight.export.foreign import Foreign
from featherweight.methods.base import Compressed, Method, Problem


@dataclass(frozen=True)
class Imported(Method):
    """The codes and scales of a GPTQ, AWQ or compressed-tensors checkpoint, bit for bit.

    The model of the run is the dense original, so that a step behind it (`low-rank`) can correct what was lost; `fw import` runs
    it on the checkpoint's own values.

    Attributes:
        checkpoint: folder of the quantized checkpoint.
    """

    name: ClassVar[str] = "imported"
    summary: ClassVar[str] = "codes and scales of a GPTQ, AWQ or compressed-tensors checkpoint; a start for other steps"
    source: ClassVar[str] = "the layouts of AutoGPTQ, AutoAWQ and compressed-tensors"
    points: ClassVar[Mapping[str, tuple[Mapping[str, Any], ...]]] = {}  # none without a checkpoint

    checkpoint: str = ""

    @cached_property
    def foreign(self) -> Foreign:
        """The checkpoint.

        Raises:
            FeatherweightError: there is none there, or one that cannot be read.
        """
        if not self.checkpoint:
            raise FeatherweightError("no checkpoint to import", found="no setting `checkpoint`", expected="the folder of one")
        return Foreign.open(Path(self.checkpoint))

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """As the checkpoint stores it."""
        if current["kind"] != "dense":
            raise FeatherweightError(
                "`imported` is the first step", found=f"{current['kind']} before it", expected="dense weights"
            )
        rows, inputs = current["shape"]
        return self.foreign.describe((rows, inputs))

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        """Read every linear.

        Raises:
            FeatherweightError: a linear that the checkpoint does not quantize, or one of another shape.
        """
        compressed = {}
        for name, weight in problem.weights.items():
            packed = self.foreign.read(name)
            if packed.shape != tuple(weight.shape):
                raise FeatherweightError(f"{name} has another shape", found=packed.shape, expected=tuple(weight.shape))
            compressed[name] = Compressed(packed.to(weight.device), {"solver": f"imported {self.foreign.scheme.method}"})
        return compressed
