"""Integer codes times one row, by the CUDA kernel that takes norms and sums along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featherweight.decoding.products import Norm
from featherweight.kernels.cuda.around import Around, Scaled
from featherweight.kernels.cuda.choices import choose_shape
from featherweight.kernels.cuda.driver import processors
from featherweight.kernels.cuda.integer import DeviceCodes
from featherweight.kernels.cuda.layout import ROWS
from featherweight.kernels.cuda.multiply import Shape, blocks_of, multiply
from featherweight.packed.stacking import join_rows

#: Of a block that multiplies one half of its outputs by the other.
WARPS = 8


@dataclass(frozen=True)
class CodedRow:
    """As `products.Product`; half of each norm is done where its row is written, the other half where it is read."""

    weight: DeviceCodes
    bias: Tensor | None
    shape: Shape
    scales: bool
    gates: bool
    norms: bool = False
    adds: bool = True

    @classmethod
    def of(cls, weight: DeviceCodes, bias: Tensor | None, dtype: torch.dtype) -> CodedRow:
        """With the kernel's own choice of how the work is cut; fp16 has no room for rows before they are normed."""
        shape = choose_shape(weight, 1, processors(weight.codes.device))
        return cls(weight, bias, shape, dtype == torch.bfloat16, weight.bits < 8 and weight.rows % (2 * ROWS) == 0)

    @property
    def gated_shape(self) -> Shape:
        """Two tiles to a warp, one of either half; where one has twice as many inputs, two have half as many."""
        warps = -(-self.weight.inputs // 256)
        return Shape(256, 2, 1, min(WARPS, warps), 16 // WARPS, 1, 16 // WARPS * processors(self.weight.codes.device))

    @property
    def outputs(self) -> int:
        """Out features."""
        return self.weight.rows

    def __call__(self, x: Tensor | Scaled, *, norm: Norm | None = None, activation: str | None = None) -> Tensor:
        """As `Product`."""
        row, scaled = (x.x, x) if isinstance(x, Scaled) else (x, None)
        around = None if scaled is None and activation is None else Around(scaled, activation)
        shape, outputs = (self.shape, self.outputs) if activation is None else (self.gated_shape, self.outputs // 2)
        return multiply(row, self.weight, self.bias, row.new_empty(1, outputs), shape, around=around)

    def add(self, x: Tensor, residual: Tensor, following: Norm | None) -> Scaled | None:
        """As `Product`."""
        scaled = None
        if following is not None:
            parts = torch.empty(blocks_of(self.outputs, self.shape), dtype=torch.float32, device=x.device)
            scaled = Scaled(torch.empty_like(residual), parts, following.eps)
        around = Around(None, None, residual, None if following is None else following.gain, scaled)
        multiply(x, self.weight, self.bias, residual, self.shape, around=around)
        return scaled


def join(weights: Sequence[DeviceCodes]) -> tuple[DeviceCodes, list[DeviceCodes]] | None:
    """One weight with the rows of all, and each of these as its part; None where they are coded differently, or not in whole tiles."""
    first = weights[0]
    alike = {(each.inputs, each.bits, each.group, each.scales.dtype, each.zeros is None) for each in weights}
    if len(alike) > 1 or any(each.rows % ROWS for each in weights):
        return None
    zeros = [each.zeros for each in weights if each.zeros is not None]
    whole = replace(
        first, rows=sum(each.rows for each in weights), codes=join_rows([each.codes for each in weights]),
        scales=join_rows([each.scales for each in weights]), zeros=join_rows(zeros) if zeros else None,
    )  # fmt: skip
    parts, begin = [], 0
    for each in weights:
        tiles = slice(begin, begin + each.rows // ROWS)
        points = None if whole.zeros is None else whole.zeros[tiles]
        parts.append(replace(each, codes=whole.codes[tiles], scales=whole.scales[tiles], zeros=points))
        begin = tiles.stop
    return whole, parts
