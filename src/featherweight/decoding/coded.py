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


@dataclass(frozen=True)
class CodedRow:
    """As `products.Product`; half of each norm is done where its row is written, the other half where it is read."""

    weight: DeviceCodes
    bias: Tensor | None
    shape: Shape
    scales: bool
    norms: bool = False
    adds: bool = True

    @classmethod
    def of(cls, weight: DeviceCodes, bias: Tensor | None, dtype: torch.dtype) -> CodedRow:
        """With the kernel's own choice of how the work is cut; fp16 has no room for rows before they are normed."""
        return cls(weight, bias, choose_shape(weight, 1, processors(weight.codes.device)), dtype == torch.bfloat16)

    @property
    def outputs(self) -> int:
        """Out features."""
        return self.weight.rows

    def __call__(self, x: Tensor | Scaled, *, norm: Norm | None = None, activation: str | None = None) -> Tensor:
        """As `Product`."""
        row = x.x if isinstance(x, Scaled) else x
        around = Around(scaled=x if isinstance(x, Scaled) else None)
        return multiply(row, self.weight, self.bias, row.new_empty(1, self.outputs), self.shape, around=around)

    def add(self, x: Tensor, residual: Tensor, following: Norm | None) -> Scaled | None:
        """As `Product`."""
        scaled = None
        if following is not None:
            parts = torch.empty(blocks_of(self.outputs, self.shape), dtype=torch.float32, device=x.device)
            scaled = Scaled(torch.empty_like(residual), parts, following.eps)
        around = Around(residual=residual, gain=None if following is None else following.gain, following=scaled)
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
